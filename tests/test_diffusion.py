"""DDPM against diffusers, and what every objective promises."""

import diffusers
import pytest
import torch
from helpers.processes import SHAPE, ab, close, linear_model, normal

from minisora.core.noise import indexed_noise
from minisora.diffusion import GaussianDiffusion, ddim_step, ddpm_step
from minisora.interpolants import Interpolant
from minisora.processes.bounds import predict_data_and_noise
from minisora.processes.schedules import beta_schedule


LINEAR = dict(beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="linspace")


@pytest.mark.parametrize(
    "ours,theirs",
    [
        (GaussianDiffusion(), dict(LINEAR)),
        (
            GaussianDiffusion(schedule="cosine", prediction="v"),
            dict(beta_schedule="squaredcos_cap_v2", clip_sample=False),
        ),
        (
            GaussianDiffusion(zero_snr=True, prediction="v"),
            dict(LINEAR, rescale_betas_zero_snr=True),
        ),
    ],
)
def test_forward_process_is_diffusers(ours, theirs):
    scheduler = diffusers.DDPMScheduler(1000, **theirs)
    data = normal(1, 5)
    noise = normal(2, 5)
    k = torch.tensor([0, 10, 400, 700, 998])
    t = ours.noise_schedule.time(k)
    close(ours.add_noise(data, noise, t), scheduler.add_noise(data, noise, k), 3e-5)
    a, s = (c.float().view(-1, 1, 1, 1, 1) for c in ours.coefficients(t)[:2])
    close(a * noise - s * data, scheduler.get_velocity(data, noise, k), 3e-5)


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
    model = linear_model(out=8 if variance == "learned-range" else 4)
    x = normal(3)
    fresh = iter([indexed_noise(7, i, range(3), SHAPE)[0] for i in range(12, 0, -1)])
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: next(fresh)
    )
    theirs = x
    for k in scheduler.timesteps:
        out = model(theirs, GaussianDiffusion().noise_schedule.time(k.repeat(3)))
        theirs = scheduler.step(out, k, theirs).prev_sample
    ours = GaussianDiffusion(variance=variance, prediction=prediction).sample(
        model, x, steps=12, seed=7
    )
    close(ours, theirs)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_steps_are_diffusers(eta):
    scheduler = diffusers.DDIMScheduler(
        1000, **{**LINEAR, "timestep_spacing": "trailing"}, set_alpha_to_one=True
    )
    scheduler.set_timesteps(10)
    o = GaussianDiffusion()
    model = linear_model()
    x = normal(3)
    for i, k in enumerate(scheduler.timesteps):
        kk = k.repeat(3)
        fresh = normal(20 + i)
        out = model(x, o.noise_schedule.time(kk))
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
    scheduler = diffusers.DDIMScheduler(1000, set_alpha_to_one=True, **theirs)
    o = GaussianDiffusion(**options)
    error = (scheduler.alphas_cumprod - o.noise_schedule.alphas_cumprod[:-1]).abs().max()
    assert error < 1e-6, error  # theirs are float32; with ours in their place
    scheduler.alphas_cumprod = o.noise_schedule.alphas_cumprod[:-1]
    scheduler.set_timesteps(20)
    model = linear_model()
    x = normal(3)
    want = x
    for k in scheduler.timesteps:
        want = scheduler.step(model(want, o.noise_schedule.time(k.repeat(3))), k, want).prev_sample
    close(o.sample(model, x, steps=20, solver="ddim", spacing=theirs["timestep_spacing"]), want)


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_clipped_guesses_are_diffusers(solver, monkeypatch):
    kind = diffusers.DDPMScheduler if solver == "ancestral" else diffusers.DDIMScheduler
    o = GaussianDiffusion(variance="fixed-small")
    model = linear_model()
    x = normal(3)
    k = torch.tensor([800] * 3)
    scheduler = kind(1000, **{**LINEAR, "clip_sample": True, "timestep_spacing": "leading"})
    scheduler.alphas_cumprod = o.noise_schedule.alphas_cumprod[:-1]
    scheduler.set_timesteps(10)
    out = 3 * model(x, o.noise_schedule.time(k))
    assert predict_data_and_noise(o, out, x, k)[0].abs().max() > 1.5
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: normal(5)
    )
    more = dict() if solver == "ancestral" else dict(use_clipped_model_output=True)
    step = ddpm_step if solver == "ancestral" else ddim_step
    ours, data = step(o, (out, None), x, k, k - 100, normal(5), eta=0.0, clip=1.0)
    close(ours, scheduler.step(out, torch.tensor(800), x, **more).prev_sample)
    assert data.abs().max() == 1


def test_clip_reaches_every_step():
    states = list(GaussianDiffusion().sample_iter(linear_model(), 3 * normal(3), steps=6, clip=0.5))
    assert (
        all(data.abs().max() <= 0.5 for _, _, data in states) and states[-1][1].abs().max() <= 0.5
    )


