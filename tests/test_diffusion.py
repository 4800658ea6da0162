"""DDPM against diffusers, the bound against torch.distributions, and what every objective promises."""

import diffusers
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from minisora.diffusion import (
    Diffusion,
    ToyNet,
    ancestral_step,
    betas,
    bound,
    ddim_step,
    discretised_nll,
    draw,
    fit_toy,
    full_bound,
    posterior,
    predicted,
    respace,
    reverse,
    toy_points,
    zero_terminal_snr,
)
from minisora.interpolants import Interpolant

SHAPE = (4, 2, 6, 6)
LINEAR = dict(beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="linspace")


def close(a, b, tol=1e-5):
    "Relative error of the whole tensor."
    error = ((a - b).norm() / b.norm()).item()
    assert error <= tol, f"relative error {error:.2e}"


def normal(seed, n=3, shape=SHAPE):
    return draw(seed, 0, range(n), shape)[0]


def ab(o, t):
    "alpha and sigma at t (B,), each (B, 1, 1, 1, 1), float32."
    return (c.float().view(-1, 1, 1, 1, 1) for c in o.coefficients(t)[:2])


def linear_model(channels=4, out=4):
    "A fixed 'network' that depends on x, t and y, with `out` channels."
    mix = draw(99, 0, [0], (out, channels))[0][0] / channels

    def model(x, t, y=None):
        h = torch.einsum("oc,bcthw->bothw", mix.to(x), x) * (1.5 - t.to(x).view(-1, 1, 1, 1, 1))
        return torch.tanh(h + (0 if y is None else 0.1 * y.view(-1, 1, 1, 1, 1)))

    return model


# ---------------------------------------------------------------- randomness


def test_draw_does_not_depend_on_batch_or_order():
    whole, u = draw(3, 5, range(6), SHAPE)
    for index in ([4, 1], [0], [5, 4, 3, 2, 1, 0]):
        part, v = draw(3, 5, torch.tensor(index), SHAPE)
        assert torch.equal(part, whole[index]) and torch.equal(v, u[index])


def test_draw_differs_in_each_argument_and_beyond_32_bits():
    a = draw(1, 2, [3], (8,))[0]
    for args in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (1 + 2**32, 2, 3), (1, 2, 3 + 2**32)):
        assert not torch.equal(a, draw(args[0], args[1], [args[2]], (8,))[0]), args


def test_draw_leaves_the_global_generators_alone():
    before, state = torch.get_rng_state(), __import__("numpy").random.get_state()[1].copy()
    draw(0, 0, range(4), SHAPE)
    points, labels = toy_points(64)
    fit_toy(Diffusion(), points, labels, steps=2, batch=8)
    assert torch.equal(before, torch.get_rng_state())
    assert (state == __import__("numpy").random.get_state()[1]).all()


def test_draw_is_normal_and_uniform():
    x, u = draw(0, 0, range(2000), (16,))
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02 and abs((x**4).mean() - 3) < 0.15
    assert 0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.02
    assert abs(torch.corrcoef(u.T)[0, 1]) < 0.05 and abs(torch.corrcoef(x.T)[0, 1]) < 0.08


def test_draw_refuses_negative_numbers():
    with pytest.raises(ValueError, match="seed"):
        draw(-1, 0, [0], (2,))


# ---------------------------------------------------------------- schedules against diffusers


@pytest.mark.parametrize(
    "ours,theirs",
    [
        (Diffusion(), dict(LINEAR)),
        (
            Diffusion(schedule="cosine", prediction="v"),
            dict(beta_schedule="squaredcos_cap_v2", clip_sample=False),
        ),
        (Diffusion(zero_snr=True, prediction="v"), dict(LINEAR, rescale_betas_zero_snr=True)),
    ],
)
def test_forward_process_is_diffusers(ours, theirs):
    scheduler = diffusers.DDPMScheduler(1000, **theirs)
    data, noise, k = normal(1, 5), normal(2, 5), torch.tensor([0, 10, 400, 700, 998])
    t = ours.chain.time(k)
    close(ours.mix(data, noise, t), scheduler.add_noise(data, noise, k), 3e-5)
    a, s = (c.float().view(-1, 1, 1, 1, 1) for c in ours.coefficients(t)[:2])
    close(a * noise - s * data, scheduler.get_velocity(data, noise, k), 3e-5)


