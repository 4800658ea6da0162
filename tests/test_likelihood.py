"""The density of data under the ODE's model, where it is known: Gaussians and a mixture, in the
plane and in eight dimensions."""

import math

import pytest
import torch
from helpers.processes import CENTERS, SPREAD, Net, mixture

from minisora.core.noise import indexed_noise
from minisora.diffusion import GaussianDiffusion
from minisora.interpolants import Interpolant
from minisora.processes.likelihood import (
    bits_per_dimension,
    hutchinson_divergence,
    hutchinson_probes,
)
from minisora.sampling import CallCounter, invert_ode, log_likelihood, sample


MEAN = 0.7
STD = 0.4


def gaussian(objective):
    "The perfect model of N(0.7, 0.4²) in each of any number of dimensions."

    def model(x, t, y=None):
        a, s, da, ds = (c.to(x).view(-1, *[1] * (x.ndim - 1)) for c in objective.coefficients(t))
        return MEAN * da + (STD**2 * a * da + s * ds) / (STD**2 * a**2 + s**2) * (x - MEAN * a)

    return model


def log_gaussian(x):
    return (
        (-((x - MEAN) ** 2) / (2 * STD**2) - math.log(STD * math.sqrt(2 * math.pi)))
        .flatten(1)
        .sum(1)
    )


def log_mixture(x):
    squares = ((x.flatten(1)[:, None] - CENTERS) ** 2).sum(-1)
    return (-squares / (2 * SPREAD**2)).logsumexp(1) - math.log(3 * 2 * math.pi * SPREAD**2)


def points(n=24, seed=0):
    return indexed_noise(seed, 0, range(n), (2, 1, 1, 1))[0].double()


@pytest.mark.parametrize("path", ("linear", "gvp"))
@pytest.mark.parametrize(
    "solver,steps,calls,tol",
    [
        ("euler", 400, 400, 0.2),
        ("heun", 60, 120, 0.02),
        ("midpoint", 60, 120, 0.02),
        ("rk4", 40, 160, 1e-3),
        ("dopri5", 50, None, 1e-3),
    ],
)
def test_a_gaussian_in_eight_dimensions(path, solver, steps, calls, tol):
    o = Interpolant(path)
    x = MEAN + 1.5 * STD * indexed_noise(0, 0, range(3), (2, 1, 2, 2))[0].double()
    got = log_likelihood(gaussian(o), o, x, steps=steps, solver=solver, exact=True)
    assert (got.log_density - log_gaussian(x)).abs().max() < tol and got.noise.shape == x.shape
    torch.testing.assert_close(got.bits, -log_gaussian(x) / (8 * math.log(2)), atol=tol / 5, rtol=0)
    assert got.calls == calls if calls else 40 < got.calls < 3 * 200


def test_bits_of_a_gaussian_are_its_entropy():
    "log2(std · sqrt(2 π e)) bits a number in the mean; a hair off for a finite crowd."
    o = Interpolant()
    z = indexed_noise(1, 0, range(2000), (2, 1, 1, 2))[0]
    got = log_likelihood(gaussian(o), o, MEAN + STD * z, steps=20, solver="rk4")
    assert abs(got.bits.mean() - math.log2(STD * math.sqrt(2 * math.pi * math.e))) < 0.02
    assert bits_per_dimension(torch.tensor([0.0]), 3, 2 / 255).item() == pytest.approx(
        math.log2(127.5)
    )
    assert (
        log_likelihood(gaussian(o), o, z[:2], width=2 / 255).bits
        - log_likelihood(gaussian(o), o, z[:2]).bits
    ).tolist() == pytest.approx([math.log2(127.5)] * 2, abs=1e-5)


@pytest.mark.parametrize(
    "objective",
    [
        Interpolant(),
        Interpolant("gvp", "noise"),
        Interpolant("vp"),
        Interpolant("linear", "score"),
        Interpolant("gvp", "data"),
        GaussianDiffusion(),
    ],
    ids=str,
)
def test_a_mixture(objective):
    x = points()
    got = log_likelihood(mixture(objective), objective, x, steps=100, solver="rk4", exact=True)
    tol = (
        0.02 if objective.time_range == (0.0, 1.0) else 0.25
    )  # elsewhere the data are seen through a thousandth of noise
    near = log_mixture(x) > -8
    assert near.sum() > 8 and (got.log_density - log_mixture(x))[near].abs().max() < tol


def test_the_density_sums_to_one():
    o = Interpolant()
    g = torch.linspace(-3, 3, 40, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(g, g, indexing="ij"), -1).view(-1, 2, 1, 1, 1)
    density = log_likelihood(mixture(o), o, x, steps=30, solver="rk4", exact=True).log_density.exp()
    assert abs(density.sum() * (g[1] - g[0]) ** 2 - 1) < 0.01


