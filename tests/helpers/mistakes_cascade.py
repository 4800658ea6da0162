"""Mistakes in the exercises of lesson 14, by checker: see `mistakes.py`."""

import math

import torch
from einops import rearrange
from torch.nn import functional as F


def numbers(rounded=round, shrinks=True, least=1, time=1, channels=True, sides=(0, 1)):
    def code_numbers(frames, height, width, c, shrink):
        pixels = [(height, width)[i] for i in sides]
        rows, columns = (max(least, rounded((shrink if shrinks else 1) * n / 32)) for n in pixels)
        return max(1, round(frames * time)) * rows * columns * (c if channels else 1)

    return code_numbers


def axes(v):
    return v[:, None, None, None, None]


def told(mix=lambda c, n, a: (1 - a) * c + a * n, keep=lambda out, n, k: out * k):
    def told_code(code, noise, level, kept):
        return keep(mix(code, noise, axes(level)), noise, axes(kept))

    return told_code


def one_level(code, noise, level, kept):
    a = level.mean()
    return ((1 - a) * code + a * noise) * axes(kept)


def first_level(code, noise, level, kept):
    a = level[0]
    return ((1 - a) * code + a * noise) * axes(kept)


def by_rows(code, noise, level, kept):
    "Right: clip by clip."
    rows = [torch.lerp(c, n, a) if k else 0 * c for c, n, a, k in zip(code, noise, level, kept)]
    return torch.stack(rows)


