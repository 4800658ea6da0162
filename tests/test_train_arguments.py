"""What cannot be meant is refused by name."""

import inspect

import pytest
import torch
from helpers.train import Data, Net, go, interruptible  # noqa: F401

from minisora.interpolants import Interpolant
from minisora.train import compare_to_reference, fit
from minisora.training.checkpoint import load_checkpoint
from minisora.training.run_config import ADDED


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(optimizer="sgd"), "optimizer must be one of 'adamw', 'muon', not 'sgd'"),
        (dict(more_ema=(2,)), "more_ema"),
        (dict(spikes="stop"), "spikes must be"),
        (dict(spike_factor=1), "spike_factor must be a number above 1"),
        (dict(on_oom="retry"), "on_oom must be"),
        (dict(track="tensorboard"), "track='tensorboard'"),
        (dict(warmup=-4), "warmup must be a number, 0 or more, not -4"),
        (dict(clip=-1.0), "clip must be a number, 0 or more"),
        (dict(lr=-1.0), "lr must be a number, 0 or more"),
        (dict(valid_every=0), "valid_every must be a whole number from 1, not 0"),
        (dict(stop_at=-1), "stop_at must be"),
        (dict(sample_every=0.5, on_sample=print), "sample_every must be"),
        (dict(sample_every=5), "sample_every=5 requires on_sample=…"),
        (dict(data=torch.zeros(9, 1, 4, 2, 2)), "data: no condition, and the model takes one"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises((ValueError, ModuleNotFoundError), match=message):
        go(None, **change)


def test_valid_every_without_valid():
    with pytest.raises(ValueError, match="valid_every=5 requires valid=…"):
        fit(Net(), Data(), Interpolant(), steps=9, valid_every=5, progress=False)


def test_a_folder_of_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = go("~/run", steps=2, valid=None)
    assert [p.name for p in tmp_path.iterdir()] == ["run"] and done.path.is_relative_to(
        tmp_path / "run"
    )
    assert load_checkpoint("~/run").step == 2 and compare_to_reference("~/run", done) == 1


def test_new_arguments_are_off():
    p = inspect.signature(fit).parameters
    off = {**ADDED, "on_oom": "raise", "track": ()}
    assert {k: p[k].default for k in off} == off