def test_ddim_with_the_true_noise_stays_on_the_path_both_ways():
    o = GaussianDiffusion()
    data = normal(1)
    noise = normal(2)
    k = torch.tensor([300] * 3)
    x = o.add_noise(data, noise, o.noise_schedule.time(k))
    for to in (100, 299, 301, 900):  # back to the data and on to the noise
        close(
            ddim_step(o, (noise, None), x, k, k * 0 + to, 0 * x)[0],
            o.add_noise(data, noise, o.noise_schedule.time(k * 0 + to)),
        )
    close(ddim_step(o, (noise, None), x, k, k * 0 - 1, 0 * x)[0], data)


def test_sampling_calls_the_model_once_a_step_and_not_outside_its_clock():
    seen = []

    def model(x, t, y):
        seen.append(t)
        return x * 0.1

    states = list(GaussianDiffusion().sample_iter(model, normal(1), steps=9))
    assert len(seen) == 9 and len(states) == 10
    assert all(
        (1000 * (1 - t)).round().frac().eq(0).all() and t.min() > 0 and t.max() <= 1 for t in seen
    )
    assert seen[0][0] < seen[-1][0] and states[-1][0] == 1.0


def test_batch_split_gives_the_same_samples():
    o = GaussianDiffusion()
    model = linear_model()
    x = normal(4, 6)
    y = torch.arange(6.0)
    whole = o.sample(model, x, y, steps=8, seed=2)
    parts = [
        o.sample(model, x[i], y[i], steps=8, seed=2, index=i.tolist())
        for i in (torch.tensor([4, 0, 2]), torch.tensor([1, 3, 5]))
    ]
    close(torch.cat(parts)[torch.tensor([1, 3, 2, 4, 0, 5])], whole, 1e-6)


def test_a_gaussian_comes_back():
    """With the exact noise prediction for N(0.5, 0.3²) data, both samplers must give that mean
    and deviation."""
    o = GaussianDiffusion()

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
    o = GaussianDiffusion(prediction=prediction)
    data = normal(1, 5)
    noise = normal(2, 5)
    t = o.noise_schedule.time(torch.tensor([5, 100, 300, 600, 900]))
    a, s = (c.float().view(-1, 1, 1, 1, 1) for c in o.coefficients(t)[:2])
    said = {"noise": noise, "data": data, "v": a * noise - s * data}[prediction]
    assert o.loss(lambda *_: said, data, None, noise, t)["loss"].max() == 0
    for got, want in zip(o.to_data_and_noise(said, o.add_noise(data, noise, t), t), (data, noise)):
        close(got, want, 2e-4)


def test_min_snr_is_one_loss_in_three_languages():
    """Weighted errors must be equal up to gamma's cut: data error · min(snr, γ) = noise error ·
    min(snr, γ)/snr."""
    data = normal(1, 4)
    noise = normal(2, 4)
    t = GaussianDiffusion().noise_schedule.time(torch.tensor([10, 100, 300, 800]))
    wrong = data + 0.1 * normal(3, 4)
    got = []
    for prediction in ("noise", "data", "v"):
        o = GaussianDiffusion(prediction=prediction, loss_weighting="min-snr")
        a, s = (c.float().view(-1, 1, 1, 1, 1) for c in o.coefficients(t)[:2])
        x = o.add_noise(data, noise, t)
        guess = (x - a * wrong) / s
        said = {"noise": guess, "data": wrong, "v": a * guess - s * wrong}[prediction]
        got.append(o.loss(lambda *_: said, data, None, noise, t)["loss"])  # noqa: B023
    close(got[0], got[1], 1e-3)
    close(got[2], got[1], 1e-3)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_cuts_at_gamma(gamma):
    k = torch.tensor([0, 50, 150, 300, 600, 999])
    snr = (lambda bar: bar / (1 - bar))((1 - beta_schedule()).cumprod(0)[k])
    want = dict(
        noise=snr.clamp(max=gamma) / snr,
        data=snr.clamp(max=gamma),
        v=snr.clamp(max=gamma) / (1 + snr),
    )
    assert (snr > gamma).any() and (snr < gamma).any()
    for prediction, w in want.items():
        o = GaussianDiffusion(prediction=prediction, loss_weighting="min-snr", gamma=gamma)
        close(o.weights(o.noise_schedule.time(k)).double(), w, 1e-6)
        assert (
            GaussianDiffusion(prediction=prediction).weights(o.noise_schedule.time(k)).eq(1).all()
        )


def test_vlb_weight_is_its_factor():
    data = normal(1)
    noise = normal(2)
    t = torch.tensor([0.1, 0.5, 0.9])
    model = linear_model(out=8)
    for w in (1.0, 0.25):
        got = GaussianDiffusion(variance="learned-range", vlb_weight=w).loss(
            model, data, None, noise, t
        )
        close(got["loss"] - got["mse"], w * got["vlb"], 1e-4)


