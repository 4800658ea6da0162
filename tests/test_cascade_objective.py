"""The objective of a cascade: its path, targets and weights against StableCascade's; a stage that
is told a code."""

import json
import warnings
from functools import partial

import pytest
import torch
from diffusers import DDPMWuerstchenScheduler
from helpers.latent_cache import SMALL, Clips, Tiny
from helpers.models import same
from helpers.train import Net, equal, go, together
from helpers.train import same as same_run
from helpers.upsampling import noise_like

from minisora.cascade_objective import (
    CascadeDiffusion,
    CodeConditionedDiffusion,
    CodeConditionedInterpolant,
    CodeConditionedModel,
    PairedCodes,
    cosine_logsnr,
    cosine_time,
    gather_code,
    spread_code,
)
from minisora.core.noise import indexed_noise
from minisora.interpolants import Interpolant, objective_from_dict
from minisora.latent_cache import LatentCache, write_cache
from minisora.processes.schedules import append_dims
from minisora.sampling import sample, sample_iter
from minisora.train import as_mmengine, fit
from minisora.training.checkpoint import load_checkpoint

CODED = dict(code_channels=5, code_height=2, code_width=2)


class Coded(torch.nn.Module):
    "A small model of 5 channels that is told a code of 5, and looks at all that it is given."

    null_id = 7
    latent_shape = (5, 2, 4, 4)

    def __init__(self, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.codes = []
        layers = [torch.nn.Conv3d(10, 8, 1), torch.nn.SiLU(), torch.nn.Conv3d(8, 5, 1)]
        self.net = torch.nn.Sequential(*layers, torch.nn.Conv3d(5, 5, (1, 3, 3), padding=(0, 1, 1)))
        self.words = torch.nn.Parameter(torch.randn(8, 5, generator=g))
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.randn(p.shape, generator=g) * 0.3)

    def forward(self, x, t, y=None, *, code):
        self.codes = [*self.codes[-3:], code]
        told = spread_code(code, x.shape[-2:])
        out = self.net(torch.cat([x, told], 1)) + t.view(-1, 1, 1, 1, 1)
        return out if y is None else out + self.words[y[:, 0]][..., None, None, None]


# ---------------------------------------------------------------- a code among the channels


@pytest.mark.parametrize("small, large", [((3, 3), (32, 32)), ((2, 3), (7, 3)), ((4, 5), (8, 10))])
def test_a_code_is_spread_to_the_nearest_and_taken_back(small, large):
    code = noise_like(2, 3, 2, *small)
    spread = spread_code(code, large)
    frames = code.transpose(1, 2).flatten(0, 1)
    wanted = torch.nn.functional.interpolate(frames, large, mode="nearest")
    assert torch.equal(spread.transpose(1, 2).flatten(0, 1), wanted)
    assert torch.equal(gather_code(spread, small), code)
    with pytest.raises(ValueError, match="spread_code: a code of .* does not fit into"):
        spread_code(spread, small)


def test_a_code_is_noised_and_dropped_as_often_as_asked():
    objective = CodeConditionedInterpolant(max_level=0.4, code_drop=0.1)
    code = torch.ones(4000, 16, 1, 3, 3)
    noise = noise_like(4000, 2, 1, 2, 2)
    told = objective.told_code(code, torch.zeros_like(code), noise)[:, 0, 0, 0, 0]
    dropped = told == 0
    assert abs(dropped.float().mean() - 0.1) < 0.02
    level = 1 - told[~dropped]
    assert level.min() >= 0 and 0.39 < level.max() <= 0.4 and abs(level.mean() - 0.2) < 0.01
    for i in (0, 7):  # alone as in company
        alone = objective.told_code(code[i : i + 1], torch.zeros(1, 16, 1, 3, 3), noise[i : i + 1])
        assert torch.equal(alone[0, 0, 0, 0, 0], told[i])
    assert not objective.told_code(code, code, noise)[dropped].any()
    exact = CodeConditionedInterpolant(max_level=0.0, code_drop=0.0)
    assert torch.equal(exact.told_code(code, 2 * code, noise), code)


