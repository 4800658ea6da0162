"""The bound against torch.distributions, term by term and whole."""

import pytest
import torch
from helpers.processes import SHAPE, close, linear_model, normal
from torch.distributions import Normal, kl_divergence

from minisora.core.noise import indexed_noise
from minisora.diffusion import GaussianDiffusion
from minisora.processes.bounds import (
    discretized_gaussian_nll,
    p_mean_variance,
    predict_data_and_noise,
    q_posterior,
    vlb_bits_per_dim,
    vlb_term,
)
from minisora.processes.schedules import beta_schedule


def test_bound_is_the_kl_of_torch():
    o = GaussianDiffusion(variance="learned-range")
    model = linear_model(out=8)
    data = normal(1)
    noise = normal(2)
    k = torch.tensor([3, 200, 900])
    t = o.noise_schedule.time(k)
    x = o.add_noise(data, noise, t)
    mean, logvar, _ = p_mean_variance(o, o.split_variance(model, x, t), x, k, k - 1)
    true, var, _ = q_posterior(
        data, x, o.noise_schedule.alphas_cumprod[k], o.noise_schedule.alphas_cumprod[k - 1]
    )
    want = kl_divergence(
        Normal(true, var.sqrt().view(-1, 1, 1, 1, 1)),
        Normal(mean.double(), (0.5 * logvar).exp().double()),
    )
    close(
        o.loss(model, data, None, noise, t)["vlb"].double(),
        want.flatten(1).mean(1) / torch.log(torch.tensor(2.0)),
        1e-4,
    )


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large", "learned-range"])
def test_the_first_term_is_the_probability_of_the_bin(variance):
    """At k = 0: minus the log of a normal's mass in the pixel's bin; both fixed variances are
    that of step 1."""
    o = GaussianDiffusion(variance=variance)
    data = normal(1).clamp(-1, 1)
    k = torch.zeros(3, dtype=torch.long)
    x = o.add_noise(data, normal(2), o.noise_schedule.time(k))
    out = (
        normal(2) + 0.5 * normal(4),
        normal(3).clamp(-1, 1) if variance == "learned-range" else None,
    )
    mean = predict_data_and_noise(o, out[0], x, k)[0].double()
    small = (
        o.noise_schedule.betas[1]
        * (1 - o.noise_schedule.alphas_cumprod[0])
        / (1 - o.noise_schedule.alphas_cumprod[1])
    )
    large = o.noise_schedule.betas[0]
    share = (out[1].double() + 1) / 2 if out[1] is not None else 0.0
    p = Normal(mean, (0.5 * (share * large.log() + (1 - share) * small.log())).exp() + 0 * mean)
    d = data.double()
    mass = torch.where(d > 0.999, 1.0, p.cdf(d + 1 / 255)) - torch.where(
        d < -0.999, 0.0, p.cdf(d - 1 / 255)
    )
    want = -mass.clamp(min=1e-12).log().flatten(1).mean(1) / torch.log(torch.tensor(2.0))
    assert (d > 0.999).any() and (d < -0.999).any()
    close(
        vlb_term(o, out, data, x, o.noise_schedule.time(k)).double(), want, 5e-3
    )  # a tanh stands for their error function


def test_bits_per_dimension_of_the_true_noise():
    "A model that knows the noise pays for nothing but the prior and the last bin."
    o = GaussianDiffusion(50)
    data = normal(1, 2).clamp(-1, 1)
    seen = []

    def oracle(x, t, y):
        seen.append(int(o.noise_schedule.timestep(t[:1])))
        return indexed_noise(4, seen[-1], [7, 3], SHAPE)[0]

    got = vlb_bits_per_dim(o, oracle, data, seed=4, index=[7, 3])
    last = (1 - beta_schedule("linear", 50)).prod()
    prior = kl_divergence(
        Normal(last.sqrt() * data.double(), (1 - last).sqrt()), Normal(torch.zeros(1).double(), 1.0)
    )
    close(got["prior"].double(), prior.flatten(1).mean(1) / torch.log(torch.tensor(2.0)))
    assert got["terms"].shape == (2, 50) and sorted(seen) == list(range(50))
    assert got["terms"][:, 1:].abs().max() < 1e-4 and got["terms"][:, 0].min() > 0.1
    close(got["total"], got["terms"].sum(1) + got["prior"], 1e-6)


def test_the_whole_bound_trains_everything():
    out = normal(5, 2, (8, 1, 2, 2)).requires_grad_()
    data = normal(1, 2, (4, 1, 2, 2))
    noise = normal(2, 2, (4, 1, 2, 2))
    t = GaussianDiffusion().noise_schedule.time(torch.tensor([300, 5]))
    got = GaussianDiffusion(variance="learned-range", loss_weighting="vlb").loss(
        lambda *_: out, data, None, noise, t
    )
    close(
        got["loss"],
        1000
        * GaussianDiffusion(variance="learned-range").loss(lambda *_: out, data, None, noise, t)[
            "vlb"
        ],
        1e-6,
    )
    got["loss"].sum().backward()
    assert out.grad[:, :4].abs().min() > 0 and out.grad[:, 4:].abs().min() > 0
    fixed = GaussianDiffusion(loss_weighting="vlb").loss(
        lambda *_: out[:, :4], data, None, noise, t
    )
    error = 1 - beta_schedule().double()  # equation 12 of Ho et al.
    k = torch.tensor([300, 5])
    bar = error.cumprod(0)
    beta = beta_schedule()[k]
    tilde = beta_schedule()[k] * (1 - bar[k - 1]) / (1 - bar[k])
    weight = beta**2 / (2 * tilde * (1 - beta) * (1 - bar[k])) / torch.log(torch.tensor(2.0))
    close(fixed["vlb"].double(), weight * fixed["mse"], 1e-3)


def test_learned_variance_lies_between_its_ends():
    data = normal(1)
    k = torch.tensor([5, 200, 900])
    logs = {}
    for variance, value in (
        ("fixed-small", None),
        ("fixed-large", None),
        ("learned-range", -1.0),
        ("learned-range", 1.0),
        ("learned-range", 0.0),
    ):
        o = GaussianDiffusion(variance=variance)
        extra = None if value is None else torch.full_like(data, value)
        logs[variance, value] = p_mean_variance(o, (data, extra), data, k, k - 1)[1]
    close(logs["learned-range", -1.0], logs["fixed-small", None])
    close(logs["learned-range", 1.0], logs["fixed-large", None])
    close(logs["learned-range", 0.0], (logs["fixed-small", None] + logs["fixed-large", None]) / 2)


def test_discretised_probabilities_sum_to_one():
    bins = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, logvar in ((0.0, -4.0), (0.9, -1.0), (-1.0, 0.0)):
        p = (
            -discretized_gaussian_nll(
                bins, torch.full_like(bins, mean), torch.full_like(bins, logvar)
            )
        ).exp()
        assert abs(p.sum() - 1) < 1e-6
