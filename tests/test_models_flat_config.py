"""What version 0.1 said of a video model, field by field, is understood; and what it wrote is
the same model."""

import copy
import dataclasses
import json
import pickle
import warnings

import pytest
import torch
from conftest import ROOT
from helpers.models import FRAMES, VIDEO, awake, label, rewrite, same, video
from safetensors.torch import load_file

from minisora.core.checks import config_from_dict
from minisora.core.hub import load_strict
from minisora.dit import DiT, DiTConfig
from minisora.models.conditions import CaptionCondition, Unconditional, WordCondition
from minisora.models.flat_config import (
    FLAT,
    TRAINING_ONLY,
    flat_fields,
    flat_wrappers,
    is_flat,
    nest,
)
from minisora.models.layers import BlockConfig
from minisora.models.layouts import Checkpointed, Factorized, Joint, Routed
from minisora.models.positions import (
    InflatedPositions,
    LattePositions,
    Positions,
    RopePositions,
    SinCosPositions,
)
from minisora.models.preconditioning import DataOutput, DirectOutput, EDMOutput
from minisora.temporal import VIDEO_PRESETS, VideoDiT, VideoDiTConfig

SIZES = dict(size=(4, 4, 6), channels=4, patch=(1, 2, 2), width=48, depth=4, heads=2)
LATTE = dict(attention="factorised", positions="latte")

# a flat field, or one and what it needs, and the part that it is today; every field of FLAT is here
FIELDS = [
    (dict(mlp_ratio=3.0), dict(block=BlockConfig(mlp_ratio=3.0))),
    (dict(norm="rms"), dict(block=BlockConfig(norm="rms"))),
    (dict(mlp="swiglu"), dict(block=BlockConfig(mlp="swiglu"))),
    (dict(qk_norm=True), dict(block=BlockConfig(qk_norm=True))),
    (dict(vocab=7), dict(condition=WordCondition(7))),
    (dict(vocab=7, slots=3), dict(condition=WordCondition(7, slots=3))),
    (dict(vocab=7, context=True), dict(condition=WordCondition(7, in_context=True))),
    (dict(vocab=7, label_std=0.5), dict(condition=WordCondition(7, init_std=0.5))),
    (
        dict(caption=12, **LATTE),
        dict(condition=CaptionCondition(12), positions=LattePositions(), layout=Factorized()),
    ),
    (dict(attention="factorised"), dict(layout=Factorized())),
    (
        dict(attention="factorised", images=2, positions="rope"),
        dict(layout=Factorized(2), positions=RopePositions()),
    ),
    (dict(positions="none"), dict(positions=Positions())),
    (dict(positions="rope"), dict(positions=RopePositions())),
    (dict(positions="inflated"), dict(positions=InflatedPositions())),
    (
        dict(learned_time=True, **LATTE),
        dict(positions=LattePositions(learned_time=True), layout=Factorized()),
    ),
    (dict(trained=(8, 4, 6)), dict(positions=SinCosPositions((8, 4, 6)))),
    (
        dict(positions="rope", trained=(8, 4, 6)),
        dict(positions=RopePositions((8, 4, 6))),
    ),
    (dict(relative_bias=True), dict(relative_bias=True)),
    (dict(precondition="edm"), dict(output=EDMOutput())),
    (dict(precondition="x"), dict(output=DataOutput())),
    (dict(precondition="x", t_clip=0.1), dict(output=DataOutput(0.1))),
    (dict(learn_sigma=True), dict(output=DirectOutput(learn_sigma=True))),
    (dict(time="ddpm"), dict(time_convention="ddpm")),
    (dict(time_scale=1.0), dict(time_scale=1.0)),
    (dict(smaller=True), dict(variable_size=True)),
]


def flat(**fields):
    "A flat config of version 0.1, complete as its files were."
    return {**SIZES, **FLAT, **fields}


def quietly(make, *args, **fields):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return make(*args, **fields)


# ---------------------------------------------------------------- there and back


def test_every_field_is_tried():
    tried = {k for old, _ in FIELDS for k in old} | set(TRAINING_ONLY)
    assert tried == set(FLAT) and len(FLAT) + len(SIZES) == 31


@pytest.mark.parametrize("old, new", FIELDS, ids=label)
def test_flat_fields_become_parts_and_parts_flat_fields(old, new):
    config = VideoDiTConfig(**nest(flat(**old)))
    assert config == VideoDiTConfig(**SIZES, **new)
    assert flat_fields(config) == flat(**old)  # and back, field by field
    assert nest(flat_fields(config)) == nest(flat(**old))


