"""What version 0.1 called otherwise in pipelines, runs and films works for this release, and warns;
and what `from minisora import …` gives."""

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import minisora
from minisora import cli, pipeline, single_gpu
from minisora.core.hub import OBJECTIVES
from minisora.core.renames import OLD_NAMES
from minisora.experiment import Experiment
from minisora.frames import FramePrediction
from minisora.interpolants import Interpolant
from minisora.models import cost
from minisora.pipeline import VideoPipeline
from minisora.temporal import VideoDiT, VideoDiTConfig

OLD = Path(__file__).parent / "data" / "version-0.1"

NAMES_0_1 = {
    single_gpu: """
channel_weights fold unfold FoldedVAE Refiner tune_refiner told Continuation leading Given
sample_after chain seams
""",
    pipeline: """
SAMPLING MODERN SMOOTH QUICK RECIPES Recipe slug recipe_for open_recipe Run make_video
""",
    cli: """
field_value open_run clips_command cache_command train_command sample_command metrics_command
measure_command convert_command verify_command repair_command video_command summary open_clips
open_rows source_arguments axes_argument encode_arguments source_clips open_autoencoder
encode_command made_of parser stopped
""",
}
PLACES = [(module, name) for module, names in NAMES_0_1.items() for name in names.split()]


@pytest.mark.parametrize("module, old", PLACES, ids=lambda v: getattr(v, "__name__", v))
def test_an_old_name_is_the_new_thing_and_warns_once(module, old):
    home, _, new = OLD_NAMES[module.__name__][old].partition(":")
    message = f"{module.__name__}.{old} is now {home}.{new}; the old name goes with the next"
    with pytest.warns(DeprecationWarning, match=message) as said:
        space = {}
        exec(f"from {module.__name__} import {old}", space)
    assert len({str(w.message) for w in said}) == 1
    assert space[old] is getattr(importlib.import_module(home), new)
    with pytest.warns(DeprecationWarning) as said:
        getattr(module, old)
    assert len(said) == 1 and said[0].filename == __file__, "it is told to who asks"


def test_the_table_lists_no_other_name():
    for module, names in NAMES_0_1.items():
        assert sorted(OLD_NAMES[module.__name__]) == sorted(names.split())


@pytest.mark.parametrize("module", NAMES_0_1, ids=lambda m: m.__name__)
def test_what_never_was_is_no_attribute(module):
    with pytest.raises(AttributeError, match=f"{module.__name__}'? has no attribute 'nothing'"):
        module.nothing


def test_the_names_that_stayed():
    assert cli.main and cli.COMMANDS["evaluate"]


# ---------------------------------------------------------------- what has other names inside


def test_frame_prediction_by_its_old_words():
    with pytest.warns(DeprecationWarning, match=r"FramePrediction\(given=…\) is now known_frames"):
        objective = FramePrediction(given=(0, 1))
    assert objective == FramePrediction(known_frames=(0, 1))
    noise = torch.randn(5, 2, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    with pytest.warns(DeprecationWarning, match="FramePrediction.given is now known_frames"):
        assert objective.given == (0, 1)
    with pytest.warns(DeprecationWarning, match="FramePrediction.counts is now num_known"):
        assert torch.equal(objective.counts(noise), objective.num_known(noise))
    assert OBJECTIVES["Continuation"] is FramePrediction is OBJECTIVES["frame-prediction"]


@pytest.mark.parametrize("old", ["metrics", "measure"])
def test_a_run_is_evaluated_by_its_old_names(tmp_path, monkeypatch, old):
    monkeypatch.setattr(Experiment, "evaluate", lambda self, n=None: ("evaluated", n))
    run = Experiment(tmp_path, progress=False)
    with pytest.warns(DeprecationWarning, match=f"Experiment.{old} is now evaluate"):
        assert getattr(run, old)(4) == ("evaluated", 4)


def test_an_avatar_gives_tensors():
    with pytest.warns(DeprecationWarning, match="Avatar is now pipeline.VideoPipeline") as said:
        avatar = single_gpu.Avatar.from_pretrained(OLD / "avatar")
    assert len(said) == 1 and isinstance(avatar, VideoPipeline)
    today = VideoPipeline.from_pretrained(OLD / "avatar")
    assert torch.equal(avatar.clips(["hello"], seed=1), today("hello", seed=1).frames)
    made = today.film(["hello", "rest"], seed=1).frames
    assert torch.equal(avatar.film(["hello", "rest"], seed=1), made[0])
    known = made[0, :, -1:]
    assert torch.equal(avatar.clips(["rest"], known), today("rest", known).frames)


def test_an_avatar_of_its_parts():
    today = VideoPipeline.from_pretrained(OLD / "avatar")
    parts = today.model, today.autoencoder, today.vocabulary, today.objective
    statistics = today.mean, today.std
    with pytest.warns(DeprecationWarning, match="Avatar is now"):
        avatar = single_gpu.Avatar(*parts, *statistics, options=dict(steps=2))
    assert avatar.sampling == dict(num_inference_steps=2)


def test_the_flops_of_a_config():
    config = VideoDiTConfig(width=48, depth=2, heads=4)
    with pytest.warns(DeprecationWarning, match="training_flops is now models.cost") as said:
        count = single_gpu.training_flops(config, 3)
    assert count == cost.training_flops(VideoDiT(config), 3) and len(said) == 1


# ---------------------------------------------------------------- from minisora import …


@pytest.mark.parametrize("name", minisora.__all__)
def test_a_name_of_the_package(name):
    space = {}
    exec(f"from minisora import {name}", space)
    home = importlib.import_module(f"minisora.{minisora._HOMES[name]}")
    assert space[name] is getattr(home, name) and name in home.__all__
    assert name in dir(minisora)


def test_the_package_alone_is_light():
    "`import minisora` brings neither torch nor a module of ours; a name brings what it needs."
    code = """
import sys, minisora
ours = [name for name in sys.modules if name.startswith('minisora')]
assert ours == ['minisora'] and 'torch' not in sys.modules, ours
assert minisora.__version__ and 'VideoPipeline' in dir(minisora)
from minisora import *
assert VideoPipeline is sys.modules['minisora.pipeline'].VideoPipeline
assert fit is sys.modules['minisora.train'].fit
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_module_is_still_a_module():
    "A lazy name must not hide a module of the package."
    from minisora import sampling, train

    assert sampling.__name__ == "minisora.sampling" and train.__name__ == "minisora.train"
    modules = {p.stem for p in Path(minisora.__file__).parent.glob("*.py")}
    assert not modules & set(minisora.__all__)


def test_what_the_package_has_not():
    with pytest.raises(AttributeError, match="module 'minisora' has no attribute 'VideoPipe'"):
        minisora.VideoPipe
    with pytest.raises(ImportError, match="cannot import name 'Interpolants'"):
        exec("from minisora import Interpolants", {})
    assert minisora.Interpolant is Interpolant
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert minisora.VideoPipeline is VideoPipeline
