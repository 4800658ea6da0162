"""Weights of Latte: its names and shapes, there and back, and what it cannot hold."""

import dataclasses

import pytest
import torch
from helpers.latte import LATTE, PLAIN, TEXT, awake_latte
from helpers.models import label, same
from safetensors.torch import save_file

from minisora.dit import DiT, DiTConfig
from minisora.models.conditions import CaptionCondition, WordCondition
from minisora.models.layers import BlockConfig
from minisora.models.layouts import Joint
from minisora.models.preconditioning import DataOutput, EDMOutput
from minisora.models.weights import latte_state, load_latte_state
from minisora.temporal import VIDEO_PRESETS, VideoDiT


def shapes(state):
    return {k: tuple(v.shape) for k, v in state.items()}


def test_names_and_shapes_are_those_of_latte():
    classes = WordCondition(101)
    with torch.device("meta"):
        model = VideoDiT(dataclasses.replace(VIDEO_PRESETS["Latte-XL/2"], condition=classes))
        image = DiT(dataclasses.replace(DiTConfig(), num_classes=101))
    state = shapes(model.state_dict())
    want = shapes(image.state_dict()) | {"temp_embed": (1, 16, 1152)}  # a DiT's, and time
    changed = {"x_embedder.proj.weight", "x_embedder.proj.bias"}
    assert {k: v for k, v in want.items() if k not in changed} == {
        k: v for k, v in state.items() if "x_embedder" not in k
    }
    theirs = shapes(latte_state(awake_latte()))
    assert theirs["x_embedder.proj.weight"] == (32, 4, 2, 2)
    assert changed < set(theirs) and len(theirs) == len(state) - 24 * 10
    plain = shapes(latte_state(awake_latte(PLAIN)))
    assert [k for k in plain if "y_embedder" in k] == []
    text = "text_embedding_projection.1"
    more = {f"{text}.weight": (32, 77 * 768), f"{text}.bias": (32,)}
    assert shapes(latte_state(awake_latte(TEXT))) == plain | more


@pytest.mark.parametrize("config", [PLAIN, LATTE, TEXT], ids=lambda c: c.condition.kind)
@pytest.mark.parametrize("kind", ["pt", "ema.pt", "safetensors", "dict"])
def test_round_trip_is_bit_equal(tmp_path, config, kind):
    state = {
        k: torch.randn(v.shape, generator=torch.Generator().manual_seed(i))
        for i, (k, v) in enumerate(latte_state(awake_latte(config)).items())
    }  # positions too are theirs
    file = tmp_path / f"w.{kind}"
    if kind == "safetensors":
        save_file(state, file)
    elif kind != "dict":
        torch.save(dict(ema=state, model={}) if kind == "ema.pt" else state, file)
    model = load_latte_state(VideoDiT(config), state if kind == "dict" else file)
    assert same(dict(sorted(latte_state(model).items())), dict(sorted(state.items())))
    model.save_pretrained(tmp_path / "m")  # and survives our own folder
    ours = latte_state(VideoDiT.from_pretrained(tmp_path / "m"))
    assert all(torch.equal(ours[k], v) for k, v in state.items())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("temp_embed"), "missing key 'temp_embed'"),
        (lambda s: s.pop("x_embedder.proj.weight"), r"missing key 'x_embedder\.proj\.weight'"),
        (lambda s: s.pop("x_embedder.proj.bias"), r"missing key 'x_embedder\.proj\.bias'"),
        (
            lambda s: s.update({"text_embedding_projection.1.weight": torch.zeros(1)}),
            r"unexpected key 'text_embedding_projection\.1\.weight' \(not in the VideoDiT\)",
        ),
        (
            lambda s: s.update({"temp_embed": torch.zeros(1, 4, 32)}),
            r"key 'temp_embed' has shape \(1, 4, 32\), not \(1, 3, 32\)",
        ),
        (lambda s: s.update({"x_embedder.proj.weight": torch.zeros(32, 16)}), "has 2 axes, not 4"),
    ],
)
def test_foreign_weights_are_refused(tmp_path, change, message):
    state = latte_state(awake_latte())
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt: .*{message}"):
        load_latte_state(VideoDiT(LATTE), tmp_path / "w.pt")


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(block=BlockConfig(qk_norm=True)), r"block: Latte has no qk_norm=True"),
        (dict(block=BlockConfig(norm="rms")), r"block: Latte has no norm='rms'"),
        (dict(block=BlockConfig(mlp="swiglu")), r"block: Latte has no mlp='swiglu'"),
        (dict(positions="inflated"), r"positions: Latte has 'latte', not 'inflated'"),
        (dict(relative_bias=True), r"relative_bias: Latte has no relative_bias=True"),
        (
            dict(condition=WordCondition(5, in_context=True)),
            r"condition: Latte has one class, not WordCondition\(.*in_context=True",
        ),
        (
            dict(condition=WordCondition(5, slots=2)),
            r"condition: Latte has one class, not WordCondition\(.*slots=2",
        ),
        (
            dict(condition=CaptionCondition(768)),
            r"condition: Latte has 77 · 768 = 59136 numbers, not 768",
        ),
        (dict(time_convention="flow"), r"time_convention: Latte has no time_convention='flow'"),
        (dict(time_scale=10.0), r"time_scale: Latte has no time_scale=10\.0"),
        (dict(patch=(1, 2, 4)), r"patch: Latte has square patches of one frame, not \(1, 2, 4\)"),
        (dict(patch=(3, 2, 2)), r"patch: Latte has square patches of one frame, not \(3, 2, 2\)"),
        (dict(size=(3, 8, 4)), r"size: Latte is square, not \(8, 4\)"),
        (dict(depth=3), r"depth: Latte has pairs of blocks, not 3"),
        (
            dict(layout=Joint(), positions="sincos"),
            r"layout: Latte has 'factorized', not 'joint'",
        ),
        (dict(output=EDMOutput()), r"output: Latte has 'direct', not 'edm'"),
        (dict(output=DataOutput()), r"output: Latte has 'direct', not 'x0'"),
    ],
    ids=label,
)
def test_what_latte_does_not_have_is_not_saved_as_latte(options, message):
    model = VideoDiT(dataclasses.replace(LATTE, **options))
    with pytest.raises(ValueError, match=rf"VideoDiTConfig\.{message}"):
        latte_state(model)


def test_a_state_is_a_copy():
    model = awake_latte()
    state = latte_state(model)
    for v in state.values():
        v.zero_()
    assert all(p.any() for p in model.parameters())
