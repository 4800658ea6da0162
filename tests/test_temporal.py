"""The video DiT: what attends to what, what the options change, and that inflation changes nothing at first."""

import dataclasses
from pathlib import Path

import pytest
import torch
from test_dit import awake, close, edit

from minisora import dit as D
from minisora import temporal as V
from minisora.dit import DiT, DiTConfig
from minisora.temporal import VIDEO_PRESETS, VideoDiT, VideoDiTConfig, inflate

TINY = VideoDiTConfig(size=(4, 4, 6), patch=(2, 2, 2), width=48, depth=2, heads=2, vocab=7, slots=2)
OPTIONS = [
    dict(),
    dict(attention="factorised"),
    dict(relative_bias=True),
    dict(context=True),
    dict(precondition="edm"),
    dict(precondition="x"),
    dict(positions="none"),
    dict(positions="inflated"),
    dict(learn_sigma=True),
    dict(vocab=0),
    dict(time="ddpm"),
    dict(qk_norm=True),
    dict(norm="rms"),
    dict(mlp="swiglu"),
    dict(positions="rope"),
    dict(positions="rope", attention="factorised", context=True),
    dict(positions="latte", attention="factorised"),
    dict(positions="latte", attention="factorised", learned_time=True),
    dict(
        attention="factorised",
        relative_bias=True,
        context=True,
        precondition="edm",
        positions="inflated",
    ),
]


def batch(config=TINY, n=3, seed=2):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, config.channels, *config.size, generator=g),
        torch.rand(n, generator=g),
        torch.randint(0, max(config.vocab, 1), (n, config.slots), generator=g),
    )


def reach(model, frame, config):
    "Which latent pixels of the output feel a change in `frame`'s first pixel: bool (T, H, W)."
    x, t, y = batch(config, n=1)
    x = x.double()
    other = x.clone()
    other[:, :, frame, 0, 0] += 1
    model = model.double()
    with torch.no_grad():
        return ((model(x, t, y) - model(other, t, y)).abs() > 1e-12).any(1)[0]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_runs_learns_and_returns(options, tmp_path):
    c = dataclasses.replace(TINY, **options)
    model, inputs = awake(VideoDiT(c)), batch(c)
    out = model(*inputs)
    assert out.shape == (3, 4 * (1 + c.learn_sigma), 4, 4, 6)
    out.square().mean().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.save_pretrained(tmp_path / "m")
    again = VideoDiT.from_pretrained(tmp_path / "m")
    assert again.config == c and torch.equal(again(*inputs), model.eval()(*inputs))


def test_options_change_the_function():
    "Every option is really read: with equal weights where names agree, the output differs from the plain model's."
    plain, seen = awake(VideoDiT(TINY)), []
    for options in OPTIONS:
        c = dataclasses.replace(TINY, **options)
        model = awake(VideoDiT(c), seed=5)
        model.load_state_dict(
            {
                k: v
                for k, v in plain.state_dict().items()
                if k in model.state_dict() and v.shape == model.state_dict()[k].shape
            },
            strict=False,
        )
        seen.append(model(*batch())[:, :4])
    for i, a in enumerate(seen):
        for b in seen[:i]:
            assert not torch.allclose(a, b, atol=1e-4)


def test_joint_attention_reaches_everything():
    c = dataclasses.replace(TINY, depth=1)
    assert reach(awake(VideoDiT(c), std=0.05), 0, c).all()


def test_factorised_space_stays_in_its_frame_then_time_in_its_place():
    c = dataclasses.replace(TINY, depth=1, attention="factorised", size=(6, 4, 6))
    one = reach(awake(VideoDiT(c), std=0.05), 3, c)  # frame 3 is in the second tubelet
    assert one[2:4].all() and not one[:2].any() and not one[4:].any()
    c = dataclasses.replace(c, depth=2)
    model = awake(VideoDiT(c), std=0.05)
    for p in model.blocks[0].attn.parameters():
        p.data.zero_()  # time alone
    two = reach(model, 3, c)
    assert two[:, :2, :2].all() and not two[:, 2:].any() and not two[:, :, 2:].any()
    assert reach(awake(VideoDiT(c), std=0.05), 3, c).all()


def test_without_positions_tokens_are_a_set():
    c = dataclasses.replace(TINY, positions="none", context=True)
    model, (x, t, y) = awake(VideoDiT(c)), batch()
    roll = lambda z: torch.roll(z, (2, 2, 4), (2, 3, 4))
    with torch.no_grad():
        close(roll(model(x, t, y)), model(roll(x), t, y))
        placed = awake(VideoDiT(dataclasses.replace(c, positions="sincos")))
        assert not torch.allclose(roll(placed(x, t, y)), placed(roll(x), t, y), atol=1e-3)


