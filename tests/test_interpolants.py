"""SiT's paths, predictions and weights: conversions, times, what is finite, and motion that is
even."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from helpers.processes import PATHS, PREDICTIONS

from minisora.core.hub import OBJECTIVES
from minisora.core.noise import indexed_noise
from minisora.diffusion import GaussianDiffusion
from minisora.interpolants import (
    Interpolant,
    logit_normal_times,
    objective_from_dict,
    path_coefficients,
    temporal_misalignment,
    timestep_shift,
)

WEIGHTS = ("none", "velocity", "likelihood")


SHAPE = (4, 2, 3, 3)


def normal(seed, n=5):
    return indexed_noise(seed, 0, range(n), SHAPE)[0]


@pytest.mark.parametrize("path", PATHS)
def test_ends_and_derivatives(path):
    a, s, _, _ = path_coefficients(path, torch.tensor([0.0, 1.0]))
    assert a[1] == 1 and abs(s[1]) < 1e-9 and s[0] > 0.9999 and a[0] < 0.01
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    h = 1e-6
    a, s, da, ds = path_coefficients(path, t)
    up = path_coefficients(path, t + h)
    down = path_coefficients(path, t - h)
    torch.testing.assert_close((up[0] - down[0]) / (2 * h), da, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close((up[1] - down[1]) / (2 * h), ds, rtol=1e-6, atol=1e-7)
    if path != "linear":
        torch.testing.assert_close(a**2 + s**2, torch.ones_like(a))


def test_vp_is_the_limit_of_the_linear_ddpm():
    ddpm = GaussianDiffusion(steps=1000).noise_schedule
    k = torch.tensor([100, 300, 500, 700, 900])
    a = path_coefficients("vp", 1 - (k + 1) / 1000)[0]
    torch.testing.assert_close(a, ddpm.alphas_cumprod[k].sqrt(), rtol=0.03, atol=1e-3)


@pytest.mark.parametrize("path,prediction", list(itertools.product(PATHS, PREDICTIONS)))
def test_every_prediction_tells_data_noise_velocity_and_score(path, prediction):
    o = Interpolant(path, prediction)
    data = normal(1).double()
    noise = normal(2).double()
    t = torch.tensor([1e-3, 0.05, 0.5, 0.95, 1 - 1e-3], dtype=torch.float64)
    x = o.add_noise(data, noise, t)
    said = o.target(data, noise, t)
    a, s, da, ds = (c.view(-1, 1, 1, 1, 1) for c in path_coefficients(path, t))
    for got, want in (
        (o.to_data_and_noise(said, x, t)[0], data),
        (o.to_data_and_noise(said, x, t)[1], noise),
        (o.to_velocity(said, x, t), da * data + ds * noise),
        (o.score(lambda *_: said, x, t), -noise / s),
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path,prediction", list(itertools.product(PATHS, PREDICTIONS)))
def test_float32_conversions_near_the_ends(path, prediction):
    o = Interpolant(path, prediction)
    data = normal(1)
    noise = normal(2)
    t = torch.tensor([0.002, 0.01, 0.5, 0.99, 0.998])
    said = o.target(data, noise, t)
    got = o.to_data_and_noise(said, o.add_noise(data, noise, t), t)
    a, s = (c.float().view(-1, 1, 1, 1, 1) for c in path_coefficients(path, t)[:2])
    assert ((got[0] - data) * a).abs().max() < 1e-4 and ((got[1] - noise) * s).abs().max() < 1e-4
    assert o.to_velocity(said, o.add_noise(data, noise, t), t).isfinite().all()


def rounding(path, source, to, t):
    """By how much each t (B,) may magnify a float32 rounding error of the source on its way to
    the target, through data and noise."""
    a, s, da, ds = path_coefficients(path, t.double())
    one = torch.ones_like(a)
    none = torch.zeros_like(a)
    det = (a * ds - da * s).abs()
    speed = (da**2 + ds**2).sqrt()
    of_data = {
        "velocity": (ds.abs() + s * speed) / det,
        "noise": 1 / a,
        "score": 1 / a,
        "data": none,
    }[source]
    of_noise = {"velocity": (da + a * speed) / det, "noise": none, "score": none, "data": 1 / s}[
        source
    ] + one
    return {
        "data": of_data + one,
        "noise": of_noise,
        "score": of_noise / s,
        "velocity": da * (of_data + one) + ds.abs() * of_noise,
    }[to]


@pytest.mark.parametrize("path,source,to", list(itertools.product(PATHS, PREDICTIONS, PREDICTIONS)))
def test_the_matrix_of_conversions_in_float32(path, source, to):
    """Within 2e-6 (17 roundings) times what the formula magnifies; from a thousandth after the
    noise to a thousandth before the data."""
    o = Interpolant(path, source)
    t = torch.tensor([1e-3, 0.01, 0.5, 0.99, 0.999])
    data = normal(1)
    noise = normal(2)
    x = o.add_noise(data, noise, t)
    said = o.target(data, noise, t)
    got = o.convert(said, x, t, to)
    want = Interpolant(path, to).target(data.double(), noise.double(), t)
    allowed = 2e-6 * rounding(path, source, to, t)
    off = (got - want).flatten(1).abs().max(1).values
    assert got.dtype == torch.float32 and (off <= allowed).all(), (off, allowed)


@pytest.mark.parametrize("path,source,to", list(itertools.product(PATHS, PREDICTIONS, PREDICTIONS)))
def test_there_and_back_in_float64(path, source, to):
    t = torch.tensor([1e-3, 0.02, 0.5, 0.98, 1 - 1e-3], dtype=torch.float64)
    x = normal(1).double()
    said = normal(2).double()  # any output, not only a right one
    there = Interpolant(path, source).convert(said, x, t, to)
    torch.testing.assert_close(
        Interpolant(path, to).convert(there, x, t, source), said, rtol=1e-7, atol=1e-7
    )
    with pytest.raises(ValueError, match="prediction must be .*'v'"):
        Interpolant(path, source).convert(said, x, t, "v")


@pytest.mark.parametrize(
    "path,prediction,weight", list(itertools.product(PATHS, PREDICTIONS, WEIGHTS))
)
def test_loss_is_zero_for_the_right_answer_and_finite_for_all_times(path, prediction, weight):
    o = Interpolant(path, prediction, weight, time_distribution="uniform")
    data = normal(1)
    noise = normal(2)
    t = o.sample_times(torch.tensor([0.0, 1e-7, 0.5, 0.9999, 1 - 1e-7]))
    said = o.target(data, noise, t)
    assert o.loss(lambda *_: said, data, None, noise, t)["loss"].max() == 0
    terms = o.loss(lambda *_: said + 0.1, data, None, noise, t)
    assert (
        terms["loss"].isfinite().all() and (terms["loss"] > 0).all() and next(iter(terms)) == "loss"
    )


@pytest.mark.parametrize("path,weight", list(itertools.product(PATHS, ("velocity", "likelihood"))))
def test_weights_make_all_predictions_one_loss(path, weight):
    data = normal(1).double()
    noise = normal(2).double()
    wrong = normal(3).double()
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    losses = []
    for prediction in PREDICTIONS:
        o = Interpolant(path, prediction, weight)
        x = o.add_noise(data, noise, t)
        a, s = (c.view(-1, 1, 1, 1, 1) for c in path_coefficients(path, t)[:2])
        said = o.target((x - s * wrong) / a, wrong, t)  # one wrong belief, in each language
        losses.append(o.loss(lambda *_: said, data, None, noise, t)["loss"])  # noqa: B023
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-4, atol=1e-6)


def test_weights_are_the_originals():
    """SiT's transport.py: the noise error times (drift_var/sigma)² or drift_var/sigma²; the
    score's times sigma² as well."""
    t = torch.tensor([0.1, 0.5, 0.9])
    drift = (1 - t) ** 2 / t + (1 - t)
    for weight, want in (
        ("velocity", (drift / (1 - t)) ** 2),
        ("likelihood", drift / (1 - t) ** 2),
    ):
        torch.testing.assert_close(
            Interpolant(prediction="noise", loss_weighting=weight).weights(t),
            want,
            rtol=1e-4,
            atol=1e-5,
        )
        torch.testing.assert_close(
            Interpolant(prediction="score", loss_weighting=weight).weights(t),
            want * (1 - t) ** 2,
            rtol=1e-4,
            atol=1e-5,
        )
    torch.testing.assert_close(Interpolant(prediction="score").weights(t), (1 - t) ** 2)