def test_the_estimate_is_right_in_the_mean_and_better_with_more_probes():
    o = Interpolant()
    x = points(4)
    n = 60
    spread = []
    true = log_likelihood(mixture(o), o, x, steps=20, exact=True).log_density
    for probes in (1, 8):
        runs = log_likelihood(
            mixture(o), o, x.repeat(n, 1, 1, 1, 1), steps=20, probes=probes
        ).log_density.view(n, 4)
        spread.append(runs.std(0).mean())
        assert ((runs.mean(0) - true).abs() < 5 * runs.std(0) / n**0.5 + 1e-6).all()
    assert 0.2 < spread[1] / spread[0] < 0.55, spread  # 1 / sqrt(8) is 0.35


def test_the_probe_is_drawn_once():
    """Drawn at each call, an adaptive solver integrates noise: it would never end. And the
    answer is a function of seed and index."""
    o = Interpolant()
    x = points(3)
    a = log_likelihood(mixture(o), o, x, solver="dopri5")
    assert a.calls < 3 * 250
    b = log_likelihood(mixture(o), o, x, steps=300, solver="rk4")
    torch.testing.assert_close(a.log_density, b.log_density, atol=1e-3, rtol=0)
    assert (
        log_likelihood(mixture(o), o, x, solver="rk4", seed=1).log_density - b.log_density
    ).abs().max() > 1e-3


@pytest.mark.parametrize("solver", ("heun", "dopri5"))
def test_no_sample_depends_on_its_batch(solver):
    o = Interpolant()
    x = points(4).float()
    whole = log_likelihood(mixture(o), o, x, solver=solver, steps=20)
    for rows in ([2], [3, 1]):
        part = log_likelihood(mixture(o), o, x[rows], solver=solver, steps=20, index=rows)
        torch.testing.assert_close(part.log_density, whole.log_density[rows], atol=1e-5, rtol=1e-5)


def test_probes_are_signs_that_sum_to_a_trace_and_not_the_sample_s_own_noise():
    e = hutchinson_probes(points(3), probes=4, seed=5)
    assert (
        e.shape == (4, 3, 2)
        and torch.equal(e.abs(), torch.full_like(e, 0.5))
        and e.sum(0).abs().max() < 4
    )
    assert torch.equal(e[:, [2]], hutchinson_probes(points(3)[2:], probes=4, seed=5, index=[2]))
    J = indexed_noise(3, 0, range(2), (6, 6))[0]
    x = indexed_noise(4, 0, range(2), (6,))[0]
    v, trace = hutchinson_divergence(
        lambda x: torch.einsum("bij,bj->bi", J, x), x, hutchinson_probes(x, exact=True)
    )
    torch.testing.assert_close(trace, J.diagonal(dim1=1, dim2=2).sum(1))
    torch.testing.assert_close(v, torch.einsum("bij,bj->bi", J, x))
    own = indexed_noise(0, 0, range(200), (20,))[0]
    assert abs((hutchinson_probes(own)[0] * own.sign()).mean()) < 0.1
    with pytest.raises(ValueError, match="probes must be .*0"):
        hutchinson_probes(x, probes=0)


def test_a_network_with_conditions_and_its_calls():
    net = Net().eval()
    y = torch.tensor([0, 1, 2])
    x = sample(net, Interpolant(), y, steps=5, guidance=1.0)
    got = log_likelihood(net, Interpolant(), x, y, steps=10, solver="heun")
    assert got.calls == 20 and got.log_density.shape == (3,) and not got.log_density.requires_grad
    assert net.scale.grad is None and all(
        not p.requires_grad or p.grad is None for p in net.parameters()
    )
    torch.testing.assert_close(
        got.noise, invert_ode(net, Interpolant(), x, y, steps=10), atol=1e-5, rtol=1e-5
    )
    other = log_likelihood(net, Interpolant(), x, y.flip(0), steps=10)
    assert (other.log_density - got.log_density).abs()[[0, 2]].min() > 1e-3
    with pytest.raises(ValueError, match="solver"):
        log_likelihood(net, Interpolant(), x, y, solver="sde")


def test_counted_passes_everything_on():
    net = Net()
    model = CallCounter(net)
    assert (model.null_id, model.latent_shape, model.training) == (3, net.latent_shape, True)
    model.eval()
    assert not net.training and (model.calls, model.rows) == (0, 0)
    with pytest.raises(AttributeError):
        model.nothing  # noqa: B018
