"""The video DiT: what attends to what, and that each choice of its config is really read."""

import dataclasses

import pytest
import torch
from conftest import ROOT
from helpers.models import (
    FRAMES,
    IN_CONTEXT,
    VIDEO,
    awake,
    close,
    label,
    video,
    video_batch,
    without_gradient,
)

from minisora.models.conditions import Unconditional, WordCondition
from minisora.models.layers import BlockConfig
from minisora.models.layouts import Factorized, Joint
from minisora.models.positions import (
    InflatedPositions,
    LattePositions,
    Positions,
    RopePositions,
    SinCosPositions,
)
from minisora.models.preconditioning import DataOutput, DirectOutput, EDMOutput
from minisora.temporal import VIDEO_PRESETS, VideoDiT, VideoDiTConfig

OPTIONS = [
    dict(),
    dict(layout=Factorized()),
    dict(relative_bias=True),
    dict(condition=IN_CONTEXT),
    dict(output=EDMOutput()),
    dict(output=DataOutput()),
    dict(positions=Positions()),
    dict(positions=InflatedPositions()),
    dict(output=DirectOutput(learn_sigma=True)),
    dict(condition=Unconditional()),
    dict(time_convention="ddpm"),
    dict(block=BlockConfig(qk_norm=True)),
    dict(block=BlockConfig(norm="rms")),
    dict(block=BlockConfig(mlp="swiglu")),
    dict(positions=RopePositions()),
    dict(positions=RopePositions(), layout=Factorized(), condition=IN_CONTEXT),
    dict(positions=LattePositions(), layout=Factorized()),
    dict(positions=LattePositions(learned_time=True), layout=Factorized()),
    dict(
        layout=Factorized(),
        relative_bias=True,
        condition=IN_CONTEXT,
        output=EDMOutput(),
        positions=InflatedPositions(),
    ),
]


@pytest.mark.parametrize("options", OPTIONS, ids=label)
def test_every_option_runs_learns_and_returns(options, tmp_path):
    model = video(**options)
    c = model.config
    inputs = video_batch(c)
    out = model(*inputs)
    assert out.shape == (3, c.output.channels(4), 4, 4, 6)
    out.square().mean().backward()
    assert without_gradient(model) == []
    model.save_pretrained(tmp_path / "m")
    again = VideoDiT.from_pretrained(tmp_path / "m")
    assert again.config == c and torch.equal(again(*inputs), model.eval()(*inputs))


def test_options_change_the_function():
    """Every option is really read: with equal weights where names agree, the output differs from
    the plain model's."""
    plain = video().state_dict()
    seen = []
    for options in OPTIONS:
        model = awake(VideoDiT(dataclasses.replace(VIDEO, **options)), seed=5)
        own = model.state_dict()
        state = {k: v for k, v in plain.items() if k in own and v.shape == own[k].shape}
        model.load_state_dict(state, strict=False)
        seen.append(model(*video_batch())[:, :4])
    for i, a in enumerate(seen):
        for b in seen[:i]:
            assert not torch.allclose(a, b, atol=1e-4)


# ---------------------------------------------------------------- what attends to what


def reach(model, frame):
    "Which latent pixels of the output feel a change in `frame`'s first pixel: bool (T, H, W)."
    x, t, y = video_batch(model.config, n=1)
    x = x.double()
    other = x.clone()
    other[:, :, frame, 0, 0] += 1
    model = model.double()
    with torch.no_grad():
        return ((model(x, t, y) - model(other, t, y)).abs() > 1e-12).any(1)[0]


def quiet(**changes):
    return awake(VideoDiT(dataclasses.replace(VIDEO, **changes)), std=0.05)


def test_joint_attention_reaches_everything():
    assert reach(quiet(depth=1), 0).all()


def test_factorized_space_stays_in_its_frame_then_time_in_its_place():
    options = dict(layout=Factorized(), size=(6, 4, 6))
    one = reach(quiet(depth=1, **options), 3)  # frame 3 is in the second tubelet
    assert one[2:4].all() and not one[:2].any() and not one[4:].any()
    model = quiet(depth=2, **options)
    for p in model.blocks[0].attn.parameters():
        p.data.zero_()  # time alone
    two = reach(model, 3)
    assert two[:, :2, :2].all() and not two[:, 2:].any() and not two[:, :, 2:].any()
    assert reach(quiet(depth=2, **options), 3).all()


def test_without_positions_tokens_are_a_set():
    model = video(positions=Positions(), condition=IN_CONTEXT)
    x, t, y = video_batch()

    def roll(z):
        return torch.roll(z, (2, 2, 4), (2, 3, 4))

    with torch.no_grad():
        close(roll(model(x, t, y)), model(roll(x), t, y))
        placed = video(positions=SinCosPositions(), condition=IN_CONTEXT)
        assert not torch.allclose(roll(placed(x, t, y)), placed(roll(x), t, y), atol=1e-3)