# ---------------------------------------------------------------- times


def test_times_have_the_distribution_they_name():
    u = indexed_noise(0, 0, range(4000), (1,))[1][:, 0]
    logit = torch.logit(Interpolant(mean=0.4, std=0.7).sample_times(u).double())
    assert abs(logit.mean() - 0.4) < 0.04 and abs(logit.std() - 0.7) < 0.03
    flat = Interpolant(time_distribution="uniform").sample_times(u)
    assert torch.allclose(flat, u) and abs(flat.mean() - 0.5) < 0.02


def test_shift_goes_towards_the_noise_and_is_sd3s():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    sigma = 1 - t
    torch.testing.assert_close(
        1 - timestep_shift(t, 3.0), 3 * sigma / (1 + 2 * sigma)
    )  # Esser et al. 2024, eq. 23
    assert (timestep_shift(t, 3.0)[1:-1] < t[1:-1]).all() and torch.equal(timestep_shift(t), t)
    u = torch.rand(500, generator=torch.Generator().manual_seed(0))
    assert (
        Interpolant(shift=3.0).sample_times(u).mean() < Interpolant().sample_times(u).mean() - 0.1
    )


def test_logit_normal_is_finite_at_both_ends():
    t = logit_normal_times(torch.tensor([0.0, 1 - 2**-24, 1.0]))
    assert t.isfinite().all() and t[0] > 0 and t[-1] <= 1 and t[0] < 0.01 and t[-1] > 0.99


