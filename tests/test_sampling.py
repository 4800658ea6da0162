"""Solvers where the answer is known, diffusers' flow scheduler, guidance, and the promise about
batch splits."""

import itertools

import diffusers
import pytest
import torch
from helpers.processes import PATHS, PREDICTIONS, Net, check_mixture, crowd, last, mixture

from minisora.core.noise import indexed_noise
from minisora.core.protocols import model_latent_shape
from minisora.diffusion import GaussianDiffusion
from minisora.interpolants import Interpolant, path_coefficients
from minisora.sampling import (
    CallCounter,
    _guided_channels,
    cfg_model,
    ddim_iter,
    get_solver,
    invert_ode,
    ode_iter,
    renoise_average,
    sample,
    sample_iter,
    time_grid,
)


# ---------------------------------------------------------------- known answers


def gaussian_error(name, steps):
    """Error at the end on the GVP path with N(2, 0.5²) data, whose flow keeps each point's
    number of deviations."""

    def v(x, t):
        a, s, da, ds = (
            float(c) for c in path_coefficients("gvp", torch.tensor([t], dtype=torch.float64))
        )
        return 2 * da + (0.25 * a * da + s * ds) / (0.25 * a**2 + s**2) * (x - 2 * a)

    x0 = indexed_noise(0, 0, range(50), (1,))[0].double()
    x = x0
    ts = time_grid(steps)
    for a, b in zip(ts[:-1], ts[1:]):
        x = get_solver(name)(v, x, a, b)
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

    x = indexed_noise(0, 0, range(50), (2, 1, 1, 1))[0].double()
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


def test_ddpm_walks_the_same_mixture_with_every_sampler():
    o = GaussianDiffusion()
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
    o = Interpolant()
    x = crowd(n=200).double()
    torch.testing.assert_close(
        last(ddim_iter(mixture(o), o, x, None, 20)),
        last(ode_iter(mixture(o), o, x, None, 20)),
        rtol=1e-5,
        atol=1e-5,
    )
    (a, x, data), (b, new, _) = itertools.islice(
        ddim_iter(mixture(o), o, crowd(n=50), None, 4, eta=0.8, seed=3), 1, 3
    )
    noise = (x - a * data) / (1 - a)
    share = 0.64 * (1 - ((1 - b) * a / ((1 - a) * b)) ** 2)
    fresh = indexed_noise(3, 2, [0], (2, 1, 1, 50))[0]
    torch.testing.assert_close(
        new,
        b * data + (1 - b) * ((1 - share) ** 0.5 * noise + share**0.5 * fresh),
        rtol=1e-4,
        atol=1e-5,
    )


# ---------------------------------------------------------------- there and back


Y = torch.tensor([0, 1, 2, 0, 1])


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
    o = Interpolant(path)
    x = crowd(n=60).double()
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
    o = Interpolant(path, prediction)
    x = crowd(n=60).double()
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
    net = Net()
    o = Interpolant()
    data = sample(net, o, Y, steps=30, solver="midpoint", guidance=2.0, seed=3)
    net.calls.clear()
    noise = invert_ode(net, o, data, Y, steps=30, solver="midpoint", guidance=2.0, batch_size=2)
    assert (noise - indexed_noise(3, 0, range(5), net.latent_shape)[0]).abs().max() < 1e-3 and all(
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
        invert_ode(net, o, data, Y, steps=10, solver=solver)
        assert [rows for rows, _ in net.calls] == [5] * calls  # no guidance unless asked for


# ---------------------------------------------------------------- diffusers


def test_euler_is_diffusers_flow_scheduler():
    "Its sigma is 1 − t and its velocity noise − data: the opposite sign."
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    ts = time_grid(20, shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - t for t in ts[:-1]])
    mix = indexed_noise(5, 0, [0], (4, 4))[0][0] / 2

    def model(x, t, y=None):
        return torch.tanh(torch.einsum("oc,bcthw->bothw", mix, x) * (0.5 + t.view(-1, 1, 1, 1, 1)))

    x = indexed_noise(0, 0, range(3), (4, 2, 5, 5))[0]
    theirs = x
    for sigma, step in zip(scheduler.sigmas[:-1], scheduler.timesteps):
        theirs = scheduler.step(-model(theirs, (1 - sigma).repeat(3)), step, theirs).prev_sample
    ours = sample(model, Interpolant(), n=3, shape=(4, 2, 5, 5), steps=20, shift=3.0)
    assert (ours - theirs).norm() / theirs.norm() < 1e-5
    assert (
        last(ode_iter(lambda x, t, y: -model(x, t), Interpolant(), x, None, 20)) - theirs
    ).norm() / theirs.norm() > 0.1


