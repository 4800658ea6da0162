"""Solvers where the answer is known, diffusers' flow scheduler, guidance, and the promise about batch splits."""

import itertools
import sys

import diffusers
import pytest
import torch

from minisora.diffusion import Diffusion, draw, fit_toy, toy_points
from minisora.interpolants import Interpolant, path_coefficients
from minisora.sampling import (
    Counted,
    ddim_iter,
    grid,
    guide,
    guided_channels,
    invert,
    latent_shape,
    ode_iter,
    ode_solver,
    sample,
    sample_iter,
    sde_grid,
    sde_iter,
)

PATHS, PREDICTIONS = ("linear", "gvp", "vp"), ("velocity", "score", "noise", "data")
FORMS = ("constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing")
CENTRES, SPREAD = torch.tensor([[1.5, 0.0], [-0.5, 1.0], [-0.5, -1.0]]), 0.3


def last(states):
    for _, x, _ in states:
        pass
    return x


def mixture(objective):
    "The perfect model of three Gaussians in the plane, in the objective's prediction; x (B, 2, …): each place is a point."

    def model(x, t, y=None):
        a, s = (c.to(x).view(-1, 1, 1) for c in objective.coefficients(t)[:2])
        z = x.flatten(2).transpose(1, 2)  # (B, n, 2)
        off = z[:, :, None] - a[..., None] * CENTRES  # (B, n, 3, 2)
        var = a**2 * SPREAD**2 + s**2
        w = (-(off**2).sum(-1) / (2 * var)).softmax(-1)[..., None]  # (B, n, 3, 1)
        data = (
            (w * (CENTRES + (a * SPREAD**2 / var)[..., None] * off))
            .sum(2)
            .transpose(1, 2)
            .reshape(x.shape)
        )
        noise = (w * (s / var)[..., None] * off).sum(2).transpose(1, 2).reshape(x.shape)
        if isinstance(objective, Interpolant):
            return objective.target(data, noise, t)
        return noise

    return model


def check_mixture(x, tol=0.08):
    assert x.isfinite().all()
    z = x.transpose(0, 1).flatten(1).T
    cov = torch.cov(CENTRES.T, correction=0) + SPREAD**2 * torch.eye(2)
    assert (z.mean(0) - CENTRES.mean(0)).abs().max() < tol, z.mean(0)
    assert (torch.cov(z.T) - cov).abs().max() < tol, torch.cov(z.T)
    near = torch.cdist(z, CENTRES).argmin(1).bincount(minlength=3) / len(z)
    assert (near - 1 / 3).abs().max() < tol, near


def crowd(seed=0, n=3000):
    return draw(seed, 0, [0], (2, 1, 1, n))[0]


# ---------------------------------------------------------------- known answers


def gaussian_error(name, steps):
    "Error at the end on the GVP path with N(2, 0.5²) data, whose flow keeps each point's number of deviations."

    def v(x, t):
        a, s, da, ds = (
            float(c) for c in path_coefficients("gvp", torch.tensor([t], dtype=torch.float64))
        )
        return 2 * da + (0.25 * a * da + s * ds) / (0.25 * a**2 + s**2) * (x - 2 * a)

    x0 = draw(0, 0, range(50), (1,))[0].double()
    x, ts = x0, grid(steps)
    for a, b in zip(ts[:-1], ts[1:]):
        x = ode_solver(name)(v, x, a, b)
    return (x - (2 + 0.5 * x0)).abs().max().item()