# ---------------------------------------------------------------- configs and errors


def test_dict_there_and_back(monkeypatch):
    for o in (
        Interpolant("gvp", "noise", "velocity", "uniform", shift=2.0),
        GaussianDiffusion(prediction="v"),
    ):
        assert objective_from_dict(o.to_dict()) == o
    # whatever other modules bring
    monkeypatch.setattr(OBJECTIVES, "modules", ())
    for wrong in ({"objective": "interpolent"}, {"path": "gvp"}):
        with pytest.raises(ValueError, match="objective must be one of .*'interpolant'.*not"):
            objective_from_dict(wrong)
    with pytest.raises(ValueError, match="has no field 'speed'"):
        objective_from_dict({"objective": "interpolant", "speed": 2})


def test_an_objective_that_is_registered_is_read(monkeypatch):
    "A module that comes later in the library, or a user's own."
    monkeypatch.setattr(OBJECTIVES, "classes", dict(OBJECTIVES.classes))

    @OBJECTIVES.register("two-step", "Old")
    @dataclass(frozen=True)
    class TwoStep(Interpolant):
        more: tuple = (0, 1)

    o = TwoStep("gvp", more=(2,))
    assert o.to_dict()["objective"] == "two-step" and objective_from_dict(o.to_dict()) == o
    assert objective_from_dict({"objective": "Old", "weight": "velocity"}) == TwoStep(
        loss_weighting="velocity"
    )
    # a subclass that is not registered goes by its own name, and only its own class reads it
    Mine = dataclass(frozen=True)(type("Mine", (Interpolant,), {}))
    assert Mine.from_dict(Mine().to_dict()) == Mine()
    with pytest.raises(ValueError, match="objective is 'Mine', not 'interpolant'"):
        Interpolant.from_dict(Mine().to_dict())


