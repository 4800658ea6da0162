"""Plausible mistakes in the exercises, by checker: a wrong answer, and words of the hint that it
must get.

The first of each is the lesson's own wrong answer, or near it."""

import importlib
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from minisora.clips import scene_combinations


def checked(right, size, patch):
    "The tokens, or a ValueError unless `right`."
    if not right:
        raise ValueError
    return math.prod(s // p for s, p in zip(size, patch))


def asserted(size, patch):
    "The tokens, or an AssertionError where the patch does not fit."
    assert all(s % p == 0 for s, p in zip(size, patch))
    return math.prod(s // p for s, p in zip(size, patch))


def rootless(bar, data, noise, a, s):
    return bar**a * data + (1 - bar) ** s * noise


def gvp(t):
    return HALF_PI * t[:, None]


def centered(kernel, a, i):
    out = torch.zeros(*kernel.shape[:2], a, *kernel.shape[2:], dtype=kernel.dtype)
    out[:, :, i] = kernel
    return out


def loss_over(answer, target, keep):
    return (keep[:, None, :, None, None] * (answer - target) ** 2).flatten(1).mean(1)


def told(x, known, counts):
    mask = (torch.arange(x.shape[2]) < counts[:, None])[:, None, :, None, None]
    return torch.cat([torch.where(mask, known, x), mask.expand_as(x[:, :1]).to(x)], 1)


def told_channels(last):
    "Factors of the channels of what `told` returns."
    return torch.tensor([1.0, 1.0, last])[:, None, None, None]


def latents(frames, height, width, factors, patch):
    t = 1 + (frames - 1) // factors[0]
    return t // patch[0] * (height // factors[1] // patch[1]) * (width // factors[2] // patch[2])


def cat_past(x, *pieces):
    return (x + torch.cat(pieces, 2)) / 2


def resume(splitlines=False, whole_file=False, check_crc=True, stop=True):
    "Ways to count the batches of a journal."

    def answer(journal, data):
        count = 0
        for line in journal.splitlines() if splitlines else journal.split(b"\n")[:-1]:
            try:
                b = json.loads(line)
            except ValueError:
                break
            piece = data[b["start"] : b["start"] + b["bytes"]]
            right = not check_crc or zlib.crc32(piece) == b["crc"]
            if right:
                count += 1
            elif stop:
                break
        return count

    return answer


def statistics_of(gather):
    "Mean and deviation of what `gather` makes of the batches."

    def answer(batches):
        x = gather(batches)
        return x.mean(), x.std()

    return answer


def grown(batches):
    x = torch.empty(0)
    for b in batches:
        x = torch.cat([x, b.flatten()])
    return x


def two_passes(batches):
    batches = list(batches)
    n = sum(b.numel() for b in batches)
    mean = sum(b.double().sum() for b in batches) / n
    return mean, (sum((b.double() - mean).square().sum() for b in batches) / n).sqrt()


def silence(weights=(2, 5), biases=(2, 5), frozen=False, other=()):
    def answer(block):
        layer, D = block.adaLN_modulation[1], block.adaLN_modulation[1].in_features
        with torch.no_grad():
            for i in weights:
                layer.weight[i * D : (i + 1) * D] = 0
            for i in biases:
                layer.bias[i * D : (i + 1) * D] = 0
            for name in other:
                block.get_parameter(name).zero_()
        if frozen:
            block.requires_grad_(False)

    return answer


def betas():
    return torch.linspace(1e-4, 0.02, 1000)


def mixed(bar, k, data, noise):
    bar = bar[k, None]
    return bar.sqrt() * data + (1 - bar).sqrt() * noise


def schedule(late=0, decay=lambda p: 1 - p**0.5, share=5):
    def answer(step, steps, lr):
        warm, bend = steps // 10, steps - steps // share
        if step < warm:
            return lr * (step + 1 - late) / warm
        return lr if step < bend else lr * decay((step - bend) / (steps - bend))

    return answer


def turn(factor=1.0, sign=1.0, both=1.0):
    def answer(x, place, omega):
        angle = torch.tensor(factor * place * omega, dtype=x.dtype)
        a, b = x
        return both * torch.stack(
            [a * angle.cos() - sign * b * angle.sin(), a * angle.sin() + b * angle.cos()]
        )

    return answer


def heun(v, x, a, b, late=None, at=None, mean=0.5):
    first = v(x, a)
    landing = x + (b - a) * first if at is None else x
    return x + mean * (b - a) * (first + v(landing, b if late is None else a))


def kl(mean, logvar):
    return (0.5 * (mean**2 + logvar.exp() - 1 - logvar)).flatten(1).sum(1)


def shares(score, prompts, captions):
    best = score.argmax(1).tolist()
    return sum(captions[i] == p for i, p in zip(best, prompts)) / len(prompts)


def motion(x=(0.2, 0.8), y=(0.2, 0.8), r=0.15, bend=1.0, jitter=True):
    def answer(rng, frames):
        shift = rng.uniform(-0.04, 0.04) if jitter else 0
        s = np.linspace(0, 1, frames) ** bend
        return (
            x[0] + (x[1] - x[0]) * s + shift,
            y[0] + (y[1] - y[0]) * s,
            np.full(frames, r),
        )

    return answer


def routed(n, width, depth, start, end, route, kept=None, short=None):
    def block(tokens):
        return 12 * tokens * width**2 + 2 * tokens**2 * width

    short = end - start if short is None else short
    kept = n - int(route * n) if kept is None else kept
    return (depth - short) * block(n) + short * block(kept)


HALF_PI = math.pi / 2
LN2 = math.log(2)


def statistics_in(kind, number=lambda x: x):
    "Sums of the batches as `kind`, each kept as `number`."

    def answer(batches):
        n, total, squares = 0, 0, 0
        for b in batches:
            n += b.numel()
            total = total + number(kind(b).sum())
            squares = squares + number((kind(b) ** 2).sum())
        return total / n, (squares / n - (total / n) ** 2) ** 0.5

    return answer


MISTAKES = {
    "clips_mirrored": [
        (lambda f: f.flip(-1) / 255, "that is [0, 1]"),
        (lambda f: f / 127.5 - 1, "nothing is mirrored"),
        (lambda f: f.flip(-2) / 127.5 - 1, "upside down"),
        (lambda f: f.flip(1) / 127.5 - 1, "backwards"),
        (lambda f: f.flip(-1, 1) / 127.5 - 1, "all else as it was"),
        (lambda f: f.flip(-1) * 2 / 255 - 1, "uint8 holds no more than 255"),
        (lambda f: f.flip(-1) / 128 - 1, "0.992"),
        (lambda f: f.flip(-1).float(), "still bytes"),
        (lambda f: f.flip(-1), "must hold floats, yours holds uint8"),
        (lambda f: f.flip(-1) / 255 - 0.5, "[-0.5, 0.5]"),
        (lambda f: (f.flip(-1).float() - 127.5) / 120, "run from -1.06 to 1.06"),
        (
            lambda f: 2 * (f.flip(-1).float() - f.min()) / (f.max() - f.min()) - 1,
            "stretched to the darkest and brightest byte",
        ),
        (lambda f: f.flip(-1).float() / f.max() * 2 - 1, "by the brightest alone"),
        (lambda f: (f.flip(-1) // 127.5 - 1).float(), "those between must lie on a line"),
    ],
    "clips_frame_times": [
        (lambda s, e, n: [s + k / (n - 1) * (e - s) for k in range(n)], "from edge to edge"),
        (lambda s, e, n: [s + k / n * (e - s) for k in range(n)], "where the shares begin"),
        (lambda s, e, n: [s + (k + 1) / n * (e - s) for k in range(n)], "where the shares end"),
        (lambda s, e, n: [s + (k + 1) / (n + 1) * (e - s) for k in range(n)], "cuts into 9 parts"),
        (lambda s, e, n: [(k + 0.5) / n * (e - s) for k in range(n)], "begins at 2.0: add it"),
        (
            lambda s, e, n: [s + (k + 0.5) / n * (e - s) for k in range(n)][::-1],
            "time 0 must be 0.5",
        ),
        (lambda s, e, n: np.linspace(s, e, n + 1), "there must be 8 times, not 9"),
        (lambda s, e, n: s + (e - s) / 2, "TypeError"),
        (
            lambda s, e, n: [s + (k + 0.5) * (e - s) / (n - 1) for k in range(n)],
            "time 0 must be 0.5",
        ),
    ],
    "clips_heldout_motions": [
        (lambda o, c: {"orbit"}, "should"),
        (lambda o, c: set(), "should be there"),
        (lambda o, c: "left", "not the word 'left'"),
        (lambda o, c: 3, "a set of motions, not a int"),
        (
            lambda o, c: {m for a, b, m in scene_combinations("train") if (a, b) == (o, c)},
            "*is* trained",
        ),
    ],
    "clips_diagonal_motion": [
        (motion(y=(0.8, 0.2)), "y must rise from frame to frame (y points down)"),
        (motion(x=(0.2, 0.35)), "x rises by 0.150"),
        (motion(r=0.05), "it must be at least 0.1"),
        (motion(bend=2), "constant speed"),
        (motion(y=(0.2, 0.9)), "leaves the frame: y"),
        (motion(jitter=False), "use rng"),
        (lambda rng, n: motion(jitter=True)(np.random.default_rng(), n), "draw all that is random"),
        (lambda rng, n: motion()(rng, 16), "shape (5,)"),
        (lambda rng, n: motion()(rng, n)[:2], "3 things, (x, y, r)"),
    ],
    "autoencoder_kl_bits": [
        (kl, "these are nats"),
        (lambda m, v: kl(m, v) * LN2, "divide by ln 2"),
        (lambda m, v: 2 * kl(m, v) / LN2, "½ is missing"),
        (lambda m, v: kl(m, v).mean() / LN2, "shape (3,)"),
        (lambda m, v: -kl(m, v) / LN2, "never negative"),
        (lambda m, v: kl(m, v) / LN2 / 16, "the mean"),
        (lambda m, v: kl(m, 2 * v) / LN2, "not that of twice it"),
        (lambda m, v: m.flatten(1).sum(1), "not the KL"),
        (lambda m, v: kl(m, v).sum() / LN2, "shape (3,)"),
        (lambda m, v: 0.5 * (m**2 + v.exp() - 1 - v).sum((1, 2, 3)) / LN2, "yours has (2, 4)"),
        (
            lambda m, v: 0.5 * (m**2 + (v / 2).exp() - 1 - v).flatten(1).sum(1) / LN2,
            "yours takes σ, the root of it",
        ),
        (
            lambda m, v: 0.5 * (m**2 + v.exp() - 1 + v).flatten(1).sum(1) / LN2,
            "the sign of log σ²",
        ),
    ],
    "autoencoder_first_latent": [
        (lambda k: k // 4, "frame 0 is alone"),
        (lambda k: 1 + k // 4, "has a latent of its own"),
        (lambda k: (k + 3) / 4, "whole number"),
        (lambda k: (k + 7) // 4, "counted from 0"),
        (lambda k: (k + 2) // 4, "frame 1 is in latent 1, not 0"),
        (lambda k: min((k + 3) // 4, 4), "frame 17 is in latent 5, not 4"),
    ],
    "autoencoder_global_scale": [
        (lambda z: (z.mean(), z.std()), "1 over the deviation"),
        (lambda z: (-z.mean(), 1 / z.std()), "not minus the mean"),
        (lambda z: (z.mean(), 1 / z.var()), "variance"),
        (lambda z: (0.0, 1 / z.std()), "not 0"),
        (lambda z: (z.mean((0, 2, 3, 4)), 1 / z.std((0, 2, 3, 4))), "one for all channels"),
        (lambda z: 1 / z.std(), "2 things, (shift, scale)"),
    ],
    "autoencoder_causal_average": [
        (lambda x: cat_past(x, x[:, :, 1:], x[:, :, -1:]), "frame *after*"),
        (lambda x: cat_past(x, 0 * x[:, :, :1], x[:, :, :-1]), "zeros"),
        (lambda x: x + torch.cat([x[:, :, :1], x[:, :, :-1]], 2), "halve it"),
        (lambda x: torch.cat([x[:, :, :1], x[:, :, :-1]], 2), "frame before it alone"),
        (lambda x: (x + torch.cat([x[:, :, :, :1], x[:, :, :, :-1]], 3)) / 2, "along the rows"),
        (lambda x: x.mean(2, keepdim=True).expand_as(x), "it looks ahead"),
        (lambda x: cat_past(x, x[:, :, -1:], x[:, :, :-1]), "frame 0 must be the mean of frames 0"),
        (lambda x: (x[:, :, 1:] + x[:, :, :-1]) / 2, "must have the shape (2, 3, 6, 4, 4)"),
        (
            lambda x: 0.7 * x + 0.3 * torch.cat([x[:, :, :1], x[:, :, :-1]], 2),
            "frame 1 must be the",
        ),
        (lambda x: x, "nothing has changed"),
        (lambda x: cat_past(x, x[:, :, :1], x[:, :, :-1]).view(2, 3, -1, 4, 4), "RuntimeError"),
    ],
    "latent_cache_bytes": [
        (lambda n, c, f, ch, e: n * 3 * math.prod(c), "size of the clips as bytes"),
        (lambda n, c, f, ch, e: n * 3 * math.prod(c) * e, "at 2 bytes per number"),
        (
            lambda n, c, f, ch, e: n * ch * math.prod(s // k for s, k in zip(c, f)) * e,
            "round up",
        ),
        (
            lambda n, c, f, ch, e: n * ch * math.prod(-(-s // k) for s, k in zip(c, f)),
            "those are numbers",
        ),
        (
            lambda n, c, f, ch, e: n * math.prod(-(-s // k) for s, k in zip(c, f)) * e,
            "one per channel",
        ),
        (
            lambda n, c, f, ch, e: n * ch * math.prod(s / k for s, k in zip(c, f)) * e,
            "rounded up",
        ),
        (
            lambda n, c, f, ch, e: (
                n * ch * -(-c[0] // f[0]) * -(-c[1] // f[1]) * -(-c[2] // f[1]) * e
            ),
            "each a factor of its own",
        ),
        (
            lambda n, c, f, ch, e: (
                n * ch * (1 - (1 - c[0]) // f[0]) * -(-c[1] // f[1]) * -(-c[2] // f[2]) * e
            ),
            "no frame is alone",
        ),
    ],
    "latent_cache_running_statistics": [
        (lambda b: torch.tensor([[x.mean(), x.std()] for x in b]).mean(0), "mean of the means"),
        (statistics_of(lambda b: torch.cat([x.flatten() for x in b])), "keeps the batches"),
        (
            statistics_of(lambda b: torch.cat([x.double().flatten() for x in b])),
            "keeps the batches",
        ),
        (statistics_of(lambda b: torch.cat(list(b))), "keeps the batches"),
        (statistics_of(grown), "keeps the batches"),
        (two_passes, "keeps the batches"),
        (lambda b: torch.std_mean(next(b))[::-1], "asked for 1 of 24"),
        (lambda b: 0.0, "2 things, (mean, std)"),
        (statistics_in(lambda b: b), "no digits left"),
        (statistics_in(lambda b: b, number=float), "no digits left"),
    ],
    "latent_cache_resume_point": [
        (lambda journal, data: journal.count(b"\n"), "never reached the disk"),
        (resume(splitlines=True), "even if it reads well"),
        (resume(check_crc=False), "crc32 is wrong"),
        (resume(stop=False), "nothing after it counts"),
        (lambda journal, data: 3, "cut by the kill"),
        (
            lambda journal, data: len([json.loads(s) for s in journal.splitlines()]),
            "raised JSONDecodeError",
        ),
    ],
    "dit_tokens": [
        (lambda s, p: s[0] * s[1] * s[2] // (p[1] * p[2]), "cut into patches too"),
        (lambda s, p: math.prod(s), "divide each axis by its patch"),
        (lambda s, p: s[1] // p[1] * (s[2] // p[2]), "one step in time"),
        (lambda s, p: sum(a // b for a, b in zip(s, p)), "do not add"),
        (lambda s, p: math.prod(a // b for a, b in zip(s, p)), "3 does not divide 16"),
        (lambda s, p: checked(s[0] % p[0] == 0, s, p), "2 does not divide 9"),
        (lambda s, p: checked(math.prod(s) % math.prod(p) == 0, s, p), "2 does not divide 9"),
        (
            lambda s, p: asserted(s, p),
            "raise a ValueError; tokens(size, patch) raised AssertionError",
        ),
        (lambda s, p: -math.prod(s), "cut each axis into patches"),
    ],
    "dit_identity_block": [
        (lambda b: b.adaLN_modulation[1].weight.data.zero_(), "shifts or scales"),
        (silence(weights=range(6), biases=range(6)), "shifts or scales"),
        (silence(weights=(2, 5), biases=()), "weights and biases"),
        (silence(weights=(2,), biases=(2,)), "both gates"),
        (
            silence(weights=(), biases=(), other=("attn.proj.weight", "attn.proj.bias")),
            "gates alone",
        ),
        (silence(frozen=True), "no gradient"),
        (lambda b: None, "still changes x"),
    ],
    "dit_step_index": [
        (lambda t: (1000 * (1 - t)).long(), "round first"),
        (lambda t: torch.round(1000 * t).long(), "runs the other way"),
        (lambda t: torch.round(999 * (1 - t)).long(), "not 999"),
        (lambda t: torch.round(1000 * (1 - t)), "whole numbers"),
        (lambda t: torch.round(1000 * (1 - t)).long() + 1, "counted from 0"),
        (lambda t: torch.round(1000 * (1 - t)).long() % 1000, "t = 0 is pure noise"),
        (lambda t: torch.round(1000 * (1 - t)).long(), "clamp to 999"),
        (lambda t: torch.round(1000 * (1 - t)).long().clamp(0, 500), "is step 501, not 500"),
    ],
    "diffusion_forward_jump": [
        (
            lambda d, e, k: (1 - k[:, None] / 1000) * d + k[:, None] / 1000 * e,
            "straight line in k",
        ),
        (lambda d, e, k: mixed((1 - betas()).cumprod(0), k, e, d), "swapped"),
        (lambda d, e, k: mixed(1 - betas(), k, d, e), "*product*"),
        (lambda d, e, k: mixed(betas().cumprod(0), k, d, e), "not of beta"),
        (lambda d, e, k: mixed((1 - betas()).cumprod(0), (k - 1).clamp(min=0), d, e), "0.28"),
        (
            lambda d, e, k: mixed(torch.cat([torch.ones(1), (1 - betas()).cumprod(0)]), k, d, e),
            "one step before",
        ),
        (
            lambda d, e, k: rootless((1 - betas()).cumprod(0)[k, None], d, e, 1, 1),
            "yours takes no roots",
        ),
        (
            lambda d, e, k: rootless((1 - betas()).cumprod(0)[k, None], d, e, 0.5, 1),
            "sigma is the root",
        ),
        (lambda d, e, k: mixed((1 - betas()).cumprod(0), k, d, -e), "at k = 500 yours is"),
        (lambda d, e, k: mixed((1 - betas()).cumprod(0), k[:, None], d, e), "shape (4, 2)"),
        (lambda d, e, k: (1 - betas()).cumprod(0)[k] * d + e, "raised RuntimeError"),
    ],
    "diffusion_unpack_v": [
        (lambda v, x, a, s: (a * x + s * v, s * x - a * v), "so σ v is subtracted"),
        (lambda v, x, a, s: (s * x + a * v, a * x - s * v), "swapped"),
        (lambda v, x, a, s: ((x - s * (s * x + a * v)) / a, s * x + a * v), "no division"),
        (lambda v, x, a, s: (a * x - s * v, s * x - a * v), "so α v is added"),
        (lambda v, x, a, s: a * x - s * v, "2 things, (data, noise)"),
        (lambda v, x, a, s: (x, v), "the data is wrong at α = 0.6, σ = 0.8: that is x itself"),
    ],
    "diffusion_learned_variance": [
        (
            lambda o, small, large: ((o + 1) / 2 * large + (1 - o) / 2 * small).log(),
            "mix the logarithms",
        ),
        (lambda o, small, large: o * large.log() + (1 - o) * small.log(), "0 … 1 first"),
        (
            lambda o, small, large: (o + 1) / 2 * small.log() + (1 - o) / 2 * large.log(),
            "ends are swapped",
        ),
        (
            lambda o, small, large: ((o + 1) / 2 * large.log() + (1 - o) / 2 * small.log()).exp(),
            "its logarithm is asked for",
        ),
        (
            lambda o, small, large: (o + 1) / 2 * large.log10() + (1 - o) / 2 * small.log10(),
            "natural logarithm",
        ),
        (lambda o, small, large: large.log(), "it must be ¾ log large + ¼ log small"),
    ],
    "interpolants_gvp_velocity": [
        (lambda d, e, t: d - e, "straight line"),
        (lambda d, e, t: gvp(t).cos() * d - gvp(t).sin() * e, "inner derivative"),
        (lambda d, e, t: gvp(t).sin() * d + gvp(t).cos() * e, "the path itself"),
        (lambda d, e, t: HALF_PI * (gvp(t).cos() * d + gvp(t).sin() * e), "*minus* sin"),
        (lambda d, e, t: HALF_PI * (gvp(t).cos() * e - gvp(t).sin() * d), "goes with data"),
        (lambda d, e, t: 2 * (d - e), "the derivative of sin is cos"),
        (lambda d, e, t: HALF_PI * t.cos() * d, "raised RuntimeError"),
    ],
    "interpolants_linear_score": [
        (lambda v, x, t: -(x + (1 - t) * v) / (1 - t), "which combination is the noise?"),
        (lambda v, x, t: (x - t * v) / (1 - t), "the sign"),
        (lambda v, x, t: -(x - t * v), "divide it by 1 − t"),
        (lambda v, x, t: -x / (1 - t), "take the noise out of x first"),
        (lambda v, x, t: -(x - t * v) / (1 - t) ** 2, "divides by it once"),
        (lambda v, x, t: -(x - v) / (1 - t), "first the noise"),
    ],
    "sampling_heun_step": [
        (lambda v, x, a, b: x + (b - a) * v(x, a), "Euler"),
        (
            lambda v, x, a, b: x + (b - a) * v(x + (b - a) / 2 * v(x, a), (a + b) / 2),
            "midpoint",
        ),
        (lambda v, x, a, b: heun(v, x, a, b, late=1), "not at a"),
        (lambda v, x, a, b: heun(v, x, a, b, at=1), "not at x"),
        (lambda v, x, a, b: heun(v, x, a, b, mean=1), "take their mean"),
        (lambda v, x, a, b: heun(v, x, a, b) - x, "add it to x"),
        (lambda v, x, a, b: (v(x, a), heun(v, x, a, b))[1], "yours makes 3"),
        (lambda v, x, a, b: 2 * x, "times the mean of the two slopes"),
    ],
    "sampling_heun_calls": [
        (480, "one batched call; the last"),
        (474, "in one batched call"),
        (240, "Euler step: one call"),
        (79, "one batch; there are three"),
        (120, "two calls"),
        (236, "not 236"),
        (40, "first the calls of one batch"),
    ],
    "sampling_guided_data": [
        (lambda x, t, v, f, g: x + (1 - t) * (v + g * (v - f)), "start from the free one"),
        (lambda x, t, v, f, g: f + g * (v - f), "the guided data is asked for"),
        (lambda x, t, v, f, g: x + t * (f + g * (v - f)), "not x + t v"),
        (lambda x, t, v, f, g: x + (1 - t) * v, "not guided"),
        (lambda x, t, v, f, g: g * (1 - t) * (v - f), "add the free prediction"),
        (lambda x, t, v, f, g: x + (1 - t) * (v + g * (f - v)), "are swapped"),
        (lambda x, t, v, f, g: x, "what guiding the velocity gives"),
        (lambda x, t, v, f, g: x + g * (1 - t) * (v - f), "starts from x alone"),
        (lambda x, t, v, f, g: x - (1 - t) * (f + g * (v - f)), "lie ahead"),
    ],
    "temporal_pairs": [
        (lambda g, kind: math.prod(g) ** 2, "those are the pairs of 'joint'"),
        (
            lambda g, kind: dict(joint=math.prod(g) ** 2, space=(g[1] * g[2]) ** 2, time=g[0] ** 2)[
                kind
            ],
            "one of its groups",
        ),
        (
            lambda g, kind: dict(
                joint=math.prod(g) ** 2,
                time=g[0] * (g[1] * g[2]) ** 2,
                space=g[1] * g[2] * g[0] ** 2,
            )[kind],
            "those are the pairs of 'time'",
        ),
        (lambda g, kind: math.prod(g), "those are its tokens"),
        (lambda g, kind: 7, "how many groups"),
    ],
    "temporal_linear_velocity": [
        (lambda t, s: (2 * t - 1) / (t**2 + (1 - t) ** 2), "guess for sigma = 1"),
        (lambda t, s: (t * s - 1 + t) / (t**2 * s + (1 - t) ** 2), "sigma squared, not sigma"),
        (lambda t, s: (1 - t - t * s**2) / (t**2 * s**2 + (1 - t) ** 2), "the sign"),
        (lambda t, s: t * s**2 - (1 - t), "divide by E[x²]"),
        (lambda t, s: (t * s**2 + 1 - t) / (t**2 * s**2 + (1 - t) ** 2), "with a minus"),
        (lambda t, s: 1.0, "least squares gives"),
    ],
    "temporal_tubelet": [
        (lambda k, a: k[:, :, None].repeat(1, 1, a, 1, 1), "divide"),
        (lambda k, a: k[:, :, None].repeat(1, 1, a, 1, 1) / a**2, "once"),
        (lambda k, a: centered(k, a, 0), "takes the first"),
        (lambda k, a: centered(k, a, a // 2), "takes the middle"),
        (lambda k, a: k[:, :, None].repeat(1, 1, a, 1, 1) / a**0.5, "not by its root"),
        (lambda k, a: k.repeat(1, 1, a, 1)[:, :, None], "must have the shape"),
        (lambda k, a: -k[:, :, None].repeat(1, 1, a, 1, 1), "the kernel over 1"),
    ],
    "temporal_routed_macs": [
        (
            lambda n, w, depth, start, end, route: (
                (depth - route * (end - start)) * (12 * n * w**2 + 2 * n**2 * w)
            ),
            "with their square",
        ),
        (lambda n, *a: routed(n, *a, kept=int(a[-1] * n)), "that skips"),
        (lambda n, *a: routed(n, *a, kept=n * (1 - a[-1])), "whole number, 2"),
        (lambda n, *a: routed(n, *a, short=a[3] - a[2] + 1), "block 4 is not skipped"),
        (lambda n, *a: routed(n, *a, short=a[3] - a[2] - 1), "block 3 is skipped too"),
        (lambda n, *a: routed(n, *a, short=a[1]), "only 2 of the blocks"),
        (lambda n, *a: routed(n, *a, kept=n), "nothing is saved"),
        (lambda *a: 5, "blocks see 64 tokens"),
    ],
    "temporal_rope_pair": [
        (lambda x, place, omega: x + place * omega, "no length"),
        (lambda x, place, omega: x, "must have turned"),
        (turn(factor=2), "the angle must be 0.30, yours is 0.60"),
        (turn(sign=-1), "no length"),
        (turn(both=2), "nothing turns"),
        (lambda x, place, omega: turn()(x, place, 1.0), "the angle must be 0.30, yours is 1.00"),
        (lambda x, place, omega: turn()(x, place + 1, omega), "at place 0 nothing turns"),
        (lambda x, place, omega: turn()(x, place**2, omega), "difference of places alone"),
    ],
    "train_ema_half_life": [
        (lambda d: 1 / (1 - d), "1/e"),
        (lambda d: LN2 / (1 - d), "near"),
        (lambda d: math.log(d) / math.log(0.5), "that is 6.6 updates"),
        (lambda d: -math.log(0.5) / math.log(d), "counted forwards"),
        (lambda d: -1 / math.log(d), "when 1/e is left"),
    ],
    "train_wsd_schedule": [
        (lambda step, steps, lr: lr * (1 - step / steps), "the warm-up"),
        (schedule(late=1), "one step late"),
        (schedule(decay=lambda p: 1 - p), "straight line"),
        (schedule(decay=lambda p: (1 - p) ** 0.5), "√(1 − p)"),
        (schedule(decay=lambda p: 1.0), "no decay"),
        (schedule(decay=lambda p: 0.9 - p / 2), "at step 80 the rate must be lr · 1.0000"),
        (schedule(share=2), "between warm-up and decay it is lr: at step 51"),
        (lambda step, steps, lr: lr, "is a warm-up"),
    ],
    "train_epoch_position": [
        (lambda s, b, n: (s // (n // b), s % (n // b) * b), "batches wrap"),
        (lambda s, b, n: divmod(s * b, n)[::-1], "the epoch first"),
        (lambda s, b, n: divmod(s * b - 1, n), "the next one is asked for"),
        (lambda s, b, n: divmod(s, n), "not samples"),
        (lambda s, b, n: (s * b / n, s * b % n), "the epoch must be a whole number"),
        (lambda s, b, n: s * b % n, "2 things, (epoch, position)"),
        (lambda s, b, n: (1, 1), "the next is at (0, 0), not at (1, 1)"),
    ],
    "metrics_frechet_1d": [
        (lambda m, s, n, r: (m - n) ** 2 + abs(s**2 - r**2), "not that of the variances"),
        (lambda m, s, n, r: ((m - n) ** 2 + (s - r) ** 2) ** 0.5, "its square is asked for"),
        (lambda m, s, n, r: (m - n) ** 2, "the deviations count too"),
        (lambda m, s, n, r: (s - r) ** 2, "the means count too"),
        (lambda m, s, n, r: (m - n) ** 2 + s**2 + r**2, "the cross term"),
        (lambda m, s, n, r: (m - n) ** 2 + s + r - 2 * (s * r) ** 0.5, "not variances"),
        (lambda m, s, n, r: 1.0, "(0 - 0)² + (1 - 1)² = 0, not 1"),
    ],
    "metrics_jerk": [
        (lambda p: p.diff(dim=0).norm(dim=-1).mean(), "mean speed"),
        (lambda p: p.diff(dim=0).diff(dim=0).norm(dim=-1).sum(), "that is the sum"),
        (lambda p: p.diff(dim=0).diff(dim=0).abs().sum(-1).mean(), "not the sum of its parts"),
        (lambda p: p.diff(dim=0).diff(dim=0).abs().mean(), "not the mean of its parts"),
        (lambda p: p.diff(dim=0).diff(dim=0).diff(dim=0).norm(dim=-1).mean(), "third"),
        (lambda p: p.diff(dim=0).diff(dim=0).norm(dim=-1), "one number"),
        (lambda p: p.diff().diff().abs().mean(), "not nan"),
    ],
    "metrics_clips_needed": [
        (30, "known to ± 10.74 points"),
        (138, "known to ± 5.01 points"),
        (200, "more than needed"),
        (138.3, "whole number"),
        (0, "some clips"),
    ],
    "metrics_mass_flicker": [
        (lambda m: m.diff().diff().abs().mean(), "logarithm first"),
        (lambda m: m.log().diff().abs().mean(), "take it twice"),
        (lambda m: m.log().diff().diff().abs().sum(), "take the mean"),
        (lambda m: m.log2().diff().diff().abs().mean(), "base 2"),
        (lambda m: m.log().diff().diff().mean(), "absolute values before the mean"),
        (lambda m: m.log().std(), "its flicker is 0, not"),
    ],
    "metrics_frechet_infinity": [
        (lambda n, d, m, e: (d + e) / 2, "the mean of two"),
        (lambda n, d, m, e: e, "more clips would still lower it"),
        (lambda n, d, m, e: (n * d + m * e) / (n + m), "weighing"),
        (
            lambda n, d, m, e: (m**0.5 * e - n**0.5 * d) / (m**0.5 - n**0.5),
            "not 1/√n",
        ),
        (lambda n, d, m, e: (d - e) / (1 / n - 1 / m), "slope"),
        (lambda n, d, m, e: 0.0, "makes d∞ = 2, not 0"),
    ],
    "first_video_tokens": [
        (lambda p, f, k, c: f * p * p // k, "64 tokens, not 8192"),
        (lambda p, f, k, c: f // c[0] * (p // k // c[1]) ** 2, "divides both sides by 4"),
        (lambda p, f, k, c: f // c[0] * (p // k // c[2]) ** 2, "divides both sides by 1"),
        (lambda p, f, k, c: f * (p // k) ** 2, "divide by the tubelet"),
        (lambda p, f, k, c: f // c[0] * (p // c[1]) * (p // c[2]), "comes first"),
        (lambda p, f, k, c: f * (p // k // c[1]) * (p // k // c[2]), "4 frames at a time"),
        (
            lambda p, f, k, c: f // c[0] * (p // k // c[1]) * (p / k / c[2]) + 0.5,
            "must be a whole number",
        ),
    ],
    "first_video_data_to_velocity": [
        (lambda d, x, t: d - x, "done in the time 1 − t"),
        (lambda d, x, t: (x - d) / (1 - t), "noise − data"),
        (lambda d, x, t: (d - x) * (1 - t), "not multiplied"),
        (lambda d, x, t: (d - x) / t, "must be finite"),
        (lambda d, x, t: (x - t * d) / (1 - t), "that is the noise"),
        (lambda d, x, t: 2 * d, "must be data − noise"),
    ],
    "first_video_memorized_share": [
        (lambda m, p, r, c: 1.0, "0.75, not 1"),
        (lambda m, p, r, c: 0.75, "other example"),
        (lambda m, p, r, c: shares(m @ r.T, p, c), "dot product"),
        (lambda m, p, r, c: shares(torch.cosine_similarity(m[:, None], r, -1), p, c), "angles"),
        (lambda m, p, r, c: shares(torch.cdist(m, r), p, c), "takes the farthest"),
        (lambda m, p, r, c: shares(-torch.cdist(m, r), p, c) * len(p), "how many"),
        (lambda m, p, r, c: shares(-torch.cdist(r, m), c, p), "0.75, not 1"),
    ],
    "frames_film_length": [
        (lambda c, f, o, k: f + (c - 1) * (f - o), "2 latent frames are 5 frames"),
        (lambda c, f, o, k: f + (c - 1) * (f - k * o), "the first latent is one frame, not 4"),
        (lambda c, f, o, k: c * f, "count once"),
        (lambda c, f, o, k: c * (f - 1 - k * (o - 1)), "the first clip was given nothing"),
        (lambda c, f, o, k: f + c * (f - 1 - k * (o - 1)), "continue another"),
        (lambda c, f, o, k: f, "97 frames, not 33"),
    ],
    "frames_prediction_loss": [
        (lambda a, b, k: ((a - b) ** 2).flatten(1).mean(1), "must not be in the mean"),
        (
            lambda a, b, k: torch.stack([((x - y)[:, i:] ** 2).mean() for x, y, i in zip(a, b, k)]),
            "over the others alone",
        ),
        (lambda a, b, k: loss_over(a, b, torch.arange(4) < k[:, None]), "error of the known"),
        (lambda a, b, k: loss_over(a, b, torch.arange(4) > k[:, None]), "one frame too many"),
        (lambda a, b, k: loss_over(a, b, torch.arange(4) >= k[:, None]) * 16, "that is the sum"),
        (lambda a, b, k: loss_over(a, b, torch.arange(4) < 4 - k[:, None]), "not the last"),
        (lambda a, b, k: loss_over(a, b, torch.arange(4) >= k[:, None]).mean(), "shape (3,)"),
        (lambda a, b, k: a.flatten(1).mean(1), "of 4: the losses are"),
    ],
    "frames_told": [
        (lambda x, z, k: torch.cat([x, 0 * x[:, :1]], 1), "nothing is shown"),
        (lambda x, z, k: told(x, x, k), "the mask is there"),
        (lambda x, z, k: told(x, z, k)[:, :2], "the shape (3, 3, 4, 1, 2)"),
        (lambda x, z, k: told(x, z, k).mul(told_channels(0)), "the last channel must say"),
        (lambda x, z, k: told(x, z, k) * told_channels(-1) + told_channels(1) - 1, "must be"),
        (lambda x, z, k: told(z, x, k), "swapped"),
        (lambda x, z, k: told(x, z, k.max().expand(3)), "a count of its own"),
        (lambda x, z, k: told(x, z, k + 1), "one frame too many"),
        (lambda x, z, k: told(x, z, k).roll(1, 1), "the mask comes last"),
        (lambda x, z, k: told(x.flip(2), z.flip(2), k).flip(2), "not the last"),
        (lambda x, z, k: told(x, z, k.min().expand_as(k)), "every sample has a count of its own"),
    ],
}


def chan(batches):
    "Chan's way to merge statistics, in numpy."
    n, mean, squares = 0, 0.0, 0.0
    for b in batches:
        x = b.numpy().astype(np.float64)
        delta = x.mean() - mean
        total = n + x.size
        squares += ((x - x.mean()) ** 2).sum() + delta**2 * n * x.size / total
        mean += delta * x.size / total
        n = total
    return mean, (squares / (n - 1)) ** 0.5


def summed_in_place(batches):
    "Sums over the clips, written into the same tensors again and again."
    n, total, squares = 0, torch.zeros(1, 4, 2, 3, 3).double(), torch.zeros(1, 4, 2, 3, 3).double()
    for b in batches:
        for clip in b.double():
            total += clip
            squares.add_(clip**2)
        n += b.numel()
    mean = total.sum() / n
    return mean, (squares.sum() / n - mean**2).sqrt()


def averaged_in_place(x):
    x[:, :, 1:] = (x[:, :, 1:] + x[:, :, :-1]) / 2
    return x


# Right answers that look other than the lessons' own.
RIGHT = [
    (
        "clips_mirrored",
        lambda f: (f.float()[..., range(f.shape[-1] - 1, -1, -1)] / 255 - 0.5) / 0.5,
    ),
    ("clips_frame_times", lambda s, e, n: torch.linspace(s, e, 2 * n + 1)[1::2]),
    ("autoencoder_global_scale", lambda z: [float(z.mean()), z.std(correction=0).reciprocal()]),
    ("autoencoder_causal_average", averaged_in_place),
    ("autoencoder_first_latent", lambda k: math.ceil(k / 4)),
    (
        "latent_cache_bytes",
        lambda n, c, f, ch, e: float(
            np.prod([n, ch, e, *(math.ceil(s / k) for s, k in zip(c, f))], dtype=np.float64)
        ),
    ),
    ("latent_cache_running_statistics", chan),
    ("latent_cache_resume_point", resume()),
    ("dit_step_index", lambda t: torch.round(1000 * (1 - t)).clamp(max=999).int()),
    ("dit_identity_block", silence()),
    ("sampling_heun_calls", torch.tensor(237.0)),
    ("temporal_rope_pair", lambda x, place, omega: turn()(x, -place, omega)),
    ("temporal_tubelet", lambda k, a: torch.stack([k / a] * a, 2)),
    ("train_ema_half_life", lambda d: -1 / math.log2(d)),
    ("train_ema_half_life", lambda d: torch.tensor(0.5).log() / torch.tensor(d).log()),
    (
        "clips_diagonal_motion",
        lambda rng, n: (*[np.linspace(0.2, rng.uniform(0.5, 0.8), n)] * 2, np.full(n, 0.12)),
    ),
    ("latent_cache_running_statistics", statistics_in(lambda b: b.double(), number=float)),
    ("train_wsd_schedule", schedule()),
    ("metrics_clips_needed", np.int64(139)),
    ("metrics_coverage", lambda a, r: np.mean([bool((d <= k).any()) for d, k in zip(a, r)])),
    (
        "frames_prediction_loss",
        lambda a, b, k: loss_over(a, b, torch.arange(a.shape[2]) >= k[:, None]),
    ),
    ("single_gpu_clip_tokens", latents),
    ("latent_cache_running_statistics", summed_in_place),
]

# Checkers whose answer changes what it is given and may return nothing, and those whose answer is
# a tensor of whole numbers.
IN_PLACE = {"dit_identity_block"}
WHOLE = {"dit_step_index"}

# A lesson's own file, mistakes_<lesson>.py, has the same names, each where it needs it.
for path in sorted(Path(__file__).parent.glob("mistakes_*.py")):
    room = importlib.import_module(f"helpers.{path.stem}")
    twice = MISTAKES.keys() & room.MISTAKES.keys()
    assert not twice, f"{path.name}: {twice} stand in two files, and one would not be tried"
    MISTAKES.update(room.MISTAKES)
    RIGHT.extend(getattr(room, "RIGHT", []))
    IN_PLACE |= getattr(room, "IN_PLACE", set())
    WHOLE |= getattr(room, "WHOLE", set())