def test_cosine_betas_are_capped():
    b = betas("cosine")
    assert b[-1] == 0.999 and (b[:-1] < 0.999).all() and (1 - b).prod() > 0


def test_zero_terminal_snr_has_no_signal_at_the_end():
    assert (1 - zero_terminal_snr(betas())).cumprod(0)[-1] == 0
    assert (1 - betas()).cumprod(0)[-1] > 1e-5


@pytest.mark.parametrize(
    "steps,first,last", [(1000, 1e-4, 0.02), (100, 1e-3, 0.2), (4000, 2.5e-5, 0.005)]
)
def test_linear_betas_stretch_with_the_number_of_steps(steps, first, last):
    b = betas("linear", steps)
    assert len(b) == steps and b[0] == pytest.approx(first) and b[-1] == pytest.approx(last)
    assert b.diff().std() < 1e-12


def summed(steps, count):
    "How the original spreads its steps: a running sum, rounded."
    at, out = 0.0, []
    for _ in range(count):
        out.append(round(at))
        at += (steps - 1) / (count - 1)
    return out


@pytest.mark.parametrize("count", [2, 7, 21, 23, 50, 250, 499, 1000])
def test_respace_is_the_originals(count):
    got = respace(1000, count)
    assert got == summed(1000, count) and len(set(got)) == count and got[0] == 0 and got[-1] == 999


def test_a_single_step_is_the_noisiest():
    assert respace(1000, 1) == [999]


def test_respace_by_sections():
    got = respace(302, [10, 15, 20])  # 302 = 101 + 101 + 100
    assert got == summed(101, 10) + [101 + k for k in summed(101, 15)] + [
        202 + k for k in summed(100, 20)
    ]
    assert Diffusion(300).sample(lambda x, t, y: 0 * x, normal(1), steps=[2, 3]).shape == (
        3,
        *SHAPE,
    )


@pytest.mark.parametrize("count", [1, 10, 33, 50, 250])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_spacings_are_those_of_diffusers(count, spacing):
    scheduler = diffusers.DDPMScheduler(1000, timestep_spacing=spacing)
    scheduler.set_timesteps(count)
    assert respace(1000, count, spacing) == scheduler.timesteps.tolist()[::-1]


@pytest.mark.parametrize("count", [0, 1001, 2.5, -3])
def test_respace_names_a_wrong_count(count):
    with pytest.raises(ValueError, match=f"steps must be .*{count}"):
        respace(1000, count)


def test_respace_names_a_wrong_spacing():
    with pytest.raises(ValueError, match="spacing must be .*'even'"):
        respace(1000, 10, "even")


def test_clock_there_and_back():
    chain, k = Diffusion().chain, torch.arange(1000)
    assert torch.equal(chain.index(chain.time(k)), k)
    assert chain.time(torch.tensor([0])) == 1 and Diffusion().times(
        torch.tensor([0.0, 0.99999999])
    ).tolist() == [1.0, chain.time(k)[-1].item()]
    assert torch.equal(torch.round(1000 * (1 - chain.time(k))).long(), k)  # what a DiT embeds