@pytest.mark.parametrize("old, new", FIELDS, ids=label)
def test_flat_calls_still_work_and_warn(old, new):
    want = VideoDiTConfig(**SIZES, **new)
    if is_flat(old):
        with pytest.warns(DeprecationWarning, match="is a field of a part now") as said:
            assert VideoDiTConfig(**SIZES, **old) == want
        assert said[0].filename == __file__  # it names the line that said it
        with pytest.warns(DeprecationWarning, match="is a field of a part now"):
            assert dataclasses.replace(VideoDiTConfig(**SIZES), **old) == want
    else:  # a word of today too
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert VideoDiTConfig(**SIZES, **old) == want
    for name, value in old.items():
        if name in ("positions", "relative_bias", "time_scale"):
            continue
        with pytest.warns(DeprecationWarning, match=rf"VideoDiTConfig\.{name} is a field of a"):
            assert getattr(want, name) == value


def test_words_of_today_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = VideoDiTConfig(**SIZES, layout="factorized", positions="rope", condition="none")
        dataclasses.replace(config, depth=2, layout="joint")
        VideoDiT(config)
        # nor do files of any time
        assert config_from_dict(VideoDiTConfig, config.to_dict()) == config
        config_from_dict(VideoDiTConfig, flat(vocab=7))


def test_true_was_short_for_edm():
    assert quietly(VideoDiTConfig, precondition=True).output == EDMOutput()
    assert quietly(VideoDiTConfig, precondition=False).output == DirectOutput()
    assert config_from_dict(VideoDiTConfig, dict(precondition=True)).output == EDMOutput()


def test_a_file_may_lack_fields_that_came_later():
    old = dict(SIZES, vocab=7, attention="joint")
    assert config_from_dict(VideoDiTConfig, old).condition == WordCondition(7)
    assert config_from_dict(VideoDiTConfig, SIZES) == VideoDiTConfig(**SIZES)


@pytest.mark.parametrize("name", [k for k in FLAT if k not in TRAINING_ONLY])
def test_a_config_answers_to_every_old_name(name):
    for config in VIDEO_PRESETS.values():
        value = quietly(getattr, config, name)
        if name != "positions":
            assert value == flat_fields(config)[name]


def test_what_is_no_field_is_no_attribute():
    with pytest.raises(AttributeError, match="VideoDiTConfig has no 'window'"):
        VIDEO.window
    assert copy.deepcopy(VIDEO) == pickle.loads(pickle.dumps(VIDEO)) == VIDEO


# ---------------------------------------------------------------- parts and flat fields together


def test_flat_fields_and_parts_may_be_given_together():
    "Neither is lost; `replace` hands over both."
    config = quietly(
        VideoDiTConfig,
        (4, 4, 6),
        patch=(1, 2, 2),
        width=48,
        heads=2,
        attention="factorised",
        positions=LattePositions((8, 4, 6), learned_time=True),
        condition=WordCondition(7, 3),
        output="edm",
        block=BlockConfig(norm="rms"),
        time_convention="ddpm",
        variable_size=True,
    )
    assert config == VideoDiTConfig(
        size=(4, 4, 6),
        patch=(1, 2, 2),
        width=48,
        heads=2,
        layout=Factorized(),
        positions=LattePositions((8, 4, 6), learned_time=True),
        condition=WordCondition(7, 3),
        output=EDMOutput(),
        block=BlockConfig(norm="rms"),
        time_convention="ddpm",
        variable_size=True,
    )
    more = quietly(dataclasses.replace, config, slots=2, norm="layer")
    assert more == dataclasses.replace(config, condition=WordCondition(7, 2), block=BlockConfig())


