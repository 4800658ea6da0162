"""Pipelines in folders: saved, opened again, those of runs and avatars, and what is said of a
damaged one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import pipeline as fixtures
from helpers.pipeline import (
    SAMPLING,
    WORDS,
    awake,
    picturing_pipeline,
    speaking_pipeline,
)
from PIL import Image
from safetensors.torch import load_file

from minisora.autoencoder import ImageVAE
from minisora.data.video import read_video, to_float
from minisora.experiment import Experiment
from minisora.frames import FramePrediction
from minisora.pipeline import VideoPipeline

OLD = Path(__file__).parent / "data" / "version-0.1"


# fixtures that several files share
pipe = fixtures.pipe
plain = fixtures.plain


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


def test_the_video_that_is_shipped(root, tmp_path):
    "A finished run of the recipe: its own decoder, fresh noise in each step, settling."
    pipe = VideoPipeline.from_pretrained(root / "data" / "first-video")
    assert pipe.clip_shape == (3, 16, 64, 64) and len(pipe.vocabulary.words) == 18
    assert pipe.sampling["solver"] == "ddim" and pipe.sampling["renoise_times"] == 3
    ask = dict(prompt="a red ring moves left", num_inference_steps=3, guidance_scale=2.0)
    made = pipe(**ask, generator=torch.Generator().manual_seed(0))
    again = pipe(**ask, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.frames, again.frames) and made.frames.std() > 0.05
    clip = read_video(made.save(tmp_path / "ring.mp4"), 16, 64).frames
    assert clip.shape == (3, 16, 64, 64)
    assert (to_float(clip) - made.frames[0]).abs().mean() < 0.05, "the file shows what was made"
    with pytest.raises(ValueError, match="'dog'"):
        pipe("a red dog moves left")
    # another solver knows nothing of eta, which the recipe sets
    assert pipe.sampling["eta"] == 1 and pipe(**ask, solver="heun").frames.isfinite().all()


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
        "minisora.pipeline_folders.snapshot_download",
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
    ("autoencoder/config.json", remove, FileNotFoundError, "autoencoder"),
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


def test_it_moves_as_a_model_does(plain):
    assert plain.device == torch.device("cpu") and plain.to("cpu") is plain


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    """Calls, known frames, films, a generator there; clips come back to the CPU, near those made
    here."""
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
