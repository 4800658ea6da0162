"""A run that resumes must be the same run; checkpoints of earlier versions, and of fields added
since."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from helpers.train import SMALL, Net, go, interruptible, log_of, video  # noqa: F401

from minisora.core.hub import Registry, kind_of
from minisora.interpolants import Interpolant
from minisora.models import flat_config
from minisora.models.conditions import WordCondition
from minisora.models.preconditioning import DataOutput
from minisora.temporal import VideoDiT
from minisora.training.checkpoint import _checksum, latest_checkpoint, load_checkpoint
from minisora.training.run_config import (
    check_same_run,
    config_dict,
    upgrade_config,
    upgrade_description,
)

HERE = Path(__file__).parent


@pytest.fixture
def old(tmp_path):
    "A copy of a run that version 0.1.0 stopped at step 14 of 40."
    shutil.copytree(HERE / "data" / "run-0.1.0", tmp_path / "old")
    return tmp_path / "old"


def test_the_old_run_is_small_and_was_kept():
    files = [p for p in (HERE / "data" / "run-0.1.0").rglob("*") if p.is_file()]
    assert len(files) == 5 and sum(p.stat().st_size for p in files) < 50_000


def test_an_old_checkpoint_loads(old):
    c = load_checkpoint(old)
    assert c.step == 14 and c.state["format"] == 1 and c.emas == {}
    net = c.load_into(Net())
    assert torch.equal(net.last.weight, c.ema["last.weight"])
    c.load_into(Net(), "model")


def test_an_old_run_goes_on_as_a_new_one(old, tmp_path):
    "To rounding only: the old part was computed on another machine."
    go(old, stop_at=20)
    go(tmp_path / "new", stop_at=20)
    a = load_checkpoint(old)
    b = load_checkpoint(tmp_path / "new")
    for part in ("model", "ema", "optimizer"):
        p = getattr(a, part)
        q = getattr(b, part)
        assert p.keys() == q.keys() and all(
            torch.allclose(p[k], q[k], rtol=1e-3, atol=1e-4) for k in p
        )
    assert [r["step"] for r in log_of(old)] == [r["step"] for r in log_of(tmp_path / "new")]


@pytest.mark.parametrize(
    "change", [dict(optimizer="muon"), dict(more_ema=(0.9,)), dict(spikes="skip")], ids=str
)
def test_an_old_run_is_refused_with_a_new_option(old, change):
    with pytest.raises(ValueError, match=f"recipe.{next(iter(change))} is .* here and not set"):
        go(old, **change)


X0 = DataOutput()


def without_newer_fields(model):
    "The description of a model as a checkpoint holds it that is older than three of its fields."
    del model["time_scale"]
    del model["condition"]["init_std"]
    del model["output"]["t_clip"]
    return model


def flat_without_newer_fields(model):
    "The same as version 0.1 wrote it: all fields side by side."
    fields = flat_config.flat_fields(replace(SMALL, output=X0))
    fields = {k: v for k, v in fields.items() if k not in ("time_scale", "label_std", "t_clip")}
    return {"class": "VideoDiT", **fields, "parameters": model["parameters"]}


@pytest.fixture(scope="module", params=[without_newer_fields, flat_without_newer_fields])
def older(request, tmp_path_factory):
    "A run of a VideoDiT as a checkpoint is from before four fields were added."
    out = tmp_path_factory.mktemp("older")
    go(out, net=video(output=X0), steps=3, valid=None)
    file = latest_checkpoint(out) / "state.json"
    state = json.loads(file.read_text())
    del state["seal"]
    state["config"]["model"] = request.param(state["config"]["model"])
    del state["config"]["objective"]["shift"]
    file.write_text(json.dumps(dict(state, seal=_checksum(state))))
    return out


@pytest.mark.parametrize(
    "field, change",
    {
        "model.time_scale": dict(net=dict(time_scale=10.0)),
        "model.condition.init_std": dict(net=dict(condition=WordCondition(5, init_std=0.5))),
        "model.output.t_clip": dict(net=dict(output=DataOutput(0.1))),
        "objective.shift": dict(objective=Interpolant(shift=3.0)),
    }.items(),
)
def test_a_field_newer_than_the_checkpoint_is_compared_with_its_default(older, field, change):
    net = video(**{"output": X0, **change.get("net", {})})
    options = dict(change, net=net, steps=5, valid=None)
    with pytest.raises(ValueError, match=rf"{field} is .* here and .* in the checkpoint"):
        go(older, **options)


def test_a_run_from_before_a_field_goes_on(older, tmp_path):
    shutil.copytree(older, tmp_path / "run")
    assert go(tmp_path / "run", net=video(output=X0), steps=5, valid=None).step == 5


def test_a_new_field_without_a_default_is_refused():
    then = dict(model=dict(kind="A"), data=dict(length=3), recipe=dict(lr=1.0))
    for part, new in (("objective", dict(twist=2)), ("data", dict(buckets=dict(wide=[3])))):
        now = {**then, part: {**then.get(part, {}), **new}}
        with pytest.raises(ValueError, match=rf"{part}\..* here and not set in the checkpoint"):
            check_same_run(now, then, "run")
    check_same_run(then, then, "run")


def test_the_kind_is_named_before_its_fields(older):
    with pytest.raises(ValueError, match=f"model.kind is 'Net' here and '{kind_of(VideoDiT)}'"):
        go(older, steps=5, valid=None)


@pytest.fixture
def kinds():
    "A registry with an objective that has changed its kind and the name of a field."
    registry = Registry("objective")

    @registry.register("bent", "Bow")
    @dataclass(frozen=True)
    class Bent(Interpolant):
        bend: float = 0.0

        @classmethod
        def upgrade(cls, values):
            return {"bend" if k == "crook" else k: v for k, v in values.items()}

    return registry, Bent


def test_a_renamed_kind_and_field_are_brought_up_to_date(kinds):
    registry, Bent = kinds
    old = {"class": "Bow", "crook": 2.0, "path": "gvp", "parameters": 7}
    new = dict(kind="bent", bend=2.0, path="gvp", parameters=7)
    assert upgrade_description(old, registry) == new
    assert upgrade_description(old, registry, Bent()) == new
    assert upgrade_description(new, registry) == new  # what this version writes stays
    assert upgrade_description(dict(crook=2.0), registry) == dict(
        crook=2.0
    )  # nothing is known of it


def test_a_users_own_class_upgrades_its_own_fields(kinds):
    "It is of no registered kind; the objective of today says how its fields were renamed."
    registry, Bent = kinds

    class Mine(Bent):
        pass

    assert config_dict(Mine())["kind"] == "Mine"
    then = upgrade_description({"class": "Mine", "crook": 2.0}, registry, Mine())
    assert then == dict(kind="Mine", bend=2.0)
    other = upgrade_description({"class": "Other", "crook": 2.0}, registry, Mine())
    assert other == dict(kind="Other", crook=2.0)


def test_a_run_with_a_renamed_kind_and_field_resumes(tmp_path, monkeypatch):
    from minisora.training import run_config

    registry = Registry("objective")

    @registry.register("bent", "Bow")
    @dataclass(frozen=True)
    class Bent(Interpolant):
        bend: float = 0.0

        @classmethod
        def upgrade(cls, values):
            return {"bend" if k == "crook" else k: v for k, v in values.items()}

    monkeypatch.setattr(run_config, "OBJECTIVES", registry)
    go(tmp_path, steps=3, objective=Bent(bend=2.0), valid=None)
    file = latest_checkpoint(tmp_path) / "state.json"
    state = json.loads(file.read_text())
    del state["seal"]
    assert state["config"]["objective"].pop("kind") == "bent"
    state["config"]["objective"]["class"] = "Bow"
    state["config"]["objective"]["crook"] = state["config"]["objective"].pop("bend")
    file.write_text(json.dumps(dict(state, seal=_checksum(state))))
    with pytest.raises(ValueError, match="objective.bend is 1.0 here and 2.0 in the checkpoint"):
        go(tmp_path, steps=5, objective=Bent(bend=1.0), valid=None)
    assert go(tmp_path, steps=5, objective=Bent(bend=2.0), valid=None).step == 5


def test_a_field_that_is_called_kind():
    class Odd:
        def __init__(self):
            self.kind = "cosine"

    now = config_dict(Odd())
    assert now == dict(kind="Odd", kind_field="cosine")
    assert upgrade_description({"class": "Odd", "kind": "cosine"}, Registry("objective")) == now
    config = dict(recipe=dict(lr=1.0), objective={"class": "Odd", "kind": "cosine"})
    assert upgrade_config(config)["objective"] == now
