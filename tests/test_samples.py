"""Clips for metrics: in batches, resumable, never mixed; and whether one is a copy."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.metrics import ABOUT, clip, contents, generator, make
from safetensors.torch import save

from minisora.core.protocols import Clip
from minisora.evaluation.foreground import as_pixels
from minisora.evaluation.samples import GeneratedClips, _read_batch, generate_clips, nearest_clip


def test_clips_are_those_that_make_gave(tmp_path):
    got = generate_clips(tmp_path / "s", make, 10, batch=4, about=ABOUT)
    assert len(got) == 10 and got.about == dict(ABOUT, batch=4)
    for i in (0, 3, 4, 9):
        assert torch.equal(got[i].frames, clip(i))
    assert torch.equal(torch.stack([c.frames for c in got]), make(range(10)))
    with pytest.raises(IndexError, match="clip 10 of 10"):
        got[10]
    floats = generate_clips(tmp_path / "f", lambda i: as_pixels(make(i)), 4, batch=4, about=ABOUT)
    assert torch.equal(floats[2].frames, clip(2))


def test_goes_on_where_it_stopped_and_grows(tmp_path):
    asked = []

    def counted(index):
        asked.append(index)
        if len(asked) == 2:
            raise RuntimeError("stopped")
        return make(index)

    whole = generate_clips(tmp_path / "a", make, 10, batch=4, about=ABOUT)
    with pytest.raises(RuntimeError, match="stopped"):
        generate_clips(tmp_path / "b", counted, 6, batch=4, about=ABOUT)
    generate_clips(tmp_path / "b", counted, 6, batch=4, about=ABOUT)
    assert asked == [[0, 1, 2, 3], [4, 5], [4, 5]]
    grown = generate_clips(tmp_path / "b", counted, 10, batch=4, about=ABOUT)
    assert asked[3:] == [[4, 5, 6, 7], [8, 9]]  # a batch that was cut short is made again, whole
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and len(grown) == len(whole) == 10
    assert (
        len(generate_clips(tmp_path / "b", counted, 3, batch=4, about=ABOUT)) == 3
        and len(asked) == 5
    )


@pytest.mark.parametrize(
    "field, other", [("model", "cd34"), ("steps", 20), ("guidance", 4.0), ("batch", 5)]
)
def test_another_setting_is_refused_and_named(tmp_path, field, other):
    generate_clips(tmp_path, make, 4, batch=4, about=ABOUT)
    before = contents(tmp_path)
    now = dict(dict(ABOUT, batch=4), **{field: other})
    with pytest.raises(ValueError, match=f"about.json: {field} is .* there and {other!r} here"):
        generate_clips(tmp_path, make, 8, batch=now.pop("batch"), about=now)
    assert contents(tmp_path) == before


def test_missing_or_extra_settings_are_differences_too(tmp_path):
    generate_clips(tmp_path, make, 4, batch=4, about=ABOUT)
    with pytest.raises(ValueError, match="guidance is 2.0 there and None here"):
        generate_clips(tmp_path, make, 4, batch=4, about=dict(model="ab12", steps=40))
    with pytest.raises(ValueError, match="seed is None there and 1 here"):
        generate_clips(tmp_path, make, 4, batch=4, about=dict(ABOUT, seed=1))
    (tmp_path / "about.json").unlink()
    with pytest.raises(ValueError, match="clips of unknown origin"):
        generate_clips(tmp_path, make, 4, batch=4, about=ABOUT)


def test_damage_is_named(tmp_path):
    generate_clips(tmp_path, make, 8, batch=4, about=ABOUT)
    path = tmp_path / "clips-000004.safetensors"
    good = path.read_bytes()
    for bad in (good[:-5], good[:-1] + bytes([good[-1] ^ 1]), b"", b"no tensors"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="clips-000004.safetensors"):
            GeneratedClips(tmp_path)
        with pytest.raises(ValueError, match="clips-000004.safetensors.*delete it"):
            generate_clips(tmp_path, make, 8, batch=4, about=ABOUT)
    path.unlink()
    generate_clips(tmp_path, make, 8, batch=4, about=ABOUT)
    assert path.read_bytes() == good


def test_what_generating_and_reading_refuse(tmp_path):
    with pytest.raises(ValueError, match="n must be a whole number from 1, not 0"):
        generate_clips(tmp_path / "a", make, 0)
    with pytest.raises(ValueError, match="it returned 4 clips for 2 numbers"):
        generate_clips(tmp_path / "b", lambda i: make(range(4)), 2)
    with pytest.raises(ValueError, match="NaN"):
        generate_clips(tmp_path / "c", lambda i: make(i) * float("nan"), 2)
    with pytest.raises(FileNotFoundError, match="about.json: no such file"):
        GeneratedClips(tmp_path / "nowhere")
    generate_clips(tmp_path / "d", make, 2, about=ABOUT)
    with pytest.raises(ValueError, match="holds 2 clips, not 5"):
        GeneratedClips(tmp_path / "d", 5)


def test_a_disk_that_refuses(tmp_path, monkeypatch):
    generate_clips(tmp_path, make, 4, batch=4, about=ABOUT)
    before = contents(tmp_path)

    def full(fd):
        assert not (tmp_path / "clips-000004.safetensors").exists()  # not there before it is whole
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match="clips-000004.safetensors: No space left.*call again to resume"
    ):
        generate_clips(tmp_path, make, 8, batch=4, about=ABOUT)
    assert contents(tmp_path) == before


KILLED = """
import sys, time
sys.path[:0] = {path!r}
from minisora.evaluation.samples import generate_clips
from helpers.metrics import make, ABOUT