def test_vlb_trains_only_the_variance():
    out = torch.randn(2, 8, 1, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    data = normal(1, 2, (4, 1, 2, 2))
    noise = normal(2, 2, (4, 1, 2, 2))
    o = GaussianDiffusion(variance="learned-range")
    o.loss(lambda *_: out, data, None, noise, o.noise_schedule.time(torch.tensor([300, 0])))[
        "vlb"
    ].sum().backward()
    assert out.grad[:, :4].abs().max() == 0 and out.grad[:, 4:].abs().max() > 0


# ---------------------------------------------------------------- one interface


OBJECTIVES = [
    GaussianDiffusion(),
    GaussianDiffusion(variance="learned-range"),
    GaussianDiffusion(loss_weighting="vlb"),
    Interpolant(),
    GaussianDiffusion(schedule="cosine", prediction="v", zero_snr=True, loss_weighting="min-snr"),
    Interpolant("gvp", "noise", "velocity"),
    Interpolant("vp", "score", "likelihood"),
    Interpolant("linear", "data"),
]


@pytest.mark.parametrize("o", OBJECTIVES, ids=str)
def test_a_loss_is_a_term_for_each_sample_from_seed_step_and_index(o):
    model = linear_model(out=8 if getattr(o, "variance", "") == "learned-range" else 4)

    def terms(index):
        noise, u = indexed_noise(3, 11, index, SHAPE)
        return o.loss(
            model, normal(1, 6)[index], torch.arange(6.0)[index], noise, o.sample_times(u[:, 0])
        )

    whole = terms(list(range(6)))
    assert {"loss", "mse"} <= set(whole) and all(
        v.shape == (6,) and v.isfinite().all() for v in whole.values()
    )
    for part in ([4, 1], [5]):
        for name, value in terms(part).items():
            close(value, whole[name][part])


@pytest.mark.parametrize("prediction", ["noise", "data", "v"])
def test_velocity_and_score_are_those_of_the_path(prediction):
    o = GaussianDiffusion(prediction=prediction)
    data = normal(1)
    noise = normal(2)
    t = o.noise_schedule.time(torch.tensor([20, 400, 900]))
    a, s = ab(o, t)
    said = {"noise": noise, "data": data, "v": a * noise - s * data}[prediction]
    x = o.add_noise(data, noise, t)
    da, ds = [c.float().view(-1, 1, 1, 1, 1) for c in o.coefficients(t)[2:]]
    close(o.velocity(lambda *_: said, x, t), da * data + ds * noise, 1e-3)
    close(o.score(lambda *_: said, x, t), -noise / s, 1e-3)


# ---------------------------------------------------------------- configs and errors


def test_dict_there_and_back():
    o = GaussianDiffusion(schedule="cosine", prediction="v", loss_weighting="min-snr", gamma=3.0)
    assert GaussianDiffusion.from_dict(o.to_dict()) == o
    assert next(iter(o.to_dict().items())) == ("objective", "gaussian-diffusion")
    with pytest.raises(ValueError, match="has no field 'predicton'; did you mean 'prediction'"):
        GaussianDiffusion.from_dict({"predicton": "v"})
    with pytest.raises(ValueError, match="objective is 'interpolant', not 'gaussian-diffusion'"):
        GaussianDiffusion.from_dict({"objective": "interpolant"})


@pytest.mark.parametrize(
    "field,value",
    [
        ("schedule", "cubic"),
        ("prediction", "velocity"),
        ("variance", "big"),
        ("loss_weighting", "snr"),
        ("steps", 1),
        ("steps", 10.5),
        ("gamma", 0.0),
        ("vlb_weight", -1.0),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*{value}"):
        GaussianDiffusion(**{field: value})


def test_zero_snr_refuses_noise_prediction():
    with pytest.raises(ValueError, match="zero_snr"):
        GaussianDiffusion(zero_snr=True)


def test_a_wrong_solver_or_spacing_is_named():
    for name in ("solver", "spacing"):
        with pytest.raises(ValueError, match=f"{name} must be .*'euler'"):
            GaussianDiffusion().sample(linear_model(), normal(1), steps=3, **{name: "euler"})


def test_channels_that_do_not_fit_are_an_error():
    x = normal(1, 2)
    t = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="learned-range"):
        GaussianDiffusion().raw_prediction(linear_model(out=8), x, t)
    with pytest.raises(ValueError, match="8 channels"):
        GaussianDiffusion(variance="learned-range").raw_prediction(linear_model(), x, t)
    with pytest.raises(ValueError, match=r"\(2, 3, 2, 6, 6\)"):
        GaussianDiffusion().raw_prediction(linear_model(out=3), x, t)
