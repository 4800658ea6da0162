"""What StableCascade's stages cost: weights are as published, operations as counted by hand."""

import json

import pytest
import torch
from conftest import benchmark

from minisora.cascade import CascadeUNet, CascadeUNetConfig
from minisora.models.prompts import NoPrompt


@pytest.fixture(scope="module")
def script():
    return benchmark("cascade_cost")


@pytest.fixture(scope="module")
def record(root):
    return json.loads((root / "benchmarks" / "cascade_cost.json").read_text())


# diffusers' names of what the published checkpoints are
C_STAGE = dict(
    in_channels=16,
    out_channels=16,
    patch_size=1,
    down_blocks_repeat_mappers=(1, 1),
    up_blocks_repeat_mappers=(1, 1),
    block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),)
    * 2,
    clip_text_in_channels=1280,
    clip_text_pooled_in_channels=1280,
    clip_image_in_channels=768,
    switch_level=(False,),
    timestep_conditioning_type=("sca", "crp"),
)
B_STAGE = dict(
    in_channels=4,
    out_channels=4,
    patch_size=2,
    conditioning_dim=1280,
    down_blocks_repeat_mappers=(1, 1, 1, 1),
    clip_text_pooled_in_channels=1280,
    effnet_in_channels=16,
    pixel_mapper_in_channels=3,
    dropout=(0.1,) * 4,
    self_attn=True,
    timestep_conditioning_type=("sca",),
)


def levels(*with_attention):
    block = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    return tuple(block if found else block[:2] for found in with_attention)


PUBLISHED = {
    "c-full": C_STAGE
    | dict(
        conditioning_dim=2048,
        block_out_channels=(2048, 2048),
        num_attention_heads=(32, 32),
        down_num_layers_per_block=(8, 24),
        up_num_layers_per_block=(24, 8),
    ),
    "c-lite": C_STAGE
    | dict(
        conditioning_dim=1536,
        block_out_channels=(1536, 1536),
        num_attention_heads=(24, 24),
        down_num_layers_per_block=(4, 12),
        up_num_layers_per_block=(12, 4),
    ),
    "b-full": B_STAGE
    | dict(
        block_out_channels=(320, 640, 1280, 1280),
        num_attention_heads=(-1, -1, 20, 20),
        block_types_per_layer=levels(0, 0, 1, 1),
        down_num_layers_per_block=(2, 6, 28, 6),
        up_num_layers_per_block=(6, 28, 6, 2),
        up_blocks_repeat_mappers=(3, 3, 2, 2),
    ),
    "b-lite": B_STAGE
    | dict(
        block_out_channels=(320, 576, 1152, 1152),
        num_attention_heads=(-1, 9, 18, 18),
        block_types_per_layer=levels(0, 0, 1, 1),
        down_num_layers_per_block=(2, 4, 14, 4),
        up_num_layers_per_block=(4, 14, 4, 2),
        up_blocks_repeat_mappers=(2, 2, 2, 2),
    ),
}
SAID = {"c-full": 3.6e9, "c-lite": 1e9, "b-full": 1.5e9, "b-lite": 0.7e9}  # of its model card


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_those_of_the_published_models(script, name):
    unets = pytest.importorskip("diffusers.models.unets.unet_stable_cascade")
    with torch.device("meta"):
        theirs = unets.StableCascadeUNet(**PUBLISHED[name])
    found = script.weights(name)
    pictures = found["all"] - found["temporal"]
    assert pictures == sum(p.numel() for p in theirs.parameters())
    assert pictures == pytest.approx(SAID[name], rel=0.05)
    assert 0.5 * pictures < found["temporal"] < 1.2 * pictures


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_layers_along_time_are_as_counted_by_hand(script, name):
    config = script.CASCADE_PRESETS[name]
    numbers = config.time_numbers * (1 + len(config.time_extra))

    def layer(w):
        steering = 4 * (numbers * w + w)
        wide = 3 * w // 2
        convolution = 2 * w + 27 * w + w + (w * wide + wide) + (wide * w + w)
        attention = 2 * w + 4 * (w * w + w) + config.condition_width * w + w
        return steering + convolution + attention

    counts = zip(config.widths, config.down, reversed(config.up))
    by_hand = sum((down + up) * layer(w) for w, down, up in counts)
    assert script.weights(name)["temporal"] == by_hand


def small(temporal="all", frames=4):
    return CascadeUNetConfig(
        size=(frames, 4, 6),
        channels=4,
        widths=(16,),
        heads=(0,),
        down=(1,),
        up=(1,),
        down_repeats=(1,),
        up_repeats=(1,),
        resize=(),
        condition_width=8,
        prompt=NoPrompt(),
        temporal=temporal,
    )


def trace(script, monkeypatch, config, **options):
    monkeypatch.setattr(script, "told", lambda *rest: (None, {}))
    return script.traced(config, 1, None, **options)


def test_operations_are_as_counted_by_hand(script, monkeypatch):
    found = trace(script, monkeypatch, small(temporal="none"))
    w, places = 16, 4 * 4 * 6
    layer = 9 * w + 8 * w * w
    ends = 2 * 4 * w
    time = 2 * (64 * 2 * w) * 4  # the time, once for each frame and layer
    by_hand = 2 * (places * (2 * layer + ends)) + 2 * time
    assert sum(op.flops for op in found.ops) == by_hand


def test_learning_costs_three_times_an_answer(script, monkeypatch):
    config = small()
    forward = sum(op.flops for op in trace(script, monkeypatch, config).ops)
    learning = sum(op.flops for op in trace(script, monkeypatch, config, learn="all").ops)
    assert 2.8 * forward < learning <= 3 * forward


def test_a_frozen_picture_model_holds_less_and_costs_less(script, monkeypatch):
    config = small()
    every = trace(script, monkeypatch, config, learn="all")
    some = trace(script, monkeypatch, config, learn="temporal")
    answer = trace(script, monkeypatch, config)
    model = CascadeUNet(config)
    total = sum(p.numel() for p in model.parameters())
    temporal = sum(p.numel() for p in model.temporal_parameters())
    assert every.bytes == 16 * total and answer.bytes == 2 * total
    assert some.bytes == 16 * temporal + 2 * (total - temporal)
    assert every.learn == total and some.learn == temporal and not answer.learn
    assert len(some.grads) < len(every.grads)
    assert sum(op.flops for op in some.ops) < sum(op.flops for op in every.ops)


def test_layers_that_are_made_again_keep_less(script, monkeypatch):
    plain, again = [
        trace(script, monkeypatch, small(), learn="all", checkpointed=value)
        for value in (False, True)
    ]
    assert sum(o.flops for o in again.ops) > 1.2 * sum(o.flops for o in plain.ops)


def test_the_record_is_whole(script, record):
    assert list(record["calls"]) == list(script.cases())
    assert record["weights"] == {name: script.weights(name) for name in script.NAMES}
    assert [(r["kind"], r["frames"]) for r in record["sampling"]] == [
        (kind, n) for kind in ("lite", "full") for n in script.FRAMES
    ]
    for row in record["sampling"]:
        assert script.sampling_row(row["kind"], row["frames"], record["calls"]) == row
        for card in script.CARDS:
            assert 0 < row[card]["total_fused"] <= row[card]["total"]
    assert len(record["training"]) == 12
    for row in record["training"]:
        assert script.training_row(row["name"], record["calls"][row["name"]]) == row


def test_the_film_has_a_pipeline_whose_parts_belong_together():
    pipe = benchmark("cascade_film").untrained(frames=2)
    assert pipe.clip_shape == (3, 2, 128, 128)
