"""What a stage was made from: reused, made again, or refused; one call at a time; stops and
leftovers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from helpers.runs import SMALLEST

from minisora import cli
from minisora.autoencoder import ImageVAE
from minisora.clips import SceneClips
from minisora.core.run_lock import remove_leftovers, run_lock
from minisora.data.video import write_video
from minisora.experiment import Experiment, make_video
from minisora.pipeline import VideoPipeline

TINY = SMALLEST | dict(size=32, frames=4)


def films(folder, names=("left hand", "yes", "no"), shift=0):
    folder.mkdir(exist_ok=True)
    scenes = SceneClips(len(names) + shift, size=32, frames=4)
    for i, name in enumerate(names):
        write_video(folder / f"{name}.mp4", scenes[i + shift].frames, fps=8)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A tiny finished run on a folder of three clips: (folder of both, as `data` and `run`)."
    root = tmp_path_factory.mktemp("made")
    films(root / "data")
    make_video(root / "run", "yes", str(root / "data"), progress=False, decoder_steps=1, **TINY)
    return root


@pytest.fixture
def copy(made, tmp_path):
    "A copy of it: the data have moved."
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def call(root, prompt="yes", **options):
    return make_video(root / "run", prompt, str(root / "data"), progress=False, **options)


def fails_if_made(monkeypatch, *names):
    import minisora.experiment as experiment

    for name in names:
        monkeypatch.setattr(
            experiment, name, lambda *a, name=name, **k: pytest.fail(f"{name} ran again")
        )


TRAINING = ("fit", "train_autoencoder", "finetune_decoder", "write_cache", "generate_clips")


def test_a_moved_folder_is_the_same_data(made, copy, monkeypatch):
    fails_if_made(monkeypatch, *TRAINING)
    path, metrics = call(copy)
    assert path.exists() and metrics == json.loads((made / "run/metrics.json").read_text())
    Experiment(copy / "run", str(copy / "data"), progress=False).check_trained()


def add(data):
    films(data, ("a new one",), shift=5)


def delete(data):
    (data / "no.mp4").unlink()


def film_again(data):
    films(data, ("no",), shift=7)


def rename(data):
    (data / "no.mp4").rename(data / "nay.mp4")


def caption(data):
    rows = "\n".join(f"{name}.mp4,{name}!" for name in ("left hand", "yes", "no"))
    (data / "manifest.csv").write_text(f"file,caption\n{rows}\n")


CHANGES = {
    add: "'a new one.mp4' is new",
    delete: "'no.mp4' is gone",
    film_again: "'no.mp4' changed",
    rename: "'no.mp4' is gone, 'nay.mp4' is new",
    caption: "changed",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("command", ["video", "train", "evaluate", "cache"])
def test_clips_that_changed_are_told(made, tmp_path, change, command, capsys):
    "Nothing is trained, nothing is overwritten, and the sentence says which clip and what to do."
    root = tmp_path / "copy"
    shutil.copytree(made, root)
    change(root / "data")
    recipe = json.loads((root / "run/recipe.json").read_text())
    (root / "run/recipe.json").write_text(json.dumps(dict(recipe, data=str(root / "data"))))
    before = {p: p.read_bytes() for p in (root / "run").rglob("*") if p.is_file()}
    assert cli.main([command, "--out", str(root / "run")]) == 2
    error = capsys.readouterr().err
    assert CHANGES[change] in error and "OUT=" in error and error.count("\n") == 1
    assert {p: p.read_bytes() for p in before} == before


def test_data_at_another_path_that_are_others_are_refused(copy):
    add(copy / "data")
    with pytest.raises(ValueError, match="holds a run with data="):
        call(copy)


def test_a_file_that_cannot_be_read_is_no_change(copy):
    "Neither when it comes, nor when it goes, as the warning asks for."
    (copy / "data/broken.mp4").write_bytes(b"no video")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(copy)
    (copy / "data/broken.mp4").unlink()
    call(copy)


def test_before_anything_is_trained_the_captions_follow_the_clips(tmp_path):
    data = films(tmp_path / "data")
    run = Experiment(tmp_path / "run", str(data), progress=False, **TINY)
    with run.lock.scope():
        run.begin()
    add(data)
    assert "a new one" in Experiment(tmp_path / "run", progress=False).captions


def another(folder, seed=9):
    ImageVAE(channels=4, enc_width=0, smooth=8, seed=seed).save_pretrained(folder)


def scale(folder):
    from minisora.temporal import VideoDiT

    model = VideoDiT.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    model.save_pretrained(folder)


def test_another_autoencoder_is_refused(copy, capsys):
    another(copy / "run/autoencoder")
    for command in (["video"], ["sample", "--prompt", "yes"], ["evaluate"], ["train"]):
        assert cli.main([*command, "--out", str(copy / "run")]) == 2, command
        error = capsys.readouterr().err
        assert "the autoencoder changed" in error or "tuned for another" in error
    with pytest.raises(ValueError, match="the autoencoder changed"):
        VideoPipeline.from_pretrained(copy / "run")


def test_other_latents_under_a_checkpoint_are_refused(copy):
    "Of the same shape, from another run."
    other = films(copy / "others", shift=4)
    run = Experiment(copy / "other", str(other), progress=False, **TINY)
    run.cache
    shutil.rmtree(copy / "run/latents")
    shutil.rmtree(copy / "run/model")
    shutil.copytree(copy / "other/latents", copy / "run/latents")
    with pytest.raises(ValueError, match="the latents changed|encoded by another autoencoder"):
        call(copy)


def test_recipe_fields_edited_by_hand_are_refused(copy):
    file = copy / "run/recipe.json"
    recipe = json.loads(file.read_text())
    for name, value in (("ae_steps", 3), ("lr", 0.5), ("shift", 2.0), ("depth", 2)):
        file.write_text(json.dumps(recipe | {name: value, "data": str(copy / "data")}))
        with pytest.raises(ValueError, match=f"{name} was .* and is {value}"):
            call(copy)


def test_what_is_made_quickly_is_made_again(copy):
    "The decoder is tuned anew for another model; metrics of another model are measured anew."
    call(copy)
    scale(copy / "run/model")
    shutil.rmtree(copy / "run/samples")
    before = (copy / "run/metrics.json").read_bytes()
    with pytest.warns(UserWarning, match="decoder: made again, the model changed"):
        call(copy)
    assert (copy / "run/metrics.json").read_bytes() != before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(copy)


def test_latents_that_were_removed_are_the_same_again(copy, monkeypatch):
    shutil.rmtree(copy / "run/latents")
    assert call(copy)[0].exists()
    run = Experiment(copy / "run", progress=False)
    assert run.trained.step == 2 and not run.changed("model")


def test_a_run_of_an_earlier_version_is_taken_as_it_is(copy, monkeypatch):
    (copy / "run/made_from.json").unlink()
    recipe = json.loads((copy / "run/recipe.json").read_text())
    (copy / "run/recipe.json").write_text(json.dumps(dict(recipe, data=str(copy / "data"))))
    fails_if_made(monkeypatch, *TRAINING)
    assert call(copy)[0].exists()
    add(copy / "data")
    assert call(copy, prompt="no")[0].exists()


def test_sampling_needs_no_data(copy):
    shutil.rmtree(copy / "data")
    recipe = json.loads((copy / "run/recipe.json").read_text())
    (copy / "run/recipe.json").write_text(json.dumps(dict(recipe, data=str(copy / "data"))))
    assert cli.main(["sample", "--out", str(copy / "run"), "--prompt", "yes", "--seed", "4"]) == 0
    assert (copy / "run/yes-seed4.mp4").exists()
    assert cli.main(["evaluate", "--out", str(copy / "run"), "-n", "2"]) == 2


# ------------------------------------------------- sampling without a new run


def test_choices_of_sampling(copy, capsys):
    out = str(copy / "run")
    call = ["sample", "--out", out, "--prompt", "yes"]
    assert cli.main([*call, "--seed", "1", "2", "--guidance", "3.5", "--steps", "3"]) == 0
    assert cli.main([*call, "-n", "2", "--fps", "12", "--eta", "0.5"]) == 0
    names = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert names == {
        "yes-seed1-guidance3.5-steps3.mp4",
        "yes-seed2-guidance3.5-steps3.mp4",
        "yes-eta0.5-fps12-0.mp4",
        "yes-eta0.5-fps12-1.mp4",
    }
    assert all((copy / "run" / name).exists() for name in names)
    for wrong in (["--steps", "0"], ["--fps", "0"], ["--seed", "-1"], ["-n", "0"]):
        with pytest.raises(SystemExit):
            cli.main([*call, *wrong])
    assert cli.main([*call, "--eta", "-1"]) == 2


@pytest.mark.parametrize("command", [["sample", "--prompt", "yes"], ["evaluate"]])
def test_a_misspelled_folder_starts_no_training(copy, command, capsys):
    assert cli.main([*command, "--out", str(copy / "rnu")]) == 2
    error = capsys.readouterr().err
    assert "no run is there; did you mean 'run'?" in error and error.count("\n") == 1
    assert not (copy / "rnu").exists()


def test_sample_trains_nothing(copy, monkeypatch, capsys):
    fails_if_made(monkeypatch, *TRAINING)
    shutil.rmtree(copy / "run/decoder")
    call = ["sample", "--out", str(copy / "run"), "--prompt", "yes"]
    assert cli.main(call) == 2 and "not tuned yet" in capsys.readouterr().err
    shutil.rmtree(copy / "run/model")
    assert cli.main(call) == 2 and "not trained yet" in capsys.readouterr().err


# ------------------------------------------------- two at once, leftovers, stops

HOLD = """
import sys, time
from minisora.core.run_lock import run_lock
lock = run_lock(sys.argv[1])
with lock.scope():
    lock.acquire()
    print('held', flush=True)
    time.sleep(60)
