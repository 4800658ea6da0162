"""What version 0.1 wrote still loads, reads, samples and resumes, with the same numbers.

`tests/data/version-0.1` was written by that version (its make.py says how). Numbers that were
computed are held to 1e-4, since processors round differently; with MINISORA_EXACT=1, on the machine
that wrote them, to the bit."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from minisora.autoencoder import load_autoencoder
from minisora.clips import SceneClips
from minisora.core.noise import indexed_noise
from minisora.data.video import stack_clips, to_float
from minisora.data.vocabulary import Vocabulary
from minisora.diffusion import GaussianDiffusion
from minisora.dit import DiT, DiTConfig
from minisora.evaluation.judge import AttributeClassifier
from minisora.experiment import Experiment
from minisora.frames import FramePrediction, sample_continuation
from minisora.interpolants import Interpolant
from minisora.latent_cache import LatentCache, write_cache
from minisora.latents.compression import PCACompressedVAE
from minisora.latents.video_vae import CausalVideoVAE
from minisora.latents.video_vae_training import CropSampler, train_video_vae
from minisora.models.conditions import WordCondition
from minisora.models.layers import BlockConfig
from minisora.models.layouts import Checkpointed, Factorized, Routed
from minisora.models.positions import RopePositions
from minisora.pipeline import VideoPipeline
from minisora.sampling import renoise_average, sample
from minisora.temporal import VideoDiT, VideoDiTConfig, inflate, resize_video
from minisora.train import fit
from minisora.training.checkpoint import load_checkpoint

HERE = Path(__file__).parent / "data" / "version-0.1"
EXPECTED = load_file(HERE / "expected.safetensors")
EXACT = os.environ.get("MINISORA_EXACT") == "1"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(name, value, exact=EXACT):
    want = EXPECTED[name]
    assert value.shape == want.shape and value.dtype == want.dtype, name
    if exact:
        assert torch.equal(value, want), f"{name} differs by {(value - want).abs().max():.2e}"
    else:
        torch.testing.assert_close(
            value, want, rtol=1e-4, atol=1e-4, msg=lambda text: f"{name}: {text}"
        )


def awake(model, seed=0):
    "Redraw what is zero: a fresh transformer answers exactly zero."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.abs().max() == 0:
                p.copy_(0.2 * torch.randn(p.shape, generator=g))
    return model.eval()


def noise(seed, *shape):
    return indexed_noise(seed, 0, range(shape[0]), shape[1:])[0]


TIMES = torch.tensor([0.3, 0.8])
IDS = {
    "joint": [[0, 1], [2, 3]],
    "data": [[0], [1]],
    "rope": [[0], [1]],
    "factorised": [[0, 1], [2, 0]],
    "latte": [[0], [1]],
}


@pytest.mark.parametrize(
    "name", ["joint", "data", "edm", "rope", "factorised", "inflated", "latte", "caption"]
)
def test_video_models(name):
    model = VideoDiT.from_pretrained(HERE / "models" / name)
    y = torch.tensor(IDS[name]) if name in IDS else noise(4, 2, 12) if name == "caption" else None
    with torch.no_grad():
        same(f"models/{name}", model(noise(3, 2, 2, 4, 4, 4), TIMES, y))
        if name in ("edm", "rope"):
            same(
                f"models/{name} of a smaller clip",
                model(noise(3, 2, 2, 4, 4, 4)[:, :, :2, :, :2], TIMES),
            )
        if name == "latte":
            more = model(noise(5, 2, 2, 6, 4, 4), TIMES, torch.tensor([[0, 1, 2], [3, 4, 0]]))
            same("models/latte with images", more)


def test_image_models():
    with torch.no_grad():
        dit = DiT.from_pretrained(HERE / "models" / "dit")
        same("models/dit", dit(noise(3, 2, 4, 1, 8, 8), TIMES, torch.tensor([[0], [1]])))
        same(
            "models/sit",
            DiT.from_pretrained(HERE / "models" / "sit")(noise(3, 2, 4, 1, 8, 4), TIMES),
        )


def test_other_sizes_and_inflation():
    video = resize_video(VideoDiT.from_pretrained(HERE / "models" / "joint"), (8, 4, 4), "thw")
    still = awake(DiT(DiTConfig(size=(8, 8), width=16, depth=2, heads=2, num_classes=5), seed=2))
    with torch.no_grad():
        same("resized", video(noise(3, 2, 2, 8, 4, 4), TIMES, torch.tensor([[0, 1], [2, 3]])))
        same(
            "inflated from an image model",
            inflate(still, 3)(noise(3, 2, 4, 3, 8, 8), TIMES, torch.tensor([[1], [2]])),
        )


@pytest.mark.parametrize(
    "name, folder",
    [
        ("image", "autoencoders/image"),
        ("causal", "autoencoders/causal"),
        ("folded", "avatar/autoencoder"),
    ],
)
def test_autoencoders(name, folder):
    ae = load_autoencoder(HERE / folder)
    assert (type(ae) is PCACompressedVAE) == (name == "folded")
    x = to_float(stack_clips(SceneClips(8, frames=9, size=16))[0])
    with torch.no_grad():
        z = ae.encode(x[:2])
        same(f"autoencoders/{name} mean", z.mean)
        same(f"autoencoders/{name} clip", ae.decode(z.mean))


def test_judge():
    judge = AttributeClassifier.from_pretrained(HERE / "judge")
    x = to_float(stack_clips(SceneClips(8, frames=9, size=16))[0])
    assert judge.attributes == dict(colour=["red", "green"], motion=["left", "right", "up"])
    with torch.no_grad():
        same("judge", judge.features(x[:2]))


def test_a_video_vae_resumes(tmp_path):
    shutil.copy(HERE / "video-vae-after-4.safetensors", tmp_path / "state.safetensors")
    sampler = CropSampler(
        [(stack_clips(SceneClips(8, frames=9, size=16))[0], 1.0)],
        frames=5,
        crop=16,
        color_jitter=0.5,
        mixup=0.5,
    )
    ae = CausalVideoVAE(channels=4, width=8, depth=1)
    found = train_video_vae(
        ae, sampler, steps=6, batch=2, state=tmp_path / "state.safetensors", every=2
    )
    assert found["steps"] == 6
    same("video-vae after 6", torch.cat([p.detach().flatten() for p in ae.parameters()])[::7])


@pytest.mark.parametrize("name", ["float16", "int8", "moments", "float32"])
def test_caches_are_read_to_the_bit(name):
    vocabulary = Vocabulary.from_dict(json.loads((HERE / "vocabulary.json").read_text()))
    cache = LatentCache(HERE / "caches" / name, vocabulary=vocabulary, seed=5)
    cache.set_epoch(2)
    batch = cache[[3, 9, 0]]
    same(f"caches/{name}", batch["latents"], exact=name != "moments" or EXACT)
    same(f"caches/{name} condition", batch["condition"], exact=True)


def test_a_cache_is_taken_for_the_same_one(tmp_path):
    "The call that made it makes nothing again: its autoencoder, clips and plan are recognized."
    shutil.copytree(HERE / "caches" / "float16", tmp_path / "cache")
    before = (tmp_path / "cache" / "manifest.json").read_bytes()
    flat = load_autoencoder(HERE / "autoencoders" / "flat")
    write_cache(
        tmp_path / "cache",
        SceneClips(10, frames=4, size=16),
        flat,
        batch_size=4,
        shard_size=8,
        progress=False,
    )
    assert (tmp_path / "cache" / "manifest.json").read_bytes() == before


# ------------------------------------------------- runs that were stopped after three of six steps


TINY = dict(size=(4, 4, 4), channels=2, patch=(2, 2, 2), width=16, depth=4, heads=2)


def joint(**changes):
    options = dict(
        relative_bias=True,
        block=BlockConfig(norm="rms", mlp="swiglu", qk_norm=True),
        condition=WordCondition(5, slots=2, in_context=True, init_std=0.5),
    )
    return VideoDiTConfig(**TINY | options | changes)


def factorized():
    condition = WordCondition(5, slots=2, in_context=True)
    return VideoDiTConfig(
        **TINY,
        layout=Factorized(),
        positions=RopePositions(),
        relative_bias=True,
        condition=condition,
    )


def image_config():
    return DiTConfig(size=(8, 8), width=16, depth=2, heads=2, num_classes=5)


RUNS = {
    "plain": (
        lambda: VideoDiT(joint()),
        Interpolant(
            prediction="data",
            loss_weighting="velocity",
            max_weight=25.0,
            temporal_diff_weight=4.0,
            jerk_weight=0.05,
            shift=6.0,
            std=1.4,
        ),
        dict(schedule="linear", more_ema=(0.5,), spikes="skip"),
    ),
    "routed": (
        lambda: VideoDiT(joint()),
        Interpolant(),
        dict(wrappers=[Checkpointed(every=2), Routed(0.5, blocks=(1, 3))]),
    ),
    "factorised": (
        lambda: VideoDiT(factorized()),
        Interpolant(path="gvp"),
        dict(optimizer="muon", wrappers=[Checkpointed()]),
    ),
    "ddpm": (
        lambda: DiT(image_config()),
        GaussianDiffusion(variance="learned-range", loss_weighting="min-snr"),
        dict(accumulate=2, wrappers=[Checkpointed()]),
    ),
    "continued": (
        lambda: VideoDiT(joint(channels=3)),
        FramePrediction(prediction="data", loss_weighting="velocity", known_frames=(0, 1)),
        dict(condition_dropout=0.2),
    ),
}


def samples(name):
    g = torch.Generator().manual_seed(0)
    if name == "ddpm":
        return torch.randn(12, 4, 1, 8, 8, generator=g), torch.arange(12)[:, None] % 5
    return torch.randn(12, 2, 4, 4, 4, generator=g), (torch.arange(24) % 5).view(12, 2)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes(name, tmp_path):
    shutil.copytree(HERE / "checkpoints" / name, tmp_path / "run")
    make, objective, options = RUNS[name]
    done = fit(
        make(),
        samples(name),
        objective,
        out=tmp_path / "run",
        steps=6,
        batch_size=4,
        lr=1e-3,
        log_every=2,
        save_every=3,
        progress=False,
        warmup=2,
        **options,
    )
    assert [r["step"] for r in done.log] == [1, 2, 4, 6] and done.step == 6
    same(
        f"checkpoints/{name} after 6",
        torch.cat([p.detach().flatten() for m in (done.model, done.ema) for p in m.parameters()])[
            ::7
        ],
    )
    same(
        f"checkpoints/{name} loss", torch.tensor([r["loss"] for r in done.log], dtype=torch.float64)
    )


def test_another_run_is_still_refused(tmp_path):
    shutil.copytree(HERE / "checkpoints" / "plain", tmp_path / "run")
    make, objective, options = RUNS["plain"]
    with pytest.raises(ValueError, match="jerk_weight"):
        fit(
            make(),
            samples("plain"),
            Interpolant(**{**vars(objective), "jerk_weight": 0.1}),
            out=tmp_path / "run",
            steps=6,
            batch_size=4,
            lr=1e-3,
            log_every=2,
            save_every=3,
            progress=False,
            warmup=2,
            **options,
        )


def test_weights_of_a_checkpoint_load():
    found = load_checkpoint(HERE / "checkpoints" / "plain")
    assert found.step == 3 and found.load_into(VideoDiT(joint()))
    assert found.load_into(VideoDiT(joint()), 0.5)


# ------------------------------------------------- runs of `make video`, avatars, samplers


def test_a_run_of_make_video(tmp_path):
    shutil.copytree(HERE / "run", tmp_path / "run")
    run = Experiment(tmp_path / "run", progress=False)
    same("run", run.sample(["a red ring moves left", "a blue ball grows"], seed=5))
    assert run.trained.step == 6 and len(run.cache) == 12
    assert not (tmp_path / "run" / "times.json").exists() or "latents" not in json.loads(
        (tmp_path / "run" / "times.json").read_text()
    )


def test_an_avatar():
    avatar = VideoPipeline.from_pretrained(HERE / "avatar")
    same("avatar clips", avatar(["hello"], seed=1).frames)
    same("avatar film", avatar.film(["hello", "rest"], seed=1).frames[0])


SOLVERS = {
    "euler": {},
    "heun": {},
    "midpoint": {},
    "rk4": {},
    "ddim": dict(eta=0.5),
    "sde": dict(form="linear"),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_samplers(solver):
    model = VideoDiT.from_pretrained(HERE / "models" / "joint")
    y = torch.tensor([[1, 2], [3, 0]])
    same(
        f"samples/{solver}",
        sample(
            model,
            Interpolant(shift=3.0),
            y,
            steps=4,
            solver=solver,
            guidance=2.0,
            guidance_interval=(0.0, 0.5),
            shift=3.0,
            seed=3,
            **SOLVERS[solver],
        ),
    )


def test_settling_and_diffusion():
    model = VideoDiT.from_pretrained(HERE / "models" / "joint")
    y = torch.tensor([[1, 2], [3, 0]])
    z = EXPECTED["samples/euler"]
    settled = renoise_average(model, Interpolant(shift=3.0), z, y, times=2, seed=4)
    same("samples/settled", settled)
    still = DiT.from_pretrained(HERE / "models" / "dit")
    for solver in ("ancestral", "ddim"):
        same(
            f"samples/diffusion {solver}",
            sample(
                still,
                GaussianDiffusion(variance="learned-range"),
                torch.tensor([[1], [2]]),
                steps=4,
                solver=solver,
                seed=3,
            ),
        )


# ------------------------------------------------- what ships


def test_the_first_video_ships():
    clip = Experiment(ROOT / "data" / "first-video", progress=False).sample(
        ["a red ring moves left"], seed=5, steps=4
    )[0, :, ::5]
    same("data/first-video", clip.contiguous())


def test_the_video_vae_ships():
    scene = to_float(stack_clips(SceneClips(1, frames=9, size=64))[0])
    with torch.no_grad():
        same(
            "data/video-vae",
            load_autoencoder(ROOT / "data" / "video-vae")(scene)[0, :, ::4].contiguous(),
        )


def test_the_judge_ships():
    with torch.no_grad():
        same(
            "data/judge",
            AttributeClassifier.from_pretrained(ROOT / "data" / "judge").features(
                to_float(stack_clips(SceneClips(2))[0])
            ),
        )


def test_the_avatar_ships():
    avatar = VideoPipeline.from_pretrained(ROOT / "data" / "avatar")
    y = avatar.vocabulary.encode_batch(["hello"])
    with torch.no_grad():
        z = sample_continuation(
            avatar.model, avatar.objective, y, None, steps=1, shift=3.0, seed=1
        )
        same("data/avatar codes", z[:, ::3].contiguous())
        mean, std = avatar.statistics()
        inner = avatar.autoencoder.decompress(z * std + mean)[:, :4, ::4, ::6, ::6]
        same("data/avatar inner latents", inner.contiguous())