def test_the_loss_is_the_interpolant_s_with_the_code_told():
    options = dict(prediction="data", loss_weighting="velocity", max_weight=25.0)
    objective = CodeConditionedInterpolant(**CODED, **options)
    model = Coded()
    latents = noise_like(6, 5, 2, 4, 4)
    code = noise_like(6, 5, 2, 2, 2, seed=1)
    noise = noise_like(6, 10, 2, 4, 4, seed=2)
    t = torch.linspace(0.1, 0.9, 6)
    both = torch.cat([latents, spread_code(code, (4, 4))], 1)
    y = torch.tensor([[0], [1], [2], [3], [0], [1]])
    terms = objective.loss(model, both, y, noise, t)
    told = objective.told_code(code, gather_code(noise[:, 5:], (2, 2)), noise[:, :5])
    assert torch.equal(model.codes[-1], told) and not torch.equal(told, code)

    def plain(x, t, y):
        return model(x, t, y, code=told)

    wanted = Interpolant(**options).loss(plain, latents, y, noise[:, :5], t)
    assert same(terms, wanted)


def test_it_comes_back_from_json_and_a_wrong_field_is_named():
    objective = CodeConditionedInterpolant(prediction="data", **CODED)
    assert objective_from_dict(objective.to_dict()) == objective
    assert objective.to_dict()["objective"] == "code-conditioned-interpolant"
    for wrong in (dict(code_height=0), dict(max_level=1.5), dict(code_drop=-0.1)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CodeConditionedInterpolant(**wrong)


# ---------------------------------------------------------------- pairs of caches


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    "Caches of the same 12 clips: codes of 2×2 and latents of 4×4 places, 5 channels each."
    root = tmp_path_factory.mktemp("caches")
    for size in (16, 32):
        write_cache(root / str(size), Clips(12, size), Tiny(), **SMALL)
        write_cache(root / f"{size}-flips", Clips(12, size), Tiny(), flips=True, **SMALL)
    write_cache(root / "few", Clips(11, 16), Tiny(), **SMALL)
    return root


def pairs(caches, codes="16", latents="32", **options):
    return PairedCodes(
        LatentCache(caches / codes), LatentCache(caches / latents, "digit", **options)
    )


def test_a_sample_is_the_latents_then_the_code_each_by_its_own_scale(caches):
    data = pairs(caches)
    codes, latents = LatentCache(caches / "16"), LatentCache(caches / "32")
    assert len(data) == 12 and data.shape == (10, 2, 4, 4) and data.codes.mean == codes.mean
    sample = data[3]["latents"]
    assert torch.equal(sample[:5], latents[3]["latents"])
    assert torch.equal(gather_code(sample[None, 5:], (2, 2))[0], codes[3]["latents"])
    assert data.mean == latents.mean and data.captions == latents.captions
    assert data.__getitems__([5, 3])["index"].tolist() == [5, 3]


def test_codes_of_other_clips_or_sizes_are_named(caches):
    with pytest.raises(ValueError, match="PairedCodes: a cache of 11 clips and one of 12"):
        pairs(caches, "few")
    with pytest.raises(ValueError, match="PairedCodes: only one of the caches is flipped"):
        pairs(caches, "16-flips")
    with pytest.raises(ValueError, match=r"\(5, 2, 2, 2\) need codes of 2 frames that are no la"):
        pairs(caches, "32", "16")


def test_mirror_images_of_both_go_together(caches):
    data = pairs(caches, "32-flips", "32-flips")
    for epoch in range(4):
        data.set_epoch(epoch)
        z = data.__getitems__(range(12))["latents"]
        assert torch.equal(z[:, :5], z[:, 5:])


OBJECTIVE = CodeConditionedInterpolant(prediction="data", **CODED)


def train(caches, out=None, **changes):
    options = dict(
        steps=24, batch_size=4, lr=1e-2, warmup=2, log_every=3, save_every=5, progress=False
    )
    data = changes.pop("data", None) or pairs(caches, "16-flips", "32-flips")
    objective = changes.pop("objective", OBJECTIVE)
    return fit(Coded(), data, objective, out=out, **options | changes)


def test_a_training_with_codes_resumes_exactly(caches, tmp_path):
    train(caches, tmp_path / "whole")
    for stop in (4, 13, None):
        train(caches, tmp_path / "parts", stop_at=stop)
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_training_with_codes_runs_in_16_bits_and_sees_other_codes(caches, tmp_path):
    run = train(caches, tmp_path / "run", precision="bf16", stop_at=5)
    assert run.log[-1]["loss"] > 0
    with pytest.raises(ValueError, match="trained on other data"):
        train(
            caches, tmp_path / "run", precision="bf16", data=pairs(caches, "32-flips", "32-flips")
        )


# ---------------------------------------------------------------- sampling


def test_guidance_follows_the_code_only_where_it_is_asked_to():
    model = Coded()
    codes = noise_like(3, 5, 2, 2, 2)
    x = noise_like(6, 5, 2, 4, 4)
    t = torch.full((6,), 0.5)
    y = torch.tensor([[0], [1], [2], [3], [3], [3]])
    CodeConditionedModel(model, codes)(x, t, y)
    assert torch.equal(model.codes[-1], torch.cat([codes, codes]))
    CodeConditionedModel(model, codes, code_guidance=True)(x, t, y)
    assert torch.equal(model.codes[-1], torch.cat([codes, 0 * codes]))
    CodeConditionedModel(model, codes, code_guidance=True)(x[:3], t[:3], y[:3])
    assert torch.equal(model.codes[-1], codes)
    with pytest.raises(ValueError, match="CodeConditionedModel: 3 codes for 4 samples"):
        CodeConditionedModel(model, codes)(x[:4], t[:4], y[:4])


@pytest.mark.parametrize("solver", ["euler", "heun", "sde", "ddim"])
def test_a_sample_depends_on_its_code_and_index_alone(solver):
    codes = noise_like(3, 5, 2, 2, 2)
    ask = dict(steps=3, seed=1, guidance=2.0, solver=solver)
    y = torch.tensor([[0], [1], [2]])
    whole = sample(CodeConditionedModel(Coded(), codes, True), OBJECTIVE, y, **ask)
    alone = CodeConditionedModel(Coded(), codes[1:2], True)
    alone = sample(alone, OBJECTIVE, y[1:2], index=[1], **ask)
    torch.testing.assert_close(whole[1:2], alone, atol=1e-4, rtol=1e-4)
    other = sample(CodeConditionedModel(Coded(), codes + 1, True), OBJECTIVE, y, **ask)
    assert (whole - other).abs().max() > 0.01


# ---------------------------------------------------------------- the original's numbers
#
# Made once with the folder gdf of github.com/Stability-AI/StableCascade, commit 7a7d341, in double
# precision (torch.set_default_dtype(torch.float64)):
#     GDF(CosineSchedule(clamp_range=[.0001, .9999]), VPScaler(), target, CosineTNoiseCond(),
#         P2LossWeight())
# `diffuse(…, t=R, shift=…)` made PATH and LOSSES, `sample(…, timesteps=20, cfg=None)` SAMPLES, with
# `torch.randn_like` replaced by `indexed_noise(3, step, range(2), (2, 1, 2, 2))[0].double()`; the
# model is `answer`, and latents and noise those of `latents_and_noise`.

R = torch.tensor([0.0, 0.001, 0.25, 0.5, 0.75, 0.992, 1.0], dtype=torch.float64)
PATH = {  # shift: logSNR, the ratio that the model is told, alpha, sigma
    1.0: [
        [9.21024, 9.21024, 1.711357, -0.02462688, -1.780251, -8.769139, -9.21024],
        [0.00225567, 0.00225567, 0.25, 0.5, 0.75, 0.992, 0.9935833],
        [0.99995, 0.99995, 0.9203326, 0.7027401, 0.3798317, 0.01246728, 0.01],
        [0.01, 0.01, 0.3911366, 0.7114467, 0.9250556, 0.9999223, 0.99995],
    ],
    2.0: [
        [7.823946, 7.823946, 0.3250623, -1.410921, -3.166546, -9.21024, -9.21024],
        [0.007122239, 0.007122239, 0.4441376, 0.705645, 0.8700708, 0.9935833, 0.9935833],
        [0.9998, 0.9998, 0.7619432, 0.4428191, 0.2011076, 0.01, 0.01],
        [0.019997, 0.019997, 0.6476438, 0.896611, 0.9795692, 0.99995, 0.99995],
    ],
    0.5: [
        [9.21024, 9.21024, 3.097651, 1.361667, -0.393957, -7.382845, -7.823946],
        [0.00225567, 0.00225567, 0.1265981, 0.2927994, 0.558838, 0.9840025, 0.9871678],
        [0.99995, 0.99995, 0.9781594, 0.8922055, 0.6346378, 0.02492876, 0.019997],
        [0.01, 0.01, 0.2078563, 0.4516297, 0.7728097, 0.9996892, 0.9998],
    ],
}
P2 = [0.0001, 0.0001, 0.1529878, 0.5061564, 0.8557279, 0.9998446, 0.9999]  # at shift 1
P2_HALF_2 = [1.0001e-08, 1.0001e-08, 0.02744317, 0.4592183, 2.237035, 3.997514, 3.9984]
MIN_SNR = [5.0, 5.0, 5.0, 0.9756739, 0.1685958, 0.0001554573, 0.00010001]
LOSSES = {  # the plain error, and that times P2
    "noise": (
        [1.097087, 0.8829235, 0.6240675, 0.2787296, 0.2555627, 0.08931448, 0.04026862],
        [0.0001097087, 8.829235e-05, 0.09547474, 0.1410808, 0.2186921, 0.0893006, 0.04026459],
    ),
    "data": (
        [0.3258865, 0.3281621, 0.1896642, 0.322438, 0.8733215, 2.053729, 2.648479],
        [3.258865e-05, 3.281621e-05, 0.02901632, 0.1632041, 0.7473255, 2.05341, 2.648214],
    ),
    "v": (
        [1.108827, 0.8921211, 0.6467091, 1.04017, 1.720074, 0.6948947, 1.248454],
        [0.0001108827, 8.921211e-05, 0.09893862, 0.5264888, 1.471915, 0.6947867, 1.248329],
    ),
    "flow": (
        [3.200661, 2.697496, 1.368868, 1.682848, 1.280003, 1.092069, 1.551905],
        [0.0003200661, 0.0002697496, 0.2094201, 0.8517845, 1.095334, 1.091899, 1.551749],
    ),
}
# AdaptiveLossWeight(): three batches of these logSNR, each with the losses .9, .05, 2., .3 times
# 1, 2, 3, seen 50 times by `update_buckets`; then the weights at AT
ADAPTIVE_LOGSNR = [[-9.1, -8.98, -3.3, -0.02], [0.02, 4.4, 8.96, 9.2], [-3.3, 0.03, 4.41, 9.15]]
ADAPTIVE_AT = [-9.1, -8.98, -3.3, -0.02, 0.02, 4.4, 8.96, 9.2, 7.0]
ADAPTIVE = [1.041124, 1.600625, 0.5234332, 1.382162, 1.168997, 0.3623328, 0.4576697, 1.187645, 1.0]
# sampler, target, shift: the data (2, 2, 2) that the last step predicts in the first row of places
SAMPLES = {
    ("ddim", "noise", 1.0): [-3.221039, -1.666579, -4.11099, 0.963506, 1.910033, -7.30226,
                             -2.05997, 0.869307],
    ("ddim", "v", 1.0): [-0.1705453, -0.02273749, -0.2551675, 0.2273476, 0.3173494, -0.5586136,
                         -0.06014354, 0.2183906],
    ("ddpm", "noise", 1.0): [-1.631431, -0.3599655, -0.5331789, -0.58278, -0.2181049, -0.8214436,
                             -1.010643, 0.3331635],
    ("ddpm", "v", 1.0): [-0.3305464, 0.1207236, -0.2100571, 0.1175947, 0.1187798, 0.3307661,
                         -0.08303823, 0.4775632],
    ("ddpm", "noise", 2.0): [-1.311281, -0.1709796, -0.6314618, -0.3614011, -0.1452006,
                             -0.1127242, -0.7658924, 0.5723699],
    ("ddpm", "v", 2.0): [-0.1468895, 0.1070609, -0.5097957, 0.2243697, 0.2113367, 0.344849,
                         -0.06615582, 0.5479662],
}  # fmt: skip
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def answer(x, t, y=None):
    "A model without weights."
    t = t.to(x).view(-1, *[1] * (x.ndim - 1))
    return 0.8 * x * (1 - 0.5 * t) + 0.1 * torch.cos(3 * t)


def latents_and_noise():
    return [indexed_noise(7, step, range(7), (2, 1, 2, 2))[0] for step in (0, 1)]


def numbers(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("shift", PATH)
def test_the_path_is_the_original_s(shift):
    objective = CascadeDiffusion(logsnr_shift=shift)
    told = []

    def model(x, t, y):
        told.append(t)
        return x

    logsnr, ratio, alpha, sigma = map(numbers, PATH[shift])
    close(objective.logsnr(1 - R), logsnr)
    close(objective.coefficients(1 - R)[0], alpha)
    close(objective.coefficients(1 - R)[1], sigma)
    objective.raw_prediction(model, torch.zeros(7, 2, 1, 2, 2), 1 - R)
    close(1 - told[0], ratio)
    objective.raw_prediction(model, torch.zeros(7, 2, 1, 2, 2), 1 - R.float())
    assert told[1].dtype == torch.float32
    close(1 - told[1].double(), ratio)


@pytest.mark.parametrize("shift", PATH)
def test_derivatives_are_those_of_the_path_and_none_where_it_is_flat(shift):
    objective = CascadeDiffusion(logsnr_shift=shift)
    low, high = objective.time_range
    t = torch.linspace(low + 1e-4, high - 1e-4, 101, dtype=torch.float64).requires_grad_()
    alpha, sigma, d_alpha, d_sigma = objective.coefficients(t)
    for value, slope in ((alpha, d_alpha), (sigma, d_sigma)):
        close(torch.autograd.grad(value.sum(), t, retain_graph=True)[0], slope, rtol=1e-8)
    flat = numbers([0.0, low - 1e-4, high + 1e-4, 1.0])
    assert not torch.stack(objective.coefficients(flat)[2:]).any()
    ends = objective.coefficients(torch.tensor(objective.time_range))  # of float32
    assert ends[2].min() > 0 and ends[3].max() < 0
    close(ends[0], objective.coefficients(numbers([0.0, 1.0]))[0])


@pytest.mark.parametrize("prediction", LOSSES)
def test_loss_and_target_are_the_original_s(prediction):
    objective = CascadeDiffusion(prediction)
    latents, noise = latents_and_noise()
    terms = objective.loss(answer, latents, None, noise, 1 - R)
    mse, loss = map(numbers, LOSSES[prediction])
    close(terms["mse"].double(), mse)
    close(terms["loss"].double(), loss, atol=1e-7)
    plain = CascadeDiffusion(prediction, "none").loss(answer, latents, None, noise, 1 - R)
    assert torch.equal(plain["loss"], plain["mse"])


@pytest.mark.parametrize("prediction", LOSSES)
def test_the_target_gives_data_and_noise_back(prediction):
    objective = CascadeDiffusion(prediction, logsnr_shift=1.5)
    data, noise = (z.double() for z in latents_and_noise())
    x = objective.add_noise(data, noise, 1 - R)
    output = objective.target(data, noise, 1 - R)
    found = objective.to_data_and_noise(output, x, 1 - R)
    close(found[0], data)
    close(found[1], noise)
    t = numbers([0.3] * 7)
    d_alpha, d_sigma = (append_dims(c, x) for c in objective.coefficients(t)[2:])
    x = objective.add_noise(data, noise, t)
    velocity = objective.to_velocity(objective.target(data, noise, t), x, t)
    close(velocity, d_alpha * data + d_sigma * noise)


def test_weights_are_the_original_s_and_mean_the_same_for_each_target():
    t = 1 - R
    weights = {p: CascadeDiffusion(p, "min-snr").weights(t) for p in LOSSES}
    close(CascadeDiffusion().weights(t).double(), numbers(P2), atol=1e-9)
    other = CascadeDiffusion(p2_k=0.5, p2_gamma=2.0)
    close(other.weights(t).double(), numbers(P2_HALF_2), atol=1e-12)
    close(weights["data"].double(), numbers(MIN_SNR), atol=1e-9)
    # one error of the data, as an error of each target
    x = torch.zeros(7, 1, 1, 1, 1, dtype=torch.float64)
    for prediction in LOSSES:
        objective = CascadeDiffusion(prediction)
        found = objective.to_data_and_noise(torch.ones_like(x), x, t)[0].flatten()
        close(weights[prediction].double(), weights["data"].double() * found**2, atol=1e-9)


def test_training_times_are_even_and_never_quite_clean():
    u = torch.tensor([0.0, 0.0005, 0.5, 1 - 2**-24])
    close(CascadeDiffusion().sample_times(u), torch.tensor([0.0, 0.0, 0.499, 0.999]), atol=1e-6)


def test_fields_come_back_from_json_and_a_wrong_one_is_named():
    objective = CascadeDiffusion("flow", "adaptive", logsnr_shift=2.0, buckets=20)
    assert objective_from_dict(json.loads(json.dumps(objective.to_dict()))) == objective
    assert objective.to_dict()["objective"] == "cascade-diffusion"
    for wrong in (
        dict(prediction="velocity"), dict(loss_weighting="vlb"), dict(p2_k=0.0),
        dict(p2_gamma=-1.0), dict(logsnr_shift=0.0), dict(buckets=1), dict(bucket_decay=1.5),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CascadeDiffusion(**wrong)
    with pytest.raises(ValueError, match="CascadeDiffusion: t must be from 0 to 1, not 1.1"):
        objective.loss(answer, *[torch.zeros(1, 1, 1, 1, 1)] * 3, torch.tensor([1.1]))


# ---------------------------------------------------------------- weights that watch the loss


def test_adaptive_weights_are_the_original_s():
    objective = CascadeDiffusion(loss_weighting="adaptive")
    run = objective.in_training()
    assert torch.equal(run.weights(1 - R), torch.ones(7))
    for i, logsnr in enumerate(ADAPTIVE_LOGSNR, 1):
        for _ in range(50):
            losses = torch.tensor([0.9, 0.05, 2.0, 0.3]) * i
            run.observe(cosine_time(numbers(logsnr)), dict(mse=losses))
    weights = run.weights(cosine_time(numbers(ADAPTIVE_AT)))
    close(weights.double(), numbers(ADAPTIVE))
    t = cosine_time(numbers(ADAPTIVE_AT))[:7].float()
    latents, noise = latents_and_noise()
    terms = run.loss(answer, latents, None, noise, t)
    assert torch.equal(terms["loss"], terms["mse"] * run.weights(t))
    assert torch.equal(objective.weights(t), torch.ones(7)), "the objective itself has no state"


def test_samples_of_one_bucket_count_together_in_any_order():
    states = []
    for order in ([0, 1, 2, 3], [3, 2, 0, 1]):
        run = CascadeDiffusion(loss_weighting="adaptive", bucket_decay=0.5).in_training()
        t = torch.tensor([0.5, 0.5, 0.2, 0.5])[order]
        run.observe(t, dict(mse=torch.tensor([1.0, 2.0, 7.0, 6.0])[order]))
        states.append(run.state_dict()["bucket_losses"])
    assert torch.equal(*states)
    changed = states[0][states[0] != 1]
    assert changed.tolist() == [4.0, 2.0]  # (1 + 7) / 2 and (1 + 3) / 2


def test_a_state_of_other_buckets_is_refused():
    run = CascadeDiffusion(loss_weighting="adaptive").in_training()
    for wrong in ({}, dict(bucket_losses=torch.ones(20))):
        with pytest.raises(ValueError, match=r"bucket_losses must be \(300,\), not"):
            run.load_state_dict(wrong)
    with pytest.raises(ValueError, match="as_mmengine: this objective changes while it trains"):
        as_mmengine(Net(), CascadeDiffusion(loss_weighting="adaptive"))


def watching(out, objective=CascadeDiffusion(loss_weighting="adaptive", buckets=30), **changes):
    return go(out, net=Net(dropout=changes.pop("dropout", 0.1)), objective=objective, **changes)


def test_a_run_with_adaptive_weights_resumes_exactly(tmp_path):
    whole = watching(tmp_path / "whole")
    for stop in (9, 22, None):
        watching(tmp_path / "parts", stop_at=stop)
    same_run(tmp_path / "whole", tmp_path / "parts")
    states = [load_checkpoint(tmp_path / name).objective for name in ("whole", "parts")]
    assert same(*states) and len(states[0]["bucket_losses"].unique()) > 10
    assert whole.log[-1]["loss"] != pytest.approx(whole.log[-1]["mse"])
    # a run of its own, though the objective is the same object
    assert watching(None).log[-1]["loss"] == whole.log[-1]["loss"]


def test_processes_have_the_state_of_one(tmp_path):
    "Each with two microbatches; and one goes on from two."
    options = dict(dropout=0, batch_size=4, accumulate=2)
    watching(tmp_path / "one", **options)
    job = partial(watching, tmp_path / "both", stop_at=25, **options)
    assert together(lambda rank: job(), tmp_path) == ["", ""]
    watching(tmp_path / "both", **options)
    equal(tmp_path / "one", tmp_path / "both", 1e-4)
    one, both = (load_checkpoint(tmp_path / name).objective for name in ("one", "both"))
    assert len(one["bucket_losses"].unique()) > 10
    close(one, both)


def test_without_them_a_checkpoint_has_no_state(tmp_path):
    watching(tmp_path / "run", CascadeDiffusion(), steps=3)
    checkpoint = load_checkpoint(tmp_path / "run")
    assert not checkpoint.objective and not (checkpoint.path / "objective.safetensors").exists()


# ---------------------------------------------------------------- its samplers


@pytest.mark.parametrize("sampler, prediction, shift", SAMPLES)
def test_twenty_steps_are_the_original_s(sampler, prediction, shift):
    objective = CascadeDiffusion(prediction, logsnr_shift=shift)
    noise = indexed_noise(3, 0, range(2), (2, 1, 2, 2))[0].double()
    ask = dict(solver="ddim", eta=float(sampler == "ddpm"), last="data", steps=20)
    x = sample(answer, objective, noise=noise, seed=3, **ask)
    close(x[:, :, 0, 0].flatten(), numbers(SAMPLES[sampler, prediction, shift]))


def test_its_steps_are_those_of_diffusers(monkeypatch):
    "All but the noise of the last step, which diffusers leaves out and the original does not use."
    objective = CascadeDiffusion()
    scheduler = DDPMWuerstchenScheduler()
    scheduler.set_timesteps(20)
    x = noise_like(2, 3, 1, 4, 4)
    drawn = torch.Generator().manual_seed(5)
    monkeypatch.setattr(
        "minisora.sampling.indexed_noise",
        lambda seed, step, index, shape, device: (torch.randn(2, *shape, generator=drawn), None),
    )
    ask = dict(solver="ddim", eta=1.0, steps=20, noise=x)
    states = list(sample_iter(answer, objective, **ask))
    generator = torch.Generator().manual_seed(5)
    for r, (t, ours, data) in zip(scheduler.timesteps[:-1], states):
        close(ours, x, rtol=1e-4, atol=1e-4)
        assert t == pytest.approx(1 - float(r), abs=1e-6)
        told = cosine_time(objective.logsnr(torch.full((2,), t)))
        noise = answer(x, told)
        x = scheduler.step(noise, r.expand(2), x, generator).prev_sample
    # without its noise the last step leaves the data, and a little of the noise that is left
    close(x, 0.99995 * data, rtol=0.02, atol=0.02)


def gaussian(objective, mean=0.7, std=0.5):
    "The model that knows data of this mean and deviation."

    def model(x, told, y=None):
        signal = torch.sigmoid(cosine_logsnr(told)[0])
        alpha, sigma = (append_dims(c.sqrt(), x) for c in (signal, 1 - signal))
        noise = sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        data = (x - sigma * noise) / alpha
        return dict(noise=noise, data=data, v=alpha * noise - sigma * data, flow=noise - data)[
            objective.prediction
        ]

    return model


@pytest.mark.parametrize("prediction", LOSSES)
@pytest.mark.parametrize(
    "ask",
    [
        dict(solver="euler", steps=100), dict(solver="heun", steps=40),
        dict(solver="midpoint", steps=40), dict(solver="rk4", steps=40),
        dict(solver="dopri5", together=True), dict(solver="sde", steps=100),
        dict(solver="ddim", steps=100), dict(solver="ddim", steps=200, eta=1.0, last="data"),
        dict(solver="heun", steps=40, shift=2.0),
    ],
    ids=lambda ask: ask["solver"],
)  # fmt: skip
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_every_solver_draws_data_of_the_right_mean_and_spread(prediction, ask, shift):
    objective = CascadeDiffusion(prediction, logsnr_shift=shift)
    noise = noise_like(2, 1, 1, 40, 50)
    x = sample(gaussian(objective), objective, noise=noise, **ask)
    assert x.mean() == pytest.approx(0.7, abs=0.03)
    assert x.std() == pytest.approx(0.5, abs=0.03)


def test_a_solver_needs_no_shift_of_its_own_and_may_have_another_than_in_training():
    model = Net()
    model.trained_with = dict(objective=CascadeDiffusion(loss_weighting="none").to_dict())
    ask = dict(n=1, shape=(1, 4, 2, 2), steps=2, solver="ddim")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(model, CascadeDiffusion(logsnr_shift=2.0), **ask)
    with pytest.raises(ValueError, match="trained with prediction='noise', the objective has 'v'"):
        sample(model, CascadeDiffusion("v"), **ask)


def test_the_last_step_of_ddim_may_go_to_the_data():
    objective = Interpolant(prediction="data")
    noise = noise_like(2, 2, 1, 2, 2)
    states = list(sample_iter(answer, objective, noise=noise, steps=4, solver="ddim", last="data"))
    assert torch.equal(states[-1][1], states[-2][2])
    with pytest.raises(ValueError, match="last must be one of 'step', 'data'"):
        sample(answer, objective, noise=noise, solver="ddim", last="mean")


# ---------------------------------------------------------------- a code, in this objective


def test_a_stage_of_the_original_s_objective_is_told_a_code(caches, tmp_path):
    objective = CodeConditionedDiffusion(loss_weighting="adaptive", **CODED)
    assert objective_from_dict(objective.to_dict()) == objective
    train(caches, tmp_path / "whole", objective=objective)
    for stop in (4, 13, None):
        train(caches, tmp_path / "parts", objective=objective, stop_at=stop)
    same_run(tmp_path / "whole", tmp_path / "parts")
    assert len(load_checkpoint(tmp_path / "parts").objective["bucket_losses"].unique()) > 10
    model = CodeConditionedModel(Coded(), noise_like(2, 5, 2, 2, 2), True)
    made = sample(model, objective, [[0], [1]], steps=3, solver="ddim", eta=1.0, last="data")
    assert made.shape == (2, 5, 2, 4, 4) and made.isfinite().all()