def test_derivatives_are_derivatives():
    o, h = Diffusion(), 2e-4
    t = (
        1 - (torch.tensor([900.0, 500.0, 100.0, 20.0], dtype=torch.float64) + 0.5) / 1000
    )  # halfway between two steps
    a, s, da, ds = o.coefficients(t)
    up, down = o.coefficients(t + h), o.coefficients(t - h)
    torch.testing.assert_close((up[0] - down[0]) / (2 * h), da, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((up[1] - down[1]) / (2 * h), ds, rtol=1e-2, atol=1e-4)


# ---------------------------------------------------------------- sampling against diffusers


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large", "learned-range"])
@pytest.mark.parametrize("prediction", ["noise", "data", "v"])
def test_ancestral_sampling_is_diffusers(variance, prediction, monkeypatch):
    kinds = {"noise": "epsilon", "data": "sample", "v": "v_prediction"}
    scheduler = diffusers.DDPMScheduler(
        1000, **LINEAR, variance_type=variance.replace("-", "_"), prediction_type=kinds[prediction]
    )
    scheduler.alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(
        0
    )  # theirs: float32
    scheduler.set_timesteps(12)
    model, x = linear_model(out=8 if variance == "learned-range" else 4), normal(3)
    fresh = iter([draw(7, i, range(3), SHAPE)[0] for i in range(12, 0, -1)])
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: next(fresh)
    )
    theirs = x
    for k in scheduler.timesteps:
        out = model(theirs, Diffusion().chain.time(k.repeat(3)))
        theirs = scheduler.step(out, k, theirs).prev_sample
    ours = Diffusion(variance=variance, prediction=prediction).sample(model, x, steps=12, seed=7)
    close(ours, theirs)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_steps_are_diffusers(eta):
    scheduler = diffusers.DDIMScheduler(
        1000, **{**LINEAR, "timestep_spacing": "trailing"}, set_alpha_to_one=True
    )
    scheduler.set_timesteps(10)
    o, model, x = Diffusion(), linear_model(), normal(3)
    for i, k in enumerate(scheduler.timesteps):
        kk, fresh = k.repeat(3), normal(20 + i)
        out = model(x, o.chain.time(kk))
        ours, _ = ddim_step(o, (out, None), x, kk, kk - 100, fresh, eta)
        close(
            ours,
            scheduler.step(out, k, x, eta=eta, variance_noise=fresh if eta else None).prev_sample,
        )
        x = ours


@pytest.mark.parametrize(
    "options,theirs",
    [
        (dict(), dict(**{**LINEAR, "timestep_spacing": "leading"})),
        (
            dict(schedule="cosine", prediction="data"),
            dict(
                beta_schedule="squaredcos_cap_v2",
                clip_sample=False,
                timestep_spacing="leading",
                prediction_type="sample",
            ),
        ),
        (
            dict(zero_snr=True, prediction="v"),
            dict(
                **{**LINEAR, "timestep_spacing": "trailing"},
                prediction_type="v_prediction",
                rescale_betas_zero_snr=True,
            ),
        ),
    ],
)
def test_ddim_loops_are_diffusers(options, theirs):
    scheduler, o = (
        diffusers.DDIMScheduler(1000, set_alpha_to_one=True, **theirs),
        Diffusion(**options),
    )
    error = (scheduler.alphas_cumprod - o.chain.bar[:-1]).abs().max()
    assert error < 1e-6, error  # theirs are float32; with ours in their place
    scheduler.alphas_cumprod = o.chain.bar[:-1]
    scheduler.set_timesteps(20)
    model, x = linear_model(), normal(3)
    want = x
    for k in scheduler.timesteps:
        want = scheduler.step(model(want, o.chain.time(k.repeat(3))), k, want).prev_sample
    close(o.sample(model, x, steps=20, solver="ddim", spacing=theirs["timestep_spacing"]), want)


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_clipped_guesses_are_diffusers(solver, monkeypatch):
    kind = diffusers.DDPMScheduler if solver == "ancestral" else diffusers.DDIMScheduler
    o, model, x, k = (
        Diffusion(variance="fixed-small"),
        linear_model(),
        normal(3),
        torch.tensor([800] * 3),
    )
    scheduler = kind(1000, **{**LINEAR, "clip_sample": True, "timestep_spacing": "leading"})
    scheduler.alphas_cumprod = o.chain.bar[:-1]
    scheduler.set_timesteps(10)
    out = 3 * model(x, o.chain.time(k))
    assert predicted(o, out, x, k)[0].abs().max() > 1.5
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: normal(5)
    )
    more = dict() if solver == "ancestral" else dict(use_clipped_model_output=True)
    step = ancestral_step if solver == "ancestral" else ddim_step
    ours, data = step(o, (out, None), x, k, k - 100, normal(5), eta=0.0, clip=1.0)
    close(ours, scheduler.step(out, torch.tensor(800), x, **more).prev_sample)
    assert data.abs().max() == 1