def test_words_are_ordered_only_in_context():
    for context, same in ((False, True), (True, False)):
        model, (x, t, y) = awake(VideoDiT(dataclasses.replace(TINY, context=context))), batch()
        y = torch.tensor([[0, 1]] * 3)
        assert torch.allclose(model(x, t, y), model(x, t, y.flip(1)), atol=1e-5) == same
        assert (
            torch.equal(model(x, t), model(x, t, torch.full((3, 2), model.null_id)))
            and model.null_id == 7
        )


def test_words_add_up_at_unit_scale():
    model, t, y = awake(VideoDiT(TINY)), torch.tensor([0.3]), torch.tensor([[0, 5]])
    a, b = model.y_embedder(y)[0]
    close(model.condition(t, y)[0] - model.t_embedder(t), ((a + b) / 2**0.5)[None])


# ---------------------------------------------------------------- preconditioning


def test_rest_is_white_and_uncorrelated():
    "The network's target has unit variance and nothing linear in x_t left, at every t."
    g = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 5, 4, 2, 50, 50, generator=g)
    t = torch.tensor([0, 0.2, 0.5, 0.9, 1.0])
    s = t.view(-1, 1, 1, 1, 1)
    x, v = s * data + (1 - s) * noise, data - noise
    zero, one = (
        V.velocity_from_rest(x, torch.zeros_like(x), t),
        V.velocity_from_rest(x, torch.ones_like(x), t),
    )
    rest = (v - zero) / (one - zero)
    assert torch.allclose(rest.flatten(1).var(1), torch.ones(5), atol=0.05)
    assert ((rest * x).flatten(1).mean(1).abs() < 0.03).all()
    assert torch.allclose(rest[0], data[0], atol=1e-5) and torch.allclose(
        rest[4], -noise[4], atol=1e-5
    )


def test_a_fresh_preconditioned_model_is_the_best_linear_one():
    model, (x, t, y) = VideoDiT(dataclasses.replace(TINY, precondition="edm")), batch()
    s = t.view(-1, 1, 1, 1, 1)
    close(model(x, t, y), (2 * s - 1) * x / ((1 - s) ** 2 + s**2))
    assert VideoDiT(TINY)(x, t, y).abs().max() == 0


def test_predicting_the_data_gives_their_velocity():
    g = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 3, 4, 2, 5, 5, generator=g)
    t = torch.tensor([0, 0.5, 0.9])
    s = t.view(-1, 1, 1, 1, 1)
    close(V.velocity_from_data(s * data + (1 - s) * noise, data, t), data - noise)
    x, one = torch.zeros(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)
    assert V.velocity_from_data(x, one, torch.ones(1), clip=0.25).item() == 4
    model, (x, t, y) = VideoDiT(dataclasses.replace(TINY, precondition="x", t_clip=0.5)), batch()
    close(model(x, t, y), -x / (1 - t).clamp(min=0.5).view(-1, 1, 1, 1, 1))
    assert (
        VideoDiTConfig(precondition=True).precondition == "edm"
        and VideoDiTConfig(precondition=False).precondition == "none"
    )


# ---------------------------------------------------------------- relative bias


def test_heads_begin_at_their_neighbours():
    grid = (3, 4, 5)
    bias = V.RelativeBias(7, grid)()
    assert bias.shape == (7, 60, 60)
    at = lambda t, h, w: (t * 4 + h) * 5 + w
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
    layer = V.RelativeBias(2, (2, 3, 4), extra=2)
    torch.nn.init.normal_(layer.table)
    b = layer()
    assert b.shape == (2, 26, 26) and not b[:, :2].any() and not b[:, :, :2].any()
    at = lambda t, h, w: 2 + (t * 3 + h) * 4 + w
    assert torch.equal(b[:, at(0, 0, 1), at(1, 1, 3)], b[:, at(0, 1, 0), at(1, 2, 2)])
    assert not torch.equal(b[:, at(0, 0, 0), at(0, 0, 1)], b[:, at(0, 0, 1), at(0, 0, 0)])
    assert len(b[0, 2:, 2:].unique()) == 3 * 5 * 7


def test_a_short_axis_has_no_neighbours():
    assert D.neighbours((1, 4, 4)) == [(0, 0, 0), (0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0)]
    assert D.neighbours((4, 1, 1)) == [(0, 0, 0), (1, 0, 0), (-1, 0, 0)]


# ---------------------------------------------------------------- inflation


