"""Folders of `save_pretrained`: whole or refused, the same numbers in a new process, the old one
after a failure."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from helpers.models import FRAMES, TINY, VIDEO, awake, batch, edit, rewrite, video, video_batch

from minisora.core import files
from minisora.dit import DiT
from minisora.models.layouts import Checkpointed
from minisora.temporal import VideoDiT

RELOAD = """
import sys, torch
from minisora.{module} import {name}
model = {name}.from_pretrained("model")
assert not model.training
torch.save(model(*torch.load("in.pt")), "out.pt")
"""


def in_a_new_process(model, inputs, folder):
    "What a model says that was saved and loaded by another process."
    model.save_pretrained(folder / "model")
    torch.save(inputs, folder / "in.pt")
    names = dict(module=type(model).__module__.removeprefix("minisora."), name=type(model).__name__)
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS=str(torch.get_num_threads()))
    code = RELOAD.format(**names)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, env=env)
    return torch.load(folder / "out.pt")


def test_round_trip_in_a_new_process(tmp_path):
    model = awake(DiT(TINY)).eval()
    out = in_a_new_process(model, batch(), tmp_path)
    assert torch.equal(out, model(*batch()))
    assert {p.name for p in tmp_path.iterdir()} == {"model", "in.pt", "out.pt"}
    said = json.loads((tmp_path / "model/config.json").read_text())
    assert said == dict(kind="dit", **dataclasses.asdict(TINY)) | {"size": [8, 8]}
    assert DiT.from_pretrained(tmp_path / "model").config == TINY


def test_round_trip_of_a_video_model_in_a_new_process(tmp_path):
    options = dict(layout="factorized", positions="rope", relative_bias=True, output="edm")
    model = video(FRAMES, Checkpointed(), **options).eval()
    out = in_a_new_process(model, video_batch(FRAMES), tmp_path)
    assert torch.equal(out, model(*video_batch(FRAMES)))
    said = json.loads((tmp_path / "model/config.json").read_text())
    assert said["kind"] == "video-dit" and said["output"] == dict(kind="edm")
    assert said["layout"] == dict(kind="factorized", num_joint_images=0)


# ---------------------------------------------------------------- spoilt

SPOILT = [
    (
        lambda f: edit(f, lambda s: s.pop("blocks.1.mlp.fc1.bias")),
        ValueError,
        r"model\.safetensors: missing key 'blocks\.1\.mlp\.fc1\.bias'",
    ),
    (
        lambda f: edit(f, lambda s: s.update(extra=torch.ones(1))),
        ValueError,
        r"model\.safetensors: unexpected key 'extra' \(not in the (Video)?DiT\)",
    ),
    (
        lambda f: edit(f, lambda s: s.update({"final_layer.linear.bias": torch.ones(4)})),
        ValueError,
        r"model\.safetensors: key 'final_layer\.linear\.bias' has shape \(4,\), not \(32,\)",
    ),
    (lambda f: rewrite(f, width=64), ValueError, r"model\.safetensors: key .* has shape"),
    (
        lambda f: rewrite(f, window=3),
        ValueError,
        r"config\.json: (Video)?DiT(Config)? has no field 'window'",
    ),
    (
        lambda f: rewrite(f, depth="two"),
        ValueError,
        r"config\.json: (Video)?DiTConfig\.depth must be int",
    ),
    (lambda f: rewrite(f, kind="causal-vae"), ValueError, r"config\.json: kind is 'causal-vae'"),
    (lambda f: (f / "config.json").unlink(), FileNotFoundError, r"config\.json"),
    (lambda f: (f / "config.json").write_text("{"), ValueError, r"config\.json"),
    (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, r"model\.safetensors"),
    (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-9]
        ),
        ValueError,
        r"model\.safetensors",
    ),
]


@pytest.mark.parametrize("spoil, error, message", SPOILT)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_spoilt_folders_are_refused(tmp_path, kind, spoil, error, message):
    model = awake(DiT(TINY)) if kind == "image" else video(dataclasses.replace(VIDEO, width=48))
    model.save_pretrained(tmp_path / "m")
    spoil(tmp_path / "m")
    with pytest.raises(error, match=message) as info:
        type(model).from_pretrained(tmp_path / "m")
    assert "\n" not in str(info.value)


def test_positions_of_another_size_are_refused(tmp_path):
    awake(DiT(TINY)).save_pretrained(tmp_path / "m")
    edit(tmp_path / "m", lambda s: s.update(pos_embed=torch.ones(1, 4, 32)))
    with pytest.raises(ValueError, match=r"key 'pos_embed' has shape \(1, 4, 32\)"):
        DiT.from_pretrained(tmp_path / "m")


def test_loading_is_strict(tmp_path):
    video().save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match=r"config\.json: kind is 'video-dit', not 'dit'"):
        DiT.from_pretrained(tmp_path / "m")
    rewrite(tmp_path / "m", drop="kind")  # as version 0.1 wrote it
    with pytest.raises(ValueError, match=r"config\.json: DiTConfig has no field 'block'"):
        DiT.from_pretrained(tmp_path / "m")
    edit(tmp_path / "m", lambda s: s.pop("final_layer.linear.bias"))
    with pytest.raises(ValueError, match=r"missing key 'final_layer\.linear\.bias'"):
        VideoDiT.from_pretrained(tmp_path / "m")


def test_no_such_folder(tmp_path):
    for name in (tmp_path / "nothing", "a/b/c", "nothing"):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            DiT.from_pretrained(name)


def test_a_failed_save_leaves_the_old_one(tmp_path, monkeypatch):
    awake(DiT(TINY)).save_pretrained(tmp_path / "m")
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}

    def full(state, file, *_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        awake(DiT(TINY), seed=9).save_pretrained(tmp_path / "m")
    assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == before
    assert len(list(tmp_path.iterdir())) == 1