def test_clip_reaches_every_step():
    states = list(Diffusion().sample_iter(linear_model(), 3 * normal(3), steps=6, clip=0.5))
    assert (
        all(data.abs().max() <= 0.5 for _, _, data in states) and states[-1][1].abs().max() <= 0.5
    )


def test_ddim_with_the_true_noise_stays_on_the_path_both_ways():
    o, data, noise, k = Diffusion(), normal(1), normal(2), torch.tensor([300] * 3)
    x = o.mix(data, noise, o.chain.time(k))
    for to in (100, 299, 301, 900):  # back to the data and on to the noise
        close(
            ddim_step(o, (noise, None), x, k, k * 0 + to, 0 * x)[0],
            o.mix(data, noise, o.chain.time(k * 0 + to)),
        )
    close(ddim_step(o, (noise, None), x, k, k * 0 - 1, 0 * x)[0], data)


def test_sampling_calls_the_model_once_a_step_and_not_outside_its_clock():
    seen = []

    def model(x, t, y):
        seen.append(t)
        return x * 0.1

    states = list(Diffusion().sample_iter(model, normal(1), steps=9))
    assert len(seen) == 9 and len(states) == 10
    assert all(
        (1000 * (1 - t)).round().frac().eq(0).all() and t.min() > 0 and t.max() <= 1 for t in seen
    )
    assert seen[0][0] < seen[-1][0] and states[-1][0] == 1.0


def test_batch_split_gives_the_same_samples():
    o, model, x = Diffusion(), linear_model(), normal(4, 6)
    y = torch.arange(6.0)
    whole = o.sample(model, x, y, steps=8, seed=2)
    parts = [
        o.sample(model, x[i], y[i], steps=8, seed=2, index=i.tolist())
        for i in (torch.tensor([4, 0, 2]), torch.tensor([1, 3, 5]))
    ]
    close(torch.cat(parts)[torch.tensor([1, 3, 2, 4, 0, 5])], whole, 1e-6)


def test_a_gaussian_comes_back():
    "With the exact noise prediction for N(0.5, 0.3²) data, both samplers must give that mean and deviation."
    o = Diffusion()

    def exact(x, t, y):
        a, s = (c.float().view(-1, 1, 1, 1, 1) for c in o.coefficients(t)[:2])
        return s * (x - a * 0.5) / (a**2 * 0.09 + s**2)

    x = normal(1, 2, (4, 4, 16, 16))
    for options in (
        dict(solver="ancestral", steps=200),
        dict(solver="ddim", steps=250),
        dict(solver="ddim", eta=1.0, steps=200),
    ):
        out = o.sample(exact, x, **options)
        tol = (
            0.02 if "steps" in options and options["steps"] == 200 else 0.01
        )  # the small variance is a bit small
        assert abs(out.mean() - 0.5) < 0.01 and abs(out.std() - 0.3) < tol, (
            options,
            out.mean(),
            out.std(),
        )


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("prediction", ["noise", "data", "v"])
def test_loss_of_the_right_answer_is_zero_and_the_split_finds_it(prediction):
    o = Diffusion(prediction=prediction)
    data, noise, t = normal(1, 5), normal(2, 5), o.chain.time(torch.tensor([5, 100, 300, 600, 900]))
    a, s = (c.float().view(-1, 1, 1, 1, 1) for c in o.coefficients(t)[:2])
    said = {"noise": noise, "data": data, "v": a * noise - s * data}[prediction]
    assert o.loss(lambda *_: said, data, None, noise, t)["loss"].max() == 0
    for got, want in zip(o.split(said, o.mix(data, noise, t), t), (data, noise)):
        close(got, want, 2e-4)


