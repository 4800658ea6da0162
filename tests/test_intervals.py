"""Intervals, against what textbooks say."""

import pytest
import torch
from helpers.metrics import generator

from minisora.evaluation.intervals import binomial_interval, bootstrap_interval


def test_bootstrap_interval():
    values = torch.randn(400, generator=generator()) + 3
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std().item() / 20  # the textbook's interval of a mean
    middle = values.mean().item()
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=0.15 * half)
    low, high = bootstrap_interval([0.0] * 9 + [90.0], "median")
    assert low == 0 and high < 90 < 10 * bootstrap_interval([0.0] * 9 + [90.0])[1]
    with pytest.raises(ValueError, match="not 'mode'"):
        bootstrap_interval(values, "mode")
    with pytest.raises(ValueError, match="N ≥ 1"):
        bootstrap_interval([])


def test_wilson_interval():
    low, high = binomial_interval(90, 100)
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-3)  # the textbook's values
    assert binomial_interval(10, 10)[1] == 1 and 0.65 < binomial_interval(10, 10)[0] < 0.75
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="is no share"):
            binomial_interval(*bad)