@pytest.mark.parametrize(
    "field,value",
    [
        ("path", "curved"),
        ("prediction", "v"),
        ("loss_weighting", "min-snr"),
        ("time_distribution", "beta"),
        ("mean", "nan"),
        ("std", 0),
        ("shift", -1),
        ("shift", float("inf")),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*{value}"):
        Interpolant(**{field: value})


def test_a_variance_head_is_left_out_and_other_shapes_refused():
    x = normal(1, 2)
    t = torch.tensor([0.2, 0.7])
    assert torch.equal(
        Interpolant().raw_prediction(lambda x, t, y: torch.cat([x, 0 * x], 1), x, t), x
    )
    with pytest.raises(ValueError, match=r"\(2, 2, 2, 3, 3\)"):
        Interpolant().raw_prediction(lambda x, t, y: x[:, :2], x, t)


def test_max_weight_bounds_the_loss_near_the_data_only():
    t = torch.tensor([0.2, 0.7, 0.9, 0.99])
    got = Interpolant(prediction="data", loss_weighting="velocity", max_weight=16.0).weights(t)
    torch.testing.assert_close(got, 1 / (1 - t).clamp(min=0.25) ** 2)
    with pytest.raises(ValueError, match="max_weight must be .*0"):
        Interpolant(max_weight=0)


# ---------------------------------------------------------------- motion


def test_delta_asks_for_an_error_that_does_not_change_in_time():
    data = normal(1)
    noise = normal(2)
    t = torch.full((5,), 0.5)
    o = Interpolant(temporal_diff_weight=3.0)
    steady = o.loss(lambda *_: data - noise + 1, data, None, noise, t)
    torch.testing.assert_close(steady["loss"], torch.ones(5))
    swing = torch.tensor([1.0, -1.0]).view(
        1, 1, 2, 1, 1
    )  # the same size of error, turned in the second frame
    terms = o.loss(lambda *_: data - noise + swing, data, None, noise, t)
    torch.testing.assert_close(terms["mse"], torch.ones(5))
    torch.testing.assert_close(terms["loss"], torch.full((5,), 1 + 3 * 4.0))
    with pytest.raises(ValueError, match="temporal_diff_weight must be .*-1"):
        Interpolant(temporal_diff_weight=-1.0)
    one = data[:, :, :1]
    assert "change" not in o.loss(
        lambda *_: one, one, None, noise[:, :, :1], t
    )  # an image does not move


AT = 2 + torch.arange(8.0)


def bump(at):
    "One bump at place `at` (T,) of a row of 16: (1, 1, T, 1, 16)."
    return 4 * torch.exp(-((torch.arange(16.0) - at[:, None]) ** 2) / 4)[None, None, :, None]


def test_slip_is_the_shift_in_time():
    late = torch.tensor([0.1, -0.2, 0.3, 0.0, 0.2, -0.1, 0.05, 0.1])
    error = bump(AT + late) - bump(AT)  # moves one place a frame: places are frames
    torch.testing.assert_close(temporal_misalignment(error, bump(AT))[0], late, atol=0.03, rtol=0.1)
    assert (
        temporal_misalignment(torch.ones(1, 1, 4, 1, 16), torch.ones(1, 1, 4, 1, 16)).abs().max()
        == 0
    )  # nothing moves


def test_only_uneven_slip_costs():
    t = torch.full((1,), 0.5)
    noise = torch.randn(1, 1, 8, 1, 16, generator=torch.Generator().manual_seed(0))
    o = Interpolant(prediction="data", jerk_weight=2.0)

    def terms(late):
        return o.loss(lambda *_: bump(AT + late), bump(AT), None, noise, t)

    even = terms(torch.full((8,), 0.3))
    uneven = terms(0.3 * torch.tensor([1.0, -1.0] * 4))
    torch.testing.assert_close(even["mse"], uneven["mse"], rtol=0.05, atol=0)
    assert even["jerk"] < 0.02 < 0.8 < uneven["jerk"] < 1.2
    torch.testing.assert_close(uneven["loss"], uneven["mse"] + 2 * uneven["jerk"])
    # a velocity that is wrong by `d` is data that is wrong by d · (1 - t): same clip, same slip
    v = Interpolant(jerk_weight=2.0).loss(
        lambda x, *_: (bump(AT + 0.3 * torch.tensor([1.0, -1.0] * 4)) - x) / 0.5,
        bump(AT),
        None,
        noise,
        t,
    )
    torch.testing.assert_close(v["jerk"], uneven["jerk"])
    short = o.loss(lambda *_: noise[:, :, :2], noise[:, :, :2], None, noise[:, :, :2], t)
    assert "jerk" not in short  # two frames have no second difference
    with pytest.raises(ValueError, match="jerk_weight must be .*-1"):
        Interpolant(jerk_weight=-1.0)
