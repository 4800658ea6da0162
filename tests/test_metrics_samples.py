"""Clips for metrics: in batches, resumable, never mixed; and the report made from them."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from minisora import metrics as M
from minisora.clips import SIMPLE_MOTIONS, SceneClips


def clip(i):
    return torch.randint(0, 255, (3, 4, 8, 8), generator=torch.Generator().manual_seed(i)).byte()


def make(index):
    return torch.stack([clip(i) for i in index])


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


ABOUT = dict(model="ab12", steps=40, guidance=2.0)


def test_clips_are_those_that_make_gave(tmp_path):
    got = M.generate_clips(tmp_path / "s", make, 10, batch=4, about=ABOUT)
    assert len(got) == 10 and got.about == dict(ABOUT, batch=4)
    for i in (0, 3, 4, 9):
        assert torch.equal(got[i].frames, clip(i))
    assert torch.equal(torch.stack([c.frames for c in got]), make(range(10)))
    with pytest.raises(IndexError, match="clip 10 of 10"):
        got[10]
    floats = M.generate_clips(tmp_path / "f", lambda i: M.pixels(make(i)), 4, batch=4, about=ABOUT)
    assert torch.equal(floats[2].frames, clip(2))


def test_goes_on_where_it_stopped_and_grows(tmp_path):
    asked = []

    def counted(index):
        asked.append(index)
        if len(asked) == 2:
            raise RuntimeError("stopped")
        return make(index)

    whole = M.generate_clips(tmp_path / "a", make, 10, batch=4, about=ABOUT)
    with pytest.raises(RuntimeError, match="stopped"):
        M.generate_clips(tmp_path / "b", counted, 6, batch=4, about=ABOUT)
    M.generate_clips(tmp_path / "b", counted, 6, batch=4, about=ABOUT)
    assert asked == [[0, 1, 2, 3], [4, 5], [4, 5]]
    grown = M.generate_clips(tmp_path / "b", counted, 10, batch=4, about=ABOUT)
    assert asked[3:] == [[4, 5, 6, 7], [8, 9]]  # a batch that was cut short is made again, whole
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and len(grown) == len(whole) == 10
    assert (
        len(M.generate_clips(tmp_path / "b", counted, 3, batch=4, about=ABOUT)) == 3
        and len(asked) == 5
    )


@pytest.mark.parametrize(
    "field, other", [("model", "cd34"), ("steps", 20), ("guidance", 4.0), ("batch", 5)]
)
def test_another_setting_is_refused_and_named(tmp_path, field, other):
    M.generate_clips(tmp_path, make, 4, batch=4, about=ABOUT)
    before = contents(tmp_path)
    now = dict(dict(ABOUT, batch=4), **{field: other})
    with pytest.raises(ValueError, match=f"about.json: {field} is .* there and {other!r} here"):
        M.generate_clips(tmp_path, make, 8, batch=now.pop("batch"), about=now)
    assert contents(tmp_path) == before


def test_missing_or_extra_settings_are_differences_too(tmp_path):
    M.generate_clips(tmp_path, make, 4, batch=4, about=ABOUT)
    with pytest.raises(ValueError, match="guidance is 2.0 there and None here"):
        M.generate_clips(tmp_path, make, 4, batch=4, about=dict(model="ab12", steps=40))
    with pytest.raises(ValueError, match="seed is None there and 1 here"):
        M.generate_clips(tmp_path, make, 4, batch=4, about=dict(ABOUT, seed=1))
    (tmp_path / "about.json").unlink()
    with pytest.raises(ValueError, match="clips of unknown origin"):
        M.generate_clips(tmp_path, make, 4, batch=4, about=ABOUT)


def test_damage_is_named(tmp_path):
    M.generate_clips(tmp_path, make, 8, batch=4, about=ABOUT)
    path = tmp_path / "clips-000004.safetensors"
    good = path.read_bytes()
    for bad in (good[:-5], good[:-1] + bytes([good[-1] ^ 1]), b"", b"no tensors"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="clips-000004.safetensors"):
            M.Samples(tmp_path)
        with pytest.raises(ValueError, match="clips-000004.safetensors.*delete it"):
            M.generate_clips(tmp_path, make, 8, batch=4, about=ABOUT)
    path.unlink()
    M.generate_clips(tmp_path, make, 8, batch=4, about=ABOUT)
    assert path.read_bytes() == good


def test_what_generating_and_reading_refuse(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        M.generate_clips(tmp_path / "a", make, 0)
    with pytest.raises(ValueError, match="make gave 4 clips for 2"):
        M.generate_clips(tmp_path / "b", lambda i: make(range(4)), 2)
    with pytest.raises(ValueError, match="NaN"):
        M.generate_clips(tmp_path / "c", lambda i: make(i) * float("nan"), 2)
    with pytest.raises(FileNotFoundError, match="about.json: no such file"):
        M.Samples(tmp_path / "nowhere")
    M.generate_clips(tmp_path / "d", make, 2, about=ABOUT)
    with pytest.raises(ValueError, match="holds 2 clips, not 5"):
        M.Samples(tmp_path / "d", 5)


def test_a_disk_that_refuses(tmp_path, monkeypatch):
    M.generate_clips(tmp_path, make, 4, batch=4, about=ABOUT)
    before = contents(tmp_path)

    def full(fd):
        assert not (tmp_path / "clips-000004.safetensors").exists()  # not there before it is whole
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(M.os, "fsync", full)
    with pytest.raises(
        OSError, match="cannot write clips: No space left.*clips-000004|clips-000004"
    ):
        M.generate_clips(tmp_path, make, 8, batch=4, about=ABOUT)
    assert contents(tmp_path) == before


KILLED = """
import sys, time, torch
sys.path[:0] = {path!r}
from minisora import metrics as M
from test_metrics_samples import make, ABOUT
print('ready', flush=True)
M.generate_clips({folder!r}, make, 400, batch=2, about=ABOUT)
"""


def test_kill_9_leaves_whole_batches_and_the_same_result(tmp_path, root):
    whole = tmp_path / "whole"
    M.generate_clips(whole, make, 400, batch=2, about=ABOUT)
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
            assert len(M.read_clips(f)) == 2
    M.generate_clips(folder, make, 400, batch=2, about=ABOUT)
    left = {k: v for k, v in contents(folder).items() if not k.endswith(".tmp")}
    assert left == contents(whole) and kills == 3


# ---------------------------------------------------------------- the report


class Reader:
    attributes = {"motion": sorted(SIMPLE_MOTIONS)}

    def predict(self, clips):
        return [dict(motion="left")] * len(clips)


def test_report(tmp_path):
    real, made = (SceneClips(24, "all", s, SIMPLE_MOTIONS) for s in (1, 2))
    samples = M.generate_clips(
        tmp_path, lambda i: torch.stack([made[k].frames for k in i]), 24, batch=10
    )
    colour = M.FeatureNetwork(lambda x: x.mean((2, 3, 4)), "mean colour")
    wanted = [made[i].attributes for i in range(24)]
    got = M.measure(samples, real, Reader(), wanted, [colour], k=3)
    assert got["n"] == 24 and got["motion_right"] == pytest.approx(
        sum(w["motion"] == "left" for w in wanted) / 24
    )
    assert (
        got["jerk_px"] == M.jerk_px(torch.stack([c.frames for c in samples]))
        and got["real"]["n"] == 24
    )
    f = got["Fréchet distance, mean colour"]
    a, b = colour(real), colour(samples)
    assert f["frechet"] == M.frechet_distance(a, b) and f["dimensions"] == 3 and f["k"] == 3
    assert f["frechet_interval"] == M.frechet_interval(a, b, 30)
    assert (f["precision"], f["recall"]) == tuple(M.precision_recall(a, b, 3).values())
    assert json.loads(json.dumps(got)).keys() == got.keys()
    lines = list(M.report_lines(got))
    assert any(x.startswith("all_right") and "[" in x for x in lines) and "real" in lines
    assert not any("interval" in x for x in lines) and any(
        x.startswith("  frechet ") for x in lines
    )


def test_report_needs(tmp_path):
    x = torch.zeros(2, 3, 4, 8, 8).byte()
    with pytest.raises(ValueError, match="real=…"):
        M.measure(x, networks=[M.FeatureNetwork(len, "n")])
    with pytest.raises(ValueError, match="wanted=…"):
        M.measure(x, judge=Reader())
    assert M.measure(x)["empty"] == 2