def test_min_snr_is_one_loss_in_three_languages():
    "Weighted errors must be equal up to gamma's cut: data error · min(snr, γ) = noise error · min(snr, γ)/snr."
    data, noise, t = (
        normal(1, 4),
        normal(2, 4),
        Diffusion().chain.time(torch.tensor([10, 100, 300, 800])),
    )
    wrong = data + 0.1 * normal(3, 4)
    got = []
    for prediction in ("noise", "data", "v"):
        o = Diffusion(prediction=prediction, weight="min-snr")
        a, s = (c.float().view(-1, 1, 1, 1, 1) for c in o.coefficients(t)[:2])
        x = o.mix(data, noise, t)
        guess = (x - a * wrong) / s
        said = {"noise": guess, "data": wrong, "v": a * guess - s * wrong}[prediction]
        got.append(o.loss(lambda *_: said, data, None, noise, t)["loss"])  # noqa: B023
    close(got[0], got[1], 1e-3)
    close(got[2], got[1], 1e-3)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_cuts_at_gamma(gamma):
    k = torch.tensor([0, 50, 150, 300, 600, 999])
    snr = (lambda bar: bar / (1 - bar))((1 - betas()).cumprod(0)[k])
    want = dict(
        noise=snr.clamp(max=gamma) / snr,
        data=snr.clamp(max=gamma),
        v=snr.clamp(max=gamma) / (1 + snr),
    )
    assert (snr > gamma).any() and (snr < gamma).any()
    for prediction, w in want.items():
        o = Diffusion(prediction=prediction, weight="min-snr", gamma=gamma)
        close(o.weights(o.chain.time(k)).double(), w, 1e-6)
        assert Diffusion(prediction=prediction).weights(o.chain.time(k)).eq(1).all()


def test_bound_is_the_kl_of_torch():
    o, model = Diffusion(variance="learned-range"), linear_model(out=8)
    data, noise, k = normal(1), normal(2), torch.tensor([3, 200, 900])
    t = o.chain.time(k)
    x = o.mix(data, noise, t)
    mean, logvar, _ = reverse(o, o.outputs(model, x, t), x, k, k - 1)
    true, var, _ = posterior(data, x, o.chain.bar[k], o.chain.bar[k - 1])
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
    "At k = 0: minus the log of a normal's mass in the pixel's bin; both fixed variances are that of step 1."
    o, data = Diffusion(variance=variance), normal(1).clamp(-1, 1)
    k = torch.zeros(3, dtype=torch.long)
    x = o.mix(data, normal(2), o.chain.time(k))
    out = (
        normal(2) + 0.5 * normal(4),
        normal(3).clamp(-1, 1) if variance == "learned-range" else None,
    )
    mean = predicted(o, out[0], x, k)[0].double()
    small, large = o.chain.beta[1] * (1 - o.chain.bar[0]) / (1 - o.chain.bar[1]), o.chain.beta[0]
    share = (out[1].double() + 1) / 2 if out[1] is not None else 0.0
    p = Normal(mean, (0.5 * (share * large.log() + (1 - share) * small.log())).exp() + 0 * mean)
    d = data.double()
    mass = torch.where(d > 0.999, 1.0, p.cdf(d + 1 / 255)) - torch.where(
        d < -0.999, 0.0, p.cdf(d - 1 / 255)
    )
    want = -mass.clamp(min=1e-12).log().flatten(1).mean(1) / torch.log(torch.tensor(2.0))
    assert (d > 0.999).any() and (d < -0.999).any()
    close(
        bound(o, out, data, x, o.chain.time(k)).double(), want, 5e-3
    )  # a tanh stands for their error function


def test_bits_per_dimension_of_the_true_noise():
    "A model that knows the noise pays for nothing but the prior and the last bin."
    o, data, seen = Diffusion(50), normal(1, 2).clamp(-1, 1), []

    def oracle(x, t, y):
        seen.append(int(o.chain.index(t[:1])))
        return draw(4, seen[-1], [7, 3], SHAPE)[0]

    got = full_bound(o, oracle, data, seed=4, index=[7, 3])
    last = (1 - betas("linear", 50)).prod()
    prior = kl_divergence(
        Normal(last.sqrt() * data.double(), (1 - last).sqrt()), Normal(torch.zeros(1).double(), 1.0)
    )
    close(got["prior"].double(), prior.flatten(1).mean(1) / torch.log(torch.tensor(2.0)))
    assert got["terms"].shape == (2, 50) and sorted(seen) == list(range(50))
    assert got["terms"][:, 1:].abs().max() < 1e-4 and got["terms"][:, 0].min() > 0.1
    close(got["total"], got["terms"].sum(1) + got["prior"], 1e-6)


