"""Crops lie where there is something to see."""

import torch
from helpers.autoencoder import generator

from minisora.latents.crops import motion_crop, random_crop


def test_crops_lie_where_there_is_light():
    x = torch.zeros(3, 4, 64, 64, dtype=torch.uint8)
    x[:, :, 48:56, 8:16] = 255
    seen = [random_crop(x, 2, 16, generator(s)) for s in range(20)]
    assert all(w.shape == (3, 2, 16, 16) for w in seen)
    assert sum(w.max() > 0 for w in seen) > 15  # by chance it would be two
    black = [random_crop(x[..., :40, 20:] * 0, 4, 64, generator(s)) for s in range(2)]
    assert all(w.shape == (3, 4, 40, 44) for w in black)  # no light, and smaller than the crop


def test_crops_lie_where_something_moves():
    x = torch.full((3, 6, 64, 64), 200, dtype=torch.uint8)  # bright, at rest
    x[:, ::2, 40:48, 8:16] = 0  # and here it flickers
    hit = [(motion_crop(x, 4, 16, generator(s)) == 0).any().item() for s in range(40)]
    assert sum(hit) > 12  # by chance it would be four
    rest = motion_crop(x[..., :32, :], 4, 16, generator())
    assert rest.shape == (3, 4, 16, 16)
