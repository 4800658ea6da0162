"""What a pipeline is made of: what a training knows of it, and parts that do not fit."""

import copy

import pytest
import torch
from helpers.pipeline import (
    SIZE,
    WORDS,
    awake,
    picturing_parts,
    picturing_pipeline,
    train_little,
    video_config,
    wordless_parts,
)

from minisora.autoencoder import ImageVAE, finetune_decoder
from minisora.clips import SceneClips
from minisora.data.video import to_float
from minisora.data.vocabulary import Vocabulary
from minisora.diffusion import GaussianDiffusion
from minisora.frames import FramePrediction
from minisora.interpolants import Interpolant
from minisora.latent_cache import LatentCache, write_cache
from minisora.models.conditions import CaptionCondition, WordCondition
from minisora.models.layouts import Factorized
from minisora.models.positions import LattePositions
from minisora.models.preconditioning import DataOutput, DirectOutput, EDMOutput
from minisora.pipeline import VideoPipeline
from minisora.temporal import VideoDiTConfig


# ---------------------------------------------------------------- of a training


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    "A cache of scenes with its autoencoder and vocabulary, and what `fit` made of it."
    folder = tmp_path_factory.mktemp("caches") / "latents"
    clips = SceneClips(8, frames=4, size=32)
    ae = picturing_parts()["autoencoder"]
    write_cache(folder, clips, ae, progress=False)
    words = Vocabulary.from_captions([clips[i].caption for i in range(8)], drop=("a", "moves"))
    cache = LatentCache(folder, vocabulary=words)
    return clips, ae, cache, train_little(cache, words)


def test_a_training_on_a_cache_knows_what_belongs_to_it(cached):
    clips, ae, cache, result = cached
    pipe = VideoPipeline.from_fit(result, ae, num_inference_steps=2)
    assert pipe.model is result.ema and pipe.objective is result.objective
    assert pipe.vocabulary == cache.vocabulary and pipe.fps == clips[0].fps
    assert pipe.mean.item() == cache.mean.item() and pipe.std.item() == cache.std.item()
    assert pipe.sampling == dict(shift=1.0, num_inference_steps=2), "and the shift of training"
    assert pipe(clips[0].caption).frames.shape == (1, 3, 4, 32, 32)
    z = pipe.encode(to_float(torch.stack([clips[i].frames for i in range(8)])))
    stored = cache[list(range(8))]["latents"]  # in float16
    torch.testing.assert_close(z, stored, atol=2e-3, rtol=1e-3)


def test_statistics_of_each_channel(cached):
    _, ae, cache, _ = cached
    each = LatentCache(cache.path, vocabulary=cache.vocabulary, per_channel=True)
    pipe = VideoPipeline.from_fit(train_little(each, cache.vocabulary), ae)
    assert pipe.mean.shape == (4,) and torch.equal(pipe.std, each.std.flatten())


def test_what_is_said_counts(cached):
    _, ae, _, result = cached
    pipe = VideoPipeline.from_fit(result, ae, fps=3, shift=2.0)
    assert (pipe.fps, pipe.sampling["shift"]) == (3, 2.0)
    with pytest.raises(ValueError, match="was trained on latents of mean.*this is mean=.0.5"):
        VideoPipeline.from_fit(result, ae, mean=0.5)


@pytest.mark.parametrize("nested", [1, 2])
def test_a_part_of_a_cache_knows_as_much(cached, nested):
    _, ae, cache, _ = cached
    part = cache
    for _ in range(nested):
        part = torch.utils.data.Subset(part, range(4))
    pipe = VideoPipeline.from_fit(train_little(part, cache.vocabulary), ae)
    assert pipe.vocabulary == cache.vocabulary and pipe.std.item() == cache.std.item()


def test_another_autoencoder_is_refused(cached):
    _, ae, cache, result = cached
    other = copy.deepcopy(ae)
    with torch.no_grad():
        other.skip_in.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(ValueError, match="was encoded by another autoencoder") as raised:
        VideoPipeline.from_fit(result, other)
    assert str(cache.path) in str(raised.value)
    with pytest.raises(ValueError, match="another autoencoder"):
        VideoPipeline.from_fit(result, ImageVAE(channels=4))


def test_a_tuned_decoder_takes_its_place_afterwards(cached):
    clips, ae, cache, result = cached
    tuned = copy.deepcopy(ae)

    def predict(index, generator):
        return cache.denormalize(cache[index.tolist()]["latents"])

    finetune_decoder(tuned, clips, predict, steps=2)
    with pytest.raises(ValueError, match="another autoencoder"):  # not the one that encoded them
        VideoPipeline.from_fit(result, tuned)
    pipe = VideoPipeline.from_fit(result, ae, num_inference_steps=2)
    before = pipe(clips[0].caption).frames
    pipe.autoencoder = tuned
    assert not torch.equal(pipe(clips[0].caption).frames, before)