def test_the_whole_bound_trains_everything():
    out = normal(5, 2, (8, 1, 2, 2)).requires_grad_()
    data, noise = normal(1, 2, (4, 1, 2, 2)), normal(2, 2, (4, 1, 2, 2))
    t = Diffusion().chain.time(torch.tensor([300, 5]))
    got = Diffusion(variance="learned-range", weight="vlb").loss(
        lambda *_: out, data, None, noise, t
    )
    close(
        got["loss"],
        1000
        * Diffusion(variance="learned-range").loss(lambda *_: out, data, None, noise, t)["vlb"],
        1e-6,
    )
    got["loss"].sum().backward()
    assert out.grad[:, :4].abs().min() > 0 and out.grad[:, 4:].abs().min() > 0
    fixed = Diffusion(weight="vlb").loss(lambda *_: out[:, :4], data, None, noise, t)
    error = 1 - betas().double()  # equation 12 of Ho et al.
    k, bar = torch.tensor([300, 5]), error.cumprod(0)
    beta, tilde = betas()[k], betas()[k] * (1 - bar[k - 1]) / (1 - bar[k])
    weight = beta**2 / (2 * tilde * (1 - beta) * (1 - bar[k])) / torch.log(torch.tensor(2.0))
    close(fixed["vlb"].double(), weight * fixed["mse"], 1e-3)


def test_vlb_weight_is_its_factor():
    data, noise, t, model = normal(1), normal(2), torch.tensor([0.1, 0.5, 0.9]), linear_model(out=8)
    for w in (1.0, 0.25):
        got = Diffusion(variance="learned-range", vlb_weight=w).loss(model, data, None, noise, t)
        close(got["loss"] - got["mse"], w * got["vlb"], 1e-4)


def test_learned_variance_lies_between_its_ends():
    data, k = normal(1), torch.tensor([5, 200, 900])
    logs = {}
    for variance, value in (
        ("fixed-small", None),
        ("fixed-large", None),
        ("learned-range", -1.0),
        ("learned-range", 1.0),
        ("learned-range", 0.0),
    ):
        o = Diffusion(variance=variance)
        extra = None if value is None else torch.full_like(data, value)
        logs[variance, value] = reverse(o, (data, extra), data, k, k - 1)[1]
    close(logs["learned-range", -1.0], logs["fixed-small", None])
    close(logs["learned-range", 1.0], logs["fixed-large", None])
    close(logs["learned-range", 0.0], (logs["fixed-small", None] + logs["fixed-large", None]) / 2)


