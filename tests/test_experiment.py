"""`make video` in small: stages, reuse, prompts, bad input, and the command line."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy
import pytest
import torch

from minisora import cli
from minisora.clips import SceneClips
from minisora.data.video import read_video, write_video
from minisora.experiment import Experiment, make_video, slug
from minisora.recipe import open_recipe

TINY = dict(
    clips=24,
    ae_steps=4,
    steps=6,
    width=48,
    depth=2,
    heads=3,
    judge_steps=3,
    eval_clips=4,
    num_inference_steps=3,
    channels=4,
    smooth=8,
    decoder_steps=3,
    renoise_times=2,
)
SET = [f"{k}={v}" for k, v in TINY.items()]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "A finished tiny run: (folder, path of the clip, metrics)."
    out = tmp_path_factory.mktemp("runs") / "video"
    path, metrics = make_video(out, "a red ring moves left", progress=False, **TINY)
    return out, path, metrics


def test_a_run_leaves_what_it_promises(done):
    out, path, metrics = done
    assert path == out / "a-red-ring-moves-left.mp4" and read_video(path, 16, 64).frames.shape == (
        3,
        16,
        64,
        64,
    )
    for name in (
        "a-red-ring-moves-left.gif",
        "contact_sheet.png",
        "metrics.json",
        "recipe.json",
        "model/model.safetensors",
        "decoder/model.safetensors",
    ):
        assert (out / name).stat().st_size > 0, name
    wanted = {
        "n",
        "all_right",
        "motion_right",
        "jerk_px",
        "area_flicker",
        "train_cpu_minutes",
        "wall_minutes",
    }
    assert wanted <= json.loads((out / "metrics.json").read_text()).keys()
    assert sum(k["n"] for k in metrics["by_motion"]) == 4 and [
        k["motion"] for k in metrics["by_motion"]
    ][:2] == ["left", "right"]
    assert metrics["n"] == 4 and sorted(int(p.stem[8:]) for p in out.glob("preview-*.png")) == [
        1,
        2,
        4,
        6,
    ]


def test_a_second_call_only_samples(done, monkeypatch):
    out, path, _ = done
    import minisora.experiment as experiment

    for name in ("fit", "train_autoencoder", "finetune_decoder", "write_cache", "train_judge"):
        monkeypatch.setattr(
            experiment, name, lambda *a, name=name, **k: pytest.fail(f"{name} ran again")
        )
    again, metrics = make_video(out, "a blue ball moves up", progress=False)
    assert again.exists() and again != path and metrics["n"] == 4


def test_samples_do_not_depend_on_the_process(done):
    out, *_ = done
    here = Experiment(out, progress=False).sample(["a red ring moves left"], seed=5)
    code = """
