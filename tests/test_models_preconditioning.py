"""What a network's numbers mean: the velocity itself, what is left of it at unit variance, or
the clean latents."""

import dataclasses

import pytest
import torch
from helpers.models import TINY, VIDEO, awake, batch, close, video, video_batch

from minisora.dit import DiT
from minisora.models.preconditioning import (
    DataOutput,
    DirectOutput,
    EDMOutput,
    edm_to_velocity,
    linear_path_variance,
    output_of,
    x0_to_velocity,
)
from minisora.temporal import VideoDiT, VideoDiTConfig

FLOW = dataclasses.replace(TINY, time_convention="flow", learn_sigma=False)


def on_the_path(t, *shape):
    """Data, x_t and velocity at times t, of data and noise of unit variance; and t as (B, 1, 1,
    1, 1)."""
    g = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, len(t), *shape, generator=g)
    s = t.view(-1, 1, 1, 1, 1)
    return data, s * data + (1 - s) * noise, data - noise, s


# ---------------------------------------------------------------- the formulas


def test_preconditioning_is_exact_where_the_answer_is_known():
    t = torch.rand(64, generator=torch.Generator().manual_seed(0))
    data, x, v, s = on_the_path(t, 4, 1, 32, 32)
    var = linear_path_variance(t)
    torch.testing.assert_close(x.flatten(1).var(1), var.flatten(), rtol=0.2, atol=0)
    rest = (v * var - (2 * s - 1) * x) / var.sqrt()
    assert (rest.flatten(1).std(1) - 1).abs().max() < 0.05
    assert (rest * x).flatten(1).mean(1).abs().max() < 0.06
    torch.testing.assert_close(edm_to_velocity(x, rest, t), v, rtol=1e-3, atol=1e-4)
    late = t < 0.95
    got = x0_to_velocity(x, data, t)
    torch.testing.assert_close(got[late], v[late], rtol=1e-3, atol=1e-4)
    end = x0_to_velocity(x[:1], data[:1] + 1, torch.ones(1))
    want = (data[0] + 1 - x[0]) / 0.05
    assert end[0].mean() == pytest.approx(want.mean().item(), rel=1e-4)


def test_rest_is_white_and_uncorrelated():
    "The network's target has unit variance and nothing linear in x_t left, at every t."
    t = torch.tensor([0, 0.2, 0.5, 0.9, 1.0])
    data, x, v, s = on_the_path(t, 4, 2, 50, 50)
    zero = edm_to_velocity(x, torch.zeros_like(x), t)
    one = edm_to_velocity(x, torch.ones_like(x), t)
    rest = (v - zero) / (one - zero)
    assert torch.allclose(rest.flatten(1).var(1), torch.ones(5), atol=0.05)
    assert ((rest * x).flatten(1).mean(1).abs() < 0.03).all()
    assert torch.allclose(rest[0], data[0], atol=1e-5)
    noise = (data - v)[4]
    assert torch.allclose(rest[4], -noise, atol=1e-5)


def test_predicting_the_data_gives_their_velocity():
    t = torch.tensor([0, 0.5, 0.9])
    data, x, v, _ = on_the_path(t, 4, 2, 5, 5)
    close(x0_to_velocity(x, data, t), v)
    zero = torch.zeros(1, 1, 1, 1, 1)
    assert x0_to_velocity(zero, zero + 1, torch.ones(1), clip=0.25).item() == 4
    half = video(output=DataOutput(0.5))
    fresh = VideoDiT(half.config)
    x, t, y = video_batch()
    close(fresh(x, t, y), -x / (1 - t).clamp(min=0.5).view(-1, 1, 1, 1, 1))


# ---------------------------------------------------------------- in the models


def test_preconditioning_in_the_image_model():
    x, t, y = batch(FLOW)
    var = linear_path_variance(t)

    def model(**options):
        return DiT(dataclasses.replace(FLOW, **options))

    # the network adds nothing yet
    torch.testing.assert_close(
        model(precondition="edm")(x, t, y), (2 * t - 1).view_as(var) * x / var
    )
    torch.testing.assert_close(
        model(precondition="x")(x, t, y), -x / (1 - t).clamp(min=0.05).view_as(var)
    )
    plain = awake(DiT(FLOW))(x / var.sqrt(), t, y)
    close(awake(model(precondition="edm"))(x, t, y), edm_to_velocity(x, plain, t))
    data = awake(model(precondition="x", t_clip=0.5))
    close(data(x, t, y), x0_to_velocity(x, plain, t, 0.5))


def test_preconditioning_in_the_video_model():
    x, t, y = video_batch()
    plain = video()(x / linear_path_variance(t).sqrt(), t, y)
    close(video(output=EDMOutput())(x, t, y), edm_to_velocity(x, plain, t))
    close(video(output=DataOutput(0.5))(x, t, y), x0_to_velocity(x, plain, t, 0.5))


def test_a_fresh_preconditioned_model_is_the_best_linear_one():
    model = VideoDiT(dataclasses.replace(VIDEO, output=EDMOutput()))
    x, t, y = video_batch()
    s = t.view(-1, 1, 1, 1, 1)
    close(model(x, t, y), (2 * s - 1) * x / ((1 - s) ** 2 + s**2))
    assert VideoDiT(VIDEO)(x, t, y).abs().max() == 0


# ---------------------------------------------------------------- the parts


def test_an_output_says_how_many_channels_it_needs():
    assert DirectOutput().channels(4) == EDMOutput().channels(4) == DataOutput().channels(4) == 4
    assert DirectOutput(learn_sigma=True).channels(4) == 8
    assert video(output=DirectOutput(learn_sigma=True)).out_channels == 8


def test_a_direct_output_hands_everything_on():
    x, out = torch.randn(2, 3, 4, 2, 5, 5)
    t = torch.rand(3)
    assert DirectOutput().scale_input(x, t) is x
    assert DirectOutput().to_velocity(x, out, t) is out


def test_scaled_inputs_keep_their_type():
    x = torch.randn(2, 4, 2, 5, 5, dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert EDMOutput().scale_input(x.to(dtype), torch.rand(2)).dtype == dtype


@pytest.mark.parametrize(
    "options, want",
    [
        (dict(learn_sigma=True, time_convention="ddpm"), DirectOutput(learn_sigma=True)),
        (dict(learn_sigma=False), DirectOutput()),
        (dict(precondition="edm"), EDMOutput()),
        (dict(precondition="x", t_clip=0.3), DataOutput(0.3)),
    ],
    ids=str,
)
def test_the_output_of_a_flat_image_config(options, want):
    c = dataclasses.replace(FLOW, **options)
    assert output_of(c) == want == DiT(c).output


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: DataOutput(0.0),
            r"DataOutput\.t_clip must be a number above 0, at most 1, not 0\.0",
        ),
        (lambda: DataOutput(1.5), r"DataOutput\.t_clip must be a number above 0, at most 1"),
        (lambda: DataOutput("half"), r"DataOutput\.t_clip"),
        (lambda: DirectOutput(learn_sigma=1), r"DirectOutput\.learn_sigma must be bool, not 1"),
        (lambda: VideoDiTConfig(output="karras"), "output must be one of .*'edm'.* not 'karras'"),
    ],
)
def test_bad_outputs(make, message):
    with pytest.raises(ValueError, match=message):
        make()
