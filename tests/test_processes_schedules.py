"""Betas, the clock and the few steps of sampling, against diffusers and the originals."""

import diffusers
import pytest
import torch
from helpers.processes import SHAPE, normal

from minisora.diffusion import GaussianDiffusion
from minisora.processes.schedules import (
    beta_schedule,
    space_timesteps,
    zero_terminal_snr,
)


def test_cosine_betas_are_capped():
    b = beta_schedule("cosine")
    assert b[-1] == 0.999 and (b[:-1] < 0.999).all() and (1 - b).prod() > 0


def test_zero_terminal_snr_has_no_signal_at_the_end():
    assert (1 - zero_terminal_snr(beta_schedule())).cumprod(0)[-1] == 0
    assert (1 - beta_schedule()).cumprod(0)[-1] > 1e-5


@pytest.mark.parametrize(
    "steps,first,last", [(1000, 1e-4, 0.02), (100, 1e-3, 0.2), (4000, 2.5e-5, 0.005)]
)
def test_linear_betas_stretch_with_the_number_of_steps(steps, first, last):
    b = beta_schedule("linear", steps)
    assert len(b) == steps and b[0] == pytest.approx(first) and b[-1] == pytest.approx(last)
    assert b.diff().std() < 1e-12


def summed(steps, count):
    "How the original spreads its steps: a running sum, rounded."
    at = 0.0
    out = []
    for _ in range(count):
        out.append(round(at))
        at += (steps - 1) / (count - 1)
    return out


@pytest.mark.parametrize("count", [2, 7, 21, 23, 50, 250, 499, 1000])
def test_respace_is_the_originals(count):
    got = space_timesteps(1000, count)
    assert got == summed(1000, count) and len(set(got)) == count and got[0] == 0 and got[-1] == 999


def test_a_single_step_is_the_noisiest():
    assert space_timesteps(1000, 1) == [999]


def test_respace_by_sections():
    got = space_timesteps(302, [10, 15, 20])  # 302 = 101 + 101 + 100
    assert got == summed(101, 10) + [101 + k for k in summed(101, 15)] + [
        202 + k for k in summed(100, 20)
    ]
    assert GaussianDiffusion(300).sample(lambda x, t, y: 0 * x, normal(1), steps=[2, 3]).shape == (
        3,
        *SHAPE,
    )


@pytest.mark.parametrize("count", [1, 10, 33, 50, 250])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_spacings_are_those_of_diffusers(count, spacing):
    scheduler = diffusers.DDPMScheduler(1000, timestep_spacing=spacing)
    scheduler.set_timesteps(count)
    assert space_timesteps(1000, count, spacing) == scheduler.timesteps.tolist()[::-1]


@pytest.mark.parametrize("count", [0, 1001, 2.5, -3])
def test_respace_names_a_wrong_count(count):
    with pytest.raises(ValueError, match=f"steps must be .*{count}"):
        space_timesteps(1000, count)


def test_respace_names_a_wrong_spacing():
    with pytest.raises(ValueError, match="spacing must be .*'even'"):
        space_timesteps(1000, 10, "even")


def test_clock_there_and_back():
    chain = GaussianDiffusion().noise_schedule
    k = torch.arange(1000)
    assert torch.equal(chain.timestep(chain.time(k)), k)
    assert chain.time(torch.tensor([0])) == 1 and GaussianDiffusion().sample_times(
        torch.tensor([0.0, 0.99999999])
    ).tolist() == [1.0, chain.time(k)[-1].item()]
    assert torch.equal(torch.round(1000 * (1 - chain.time(k))).long(), k)  # what a DiT embeds


def test_derivatives_are_derivatives():
    o = GaussianDiffusion()
    h = 2e-4
    t = (
        1 - (torch.tensor([900.0, 500.0, 100.0, 20.0], dtype=torch.float64) + 0.5) / 1000
    )  # halfway between two steps
    a, s, da, ds = o.coefficients(t)
    up = o.coefficients(t + h)
    down = o.coefficients(t - h)
    torch.testing.assert_close((up[0] - down[0]) / (2 * h), da, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((up[1] - down[1]) / (2 * h), ds, rtol=1e-2, atol=1e-4)