"""


def test_a_second_call_is_refused_in_a_sentence(tmp_path, copy, capsys):
    shutil.rmtree(copy / "run/model")
    for out in (tmp_path / "new", copy / "run"):
        out.mkdir(exist_ok=True)
        other = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert other.stdout.readline() == "held\n"
            before = sorted(out.rglob("*"))
            assert cli.main(["train", "--out", str(out), "--set", "clips=12"]) == 2
            error = capsys.readouterr().err
            assert f"another process ({other.pid}) is working in this folder" in error
            assert error.count("\n") == 1 and sorted(out.rglob("*")) == before
        finally:
            other.kill()
            other.wait()
            other.stdout.close()


def test_a_finished_run_is_sampled_while_another_call_works_in_it(copy):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(copy / "run")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        assert cli.main(["sample", "--out", str(copy / "run"), "--prompt", "yes"]) == 0
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def test_scopes_of_one_process_share_the_lock(tmp_path):
    first, second = run_lock(tmp_path), run_lock(str(tmp_path))
    assert first is second
    with first.scope():
        first.acquire()
        with second.scope():
            second.acquire()
        assert first.file is not None
    assert first.file is None


def test_leftovers_of_killed_calls_go_at_the_next_start(copy):
    run = copy / "run"
    dead = 2**22 + 7
    parts = [
        f".model.part-{dead}",
        f".model.{dead}.part",
        f".times.json.{dead}.part",
        "decoder/tmpab12cd_9",
        "times.json.tmp",
        f"judge/.model.safetensors.{dead}.part",
    ]
    kept = ["tmpnotes", f".x.{os.getppid()}.part", "tmpab12cd_9"]
    for name in (*parts, *kept):
        (run / name).mkdir(parents=True)
    call(copy)
    assert not [name for name in parts if (run / name).exists()]
    assert all((run / name).exists() for name in kept)
    assert remove_leftovers(run) == []


STOP = """
import sys, time
from minisora import cli, experiment
def slow(*a, **k):
    print('working', flush=True)
    time.sleep(60)
