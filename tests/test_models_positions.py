"""Where the tokens are: waves, turns and biases, and the positions that a config is made of."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.models import FRAMES, IN_CONTEXT, VIDEO, awake, close, video, video_batch
from torch import nn

from minisora.dit import Attention, DiT, DiTConfig
from minisora.models.layouts import Factorized, Joint
from minisora.models.positions import (
    InflatedPositions,
    LattePositions,
    LearnedPositions,
    Positions,
    RelativePositionBias,
    RopePositions,
    SinCosPositions,
    apply_rope,
    neighbor_offsets,
    rope_axis_dims,
    rope_cos_sin,
    rope_cos_sin_3d,
    sincos_1d,
    sincos_2d,
    token_coordinates,
)
from minisora.models.windows import Windows
from minisora.temporal import VideoDiT, VideoDiTConfig

BOTH = [Joint(), Factorized()]


def kind(part):
    return part.kind


def by_offset(values, coordinates):
    "A square of values (N, N) -> {offset between two tokens: what stands there}."
    seen = {}
    n = len(coordinates)
    for i in range(n):
        for j in range(n):
            offset = tuple((coordinates[j] - coordinates[i]).tolist())
            seen.setdefault(offset, []).append(values[i, j].item())
    return seen


# ---------------------------------------------------------------- waves


def test_positions_are_w_first():
    got = sincos_2d(16, (2, 3))
    w = 1 / 10000 ** (np.arange(4) / 4)
    for row in range(2):
        for column in range(3):
            want = np.concatenate(
                [np.sin(column * w), np.cos(column * w), np.sin(row * w), np.cos(row * w)]
            )
            np.testing.assert_allclose(got[row * 3 + column], want, atol=1e-6)


def test_tokens_are_in_the_middles_of_stretched_cells():
    whole = torch.tensor([[i, j] for i in range(2) for j in range(3)], dtype=torch.float64)
    assert torch.equal(token_coordinates((2, 3)), whole)
    assert token_coordinates((2, 3, 2)).tolist()[-1] == [1, 2, 1]
    assert token_coordinates((2, 3, 2)).tolist()[1] == [0, 0, 1]
    assert token_coordinates((2, 1), (4, 1))[:, 0].tolist() == [0.5, 2.5]
    finer = token_coordinates((8, 1), (4, 1))[:, 0].tolist()
    assert finer == [-0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25]
    # a picture of coordinates, resized as pictures are, has the same numbers away from its border
    ramp = torch.arange(8.0).view(1, 1, 8)
    for mode in ("linear", "nearest-exact"):
        for n in (16, 12, 4):
            got = F.interpolate(ramp, n, mode=mode).flatten().double()
            want = token_coordinates((n, 1), (8, 1))[:, 0]
            inside = (want > 0) & (want < 7)
            assert (got - want)[inside].abs().max() <= (1e-6 if mode == "linear" else 0.5)


# ---------------------------------------------------------------- turns


@pytest.mark.parametrize(
    "grid, width", [((6, 8), 16), ((3, 6, 8), 24), ((3, 6, 8), 16), ((3, 6, 8), 72), ((16,), 8)]
)
def test_rotary_sees_offsets_only(grid, width):
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, width, generator=g)
    where = token_coordinates(grid).view(-1, len(grid))
    n = len(where)
    rope = rope_cos_sin(where, width)
    assert rope[0].shape == rope[1].shape == (n, width // 2)
    logits = apply_rope(q.expand(n, -1), rope) @ apply_rope(k.expand(n, -1), rope).T
    seen = by_offset(logits, where)
    assert max(max(v) - min(v) for v in seen.values()) < 1e-4
    means = sorted(sum(v) / len(v) for v in seen.values())
    # every axis turns something
    assert min(b - a for a, b in zip(means, means[1:])) > 0, "two offsets look alike"
    x = torch.randn(n, width, generator=g)
    torch.testing.assert_close(apply_rope(x, rope).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(apply_rope(x, rope)[0], x[0])  # the first token is not turned


def test_rotary_by_hand():
    # two pairs for the row, two for the column: 1 and 1/10
    cos, sin = rope_cos_sin(torch.tensor([[2.0, 3.0]]), 8)
    angles = torch.tensor([[2.0, 0.2, 3.0, 0.3]])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())
    x = torch.zeros(1, 8)
    x[0, 2] = 1  # the first half of pair 2: the column's fast one
    want = torch.zeros(1, 8)
    want[0, 2] = angles[0, 2].cos()
    want[0, 6] = angles[0, 2].sin()
    torch.testing.assert_close(apply_rope(x, (cos, sin)), want)
    axes = torch.eye(3)
    counts = [rope_cos_sin(axes[i : i + 1], 16)[1].ne(0).sum().item() for i in range(3)]
    assert counts == [4, 2, 2]  # what is left over goes to the first axis
    for width in (2, 7):
        with pytest.raises(ValueError, match=f"rope_cos_sin: {width} channels"):
            rope_cos_sin(torch.zeros(1, 2), width)


def test_rope_in_the_model_sees_offsets():
    "With rope alone, content that moves is answered in the same way, but for the border."
    layer = awake(Attention(32, 2))
    x = torch.randn(1, 16, 32)
    where = token_coordinates((4, 4))
    rope = rope_cos_sin(where, 16)
    moved = rope_cos_sin(where + torch.tensor([3.0, 5.0]), 16)
    close(layer(x, rope=moved), layer(x, rope=rope), rel=1e-4)
    assert not torch.allclose(layer(x, rope=rope), layer(x), atol=1e-3)
    v = layer.qkv(x)[..., 64:]  # values are not turned: equal keys give their mean
    with torch.no_grad():
        layer.qkv.weight[:64] = 0
        layer.qkv.bias[:64] = 0
    close(layer(x, rope=rope)[0, 3], layer.proj(v.mean(1))[0])


@pytest.mark.parametrize(
    "width, split",
    [(64, (16, 24, 24)), (128, (32, 48, 48)), (72, (20, 26, 26)), (24, (8, 8, 8)), (8, (4, 2, 2))],
)
def test_split_of_the_head(width, split):
    "16, 24, 24 of 64 channels: CogVideoX's."
    assert rope_axis_dims(width) == split
    cos, sin = rope_cos_sin_3d(torch.zeros(5, 3), width)
    assert cos.shape == sin.shape == (5, width // 2)
    assert torch.equal(cos, torch.ones(5, width // 2)) and not sin.any()


def test_each_axis_turns_its_own_channels():
    for axis, share in enumerate((range(8), range(8, 20), range(20, 32))):
        where = torch.zeros(1, 3)
        where[0, axis] = 1.0
        cos, sin = rope_cos_sin_3d(where, 64)
        assert sin[0].nonzero().flatten().tolist() == list(share)
        assert sin[0, share[0]].item() == pytest.approx(torch.tensor(1.0).sin().item())


def test_logits_depend_on_offsets_alone():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 64, generator=g).double()

    def turned(x, where):
        rope = rope_cos_sin_3d(torch.tensor([where], dtype=torch.float64), 64)
        return apply_rope(x, [r.double() for r in rope])

    def logit(a, b):
        return (turned(q, a) * turned(k, b)).sum().item()

    one = logit((0.0, 1, 2), (3.0, 5, 4))
    assert one == pytest.approx(logit((7.0, 2, 9), (10.0, 6, 11)), abs=1e-5)
    assert abs(one - logit((3.0, 5, 4), (0.0, 1, 2))) > 1e-3


@pytest.mark.parametrize("layout", BOTH, ids=kind)
def test_rope_sees_offsets_and_words_do_not_turn(layout):
    options = dict(positions=RopePositions(), layout=layout)
    model = video(FRAMES, **options, condition=IN_CONTEXT)
    c = model.config
    x, t, y = video_batch(c)
    tensors = c.positions.tensors(c)
    tokens = 24 if layout.joins_time else 6
    assert tensors["rope"].shape == (2, 2 + tokens, 12)
    still = torch.tensor([1.0, 0]).view(2, 1, 1).expand(2, 2, 12)
    assert torch.equal(tensors["rope"][:, :2], still)
    without = video(FRAMES, **options)
    want = without(x, t, y)
    if layout.joins_time:
        moved = token_coordinates(c.grid) + torch.tensor([2.0, 5, 3])
        without.rope = torch.stack(rope_cos_sin_3d(moved, 24))
    else:
        moved = torch.arange(4.0)[:, None] + 9
        without.time_rope = torch.stack(rope_cos_sin(moved, 24))
    close(without(x, t, y), want, rel=1e-4)  # the whole grid shifted: the same function
    # but not blind to order
    assert not torch.allclose(model(x.flip(2), t, y).flip(2), model(x, t, y), atol=1e-3)
    assert not torch.allclose(model(x.flip(4), t, y).flip(4), model(x, t, y), atol=1e-3)


# ---------------------------------------------------------------- biases


def test_relative_bias_is_one_number_for_each_head_and_offset():
    bias = RelativePositionBias(3, (1, 3, 4))
    nn.init.normal_(bias.table)
    out = bias()
    assert out.shape == (3, 12, 12)
    seen = by_offset(out[1], token_coordinates((1, 3, 4)))
    assert all(len({*v}) == 1 for v in seen.values())
    assert len({v[0] for v in seen.values()}) == len(seen) == 5 * 7


def test_relative_bias_starts_at_a_neighbor():
    out = RelativePositionBias(5, (1, 4, 4))().view(5, 4, 4, 4, 4)
    best = [divmod(h[1, 1].argmax().item(), 4) for h in out]
    assert best == [(1, 1), (1, 2), (1, 0), (2, 1), (0, 1)]
    assert out.max() == 0 and out.min() == -16
    assert out[0, 1, 1, 1, 2] == -1 and out[0, 0, 0, 1, 1] == -2
    padded = RelativePositionBias(2, (1, 2, 2), prefix=3)()
    assert padded.shape == (2, 7, 7)
    assert not padded[:, :3].any() and not padded[:, :, :3].any()
    image = DiT(DiTConfig(size=(8, 8), width=32, depth=2, heads=2, relative_bias=True))
    assert [b.table.shape for b in image.bias] == [(2, 49)] * 2


def test_heads_begin_at_their_neighbors_in_time_too():
    bias = RelativePositionBias(7, (3, 4, 5))()
    assert bias.shape == (7, 60, 60)

    def at(t, h, w):
        return (t * 4 + h) * 5 + w

    best = [bias[h, at(1, 1, 1)].argmax().item() for h in range(7)]
    assert best == [
        at(1, 1, 1),
        at(1, 1, 2),
        at(1, 1, 0),
        at(1, 2, 1),
        at(1, 0, 1),
        at(2, 1, 1),
        at(0, 1, 1),
    ]
    assert bias.max() == 0 and bias.min() == -16


def test_bias_depends_on_the_offset_alone():
    layer = RelativePositionBias(2, (2, 3, 4), prefix=2)
    nn.init.normal_(layer.table)
    b = layer()
    assert b.shape == (2, 26, 26) and not b[:, :2].any() and not b[:, :, :2].any()

    def at(t, h, w):
        return 2 + (t * 3 + h) * 4 + w

    assert torch.equal(b[:, at(0, 0, 1), at(1, 1, 3)], b[:, at(0, 1, 0), at(1, 2, 2)])
    assert not torch.equal(b[:, at(0, 0, 0), at(0, 0, 1)], b[:, at(0, 0, 1), at(0, 0, 0)])
    assert len(b[0, 2:, 2:].unique()) == 3 * 5 * 7


def test_a_short_axis_has_no_neighbors():
    plane = [(0, 0, 0), (0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0)]
    assert neighbor_offsets((1, 4, 4)) == plane
    assert neighbor_offsets((4, 1, 1)) == [(0, 0, 0), (1, 0, 0), (-1, 0, 0)]


# ---------------------------------------------------------------- the parts of a config

KINDS = [
    (Positions(), Joint(), {}),
    (SinCosPositions(), Joint(), {"pos_embed": (1, 24, 48)}),
    (RopePositions(), Joint(), {"rope": (2, 24, 12)}),
    (RopePositions(), Factorized(), {"rope": (2, 6, 12), "time_rope": (2, 4, 12)}),
    (InflatedPositions(), Factorized(), {"pos_embed": (1, 24, 48), "time_embed": (1, 24, 48)}),
    (LattePositions(), Factorized(), {"pos_embed": (1, 6, 48), "temp_embed": (1, 4, 48)}),
]


@pytest.mark.parametrize("positions, layout, shapes", KINDS, ids=lambda p: getattr(p, "kind", ""))
def test_what_each_kind_keeps(positions, layout, shapes):
    model = VideoDiT(dataclasses.replace(FRAMES, positions=positions, layout=layout))
    buffers = dict(model.named_buffers())
    assert {k: tuple(v.shape) for k, v in buffers.items()} == shapes
    tensors = positions.tensors(model.config)
    assert all(torch.equal(buffers[k], v) for k, v in tensors.items()) and set(tensors) == set(
        shapes
    )
    saved = {k for k in model.state_dict() if k in shapes}  # only Latte's are in its files
    assert saved == (set(shapes) if positions.kind == "latte" else set())


def test_inflated_time_is_behind_a_closed_gate():
    model = video(FRAMES, positions=InflatedPositions(), layout=Factorized())
    h = torch.zeros(1, 24, 48)
    model.time_gate.data.zero_()
    frame = model.config.positions.add(model, h, model.grid)
    assert torch.equal(frame, model.pos_embed)
    model.time_gate.data.fill_(0.5)
    opened = model.config.positions.add(model, h, model.grid)
    torch.testing.assert_close(opened - frame, 0.5 * model.time_embed)
    fresh = VideoDiT(model.config)
    assert not fresh.time_gate.any() and fresh.time_gate.requires_grad


@pytest.mark.parametrize("learned", [False, True])
def test_latte_adds_time_before_the_first_temporal_block(learned):
    positions = LattePositions(learned_time=learned)
    model = video(FRAMES, positions=positions, layout=Factorized())
    frames = torch.zeros(2, 4, 6, 48)
    got = positions.add_time(model, 1, frames)
    assert torch.equal(got[1, :, 3], model.temp_embed[0])
    assert positions.add_time(model, 3, frames) is frames
    short = positions.add_time(model, 1, frames[:, :2])
    assert torch.equal(short[0, :, 0], model.temp_embed[0, :2])
    trained = {k for k, _ in model.named_parameters()}
    assert ("temp_embed" in trained) == learned


LEARNED = dict(positions=LearnedPositions())


@pytest.mark.parametrize("layout", [Joint(), Factorized(), Windows()], ids=kind)
def test_learned_positions_are_a_row_of_each_table(layout):
    "All inputs alike: what differs between tokens is their place and their moment, added."
    model = video(FRAMES, layout=layout, **LEARNED)
    h = torch.randn(1, 1, 48).expand(2, 24, 48)
    got = model.config.positions.add(model, h, model.grid) - h
    for t, y, x in [(0, 0, 0), (3, 1, 2), (2, 0, 1)]:
        want = model.temp_embed[0, t] + model.pos_embed[0, 3 * y + x]
        torch.testing.assert_close(got[1, (t * 2 + y) * 3 + x], want)
    model(*video_batch(FRAMES)).square().sum().backward()
    for table in (model.pos_embed, model.temp_embed):
        assert (table.grad.abs().sum(-1) > 0).all()


def test_learned_positions_start_small_and_of_the_seed():
    config = dataclasses.replace(FRAMES, **LEARNED)
    model, again, other = VideoDiT(config), VideoDiT(config), VideoDiT(config, seed=1)
    for name in ("pos_embed", "temp_embed"):
        table = getattr(model, name)
        assert table.requires_grad and 0.01 < table.std() < 0.03
        assert torch.equal(table, getattr(again, name))
        assert not torch.equal(table, getattr(other, name))
    plain = VideoDiT(FRAMES)  # the tables are drawn last: the other weights are as without
    own = dict(model.named_parameters())
    assert all(torch.equal(own[k], p) for k, p in plain.named_parameters())


def test_images_have_the_learned_moment_of_frame_0():
    layout = Windows(((1, 0, 0), (0, 2, 2)), num_joint_images=2)
    model = video(FRAMES, layout=layout, **LEARNED)
    add = model.config.positions.add
    both = add(model, torch.zeros(2, 36, 48), model.grid)
    clip = add(model, torch.zeros(2, 24, 48), model.grid)
    assert torch.equal(both[:, :24], clip)
    assert torch.equal(both[:, 24:30], clip[:, :6]) and torch.equal(both[:, 30:], clip[:, :6])
    assert torch.equal(add(model, torch.zeros(2, 6, 48), (1, 2, 3)), clip[:, :6])


def test_a_smaller_clip_has_the_first_learned_places():
    model = video(FRAMES, variable_size=True, **LEARNED)
    whole = model.config.positions.add(model, torch.zeros(1, 24, 48), model.grid).view(4, 2, 3, 48)
    part = model.config.positions.add(model, torch.zeros(1, 6, 48), (3, 1, 2))
    assert torch.equal(part.view(3, 1, 2, 48), whole[:3, :1, :2])


def test_learned_positions_are_saved_with_the_model(tmp_path):
    model = video(FRAMES, positions=LearnedPositions((2, 4, 6)), layout=Windows())
    config = model.config
    values = json.loads(json.dumps(config.to_dict()))
    assert VideoDiTConfig(**VideoDiTConfig.upgrade(values)) == config
    assert dataclasses.replace(config, positions=dict(kind="learned")).positions.kind == "learned"
    model.save_pretrained(tmp_path / "m")
    again = VideoDiT.from_pretrained(tmp_path / "m")
    assert again.config == config and again.config.positions.base_size == (2, 4, 6)
    assert torch.equal(again.pos_embed, model.pos_embed)
    assert torch.equal(again.temp_embed, model.temp_embed)
    assert torch.equal(again(*video_batch(FRAMES)), model.eval()(*video_batch(FRAMES)))


def test_positions_are_spread_over_another_size():
    finer = RopePositions(base_size=[2, 4, 6])  # a list, as from JSON
    assert finer.base_size == (2, 4, 6)
    c = dataclasses.replace(FRAMES, positions=finer)
    assert finer.base_grid(c) == (2, 2, 3) and SinCosPositions().base_grid(c) == (4, 2, 3)
    where = token_coordinates((4, 2, 3), (2, 2, 3))
    assert torch.equal(finer.tensors(c)["rope"], torch.stack(rope_cos_sin_3d(where, 24)))
    waves = SinCosPositions((2, 4, 6)).tensors(c)["pos_embed"][0]
    assert torch.equal(waves[0, :16].double(), sincos_1d(16, where[:1, 0])[0].float().double())


@pytest.mark.parametrize(
    "base_size", [(4, 4), (4, 3, 6), (0, 4, 6), (4.0, 4, 6), (3, 4, 6)], ids=str
)
def test_a_bad_base_size_is_named(base_size):
    with pytest.raises(ValueError, match=r"VideoDiTConfig\.positions: base_size=.* whole patches"):
        dataclasses.replace(VIDEO, positions=SinCosPositions(base_size))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: VideoDiTConfig(width=12, heads=2, positions="rope"),
            r"VideoDiTConfig\.positions: 'rope' needs heads of an even width from 8, not 6",
        ),
        (
            lambda: VideoDiTConfig(width=36, heads=4, positions="rope"),
            r"VideoDiTConfig\.positions: 'rope' needs heads of an even width from 8, not 9",
        ),
        (
            lambda: VideoDiTConfig(positions="latte"),
            r"VideoDiTConfig\.positions: 'latte' needs blocks in time, layout='factorized'",
        ),
        (
            lambda: VideoDiTConfig(positions="axial"),
            r"VideoDiTConfig\.positions must be one of .*'sincos'.* not 'axial'",
        ),
        (
            lambda: LattePositions(learned_time=1),
            r"LattePositions\.learned_time must be bool, not 1",
        ),
    ],
)
def test_bad_positions(make, message):
    with pytest.raises(ValueError, match=message):
        make()
