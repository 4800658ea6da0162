"""The toy in the plane: it learns, repeats itself, and leaves the global generators alone."""

import numpy as np
import torch

from minisora.core.noise import indexed_noise
from minisora.diffusion import GaussianDiffusion
from minisora.interpolants import Interpolant
from minisora.processes.toy import ToyNet, fit_toy, spiral_points
from minisora.sampling import sample


def test_toy_learns_and_repeats():
    points, labels = spiral_points(500)
    net, losses = fit_toy(GaussianDiffusion(), points, labels, steps=60, batch=128)
    assert losses[:5] == fit_toy(GaussianDiffusion(), points, labels, steps=60, batch=128)[1][:5]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:5]) * 4
    assert (
        isinstance(net, ToyNet)
        and net.null_id == 3
        and net(points[:2], torch.tensor([0.1, 0.9])).shape == (2, 2, 1, 1, 1)
    )


def test_noise_and_training_leave_the_global_generators_alone():
    before = torch.get_rng_state()
    state = np.random.get_state()[1].copy()
    indexed_noise(0, 0, range(4), (4, 2, 6, 6))
    points, labels = spiral_points(64)
    fit_toy(GaussianDiffusion(), points, labels, steps=2, batch=8)
    assert torch.equal(before, torch.get_rng_state())
    assert (state == np.random.get_state()[1]).all()


def test_the_toy_finds_its_arms():
    points, labels = spiral_points(1500)
    net, _ = fit_toy(Interpolant(), points, labels, steps=400)
    x = sample(net, Interpolant(), labels[:150], steps=30, guidance=1.5)
    own = (
        (torch.cdist(x.flatten(1), points.flatten(1)).argmin(1) % 3 == labels[:150]).float().mean()
    )
    assert own > 0.9, own