# ---------------------------------------------------------------- guidance and calls


@pytest.mark.parametrize(
    "solver,calls",
    [("euler", 10), ("heun", 19), ("midpoint", 20), ("rk4", 40), ("sde", 10), ("sde-heun", 19)],
)
def test_calls(solver, calls):
    net = Net()
    solver, _, method = solver.partition("-")
    options = dict(method=method) if method else {}
    sample(net, Interpolant(), Y, steps=10, solver=solver, **options)
    assert len(net.calls) == calls and {n for n, _ in net.calls} == {10}  # 5 guided, in one batch
    net.calls.clear()
    sample(net, Interpolant(), Y, steps=10, solver=solver, guidance=1.0, **options)
    assert len(net.calls) == calls and {n for n, _ in net.calls} == {5}
    model = CallCounter(net)
    sample(model, Interpolant(), Y, steps=10, solver=solver, **options)  # the null id goes through
    assert (model.calls, model.rows) == (calls, 10 * calls)


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_calls_of_a_diffusion(solver):
    net = Net()
    sample(net, GaussianDiffusion(), Y, steps=10, solver=solver)
    assert [n for n, _ in net.calls] == [10] * 10


def test_guidance_is_the_formula():
    net = Net()
    x = indexed_noise(0, 0, range(5), (4, 2, 3, 3))[0]
    t = torch.full((5,), 0.4)
    with_y = net(x, t, Y)
    free = net(x, t, torch.full_like(Y, 3))
    for g in (0.0, 0.5, 2.0, 7.0):
        torch.testing.assert_close(cfg_model(net, g)(x, t, Y), free + g * (with_y - free))
    slots = torch.stack([Y, Y], 1)
    torch.testing.assert_close(
        cfg_model(net, 2.0)(x, t, slots),
        2 * net(x, t, slots) - net(x, t, torch.full_like(slots, 3)),
    )
    torch.testing.assert_close(
        cfg_model(net, 2.0, null=torch.tensor([2]))(x, t, Y),
        2 * with_y - net(x, t, torch.full_like(Y, 2)),
    )


def test_guidance_interval_and_channels():
    net = Net(8)
    x = indexed_noise(0, 0, range(5), (4, 2, 3, 3))[0]
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    with_y = net(x, t, Y)
    free = net(x, t, torch.full_like(Y, 3))
    full = free + 2 * (with_y - free)
    got = cfg_model(net, 2.0)(x, t, Y)
    torch.testing.assert_close(got[:, :4], full[:, :4])
    torch.testing.assert_close(got[:, 4:], with_y[:, 4:])
    three = cfg_model(net, 2.0, channels=3)(x, t, Y)
    torch.testing.assert_close(three[:, :3], full[:, :3])
    torch.testing.assert_close(three[:, 3:], with_y[:, 3:])
    part = cfg_model(net, 2.0, interval=(0.25, 0.75))(x, t, Y)[:, :4]
    torch.testing.assert_close(part[1:4], full[1:4, :4])
    torch.testing.assert_close(part[[0, 4]], with_y[[0, 4], :4])
    net.calls.clear()
    cfg_model(net, 2.0, interval=(0.25, 0.75))(x, torch.full((5,), 0.9), Y)
    assert [n for n, _ in net.calls] == [5]  # outside the interval: no second question


def test_guided_channels_by_name():
    "'dit' is what DiT's forward_with_cfg does: eps, rest = out[:, :3], out[:, 3:]."
    net = Net(8)
    x = indexed_noise(0, 0, range(5), (4, 2, 3, 3))[0]
    t = torch.full((5,), 0.4)
    out = net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([Y, torch.full_like(Y, 3)]))
    eps, free = out[:, :3].chunk(2)
    rest = out[:5, 3:]
    torch.testing.assert_close(
        cfg_model(net, 1.5, channels="dit")(x, t, Y),
        torch.cat([free + 1.5 * (eps - free), rest], 1),
    )
    assert torch.equal(cfg_model(net, 1.5, channels="all")(x, t, Y), cfg_model(net, 1.5)(x, t, Y))
    assert [_guided_channels(c, 4) for c in ("all", None, "dit", 2)] == [
        4,
        4,
        3,
        2,
    ] and _guided_channels("dit", 1) == 1
    for wrong in ("three", 0, 5):
        with pytest.raises(ValueError, match=f"guidance_channels must be .*{wrong}"):
            cfg_model(net, 1.5, channels=wrong)(x, t, Y)
    a, b = (
        sample(
            net,
            GaussianDiffusion(variance="learned-range"),
            Y,
            steps=4,
            solver="ddim",
            guidance_channels=c,
        )
        for c in ("dit", "all")
    )
    assert (a - b).abs().max() > 1e-4