def test_vlb_trains_only_the_variance():
    out = torch.randn(2, 8, 1, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    data, noise = normal(1, 2, (4, 1, 2, 2)), normal(2, 2, (4, 1, 2, 2))
    o = Diffusion(variance="learned-range")
    o.loss(lambda *_: out, data, None, noise, o.chain.time(torch.tensor([300, 0])))[
        "vlb"
    ].sum().backward()
    assert out.grad[:, :4].abs().max() == 0 and out.grad[:, 4:].abs().max() > 0


def test_discretised_probabilities_sum_to_one():
    bins = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, logvar in ((0.0, -4.0), (0.9, -1.0), (-1.0, 0.0)):
        p = (
            -discretised_nll(bins, torch.full_like(bins, mean), torch.full_like(bins, logvar))
        ).exp()
        assert abs(p.sum() - 1) < 1e-6


# ---------------------------------------------------------------- one interface

OBJECTIVES = [
    Diffusion(),
    Diffusion(variance="learned-range"),
    Diffusion(weight="vlb"),
    Interpolant(),
    Diffusion(schedule="cosine", prediction="v", zero_snr=True, weight="min-snr"),
    Interpolant("gvp", "noise", "velocity"),
    Interpolant("vp", "score", "likelihood"),
    Interpolant("linear", "data"),
]


@pytest.mark.parametrize("o", OBJECTIVES, ids=str)
def test_a_loss_is_a_term_for_each_sample_from_seed_step_and_index(o):
    model = linear_model(out=8 if getattr(o, "variance", "") == "learned-range" else 4)

    def terms(index):
        noise, u = draw(3, 11, index, SHAPE)
        return o.loss(model, normal(1, 6)[index], torch.arange(6.0)[index], noise, o.times(u[:, 0]))

    whole = terms(list(range(6)))
    assert {"loss", "mse"} <= set(whole) and all(
        v.shape == (6,) and v.isfinite().all() for v in whole.values()
    )
    for part in ([4, 1], [5]):
        for name, value in terms(part).items():
            close(value, whole[name][part])


@pytest.mark.parametrize("prediction", ["noise", "data", "v"])
def test_velocity_and_score_are_those_of_the_path(prediction):
    o = Diffusion(prediction=prediction)
    data, noise, t = normal(1), normal(2), o.chain.time(torch.tensor([20, 400, 900]))
    a, s = ab(o, t)
    said = {"noise": noise, "data": data, "v": a * noise - s * data}[prediction]
    x, (da, ds) = (
        o.mix(data, noise, t),
        [c.float().view(-1, 1, 1, 1, 1) for c in o.coefficients(t)[2:]],
    )
    close(o.velocity(lambda *_: said, x, t), da * data + ds * noise, 1e-3)
    close(o.score(lambda *_: said, x, t), -noise / s, 1e-3)


# ---------------------------------------------------------------- configs and errors


def test_dict_there_and_back():
    o = Diffusion(schedule="cosine", prediction="v", weight="min-snr", gamma=3.0)
    assert Diffusion.from_dict(o.to_dict()) == o and o.to_dict()["objective"] == "Diffusion"
    with pytest.raises(ValueError, match="colour"):
        Diffusion.from_dict({"colour": 1})
    with pytest.raises(ValueError, match="objective"):
        Diffusion.from_dict({"objective": "Interpolant"})


@pytest.mark.parametrize(
    "field,value",
    [
        ("schedule", "cubic"),
        ("prediction", "velocity"),
        ("variance", "big"),
        ("weight", "snr"),
        ("steps", 1),
        ("steps", 10.5),
        ("gamma", 0.0),
        ("vlb_weight", -1.0),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*{value}"):
        Diffusion(**{field: value})


def test_zero_snr_refuses_noise_prediction():
    with pytest.raises(ValueError, match="zero_snr"):
        Diffusion(zero_snr=True)


def test_a_wrong_solver_or_spacing_is_named():
    for name in ("solver", "spacing"):
        with pytest.raises(ValueError, match=f"{name} must be .*'euler'"):
            Diffusion().sample(linear_model(), normal(1), steps=3, **{name: "euler"})


def test_channels_that_do_not_fit_are_an_error():
    x, t = normal(1, 2), torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="learned-range"):
        Diffusion().output(linear_model(out=8), x, t)
    with pytest.raises(ValueError, match="8 channels"):
        Diffusion(variance="learned-range").output(linear_model(), x, t)
    with pytest.raises(ValueError, match=r"\(2, 3, 2, 6, 6\)"):
        Diffusion().output(linear_model(out=3), x, t)


def test_toy_learns_and_repeats():
    points, labels = toy_points(500)
    net, losses = fit_toy(Diffusion(), points, labels, steps=60, batch=128)
    assert losses[:5] == fit_toy(Diffusion(), points, labels, steps=60, batch=128)[1][:5]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:5]) * 4
    assert (
        isinstance(net, ToyNet)
        and net.null_id == 3
        and net(points[:2], torch.tensor([0.1, 0.9])).shape == (2, 2, 1, 1, 1)
    )