@pytest.mark.parametrize(
    "options",
    [dict(), dict(num_classes=0, learn_sigma=False, time="flow", time_scale=1.0, qk_norm=True)],
    ids=str,
)
def test_inflated_equals_the_image_model_frame_by_frame(options):
    image = awake(
        DiT(DiTConfig(size=(4, 6), width=32, depth=2, heads=2, **{"num_classes": 5, **options}))
    )
    video = inflate(image, 3)
    g = torch.Generator().manual_seed(0)
    x, t, y = (
        torch.randn(2, 4, 3, 4, 6, generator=g),
        torch.tensor([0.3, 0.9]),
        torch.tensor([1, 4]),
    )
    frames = lambda: torch.stack([image(x[:, :, i], t, y) for i in range(3)], 2)
    close(video(x, t, y), frames())
    video.blocks[1].adaLN_modulation[1].bias.data.fill_(
        0.5
    )  # open a temporal gate: frames see each other
    other = x.clone()
    other[:, :, 0] += 1
    assert not torch.allclose(video(x, t, y)[:, :, 2], video(other, t, y)[:, :, 2], atol=1e-4)


def test_inflated_knows_the_order_of_frames_once_trained():
    image = awake(DiT(DiTConfig(size=(4, 6), width=32, depth=2, heads=2, num_classes=5)))
    video, x, t = inflate(image, 3), torch.randn(1, 4, 3, 4, 6), torch.tensor([0.5])
    assert torch.allclose(video(x.flip(2), t), video(x, t).flip(2), atol=1e-5)
    video(x, t).square().mean().backward()
    assert video.time_gate.grad.any() and video.blocks[1].adaLN_modulation[1].weight.grad.any()
    video.time_gate.data.fill_(0.5)
    assert not torch.allclose(video(x.flip(2), t), video(x, t).flip(2), atol=1e-3)


def test_inflation_needs_a_null_row():
    with pytest.raises(ValueError, match="null"):
        inflate(DiT(DiTConfig(size=(4, 4), width=32, depth=1, heads=2, null_class=False)), 2)


# ---------------------------------------------------------------- presets, errors


def test_presets():
    first = dataclasses.replace(VIDEO_PRESETS["first-video"], vocab=19, slots=3)
    assert first.grid == (4, 4, 4) and (first.relative_bias, first.mlp, first.context) == (
        True,
        "swiglu",
        True,
    )
    assert (
        first
        == VideoDiT.from_pretrained(
            Path(__file__).parents[1] / "data" / "first-video" / "model"
        ).config
    ), "the model of lesson 10"
    plain = VIDEO_PRESETS["plain"]
    assert (
        VideoDiTConfig() == plain
        and plain.precondition == "none"
        and not (plain.relative_bias or plain.context)
    )
    assert sum(p.numel() for p in VideoDiT(first).parameters()) == pytest.approx(2.4e6, rel=0.02)
    for name, c in VIDEO_PRESETS.items():
        with torch.device("meta"):
            assert VideoDiT(c).config == c, name


@pytest.mark.parametrize(
    "field, value",
    [
        ("patch", (3, 2, 2)),
        ("patch", 2),
        ("attention", "axial"),
        ("positions", "axial"),
        ("norm", "batch"),
        ("mlp", "relu"),
        ("heads", 5),
        ("precondition", "karras"),
        ("t_clip", 0.0),
        ("width", 50),
        ("label_std", "x"),
        ("slots", 0),
        ("trained", (4, 4)),
        ("trained", (4, 3, 6)),
        ("trained", (0, 4, 6)),
        ("trained", (4.0, 4, 6)),
        ("images", -1),
        ("route", 1.0),
        ("route", -0.1),
        ("route_blocks", (2,)),
        ("checkpoint", 1),
    ],
)
def test_bad_config(field, value):
    with pytest.raises(ValueError, match=rf"VideoDiTConfig\.{field}"):
        dataclasses.replace(TINY, **{field: value})


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
        call(VideoDiT(TINY), *batch())


def test_loading_is_strict(tmp_path):
    awake(VideoDiT(TINY)).save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="no field"):
        DiT.from_pretrained(tmp_path / "m")
    edit(tmp_path / "m", lambda s: s.pop("final_layer.linear.bias"))
    with pytest.raises(ValueError, match=r"final_layer\.linear\.bias is missing"):
        VideoDiT.from_pretrained(tmp_path / "m")


def test_weights_come_from_the_seed_alone():
    before = torch.get_rng_state()
    a, b, c = [
        VideoDiT(dataclasses.replace(TINY, context=True), seed=s).state_dict() for s in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(
        a["slot_embed"], c["slot_embed"]
    )
