"""`UpsamplingPipeline`: clips of any length and size made larger; saved; in a `VideoPipeline`."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import pipeline as pipelines
from helpers.autoencoder import small_vae
from helpers.models import close
from helpers.pipeline import WORDS, Blocks, never, picturing_pipeline
from helpers.upsampling import (
    GUIDES,
    OBJECTIVE,
    WORDY,
    clips_of,
    enlarging,
    upsampler,
    upsampler_config,
    with_upsampler,
)

from minisora.data.video import to_float
from minisora.data.vocabulary import Vocabulary
from minisora.interpolants import Interpolant
from minisora.pipeline import VideoPipeline
from minisora.upsampling import EnlargedGuide, UpsamplerDiT, Upsampling
from minisora.upsampling_pipeline import UpsamplingPipeline, pieces

plain = pipelines.plain


@pytest.fixture(scope="module")
def up():
    return enlarging()


@pytest.fixture(scope="module")
def film_maker():
    "A pipeline of 32×64 pixels whose upsampler has its autoencoder."
    return with_upsampler()


@pytest.fixture
def refusing(monkeypatch):
    "Whatever makes something fails the test: a wrong call must be refused before."
    monkeypatch.setattr("minisora.upsampling_pipeline.upsample", never)
    pipelines.refuse_to_sample(monkeypatch)


# ---------------------------------------------------------------- a call


@pytest.mark.parametrize("guide", GUIDES, ids=lambda g: g.kind)
@pytest.mark.parametrize("frames", [1, 9, 17, 21, 40])
def test_clips_of_any_length(guide, frames):
    up = enlarging(
        model=upsampler(condition=WORDY, guide=guide), sampling=dict(num_inference_steps=1)
    )
    clips = clips_of(1, frames, 16, 24)
    larger = up(clips)
    assert larger.shape == (1, 3, frames, 32, 48) and larger.device.type == "cpu"
    assert larger.abs().max() <= 1 and larger.std() > 0.01
    assert torch.equal(up(clips), larger)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_each_pass_doubles(factor):
    up = enlarging(sampling=dict(num_inference_steps=1))
    clips = clips_of(2, 3, 8, 16)
    larger = up(clips, factor=factor, seed=5)
    assert larger.shape == (2, 3, 3, 8 * factor, 16 * factor)
    for _ in range(factor.bit_length() - 1):
        clips = up(clips, seed=5)
    close(larger, clips, 1e-4)


def enlarged(clips):
    return clips.repeat_interleave(2, 3).repeat_interleave(2, 4)


@pytest.mark.parametrize("shared", [0, 1, 4, 8])
@pytest.mark.parametrize("length", [1, 2, 9, 10, 14, 17, 21, 40])
def test_pieces_cover_everything(length, shared):
    starts = pieces(length, 9, shared)
    assert starts[0] == 0 and starts[-1] + 9 >= length
    assert all(b - a == 9 - shared for a, b in zip(starts, starts[1:]))
    assert len(starts) == 1 or starts[-2] + 9 < length, "one too many"
    if length <= 9:
        assert starts == [0]


@pytest.mark.parametrize("shared", [0, 1, 4, 8])
@pytest.mark.parametrize("frames", [1, 9, 12, 21])
def test_pieces_that_change_nothing_are_put_together_again(up, monkeypatch, shared, frames):
    seen = []

    def copying(self, clips, *rest):
        seen.append(clips.shape[2])
        return enlarged(clips)

    monkeypatch.setattr(UpsamplingPipeline, "double_piece", copying)
    clips = clips_of(2, frames)
    torch.testing.assert_close(up(clips, shared=shared), enlarged(clips))
    assert max(seen) <= 9


def test_shared_frames_are_crossfaded(up, monkeypatch):
    count = iter(range(9))
    monkeypatch.setattr(
        UpsamplingPipeline,
        "double_piece",
        lambda self, clips, *rest: enlarged(torch.full_like(clips, float(next(count)))),
    )
    levels = up(clips_of(1, 14), shared=3)[0, 0, :, 0, 0]
    torch.testing.assert_close(levels, torch.tensor([0.0] * 6 + [0.25, 0.5, 0.75] + [1.0] * 5))


@pytest.mark.parametrize("frames", [1, 9, 21])
def test_a_plain_clip_stays_plain(frames):
    """A model that answers what it is told, an autoencoder of means: what is left of the noise is
    as little as the time that the objective leaves out."""
    model = UpsamplerDiT(upsampler_config(channels=7))
    with torch.no_grad():
        for c in range(3):
            model.features.weight[c, c, 0, 1, 1] = 1
    up = enlarging(
        model=model, autoencoder=Blocks(), vocabulary=None, level=0, mean=0.1, std=0.5
    )  # fmt: skip
    clips = torch.full((1, 3, frames, 16, 24), -0.4)
    clips[:, 1] = 0.6
    larger = up(clips, factor=4)
    assert larger.shape == (1, 3, frames, 64, 96)
    torch.testing.assert_close(larger[:, :, :, :1, :1], clips[..., :1, :1], atol=0.01, rtol=0)
    assert larger.std((2, 3, 4)).max() < 2e-3


def test_pixels_of_either_kind(up):
    pixels = (clips_of(1, 5) * 127 + 128).to(torch.uint8)
    assert torch.equal(up(pixels), up(to_float(pixels)))


def test_a_clip_does_not_depend_on_its_company(up):
    clips = clips_of(5, 11)
    prompts = ["hello", "you", "rest", "you", "hello"]
    ask = dict(seed=3, guidance_scale=2.0)
    whole = up(clips, prompts, **ask)
    for batch_size in (1, 2, 8):
        close(up(clips, prompts, batch_size=batch_size, **ask), whole, 1e-4)
    for index in ([4], [3, 1], torch.tensor([2])):
        rows = [int(i) for i in index]
        some = up(clips[rows], [prompts[i] for i in rows], index=index, **ask)
        close(some, whole[rows], 1e-4)
    assert (up(clips[4:], prompts[4:], **ask) - whole[4:]).abs().max() > 1e-3
    assert (up(clips, prompts, **dict(ask, seed=4)) - whole).abs().max() > 1e-3


def test_what_a_call_says_counts(up):
    clips = clips_of(1, 9)
    usual = up(clips, "hello")
    for other in (
        up(clips, "rest"),
        up(clips),
        up(clips, "hello", level=0.3),
        up(clips, "hello", num_inference_steps=3),
        up(clips, "hello", guidance_scale=3.0),
    ):
        assert (other - usual).abs().max() > 1e-3
    assert torch.equal(up(clips, ["hello"], level=0.1, steps=2), usual)
    assert up.sampling == dict(num_inference_steps=2), "a call must not change the pipeline"


def test_a_call_leaves_the_global_generator_alone(up):
    before = torch.random.get_rng_state()
    up(clips_of(1, 9), "hello")
    assert torch.equal(before, torch.random.get_rng_state())


CLIPS = clips_of(2, 9)
WRONG = [
    (dict(clips=3), r"clips must be a tensor \(B, 3, T, H, W\), not int"),
    (dict(clips=CLIPS[0]), r"clips must be a tensor .*not \(3, 9, 16, 16\)"),
    (dict(clips=CLIPS[:, :2]), r"clips must be a tensor .*not \(2, 2, 9, 16, 16\)"),
    (dict(clips=CLIPS[:0]), r"clips must be a tensor .*not \(0, 3, 9, 16, 16\)"),
    (dict(clips=CLIPS[:, :, :0]), "number of frames"),
    (dict(clips=CLIPS[..., :15]), "multiples of 8"),
    (dict(clips=CLIPS.long()), "must be float"),
    (dict(clips=CLIPS * float("nan")), "NaN"),
    (dict(factor=3), "factor must be 2, 4, 8, …, not 3"),
    (dict(factor=6), "factor must be 2, 4, 8, …, not 6"),
    (dict(factor=1), "factor must be a whole number from 2, not 1"),
    (dict(factor=2.0), "factor must be a whole number from 2, not 2.0"),
    (dict(level=0.4), "level must be a number from 0 to 0.3, not 0.4"),
    (dict(level="much"), "level must be a number"),
    (dict(shared=9), "shared must be a whole number from 0 to 8, not 9"),
    (dict(shared=-1), "shared must be a whole number from 0 to 8"),
    (dict(overlap=1), "overlap must be even, not 1"),
    (dict(overlap=4), "overlap must be a whole number from 0 to 2"),
    (dict(prompt="dog"), "'dog'"),
    (dict(prompt=["hello"]), "prompt has 1 texts for 2 clips"),
    (dict(prompt=3), "prompt must be a text or a list of texts, not 3"),
    (dict(prompt=["hello", None]), "prompt must be a text or a list of texts"),
    (dict(seed=-1), "seed must be a whole number from 0, not -1"),
    (dict(index=[1]), "index has 1 numbers for 2 clips"),
    (dict(index=[1, -1]), "index must be a whole number from 0"),
    (dict(index=3), "index must be a list of whole numbers, not 3"),
    (dict(batch_size=0), "batch_size must be a whole number from 1"),
    (dict(num_inference_steps=0), "num_inference_steps"),
    (dict(guidanse_scale=2), "no option 'guidanse_scale'; did you mean 'guidance_scale'"),
    (dict(solver="heun", eta=1.0), "solver 'heun' has no option 'eta'"),
    (dict(renoise_times=2), "UpsamplingPipeline has no option 'renoise_times'"),
]


@pytest.mark.parametrize("wrong, message", WRONG)
def test_a_wrong_call_is_refused_before_anything_is_made(up, refusing, wrong, message):
    clips = wrong.get("clips", CLIPS)
    rest = {k: v for k, v in wrong.items() if k != "clips"}
    with pytest.raises(ValueError, match=message):
        up(clips, **rest)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(objective=Interpolant()), "needs an UpsamplerDiT and Upsampling, not UpsamplerDiT"),
        (dict(model=pipelines.awake(pipelines.video_config())), "needs an UpsamplerDiT"),
        (dict(model=upsampler(channels=7, condition=WORDY)), "latents of 3 channels"),
        (dict(vocabulary=None), "vocabulary=… is missing"),
        (dict(vocabulary=Vocabulary.from_captions(["a b"])), "the model has 4 word ids in 1 slots"),
        (dict(mean=[0.0, 1.0]), "mean has 2 numbers for 4 channels"),
        (dict(std=0.0), "std above 0"),
        (dict(level=0.5), "level must be a number from 0 to 0.3"),
        (dict(autoencoder=3), "autoencoder must have encode"),
        (dict(sampling=dict(stepps=3)), "no option 'stepps'"),
        (dict(sampling=dict(renoise_times=3)), "no option 'renoise_times'"),
    ],
)
def test_parts_that_do_not_belong_together_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        enlarging(**wrong)


def test_frames_of_a_piece_are_those_of_its_latents(up):
    assert up.frames == 9 and "pieces of 9 frames" in repr(up)


# ---------------------------------------------------------------- saved and loaded


def test_what_is_saved_gives_the_same_bits(tmp_path):
    up = enlarging(mean=[0.1, 0.2, -0.3, 0.0], std=[1.0, 2.0, 0.5, 1.5], level=0.2)
    up.save_pretrained(tmp_path / "up")
    assert sorted(p.name for p in (tmp_path / "up").iterdir()) == [
        "autoencoder",
        "model",
        "pipeline.json",
    ]
    again = UpsamplingPipeline.from_pretrained(tmp_path / "up")
    clips = clips_of(1, 12)
    assert torch.equal(again(clips, "hello"), up(clips, "hello"))
    assert again.objective == OBJECTIVE and again.vocabulary == WORDS and again.level == 0.2
    assert again.sampling == up.sampling and torch.equal(again.std, up.std)


def test_without_its_autoencoder_the_one_above_is_meant(up, tmp_path):
    up.save_pretrained(tmp_path / "whole" / "upsampler", autoencoder=False)
    assert not (tmp_path / "whole" / "upsampler" / "autoencoder").exists()
    with pytest.raises((FileNotFoundError, ValueError), match="autoencoder"):
        UpsamplingPipeline.from_pretrained(tmp_path / "whole" / "upsampler")
    up.autoencoder.save_pretrained(tmp_path / "whole" / "autoencoder")
    again = UpsamplingPipeline.from_pretrained(tmp_path / "whole" / "upsampler")
    clips = clips_of(1, 9)
    assert torch.equal(again(clips), up(clips))
    other = small_vae()
    there = UpsamplingPipeline.from_pretrained(tmp_path / "whole" / "upsampler", other)
    assert there.autoencoder is other


def edit(**fields):
    def change(file):
        values = json.loads(file.read_text()) | fields
        file.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))

    return change


DAMAGE = [
    ("pipeline.json", lambda file: file.unlink(), FileNotFoundError, "no pipeline.json"),
    ("pipeline.json", lambda file: file.write_text("{"), ValueError, "is no JSON"),
    ("pipeline.json", lambda file: file.write_text("[]"), ValueError, "no JSON object"),
    ("pipeline.json", edit(kind="video-pipeline"), ValueError, "kind must be one of"),
    ("pipeline.json", edit(autoencoder="/etc"), ValueError, "autoencoder must be one of"),
    ("pipeline.json", edit(autoencoder=...), ValueError, "autoencoder"),
    ("pipeline.json", edit(level=...), ValueError, "level"),
    ("pipeline.json", edit(level=2), ValueError, "level must be"),
    ("pipeline.json", edit(mean="a"), ValueError, "mean must be numbers"),
    ("pipeline.json", edit(objective=dict(objective="x")), ValueError, "pipeline.json"),
    ("pipeline.json", edit(objective=3), ValueError, "pipeline.json"),
    ("pipeline.json", edit(vocabulary=3), ValueError, "pipeline.json"),
    ("pipeline.json", edit(sampling=3), ValueError, "sampling must be"),
    ("model/config.json", lambda file: file.unlink(), FileNotFoundError, "config.json"),
    ("model/config.json", edit(guide=dict(kind="x")), ValueError, "UpsamplerConfig.guide"),
    ("model/model.safetensors", lambda file: file.unlink(), FileNotFoundError, "safetensors"),
    ("autoencoder/config.json", lambda file: file.unlink(), FileNotFoundError, "config.json"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    with_upsampler(own=True).save_pretrained(root / "pipe")
    return root / "pipe"


@pytest.mark.parametrize("name, damage, error, message", DAMAGE)
def test_a_damaged_folder_is_one_line_that_names_the_file(
    saved, tmp_path, name, damage, error, message
):
    pipe = shutil.copytree(saved, tmp_path / "pipe")
    damage(pipe / "upsampler" / name)
    for open_it in (
        lambda: UpsamplingPipeline.from_pretrained(pipe / "upsampler"),
        lambda: VideoPipeline.from_pretrained(pipe),
    ):
        if name.startswith("autoencoder") and error is FileNotFoundError:
            error = (FileNotFoundError, ValueError)
        with pytest.raises(error, match=message) as raised:
            open_it()
        text = str(raised.value)
        assert str(pipe / "upsampler") in text and "\n" not in text


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder, or no pipeline.json"):
        UpsamplingPipeline.from_pretrained(tmp_path / "nowhere")


# ---------------------------------------------------------------- a stage of a `VideoPipeline`


def test_a_call_makes_clips_of_the_size_it_is_asked_for(film_maker):
    small = film_maker(["hello", "rest"], seed=4)
    assert torch.equal(film_maker(["hello", "rest"], seed=4, size=32).frames, small.frames)
    for size, factor in ((64, 2), (128, 4)):
        made = film_maker(["hello", "rest"], seed=4, size=size)
        assert made.frames.shape == (2, 3, 9, size, 2 * size)
        wanted = film_maker.upsampler(small.frames, ["hello", "rest"], factor, seed=4)
        close(made.frames, wanted, 1e-4)


def test_larger_clips_do_not_depend_on_the_batch(film_maker):
    ask = dict(prompt=["hello", "rest", "you"], size=64, seed=2)
    whole = film_maker(**ask).frames
    close(film_maker(batch_size=2, **ask).frames, whole, 1e-4)
    one = film_maker("you", size=64, seed=2, index=[2]).frames
    close(one, whole[2:], 1e-4)


def test_an_upsampler_of_other_words_is_not_told_them(film_maker):
    words = Vocabulary.from_captions(["good", "day", "sir"])
    pipe = replace(film_maker, upsampler=replace(film_maker.upsampler, vocabulary=words))
    made = pipe("hello", size=64).frames
    close(made, film_maker.upsampler(film_maker("hello").frames, None), 1e-4)


def test_a_film_in_another_size(film_maker):
    film = film_maker.film(["hello", "rest"], seed=1)
    larger = film_maker.film(["hello", "rest"], seed=1, size=64)
    assert larger.frames.shape == (1, 3, film.frames.shape[2], 64, 128) and larger.fps == film.fps
    close(larger.frames, film_maker.upsampler(film.frames, seed=1), 1e-4)


@pytest.mark.parametrize("size", [0, 16, 48, 96, 192, 64.0, "64", -64, True])
def test_a_wrong_size_is_named_before_anything_is_made(film_maker, refusing, size):
    for make in (film_maker, film_maker.film):
        with pytest.raises(ValueError, match="size must be"):
            make(["hello"], size=size)


def test_a_pipeline_without_an_upsampler_says_so(plain, refusing):
    with pytest.raises(ValueError, match="size=64: this pipeline makes clips of 32 rows and has"):
        plain("hello", size=64)
    assert plain.upsampler is None


def test_the_size_of_its_own_needs_no_upsampler(plain):
    assert torch.equal(plain("hello", size=32).frames, plain("hello").frames)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_saved_within_a_pipeline(own, tmp_path):
    pipe = with_upsampler(own)
    pipe.save_pretrained(tmp_path / "pipe")
    folder = tmp_path / "pipe" / "upsampler"
    assert (folder / "autoencoder").is_dir() == own
    said = json.loads((folder / "pipeline.json").read_text())["autoencoder"]
    assert said == ("autoencoder" if own else "../autoencoder")
    again = VideoPipeline.from_pretrained(tmp_path / "pipe")
    assert (again.upsampler.autoencoder is again.autoencoder) != own
    ask = dict(prompt="hello", size=64, seed=3)
    assert torch.equal(again(**ask).frames, pipe(**ask).frames)
    alone = UpsamplingPipeline.from_pretrained(folder)
    clips = clips_of(1, 9, 32, 64)
    assert torch.equal(alone(clips), pipe.upsampler(clips))


def test_saved_again_without_one_it_has_none(tmp_path):
    pipe = with_upsampler()
    pipe.save_pretrained(tmp_path / "a")
    none = VideoPipeline.from_pretrained(tmp_path / "a", upsampler=None)
    assert none.upsampler is None
    none.save_pretrained(tmp_path / "b")
    assert VideoPipeline.from_pretrained(tmp_path / "b").upsampler is None
    picturing_pipeline().save_pretrained(tmp_path / "a")
    assert VideoPipeline.from_pretrained(tmp_path / "a").upsampler is None, "what is left counts"
    pipe.save_pretrained(tmp_path / "b")
    with_upsampler(own=True).save_pretrained(tmp_path / "b")
    pipe.save_pretrained(tmp_path / "b")
    again = VideoPipeline.from_pretrained(tmp_path / "b")
    assert again.upsampler.autoencoder is again.autoencoder


def test_an_upsampler_that_is_missing_is_named(saved, tmp_path):
    pipe = shutil.copytree(saved, tmp_path / "pipe")
    shutil.rmtree(pipe / "upsampler")
    with pytest.raises(FileNotFoundError, match="upsampler: no such folder"):
        VideoPipeline.from_pretrained(pipe)
    edit(upsampler=...)(pipe / "pipeline.json")  # as the version before this one wrote it
    assert VideoPipeline.from_pretrained(pipe).upsampler is None
    shutil.copytree(saved / "upsampler", pipe / "upsampler")
    assert VideoPipeline.from_pretrained(pipe).upsampler is not None


def test_a_pipeline_moves_with_its_upsampler(film_maker):
    assert film_maker.to("cpu").upsampler.model is film_maker.upsampler.model


def test_a_piece_may_be_of_another_length():
    "An upsampler of latents of two frames: pieces of five."
    model = upsampler(size=(2, 4, 4), guide=EnlargedGuide())
    up = enlarging(model=model, vocabulary=None, objective=Upsampling(prediction="data"))
    assert up.frames == 5 and up(clips_of(1, 9), shared=2).shape == (1, 3, 9, 32, 32)
    with pytest.raises(ValueError, match="shared must be a whole number from 0 to 4"):
        up(clips_of(1, 9), shared=5)
    single = enlarging(model=upsampler(size=(1, 4, 4)), vocabulary=None)
    assert single.frames == 1 and single(clips_of(1, 3)).shape == (1, 3, 3, 32, 32)


@pytest.mark.parametrize("value", [255.0, float("nan"), -1.5])
def test_pixels_out_of_range_are_named(value):
    clips = torch.zeros(1, 3, 5, 16, 16)
    clips[0, 0, 4, 3, 3] = value
    with pytest.raises(ValueError, match=r"float in \[-1, 1\]"):
        enlarging()(clips)


def test_a_model_that_enlarges_is_no_video_pipeline():
    up = enlarging()
    with pytest.raises(ValueError, match="goes into an UpsamplingPipeline"):
        VideoPipeline(up.model, up.autoencoder, None, up.objective)


def test_a_missing_autoencoder_is_named(tmp_path):
    enlarging().save_pretrained(tmp_path / "alone", autoencoder=False)
    with pytest.raises(FileNotFoundError, match="autoencoder: the autoencoder is not there"):
        UpsamplingPipeline.from_pretrained(tmp_path / "alone")
