"""`VideoPipeline` as a user meets it: called, given frames, filmed; what it makes; and all it
refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import awake as random_weights
from helpers import pipeline as fixtures
from helpers.pipeline import (
    SAMPLING,
    WORDS,
    awake,
    close,
    never,
    picturing_parts,
    picturing_pipeline,
    speaking_parts,
    video_config,
    wordless_parts,
)
from PIL import Image

from minisora.data.video import read_video, to_float
from minisora.diffusion import GaussianDiffusion
from minisora.dit import DiT, DiTConfig
from minisora.frames import sample_continuation
from minisora.models.conditions import Unconditional, WordCondition
from minisora.pipeline import VideoPipeline
from minisora.pipeline_output import VideoPipelineOutput
from minisora.sampling import renoise_average, sample
from minisora.temporal import VideoDiT
from minisora.walt import SelfConditionedInterpolant


# fixtures that several files share
pipe = fixtures.pipe
plain = fixtures.plain


@pytest.fixture
def refusing(monkeypatch):
    "Whatever samples fails the test: a wrong call must be refused before."
    fixtures.refuse_to_sample(monkeypatch)


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


def test_a_model_that_sees_its_own_last_answer(tmp_path):
    "Half of its channels are its estimate; the latents have the other half."
    objective = SelfConditionedInterpolant(prediction="data")
    condition = WordCondition(len(WORDS))
    model = random_weights(VideoDiT(video_config(channels=8, condition=condition)))
    pipe = picturing_pipeline(model=model, objective=objective)
    y = WORDS.encode_batch(["you"])
    z = sample(model, objective, y, steps=3, guidance=2.0, guidance_interval=(0.0, 0.5), seed=4)
    made = pipe("you", seed=4).frames
    with torch.no_grad():
        close(made, pipe.autoencoder.decode(z).clamp(-1, 1))
    pipe.save_pretrained(tmp_path / "pipe")
    close(VideoPipeline.from_pretrained(tmp_path / "pipe")("you", seed=4).frames, made)
    with pytest.raises(ValueError, match="makes latents of 2 channels, ImageVAE has 4"):
        picturing_pipeline(objective=objective)


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
    """Alone, in other company, in another order, in batches of any size; with fresh noise in each
    step, too."""
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
        (dict(prompts=["hello"], frames=torch.zeros(3, 3, 32, 64), overlap=2), "multiple of 4"),
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


def test_an_output_alone():
    "What is made can be put together again by hand."
    made = VideoPipelineOutput(torch.zeros(1, 3, 2, 8, 8), ["black"])
    assert made.fps == 8 and "1 clips" in repr(made)


def test_given_frames_are_followed_as_strongly_as_asked(pipe):
    frames = torch.zeros(3, 1, 32, 64)
    plain, same, more = (
        pipe("hello", frames=frames, num_inference_steps=2, **options).frames
        for options in ({}, dict(known_guidance=1.0), dict(known_guidance=3.0))
    )
    assert torch.equal(plain, same) and not torch.allclose(plain, more, atol=1e-3)
    with pytest.raises(ValueError, match="known_guidance"):
        pipe("hello", frames=frames, known_guidance="much")


def test_a_model_that_is_given_no_frames_follows_none():
    with pytest.raises(ValueError, match="not trained to continue"):
        VideoPipeline(**picturing_parts())("hello", known_guidance=2.0)


def test_a_picture_that_lies_on_its_side_begins_a_clip_upright(pipe, tmp_path):
    upright = Image.new("RGB", (64, 32))
    upright.paste((255, 0, 0), (0, 0, 20, 32))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6                                     # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    frames = pipe.first_frames(Image.open(tmp_path / "turned.png"), 1)
    assert torch.equal(frames, pipe.first_frames(upright, 1))
