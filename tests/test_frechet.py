"""Distances of features: stable, honest about few clips; precision, recall, density, coverage."""

import math

import pytest
import torch
from helpers.metrics import gauss, generator

from minisora.evaluation.frechet import (
    _ball_counts,
    _knn_radii,
    _mean_and_root,
    density_coverage,
    frechet_distance,
    frechet_infinity,
    frechet_interval,
    precision_recall,
)
from minisora.metrics import gaussian_frechet, mean_and_covariance


# ---------------------------------------------------------------- Fréchet


def test_root_is_a_root_of_the_covariance():
    for n in (9, 200):  # fewer and more than dimensions
        f = gauss(n, 20) * torch.logspace(1, -1, 20)
        mean, root = _mean_and_root(f)
        assert torch.allclose(root.T @ root, mean_and_covariance(f)[1], atol=1e-10)
        assert root.shape == (min(n, 20), 20) and torch.allclose(mean, f.mean(0))


def test_distance_keeps_what_is_small_beside_what_is_large():
    f = (gauss(300, 40) - gauss(300, 40).mean(0)) * torch.logspace(4, -4, 40).double()
    assert frechet_distance(f, f) < 1e-15 * f.var(0).sum() * 100
    g = f.clone()
    g[:, -1] *= 1e4  # deviation 1e-4 -> 1: distance 1, beside variances of 1e8
    assert frechet_distance(f, g) == pytest.approx(g[:, -1].std().item() ** 2, rel=2e-3)


@pytest.mark.parametrize("n, m, d", [(200, 150, 12), (10, 30, 40), (60, 10, 40)])
def test_distance_equals_that_of_the_moments(n, m, d):
    a = gauss(n, d)
    b = gauss(m, d, 1, 2.0, 0.3)
    want = gaussian_frechet(*mean_and_covariance(a), *mean_and_covariance(b))
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-6)


def test_frechet_against_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    a = (
        torch.randn(200, 12, generator=generator(), dtype=torch.float64)
        @ torch.randn(12, 12, generator=generator(1)).double()
    )
    b = torch.randn(150, 12, generator=generator(2), dtype=torch.float64) * 2 + 1
    want = _compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov()).item()
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_frechet_with_fewer_samples_than_dimensions():
    a = torch.randn(10, 40, generator=generator())
    b = torch.randn(10, 40, generator=generator(1))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert 0 < frechet_distance(a, b) < 100


def test_frechet_of_few_samples_is_biased_upwards():
    d = [
        frechet_distance(
            torch.randn(n, 8, generator=generator(n)), torch.randn(n, 8, generator=generator(n + 1))
        )
        for n in (12, 100, 2000)
    ]
    assert d[0] > 3 * d[1] > 9 * d[2] > 0


def test_frechet_interval():
    a = torch.randn(300, 4, generator=generator())
    b = torch.randn(300, 4, generator=generator(1)) + 1
    low, high = frechet_interval(a, b)
    assert low < frechet_distance(a, b) < high and 0 < high - low < 3
    assert frechet_interval(a, b) == (low, high)
    few = frechet_interval(a[:30], b[:30])
    assert few[1] - few[0] > 1.5 * (high - low)


@pytest.mark.parametrize(
    "a, b, message",
    [
        (torch.zeros(5, 3), torch.zeros(5, 4), "same dimensions, not 3 and 4"),
        (torch.zeros(1, 3), torch.zeros(5, 3), "N ≥ 2"),
        (torch.full((5, 3), math.nan), torch.zeros(5, 3), "NaN"),
    ],
)
def test_frechet_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def test_extrapolation_takes_the_bias_off():
    pairs = [(gauss(80, 8, 2 * s + 100), gauss(80, 8, 2 * s + 101, shift=0.5)) for s in range(60)]
    plain, far = (sum(f(a, b) for a, b in pairs) / 60 for f in (frechet_distance, frechet_infinity))
    assert plain > 2.6 and abs(far - 2) < 0.4 * (plain - 2)  # the truth is 2
    a, b = pairs[0]
    assert frechet_infinity(a, b) == frechet_infinity(a, b) != frechet_infinity(a, b, seed=1)
    with pytest.raises(ValueError, match="at least 16 clips, not 10"):
        frechet_infinity(a[:10], b)
    low, high = frechet_interval(a, b, 20, distance=frechet_infinity)
    assert low < frechet_infinity(a, b) < high


# --------------------------------------------------- precision, recall, density, coverage


LINE = torch.tensor([[0.0], [1], [2], [10], [14]])


MADE = torch.tensor([[0.5], [1.2], [5], [13], [7]])


def test_balls_counted_by_hand():
    assert _knn_radii(LINE, 1, batch=2).tolist() == [1, 1, 1, 4, 4]
    assert _knn_radii(LINE, 2).tolist() == [2, 1, 2, 8, 12]
    inside, held = _ball_counts(MADE, LINE, _knn_radii(LINE, 1), batch=2)
    assert inside.tolist() == [2, 2, 0, 2, 1] and held.tolist() == [1, 2, 1, 2, 1]


def test_precision_recall_by_hand():
    got = precision_recall(LINE, MADE, k=1)
    # generated radii: .7, .7, 2, 6, 2 -> balls [-.2, 1.2], [.5, 1.9], [3, 7], [7, 19], [5, 9];
    # 2 is outside
    assert got == pytest.approx(dict(precision=0.8, recall=0.8))
    far = precision_recall(LINE, MADE + 100, k=1)
    assert far == dict(precision=0, recall=0)


def test_density_coverage_by_hand():
    assert density_coverage(LINE, MADE, k=1) == pytest.approx(dict(density=7 / 5, coverage=1.0))
    assert density_coverage(LINE, MADE[:2], k=1) == pytest.approx(dict(density=2.0, coverage=3 / 5))


def test_collapse_and_noise_are_told_apart():
    real = gauss(200, 4)
    same = gauss(200, 4, 1)
    collapsed = 0.1 * same
    noisy = same * 4
    good, narrow, wide = (
        precision_recall(real, f) | density_coverage(real, f) for f in (same, collapsed, noisy)
    )
    assert good["precision"] > 0.7 and good["recall"] > 0.7 and good["coverage"] > 0.8
    assert narrow["precision"] > 0.95 and narrow["recall"] < 0.1 and narrow["coverage"] < 0.5
    assert wide["precision"] < 0.4 < 0.8 < wide["recall"]
    assert abs(good["density"] - 1) < 0.25


def test_an_outlier_cheats_precision_but_less_so_density():
    real = torch.cat([gauss(100, 2), torch.tensor([[30.0, 0], [30.0, 40]]).double()])
    bad = (
        gauss(100, 2, 1, 0.5, 0.0) + torch.tensor([15.0, 15]).double()
    )  # nowhere near the real ones
    assert precision_recall(real, bad, k=3)["precision"] == 1
    assert density_coverage(real, bad, k=3)["density"] < 0.8
    assert density_coverage(real, bad, k=3)["coverage"] < 0.05


def test_neighbours_refuse():
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k must be a whole number from 1 to 4, not {k}"):
            _knn_radii(LINE, k)
    with pytest.raises(ValueError, match="same dimensions, not 1 and 2"):
        precision_recall(LINE, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="NaN"):
        density_coverage(LINE, LINE * math.nan)


def test_batches_change_nothing():
    a = gauss(70, 5)
    b = gauss(90, 5, 1, shift=0.4)
    assert precision_recall(a, b, batch=7) == precision_recall(a, b)
    assert density_coverage(a, b, batch=7) == density_coverage(a, b)