def test_the_flat_field_wins():
    both = quietly(VideoDiTConfig, vocab=9, condition=WordCondition(7, 3))
    assert both.condition == WordCondition(9, 3)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(vocab=7, windw=3), "unexpected keyword argument 'windw'"),
        (dict(vocab=7, layout="axial"), "VideoDiTConfig.layout must be one of"),
        (dict(attention="axial"), "VideoDiTConfig.attention must be one of 'joint', 'factorised'"),
        (dict(images=2), "VideoDiTConfig.images: need factorised attention"),
        (dict(learned_time=True), "VideoDiTConfig.learned_time: is for positions='latte'"),
        (dict(precondition="v"), "VideoDiTConfig.precondition must be one of 'none', 'edm', 'x'"),
        (
            dict(precondition="edm", learn_sigma=True),
            "VideoDiTConfig.precondition: is for velocity, not learn_sigma",
        ),
        (dict(caption=6, vocab=5, **LATTE), "VideoDiTConfig.caption: needs no ids"),
        (dict(caption=6, slots=2, **LATTE), "VideoDiTConfig.caption: needs no ids"),
        (dict(caption=6, context=True, **LATTE), "VideoDiTConfig.caption: needs no ids"),
        (dict(caption=6, positions="rope"), "VideoDiTConfig.condition: a caption's embedding"),
        (dict(vocab=7, slots=0), "WordCondition.slots must be at least 1, not 0"),
        (dict(smaller=1), "VideoDiTConfig.variable_size must be bool, not 1"),
        (dict(time="sit"), "VideoDiTConfig.time_convention must be one of 'ddpm', 'flow'"),
    ],
    ids=str,
)
def test_bad_flat_fields(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        quietly(VideoDiTConfig, **fields)


# ---------------------------------------------------------------- what a training wanted


@pytest.mark.parametrize(
    "fields, wrapper",
    [
        (dict(checkpoint=True), r"Checkpointed\(every=1\)"),
        (dict(checkpoint=True, checkpoint_every=3), r"Checkpointed\(every=3\)"),
        (dict(route=0.5), r"Routed\(fraction=0\.5, blocks=\(2, 4\)\)"),
        (dict(route=0.25, route_blocks=(1, 3)), r"Routed\(fraction=0\.25, blocks=\(1, 3\)\)"),
    ],
    ids=str,
)
def test_what_a_training_wanted_is_refused_with_the_way_out(fields, wrapper):
    names = ", ".join(fields)
    message = rf"VideoDiTConfig: {names} is no field .*: wrap\(model, {wrapper}\), or fit\(…, wrap"
    for make in (VideoDiTConfig, lambda **f: dataclasses.replace(FRAMES, **f)):
        with pytest.raises(ValueError, match=message):
            quietly(make, **fields)


def test_what_a_training_did_not_want_is_let_go():
    off = dict(checkpoint=False, checkpoint_every=3, route=0.0, route_blocks=(1, 3))
    assert quietly(dataclasses.replace, FRAMES, **off) == FRAMES
    assert quietly(getattr, FRAMES, "route") == 0.0 and not quietly(getattr, FRAMES, "checkpoint")


@pytest.mark.parametrize(
    "fields, wrappers",
    [
        ({}, ()),
        (dict(route=0.0, checkpoint=False, checkpoint_every=3), ()),
        (dict(route=0.5), (Routed(0.5, (2, 4)),)),
        (dict(route=0.5, route_blocks=[1, 3]), (Routed(0.5, (1, 3)),)),
        (dict(checkpoint=True), (Checkpointed(),)),
        (dict(checkpoint=True, checkpoint_every=2), (Checkpointed(2),)),
        (
            dict(checkpoint=True, route=0.25, route_blocks=(1, 3)),
            (Checkpointed(), Routed(0.25, (1, 3))),
        ),
    ],
    ids=str,
)
def test_the_wrappers_that_a_flat_config_asked_for(fields, wrappers):
    assert flat_wrappers(fields) == wrappers


# ---------------------------------------------------------------- folders of version 0.1

FOLDERS = ROOT / "tests" / "data" / "version-0.1" / "models"
TODAY = {
    "joint": dict(
        relative_bias=True,
        block=BlockConfig(norm="rms", mlp="swiglu", qk_norm=True),
        condition=WordCondition(5, 2, in_context=True, init_std=0.5),
    ),
    "data": dict(condition=WordCondition(5), output=DataOutput(0.1)),
    "edm": dict(output=EDMOutput(), variable_size=True),
    "rope": dict(
        condition=WordCondition(3), positions=RopePositions((8, 4, 8)), variable_size=True
    ),
    "factorised": dict(
        condition=WordCondition(3, 2, in_context=True),
        layout=Factorized(),
        positions=RopePositions(),
        relative_bias=True,
    ),
    "inflated": dict(layout=Factorized(), positions=InflatedPositions()),
    "latte": dict(
        patch=(1, 2, 2),
        condition=WordCondition(4),
        layout=Factorized(2),
        positions=LattePositions(learned_time=True),
        output=DirectOutput(learn_sigma=True),
        time_convention="ddpm",
    ),
    "caption": dict(
        patch=(1, 2, 2),
        condition=CaptionCondition(12),
        layout=Factorized(),
        positions=LattePositions(),
    ),
}


def inputs(model):
    "Latents, times and a condition that a model of one of the folders takes."
    c = model.config
    g = torch.Generator().manual_seed(0)
    size = c.size if len(c.size) == 3 else (1, *c.size)
    x = torch.randn(2, c.channels, *size, generator=g)
    if model.null_id is None:
        return x, torch.tensor([0.3, 0.8])
    kind = getattr(getattr(c, "condition", None), "kind", "words")
    slots = getattr(getattr(c, "condition", None), "slots", 1)
    y = torch.randint(0, 3, (2, slots), generator=g)
    return x, torch.tensor([0.3, 0.8]), torch.randn(2, 12, generator=g) if kind == "caption" else y


@pytest.mark.parametrize("name", sorted(p.name for p in FOLDERS.iterdir()))
def test_a_folder_of_version_0_1_equals_one_that_is_saved_now(name, tmp_path):
    kind = DiT if name in ("dit", "sit") else VideoDiT
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        old = kind.from_pretrained(FOLDERS / name)
        old.save_pretrained(tmp_path / "now")
        new = kind.from_pretrained(tmp_path / "now")
    assert new.config == old.config and same(new.state_dict(), old.state_dict())
    assert torch.equal(new(*inputs(new)), old(*inputs(old)))
    files = [folder / "model.safetensors" for folder in (tmp_path / "now", FOLDERS / name)]
    assert same(*map(load_file, files))
    said = json.loads((tmp_path / "now" / "config.json").read_text())
    assert said["kind"] == kind.kind
    assert kind is DiT or not is_flat(said)
    assert "checkpoint" not in said and "route" not in said and "time" not in said
    old.save_pretrained(tmp_path / "now")  # over itself
    assert json.loads((tmp_path / "now" / "config.json").read_text()) == said


@pytest.mark.parametrize("name", TODAY)
def test_a_folder_of_version_0_1_is_this_model_of_today(name):
    sizes = dict(size=(4, 4, 4), channels=2, patch=(2, 2, 2), width=16, depth=4, heads=2)
    config = VideoDiTConfig(**{**sizes, **TODAY[name]})
    old = VideoDiT.from_pretrained(FOLDERS / name)
    assert old.config == config
    made = load_strict(VideoDiT(config), old.state_dict()).eval()
    assert torch.equal(made(*inputs(made)), old(*inputs(old)))


def test_image_folders_of_version_0_1_are_these_models_of_today():
    assert DiT.from_pretrained(FOLDERS / "dit").config == DiTConfig(
        size=(8, 8), width=16, depth=2, heads=2, num_classes=5
    )
    assert DiT.from_pretrained(FOLDERS / "sit").config == DiTConfig(
        size=(8, 4),
        width=16,
        depth=2,
        heads=2,
        num_classes=0,
        learn_sigma=False,
        time_convention="flow",
        time_scale=1.0,
        positions="rope",
        qk_norm=True,
        norm="rms",
        mlp="swiglu",
        relative_bias=True,
        precondition="edm",
    )


def flat_folder(folder, **fields):
    "A folder as version 0.1 wrote it, with other fields."
    model = awake(VideoDiT(FRAMES))
    model.save_pretrained(folder)
    values = flat(vocab=7, slots=2, **fields)
    (folder / "config.json").write_text(json.dumps(values))
    return model


def test_a_folder_that_was_saved_in_training_loads_plain(tmp_path):
    model = flat_folder(tmp_path / "m", checkpoint=True, route=0.5)
    again = VideoDiT.from_pretrained(tmp_path / "m")
    assert again.config == FRAMES and again.layout == Joint()
    assert same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(window=3), r"config\.json: VideoDiTConfig has no field 'window'"),
        (dict(attention="axial"), r"config\.json: VideoDiTConfig\.attention must be one of"),
        (dict(slots=0), r"config\.json: WordCondition\.slots must be at least 1, not 0"),
        (dict(depth="two"), r"config\.json: VideoDiTConfig\.depth must be int"),
        (dict(layout={"kind": "axial"}), r"config\.json: VideoDiTConfig\.layout must be one of"),
        (dict(mlp_ratio=[4.0]), r"config\.json: BlockConfig\.mlp_ratio must be float"),
        (dict(trained=[4, 3, 6]), r"config\.json: VideoDiTConfig\.positions: base_size="),
    ],
    ids=str,
)
def test_spoilt_folders_of_version_0_1_are_refused(fields, message, tmp_path):
    flat_folder(tmp_path / "m")
    rewrite(tmp_path / "m", **fields)
    with pytest.raises(ValueError, match=message):
        VideoDiT.from_pretrained(tmp_path / "m")


def test_fields_of_no_words_change_no_unconditional_model():
    "In version 0.1 slots, context and label_std without a vocabulary meant nothing."
    config = VideoDiTConfig(**nest(flat(slots=3, context=True, label_std=0.5)))
    assert config == VideoDiTConfig(**SIZES) and config.condition == Unconditional()
    assert video(config).num_tokens == 0
