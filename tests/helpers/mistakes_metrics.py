"""Plausible mistakes in the exercises of lesson 09, and right answers of another kind."""

import numpy as np
import torch


def moments(x, divisor=None):
    "Mean and covariance of features (N, D), divided by N − 1 or by `divisor(N)`."
    x = x.double()
    centered = x - x.mean(0)
    return x.mean(0), centered.T @ centered / (divisor(len(x)) if divisor else len(x) - 1)


def roots(cov_a, cov_b):
    "tr (Σa Σb)^½."
    return torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()


def distance(
    shift=lambda a, b: (a - b).square().sum(), cross=roots, factor=2, size=None, divisor=None
):
    "The Fréchet distance, with one part of it exchanged."

    def frechet(a, b):
        mean_a, cov_a = moments(a, divisor)
        mean_b, cov_b = moments(b, divisor)
        traces = cov_a.trace() + cov_b.trace() if size is None else size(cov_a, cov_b)
        return shift(mean_a, mean_b) + traces - factor * cross(cov_a, cov_b)

    return frechet


def symmetric(a, b):
    "With the root of one covariance, in numpy and float64."
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * cross


def by_singular_values(a, b):
    "Without a covariance: singular values of the centered features' product."
    left = (a - a.mean(0)) / (len(a) - 1) ** 0.5
    right = (b - b.mean(0)) / (len(b) - 1) ** 0.5
    nuclear = torch.linalg.svdvals(left @ right.T).sum()
    squares = left.square().sum() + right.square().sum()
    return (a.mean(0) - b.mean(0)).square().sum() + squares - 2 * nuclear


def in_float32(a, b):
    "All of it in float32."
    cov_a, cov_b = a.T.cov().reshape(a.shape[1], -1), b.T.cov().reshape(a.shape[1], -1)
    cross = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return (shift + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def deviations(a, b):
    "As for independent features."
    return (a.mean(0) - b.mean(0)).square().sum() + (a.std(0) - b.std(0)).square().sum()


def unclamped(cov_a, cov_b):
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.sqrt() @ vectors.T
    return torch.linalg.eigvalsh(root @ cov_b @ root).sqrt().sum()


def entrywise(cov_a, cov_b):
    return (cov_a @ cov_b).diagonal().clamp(min=0).sqrt().sum()


MISTAKES = {
    "metrics_frechet": [
        (lambda a, b: distance()(a, b).clamp(min=0).sqrt(), "its square is asked for"),
        (distance(shift=lambda a, b: (a - b).norm()), "the means count squared"),
        (distance(shift=lambda a, b: 0), "the means are missing"),
        (lambda a, b: (a.mean(0) - b.mean(0)).square().sum(), "the covariances are missing"),
        (distance(factor=0), "cross term −2"),
        (distance(factor=1), "the cross term counts twice"),
        (distance(factor=-2), "the sign of the cross term"),
        (distance(cross=lambda a, b: (a @ b).trace()), "need a root"),
        (distance(cross=lambda a, b: (a @ b).diagonal().sqrt().sum()), "entries below 0"),
        (distance(cross=entrywise), "of each entry"),
        (deviations, "features are correlated"),
        (distance(cross=lambda a, b: (a @ b).trace().sqrt()), "root of the sum"),
        (distance(divisor=lambda n: n), "not by N"),
        (lambda a, b: distance()(a, b) / a.shape[1], "not their sum"),
        (distance(cross=unclamped), "LinAlgError"),
        (distance(cross=lambda a, b: torch.linalg.eigvals(a @ b).real.sqrt().sum()), "below 0"),
        (distance(shift=lambda a, b: (a**2 - b**2).sum().abs()), "each mean squared"),
        (distance(shift=lambda a, b: (a - b).square().mean()), "d² is"),
        (lambda a, b: distance()(a, a), "d² is"),
        (lambda a, b: (a - b).square().sum(1).mean(), "raised RuntimeError"),
        (lambda a, b: torch.cdist(a, b).square().mean(), "d² is"),
        (distance(size=lambda a, b: a.sum() + b.sum()), "d² is"),
    ],
    "metrics_coverage": [
        (lambda a, r: (a <= r[:, None]).any(0).float().mean(), "precision"),
        (lambda a, r: (a <= r[:, None]).float().mean(), "counts once, however many"),
        (lambda a, r: (a <= r[:, None]).float().sum(1).mean(), "density"),
        (lambda a, r: (a <= r[:, None]).any(1).float().sum(), "how many balls"),
        (lambda a, r: (a <= r[:, None]).all(1).float().mean(), "one* clip"),
        (lambda a, r: (a > r[:, None]).all(1).float().mean(), "share of empty balls"),
        (lambda a, r: (a < r[:, None]).any(1).float().mean(), "on the rim"),
        (lambda a, r: (a <= r).any(1).float().mean(), "raised RuntimeError"),
        (lambda a, r: (a <= 1).any(1).float().mean(), "hold a clip"),
        (lambda a, r: (a.min() <= r).float().mean(), "hold a clip"),
        (lambda a, r: (a[:, 0] <= r).float().mean(), "hold a clip"),
    ],
}

RIGHT = [
    ("metrics_frechet", distance()),
    ("metrics_frechet", symmetric),
    ("metrics_frechet", by_singular_values),
    ("metrics_frechet", in_float32),
    ("metrics_coverage", lambda a, r: (a.amin(1) <= r).double().mean()),
]