def test_a_training_on_plain_tensors_is_told_the_rest(cached):
    _, ae, _, _ = cached
    z = torch.randn(8, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    pipe = VideoPipeline.from_fit(train_little(z), ae)
    assert (pipe.fps, pipe.mean.item(), pipe.std.item(), pipe.vocabulary) == (8, 0, 1, None)
    ids = WORDS.encode_batch(["hello", "rest"] * 4)
    result = train_little((z, ids), WORDS)
    with pytest.raises(ValueError, match="vocabulary=… is missing"):
        VideoPipeline.from_fit(result, ae)
    pipe = VideoPipeline.from_fit(result, ae, WORDS, fps=4, mean=0.1, std=[1.0, 2.0, 3.0, 4.0])
    assert pipe.fps == 4 and pipe.std.tolist() == [1, 2, 3, 4] and pipe.vocabulary is WORDS
    with pytest.raises(ValueError, match="no option 'step'"):
        VideoPipeline.from_fit(result, ae, WORDS, step=2)


def test_a_model_in_training_is_put_back(cached):
    _, ae, _, _ = cached
    model = awake(VideoDiTConfig(channels=4, **dict(SIZE, size=(4, 4, 4)))).train()
    pipe = VideoPipeline(model, ae, None, Interpolant())
    pipe(num_inference_steps=1)
    assert model.training


@pytest.mark.gpu
def test_a_training_on_a_gpu_gives_a_pipeline_there():
    z = torch.randn(8, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    result = train_little(z)
    assert next(result.ema.parameters()).device.type == "cuda"
    pipe = VideoPipeline.from_fit(result, picturing_parts()["autoencoder"])
    assert pipe(num_inference_steps=2).frames.isfinite().all()


# ---------------------------------------------------------------- parts that do not belong together


def mismatched():
    "Changes of the parts of a pipeline, and what is said of them."
    words = WordCondition(len(WORDS))
    yield dict(model=awake(video_config(channels=5, condition=words))), "5 channels, ImageVAE has 4"
    # frame prediction needs a channel for the mask
    yield dict(objective=FramePrediction(prediction="data")), "3 channels, ImageVAE has 4"
    more = Vocabulary.from_captions(["hello", "you", "rest", "yes"])
    yield dict(vocabulary=more), "4 word ids in 1 slots, the vocabulary 5 in 1"
    longer = Vocabulary.from_captions(["hello you", "rest you"])
    yield dict(vocabulary=longer), "4 word ids in 1 slots, the vocabulary 4 in 2"
    yield dict(vocabulary=None), "knows 4 word ids: vocabulary=… is missing"
    yield dict(model=awake(video_config())), "Vocabulary.* is given, and the model takes no words"
    yield dict(objective=None), "objective"
    for name in ("mean", "std"):
        yield {name: [1.0, 2.0]}, f"{name} has 2 numbers for 4 channels"
        yield {name: []}, f"{name} has 0 numbers"
        yield {name: torch.nan}, f"{name} must be finite.*nan"
        yield {name: [1.0, 1.0, torch.inf, 1.0]}, f"{name} must be finite.*inf"
    yield dict(std=0), "std above 0"
    yield dict(std=[1.0, 1.0, -1.0, 1.0]), "std above 0"
    for fps in (0, -1, torch.inf, "8"):
        yield dict(fps=fps), "fps"
    yield dict(sampling=dict(guidence=3)), "no option 'guidence'"
    yield dict(sampling=dict(guidance_scal=3)), "did you mean 'guidance_scale'"
    yield dict(sampling=dict(seed=3)), "seed"
    yield dict(sampling=dict(renoise_times=-1)), "renoise_times"
    learned = GaussianDiffusion(variance="learned-range")
    yield dict(objective=learned), "needs a model with learn_sigma=True"


@pytest.mark.parametrize(
    "changes, message", [*mismatched()], ids=lambda v: "" if type(v) is str else str([*v])
)
def test_parts_that_do_not_belong_together_are_named(changes, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        picturing_pipeline(**changes)


@pytest.mark.parametrize("output", [EDMOutput(), DataOutput()])
def test_a_model_that_answers_with_another_thing_is_refused(output):
    """Its network is wrapped so that it gives a velocity: an objective that asks for data would
    take it for data."""
    parts = wordless_parts(model=awake(video_config(output=output)))
    kind = output.kind
    for prediction in ("data", "noise"):
        with pytest.raises(ValueError, match=f"output='{kind}' gives a velocity, .*'{prediction}'"):
            VideoPipeline(**parts | dict(objective=Interpolant(prediction=prediction)))
    pipe = VideoPipeline(**parts | dict(objective=Interpolant()))
    assert pipe(num_inference_steps=2).frames.isfinite().all()


def test_a_model_with_a_variance_needs_its_objective(tmp_path):
    config = video_config(output=DirectOutput(learn_sigma=True))
    parts = wordless_parts(model=awake(config))
    with pytest.raises(ValueError, match="predicts a variance, and the objective does not"):
        VideoPipeline(**parts | dict(objective=GaussianDiffusion()))
    # SiT's objective leaves the variance out
    for objective in (Interpolant(), GaussianDiffusion(variance="learned-range")):
        pipe = VideoPipeline(**parts | dict(objective=objective))
        assert pipe(num_inference_steps=2).frames.isfinite().all()


def test_a_model_of_embedded_captions_takes_no_words():
    condition = CaptionCondition(12)
    config = video_config(
        patch=(1, 2, 2), condition=condition, positions=LattePositions(), layout=Factorized()
    )
    with pytest.raises(ValueError, match="the model takes no words"):
        picturing_pipeline(model=awake(config))
