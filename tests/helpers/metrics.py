"""Clips whose score is known, and a stand-in for a model."""

import torch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def square_at(path, side=6, size=(48, 80), colour=(255, 255, 255), ground=(0, 0, 0)):
    """A clip (1, 3, T, H, W) of a square whose corner goes along integer (x, y)s; None: a frame
    without it."""
    x = torch.tensor(ground, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, len(path), *size).clone()
    for t, at in enumerate(path):
        if at is not None:
            x[:, t, at[1] : at[1] + side, at[0] : at[0] + side] = torch.tensor(
                colour, dtype=torch.uint8
            ).view(3, 1, 1)
    return x[None]


def frame_with(left, top, side, size=(32, 32), ground=0.0, colour=1.0):
    "A frame (1, 3, H, W) in [0, 1] with a square."
    f = torch.full((1, 3, *size), ground)
    f[..., top : top + side, left : left + side] = colour
    return f


# top left corners
STEADY = [(10 + 3 * t, 5 + 2 * t) for t in range(7)]
FALLING = [(20, 1 + t * t) for t in range(6)]


def gauss(n, d, seed=0, scale=1.0, shift=0.0):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64) * scale + shift


def clip(i):
    return torch.randint(0, 255, (3, 4, 8, 8), generator=torch.Generator().manual_seed(i)).byte()


def make(index):
    return torch.stack([clip(i) for i in index])


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


ABOUT = dict(model="ab12", steps=40, guidance=2.0)
