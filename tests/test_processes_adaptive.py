"""dopri5: its tolerance, its times, and what each sample depends on."""

import itertools
import sys

import pytest
import torch
from helpers.processes import PATHS, PREDICTIONS, Net, check_mixture, crowd, last, mixture

from minisora.core.noise import indexed_noise
from minisora.interpolants import Interpolant
from minisora.sampling import CallCounter, ode_iter, sample

Y = torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize("path,prediction", list(itertools.product(PATHS, PREDICTIONS)))
def test_dopri5_finds_the_mixture_and_never_asks_outside(path, prediction):
    "torchdiffeq by itself steps past the end and interpolates back."
    o = Interpolant(path, prediction)
    times = []
    exact = mixture(o)

    def model(x, t, y=None):
        times.append(t[0].item())
        return exact(x, t, y)

    check_mixture(last(ode_iter(model, o, crowd(n=2000), None, 4, "dopri5", together=True)), 0.1)
    lo, hi = o.time_range
    assert lo - 1e-6 <= min(times) and max(times) <= hi + 1e-6 and len(times) < 400


def test_dopri5_keeps_its_tolerance_and_says_what_it_costs():
    o = Interpolant("gvp")
    x = crowd(n=30).double()
    true = last(ode_iter(mixture(o), o, x, None, 300, "rk4"))
    cost = []
    for tol in (1e-2, 1e-4, 1e-7):
        model = CallCounter(mixture(o))
        off = (
            (last(ode_iter(model, o, x, None, 3, "dopri5", atol=tol, rtol=tol)) - true).abs().max()
        )
        assert off < 50 * tol, (tol, off)
        cost.append(model.calls)
    assert 8 <= cost[0] < cost[1] < cost[2] < 400, cost


@pytest.mark.parametrize("reverse", (False, True))
def test_dopri5_hands_out_states_at_the_times_of_the_grid(reverse):
    o = Interpolant()
    x = crowd(n=20)
    options = dict(solver="dopri5", shift=2.0, reverse=reverse, atol=1e-6, rtol=1e-6)
    states = list(ode_iter(mixture(o), o, x, None, 6, **options))
    fine = list(ode_iter(mixture(o), o, x, None, 600, "rk4", 2.0, reverse))[::100]
    assert [t for t, _, _ in states] == pytest.approx([t for t, _, _ in fine])
    torch.testing.assert_close(states[0][2], fine[0][2])
    for (_, a, guess), (_, b, truth) in zip(states, fine):
        assert (a - b).abs().max() < 1e-3 and (guess - truth).abs().mean() < 0.3


def test_dopri5_together_depends_on_the_company_and_alone_it_does_not():
    o = Interpolant()
    x = indexed_noise(0, 0, range(6), (2, 1, 1, 1))[0]
    alone, couple = (
        [last(ode_iter(mixture(o), o, part, None, 2, "dopri5", together=t)) for part in (x, x[:2])]
        for t in (False, True)
    )
    assert torch.equal(alone[0][:2], alone[1])
    apart = (couple[0][:2] - couple[1]).abs().max()
    assert 0 < apart < 0.1


def test_dopri5_without_its_library_or_with_a_bad_tolerance(monkeypatch):
    with pytest.raises(ValueError, match="rtol must be .*0"):
        sample(Net(), Interpolant(), Y, solver="dopri5", rtol=0)
    with pytest.raises(ValueError, match="atol .*-1"):
        sample(Net(), Interpolant(), Y, solver="dopri5", atol=-1.0)
    with pytest.raises(ValueError, match="dopri5 cannot keep to atol 1e-06"):
        sample(
            lambda x, t, y=None: x * float("nan"),
            Interpolant(),
            n=1,
            shape=(1, 1, 1, 1),
            solver="dopri5",
        )
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match="pip install torchdiffeq$"):
        sample(Net(), Interpolant(), Y, solver="dopri5")
