"""What cannot be asked of sampling and objectives is refused by name; what is clear is taken."""

import math

import numpy as np
import pytest
import torch
from helpers.train import awake, video  # noqa: F401

from minisora.core.noise import indexed_noise
from minisora.diffusion import GaussianDiffusion
from minisora.dit import DiT, DiTConfig
from minisora.interpolants import Interpolant, timestep_shift
from minisora.models.preconditioning import DataOutput, EDMOutput
from minisora.sampling import (
    cfg_model,
    invert_ode,
    log_likelihood,
    renoise_average,
    sample,
    time_grid,
)

IDS = torch.zeros(2, 1, dtype=torch.long)
NAN = float("nan")


def draw(model=None, objective=None, condition=IDS, **options):
    return sample(model or awake(), objective or Interpolant(), condition, steps=2, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(guidance_scale=2.0),
            "sample has no argument 'guidance_scale'; it is called 'guidance' here",
        ),
        (dict(num_inference_steps=9), "it is called 'steps' here"),
        (dict(guidence=2.0), "sample has no argument 'guidence'; did you mean 'guidance'"),
        (dict(eta=0.5), "solver 'euler' has no option 'eta'; it is one of 'ddim'"),
        (dict(solver="sde", atol=1e-3), "solver 'sde' has no option 'atol'"),
        (
            dict(objective=GaussianDiffusion(), solver="ddim", etta=0.5),
            "'etta'; did you mean 'eta'",
        ),
        (dict(guidance=NAN), "guidance must be a finite number, not nan"),
        (dict(guidance=math.inf), "guidance must be a finite number"),
        (dict(guidance="2"), "guidance must be a finite number, not '2'"),
        (dict(guidance_interval=(0.8, 0.2)), "guidance_interval must be two times"),
        (dict(guidance_interval=0.5), "guidance_interval must be two times"),
        (dict(guidance_interval=(NAN, 1.0)), "guidance_interval must be two times"),
        (dict(shift=math.inf), "shift must be a number above 0, not inf"),
        (dict(shift=NAN), "shift must be a number above 0, not nan"),
        (dict(batch_size=0), "batch_size must be a whole number from 1, not 0"),
        (dict(index=[0, 0.5]), "index must be whole numbers from 0, not 0.5"),
        (dict(index=torch.tensor([0.0, 1.0])), "index must be whole numbers from 0, not 0.0"),
        (dict(index=[0, -1]), "index must be whole numbers from 0, not -1"),
        (dict(index="01"), "index must be a list of whole numbers"),
        (dict(seed=-1), "seed must be a whole number from 0, not -1"),
        (dict(seed=0.5), "seed must be a whole number from 0, not 0.5"),
        (dict(condition="a red ring"), "condition must be ids .*not text.*VideoPipeline"),
        (dict(condition=["a red ring", "a ball"]), "condition must be ids"),
        (dict(condition=[]), "condition holds no sample"),
        (dict(condition=torch.tensor(3)), "condition must be a tensor with a row for each sample"),
        (dict(condition=torch.full((2, 1), 6)), "condition holds id 6, the model knows 0 to 5"),
        (dict(condition=torch.full((2, 1), -1)), "condition holds id -1"),
        (dict(condition=torch.rand(2, 1)), "condition must be whole ids, not torch.float32"),
        (dict(condition=None, n=0), "n must be a whole number from 1, not 0"),
        (dict(condition=None, n=-2), "n must be a whole number from 1, not -2"),
        (dict(condition=None, n=1.5), "n must be a whole number from 1, not 1.5"),
        (dict(condition=None, n="3"), "n must be a whole number from 1, not '3'"),
        (dict(noise=torch.full((2, 2, 4, 4, 4), NAN)), "noise holds NaN or infinite"),
        (dict(noise=torch.zeros(2, 2, 4, 4, 4, dtype=torch.long)), "noise must be floating point"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        draw(**options)


def test_an_unknown_keyword_is_a_type_error_too():
    with pytest.raises(TypeError, match="guidance_scale"):
        draw(guidance_scale=2.0)


@pytest.mark.parametrize(
    "options",
    [
        dict(condition=[[0], [0]]),
        dict(condition=np.zeros((2, 1), np.int32)),
        dict(seed=np.int64(0), index=np.arange(2), batch_size=np.int8(1)),
        dict(index=torch.arange(2), guidance=np.float32(1.5), shift=torch.tensor(1.0)),
        dict(noise=indexed_noise(0, 0, [0, 1], (2, 4, 4, 4))[0].numpy()),
    ],
)
def test_what_is_clear_is_taken(options):
    torch.testing.assert_close(draw(**options), draw())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["video", "image"])
def test_weights_of_another_type_sample_float32(kind, dtype):
    if kind == "video":
        model = awake()
    else:
        few = dict(channels=2, width=16, depth=1, heads=2, num_classes=5, learn_sigma=False)
        model = DiT(DiTConfig(size=(4, 4), **few))
        torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    want = draw(model)
    got = draw(model.to(dtype))
    assert (
        got.dtype == torch.float32
        and (got - want).abs().max() < 0.2
        and not torch.equal(got, torch.zeros_like(got))
    )


def test_guidance_of_a_model_of_its_own_is_checked_too():
    with pytest.raises(ValueError, match="guidance must be"):
        cfg_model(awake(), NAN)