setattr(experiment, sys.argv[1], slow)
sys.exit(cli.main(['video', '--out', sys.argv[2], '--set', *sys.argv[3:]]))
"""
SET = [f"{k}={v}" for k, v in dict(TINY, decoder_steps=1, jerk_weight=0).items()]


@pytest.mark.parametrize(
    "stage, number, status",
    [
        ("train_autoencoder", signal.SIGTERM, 143),
        ("write_cache", signal.SIGTERM, 143),
        ("generate_clips", signal.SIGHUP, 129),
    ],
)
def test_a_stop_anywhere_is_clean(tmp_path, stage, number, status):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", STOP, stage, str(out), *SET],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    line = process.stdout.readline()
    assert line == "working\n", process.stderr.read()
    time.sleep(0.2)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status
    assert error.splitlines()[-1].startswith("minisora: stopped; what was finished is kept")
    assert "Traceback" not in error and not list(out.rglob("*.part"))


def test_a_failing_preview_is_a_warning(tmp_path, monkeypatch):
    import minisora.experiment as experiment

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "preview.png")

    monkeypatch.setattr(experiment, "save_sheet", full)
    run = Experiment(tmp_path / "run", progress=False, jerk_weight=0.0, **TINY)
    with pytest.warns(UserWarning, match="no preview at step 1: OSError"):
        assert run.trained.step == 2


def test_a_clock_that_goes_back_costs_nothing(tmp_path, monkeypatch):
    run = Experiment(tmp_path / "run", progress=False, **TINY)
    clock = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    run.timed("x", lambda: None)
    assert 0 <= run.times()["x"]["wall"] < 60
