"""`VideoPipeline` as a user meets it: opened, called, filmed, saved and opened again, made of a training; and all it refuses."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import awake as random_weights
from helpers.pipeline import (
    SAMPLING,
    SIZE,
    WORDS,
    awake,
    no_old_names,
    picturing_parts,
    picturing_pipeline,
    speaking_parts,
    speaking_pipeline,
)
from PIL import Image
from safetensors.torch import load_file

from minisora.autoencoder import ImageVAE, finetune_decoder
from minisora.clips import SceneClips
from minisora.data.video import read_video, to_float
from minisora.data.vocabulary import Vocabulary
from minisora.diffusion import GaussianDiffusion
from minisora.dit import DiT, DiTConfig
from minisora.experiment import Experiment
from minisora.frames import FramePrediction, sample_continuation
from minisora.interpolants import Interpolant
from minisora.latent_cache import LatentCache, write_cache
from minisora.models.conditions import CaptionCondition, Unconditional, WordCondition
from minisora.models.layouts import Factorized
from minisora.models.positions import LattePositions
from minisora.models.preconditioning import DataOutput, DirectOutput, EDMOutput
from minisora.pipeline import VideoPipeline
from minisora.pipeline_output import VideoPipelineOutput
from minisora.sampling import renoise_average, sample
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import fit

OLD = Path(__file__).parent / "data" / "version-0.1"


@pytest.fixture(scope="module")
def pipe():
    "Continues clips of 9 frames of 32×64 pixels."
    return speaking_pipeline()


@pytest.fixture(scope="module")
def plain():
    "Makes clips of 4 frames of 32×32 pixels, and continues none."
    return picturing_pipeline()


@pytest.fixture(autouse=True)
def names_of_today():
    with no_old_names():
        yield


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def never(*args, **options):
    pytest.fail("sampled before it was refused")


@pytest.fixture
def refusing(monkeypatch):
    "Whatever samples fails the test: a wrong call must be refused before."
    monkeypatch.setattr("minisora.pipeline.sample", never)
    monkeypatch.setattr("minisora.pipeline.sample_continuation", never)
    monkeypatch.setattr("minisora.pipeline.generate_long", never)


# ---------------------------------------------------------------- a call


def test_a_call_is_its_parts_one_after_the_other(pipe):
    made = pipe(["hello", "rest"], seed=4)
    assert made.frames.shape == (2, 3, 9, 32, 64) and made.frames.abs().max() <= 1
    assert (
        made.prompts == ["hello", "rest"] and made.fps == 9.6 and made.frames.device.type == "cpu"
    )
    options = dict(steps=3, guidance=2.0, guidance_interval=(0.0, 0.5), seed=4)
    y = WORDS.encode_batch(["hello", "rest"])
    z = sample_continuation(pipe.model, pipe.objective, y, **options)
    with torch.no_grad():
        close(made.frames, pipe.autoencoder.decode(z * 2 + 0.1).clamp(-1, 1))


def test_a_call_of_a_model_that_continues_nothing(plain):
    y = WORDS.encode_batch(["you"])
    options = dict(steps=3, guidance=2.0, guidance_interval=(0.0, 0.5), seed=4)
    z = sample(plain.model, plain.objective, y, **options)
    with torch.no_grad():
        close(plain("you", seed=4).frames, plain.autoencoder.decode(z).clamp(-1, 1))


def test_a_prompt_or_a_list_of_them(plain):
    alone = plain("hello")
    assert alone.prompts == ["hello"] and alone.frames.shape == (1, 3, 4, 32, 32)
    assert torch.equal(alone.frames, plain(["hello"]).frames)
    assert torch.equal(alone.frames, plain(("hello",)).frames)
    assert (alone.frames - plain("rest").frames).abs().max() > 0.01, "a prompt must count"


def test_many_videos_of_one_prompt(plain):
    made = plain(["hello", "rest"], num_videos_per_prompt=2)
    assert made.prompts == ["hello", "hello", "rest", "rest"] and len(made.frames) == 4
    assert (made.frames[0] - made.frames[1]).abs().max() > 0.01, "each is another clip"
    assert torch.equal(made.frames, plain(made.prompts).frames)


def test_a_generator_gives_the_seed_and_moves_on(plain):
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first = plain("hello", generator=generator).frames
    second = plain("hello", generator=generator).frames
    assert not torch.equal(first, second)
    generator.set_state(state)
    assert torch.equal(first, plain("hello", generator=generator).frames), "one state, one clip"
    assert torch.equal(second, plain("hello", generator=generator).frames)


def test_a_call_leaves_the_global_generator_alone(pipe):
    before = torch.random.get_rng_state()
    pipe("hello", frames=pipe("rest").frames[0, :, -1:], renoise_times=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_seed_is_a_clip(plain):
    assert torch.equal(plain("hello", seed=7).frames, plain("hello", seed=7).frames)
    assert not torch.equal(plain("hello", seed=7).frames, plain("hello", seed=8).frames)
    assert torch.equal(plain("hello").frames, plain("hello", seed=0).frames)


@pytest.mark.parametrize("options", [dict(), dict(solver="sde"), dict(solver="ddim", eta=1.0)])
@pytest.mark.parametrize("renoise_times", [0, 2])
def test_clip_i_depends_on_its_prompt_and_i_alone(plain, options, renoise_times):
    "Alone, in other company, in another order, in batches of any size; with fresh noise in each step, too."
    prompts = ["hello", "rest", "you", "rest", "hello"]
    options = dict(options, seed=3, renoise_times=renoise_times)
    whole = plain(prompts, **options).frames
    for batch_size in (1, 2, 3, 16):
        close(plain(prompts, batch_size=batch_size, **options).frames, whole)
    for index in ([4], [3, 1], [2, 3, 4]):
        some = plain([prompts[i] for i in index], index=index, **options).frames
        close(some, whole[index])
    assert (plain(prompts[4], **options).frames[0] - whole[4]).abs().max() > 0.01


def test_what_a_call_leaves_open_the_pipeline_says(plain):
    usual = plain("hello").frames
    with_three = picturing_pipeline(sampling={})("hello", **SAMPLING).frames
    assert torch.equal(usual, with_three)
    assert not torch.equal(usual, plain("hello", num_inference_steps=5).frames)
    assert not torch.equal(usual, plain("hello", guidance_scale=1.0).frames)
    # by the names of `sample`, too
    assert torch.equal(
        plain("hello", num_inference_steps=2, guidance_scale=3.0).frames,
        plain("hello", steps=2, guidance=3.0).frames,
    )
    assert torch.equal(usual, plain("hello").frames), "a call must not change the pipeline"
    assert plain.sampling == SAMPLING


def test_output_types(plain):
    pt = plain(["hello", "rest"]).frames
    as_arrays = plain(["hello", "rest"], output_type="np")
    assert as_arrays.frames.shape == (2, 4, 32, 32, 3)
    assert as_arrays.frames.min() >= 0 and as_arrays.frames.max() <= 1
    close(torch.from_numpy(as_arrays.frames).permute(0, 4, 1, 2, 3) * 2 - 1, pt)
    pictures = plain(["hello", "rest"], output_type="pil").frames
    assert [len(clip) for clip in pictures] == [4, 4]
    assert all(p.size == (32, 32) and p.mode == "RGB" for clip in pictures for p in clip)
    first = np.asarray(pictures[1][2]) / 255
    assert np.abs(first - as_arrays.frames[1, 2]).max() <= 0.5 / 255 + 1e-6
    for made in (as_arrays, plain("hello", output_type="pil")):
        assert "clips" in repr(made) and made._repr_html_() is None


@pytest.mark.parametrize(
    "call, message",
    [
        (dict(prompt="helo"), "unknown word 'helo'.*did you mean 'hello'"),
        (dict(prompt=["hello", "resst"]), "unknown word 'resst'.*did you mean 'rest'"),
        (dict(prompt="hello rest"), "has 2 words; the model knows up to 1"),
        (dict(prompt=""), "has no words"),
        (dict(prompt=None), "prompt"),
        (dict(prompt=[]), "prompt"),
        (dict(prompt=[None, "hello"]), "prompt"),
        (dict(prompt=7), "prompt.*7"),
        (dict(prompt=[b"hello"]), "prompt.*b'hello'"),
        (dict(prompt="hello", step=3), "no option 'step'; did you mean 'steps'|no option 'step'"),
        (dict(prompt="hello", guidence_scale=3), "'guidence_scale'.*did you mean 'guidance_scale'"),
        (dict(prompt="hello", num_inference_step=3), "did you mean 'num_inference_steps'"),
        (dict(prompt="hello", model=3), "no option 'model'"),
        (dict(prompt="hello", num_inference_steps=0), "steps.*0"),
        (dict(prompt="hello", solver="eular"), "solver.*'eular'"),
        (dict(prompt="hello", eta=2.0), "eta"),
        (dict(prompt="hello", renoise_times=-1), "renoise_times.*-1"),
        (dict(prompt="hello", renoise_times=1.5), "renoise_times.*1.5"),
        (dict(prompt="hello", num_videos_per_prompt=0), "num_videos_per_prompt.*0"),
        (dict(prompt="hello", batch_size=0), "batch_size.*0"),
        (dict(prompt="hello", output_type="gif"), "output_type.*'pt', 'np', 'pil', not 'gif'"),
        (dict(prompt="hello", seed=-1), "seed.*-1"),
        (dict(prompt="hello", seed=None), "seed.*None"),
        (dict(prompt="hello", generator=3), "generator must be a torch.Generator, not 3"),
        (dict(prompt="hello", index=[1, 2]), "index"),
        (dict(prompt=["hello", "rest"], index=[1], batch_size=1), "index"),
        (dict(prompt="hello", index=["a"]), "index"),
        (dict(prompt="hello", frames=torch.zeros(3, 1, 32, 32)), "not trained to continue"),
    ],
)
def test_a_wrong_call_is_refused(plain, call, message, monkeypatch):
    monkeypatch.setattr(type(plain), "decode", never)
    with pytest.raises(ValueError, match=message):
        plain(**call)


# ---------------------------------------------------------------- frames that a clip begins with


def test_a_clip_continues_frames(pipe):
    ends = pipe(["hello", "rest", "you"], seed=4).frames[:, :, -1:]
    made = pipe(["rest"] * 3, ends).frames
    with torch.no_grad():
        known = (pipe.autoencoder.encode(ends).mode - 0.1) / 2
    y = WORDS.encode_batch(["rest"] * 3)
    options = dict(steps=3, guidance=2.0, guidance_interval=(0.0, 0.5))
    z = sample_continuation(pipe.model, pipe.objective, y, known, **options)
    with torch.no_grad():
        close(made, pipe.autoencoder.decode(z * 2 + 0.1).clamp(-1, 1))
    assert (made - pipe(["rest"] * 3).frames).abs().max() > 0.01
    close(made, pipe(["rest"] * 3, ends, batch_size=2).frames)


def test_one_beginning_for_all_or_one_for_each(pipe):
    frames = pipe(["hello", "rest"]).frames[:, :, :5]
    both = pipe(["you", "you"], frames).frames
    for i in (0, 1):
        one = pipe(["you", "you"], frames[i]).frames
        close(one[i], both[i])
        assert (one[1 - i] - both[1 - i]).abs().max() > 1e-3
        assert torch.equal(one, pipe("you", frames[i][None], num_videos_per_prompt=2).frames)


def test_frames_in_8_bits_and_pictures(pipe):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, 1, 32, 64), generator=g, dtype=torch.uint8)
    wanted = pipe("hello", to_float(pixels)).frames
    assert torch.equal(pipe("hello", pixels).frames, wanted)
    picture = Image.fromarray(pixels[:, 0].permute(1, 2, 0).numpy())
    assert torch.equal(pipe("hello", picture).frames, wanted)
    with_alpha = picture.convert("RGBA")
    assert torch.equal(pipe("hello", with_alpha).frames, wanted)


def test_a_picture_of_another_size_is_fitted(pipe):
    picture = Image.new("L", (300, 50), 200)
    grey = torch.full((3, 1, 32, 64), 200, dtype=torch.uint8)
    assert torch.equal(pipe("hello", picture).frames, pipe("hello", grey).frames)


@pytest.mark.parametrize(
    "frames, message",
    [
        (torch.zeros(3, 1, 32, 32), r"frames must be \(B, 3, k, 32, 64\), not \(1, 3, 1, 32, 32\)"),
        (torch.zeros(3, 32, 64), r"not \(3, 32, 64\)"),
        (torch.zeros(1, 1, 1, 3, 32, 64), r"not \(1, 1, 1, 3, 32, 64\)"),
        (torch.zeros(1, 1, 32, 64), r"frames must be|color channels"),
        (torch.zeros(3, 3, 1, 32, 64), "3 beginnings for 2 clips"),
        (torch.zeros(3, 2, 32, 64), "number of frames must be"),
        (torch.zeros(3, 0, 32, 64), "number of frames must be"),
        (torch.zeros(3, 9, 32, 64), "known must be"),
        (torch.full((3, 1, 32, 64), torch.nan), "NaN"),
        (torch.zeros(3, 1, 32, 64, dtype=torch.long), "float in"),
        (np.zeros((3, 1, 32, 64), np.float32), "frames must be.*ndarray"),
        ([Image.new("RGB", (64, 32))], "frames must be.*list"),
        ("ring.png", "frames must be.*str"),
    ],
)
def test_frames_that_do_not_fit_are_named(pipe, frames, message, monkeypatch):
    monkeypatch.setattr(type(pipe), "decode", never)
    with pytest.raises(ValueError, match=message):
        pipe(["hello", "rest"], frames=frames)


@pytest.mark.parametrize("known", [False, True])
def test_renoising(pipe, known):
    "The mean of predictions from fresh noise; frames that are known stay as they are."
    frames = pipe("hello", seed=9).frames[0, :, -1:] if known else None
    made = pipe("you", frames, seed=2, renoise_times=3)
    assert (made.frames - pipe("you", frames, seed=2).frames).abs().max() > 1e-3
    condition = pipe.word_ids(["you"])
    latents = None if frames is None else pipe.encode(frames[None])
    options = dict(steps=3, guidance=2.0, guidance_interval=(0.0, 0.5), seed=2)
    z = pipe.sample_latents(condition, latents, [0], dict(options, renoise_times=3))
    assert torch.equal(pipe.decode(z), made.frames)
    if known:
        assert torch.equal(z[:, :, :1], latents)
        before = pipe.sample_latents(condition, latents, [0], options)
        assert (z[:, :, 1:] - before[:, :, 1:]).abs().max() > 1e-3


def test_renoising_is_what_the_lesson_teaches(plain):
    y = WORDS.encode_batch(["you", "rest"])
    z = sample(plain.model, plain.objective, y, steps=3, guidance=1.0, seed=2)
    z = renoise_average(plain.model, plain.objective, z, y, times=3, seed=2)
    made = plain(["you", "rest"], guidance_scale=1.0, seed=2, renoise_times=3)
    close(made.frames, plain.decode(z))


def test_encoding_keeps_no_gradients(pipe):
    z = pipe.encode(pipe("hello").frames)
    assert z.shape == (1, 3, 3, 2, 4) and not z.requires_grad
    assert not pipe.decode(z).requires_grad


# ---------------------------------------------------------------- models without words


def wordless_parts(**changes):
    model = awake(VideoDiTConfig(channels=4, **dict(SIZE, size=(4, 4, 4))))
    return dict(picturing_parts(), model=model, vocabulary=None) | changes


def test_a_model_without_words_has_no_prompts(tmp_path):
    pipe = VideoPipeline(**wordless_parts(), sampling=dict(num_inference_steps=2))
    made = pipe()
    assert made.prompts == [None] and made.frames.shape == (1, 3, 4, 32, 32)
    assert torch.equal(made.frames, pipe(prompt=None).frames)
    many = pipe(num_videos_per_prompt=3, batch_size=2)
    close(many.frames[:1], made.frames)
    assert (many.frames[1] - many.frames[0]).abs().max() > 0.01
    close(pipe(index=[2]).frames, many.frames[2:])
    assert "None" not in made._repr_html_()
    assert many.save(tmp_path / "clip.png")[2] == tmp_path / "clip-2.png"
    pipe.save_pretrained(tmp_path / "pipe")
    assert torch.equal(VideoPipeline.from_pretrained(tmp_path / "pipe")().frames, made.frames)
    with pytest.raises(ValueError, match="prompt.*'hello'.*no words"):
        pipe("hello")


def test_a_model_of_pictures(tmp_path):
    "A DiT: clips of one frame, and the objective that DiT was trained with."
    model = random_weights(DiT(DiTConfig(size=(4, 4), width=32, depth=2, heads=2, num_classes=0)))
    ae = picturing_parts()["autoencoder"]
    pipe = VideoPipeline(model, ae, None, GaussianDiffusion(variance="learned-range"))
    made = pipe(num_inference_steps=3)
    assert made.frames.shape == (1, 3, 1, 32, 32)
    pipe.save_pretrained(tmp_path)
    again = VideoPipeline.from_pretrained(tmp_path)
    assert type(again.model) is DiT
    assert torch.equal(again(num_inference_steps=3).frames, made.frames)


# ---------------------------------------------------------------- films


def test_a_film_is_its_clips_in_turn(pipe):
    made = pipe.film(["hello", "rest"], seed=4)
    assert made.frames.shape == (1, 3, 17, 32, 64) and made.prompts == ["hello · rest"]
    assert made.fps == 9.6
    film = made.frames[0]
    close(film[:, :9], pipe("hello", seed=4).frames[0])
    close(film[:, 9:], pipe("rest", film[:, 8:9], seed=5).frames[0, :, 1:])


def test_a_film_begins_with_frames(pipe):
    start = pipe("you", seed=9).frames[0]
    made = pipe.film(["hello"], frames=start, seed=4).frames[0]
    assert torch.equal(made[:, :9], start) and made.shape[1] == 17
    close(made[:, 9:], pipe("hello", start[:, -1:], seed=4).frames[0, :, 1:])
    as_pixels = ((start + 1) * 127.5).round().to(torch.uint8)
    close(pipe.film(["hello"], frames=as_pixels).frames[0, :, :9], to_float(as_pixels))
    picture = Image.new("RGB", (64, 32), (200, 10, 10))
    from_picture = pipe.film(["hello"], frames=picture).frames
    assert from_picture.shape == (1, 3, 9, 32, 64)
    close(from_picture[0, :, 1:], pipe("hello", picture).frames[0, :, 1:])


def test_a_film_of_one_prompt_of_a_generator(pipe):
    assert torch.equal(pipe.film("hello").frames, pipe.film(["hello"]).frames)
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first = pipe.film(["hello"], generator=generator).frames
    assert not torch.equal(first, pipe.film(["hello"], generator=generator).frames)
    generator.set_state(state)
    assert torch.equal(first, pipe.film(["hello"], generator=generator).frames)
    other = pipe.film(["hello"], num_inference_steps=1, guidance_scale=1.0).frames
    assert not torch.equal(pipe.film(["hello"]).frames, other)


def test_overlap(pipe):
    made = pipe.film(["hello", "rest"], overlap=2).frames
    assert made.shape[2] == 9 + 9 - 5


def test_a_film_without_words():
    parts = speaking_parts()
    config = replace(parts["model"].config, condition=Unconditional())
    pipe = VideoPipeline(**parts | dict(model=awake(config), vocabulary=None), sampling=SAMPLING)
    assert pipe.film([None, None]).frames.shape == (1, 3, 17, 32, 64)


@pytest.mark.parametrize(
    "call, message",
    [
        (dict(prompts=["hello", "helo"]), "unknown word 'helo'"),
        (dict(prompts=[]), "prompt"),
        (dict(prompts=None), "prompt"),
        (dict(prompts=["hello"], frames=torch.zeros(3, 1, 32, 32)), "frames must be"),
        (dict(prompts=["hello"], frames=torch.zeros(2, 3, 1, 32, 64)), "2 beginnings for 1"),
        (dict(prompts=["hello"], frames="x.png"), "frames must be.*str"),
        (dict(prompts=["hello"], renoise_times=2), "renoise_times"),
        (dict(prompts=["hello"], overlop=2), "no option 'overlop'"),
        (dict(prompts=["hello"], overlap=0), "overlap.*0"),
        (dict(prompts=["hello", "hello"], overlap=3), "overlap.*3"),
        (dict(prompts=["hello"], frames=torch.zeros(3, 1, 32, 64), overlap=2), "needs 5"),
    ],
)
def test_a_wrong_film_is_refused(pipe, call, message, monkeypatch):
    monkeypatch.setattr("minisora.frames.sample", never)
    with pytest.raises(ValueError, match=message):
        pipe.film(**call)


def test_a_model_that_continues_nothing_makes_no_film(plain, refusing):
    with pytest.raises(ValueError, match="not trained to continue"):
        plain.film(["hello"])


# ---------------------------------------------------------------- what was made


@pytest.fixture(scope="module")
def made(plain):
    return plain(["hello", "rest"])


def test_clips_show_themselves(made):
    shown = made._repr_html_()
    assert shown.count("<img") == 2 and "hello" in shown
    assert repr(made) == "VideoPipelineOutput(2 clips, (2, 3, 4, 32, 32), fps=8)"


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ".png", ".GIF"])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_clip_is_saved_as_its_suffix_says(plain, tmp_path, suffix, scale):
    one = plain("hello")
    path = one.save(tmp_path / "new" / f"clip{suffix}", scale=scale)
    assert path == tmp_path / "new" / f"clip{suffix}"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if suffix == ".mp4":
        clip = read_video(path, 4, (32 * scale, 32 * scale))
        assert clip.fps == 8
        return
    with Image.open(path) as picture:
        if suffix == ".png":
            assert picture.format == "PNG" and picture.width >= 4 * 32 * scale
            return
        assert picture.format == suffix.strip(".").upper()
        assert picture.n_frames == 4 and picture.size == (32 * scale, 32 * scale)
        picture.seek(1)
        picture.load()  # a webp says its times only then
        assert picture.info["duration"] == pytest.approx(125, abs=5)


@pytest.mark.parametrize("suffix", [".mp4", ".png"])
def test_many_clips_are_numbered(made, tmp_path, suffix):
    paths = made.save(tmp_path / f"clip{suffix}")
    assert paths == [tmp_path / f"clip-{i}{suffix}" for i in (0, 1)]
    assert all(p.stat().st_size > 0 for p in paths)
    assert paths[0].read_bytes() != paths[1].read_bytes()


@pytest.mark.parametrize("name", ["clip.avi", "clip", "clip.jpg"])
def test_an_unknown_suffix_is_named(made, tmp_path, name):
    message = f"{name}: the suffix must be one of '.mp4', '.gif', '.webp', '.png'"
    with pytest.raises(ValueError, match=message):
        made.save(tmp_path / name)
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_saved_is_named(plain, made, tmp_path):
    with pytest.raises(ValueError, match="output_type"):
        plain("hello", output_type="np").save(tmp_path / "clip.mp4")
    for scale in (0, 1.5):
        with pytest.raises(ValueError, match=f"scale.*{scale}"):
            made.save(tmp_path / "clip.mp4", scale=scale)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ".png"])
def test_a_full_disk_leaves_the_old_file(plain, tmp_path, suffix, monkeypatch):
    path = plain("hello").save(tmp_path / f"clip{suffix}")
    before = path.read_bytes()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minisora.core.files.fsync_path", full)
    with pytest.raises(OSError, match=f"clip{suffix}: No space left on device"):
        plain("rest").save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "nothing half-written stays"


# ---------------------------------------------------------------- saved and opened again

AGAIN = """
import sys, torch
from safetensors.torch import save_file
from minisora.pipeline import VideoPipeline
pipe = VideoPipeline.from_pretrained(sys.argv[1])
made = pipe(["hello", "rest"], generator=torch.Generator().manual_seed(3))
film = pipe.film(["you", "rest"], made.frames[0], seed=2)
save_file(dict(made=made.frames, film=film.frames), sys.argv[2])
"""


def test_a_new_process_gives_the_same_bits(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipe")
    made = pipe(["hello", "rest"], generator=torch.Generator().manual_seed(3))
    film = pipe.film(["you", "rest"], made.frames[0], seed=2)
    call = [sys.executable, "-c", AGAIN, str(tmp_path / "pipe"), str(tmp_path / "x")]
    subprocess.run(call, check=True)
    there = load_file(tmp_path / "x")
    assert torch.equal(there["made"], made.frames) and torch.equal(there["film"], film.frames)


def test_all_that_belongs_to_it_is_saved(pipe, tmp_path):
    mean = torch.tensor([0.1, 0.2, -0.3])
    std = torch.tensor([1.0, 2.0, 0.5])
    whole = speaking_pipeline(mean=mean, std=std, fps=12)
    whole.save_pretrained(tmp_path / "pipe")
    names = sorted(p.name for p in (tmp_path / "pipe").iterdir())
    assert names == ["autoencoder", "model", "pipeline.json"]
    again = VideoPipeline.from_pretrained(tmp_path / "pipe")
    assert torch.equal(again.mean, mean) and torch.equal(again.std, std) and again.fps == 12
    assert again.vocabulary == WORDS and again.objective == whole.objective
    assert {**again.sampling, "guidance_interval": (0.0, 0.5)} == SAMPLING
    assert repr(again) == repr(whole) and "3 words, clips of (3, 9, 32, 64)" in repr(whole)
    assert not again.model.training and not again.autoencoder.training


def test_saving_replaces_what_was_there(pipe, plain, tmp_path):
    plain.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    other = picturing_pipeline(fps=3, mean=0.5)
    other.save_pretrained(tmp_path)
    assert VideoPipeline.from_pretrained(tmp_path).fps == 3
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_pipeline_of_a_run(tmp_path):
    with_run = Experiment(shutil.copytree(OLD / "run", tmp_path / "run"), progress=False)
    pipe = VideoPipeline.from_pretrained(tmp_path / "run")
    prompts = ["a red ring moves left", "a blue ball grows"]
    made = pipe(prompts, seed=5, batch_size=32).frames
    assert torch.equal(made, with_run.sample(prompts, seed=5))
    assert pipe.sampling["renoise_times"] == 2 and pipe.sampling["eta"] == 1.0
    assert pipe.clip_shape == (3, 8, 32, 32) and pipe.fps == 8
    pipe.save_pretrained(tmp_path / "pipe")
    again = VideoPipeline.from_pretrained(tmp_path / "pipe")
    assert torch.equal(again(prompts, seed=5, batch_size=32).frames, made)


def test_a_pipeline_of_an_avatar(tmp_path):
    pipe = VideoPipeline.from_pretrained(OLD / "avatar")
    assert pipe.sampling == dict(num_inference_steps=3, shift=2.0, guidance_scale=1.0)
    assert pipe.objective == FramePrediction(
        prediction="data", loss_weighting="velocity", known_frames=(0, 1)
    )
    made = pipe.film(["hello", "rest"], seed=1).frames
    pipe.save_pretrained(tmp_path / "pipe")
    again = VideoPipeline.from_pretrained(tmp_path / "pipe")
    assert torch.equal(again.film(["hello", "rest"], seed=1).frames, made)


def test_the_decoder_of_a_run_is_the_tuned_one(tmp_path):
    run = shutil.copytree(OLD / "run", tmp_path / "run")
    tuned = ImageVAE.from_pretrained(run / "autoencoder")
    with torch.no_grad():
        tuned.skip_out.bias += 0.5
    tuned.save_pretrained(run / "decoder")
    pipe = VideoPipeline.from_pretrained(run)
    assert torch.equal(pipe.autoencoder.skip_out.bias, tuned.skip_out.bias)
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(dict(recipe, tune_steps=5)))
    shutil.rmtree(run / "decoder")
    with pytest.raises(FileNotFoundError, match="decoder"):
        VideoPipeline.from_pretrained(run)


def test_fields_are_replaced_while_opening(tmp_path):
    pipe = VideoPipeline.from_pretrained(OLD / "avatar", fps=3, sampling=dict(steps=1), std=2)
    assert pipe.fps == 3 and pipe.sampling == dict(num_inference_steps=1) and pipe.std.item() == 2
    other = awake(pipe.model.config, seed=9)
    assert VideoPipeline.from_pretrained(OLD / "avatar", model=other).model is other
    with pytest.raises(ValueError, match="no field 'fsp'; did you mean 'fps'"):
        VideoPipeline.from_pretrained(OLD / "avatar", fsp=3)
    with pytest.raises(ValueError, match="std must be .*above 0"):
        VideoPipeline.from_pretrained(OLD / "avatar", std=0)


@pytest.mark.parametrize("name", ["nowhere", "/nowhere", "/no/where", "../no/where", "a/b/c", "."])
def test_a_folder_that_is_not_there_is_named(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        VideoPipeline.from_pretrained(name)


def test_a_repository_is_asked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="somebody/something"):  # no network here
        VideoPipeline.from_pretrained("somebody/something")
    asked = []
    monkeypatch.setattr(
        "minisora.pipeline.snapshot_download",
        lambda name: asked.append(name) or str(OLD / "avatar"),
    )
    assert VideoPipeline.from_pretrained("somebody/something").fps == 12
    assert asked == ["somebody/something"]


def edit(**fields):
    "Change fields of a JSON file; None: the field is gone."

    def change(file):
        values = json.loads(file.read_text())
        values |= fields
        gone = [k for k, v in fields.items() if v is ...]
        for k in gone:
            del values[k]
        file.write_text(json.dumps(values))

    return change


def write(text):
    return lambda file: file.write_text(text)


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


def remove(file):
    file.unlink()


DAMAGE = [
    ("pipeline.json", write("{"), ValueError, "is no JSON"),
    ("pipeline.json", write("[]"), ValueError, "no JSON object"),
    ("pipeline.json", write("{}"), ValueError, "vocabulary"),
    ("pipeline.json", edit(objective=...), ValueError, "objective"),
    ("pipeline.json", edit(fps=...), ValueError, "fps"),
    ("pipeline.json", edit(kind="image-pipeline"), ValueError, "kind.*'image-pipeline'"),
    ("pipeline.json", edit(objective=dict(objective="guess")), ValueError, "'guess'"),
    ("pipeline.json", edit(vocabulary=dict(words=["hello"])), ValueError, "slots"),
    ("pipeline.json", edit(vocabulary=None), ValueError, "vocabulary=… is missing"),
    ("pipeline.json", edit(vocabulary=3), ValueError, "vocabulary|not a pipeline"),
    ("pipeline.json", edit(mean=[0.0, 1.0]), ValueError, "mean has 2 numbers for 3 channels"),
    ("pipeline.json", edit(mean="x"), ValueError, "mean"),
    ("pipeline.json", edit(std=[0.0]), ValueError, "std above 0"),
    ("pipeline.json", edit(fps="fast"), ValueError, "fps.*'fast'"),
    ("pipeline.json", edit(sampling=dict(step=3)), ValueError, "no option 'step'"),
    ("pipeline.json", edit(sampling=3), ValueError, "sampling|not a pipeline"),
    ("pipeline.json", remove, FileNotFoundError, "none of pipeline.json"),
    ("model/config.json", remove, FileNotFoundError, "no such file"),
    ("model/config.json", write("{"), ValueError, "is no JSON"),
    ("model/config.json", edit(kind="llm"), ValueError, "'llm'"),
    ("model/config.json", edit(width="wide"), ValueError, "width"),
    ("model/model.safetensors", remove, FileNotFoundError, "no such file"),
    ("model/model.safetensors", cut, ValueError, "holds no plain tensors"),
    ("model/model.safetensors", write("x"), ValueError, "holds no plain tensors"),
    ("autoencoder/config.json", remove, FileNotFoundError, ""),
    ("autoencoder/config.json", edit(kind="zip"), ValueError, "'zip'"),
    ("autoencoder/model.safetensors", remove, FileNotFoundError, "no such file"),
    ("autoencoder/model.safetensors", cut, ValueError, "holds no plain tensors"),
]


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "pipe"
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name, harm, error, message", DAMAGE)
def test_a_damaged_pipeline_is_one_line_that_names_the_file(
    saved, tmp_path, name, harm, error, message
):
    shutil.copytree(saved, tmp_path / "pipe")
    harm(tmp_path / "pipe" / name)
    with pytest.raises(error, match=message) as raised:
        VideoPipeline.from_pretrained(tmp_path / "pipe")
    said = str(raised.value)
    where = "pipe" if name == "pipeline.json" and harm is remove else Path(name).parent / Path(name)
    assert str(tmp_path / "pipe") in said and "\n" not in said
    if harm is not remove or error is not FileNotFoundError:
        assert Path(name).name in said, (where, said)


RUN_DAMAGE = [
    ("recipe.json", write("{"), ValueError, "recipe.json"),
    ("recipe.json", edit(stepz=3), ValueError, "recipe.json.*'stepz'"),
    ("recipe.json", edit(kind="films"), ValueError, "recipe.json.*'films'"),
    ("captions.json", remove, FileNotFoundError, "captions.json"),
    ("captions.json", write("{}"), ValueError, "captions.json"),
    ("captions.json", write('["a red ring moves left"]'), ValueError, "the vocabulary"),
    ("model/latents.json", remove, FileNotFoundError, "latents.json"),
    ("model/latents.json", write('{"mean": [0.0]}'), ValueError, "std"),
    ("model/model.safetensors", cut, ValueError, "model.safetensors"),
    ("autoencoder/model.safetensors", cut, ValueError, "model.safetensors"),
]


@pytest.mark.parametrize("name, harm, error, message", RUN_DAMAGE)
def test_a_damaged_run_is_named(tmp_path, name, harm, error, message):
    shutil.copytree(OLD / "run", tmp_path / "run")
    harm(tmp_path / "run" / name)
    with pytest.raises(error, match=message) as raised:
        VideoPipeline.from_pretrained(tmp_path / "run")
    assert str(tmp_path / "run") in str(raised.value)


def test_a_full_disk_leaves_the_old_pipeline(plain, tmp_path, monkeypatch):
    plain.save_pretrained(tmp_path / "pipe")

    def content():
        return {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    before = content()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minisora.pipeline.write_json", full)
    with pytest.raises(OSError, match="pipe: No space left on device"):
        picturing_pipeline(fps=3).save_pretrained(tmp_path / "pipe")
    assert content() == before


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
    return clips, ae, cache, train(cache, words)


def train(data, words=None, channels=4, objective=Interpolant(prediction="data")):
    condition = Unconditional() if words is None else WordCondition(len(words), slots=words.slots)
    config = VideoDiTConfig(channels=channels, condition=condition, **dict(SIZE, size=(4, 4, 4)))
    return fit(VideoDiT(config), data, objective, steps=2, progress=False)


def test_a_training_on_a_cache_knows_what_belongs_to_it(cached):
    clips, ae, cache, result = cached
    pipe = VideoPipeline.from_fit(result, ae, num_inference_steps=2)
    assert pipe.model is result.ema and pipe.objective is result.objective
    assert pipe.vocabulary == cache.vocabulary and pipe.fps == clips[0].fps
    assert pipe.mean.item() == cache.mean.item() and pipe.std.item() == cache.std.item()
    assert pipe.sampling == dict(num_inference_steps=2)
    assert pipe(clips[0].caption).frames.shape == (1, 3, 4, 32, 32)
    z = pipe.encode(to_float(torch.stack([clips[i].frames for i in range(8)])))
    stored = cache[list(range(8))]["latents"]  # in float16
    torch.testing.assert_close(z, stored, atol=2e-3, rtol=1e-3)


def test_statistics_of_each_channel(cached):
    _, ae, cache, _ = cached
    each = LatentCache(cache.path, vocabulary=cache.vocabulary, per_channel=True)
    pipe = VideoPipeline.from_fit(train(each, cache.vocabulary), ae)
    assert pipe.mean.shape == (4,) and torch.equal(pipe.std, each.std.flatten())


def test_what_is_said_counts(cached):
    _, ae, _, result = cached
    pipe = VideoPipeline.from_fit(result, ae, fps=3, mean=0.5, std=2)
    assert (pipe.fps, pipe.mean.item(), pipe.std.item()) == (3, 0.5, 2)


@pytest.mark.parametrize("nested", [1, 2])
def test_a_part_of_a_cache_knows_as_much(cached, nested):
    _, ae, cache, _ = cached
    part = cache
    for _ in range(nested):
        part = torch.utils.data.Subset(part, range(4))
    pipe = VideoPipeline.from_fit(train(part, cache.vocabulary), ae)
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
    pipe = VideoPipeline.from_fit(train(z), ae)
    assert (pipe.fps, pipe.mean.item(), pipe.std.item(), pipe.vocabulary) == (8, 0, 1, None)
    ids = WORDS.encode_batch(["hello", "rest"] * 4)
    result = train((z, ids), WORDS)
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


# ---------------------------------------------------------------- parts that do not belong together


def video_config(**changes):
    return VideoDiTConfig(**dict(SIZE, size=(4, 4, 4), channels=4) | changes)


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
    yield dict(sampling=dict(guidence=3)), "no option 'guidence'; did you mean"
    yield dict(sampling=dict(seed=3)), "seed"
    yield dict(sampling=dict(renoise_times=-1)), "renoise_times"
    learned = GaussianDiffusion(variance="learned-range")
    yield dict(objective=learned), "needs a variance, and the model does not predict one"


@pytest.mark.parametrize(
    "changes, message", mismatched(), ids=lambda v: "" if type(v) is str else str([*v])
)
def test_parts_that_do_not_belong_together_are_named(changes, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        picturing_pipeline(**changes)


@pytest.mark.parametrize("output", [EDMOutput(), DataOutput()])
def test_a_model_that_answers_with_another_thing_is_refused(output):
    "Its network is wrapped so that it gives a velocity: an objective that asks for data would take it for data."
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
    for objective in (Interpolant(), GaussianDiffusion()):
        with pytest.raises(ValueError, match="predicts a variance, and the objective does not"):
            VideoPipeline(**parts | dict(objective=objective))
    pipe = VideoPipeline(**parts | dict(objective=GaussianDiffusion(variance="learned-range")))
    assert pipe(num_inference_steps=2).frames.isfinite().all()


def test_a_model_of_embedded_captions_takes_no_words():
    condition = CaptionCondition(12)
    config = video_config(
        patch=(1, 2, 2), condition=condition, positions=LattePositions(), layout=Factorized()
    )
    with pytest.raises(ValueError, match="the model takes no words"):
        picturing_pipeline(model=awake(config))


def test_it_moves_as_a_model_does(plain):
    assert plain.device == torch.device("cpu") and plain.to("cpu") is plain


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    "Calls, known frames, films, a generator there; clips come back to the CPU, near those made here."
    here = speaking_pipeline()
    there = speaking_pipeline().to("cuda")
    assert there.device.type == "cuda" and there.autoencoder.spec == here.autoencoder.spec
    start = here("hello", seed=3).frames[0]
    calls = (
        lambda pipe: pipe(["hello", "rest"], seed=4),
        lambda pipe: pipe("rest", start[:, -1:], seed=4, renoise_times=2),
        lambda pipe: pipe("rest", Image.new("RGB", (64, 32)), seed=4),
        lambda pipe: pipe.film(["hello", "rest"], start, seed=4),
    )
    for call in calls:
        made = call(there).frames
        assert made.device.type == "cpu"
        torch.testing.assert_close(made, call(here).frames, atol=2e-2, rtol=2e-2)
    generator = torch.Generator("cuda").manual_seed(0)
    assert there("hello", generator=generator).frames.isfinite().all()
    there.save_pretrained(tmp_path)
    again = VideoPipeline.from_pretrained(tmp_path, device="cuda")
    assert torch.equal(again("hello").frames, there("hello").frames)


@pytest.mark.gpu
def test_a_training_on_a_gpu_gives_a_pipeline_there():
    z = torch.randn(8, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    result = train(z)
    assert next(result.ema.parameters()).device.type == "cuda"
    pipe = VideoPipeline.from_fit(result, picturing_parts()["autoencoder"])
    assert pipe(num_inference_steps=2).frames.isfinite().all()


def test_an_output_alone():
    "What is made can be put together again by hand."
    made = VideoPipelineOutput(torch.zeros(1, 3, 2, 8, 8), ["black"])
    assert made.fps == 8 and "1 clips" in repr(made)
