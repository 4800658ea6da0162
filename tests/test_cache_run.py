"""`minisora train --cache`: a latent cache, its words and its autoencoder become a pipeline."""

import json
import shutil

import numpy as np
import pytest
import torch

from minisora import LatentCache, Interpolant, VideoDiT, VideoDiTConfig, VideoPipeline, cli
from minisora.autoencoder import ImageVAE
from minisora.cache_run import cache_recipe
from minisora.clips import SceneClips
from minisora.core.protocols import Clip
from minisora.core.sizes import fitting_patch
from minisora.data.video import write_video
from minisora.experiment import Experiment
from minisora.latent_cache import write_cache
from minisora.latents.video_vae import CausalVideoVAE
from minisora.recipe import Recipe, read_recipe
from minisora.train import fit

TINY = "steps=3 width=24 depth=1 heads=2 num_inference_steps=2 batch_size=2".split()


def train(cache, out, *more, fields=()):
    return cli.main(
        ["train", "--cache", str(cache), "--out", str(out), *more, "--set", *TINY, *fields]
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Films, an autoencoder with an odd number of latent frames, and the cache that `encode` makes."
    home = tmp_path_factory.mktemp("home")
    (home / "films").mkdir()
    scenes = SceneClips(5, size=32)
    for i in range(5):
        write_video(home / "films" / f"{scenes[i].caption}.mp4", scenes[i])
    CausalVideoVAE().save_pretrained(home / "vae")
    ImageVAE().save_pretrained(home / "other")
    shape = ["--size", "32", "--frames", "17"]
    argv = ["encode", home / "films", home / "cache", "--autoencoder", home / "vae", *shape]
    assert cli.main(list(map(str, argv))) == 0
    assert train(home / "cache", home / "run") == 0
    return home


def caption(home):
    return sorted((home / "films").glob("*.mp4"))[0].stem


def test_the_run_is_a_pipeline_with_the_words_and_the_autoencoder_of_the_cache(home):
    cache = LatentCache(home / "cache")
    pipe = VideoPipeline.from_pretrained(home / "run")
    assert pipe.model.config.patch == (1, 2, 2)
    assert pipe.clip_shape == (3, 17, 32, 32)
    assert pipe.vocabulary == Recipe().vocabulary(sorted(set(cache.captions)))
    assert pipe.mean.item() == pytest.approx(cache.mean.item())
    assert pipe.autoencoder.spec.channels == cache.shape[0]
    again = VideoPipeline.from_pretrained(home / "run")
    assert torch.equal(pipe(caption(home)).frames, again(caption(home)).frames)


def test_sample_makes_its_clips(home, capsys):
    argv = ["sample", "--out", home / "run", "--prompt", caption(home), "--seed", "0", "3"]
    assert cli.main(list(map(str, argv))) == 0
    made = capsys.readouterr().out.split()
    assert len(made) == 2 and made[1].endswith("-seed3.mp4")
    assert cli.main([*map(str, argv[:4]), "a purple cow"]) == 2
    assert "unknown word 'purple'" in capsys.readouterr().err


def test_the_same_call_resumes_and_another_is_refused(home, capsys):
    before = (home / "run/model/model.safetensors").read_bytes()
    assert train(home / "cache", home / "run") == 0
    assert (home / "run/model/model.safetensors").read_bytes() == before
    capsys.readouterr()
    assert train(home / "cache", home / "run", fields=["width=32"]) == 2
    assert "model.width is 32 here and 24 in the checkpoint" in capsys.readouterr().err
    assert (home / "run/model/model.safetensors").read_bytes() == before


def test_a_moved_autoencoder_is_named_by_the_caller(home, tmp_path, capsys):
    shutil.copytree(home / "cache", tmp_path / "cache")
    assert train(tmp_path / "cache", tmp_path / "run") == 2
    assert "say which autoencoder encoded it: --autoencoder NAME" in capsys.readouterr().err
    assert train(tmp_path / "cache", tmp_path / "run", "--autoencoder", str(home / "other")) == 2
    assert "encoded by another autoencoder than" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train(tmp_path / "cache", tmp_path / "run", "--autoencoder", str(home / "vae")) == 0


@pytest.mark.parametrize(
    "fields, error",
    [
        (["patch=3,2,2"], "patch=(3, 2, 2) does not divide latents of (5, 4, 4)"),
        (["patch=3,2,2"], "(frames, height, width): patch=1,2,2 does"),
        (["size=64"], "size: follows from the cache"),
        (["judge_steps=4"], "judge_steps: follows from the cache"),
        (["heads=5"], "heads"),
        (["lr=-1"], "lr must be"),
        (["jerk_weight=-1"], "jerk_weight must be"),
        (["batch_size=0"], "batch_size must be"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    home, tmp_path, fields, error, capsys
):
    assert train(home / "cache", tmp_path / "run", fields=fields) == 2
    said = capsys.readouterr().err
    assert error in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_folders_are_not_mixed_up(home, tmp_path, capsys):
    assert cli.main(["train", "--out", str(home / "run")]) == 2
    assert "trained on a cache, and no clips" in capsys.readouterr().err
    assert cli.main(["evaluate", "--out", str(home / "run")]) == 2
    assert "trained on a cache, and no clips" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.json").write_text("{}")
    assert train(home / "cache", tmp_path / "run") == 2
    assert "holds a run of clips" in capsys.readouterr().err
    assert cli.main(["train", "--cache", str(home / "cache"), "--data", str(home / "films")]) == 2
    assert "does not go with --data" in capsys.readouterr().err
    assert (
        cli.main(["train", "--autoencoder", str(home / "vae"), "--out", str(tmp_path / "x")]) == 2
    )
    assert "goes with --cache" in capsys.readouterr().err
    assert train(home / "films", tmp_path / "y") == 2
    assert "no finished latent cache" in capsys.readouterr().err


def grey_cache(path, captions, autoencoder):
    frames = [torch.full((3, 4, 32, 32), 40 * i, dtype=torch.uint8) for i in range(len(captions))]
    clips = [Clip(f, c, 8.0, source=f"clip {i}") for i, (f, c) in enumerate(zip(frames, captions))]
    return write_cache(path, clips, ImageVAE.from_pretrained(autoencoder), progress=False)


def test_a_cache_without_captions_makes_an_unconditional_model(home, tmp_path, capsys):
    grey_cache(tmp_path / "cache", ["", "", ""], home / "other")
    assert train(tmp_path / "cache", tmp_path / "run", "--autoencoder", str(home / "other")) == 0
    assert cli.main(["sample", "--out", str(tmp_path / "run"), "--prompt", ""]) == 0
    assert (tmp_path / "run/clip.mp4").exists()
    grey_cache(tmp_path / "some", ["", "a ball", "a ring"], home / "other")
    capsys.readouterr()
    assert train(tmp_path / "some", tmp_path / "run2", "--autoencoder", str(home / "other")) == 2
    assert "sample 0 (clip 0) has no caption, as 2 of 3 have" in capsys.readouterr().err


def test_converted_latents_are_decoded_by_whom_the_caller_names(home, tmp_path, capsys):
    for name in ("x_features", "x_labels"):
        (tmp_path / "npy" / name).mkdir(parents=True)
    for i in range(4):
        np.save(tmp_path / f"npy/x_features/{i}.npy", np.full((4, 4, 4), i, np.float32))
        np.save(tmp_path / f"npy/x_labels/{i}.npy", np.array(i % 2))
    assert cli.main(["convert", str(tmp_path / "npy"), str(tmp_path / "cache")]) == 0
    shutil.copytree(home / "other", tmp_path / "autoencoder")  # beside it by chance
    assert train(tmp_path / "cache", tmp_path / "run") == 2
    with pytest.warns(UserWarning, match="as you say"):
        assert (
            train(tmp_path / "cache", tmp_path / "run", "--autoencoder", str(home / "other")) == 0
        )
    assert cli.main(["sample", "--out", str(tmp_path / "run"), "--prompt", "1"]) == 0


def test_other_latents_of_the_same_shape_are_not_trained_on_further(home, tmp_path, capsys):
    grey_cache(tmp_path / "a", ["a ball", "a ring"], home / "other")
    name = ["--autoencoder", str(home / "other")]
    assert train(tmp_path / "a", tmp_path / "run", *name) == 0
    grey_cache(tmp_path / "b", ["a ring", "a ball"], home / "other")
    assert train(tmp_path / "b", tmp_path / "run", *name) == 2
    assert "trained on other data" in capsys.readouterr().err


def test_a_patch_that_fits():
    assert fitting_patch((5, 16, 16)) == (1, 2, 2)
    assert fitting_patch((16, 8, 8)) == (4, 2, 2)
    assert fitting_patch((6, 9, 1)) == (3, 1, 1)
    assert cache_recipe((5, 16, 16)).patch == (1, 2, 2)
    with pytest.raises(ValueError, match=r"does not divide \(5, 16, 16\); \(1, 2, 2\) does"):
        VideoDiTConfig(channels=16, size=(5, 16, 16))


def test_the_example_of_the_readme_trains_on_it(home):
    cache = LatentCache(home / "cache")
    channels, *size = cache.shape
    config = VideoDiTConfig(
        channels=channels, size=size, patch=fitting_patch(size), width=24, depth=1, heads=2
    )
    trained = fit(VideoDiT(config), cache, Interpolant(), steps=1, progress=False, warmup=0)
    pipe = VideoPipeline.from_fit(trained, CausalVideoVAE.from_pretrained(home / "vae"))
    assert pipe(num_inference_steps=1).frames.shape == (1, 3, 17, 32, 32)


def test_a_short_run_warms_up_within_its_steps(tmp_path):
    assert Recipe(steps=40).fit_options()["warmup"] == 10
    assert Recipe(steps=1).fit_options()["warmup"] == 1
    assert Recipe(steps=7500).fit_options()["warmup"] == 150
    (tmp_path / "recipe.json").write_text(json.dumps(dict(steps=40)))
    assert read_recipe(tmp_path / "recipe.json").fit_options()["warmup"] == 150


def test_a_run_of_clips_does_not_begin_in_the_folder_of_a_model_or_a_cache(home, capsys):
    for name in ("run", "cache"):
        before = sorted(p.name for p in (home / name).iterdir())
        for command in ("video", "clips", "cache", "train"):
            assert cli.main([command, "--out", str(home / name), "--set", "clips=2"]) == 2
            said = capsys.readouterr().err
            assert name in said and "choose another" in said
        with pytest.raises(ValueError, match="choose another one"):
            Experiment(home / name, clips=2)
        assert sorted(p.name for p in (home / name).iterdir()) == before


def test_a_model_is_not_trained_into_its_cache_or_over_another_pipeline(home, tmp_path, capsys):
    before = sorted(p.name for p in (home / "cache").iterdir())
    for out in (home / "cache", home / "cache" / "model"):
        assert train(home / "cache", out) == 2
        assert "lies in the cache" in capsys.readouterr().err
    assert sorted(p.name for p in (home / "cache").iterdir()) == before
    VideoPipeline.from_pretrained(home / "run").save_pretrained(tmp_path / "mine")
    weights = (tmp_path / "mine" / "model" / "model.safetensors").read_bytes()
    assert train(home / "cache", tmp_path / "mine") == 2
    assert "saved pipeline" in capsys.readouterr().err
    assert (tmp_path / "mine" / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "more", [["--set", "steps=9"], ["--data", "x"], ["--fps", "1e-9"], ["--fps", "1e9"]]
)
def test_sampling_such_a_model_does_not_pass_over_what_it_cannot_mean(home, more, capsys):
    there = set((home / "run").iterdir())
    argv = ["sample", "--out", str(home / "run"), "--prompt", caption(home), *more]
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert ("fps must be a number from 0.1" if "--fps" in more else "--set and --data") in said
    assert set((home / "run").iterdir()) == there
