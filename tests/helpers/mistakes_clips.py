"Plausible mistakes in the exercises of lesson 00: the ring and the reader."

import numpy as np
import torch
from einops import rearrange


def ring(
    x,
    y,
    radius,
    width,
    color,
    size,
    center=0.5,
    distance=torch.hypot,
    band=torch.abs,
    half=0.5,
    edge=lambda d: (0.5 - d).clamp(0, 1),
    to_bytes=torch.round,
):
    "A moving ring; each option is a place to go wrong."
    rows = torch.arange(size[0]).view(-1, 1) + center
    columns = torch.arange(size[1]) + center
    x, y, radius = (a.view(-1, 1, 1) for a in (x, y, radius))
    d = band(distance(columns - x, rows - y) - radius) - half * width
    return to_bytes(color.view(3, 1, 1, 1) * edge(d)).to(torch.uint8)


def wrong(**options):
    return lambda *case: ring(*case, **options)


def looped(x, y, radius, width, color, size):
    "Pixel by pixel, as the task says it."
    out = np.zeros((3, len(x), *size), np.uint8)
    for t in range(len(x)):
        for i in range(size[0]):
            for j in range(size[1]):
                away = ((j + 0.5 - x[t]) ** 2 + (i + 0.5 - y[t]) ** 2) ** 0.5
                outer = away - radius[t] - width / 2
                inner = radius[t] - width / 2 - away
                cover = min(max(0.5 - float(max(outer, inner)), 0.0), 1.0)
                for c in range(3):
                    out[c, t, i, j] = int(cover * float(color[c]) + 0.5)
    return out


def middle(n, frames):
    return ((torch.arange(frames) + 0.5) * n / frames).long()


def to_axes(film):
    return film.permute(3, 0, 1, 2)


def read(at=middle, axes=to_axes, scale=lambda v: v / 127.5 - 1):
    "A reader; each option is a place to go wrong."
    return lambda film, frames: scale(axes(film[at(len(film), frames)]).float())


def reshaped(film):
    return film.reshape(3, *film.shape[:3])


def first(n, frames):
    return slice(frames)


def parts(n, frames):
    return (torch.arange(frames) + 0.5) * n / frames