def test_guidance_1_5_on_three_channels_is_about_1_375_on_four():
    """Over channels alike in size the strength on all four that comes nearest is the mean of
    1.5, 1.5, 1.5 and 1."""
    net = Net()
    x = indexed_noise(0, 0, range(64), (4, 2, 3, 3))[0]
    t = torch.full((64,), 0.4)
    y = torch.arange(64) % 3
    plain = net(x, t, y)
    free = net(x, t, torch.full_like(y, 3))
    three = cfg_model(net, 1.5, channels="dit")(x, t, y) - free
    lean = plain - free
    assert abs((three * lean).sum() / (lean * lean).sum() - 1.375) < 0.01
    error = {g: (cfg_model(net, g)(x, t, y) - free - three).norm() for g in (1.25, 1.375, 1.5)}
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
            time_convention="flow",
        )
    )
    assert net.null_id == 7
    torch.nn.init.normal_(net.final_layer.linear.weight)
    torch.nn.init.normal_(net.final_layer.adaLN_modulation[1].weight)
    x = indexed_noise(0, 0, range(2), (2, 1, 4, 4))[0]
    t = torch.full((2,), 0.4)
    y = torch.tensor([1, 2])
    seven = torch.full_like(y, 7)
    with torch.no_grad():
        torch.testing.assert_close(
            cfg_model(net, 3.0)(x, t, y),
            3 * net(x, t, y) - 2 * net(x, t, seven),
            atol=1e-4,
            rtol=1e-4,
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
    (GaussianDiffusion(), "ancestral", {}),
    (GaussianDiffusion(), "ddim", {}),
    (GaussianDiffusion(), "ddim", dict(eta=1.0)),
    (GaussianDiffusion(), "euler", {}),
]


@pytest.mark.parametrize("objective,solver,options", FAMILIES)
def test_same_on_any_batch_split_and_order(objective, solver, options):
    net = Net()
    options = dict(options, steps=6, solver=solver, seed=4)
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
    assert torch.equal(states[0][1], indexed_noise(0, 0, range(5), net.latent_shape)[0])
    t, x, data = states[2]
    v = cfg_model(net, 1.5)(x, torch.full((5,), t), Y)
    torch.testing.assert_close(data, x + (1 - t) * v)
    half = sample_iter(net, Interpolant(), Y, steps=4)
    next(half)
    half.close()  # stopped on the way
    assert net.training and torch.is_grad_enabled()


def test_own_noise_and_unconditional():
    net = Net()
    noise = indexed_noise(9, 0, range(3), (4, 2, 3, 3))[0]
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
        channels = 4
        size = (3, 8, 8)

    class Model:
        config = Config()

    assert model_latent_shape(Model()) == (4, 3, 8, 8)
    Config.size = (8, 6)
    assert model_latent_shape(Model()) == (4, 1, 8, 6)
    Config.size = 8
    assert model_latent_shape(Model()) == (4, 1, 8, 8)


@pytest.mark.parametrize(
    "options,word",
    [
        (dict(solver="rk5"), "solver"),
        (dict(steps=0), "steps"),
        (dict(steps=2.5), "steps"),
        (dict(shift=0), "shift"),
        (dict(solver="ancestral"), "GaussianDiffusion"),
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


def test_settled_samples_are_the_mean_of_fresh_predictions():
    o = Interpolant(prediction="data")
    x = torch.randn(6, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def echo(x, t, y=None):
        return x + (0 if y is None else y.view(-1, 1, 1, 1, 1))

    many = renoise_average(echo, o, x, times=400)  # mean of t x + (1 - t) noise
    torch.testing.assert_close(many, x / 2, atol=0.12, rtol=0)
    y = torch.arange(6.0)
    whole = renoise_average(echo, o, x, y, times=3, seed=4)
    assert torch.equal(whole, renoise_average(echo, o, x, y, times=3, seed=4, batch_size=4))
    assert torch.equal(
        whole[2:4], renoise_average(echo, o, x[2:4], y[2:4], times=3, seed=4, index=[2, 3])
    )
    assert not torch.equal(whole, renoise_average(echo, o, x, y, times=3, seed=5))