import sys, torch
from minisora.experiment import Experiment
run = Experiment(sys.argv[1], progress=False)
torch.save(run.sample(["a red ring moves left"], seed=5), sys.argv[2])
"""
    subprocess.run([sys.executable, "-c", code, str(out), str(out / "x.pt")], check=True)
    assert torch.equal(here, torch.load(out / "x.pt", weights_only=True))
    assert not torch.equal(
        here, Experiment(out, progress=False).sample(["a red ring moves left"], seed=6)
    )


@pytest.mark.parametrize(
    "prompt, named",
    [("a red dog moves left", "dog"), ("a ring moves left", "ring"), ("red", "red")],
)
def test_a_prompt_is_refused_before_anything_is_trained(tmp_path, prompt, named):
    with pytest.raises(ValueError, match=named):
        make_video(tmp_path / "run", prompt, progress=False, **TINY)
    assert not (tmp_path / "run" / "autoencoder").exists()


def test_another_recipe_in_the_same_folder_is_an_error(tmp_path):
    open_recipe(tmp_path / "run", steps=6)
    assert open_recipe(tmp_path / "run").steps == 6
    with pytest.raises(ValueError, match="steps=6, not 7"):
        open_recipe(tmp_path / "run", steps=7)
    with pytest.raises(ValueError, match="stepz"):
        open_recipe(tmp_path / "other", stepz=7)
    (tmp_path / "run" / "recipe.json").write_text('{"kind": "scenes", "colour": 3}')
    with pytest.raises(ValueError, match="recipe.json"):
        open_recipe(tmp_path / "run")


def test_data_that_is_none(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no video")
    for data, what in (("nowhere", "nowhere"), ("empty", "empty"), ("notes.txt", "notes.txt")):
        assert (
            cli.main(["video", "--out", str(tmp_path / "run"), "--data", str(tmp_path / data)]) == 2
        )
        error = capsys.readouterr().err
        assert what in error and error.count("\n") == 1


def test_a_folder_goes_the_same_way(tmp_path):
    folder, scenes = tmp_path / "clips", SceneClips(3, size=32)
    folder.mkdir()
    for i, word in enumerate(("left hand", "yes", "no")):
        write_video(folder / f"{word}.mp4", scenes[i].frames, fps=8)
    (folder / "broken.mp4").write_bytes(b"no video")
    small = dict(TINY, size=32, channels=4)
    path, metrics = make_video(tmp_path / "run", "", str(folder), progress=False, **small)
    assert path.exists() and metrics["n"] == 3 and 0 <= metrics["nearest_right"] <= 1
    assert Experiment(tmp_path / "run", progress=False).captions == ["left hand", "no", "yes"]


def test_ctrl_c_and_on(tmp_path):
    "Interrupted in training, the run exits with 130 and says so; the next call finishes it."
    out = tmp_path / "run"
    call = [
        sys.executable,
        "-c",
        "import sys; from minisora.cli import main; sys.exit(main())",
        "train",
        "--out",
        str(out),
        "--set",
        *SET,
        "steps=3000",
    ]
    p = subprocess.Popen(
        call,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONUNBUFFERED="1"),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # a job in the background ignores it
    log = out / "training" / "log.jsonl"
    for _ in range(1200):
        if p.poll() is not None or (log.exists() and log.stat().st_size):
            break
        time.sleep(0.1)
    p.send_signal(signal.SIGINT)
    error = p.communicate(timeout=120)[1]
    assert p.returncode == 130 and "resumes from there" in error
    assert list((out / "training" / "checkpoints").glob("step-*"))


def test_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path / "run"))

    monkeypatch.setattr(cli, "make_video", full)
    assert cli.main(["video", "--out", str(tmp_path / "run")]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_slug():
    assert slug("A red ring, moving!") == "a-red-ring-moving" and slug("...") == "clip"


def test_every_command_explains_itself(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as e:
            cli.main([name, "--help"])
        shown = dict.fromkeys(("convert", "verify", "encode"), "cache")
        shown |= dict(export="OUT", launch="script")
        assert e.value.code == 0 and shown.get(name, "--out") in capsys.readouterr().out


def test_old_folders_are_converted_and_verified(tmp_path, capsys):
    for kind, shape, dtype in (("features", (1, 4, 8, 8), "float32"), ("labels", (1,), "int64")):
        (tmp_path / f"imagenet_{kind}").mkdir()
        for i in range(3):
            numpy.save(tmp_path / f"imagenet_{kind}" / f"{i}.npy", numpy.full(shape, i, dtype))
    cache = tmp_path / "cache"
    assert (
        cli.main(["convert", str(tmp_path), str(cache)]) == 0
        and cli.main(["verify", str(cache)]) == 0
    )
    shard = max(
        (f for f in cache.rglob("*") if f.is_file() and f.suffix != ".json"),
        key=lambda f: f.stat().st_size,
    )
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    capsys.readouterr()
    assert cli.main(["verify", str(cache)]) == 2 and shard.name in capsys.readouterr().err


def test_sheet_of_clips(tmp_path):
    assert cli.main(["clips", "--out", str(tmp_path / "run"), "-n", "3"]) == 0
    assert (tmp_path / "run" / "clips.png").exists()
