"""Randomness with an address: what `indexed_noise` promises."""

import pytest
import torch

from minisora.core.noise import indexed_noise

SHAPE = (4, 2, 6, 6)


def test_draw_does_not_depend_on_batch_or_order():
    whole, u = indexed_noise(3, 5, range(6), SHAPE)
    for index in ([4, 1], [0], [5, 4, 3, 2, 1, 0]):
        part, v = indexed_noise(3, 5, torch.tensor(index), SHAPE)
        assert torch.equal(part, whole[index]) and torch.equal(v, u[index])


def test_draw_differs_in_each_argument_and_beyond_32_bits():
    a = indexed_noise(1, 2, [3], (8,))[0]
    for args in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (1 + 2**32, 2, 3), (1, 2, 3 + 2**32)):
        assert not torch.equal(a, indexed_noise(args[0], args[1], [args[2]], (8,))[0]), args


def test_draw_is_normal_and_uniform():
    x, u = indexed_noise(0, 0, range(2000), (16,))
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02 and abs((x**4).mean() - 3) < 0.15
    assert 0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.02
    assert abs(torch.corrcoef(u.T)[0, 1]) < 0.05 and abs(torch.corrcoef(x.T)[0, 1]) < 0.08


def test_draw_refuses_negative_numbers():
    with pytest.raises(ValueError, match="seed"):
        indexed_noise(-1, 0, [0], (2,))
