"""A stage that doubles latents: what it is told, the model, the objective, pairs of caches, and
sampling in tiles."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.autoencoder import small_vae
from helpers.latent_cache import SMALL, Clips, Tiny
from helpers.models import close, same, without_gradient
from helpers.train import same as same_run
from helpers.upsampling import GUIDES, OBJECTIVE, WORDY, noise_like, upsampler, upsampler_config
from torch import nn
from torch.nn import functional as F

from minisora.core.hub import MODELS
from minisora.core.noise import indexed_noise
from minisora.interpolants import objective_from_dict
from minisora.latent_cache import LatentCache, write_cache
from minisora.models.modulation import AdaLNLoRA
from minisora.models.windows import Windows
from minisora.sampling import CallCounter, sample
from minisora.train import fit
from minisora.upsampling import (
    DepthToSpaceGuide,
    EnlargedGuide,
    PairedLatents,
    TiledModel,
    UpsamplerConditionedModel,
    UpsamplerConfig,
    UpsamplerDiT,
    Upsampling,
    add_level,
    call_upsampler,
    depth_to_space,
    enlarge_frames,
    space_to_depth,
    upsample,
)

TOLD = (4, 3, 4, 4)  # what the small model is told, without the batch
ASK = dict(steps=2, seed=3)
by_kind = pytest.mark.parametrize("guide", GUIDES, ids=lambda g: g.kind)


# ---------------------------------------------------------------- what a stage is told


def test_depth_to_space_is_torch_s_pixel_shuffle():
    z = noise_like(2, 12, 3, 4, 5)
    frames = z.transpose(1, 2).flatten(0, 1)  # (B · T, 4 C, h, w)
    wanted = F.pixel_shuffle(frames, 2).unflatten(0, (2, 3)).transpose(1, 2)
    assert torch.equal(depth_to_space(z), wanted)
    assert torch.equal(space_to_depth(depth_to_space(z)), z)
    assert torch.equal(depth_to_space(space_to_depth(wanted)), wanted)


def test_a_level_leaves_the_latents_or_the_noise():
    z = noise_like(3, 2, 1, 2, 2)
    noise = noise_like(3, 2, 1, 2, 2, seed=1)
    mixed = add_level(z, noise, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(mixed[0], z[0]) and torch.equal(mixed[1], noise[1])
    assert torch.allclose(mixed[2], 0.75 * z[2] + 0.25 * noise[2])


def test_frames_are_enlarged_one_by_one_and_stay_in_range():
    clips = noise_like(2, 3, 4, 6, 5).clamp(-1, 1).sign()
    larger = enlarge_frames(clips)
    assert larger.shape == (2, 3, 4, 12, 10) and larger.abs().max() == 1
    assert torch.equal(enlarge_frames(clips[:, :, 2:3]), larger[:, :, 2:3])
    assert torch.allclose(enlarge_frames(torch.full((1, 3, 1, 4, 4), 0.3)), torch.tensor(0.3))


@by_kind
def test_what_a_guide_tells_lies_on_the_large_grid(guide):
    ae = small_vae()
    clips = noise_like(2, 3, 5, 16, 24).clamp(-1, 1)
    told = guide.encode(ae, clips)
    assert told.shape == (2, 4, 2, 4, 6)
    with torch.no_grad():
        if guide.kind == "enlarged":
            close(told, ae.encode(enlarge_frames(clips)).mode)
        else:
            close(told[..., 1::2, 1::2], ae.encode(clips).mode)
            assert torch.equal(told[..., ::2, :], told[..., 1::2, :])


# ---------------------------------------------------------------- the model


def test_the_config_comes_back_from_json():
    for guide in GUIDES:
        config = upsampler_config(
            guide=guide, condition=WORDY, layout=Windows(((1, 0, 0), (0, 2, 2))),
            modulation=AdaLNLoRA(2),
        )  # fmt: skip
        values = json.loads(json.dumps(config.to_dict()))
        assert values["guide"] == dict(kind=guide.kind)
        again = UpsamplerConfig(**{k: v for k, v in values.items() if k != "version"})
        assert again == config and type(again.guide) is type(guide)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(guide="pixels"), "UpsamplerConfig.guide must be one of 'depth-to-space', 'enlarged'"),
        (dict(guide=dict(kind="pixels")), "UpsamplerConfig.guide must be .*not 'pixels'"),
        (dict(guide=3), "UpsamplerConfig.guide must be .*not 3"),
        (dict(channels=8), r"channels must be 2 C \+ 1 for latents of C channels, not 8"),
        (dict(channels=1), r"channels must be 2 C \+ 1 .*not 1"),
        (dict(size=(3, 5, 4), patch=(1, 1, 1)), r"size must have even rows and columns.*\(3, 5, 4"),
        (dict(size=(3, 6, 4), patch=(1, 4, 2)), "does not divide"),
    ],
)
def test_a_wrong_config_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        upsampler_config(**wrong)


@by_kind
def test_saved_and_loaded_it_answers_with_the_same_bits(guide, tmp_path):
    model = upsampler(guide=guide, condition=WORDY)
    model.save_pretrained(tmp_path)
    again = MODELS["video-dit-upsampler"].from_pretrained(tmp_path)
    assert type(again) is UpsamplerDiT and again.config == model.config
    assert same(again.state_dict(), model.state_dict())
    x = noise_like(2, 9, 3, 4, 4)
    t = torch.tensor([0.2, 0.7])
    y = torch.tensor([[0], [2]])
    with torch.no_grad():
        assert torch.equal(again(x, t, y), model(x, t, y))


def test_a_fresh_model_answers_zero_and_learns_everywhere():
    fresh = UpsamplerDiT(upsampler_config(condition=WORDY))
    x = noise_like(2, 9, 3, 4, 4)
    t = torch.tensor([0.2, 0.7])
    y = torch.tensor([[0], [2]])
    assert not fresh(x, t, y).any()
    model = upsampler(condition=WORDY).train()
    model(x, t, y).square().sum().backward()
    assert not without_gradient(model), without_gradient(model)
    assert model.latent_shape == TOLD and model.latent_channels == 4
    with pytest.raises(ValueError, match=r"x must be \(B, 4 \+ 4 \+ 1, …\).*not \(2, 8, 3, 4, 4\)"):
        model(x[:, :8], t, y)


def test_the_level_reaches_all_blocks_by_its_embedder():
    model = upsampler()
    z = noise_like(2, 4, 3, 4, 4)
    told = noise_like(2, 4, 3, 4, 4, seed=1)
    t = torch.full((2,), 0.4)

    def steering(level):
        plane = torch.full((2, 1, 3, 4, 4), level)
        return model.embed_time(t, torch.cat([z, told, plane], 1))

    assert (steering(0.0) - steering(0.3)).abs().max() > 1e-3
    with torch.no_grad():
        low, high = (call_upsampler(model, z, told, torch.full((2,), v), t) for v in (0.0, 0.3))
        assert (low - high).abs().max() > 1e-3
        # each sample its own
        both = call_upsampler(model, z, told, torch.tensor([0.0, 0.3]), t)
        close(both, torch.cat([low[:1], high[1:]]))
        # the plane of an input is no substitute: without its embedder the steering is blind to it
        for p in model.level_embedder.parameters():
            p.zero_()
    assert torch.equal(steering(0.0), steering(0.3))


def squared_error(model, told, large):
    guide = model.config.guide
    with torch.no_grad():
        guess = guide.arrange(model.features(guide.take(told)))
    return (guess - large).square().mean().item()


@by_kind
def test_features_reach_the_error_of_least_squares(guide):
    model = UpsamplerDiT(upsampler_config(guide=guide))
    large = noise_like(24, 4, 3, 4, 4)
    means = F.avg_pool3d(large, (1, 2, 2))
    told = means.repeat_interleave(2, 3).repeat_interleave(2, 4) + 0.3
    told = told + (0 if guide.kind == "depth-to-space" else 0.2 * noise_like(*told.shape, seed=2))
    assert model.fit_features(told, large, ridge=1e-9, batch=7) is model
    # written out: one row of 9 · C numbers and a one for each place that the layer looks at
    seen = told if guide.kind == "enlarged" else told[..., ::2, ::2]
    wanted = large if guide.kind == "enlarged" else space_to_depth(large)
    frames = seen.transpose(1, 2).flatten(0, 1)  # (B · T, C, h, w)
    rows = F.unfold(frames, 3, padding=1).transpose(1, 2).flatten(0, 1)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1).double()
    targets = wanted.permute(0, 2, 3, 4, 1).flatten(0, 3).double()
    solution = torch.linalg.lstsq(rows, targets).solution
    best = (rows @ solution - targets).square().mean().item()
    assert best < 0.9 * large.square().mean()
    assert squared_error(model, told, large) == pytest.approx(best, rel=1e-4)
    # the model's own answer, its head still asleep, is that guess
    x = torch.cat([0 * large, told, 0 * large[:, :1]], 1)
    with torch.no_grad():
        left = (model(x, torch.zeros(24)) - large).square().mean().item()
    assert left == pytest.approx(best, rel=1e-4)


def test_a_ridge_keeps_the_weights_small():
    large = noise_like(24, 4, 3, 4, 4)
    sizes = []
    for ridge in (1e-6, 1.0):
        model = UpsamplerDiT(upsampler_config()).fit_features(large, large, ridge=ridge)
        sizes.append(model.features.weight.norm().item())
    assert sizes[1] < 0.7 * sizes[0]


# ---------------------------------------------------------------- the objective


def batch(n=5, step=0):
    latents = noise_like(n, 8, 3, 4, 4, seed=step)
    noise, _ = indexed_noise(7, step, range(n), latents.shape[1:])
    return latents, torch.arange(n)[:, None] % 3, noise, torch.linspace(0.1, 0.9, n)


@pytest.mark.parametrize("prediction", ["data", "velocity"])
def test_the_loss_written_out(prediction):
    model = upsampler(condition=WORDY)
    objective = Upsampling(prediction=prediction, loss_weighting="velocity", max_level=0.4)
    latents, y, noise, t = batch()
    large, told = latents[:, :4], latents[:, 4:]
    at = t.view(-1, 1, 1, 1, 1)
    level = (noise[:, 3, 2, 3, 3].double() * 4096 % 1 * 0.4).float()
    share = level.view(-1, 1, 1, 1, 1)
    with torch.no_grad():
        x = at * large + (1 - at) * noise[:, :4]
        told = (1 - share) * told + share * noise[:, 4:]
        plane = share.expand(-1, 1, 3, 4, 4)
        answer = model(torch.cat([x, told, plane], 1), t, y)
        target = large if prediction == "data" else large - noise[:, :4]
        mse = (answer - target).square().flatten(1).mean(1)
        weight = 1 / (1 - t) ** 2 if prediction == "data" else torch.ones_like(t)
        terms = objective.loss(model, latents, y, noise, t)
    assert terms["mse"].shape == (5,)
    torch.testing.assert_close(terms["mse"], mse, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms["loss"], mse * weight, rtol=1e-4, atol=1e-5)
    # a sample alone has the same loss
    one = [part[2:3] for part in (latents, y, noise, t)]
    with torch.no_grad():
        alone = objective.loss(model, *one)["loss"]
    torch.testing.assert_close(alone, terms["loss"][2:3], rtol=1e-4, atol=1e-5)


class Recorder(nn.Module):
    "Keeps what it is asked."

    def forward(self, x, t, y=None):
        self.x = x
        return 0 * x[:, :4]


def test_without_levels_what_is_told_is_clean():
    latents, y, noise, t = batch()
    seen = Recorder()
    Upsampling(prediction="data", max_level=0).loss(seen, latents, y, noise, t)
    assert torch.equal(seen.x[:, 4:8], latents[:, 4:]) and not seen.x[:, 8].any()
    Upsampling(prediction="data", max_level=0.3).loss(seen, latents, y, noise, t)
    assert (seen.x[:, 4:8] - latents[:, 4:]).abs().amin(0).max() > 0
    assert (seen.x[:, 8] == seen.x[:, 8, :1, :1, :1]).all() and seen.x[:, 8].max() > 0


def test_levels_are_even_repeatable_and_of_the_noise_alone():
    objective = Upsampling(max_level=0.3)
    noise, _ = indexed_noise(0, 5, range(3000), (2, 1, 1, 2))
    levels = objective.levels(noise)
    assert 0 <= levels.min() and levels.max() < 0.3
    counts = torch.histc(levels, 3, 0, 0.3) / 3000
    assert (counts - 1 / 3).abs().max() < 0.03
    assert torch.equal(levels[100:200], objective.levels(noise[100:200]))
    pairs = torch.stack([levels, noise[:, 1, 0, 0, 1]])
    assert abs(torch.corrcoef(pairs)[0, 1]) < 0.06


def test_the_objective_comes_back_from_json():
    objective = Upsampling(prediction="data", max_level=0.2, shift=2.0)
    values = json.loads(json.dumps(objective.to_dict()))
    assert objective_from_dict(values) == objective and values["objective"] == "upsampling"
    for wrong in (-0.1, 1.5, "a"):
        with pytest.raises(ValueError, match="max_level must be a number from 0 to 1"):
            Upsampling(max_level=wrong)


# ---------------------------------------------------------------- training on two caches


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    "The folders of caches of 12 clips of 16×16 and 32×32 pixels: 2×2 and 4×4 latents."
    root = tmp_path_factory.mktemp("caches")
    for size in (16, 32):
        write_cache(root / str(size), Clips(12, size), Tiny(), **SMALL)
        write_cache(root / f"{size}-flips", Clips(12, size), Tiny(), flips=True, **SMALL)
    return root


def pairs(caches, small="16", large="32", **options):
    return PairedLatents(LatentCache(caches / small), LatentCache(caches / large, **options))


def test_a_pair_is_both_latents_by_one_scale(caches):
    data = pairs(caches)
    large = LatentCache(caches / "32")
    small = LatentCache(caches / "16")
    assert len(data) == 12 and data.shape == (10, 2, 4, 4)
    sample = data[3]["latents"]
    assert sample.shape == (10, 2, 4, 4) and torch.equal(sample[:5], large[3]["latents"])
    told = large.normalize(small.denormalize(small[3]["latents"]))
    torch.testing.assert_close(sample[5:, :, ::2, ::2], told)
    torch.testing.assert_close(sample[5:, :, 1::2, 1::2], told)
    whole = data.__getitems__([5, 3])
    assert torch.equal(whole["latents"][1], sample) and whole["index"].tolist() == [5, 3]
    assert data.captions == large.captions and data.mean is data.large.mean


def test_told_of_the_enlarged_clips_it_stays_as_it_is(caches):
    data = pairs(caches, "32")
    sample = data[0]["latents"]
    assert torch.equal(sample[:5], sample[5:])


def test_mirror_images_are_mirrored_together(caches):
    data = pairs(caches, "32-flips", "32-flips")
    seen = set()
    for epoch in range(6):
        data.set_epoch(epoch)
        z = data.__getitems__(range(12))["latents"]
        assert torch.equal(z[:, :5], z[:, 5:]), f"epoch {epoch} turns only one of the two"
        seen.add(z.sum((1, 2, 3)).numpy().tobytes())
    assert len(seen) > 1, "each epoch draws its own"
    with pytest.raises(ValueError, match="only one of the caches is flipped"):
        pairs(caches, "32", "32-flips")
    assert pairs(caches, "32", "32-flips", flip=False)[0]["latents"].shape == (10, 2, 4, 4)


def test_caches_that_do_not_belong_together_are_named(caches, tmp_path):
    write_cache(tmp_path / "few", Clips(11, 16), Tiny(), **SMALL)
    with pytest.raises(ValueError, match="PairedLatents: a cache of 11 clips and one of 12"):
        PairedLatents(LatentCache(tmp_path / "few"), LatentCache(caches / "32"))
    with pytest.raises(ValueError, match=r"\(5, 2, 2, 2\) need small ones.*not \(5, 2, 4, 4\)"):
        pairs(caches, "32", "16")

    class Other(Clips):
        def __getitem__(self, i):
            return replace(super().__getitem__(i), caption="something else")

    write_cache(tmp_path / "other", Other(12, 16), Tiny(), **SMALL)
    with pytest.raises(ValueError, match="PairedLatents: the captions of the two caches differ"):
        PairedLatents(LatentCache(tmp_path / "other"), LatentCache(caches / "32"))


def small_model():
    return UpsamplerDiT(upsampler_config(channels=11, size=(2, 4, 4), depth=1))


def train(caches, out=None, small="16-flips", large="32-flips", **changes):
    options = dict(
        steps=24, batch_size=4, lr=3e-3, warmup=2, log_every=3, save_every=5, progress=False
    )
    return fit(small_model(), pairs(caches, small, large), OBJECTIVE, out=out, **options | changes)


def test_fit_trains_it(caches):
    data = pairs(caches)
    latents = data.__getitems__(range(12))["latents"]
    noise, _ = indexed_noise(1, 0, range(12), latents.shape[1:])
    t = torch.full((12,), 0.5)
    losses = []
    for model in (small_model(), train(caches, small="16", large="32", steps=60).ema):
        with torch.no_grad():
            losses.append(OBJECTIVE.loss(model, latents, None, noise, t)["mse"].mean().item())
    assert losses[1] < 0.9 * losses[0], losses


def test_a_training_resumes_exactly(caches, tmp_path):
    "Its pairs with mirror images, over several epochs; stopped twice."
    train(caches, tmp_path / "whole")
    for stop in (4, 13, None):
        train(caches, tmp_path / "parts", stop_at=stop)
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_fit_refuses_latents_that_are_not_paired(caches):
    with pytest.raises(ValueError, match="latents have 5 channels, the model takes 10"):
        fit(small_model(), LatentCache(caches / "32"), OBJECTIVE, steps=1, progress=False)


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("solver", ["euler", "heun", "sde"])
@pytest.mark.parametrize("size", [(4, 4), (6, 10)], ids=["whole", "tiles"])
def test_a_sample_depends_on_its_index_alone(solver, size):
    model = upsampler(condition=WORDY)
    told = noise_like(4, 4, 3, *size)
    y = torch.tensor([[0], [1], [2], [1]])
    ask = dict(ASK, solver=solver, level=0.2, guidance=2.0)
    whole = upsample(model, OBJECTIVE, told, y, **ask)
    assert whole.shape == told.shape
    for rows in ([2], [3, 1]):
        some = upsample(model, OBJECTIVE, told[rows], y[rows], index=rows, **ask)
        close(some, whole[rows], 1e-4)
    moved = upsample(model, OBJECTIVE, told[:1], y[:1], index=[5], **ask)
    assert (moved - whole[:1]).abs().max() > 1e-3, "another index, another sample"
    other = upsample(model, OBJECTIVE, told, y, **dict(ask, seed=4))
    assert (other - whole).abs().max() > 1e-3


def test_an_adaptive_solver_asks_about_each_sample_with_its_own():
    pytest.importorskip("torchdiffeq")
    model = upsampler(condition=WORDY, depth=1)
    objective = Upsampling(prediction="velocity")
    told = noise_like(3, *TOLD)
    y = torch.tensor([[0], [1], [2]])
    ask = dict(solver="dopri5", atol=0.1, rtol=0.1, guidance=2.0)
    whole = upsample(model, objective, told, y, **ask)
    close(upsample(model, objective, told[1:2], y[1:2], index=[1], **ask), whole[1:2], 1e-4)
    together = upsample(model, objective, told, y, together=True, **ask)
    assert (together - whole).abs().max() < 0.5 * whole.abs().max()


def test_what_is_told_counts():
    model = upsampler()
    told = noise_like(1, *TOLD)
    first = upsample(model, OBJECTIVE, told, **ASK)
    assert (upsample(model, OBJECTIVE, told + 0.5, **ASK) - first).abs().max() > 1e-2


def test_guidance_doubles_what_is_told_with_the_batch():
    model = upsampler(condition=WORDY)
    told = noise_like(3, *TOLD)
    level = torch.tensor([0.0, 0.1, 0.2])
    asked = UpsamplerConditionedModel(model, told, level)
    x = noise_like(3, *TOLD, seed=5)
    t = torch.full((3,), 0.3)
    y = torch.tensor([[0], [1], [2]])
    none = torch.full_like(y, model.null_id)
    with torch.no_grad():
        both = asked(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, none]))
        close(both[:3], call_upsampler(model, x, told, level, t, y))
        close(both[3:], call_upsampler(model, x, told, level, t, none))
    assert asked.null_id == model.null_id and asked.latent_shape == TOLD
    # one step of the sampler, written out
    objective = Upsampling(prediction="velocity")
    noise, _ = indexed_noise(3, 0, range(3), TOLD)
    zero = torch.zeros(3)
    with torch.no_grad():
        free, given = (call_upsampler(model, noise, told, zero, zero, c) for c in (none, y))
        wanted = noise + free + 3 * (given - free)
    close(upsample(model, objective, told, y, guidance=3.0, steps=1, seed=3), wanted, 1e-4)


def test_guidance_is_off_unless_asked_for():
    model = CallCounter(upsampler(condition=WORDY))
    told = noise_like(2, *TOLD)
    y = torch.tensor([[0], [1]])
    upsample(model, OBJECTIVE, told, y, **ASK)
    assert (model.calls, model.rows) == (2, 4)
    upsample(model, OBJECTIVE, told, y, guidance=2.0, **ASK)
    assert (model.calls, model.rows) == (4, 12)


def test_the_level_noises_what_is_told_and_is_said():
    told = noise_like(2, *TOLD)

    class Watched(UpsamplerDiT):
        def forward(self, x, t, y=None):
            self.x = x
            return super().forward(x, t, y)

    model = Watched(upsampler_config())
    upsample(model, OBJECTIVE, told, level=0.25, index=[4, 9], **ASK)
    noise, _ = indexed_noise(ASK["seed"], 1, [4, 9], TOLD)  # of seed and index alone
    torch.testing.assert_close(model.x[:, 4:8], 0.75 * told + 0.25 * noise)
    assert (model.x[:, 8] == 0.25).all()
    start, _ = indexed_noise(ASK["seed"], 0, [4, 9], TOLD)
    assert (noise - start).abs().max() > 1, "not the noise that sampling starts from"
    upsample(model, OBJECTIVE, told, **ASK)
    assert torch.equal(model.x[:, 4:8], told)


@pytest.mark.parametrize("level", [-0.1, 0.31, "much", None, True])
def test_a_level_out_of_range_is_named(level):
    with pytest.raises(ValueError, match="level must be a number from 0 to 0.3, not"):
        upsample(upsampler(), OBJECTIVE, noise_like(1, *TOLD), level=level)


@pytest.mark.parametrize("shape", [(1, 3, 3, 4, 4), (1, 4, 2, 4, 4), (4, 3, 4, 4)])
def test_what_cannot_be_told_is_named(shape):
    with pytest.raises(ValueError, match=r"told must be \(B, 4, 3, H, W\), not \("):
        upsample(upsampler(), OBJECTIVE, torch.zeros(shape))


# ---------------------------------------------------------------- tiles


class Answering:
    "A model of tiles of 2 × 4 × 6 that notes what it is asked."

    config = upsampler_config(channels=3, size=(2, 4, 6))

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def __call__(self, x, t, y=None):
        self.asked.append(tuple(x.shape[3:]))
        return self.answer(x)


SIZES = [(4, 6), (4, 8), (6, 6), (10, 22), (12, 14)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("overlap", [None, 0, 2])
def test_tiles_of_a_constant_are_that_constant(size, overlap):
    model = Answering(lambda x: torch.full_like(x, 2.0))
    x = noise_like(1, 3, 2, *size)
    answer = TiledModel(model, overlap)(x, torch.zeros(1))
    assert answer.shape == x.shape and (answer == 2).all()
    assert set(model.asked) == {(4, 6)}, "only what the model was made for"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_are_put_where_they_were_taken(size):
    x = noise_like(2, 3, 2, *size)
    answer = TiledModel(Answering(lambda part: 3 * part), 2)(x, torch.zeros(2))
    torch.testing.assert_close(answer, 3 * x)


def test_tiles_begin_at_even_places_and_are_blended():
    "Depth to space has pairs: an odd start would tear them. A ramp from one answer to the next."
    model = Answering(lambda x: torch.full_like(x, float(len(model.asked) - 1)))
    tiled = TiledModel(model, 2)
    assert all(start % 2 == 0 for start, _ in tiled.tiles(1, 22))
    answer = tiled(torch.zeros(1, 3, 2, 4, 10), torch.zeros(1))[0, 0, 0, 0]
    torch.testing.assert_close(answer, torch.tensor([0, 0, 0, 0, 0.25, 0.75, 1, 1, 1, 1]))


@by_kind
def test_one_tile_that_covers_all_is_the_model(guide):
    model = upsampler(guide=guide)
    x = noise_like(2, 9, 3, 4, 4)
    t = torch.tensor([0.2, 0.8])
    with torch.no_grad():
        assert torch.equal(TiledModel(model)(x, t), model(x, t))


@pytest.mark.parametrize(
    "overlap, message",
    [
        (1, "overlap must be even, not 1"),
        (-2, "overlap must be a whole number from 0 to 2, not -2"),
        (4, "overlap must be a whole number from 0 to 2, not 4"),
        (0.5, "overlap must be a whole number"),
    ],
)
def test_a_wrong_overlap_is_named(overlap, message):
    with pytest.raises(ValueError, match=message):
        TiledModel(upsampler(), overlap)


@by_kind
@pytest.mark.parametrize("size", [(2, 2), (4, 14), (5, 7), (10, 3)], ids=str)
def test_any_size_comes_out_as_it_was_told(guide, size):
    "Smaller than a tile, wide, odd."
    model = upsampler(guide=guide)
    told = noise_like(1, 4, 3, *size)
    made = upsample(model, OBJECTIVE, told, **ASK)
    assert made.shape == told.shape and made.isfinite().all() and made.std() > 0.01


def test_tiles_agree_at_each_step():
    "A clip of two tiles differs from the two halves made alone only by what tiles tell each other."
    model = upsampler(guide=EnlargedGuide())
    told = noise_like(1, 4, 3, 4, 8)
    made = upsample(model, OBJECTIVE, told, overlap=0, **ASK)
    alone = upsample(model, OBJECTIVE, told[..., :4], **ASK)
    noise = indexed_noise(3, 0, [0], (4, 3, 4, 8))[0]
    assert made.shape == (1, 4, 3, 4, 8) and alone.shape == (1, 4, 3, 4, 4)
    # from the left half of the same noise, with no overlap, it is the left half
    asked = UpsamplerConditionedModel(model, told[..., :4], torch.zeros(1))
    left = sample(asked, OBJECTIVE, noise=noise[..., :4], steps=2, guidance=1.0)
    close(made[..., :4], left, 1e-4)
    blended = upsample(model, OBJECTIVE, noise_like(1, 4, 3, 4, 6), overlap=2, **ASK)
    assert blended.isfinite().all()


def test_depth_to_space_keeps_its_pairs_in_tiles():
    "Its features in tiles are those of the whole, away from a tile's edge."
    model = UpsamplerDiT(upsampler_config(guide=DepthToSpaceGuide(), size=(3, 8, 8)))
    with torch.no_grad():
        nn.init.normal_(model.features.weight)
    told = noise_like(1, 4, 3, 4, 8).repeat_interleave(2, 3).repeat_interleave(2, 4)  # 8 × 16
    x = torch.cat([0 * told, told, 0 * told[:, :1]], 1)
    with torch.no_grad():
        whole = model.config.guide.arrange(model.features(told[..., ::2, ::2]))
        tiled = TiledModel(model, 0)(x, torch.zeros(1))  # the rest of the model answers zero
    close(tiled[..., 2:6], whole[..., 2:6])
    close(tiled[..., 10:14], whole[..., 10:14])