def along(
    source="b t c h w",
    order="(b h w) t c",
    back=None,
    normed=True,
    placed=True,
    values=None,
    base="x",
    scale=None,
    one_head=False,
    exit=True,
    swap=False,
    interleaved=False,
    norm_last=False,
    added=True,
    causal=False,
    axis=-1,
):
    "The solution, with what may go wrong."

    def along_time(x, places, norm, to_q, to_k, to_v, to_out, heads):
        B, T, C, H, W = x.shape
        sizes = dict(b=B, t=T, h=H, w=W)
        rows = rearrange(x, f"b t c h w -> {order}", **sizes)
        seen = norm(rows) if normed else rows
        alone = seen
        if placed:
            if norm_last:
                seen = norm(rows + places)
            elif seen.shape[-2] == T:
                seen = seen + places
            else:
                where = places[:, None, None].expand(T, H, W, C)[None].expand(B, T, H, W, C)
                seen = seen + rearrange(where, f"b t h w c -> {order}")
        n = 1 if one_head else heads
        split = "n t (d k) -> n k t d" if interleaved else "n t (k d) -> n k t d"
        q, k = to_q(seen), to_k(seen)
        v = to_v(alone if values == "bare" else seen)
        if swap:
            q, k = k, q
        q, k, v = (rearrange(a, split, k=n) for a in (q, k, v))
        divide = scale(C, heads) if scale else (C // n) ** 0.5
        logits = q @ k.mT / divide
        if causal:
            logits = logits.masked_fill(~torch.ones_like(logits).tril().bool(), -math.inf)
        out = logits.softmax(axis) @ v
        out = rearrange(out, "n k t d -> n t (d k)" if interleaved else "n k t d -> n t (k d)")
        if exit:
            out = to_out(out)
        if added:
            places = places if base == "placed" else 0
            out = out + (norm(rows) if base == "normed" else rows + places)
        return rearrange(out, f"{back or order} -> b t c h w", **sizes)

    return along_time


def fused(x, places, norm, to_q, to_k, to_v, to_out, heads):
    "Right: with PyTorch's own attention, and axes moved by hand."
    B, T, C, H, W = x.shape
    rows = x.permute(0, 3, 4, 1, 2).reshape(-1, T, C)
    seen = norm(rows) + places
    q, k, v = (f(seen).view(-1, T, heads, C // heads).transpose(1, 2) for f in (to_q, to_k, to_v))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, T, C)
    return x + to_out(out).view(B, H, W, T, C).permute(0, 3, 4, 1, 2)


def detached(x, *rest):
    return x + (fused(x, *rest) - x).detach()


def frames(into="(b t)", repeat="each", back=None, tokens=lambda y: y, out=lambda z, x: z):
    def by_frames(picture_model, x, y):
        B, T = x.shape[0], x.shape[2]
        rows = rearrange(x, f"b c t h w -> {into} c h w")
        y = tokens(y)
        y = y.repeat_interleave(T, 0) if repeat == "each" else y.repeat(T, 1, 1)
        z = rearrange(picture_model(rows, y), f"{back or into} c h w -> b c t h w", b=B, t=T)
        return out(z, x)

    return by_frames


def viewed(picture_model, x, y):
    "The frames are views of (B, C, T): channels and frames are taken for each other."
    B, C, T, H, W = x.shape
    out = picture_model(x.reshape(B * T, C, H, W), y.repeat_interleave(T, 0))
    return out.reshape(B, T, C, H, W).movedim(2, 1)


def one_by_one(picture_model, x, y):
    return torch.stack([picture_model(x[:, :, t], y) for t in range(x.shape[2])], 2)


def wrong_shape(picture_model, x, y):
    return picture_model(x, y)


MISTAKES = {
    "cascade_code_numbers": [
        (numbers(shrinks=False), "`shrink` times as large first"),
        (numbers(math.floor), "not the next lower"),
        (numbers(math.ceil), "not the next higher"),
        (numbers(least=0), "at least one place"),
        (numbers(channels=False), "each has `channels` numbers"),
        (numbers(time=1 / 4), "time is not compressed"),
        (numbers(time=0), "a code of its own"),
        (numbers(sides=(0, 0)), "columns from the width"),
        (numbers(sides=(1, 1)), "rows from the height"),
        (lambda f, h, w, c, s: f * c * max(1, round(s * s * h * w / 1024)), "not their product"),
        (lambda f, h, w, c, s: f * h * w * 3, "multiply frames"),
        (lambda f, h, w, c, s: numbers()(f, h, w, c, 0.75), "not always .75"),
        (
            lambda f, h, w, c, s: f * c * max(1, numbers(least=0)(1, h, w, 1, s)),
            "not only the picture",
        ),
        (lambda f, h, w, c, s: f * c * s * h * w / 1024, "multiply frames"),
    ],
    "cascade_told_code": [
        (told(keep=lambda out, n, k: out), "is told zeros"),
        (told(keep=lambda out, n, k: out * ~k), "kept is True for"),
        (told(mix=lambda c, n, a: c + a * n), "takes its share of the code away"),
        (told(mix=lambda c, n, a: a * c + (1 - a) * n), "not of the code"),
        (told(mix=lambda c, n, a: (1 - a) ** 0.5 * c + a**0.5 * n), "not their roots"),
        (told(mix=lambda c, n, a: (1 - a * a) ** 0.5 * c + a * n), "their squares need not"),
        (told(mix=lambda c, n, a: (1 - a) * c), "no noise comes in"),
        (told(mix=lambda c, n, a: c), "the code keeps all of itself"),
        (told(keep=lambda out, n, k: torch.where(k, out, n)), "not noise alone"),
        (one_level, "uses one for all"),
        (first_level, "its own share of noise"),
        (lambda c, n, a, k: ((1 - a) * c + a * n) * k, "four axes more"),
        (lambda c, n, a, k: (1 - axes(a)) * c * axes(k) + axes(a) * n, "is still there"),
    ],
    "cascade_along_time": [
        (along(added=False), "x itself is not added"),
        (along(base="normed"), "the normed x is added"),
        (along(placed=False), "places are not added"),
        (along(normed=False), "x is not normed"),
        (along(norm_last=True), "norm comes before the places"),
        (along(values="bare"), "values have no places"),
        (along(base="placed"), "x with its places is added"),
        (along(one_head=True), "one head, with its root"),
        (along(scale=lambda c, n: c**0.5), "of a head's channels, not of all"),
        (along(scale=lambda c, n: 1.0), "are not divided"),
        (along(scale=lambda c, n: c // n), "not by their root"),
        (along(exit=False), "to_out is left out"),
        (along(swap=True), "queries and keys are exchanged"),
        (along(order="b (t h w) c"), "all places of all frames see each other"),
        (along(order="(b h w) t c", back="(b w h) t c"), "the same order"),
        (along(order="(b h w) t c", back="(h w b) t c"), "x of (2, 5, 8, 3, 2)"),
        (along(interleaved=True), "attend in heads"),
        (along(causal=True), "bring the frames of one place together"),
        (along(axis=-2), "bring the frames of one place together"),
        (detached, "not the gradient"),
        (lambda x, *rest: x, "bring the frames"),
    ],
    "cascade_by_frames": [
        (frames(into="(t b)"), "still in two orders"),
        (frames(repeat="all"), "the tokens repeat in the other order"),
        (frames(back="(t b)"), "come back in another order"),
        (frames(into="(t b)", repeat="all", back="(b t)"), "went in as (t b)"),
        (frames(tokens=lambda y: y[:1].expand_as(y)), "what the first one is"),
        (frames(tokens=lambda y: 0 * y), "leaves them out"),
        (
            frames(tokens=lambda y: y.mean(0, keepdim=True).expand_as(y)),
            "the mean of what they are",
        ),
        (frames(out=lambda z, x: x), "comes back as it was"),
        (frames(tokens=lambda y: y.flip(0)), "tokens of its own clip"),
        (frames(out=lambda z, x: x + z), "tokens of its own clip"),
        (viewed, "tokens of its own clip"),
        (one_by_one, "not once"),
        (wrong_shape, "needs frames (N, C, H, W)"),
    ],
}

RIGHT = [
    ("cascade_code_numbers", lambda f, h, w, c, s: float(numbers()(f, h, w, c, s))),
    ("cascade_told_code", by_rows),
    ("cascade_told_code", told(mix=lambda c, n, a: c + a * (n - c))),
    ("cascade_along_time", fused),
    ("cascade_by_frames", frames(into="(t b)", repeat="all")),
]