@pytest.mark.parametrize("t", [1.5, -0.1, NAN])
def test_renoising_time(t):
    with pytest.raises(ValueError, match="t must be a number from 0"):
        renoise_average(awake(), Interpolant(), torch.zeros(2, 2, 4, 4, 4), IDS, t=t)


@pytest.mark.parametrize("call", [invert_ode, log_likelihood, renoise_average])
def test_data_that_are_not_finite(call):
    x = torch.zeros(2, 2, 4, 4, 4)
    x[1, 0, 0, 0, 0] = NAN
    with pytest.raises(ValueError, match="holds NaN or infinite values"):
        call(awake(), Interpolant(), x, IDS)


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    "objective, times",
    [
        (Interpolant(), [1.2, -0.1, NAN]),
        (Interpolant(prediction="data"), [1.0, -0.5]),
        (Interpolant(prediction="noise"), [0.0, 1.0]),
        (Interpolant(prediction="score", path="gvp"), [0.0, 1.0]),
        (Interpolant(path="vp"), [1.0, 1.5]),
        (GaussianDiffusion(), [0.0, 1.1, NAN]),
    ],
)
def test_times_outside_the_range_are_refused_by_name(objective, times):
    x = torch.ones(2, 2, 4, 4, 4)
    for t in times:
        t = torch.tensor([0.5, t])
        with pytest.raises(ValueError, match="t must be from 0"):
            objective.loss(lambda x, t, y: x, x, None, x, t)
        with pytest.raises(ValueError, match="t must be from 0"):
            objective.velocity(lambda x, t, y: x, x, t)


def test_add_noise_and_predict_stay_between_noise_and_data():
    x = torch.ones(1, 2, 1, 1, 1)
    for t in (-0.5, 1.5, NAN):
        for call in (
            lambda t: Interpolant().add_noise(x, x, t),
            lambda t: Interpolant().predict(lambda x, t, y: x, x, t),
            lambda t: Interpolant(prediction="data").score(lambda x, t, y: x, x, t),
        ):
            with pytest.raises(ValueError, match="t must be from 0 to"):
                call(torch.tensor([t]))
    with pytest.raises(ValueError, match="score: t must be below 1"):
        Interpolant().score(lambda x, t, y: x, x, torch.ones(1))


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
@pytest.mark.parametrize("weighting", ["velocity", "likelihood"])
def test_the_data_weight_takes_its_limit_at_zero(path, weighting):
    objective = Interpolant(path, "data", loss_weighting=weighting)
    at, near = objective.weights(torch.tensor([0.0, 1e-5]).double())
    assert math.isfinite(at) and abs(at - near) < 1e-3
    x = torch.ones(1, 2, 1, 1, 1)
    assert objective.loss(lambda x, t, y: 0 * x, x, None, x, torch.zeros(1))["loss"].isfinite()
    assert objective.velocity(lambda x, t, y: x, x, torch.zeros(1)).isfinite().all()


@pytest.mark.parametrize("shift", [math.inf, NAN, 0, -1.0, "6"])
def test_shift_is_a_number_above_zero(shift):
    for call in (lambda: timestep_shift(torch.rand(2), shift), lambda: time_grid(4, shift)):
        with pytest.raises(ValueError, match="shift must be a number above 0"):
            call()


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize(
    "output, objective, message",
    [
        (DataOutput(), Interpolant(prediction="data"), "output='x0' gives a velocity, .*'data'"),
        (EDMOutput(), Interpolant(prediction="noise"), "output='edm' gives a velocity, .*'noise'"),
        (EDMOutput(), Interpolant(path="gvp"), "is for the linear path, .* 'gvp'"),
        (DataOutput(), GaussianDiffusion(prediction="v"), "gives a velocity, .*'v'"),
    ],
)
def test_an_output_that_answers_something_else(output, objective, message):
    from dataclasses import replace

    from helpers.train import TINY

    model = awake(replace(TINY, output=output))
    with pytest.raises(ValueError, match=message):
        draw(model, objective)
    flat = DiTConfig(
        size=(4, 4), channels=2, width=16, depth=1, heads=2, learn_sigma=False,
        time_convention="flow", precondition={"x0": "x"}.get(output.kind, output.kind),
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        sample(DiT(flat), objective, n=1)


def test_a_variance_that_nobody_asked_for():
    few = dict(size=(4, 4), channels=2, width=16, depth=1, heads=2)
    with pytest.raises(ValueError, match="predicts a variance"):
        sample(DiT(DiTConfig(**few)), GaussianDiffusion(), n=1)
    with pytest.raises(ValueError, match="needs a model with learn_sigma=True"):
        sample(
            DiT(DiTConfig(**few, learn_sigma=False)),
            GaussianDiffusion(variance="learned-range"),
            n=1,
        )


@pytest.mark.parametrize(
    "model, objective, message",
    [
        (None, Interpolant(), "model must be a model, not None"),
        (DiT, Interpolant(), "model must be a model, not <class"),
        (None, IDS, "model must be a model"),
        (awake(), IDS, "objective must be an Interpolant or a GaussianDiffusion, not tensor"),
        (awake(), "linear", "objective must be .*'linear'"),
        (awake(), Interpolant, "objective must be .*not <class"),
    ],
)
def test_no_model_and_no_objective(model, objective, message):
    with pytest.raises(ValueError, match=message):
        sample(model, objective, IDS)
