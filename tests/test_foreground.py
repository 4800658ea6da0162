"""Where the object is: its track through a clip, and the box around it."""

import pytest
import torch
from helpers.metrics import frame_with, STEADY, generator, square_at

from minisora.evaluation.foreground import as_pixels, foreground_track, object_boxes


def test_centroid_and_mass_of_a_square():
    at, mass, _ = foreground_track(square_at(STEADY))
    assert torch.allclose(at[0], torch.tensor(STEADY).float() + 2.5, atol=1e-3)
    assert torch.allclose(mass, torch.full((1, 7), 36 * 0.9), rtol=1e-4)


@pytest.mark.parametrize(
    "ground, colour", [((255, 255, 255), (0, 0, 0)), ((30, 90, 200), (200, 30, 40))]
)
def test_background_may_have_any_colour(ground, colour):
    at, _, _ = foreground_track(square_at(STEADY, colour=colour, ground=ground))
    assert torch.allclose(at[0], torch.tensor(STEADY).float() + 2.5, atol=1e-3)


def test_codec_noise_is_no_foreground():
    clip = as_pixels(square_at(STEADY))
    noisy = clip + 0.04 * torch.randn(clip.shape, generator=generator())
    off = (foreground_track(noisy).centroid - foreground_track(clip).centroid).norm(dim=-1)
    assert off.max() < 0.2
    noise = 0.04 * torch.randn(clip.shape, generator=generator())
    assert foreground_track(torch.full_like(clip, -1) + noise).empty.all()


@pytest.mark.parametrize("ground, colour", [(0.0, 1.0), (1.0, 0.0), (0.3, 0.8)])
def test_boxes_lie_around_the_object(ground, colour):
    x, y, half = object_boxes(frame_with(4, 18, 8, ground=ground, colour=colour))[0].tolist()
    assert (x, y) == pytest.approx(((4 + 4) / 16 - 1, (18 + 4) / 16 - 1), abs=1e-3)  # its centre
    assert 8 / 32 * 1.05 < half < 8 / 32 * 2  # a little more than its half side
    wide = object_boxes(frame_with(30, 10, 8, (32, 64), ground, colour))[0]
    assert wide[0].item() == pytest.approx((30 + 4) / 32 - 1, abs=1e-3)


def test_boxes_grow_with_the_object_and_bear_noise():
    small, large = (object_boxes(frame_with(10, 10, s))[0, 2] for s in (5, 12))
    assert large > 1.8 * small
    f = frame_with(4, 18, 8)
    noisy = f + 0.03 * torch.randn(f.shape, generator=generator())
    assert (object_boxes(noisy) - object_boxes(f)).abs().max() < 0.02


def test_an_empty_frame_is_looked_at_whole():
    assert object_boxes(torch.zeros(2, 3, 32, 32)).tolist() == [[0, 0, 1]] * 2
    assert torch.isfinite(object_boxes(torch.rand(4, 3, 32, 32, generator=generator()))).all()
