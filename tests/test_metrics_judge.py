"""The judge's eyes: where it looks, what it sees there, how well it reads what moves."""

import pytest
import torch

from minisora import metrics as M
from minisora.clips import SceneClips, stack, to_float


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def frame_with(left, top, side, size=(32, 32), ground=0.0, colour=1.0):
    f = torch.full((1, 3, *size), ground)
    f[..., top : top + side, left : left + side] = colour
    return f


@pytest.mark.parametrize("ground, colour", [(0.0, 1.0), (1.0, 0.0), (0.3, 0.8)])
def test_boxes_lie_around_the_object(ground, colour):
    x, y, half = M.object_boxes(frame_with(4, 18, 8, ground=ground, colour=colour))[0].tolist()
    assert (x, y) == pytest.approx(((4 + 4) / 16 - 1, (18 + 4) / 16 - 1), abs=1e-3)  # its centre
    assert 8 / 32 * 1.05 < half < 8 / 32 * 2  # a little more than its half side
    wide = M.object_boxes(frame_with(30, 10, 8, (32, 64), ground, colour))[0]
    assert wide[0].item() == pytest.approx((30 + 4) / 32 - 1, abs=1e-3)


def test_boxes_grow_with_the_object_and_bear_noise():
    small, large = (M.object_boxes(frame_with(10, 10, s))[0, 2] for s in (5, 12))
    assert large > 1.8 * small
    f = frame_with(4, 18, 8)
    noisy = f + 0.03 * torch.randn(f.shape, generator=generator())
    assert (M.object_boxes(noisy) - M.object_boxes(f)).abs().max() < 0.02


def test_an_empty_frame_is_looked_at_whole():
    assert M.object_boxes(torch.zeros(2, 3, 32, 32)).tolist() == [[0, 0, 1]] * 2
    assert torch.isfinite(M.object_boxes(torch.rand(4, 3, 32, 32, generator=generator()))).all()


def test_glances_show_what_is_in_the_box():
    f = torch.rand(2, 3, 28, 28, generator=generator())
    whole = torch.tensor([[0.0, 0, 1]] * 2)
    assert torch.allclose(M.glances(f, whole), f, atol=1e-4)
    marked = frame_with(20, 4, 8, (64, 64))
    seen = M.glances(marked, torch.tensor([[(24 / 32) - 1, (8 / 32) - 1, 4 / 32]]))
    assert seen.min() > 0.4 and seen[..., 2:-2, 2:-2].min() > 0.999  # the square fills the glance


def test_training_glances_shake_a_little_and_repeat():
    f, box = frame_with(20, 24, 14, (64, 64)), M.object_boxes(frame_with(20, 24, 14, (64, 64)))
    f, box = f.expand(40, -1, -1, -1), box.expand(40, -1)
    a, b = (M.glances(f, box, generator(1)) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a[0], a[1])
    shown = a.mean((1, 2, 3)) / M.glances(f, box).mean((1, 2, 3))
    assert 0.4 < shown.min() < shown.max() < 1.8 and shown.std() > 0.1


def test_what_is_read_does_not_depend_on_where_it_is():
    "The same object elsewhere gives the same `what` features, so one place is enough to learn it."
    judge = M.Judge({"object": ["a", "b"]}, width=4).eval()
    x = torch.stack([frame_with(20, 24, s, (64, 64), -1.0)[0] for s in (8, 11, 14)], 1)[None]
    with torch.no_grad():
        here, there = judge.features(x), judge.features(x.roll((4, -6), (-2, -1)))
    assert torch.allclose(here[:, :32], there[:, :32], atol=1e-3)
    assert not torch.allclose(
        here[:, 32:], there[:, 32:], atol=1e-3
    )  # where and how it moves is seen


def test_training_draws_looks_from_the_generator_only():
    judge = M.Judge({"object": ["a", "b"]}, width=4).eval()
    x = to_float(stack(SceneClips(4, "all", 5, ("grow",)))[0])
    before = torch.get_rng_state()
    a, b = (judge.features(x, generator(2)) for _ in range(2))
    assert torch.equal(judge.features(x), judge.features(x)), "reading a clip is not random"
    assert torch.equal(a, b) and torch.equal(before, torch.get_rng_state())
    assert not torch.allclose(a, judge.features(x), atol=1e-3)