def test_conditions_stand_in_front_of_all_tokens_or_of_each_frames():
    tokens = torch.randn(3, 2, 48)
    h = torch.randn(3, 24, 48)
    joint = Joint().arrange(h, tokens, (4, 2, 3))
    assert torch.equal(joint, torch.cat([tokens, h], 1)) and Joint().arrange(h, None, None) is h
    frames = Factorized().arrange(h, tokens, (4, 2, 3))
    assert frames.shape == (3, 4, 8, 48)
    assert all(torch.equal(frames[:, i, :2], tokens) for i in range(4))
    assert torch.equal(frames[:, :, 2:].reshape(h.shape), h)
    assert torch.equal(Factorized().arrange(h, None, (4, 2, 3)), frames[:, :, 2:])


def test_biases_know_what_a_block_sees():
    joint = video(FRAMES, relative_bias=True, condition=IN_CONTEXT)
    assert joint.block_bias(1).shape == (2, 26, 26)
    factorized = video(FRAMES, relative_bias=True, condition=IN_CONTEXT, layout=Factorized())
    shapes = [tuple(factorized.block_bias(i).shape) for i in range(4)]
    assert shapes == [(2, 8, 8), (2, 4, 4)] * 2
    assert video().block_bias(0) is None
    grids = [Factorized().bias_grid(i, (4, 2, 3)) for i in range(2)]
    assert grids == [(1, 2, 3), (4, 1, 1)] and Joint().bias_grid(1, (4, 2, 3)) == (4, 2, 3)


# ---------------------------------------------------------------- presets, errors


def test_presets():
    first = VIDEO_PRESETS["first-video"]
    assert first.condition == WordCondition(vocab=19, slots=3, in_context=True, init_std=0.5)
    assert first.grid == (4, 4, 4) and first.relative_bias and first.block.mlp == "swiglu"
    shipped = VideoDiT.from_pretrained(ROOT / "data" / "first-video" / "model")
    assert first == shipped.config, "the model of lesson 10"
    plain = VIDEO_PRESETS["plain"]
    assert VideoDiTConfig() == plain and plain.output == DirectOutput()
    assert not plain.relative_bias and plain.condition == Unconditional()
    assert sum(p.numel() for p in VideoDiT(first).parameters()) == pytest.approx(2.4e6, rel=0.02)
    for name, c in VIDEO_PRESETS.items():
        with torch.device("meta"):
            assert VideoDiT(c).config == c, name


@pytest.mark.parametrize(
    "field, value",
    [
        ("patch", (3, 2, 2)),
        ("patch", 2),
        ("layout", "axial"),
        ("positions", "axial"),
        ("condition", "sound"),
        ("output", "karras"),
        ("time_convention", "sit"),
        ("time_scale", "1000"),
        ("size", (4, 4)),
        ("channels", 0),
        ("depth", True),
        ("heads", 5),
        ("width", 50),
        ("relative_bias", 1),
        ("variable_size", 1),
        ("block", "rms"),
    ],
)
def test_bad_config(field, value):
    with pytest.raises(ValueError, match=rf"^VideoDiTConfig\.{field}"):
        dataclasses.replace(VIDEO, **{field: value})


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda m, x, t, y: m(x[:, :, :2], t, y),
            r"x must be \(B, 4, 4, 4, 6\), not \(3, 4, 2, 4, 6\)",
        ),
        (lambda m, x, t, y: m(x, t, y[:, :1]), r"y must be \(3, 2\), not \(3, 1\)"),
        (lambda m, x, t, y: m(x, t, y + 9), "condition id .* is not in 0 … 7"),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call(VideoDiT(VIDEO), *video_batch())


def test_weights_come_from_the_seed_alone():
    before = torch.get_rng_state()
    config = dataclasses.replace(VIDEO, condition=IN_CONTEXT)
    a, b, c = [VideoDiT(config, seed=s).state_dict() for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["slot_embed"], c["slot_embed"])


def test_the_shipped_model_answers_as_ever():
    "data/first-video: numbers of the day it was shipped."
    model = VideoDiT.from_pretrained(ROOT / "data" / "first-video" / "model")
    x = torch.randn(2, 8, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(x, torch.tensor([0.2, 0.7]), torch.tensor([[0, 5, 9], [1, 2, 3]])).double()
    assert out.sum().item() == pytest.approx(-613.1236354839057, rel=1e-5)
    assert out.square().sum().item() == pytest.approx(7249.051873462418, rel=1e-6)