def until_killed(index):
    if index[0] == 398:
        time.sleep(600)  # a fast machine must not be done before it is killed
    return make(index)

print('ready', flush=True)
generate_clips({folder!r}, until_killed, 400, batch=2, about=ABOUT)
"""


def test_kill_9_leaves_whole_batches_and_the_same_result(tmp_path, root):
    whole = tmp_path / "whole"
    generate_clips(whole, make, 400, batch=2, about=ABOUT)
    folder = tmp_path / "killed"
    code = KILLED.format(path=[str(root), str(root / "tests")], folder=str(folder))
    kills = 0
    for delay in (0.02, 0.05, 0.1):
        p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        p.stdout.readline()
        time.sleep(delay)
        p.send_signal(signal.SIGKILL)
        kills += p.wait() == -signal.SIGKILL
        p.stdout.close()
        for f in folder.glob("clips-*.safetensors"):
            assert len(_read_batch(f)) == 2
    generate_clips(folder, make, 400, batch=2, about=ABOUT)
    assert contents(folder) == contents(whole) and kills == 3


def test_what_a_killed_process_left_is_removed(tmp_path):
    """Files of its own that were never finished, of this version and of 0.1; nothing else in the
    folder."""
    generate_clips(tmp_path, make, 4, batch=4, about=ABOUT)
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    for name in (".clips-000004.safetensors.123.part", "clips-000004.safetensors.tmp"):
        (tmp_path / name).write_bytes(b"half")
    generate_clips(tmp_path, make, 4, batch=4, about=ABOUT)
    assert contents(tmp_path) == before


def test_batches_of_version_0_1_are_read(tmp_path):
    "Its files and ours are the same to the byte: uint8 frames, and their checksum as metadata."
    generate_clips(tmp_path, make, 2, batch=2, about=ABOUT)
    frames = make([0, 1])
    digest = hashlib.sha256(frames.numpy().tobytes()).hexdigest()[:16]
    assert (tmp_path / "clips-000000.safetensors").read_bytes() == save(
        {"frames": frames}, {"digest": digest}
    )


# ---------------------------------------------------------------- nearest


def test_nearest_clip():
    real = torch.randint(0, 255, (21, 3, 4, 8, 8), generator=generator()).byte()
    made = as_pixels(real[[20, 3]]).clone()
    made[1] += 0.1 * (made[1] < 0)
    index, distance = nearest_clip(made, real, batch=8)
    assert index.tolist() == [20, 3] and distance[0] == 0
    assert distance[1].item() == pytest.approx(
        (0.01 * (as_pixels(real[[3]]) < 0).float().mean()).sqrt().item(), rel=1e-3
    )
    held = [Clip(r, "") for r in real]
    assert nearest_clip(made, held)[0].tolist() == [20, 3]
    with pytest.raises(ValueError, match="real ones"):
        nearest_clip(made, real[..., :4])
    with pytest.raises(ValueError, match="no real clips"):
        nearest_clip(made, real[:0])