def in_parts(film, frames):
    "The middle of each part by whole numbers."
    rows = [film[(2 * k + 1) * len(film) // (2 * frames)] for k in range(frames)]
    return rearrange(torch.stack(rows), "t h w c -> c t h w") * (2 / 255) - 1


MISTAKES = {
    "clips_ring": [
        (wrong(edge=lambda d: (d < 0).float()), "no pixel is covered in part"),
        (wrong(center=0), "shifted by half a pixel: where is the center of pixel 0"),
        (wrong(center=1), "away from the corner"),
        (wrong(band=lambda d: d), "that is a disk"),
        (wrong(half=1), "twice too wide"),
        (wrong(half=0.25), "twice too narrow"),
        (wrong(half=0), "must be"),
        (wrong(edge=lambda d: (0.5 + d).clamp(0, 1)), "inside and outside are exchanged"),
        (wrong(edge=lambda d: (-d).clamp(0, 1)), "begins only at d = 0"),
        (wrong(edge=lambda d: (1 - d).clamp(0, 1)), "begins already at d = 1"),
        (wrong(edge=lambda d: 0.5 - d), "must be"),
        (wrong(edge=lambda d: (0.5 - d).clamp(0)), "must be"),
        (wrong(edge=lambda d: torch.sigmoid(-4 * d)), "must be"),
        (wrong(to_bytes=torch.floor), "rounded down"),
        (wrong(distance=lambda a, b: a * a + b * b), "lacks its root"),
        (wrong(distance=lambda a, b: a.abs() + b.abs()), "not a sum"),
        (lambda x, y, r, w, c, s: ring(y, x, r, w, c, s), "exchanged"),
        (lambda x, y, r, w, c, s: ring(x, s[0] - y, r, w, c, s), "upside down"),
        (lambda x, y, r, w, c, s: ring(x, y, r - w / 2, w, c, s), "not to its outer edge"),
        (lambda x, y, r, w, c, s: ring(x, y, r + w / 2, w, c, s), "not to its inner edge"),
        (lambda x, y, r, w, c, s: ring(x, y, r / 2, w, c, s), "twice too small"),
        (lambda x, y, r, w, c, s: ring(x[:1].expand_as(x), y[:1].expand_as(y), r, w, c, s), "stay"),
        (lambda x, y, r, w, c, s: ring(x, y, r, w, c.flip(0), s), "red and blue"),
        (lambda x, y, r, w, c, s: ring(x, y, r, w, 0 * c + 255, s), "the ring is white"),
        (lambda *case: ring(*case).float(), "whole numbers"),
        (lambda *case: ring(*case).int(), "must hold bytes"),
        (lambda *case: ring(*case).transpose(0, 1), "must have the shape"),
        (lambda *case: ring(*case[:5], case[5][::-1]), "must have the shape"),
        (lambda *case: ring(*case).flip(1), "plays backwards"),
        (lambda x, y, r, w, c, s: ring(x, y, r, w, c.byte(), s), "must be"),
        (lambda x, y, r, w, c, s: ring(s[1] - x, y, r, w, c, s), "mirrored"),
        (wrong(to_bytes=torch.ceil), "rounded up"),
        (lambda *case: ring(*case).clamp(max=254), "must be"),
        (lambda x, y, r, w, c, s: ring(x.roll(1), y.roll(1), r.roll(1), w, c, s), "must be"),
    ],
    "clips_reading": [
        (read(first, reshaped, lambda v: v / 255), "torn apart"),
        (read(axes=reshaped), "in the order in which they lie in memory"),
        (read(first), "only the first 4 of 11"),
        (read(scale=lambda v: v / 255), "yours run from 0 to 1"),
        (read(first, scale=lambda v: v / 255), "looked at; and black must be -1"),
        (read(lambda n, k: torch.linspace(0, n - 1, k).round().long()), "always taken"),
        (read(lambda n, k: torch.linspace(0, n - 1, k).long()), "rounded down"),
        (read(lambda n, k: torch.arange(k) * n // k), "when it begins"),
        (read(lambda n, k: parts(n, k).round().long()), "shows the next one"),
        (read(lambda n, k: parts(n, k).ceil().long().clamp(max=n - 1)), "comes after"),
        (read(lambda n, k: slice(None, None, max(1, n // k))), "must have the shape"),
        (read(lambda n, k: torch.arange(k) * max(n // k, 1)), "a whole number of them"),
        (read(lambda n, k: middle(n, k).flip(0)), "plays backwards"),
        (read(axes=lambda f: f.permute(3, 0, 2, 1)), "must have the shape"),
        (read(axes=lambda f: f.permute(3, 0, 1, 2).flip(0)), "red and blue"),
        (read(axes=lambda f: f.permute(3, 0, 1, 2).flip(2)), "upside down"),
        (read(axes=lambda f: f), "must have the shape"),
        (read(scale=lambda v: v / 128 - 1), "0.992"),
        (read(scale=lambda v: v), "still 0 to 255"),
        (read(scale=lambda v: v / 255 - 0.5), "-0.5"),
        (read(scale=lambda v: (v - v.mean()) / v.std()), "yours run from -1.72"),
        (lambda f, k: f[middle(len(f), k)].permute(3, 0, 1, 2) * 2 / 255 - 1, "end at 255"),
        (lambda f, k: f[middle(len(f), k)].permute(3, 0, 1, 2), "must hold floats"),
        (read(lambda n, k: ((torch.arange(k) + 1) * n / (k + 1)).long()), "is frame 2 of the film"),
        (read(axes=lambda f: f.transpose(0, 3).reshape(3, *f.shape[:3])), "no frame of the film"),
        (read(axes=lambda f: f.float().mean(-1).expand(3, -1, -1, -1)), "yours run from"),
        (read(scale=lambda v: 2 * (v - v.min()) / (v.max() - v.min()) - 1), "bytes 40 and 167"),
        (read(lambda n, k: torch.zeros(k).long()), "frame 0 of your clip is frame 0"),
    ],
}
RIGHT = [
    ("clips_ring", looped),
    ("clips_ring", wrong(to_bytes=lambda v: (v + 0.5).floor())),
    ("clips_reading", in_parts),
    ("clips_reading", read(lambda n, k: torch.linspace(0, n, 2 * k + 1)[1::2].long())),
]
WHOLE = {"clips_ring"}
