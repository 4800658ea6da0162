"""A checkpoint is whole or not there, and damage is named (promises 2 and 3)."""

import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from helpers.train import (  # noqa: F401
    Config,
    Net,
    forked,
    go,
    interruptible,
    same,
    wait_until,
)

from minisora.train import _Trainer
from minisora.training import run_folder
from minisora.training.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "A run of 40 steps without a break."
    out = tmp_path_factory.mktemp("straight")
    go(out)
    return out


def test_kill_9_at_any_moment(straight, tmp_path):
    """Killed at 25 random moments, saving at every step: what is on the disk always loads and never
    goes back, and the end is the end of a straight run."""
    chance = random.Random(0)
    newest = 0
    killed = 0
    busy = 0
    while killed < 25:
        before = latest_checkpoint(tmp_path)
        pid = forked(lambda: go(tmp_path, save_every=1))
        wait_until(lambda old=before: latest_checkpoint(tmp_path) != old)  # until it is at work
        time.sleep(0.03 * chance.random())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
        busy += any((tmp_path / "checkpoints").glob(".*.part"))
        step = load_checkpoint(tmp_path).step
        assert step >= newest
        newest = step
        if step >= 38:
            shutil.rmtree(tmp_path)
            newest = 0
    assert busy, "no kill fell into a write: the test does not test"
    go(tmp_path)
    same(straight, tmp_path)


def test_kill_9_at_every_file_operation_of_a_write(tmp_path):
    """Die before each file operation of a save (over 50) in turn: the newest checkpoint is the old
    or the new one."""
    options = dict(keep=1, more_ema=[k / 10 for k in range(1, 10)], valid=None)
    go(tmp_path / "run", stop_at=10, **options)
    steps = []
    survived = False
    while not survived:
        out = tmp_path / "copy"
        shutil.copytree(tmp_path / "run", out)
        pid = forked(lambda out=out: (die_in_save(len(steps)), go(out, stop_at=12, **options)))
        survived = not os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        steps.append(load_checkpoint(out).step)
        shutil.rmtree(out)
    assert (
        steps == sorted(steps)
        and set(steps) == {10, 12}
        and len(steps) > 50
        and steps.count(10) > 25
    ), steps


def die_in_save(number):
    "Kill this process at the file operation `number` (from 0) of the next save."
    count = []
    real = _Trainer.save

    def hook(event, args):
        if count and (event == "open" or event.startswith(("os.", "shutil."))):
            if len(count) > number:
                count.clear()
                os.kill(os.getpid(), signal.SIGKILL)
            count.append(event)

    def save(run):
        count.append("begin")
        real(run)
        count.clear()

    _Trainer.save = save
    sys.addaudithook(hook)


@pytest.mark.parametrize(
    "file", [f"{n}.safetensors" for n in ("model", "ema", "optimizer")] + ["state.json"]
)
@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing"])
def test_damage_is_named(straight, tmp_path, file, harm):
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    newest = latest_checkpoint(out)
    path = newest / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(data if harm == "flipped" else path.read_bytes()[:-3])
    for attempt in (lambda: load_checkpoint(out), lambda: go(out)):
        with pytest.raises(CheckpointError) as e:
            attempt()
        assert (
            str(path) in str(e.value)
            and "step-00000036" in str(e.value)
            and "\n" not in str(e.value)
        )
    shutil.rmtree(newest)  # what the message asks for
    go(out)
    same(straight, out)


def test_retention(tmp_path):
    go(tmp_path, keep=3)
    names = [p.name for p in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-00000027", "step-00000036", "step-00000040"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_retention_keeps_a_good_one(tmp_path, monkeypatch, file):
    """If a byte of what was just written is flipped, no older checkpoint is deleted, however often
    that happens."""
    go(tmp_path, keep=1, stop_at=10)
    real = run_folder.save_checkpoint

    def broken(path, *rest):
        real(path, *rest)
        data = bytearray((path / file).read_bytes())
        data[len(data) // 2] ^= 4
        (path / file).write_bytes(data)
        return path

    monkeypatch.setattr(run_folder, "save_checkpoint", broken)
    with pytest.warns(
        UserWarning, match=f"{file}: the checksum differs; no older checkpoint is deleted"
    ):
        go(tmp_path, keep=1, save_every=1, stop_at=12)
    monkeypatch.undo()
    names = [p.name for p in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-00000010", "step-00000011", "step-00000012"]
    for name in names[1:]:
        shutil.rmtree(tmp_path / "checkpoints" / name)
    assert load_checkpoint(tmp_path).step == 10


def test_retention_keeps_a_good_one_of_a_torn_write(tmp_path, monkeypatch):
    go(tmp_path, keep=1, stop_at=10)
    real = run_folder.save_checkpoint

    def broken(path, *rest):
        real(path, *rest)
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        return path

    monkeypatch.setattr(run_folder, "save_checkpoint", broken)
    go(tmp_path, keep=1, stop_at=12)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000010",
        "step-00000012",
    ]


def test_full_disk(tmp_path):
    """A limit on file sizes stands in for a full disk: one line, the old checkpoint loads, no half
    file stays."""
    run = tmp_path / "run"
    says = tmp_path / "says"
    go(run, stop_at=10, net=Net(Config(2000)))

    def job():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        go(run, net=Net(Config(2000)))

    os.waitpid(forked(job, says), 0)
    text = says.read_text()
    assert text.startswith("CheckpointError: cannot write") and "\n" not in text
    assert "File too large" in text and "step-00000010 is safe" in text
    assert load_checkpoint(run).step == 10 and not list((run / "checkpoints").glob(".*"))


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write .*file") as e:
        go(tmp_path / "file" / "run")
    assert "\n" not in str(e.value)


def as_nobody(job, says):
    "Run `job` in a process that may not write where it must not: root gives up its rights."

    def work():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        job()

    os.waitpid(forked(work, says), 0)
    return says.read_text() if says.exists() else ""


def test_read_only_folder():
    "One that is so from the start, and one that becomes so on the way: one line, and what is safe."
    with tempfile.TemporaryDirectory() as top:  # not tmp_path, which only its owner may enter
        top = Path(top)
        says = top / "says"
        free = top / "free"
        shut = top / "shut"
        for folder, mode in ((top, 0o777), (free, 0o777), (shut, 0o555)):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)
        text = as_nobody(lambda: go(shut / "run"), says)
        assert (
            text.startswith("CheckpointError: cannot write")
            and str(shut) in text
            and "\n" not in text
        )
        assert "Permission denied; there is no checkpoint yet" in text and not any(shut.iterdir())
        says.unlink()
        close = lambda step, ema: (free / "run" / "checkpoints").chmod(0o555)
        text = as_nobody(lambda: go(free / "run", sample_every=11, on_sample=close), says)
        assert text.startswith("CheckpointError: cannot write") and "step-00000009 is safe" in text
        assert load_checkpoint(free / "run").step == 9
        (free / "run" / "checkpoints").chmod(0o777)
        says.unlink()
        assert as_nobody(lambda: go(free / "run", steps=12), says) == ""  # the same call goes on
        assert load_checkpoint(free / "run").step == 12


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path) is None


def test_nothing_is_pickled(straight):
    files = {p.name for p in latest_checkpoint(straight).iterdir()}
    assert files == {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"}


def test_torn_last_line_of_the_log(straight, tmp_path):
    go(tmp_path, stop_at=20)
    with open(tmp_path / "log.jsonl", "a") as f:
        f.write('{"step": 21, "lo')
    go(tmp_path)
    same(straight, tmp_path)
