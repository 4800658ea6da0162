"""The SDE where the crowd is known: every form, last step and method."""

import itertools

import pytest
import torch
from helpers.processes import PATHS, PREDICTIONS, check_mixture, crowd, last, mixture

from minisora.core.noise import indexed_noise
from minisora.interpolants import Interpolant
from minisora.sampling import CallCounter, _sde_time_grid, ode_iter, sde_iter


FORMS = ("constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing")


@pytest.mark.parametrize("path,prediction,form", list(itertools.product(PATHS, PREDICTIONS, FORMS)))
def test_sde_finds_the_mixture(path, prediction, form):
    o = Interpolant(path, prediction)
    check_mixture(last(sde_iter(mixture(o), o, crowd(n=2000), None, 80, form=form)), 0.12)


LASTS = ("none", "mean", "euler", "tweedie")
METHODS = (("euler", 80), ("heun", 40))


GRID = [
    (
        form,
        end,
        method,
        (PATHS * 16)[i],
        (PREDICTIONS * 12)[i // 3 % 4],
    )  # every pair of path and prediction four times
    for i, (form, end, method) in enumerate(itertools.product(FORMS, LASTS, METHODS))
]


@pytest.mark.parametrize("form,end,method,path,prediction", GRID)
def test_every_form_last_step_and_method_is_finite_and_right(form, end, method, path, prediction):
    o = Interpolant(path, prediction)
    model = CallCounter(mixture(o))
    check_mixture(
        last(
            sde_iter(
                model, o, crowd(n=2000), None, method[1], form=form, last=end, method=method[0]
            )
        ),
        0.12,
    )
    assert model.calls == (method[1] if method[0] == "euler" else 2 * method[1] - 1)


def test_the_grid_leaves_nothing_out():
    for take, full in (((0, 1, 2), (FORMS, LASTS, METHODS)), ((3, 4), (PATHS, PREDICTIONS))):
        assert {tuple(g[i] for i in take) for g in GRID} == set(itertools.product(*full))


@pytest.mark.parametrize(
    "path,form,method", list(itertools.product(PATHS, FORMS, ("euler", "heun")))
)
def test_few_sde_steps_and_a_shift_stay_finite(path, form, method):
    """SBDM with a velocity divides by zero at t = 0, where SiT's code returns NaN; a form may be
    infinite at either end."""
    o = Interpolant(path)
    for steps, end, norm in (
        (1, "mean", 1.0),
        (2, "none", 1.0),
        (7, "mean", 9.0),
        (3, "none", 0.0),
    ):
        x = last(
            sde_iter(
                mixture(o),
                o,
                crowd(n=50),
                None,
                steps,
                shift=3.0,
                form=form,
                method=method,
                last=end,
                norm=norm,
            )
        )
        assert x.isfinite().all() and x.abs().max() < 9, (steps, x.abs().max())


def test_heun_has_less_bias_than_euler_for_the_same_calls():
    "A Gaussian of mean 2 and deviation 0.5, where the crowd's moments show the bias."
    o = Interpolant()
    bias = {}

    def exact(x, t, y=None):
        t = t.to(x).view(-1, 1, 1, 1)
        return 2 + (0.25 * t - (1 - t)) / (0.25 * t**2 + (1 - t) ** 2) * (x - 2 * t)

    for method, steps in (("euler", 24), ("heun", 12)):
        x = last(
            sde_iter(exact, o, crowd(n=20000).double(), None, steps, form="constant", method=method)
        )
        bias[method] = abs(x.std().item() - 0.5)
    assert bias["heun"] < bias["euler"] / 2 and bias["heun"] < 0.01, bias


@pytest.mark.parametrize("path", ("linear", "gvp"))  # on a straight line Tweedie is Euler
def test_last_steps_are_what_they_are_called(path):
    o = Interpolant(path)
    seen = []

    def model(x, t, y=None):
        seen.append((x, t))
        return torch.tanh(x) - t.view(-1, 1, 1, 1)

    ends = {
        end: last(sde_iter(model, o, crowd(n=40), None, 5, form="sigma", last=end)) for end in LASTS
    }
    x, t = seen[4]
    h = 0.04
    v = model(x, t)
    sigma = o.coefficients(t)[1].item()
    data, noise = o.to_data_and_noise(v, x, t)
    torch.testing.assert_close(ends["euler"], x + h * v)
    torch.testing.assert_close(ends["tweedie"], data)
    D = min(sigma, 0.25 * sigma**2 / h)
    torch.testing.assert_close(ends["mean"], x + h * (v - D * noise / sigma))
    torch.testing.assert_close(
        ends["none"], ends["mean"] + (2 * D * h) ** 0.5 * indexed_noise(0, 5, [0], (2, 1, 1, 40))[0]
    )
    assert abs(t.item() - 0.96) < 1e-6


def test_the_sde_adds_noise_and_the_ode_does_not():
    o = Interpolant()
    assert torch.equal(
        last(ode_iter(mixture(o), o, crowd())), last(ode_iter(mixture(o), o, crowd()))
    )
    a, b = (last(sde_iter(mixture(o), o, crowd(), None, 50, seed=s)) for s in (0, 1))
    assert (a - b).abs().mean() > 0.1


def test_sde_times():
    assert _sde_time_grid(1) == [0.0, 1.0] and _sde_time_grid(5) == pytest.approx(
        [0.0, 0.24, 0.48, 0.72, 0.96, 1.0]
    )
    assert _sde_time_grid(3, 1.0, 1e-3, 0.1) == pytest.approx([0.001, 0.4505, 0.9, 1.0])


def test_no_sde_step_overshoots():
    """Data of spread 0.02 and large steps: an uncapped D would throw the points apart by 0.3 and
    more."""
    o = Interpolant()

    def exact(x, t, y=None):
        t = t.to(x).view(-1, 1, 1, 1)
        return 1 + (4e-4 * t - (1 - t)) / (4e-4 * t**2 + (1 - t) ** 2) * (x - t)

    for form in FORMS:
        x = last(sde_iter(exact, o, crowd(), None, 20, form=form))
        assert x.isfinite().all() and abs(x.mean() - 1) < 0.01 and x.std() < 0.06, (
            form,
            x.mean(),
            x.std(),
        )