@pytest.mark.parametrize("name,order", [("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4)])
def test_solvers_have_their_order(name, order):
    ratio = gaussian_error(name, 40) / gaussian_error(name, 80)
    assert 0.75 * 2**order < ratio < 1.4 * 2**order, ratio


def test_heun_with_a_last_euler_step_is_still_of_order_two():
    o = Interpolant()

    def model(x, t, y):
        t = t.to(x).view(-1, 1, 1, 1, 1)
        return 2 + (0.25 * t - (1 - t)) / (0.25 * t**2 + (1 - t) ** 2) * (x - 2 * t)

    x = draw(0, 0, range(50), (2, 1, 1, 1))[0].double()
    error = [
        (last(ode_iter(model, o, x, None, n, "heun")) - (2 + 0.5 * x)).abs().max().item()
        for n in (20, 40)
    ]
    assert error[0] / error[1] > 3, error


@pytest.mark.parametrize("path,prediction", list(itertools.product(PATHS, PREDICTIONS)))
def test_ode_finds_the_mixture(path, prediction):
    o = Interpolant(path, prediction)
    for solver, steps in (("euler", 150), ("heun", 60), ("midpoint", 60), ("rk4", 40)):
        check_mixture(last(ode_iter(mixture(o), o, crowd(), None, steps, solver)), 0.1)


@pytest.mark.parametrize("path,prediction,form", list(itertools.product(PATHS, PREDICTIONS, FORMS)))
def test_sde_finds_the_mixture(path, prediction, form):
    o = Interpolant(path, prediction)
    check_mixture(last(sde_iter(mixture(o), o, crowd(n=2000), None, 80, form=form)), 0.12)


LASTS, METHODS = ("none", "mean", "euler", "tweedie"), (("euler", 80), ("heun", 40))
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
    model = Counted(mixture(o))
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
    "SBDM with a velocity divides by zero at t = 0, where SiT's code returns NaN; a form may be infinite at either end."
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
    o, bias = Interpolant(), {}

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
    o, seen = Interpolant(path), []

    def model(x, t, y=None):
        seen.append((x, t))
        return torch.tanh(x) - t.view(-1, 1, 1, 1)

    ends = {
        end: last(sde_iter(model, o, crowd(n=40), None, 5, form="sigma", last=end)) for end in LASTS
    }
    x, t = seen[4]
    h, v, sigma = 0.04, model(x, t), o.coefficients(t)[1].item()
    data, noise = o.split(v, x, t)
    torch.testing.assert_close(ends["euler"], x + h * v)
    torch.testing.assert_close(ends["tweedie"], data)
    D = min(sigma, 0.25 * sigma**2 / h)
    torch.testing.assert_close(ends["mean"], x + h * (v - D * noise / sigma))
    torch.testing.assert_close(
        ends["none"], ends["mean"] + (2 * D * h) ** 0.5 * draw(0, 5, [0], (2, 1, 1, 40))[0]
    )
    assert abs(t.item() - 0.96) < 1e-6


def test_ddpm_walks_the_same_mixture_with_every_sampler():
    o = Diffusion()
    for solver in ("euler", "heun", "ancestral", "ddim"):
        check_mixture(
            sample(mixture(o), o, n=1, shape=(2, 1, 1, 3000), steps=100, solver=solver), 0.12
        )


@pytest.mark.parametrize(
    "path,prediction,eta", list(itertools.product(PATHS, ("velocity", "data"), (0.0, 0.6, 1.0)))
)
def test_ddim_finds_the_mixture_on_every_path(path, prediction, eta):
    o = Interpolant(path, prediction)
    check_mixture(last(ddim_iter(mixture(o), o, crowd(), None, 200, shift=3.0, eta=eta)), 0.1)


def test_ddim_without_noise_is_euler_and_one_step_is_the_formula():
    o, x = Interpolant(), crowd(n=200).double()
    torch.testing.assert_close(
        last(ddim_iter(mixture(o), o, x, None, 20)),
        last(ode_iter(mixture(o), o, x, None, 20)),
        rtol=1e-5,
        atol=1e-5,
    )
    (a, x, data), (b, new, _) = itertools.islice(
        ddim_iter(mixture(o), o, crowd(n=50), None, 4, eta=0.8, seed=3), 1, 3
    )
    noise, share = (x - a * data) / (1 - a), 0.64 * (1 - ((1 - b) * a / ((1 - a) * b)) ** 2)
    fresh = draw(3, 2, [0], (2, 1, 1, 50))[0]
    torch.testing.assert_close(
        new,
        b * data + (1 - b) * ((1 - share) ** 0.5 * noise + share**0.5 * fresh),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_sde_adds_noise_and_the_ode_does_not():
    o = Interpolant()
    assert torch.equal(
        last(ode_iter(mixture(o), o, crowd())), last(ode_iter(mixture(o), o, crowd()))
    )
    a, b = (last(sde_iter(mixture(o), o, crowd(), None, 50, seed=s)) for s in (0, 1))
    assert (a - b).abs().mean() > 0.1


# ---------------------------------------------------------------- there and back, and steps of its own choice


@pytest.mark.parametrize(
    "solver,steps,tol",
    [
        ("euler", 400, 0.03),
        ("heun", 60, 0.01),
        ("midpoint", 60, 1e-3),
        ("rk4", 40, 1e-4),
        ("dopri5", 5, 1e-3),
    ],
)
@pytest.mark.parametrize("path", ("linear", "gvp"))
def test_noise_to_data_to_noise(path, solver, steps, tol):
    o, x = Interpolant(path), crowd(n=60).double()
    tight = dict(atol=1e-7, rtol=1e-7) if solver == "dopri5" else {}
    there = last(ode_iter(mixture(o), o, x, None, steps, solver, **tight))
    states = list(ode_iter(mixture(o), o, there, None, steps, solver, reverse=True, **tight))
    assert [t for t, _, _ in states] == sorted((t for t, _, _ in states), reverse=True) and states[
        -1
    ][0] == 0.0
    assert (states[-1][1] - x).abs().max() < tol and (there - x).abs().max() > 0.5


@pytest.mark.parametrize(
    "path,prediction", [("vp", "velocity"), ("vp", "noise"), ("linear", "score"), ("gvp", "data")]
)
def test_there_and_back_where_an_end_is_singular(path, prediction):
    o, x = Interpolant(path, prediction), crowd(n=60).double()
    there = last(ode_iter(mixture(o), o, x, None, 200, "rk4"))
    back = last(ode_iter(mixture(o), o, there, None, 200, "rk4", reverse=True))
    assert (back - x).abs().max() < 0.01


def test_shift_in_reverse_walks_the_same_times():
    seen = []

    def model(x, t, y=None):
        seen.append(t[0].item())
        return 0 * x

    for back in (False, True):
        last(ode_iter(model, Interpolant(), crowd(n=2), None, 6, "euler", 3.0, back))
    forth = [*seen[:6], 1.0]
    assert seen[6:] == pytest.approx(forth[::-1][:6], abs=1e-6)


def test_invert_is_the_way_back_of_sample():
    net, o = Net(), Interpolant()
    data = sample(net, o, Y, steps=30, solver="midpoint", guidance=2.0, seed=3)
    net.calls.clear()
    noise = invert(net, o, data, Y, steps=30, solver="midpoint", guidance=2.0, batch_size=2)
    assert (noise - draw(3, 0, range(5), net.latent_shape)[0]).abs().max() < 1e-3 and all(
        rows == 4 for rows, _ in net.calls[:-60]
    )
    assert len(net.calls) == 3 * 60
    torch.testing.assert_close(
        sample(net, o, Y, steps=30, solver="midpoint", guidance=2.0, noise=noise),
        data,
        atol=1e-3,
        rtol=0,
    )
    for solver, calls in (("euler", 10), ("heun", 20), ("rk4", 40)):
        net.calls.clear()
        invert(net, o, data, Y, steps=10, solver=solver)
        assert [rows for rows, _ in net.calls] == [5] * calls  # no guidance unless asked for


@pytest.mark.parametrize("path,prediction", list(itertools.product(PATHS, PREDICTIONS)))
def test_dopri5_finds_the_mixture_and_never_asks_outside(path, prediction):
    "torchdiffeq by itself steps past the end and interpolates back."
    o, times = Interpolant(path, prediction), []
    exact = mixture(o)

    def model(x, t, y=None):
        times.append(t[0].item())
        return exact(x, t, y)

    check_mixture(last(ode_iter(model, o, crowd(n=2000), None, 4, "dopri5", together=True)), 0.1)
    lo, hi = o.interval
    assert lo - 1e-6 <= min(times) and max(times) <= hi + 1e-6 and len(times) < 400


def test_dopri5_keeps_its_tolerance_and_says_what_it_costs():
    o, x = Interpolant("gvp"), crowd(n=30).double()
    true, cost = last(ode_iter(mixture(o), o, x, None, 300, "rk4")), []
    for tol in (1e-2, 1e-4, 1e-7):
        model = Counted(mixture(o))
        off = (
            (last(ode_iter(model, o, x, None, 3, "dopri5", atol=tol, rtol=tol)) - true).abs().max()
        )
        assert off < 50 * tol, (tol, off)
        cost.append(model.calls)
    assert 8 <= cost[0] < cost[1] < cost[2] < 400, cost


@pytest.mark.parametrize("reverse", (False, True))
def test_dopri5_hands_out_states_at_the_times_of_the_grid(reverse):
    o, x = Interpolant(), crowd(n=20)
    options = dict(solver="dopri5", shift=2.0, reverse=reverse, atol=1e-6, rtol=1e-6)
    states = list(ode_iter(mixture(o), o, x, None, 6, **options))
    fine = list(ode_iter(mixture(o), o, x, None, 600, "rk4", 2.0, reverse))[::100]
    assert [t for t, _, _ in states] == pytest.approx([t for t, _, _ in fine])
    torch.testing.assert_close(states[0][2], fine[0][2])
    for (_, a, guess), (_, b, truth) in zip(states, fine):
        assert (a - b).abs().max() < 1e-3 and (guess - truth).abs().mean() < 0.3


def test_dopri5_together_depends_on_the_company_and_alone_it_does_not():
    o, x = Interpolant(), draw(0, 0, range(6), (2, 1, 1, 1))[0]
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


# ---------------------------------------------------------------- diffusers


def test_euler_is_diffusers_flow_scheduler():
    "Its sigma is 1 − t and its velocity noise − data: the opposite sign."
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    ts = grid(20, shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - t for t in ts[:-1]])
    mix = draw(5, 0, [0], (4, 4))[0][0] / 2

    def model(x, t, y=None):
        return torch.tanh(torch.einsum("oc,bcthw->bothw", mix, x) * (0.5 + t.view(-1, 1, 1, 1, 1)))

    x = draw(0, 0, range(3), (4, 2, 5, 5))[0]
    theirs = x
    for sigma, step in zip(scheduler.sigmas[:-1], scheduler.timesteps):
        theirs = scheduler.step(-model(theirs, (1 - sigma).repeat(3)), step, theirs).prev_sample
    ours = sample(model, Interpolant(), n=3, shape=(4, 2, 5, 5), steps=20, shift=3.0)
    assert (ours - theirs).norm() / theirs.norm() < 1e-5
    assert (
        last(ode_iter(lambda x, t, y: -model(x, t), Interpolant(), x, None, 20)) - theirs
    ).norm() / theirs.norm() > 0.1


# ---------------------------------------------------------------- guidance and calls


class Net(torch.nn.Module):
    "A model with a null id that counts its calls and remembers whether it was in training."

    null_id, latent_shape = 3, (4, 2, 3, 3)

    def __init__(self, channels=4):
        super().__init__()
        self.scale, self.calls, self.channels = torch.nn.Parameter(torch.tensor(0.3)), [], channels

    def forward(self, x, t, y=None):
        self.calls.append((len(x), self.training))
        shift = 0 if y is None else (y.float().view(len(x), -1).mean(1) / 5).view(-1, 1, 1, 1, 1)
        out = torch.sin(self.scale * x + shift + t.view(-1, 1, 1, 1, 1))
        return torch.cat([out, 2 * out], 1)[:, : self.channels]


Y = torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize(
    "solver,calls",
    [("euler", 10), ("heun", 19), ("midpoint", 20), ("rk4", 40), ("sde", 10), ("sde-heun", 19)],
)
def test_calls(solver, calls):
    net, (solver, _, method) = Net(), solver.partition("-")
    options = dict(method=method) if method else {}
    sample(net, Interpolant(), Y, steps=10, solver=solver, **options)
    assert len(net.calls) == calls and {n for n, _ in net.calls} == {10}  # 5 guided, in one batch
    net.calls.clear()
    sample(net, Interpolant(), Y, steps=10, solver=solver, guidance=1.0, **options)
    assert len(net.calls) == calls and {n for n, _ in net.calls} == {5}
    model = Counted(net)
    sample(model, Interpolant(), Y, steps=10, solver=solver, **options)  # the null id goes through
    assert (model.calls, model.rows) == (calls, 10 * calls)


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_calls_of_a_diffusion(solver):
    net = Net()
    sample(net, Diffusion(), Y, steps=10, solver=solver)
    assert [n for n, _ in net.calls] == [10] * 10


def test_guidance_is_the_formula():
    net, x, t = Net(), draw(0, 0, range(5), (4, 2, 3, 3))[0], torch.full((5,), 0.4)
    with_y, free = net(x, t, Y), net(x, t, torch.full_like(Y, 3))
    for g in (0.0, 0.5, 2.0, 7.0):
        torch.testing.assert_close(guide(net, g)(x, t, Y), free + g * (with_y - free))
    slots = torch.stack([Y, Y], 1)
    torch.testing.assert_close(
        guide(net, 2.0)(x, t, slots), 2 * net(x, t, slots) - net(x, t, torch.full_like(slots, 3))
    )
    torch.testing.assert_close(
        guide(net, 2.0, null=torch.tensor([2]))(x, t, Y),
        2 * with_y - net(x, t, torch.full_like(Y, 2)),
    )


def test_guidance_interval_and_channels():
    net, x = Net(8), draw(0, 0, range(5), (4, 2, 3, 3))[0]
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    with_y, free = net(x, t, Y), net(x, t, torch.full_like(Y, 3))
    full = free + 2 * (with_y - free)
    got = guide(net, 2.0)(x, t, Y)
    torch.testing.assert_close(got[:, :4], full[:, :4])
    torch.testing.assert_close(got[:, 4:], with_y[:, 4:])
    three = guide(net, 2.0, channels=3)(x, t, Y)
    torch.testing.assert_close(three[:, :3], full[:, :3])
    torch.testing.assert_close(three[:, 3:], with_y[:, 3:])
    part = guide(net, 2.0, interval=(0.25, 0.75))(x, t, Y)[:, :4]
    torch.testing.assert_close(part[1:4], full[1:4, :4])
    torch.testing.assert_close(part[[0, 4]], with_y[[0, 4], :4])
    net.calls.clear()
    guide(net, 2.0, interval=(0.25, 0.75))(x, torch.full((5,), 0.9), Y)
    assert [n for n, _ in net.calls] == [5]  # outside the interval: no second question


def test_guided_channels_by_name():
    "'dit' is what DiT's forward_with_cfg does: eps, rest = out[:, :3], out[:, 3:]."
    net, x, t = Net(8), draw(0, 0, range(5), (4, 2, 3, 3))[0], torch.full((5,), 0.4)
    out = net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([Y, torch.full_like(Y, 3)]))
    (eps, free), rest = out[:, :3].chunk(2), out[:5, 3:]
    torch.testing.assert_close(
        guide(net, 1.5, channels="dit")(x, t, Y), torch.cat([free + 1.5 * (eps - free), rest], 1)
    )
    assert torch.equal(guide(net, 1.5, channels="all")(x, t, Y), guide(net, 1.5)(x, t, Y))
    assert [guided_channels(c, 4) for c in ("all", None, "dit", 2)] == [
        4,
        4,
        3,
        2,
    ] and guided_channels("dit", 1) == 1
    for wrong in ("three", 0, 5):
        with pytest.raises(ValueError, match=f"guidance_channels must be .*{wrong}"):
            guide(net, 1.5, channels=wrong)(x, t, Y)
    a, b = (
        sample(
            net, Diffusion(variance="learned-range"), Y, steps=4, solver="ddim", guidance_channels=c
        )
        for c in ("dit", "all")
    )
    assert (a - b).abs().max() > 1e-4


def test_guidance_1_5_on_three_channels_is_about_1_375_on_four():
    "Over channels alike in size the strength on all four that comes nearest is the mean of 1.5, 1.5, 1.5 and 1."
    net, x, t = Net(), draw(0, 0, range(64), (4, 2, 3, 3))[0], torch.full((64,), 0.4)
    y = torch.arange(64) % 3
    plain, free = net(x, t, y), net(x, t, torch.full_like(y, 3))
    three, lean = guide(net, 1.5, channels="dit")(x, t, y) - free, plain - free
    assert abs((three * lean).sum() / (lean * lean).sum() - 1.375) < 0.01
    error = {g: (guide(net, g)(x, t, y) - free - three).norm() for g in (1.25, 1.375, 1.5)}
    assert min(error, key=error.get) == 1.375


def test_the_null_id_comes_from_the_config():
    from minisora.dit import DiT, DiTConfig

    net = DiT(
        DiTConfig(
            size=(4, 4),
            channels=2,
            patch=2,
            width=16,
            depth=1,
            heads=2,
            num_classes=7,
            learn_sigma=False,
            time="flow",
        )
    )
    assert net.null_id == 7
    torch.nn.init.normal_(net.final_layer.linear.weight)
    torch.nn.init.normal_(net.final_layer.adaLN_modulation[1].weight)
    x, t, y = draw(0, 0, range(2), (2, 1, 4, 4))[0], torch.full((2,), 0.4), torch.tensor([1, 2])
    seven = torch.full_like(y, 7)
    with torch.no_grad():
        torch.testing.assert_close(
            guide(net, 3.0)(x, t, y), 3 * net(x, t, y) - 2 * net(x, t, seven), atol=1e-4, rtol=1e-4
        )


def test_no_null_or_no_condition_means_no_guidance():
    net = Net()
    net.null_id = None
    sample(net, Interpolant(), Y, steps=3, guidance=4.0)
    assert {n for n, _ in net.calls} == {5}
    net = Net()
    sample(net, Interpolant(), n=2, steps=3, guidance=4.0)
    assert {n for n, _ in net.calls} == {2}


# ---------------------------------------------------------------- one call

FAMILIES = [
    (Interpolant(), "euler", {}),
    (Interpolant("gvp"), "heun", {}),
    (Interpolant(), "midpoint", {}),
    (Interpolant("vp"), "rk4", {}),
    (Interpolant(), "dopri5", {}),
    (Interpolant(), "sde", {}),
    (Interpolant("gvp", "noise"), "sde", dict(method="heun", last="none")),
    (Interpolant("gvp"), "ddim", dict(eta=1.0)),
    (Diffusion(), "ancestral", {}),
    (Diffusion(), "ddim", {}),
    (Diffusion(), "ddim", dict(eta=1.0)),
    (Diffusion(), "euler", {}),
]


@pytest.mark.parametrize("objective,solver,options", FAMILIES)
def test_same_on_any_batch_split_and_order(objective, solver, options):
    net, options = Net(), dict(options, steps=6, solver=solver, seed=4)
    whole = sample(net, objective, Y, **options)
    for size in (1, 2, 5, 99):
        torch.testing.assert_close(
            sample(net, objective, Y, **options, batch_size=size), whole, rtol=1e-6, atol=1e-6
        )
    order = [3, 0, 4]
    torch.testing.assert_close(
        sample(net, objective, Y[order], **options, index=order), whole[order], rtol=1e-6, atol=1e-6
    )
    assert not torch.allclose(sample(net, objective, Y, **{**options, "seed": 5}), whole, atol=1e-2)


def test_states_are_handed_out_and_the_model_goes_back_to_training():
    net = Net().train()
    states = list(sample_iter(net, Interpolant(), Y, steps=4))
    assert [round(t, 6) for t, _, _ in states] == [0.0, 0.25, 0.5, 0.75, 1.0] and net.training
    assert not any(training for _, training in net.calls)
    assert torch.equal(states[0][1], draw(0, 0, range(5), net.latent_shape)[0])
    t, x, data = states[2]
    v = guide(net, 1.5)(x, torch.full((5,), t), Y)
    torch.testing.assert_close(data, x + (1 - t) * v)
    half = sample_iter(net, Interpolant(), Y, steps=4)
    next(half)
    half.close()  # stopped on the way
    assert net.training and torch.is_grad_enabled()


def test_own_noise_and_unconditional():
    net, noise = Net(), draw(9, 0, range(3), (4, 2, 3, 3))[0]
    a = sample(net, Interpolant(), n=3, seed=9, steps=4)
    torch.testing.assert_close(sample(net, Interpolant(), noise=noise, steps=4, batch_size=2), a)
    assert sample(lambda x, t, y: -x, Interpolant(), n=2, shape=(1, 1, 2, 2), steps=2).shape == (
        2,
        1,
        1,
        2,
        2,
    )


def test_sampling_consumes_no_global_randomness():
    before = torch.get_rng_state()
    sample(Net(), Interpolant(), Y, steps=3, solver="sde")
    assert torch.equal(before, torch.get_rng_state())


def test_shape_comes_from_the_config():
    class Config:
        channels, size = 4, (3, 8, 8)

    class Model:
        config = Config()

    assert latent_shape(Model()) == (4, 3, 8, 8)
    Config.size = (8, 6)
    assert latent_shape(Model()) == (4, 1, 8, 6)
    Config.size = 8
    assert latent_shape(Model()) == (4, 1, 8, 8)


@pytest.mark.parametrize(
    "options,word",
    [
        (dict(solver="rk5"), "solver"),
        (dict(steps=0), "steps"),
        (dict(steps=2.5), "steps"),
        (dict(shift=0), "shift"),
        (dict(solver="ancestral"), "Diffusion"),
        (dict(solver="ddim", eta=2), "eta"),
        (dict(batch_size=-1), "batch_size"),
        (dict(index=[1, 2]), "condition"),
        (dict(noise=torch.zeros(2, 4, 2, 3, 3)), "noise"),
        (dict(seed=-1), "seed"),
    ],
)
def test_errors_name_the_argument(options, word):
    with pytest.raises(ValueError, match=word):
        sample(Net(), Interpolant(), Y, **options)


def test_errors_about_shape_and_number():
    with pytest.raises(ValueError, match="shape"):
        sample(lambda x, t, y: x, Interpolant(), n=2)
    with pytest.raises(ValueError, match="how many"):
        sample(Net(), Interpolant())
    with pytest.raises(ValueError, match="form"):
        sample(Net(), Interpolant(), Y, solver="sde", form="round")
    with pytest.raises(ValueError, match="last"):
        sample(Net(), Interpolant(), Y, solver="sde", last="least")
    with pytest.raises(ValueError, match="method"):
        sample(Net(), Interpolant(), Y, solver="sde", method="rk4")
    with pytest.raises(ValueError, match="last_size .*1.5"):
        sample(Net(), Interpolant(), Y, solver="sde", last_size=1.5)
    for steps in (0, -3, 2.5):
        with pytest.raises(ValueError, match=f"steps must .*{steps}"):
            sample(Net(), Interpolant(), Y, solver="sde", steps=steps)


def test_sde_times():
    assert sde_grid(1) == [0.0, 1.0] and sde_grid(5) == pytest.approx(
        [0.0, 0.24, 0.48, 0.72, 0.96, 1.0]
    )
    assert sde_grid(3, 1.0, 1e-3, 0.1) == pytest.approx([0.001, 0.4505, 0.9, 1.0])


def test_the_toy_finds_its_arms():
    points, labels = toy_points(1500)
    net, _ = fit_toy(Interpolant(), points, labels, steps=400)
    x = sample(net, Interpolant(), labels[:150], steps=30, guidance=1.5)
    own = (
        (torch.cdist(x.flatten(1), points.flatten(1)).argmin(1) % 3 == labels[:150]).float().mean()
    )
    assert own > 0.9, own


def test_no_sde_step_overshoots():
    "Data of spread 0.02 and large steps: an uncapped D would throw the points apart by 0.3 and more."
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
