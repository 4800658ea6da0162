"""Plausible mistakes in the exercises of lesson 18, and right answers of another kind."""

import math

import torch
from einops import rearrange


def folded(pattern):
    "A fold by an einops pattern, whose squares are a × d."
    return lambda x, f: rearrange(x, f"b c t {pattern}", a=f, d=f)


def loop_fold(x, f):
    "The fold by slices with a step."
    parts = [x[:, c, :, a::f, d::f] for c in range(x.shape[1]) for a in range(f) for d in range(f)]
    return torch.stack(parts, 1)


def view_fold(x, f):
    "The fold by view and permute."
    b, c, t, height, width = x.shape
    parts = x.view(b, c, t, height // f, f, width // f, f).permute(0, 1, 4, 6, 2, 3, 5)
    return parts.reshape(b, c * f * f, t, height // f, width // f)


def squares(x, f):
    return rearrange(x, "b c t (h a) (w d) -> b t h w (c a d)", a=f, d=f).double()


def unsquares(x, f):
    return rearrange(x, "b t h w (c a d) -> b c t (h a) (w d)", a=f, d=f).float()


def stage(
    fit=lambda train, x: train,
    pick=lambda basis, k: basis[:, :k],
    scale=lambda values: values.mean().sqrt(),
    middle=lambda rows: rows.mean(0),
    back=lambda z, s, basis, mean: z * s @ basis.T + mean,
    axes="b t h w k -> b k t h w",
):
    "The second stage by singular values, with one part of it exchanged."

    def second_stage(train, x, f, k):
        rows = squares(fit(train, x), f).flatten(0, 3)
        mean = middle(rows)
        _, roots, vectors = torch.linalg.svd(rows - mean, full_matrices=False)
        basis = pick(vectors.T, k)
        s = scale(roots[:k].square() / len(rows))
        z = (squares(x, f) - mean) @ basis / s
        made = back(z, s, basis, mean)
        if made.shape[-1] != rows.shape[1]:
            made = made @ torch.eye(made.shape[-1], rows.shape[1]).double()
        return rearrange(z, axes).float(), unsquares(made, f)

    return second_stage


def in_float32(train, x, f, k):
    "As the lesson says it, in float32 and with the other covariance."
    rows = squares(train, f).flatten(0, 3).float()
    values, vectors = torch.linalg.eigh(rows.T.cov())
    basis = vectors[:, -k:].flip(1)
    codes = (rows - rows.mean(0)) @ basis
    z = (squares(x, f).float() - rows.mean(0)) @ basis / codes.std()
    return z.movedim(-1, 1), unsquares(z * codes.std() @ basis.T + rows.mean(0), f)


def step(copies=5, kept=lambda n, d, l, r: n * d * l * (13 + 2 * r), clips=lambda b: b, size=4):
    return lambda w, n, d, l, r, b: size * (copies * w + clips(b) * kept(n, d, l, r))


def latents(frames, height, width, factors, patch):
    first = 1 + (frames - 1) // factors[0]
    return (
        first // patch[0] * (height // factors[1] // patch[1]) * (width // factors[2] // patch[2])
    )


MISTAKES = {
    "single_gpu_clip_tokens": [
        (
            lambda f, h, w, k, p: f // k[0] // p[0] * (h // k[1] // p[1]) * (w // k[2] // p[2]),
            "a latent of its own",
        ),
        (lambda f, h, w, k, p: latents(f, h, w, k, (1, *p[1:])), "a patch spans 3"),
        (lambda f, h, w, k, p: latents(f, h, w, k, (1, 1, 1)), "divide by the patch"),
        (lambda f, h, w, k, p: latents(f, h, w, (1, *k[1:]), p), "shrinks time as well"),
        (lambda f, h, w, k, p: latents(f, h, w, (k[0], 1, 1), p), "height and width first"),
        (lambda f, h, w, k, p: latents(1, h, w, k, (1, *p[1:])), "one latent frame"),
        (lambda f, h, w, k, p: latents(f - k[0], h, w, k, p), "a latent of its own"),
        (lambda f, h, w, k, p: f, "9 latent frames of 60×108"),
    ],
    "single_gpu_fold": [
        (lambda x, f: x.reshape(len(x), -1, x.shape[2], x.shape[3] // f, x.shape[4] // f), "alone"),
        (folded("(h a) (w d) -> b (a d c) t h w"), "then the rows"),
        (folded("(h a) (w d) -> b (d a c) t h w"), "then the columns"),
        (folded("(h a) (w d) -> b (c d a) t h w"), "row by row"),
        (folded("(h a) (w d) -> b (a c d) t h w"), "channel, row, column"),
        (folded("(a h) (d w) -> b (c a d) t h w"), "a square holds neighbors"),
        (folded("(h a) (d w) -> b (c a d) t h w"), "along the width"),
        (folded("(a h) (w d) -> b (c a d) t h w"), "along the height"),
        (folded("(h a) (w d) -> b (c a d) t w h"), "the shape (2, 12, 2, 2, 3)"),
        (lambda x, f: loop_fold(x, f).flip(-1, -2), "upside down"),
        (lambda x, f: loop_fold(x, f).flip(2), "row by row"),
        (lambda x, f: x[..., ::f, ::f].repeat(1, f * f, 1, 1, 1), "row by row"),
        (lambda x, f: loop_fold(x, 2), "raised RuntimeError"),
        (lambda x, f: x, "the shape (2, 12, 2, 2, 3)"),
    ],
    "single_gpu_largest_batch": [
        (lambda m, s, c, r: int(m * (1 - r) // (s + c)), "once, not once per clip"),
        (lambda m, s, c, r: int(m * (1 - r) // c), "goes off first"),
        (lambda m, s, c, r: int(m // c), "neither reserve nor static"),
        (lambda m, s, c, r: max(0, int((m - s) // c)), "keep the reserve free"),
        (lambda m, s, c, r: int((m * (1 - r) - s) // c), "not even one clip fits"),
        (lambda m, s, c, r: (m * (1 - r) - s) / c, "whole number"),
        (lambda m, s, c, r: max(0, math.ceil((m * (1 - r) - s) / c)), "round down"),
        (lambda m, s, c, r: max(0, round((m * (1 - r) - s) / c)), "round down"),
        (lambda m, s, c, r: max(0, int((m - s) * (1 - r) // c)), "share of the whole memory"),
        (lambda m, s, c, r: max(1, int((m * (1 - r) - s) // c)), "0 clips, not 1"),
        (lambda m, s, c, r: max(0, int((m * r - s) // c)), "clips, not"),
    ],
    "single_gpu_second_stage": [
        (stage(pick=lambda basis, k: basis[:, -k:]), "vary least"),
        (stage(pick=lambda basis, k: basis[:, 1 : k + 1]), "largest direction is left out"),
        (stage(pick=lambda basis, k: basis[:, :k].flip(1)), "largest variance comes first"),
        (stage(pick=lambda basis, k: torch.eye(len(basis)).double()[:, :k]), "not those of"),
        (stage(pick=lambda basis, k: basis[:, : k - 1]), "not those of"),
        (stage(back=lambda z, s, basis, mean: z * s @ basis.T), "add the mean"),
        (stage(back=lambda z, s, basis, mean: z @ basis.T + mean), "multiply by the scale"),
        (stage(back=lambda z, s, basis, mean: (z @ basis.T + mean) * s), "not those of"),
        (stage(fit=lambda train, x: x), "fit it to train"),
        (stage(fit=lambda train, x: torch.cat([train, x])), "not those of"),
        (stage(fit=lambda train, x: train[:1]), "not those of"),
        (stage(middle=lambda rows: 0 * rows[0]), "before the covariance"),
        (stage(middle=lambda rows: rows.mean()), "not those of"),
        (stage(scale=lambda values: values.sqrt()), "yours has one each"),
        (stage(scale=lambda values: torch.ones(())), "divide the codes"),
        (stage(scale=lambda values: values.mean()), "not that variance"),
        (stage(scale=lambda values: values.sum().sqrt()), "the codes are not"),
        (stage(scale=lambda values: values.sqrt().mean()), "the codes are not"),
        (stage(axes="b t h w k -> b t h w k"), "z must have the shape"),
        (lambda *a: stage()(*a)[0], "must have the shape"),
        (lambda *a: [stage()(*a)[0]], "2 things"),
        (lambda *a: stage()(*a)[::-1], "must have the shape"),
        (lambda train, x, f, k: (stage()(train, x, f, k)[0], x), "the latents themselves"),
    ],
    "single_gpu_step_bytes": [
        (step(copies=3, clips=lambda b: 1), "neither of the two"),
        (step(copies=3), "AdamW has its moments"),
        (step(copies=4), "two moments"),
        (step(copies=6), "one number per weight too many"),
        (step(clips=lambda b: 1), "for each clip"),
        (lambda w, n, d, l, r, b: b * step()(w, n, d, l, r, 1), "there once"),
        (step(size=1), "has 4 bytes"),
        (step(size=2), "bytes, not"),
        (step(kept=lambda n, d, l, r: 21 * n * d * l), "need not be 4"),
        (step(kept=lambda n, d, l, r: n * d * l * (13 + r)), "bytes, not"),
        (step(kept=lambda n, d, l, r: n * n * d * l * (13 + 2 * r)), "bytes, not"),
        (step(kept=lambda n, d, l, r: n * d * (13 + 2 * r)), "bytes, not"),
        (step(clips=lambda b: b + 1), "bytes, not"),
        (lambda w, n, d, l, r, b: 20 * w + step(copies=0, size=1)(w, n, d, l, r, b), "both parts"),
    ],
}

RIGHT = [
    ("single_gpu_clip_tokens", latents),
    ("single_gpu_fold", loop_fold),
    ("single_gpu_fold", view_fold),
    ("single_gpu_second_stage", stage()),
    ("single_gpu_second_stage", in_float32),
    ("single_gpu_step_bytes", lambda w, n, d, l, r, b: 20.0 * w + 4 * b * n * d * l * (13 + 2 * r)),
]
