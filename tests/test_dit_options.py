"""Options of the DiT that are not in its paper, and latents of another size: each does what it
says, and nothing else."""

import dataclasses
import inspect

import pytest
import torch
from helpers.models import TINY, awake, batch, close, label, without_gradient
from torch import nn

from minisora import dit as D
from minisora.dit import DiT, DiTConfig
from minisora.models.layouts import Checkpointed, wrap
from minisora.models.positions import sincos_2d

FLOW = dataclasses.replace(TINY, time_convention="flow", learn_sigma=False)
OPTIONS = [
    dict(qk_norm=True),
    dict(norm="rms"),
    dict(mlp="swiglu"),
    dict(positions="rope"),
    dict(positions="none"),
    dict(relative_bias=True),
    dict(precondition="edm"),
    dict(precondition="x"),
]
EVERY = dict(
    qk_norm=True,
    norm="rms",
    mlp="swiglu",
    positions="rope",
    relative_bias=True,
    precondition="edm",
)
WRAPPED = dict(wrapper=Checkpointed())
ALL = [*OPTIONS, WRAPPED, EVERY | WRAPPED]


def with_(**changes):
    return dataclasses.replace(FLOW, **changes)


def build(options):
    "An awake DiT with these options, one of which may be a wrapper around its layout."
    changes = {k: v for k, v in options.items() if k != "wrapper"}
    model = awake(DiT(with_(**changes)))
    return wrap(model, options["wrapper"]) if "wrapper" in options else model


# ---------------------------------------------------------------- all options


def test_options_are_off_and_explained():
    c = DiTConfig()
    lines = inspect.getsource(DiTConfig).splitlines()
    for option in OPTIONS:
        ((name, value),) = option.items()
        assert getattr(c, name) != value
        assert len(next(s for s in lines if s.strip().startswith(name + ":")).split("#")[1]) > 20


@pytest.mark.parametrize("option", ALL, ids=label)
def test_options_change_what_they_should(option):
    plain = build({})
    model = build(option)
    x, t, y = batch(FLOW)
    for key, value in plain.state_dict().items():  # the same weights, where there are such
        if key in model.state_dict() and model.state_dict()[key].shape == value.shape:
            model.state_dict()[key].copy_(value)
    out = model(x, t, y)
    assert out.shape == x.shape and out.isfinite().all()
    assert torch.equal(model(x[:, :, 0], t, y), out[:, :, 0])
    assert torch.equal(plain(x, t, y), out) == (option == WRAPPED)


@pytest.mark.parametrize("option", ALL, ids=label)
def test_options_learn_in_every_weight(option):
    model = build(option)
    model(*batch(FLOW)).square().mean().backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("option", ALL, ids=label)
def test_options_are_saved(tmp_path, option):
    model = build(option).eval()
    model.save_pretrained(tmp_path / "m")
    again = DiT.from_pretrained(tmp_path / "m")
    assert again.config == model.config
    assert torch.equal(again(*batch(FLOW)), model(*batch(FLOW)))


@pytest.mark.parametrize(
    "option",
    [dict(mlp="swiglu", mlp_ratio=3.0), dict(positions="rope"), dict(relative_bias=True)],
    ids=label,
)
def test_macs_of_options(option):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        DiT(with_(**option))(*batch(FLOW, n=1))
    assert counter.get_total_flops() == 2 * D.dit_macs(with_(**option))["total"]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(norm="batch"), r"DiTConfig\.norm must be one of 'layer', 'rms', not 'batch'"),
        (dict(mlp="relu"), r"DiTConfig\.mlp must be one of 'gelu', 'swiglu', not 'relu'"),
        (dict(positions="3d"), r"DiTConfig\.positions must be one of 'sincos', 'rope', 'none'"),
        (dict(precondition="v"), r"DiTConfig\.precondition must be one of 'none', 'edm', 'x'"),
        (dict(precondition="edm", learn_sigma=True), r"DiTConfig\.precondition: is for velocity"),
        (dict(precondition="x", time_convention="ddpm"), r"DiTConfig\.precondition: is for vel"),
        (dict(t_clip=0.0), r"DiTConfig\.t_clip must be a number above 0, at most 1, not 0\.0"),
        (dict(positions="rope", heads=16), r"DiTConfig\.positions: 'rope' turns .* not 2"),
        (dict(qk_norm="yes"), r"DiTConfig\.qk_norm must be bool, not 'yes'"),
        (dict(relative_bias=1), r"DiTConfig\.relative_bias must be bool, not 1"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(ValueError, match=message):
        with_(**changes)


@pytest.mark.parametrize("option", [{}, *ALL], ids=label)
def test_options_in_bfloat16(option):
    model = build(option)
    for p in model.parameters():
        p.data /= 2
    x, t, y = batch(FLOW)
    t = t.clamp(max=0.9)
    want = model(x, t, y)
    close(model.bfloat16()(x.bfloat16(), t, y).float(), want, rel=0.05)


# ---------------------------------------------------------------- unconditional, non-square,
# another size


@pytest.mark.parametrize("size, patch", [((4, 12), 2), ((12, 4), 4), ((6, 8), 1)])
def test_nonsquare_latents(size, patch):
    c = with_(size=size, patch=patch, num_classes=0)
    model = awake(DiT(c))
    x, t, _ = batch(c)
    assert model(x, t).shape == x.shape and model.null_id is None
    assert not hasattr(model, "y_embedder")
    # one patch changes: with attention cut off, exactly that patch of the answer changes
    for b in model.blocks:
        nn.init.zeros_(b.attn.proj.weight)
    h, w = model.grid[1:]
    rows = slice((h - 1) * patch, h * patch)
    columns = slice(w // 2 * patch, (w // 2 + 1) * patch)
    other = x.clone()
    other[:, :, 0, rows, columns] += 1
    changed = (model(x, t) - model(other, t)).abs().amax((0, 1, 2)) > 1e-6
    want = torch.zeros(size, dtype=torch.bool)
    want[rows, columns] = True
    assert torch.equal(changed, want)


@pytest.mark.parametrize("positions", ["sincos", "rope", "none"])
@pytest.mark.parametrize("method", ["scaled", "bicubic"])
def test_resize_is_exact_at_the_trained_size(positions, method):
    c = with_(positions=positions, size=(8, 12))
    model = awake(DiT(c)).eval()
    other = D.resize(model, (8, 12), method)
    assert other.config == model.config and not other.training
    assert torch.equal(other(*batch(c)), model(*batch(c)))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_resized_positions_land_between_the_trained_ones():
    model = awake(DiT(with_(size=(16, 16), width=64)))
    scaled, bicubic = [
        D.resize(model, (32, 16), m).pos_embed[0].view(16, 8, 64) for m in ("scaled", "bicubic")
    ]
    rows = (torch.arange(16).double() + 0.5) / 2 - 0.5  # 32 rows of latents: 16 of tokens on 8
    w = 10000 ** -(torch.arange(16).double() / 16)
    want = torch.cat([(rows[:, None] * w).sin(), (rows[:, None] * w).cos()], 1)
    halves = scaled[:, 0, 32:].double()  # the row's half
    torch.testing.assert_close(halves, want, rtol=0, atol=1e-6)
    columns = sincos_2d(64, (8, 8)).view(8, 8, 64)[5, :, :32]
    assert torch.equal(scaled[5, :, :32], columns)  # columns stay
    table = model.pos_embed[0].view(8, 8, 64)
    # cubic convolution with a = -0.75 by hand, row 5 of 16: place 2.25 between 1, 2, 3, 4
    a = -0.75
    s = 0.25

    def near(d):
        return (a + 2) * d**3 - (a + 3) * d**2 + 1

    def far(d):
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a

    weights = far(1 + s), near(s), near(1 - s), far(2 - s)
    want = sum(weight * row for weight, row in zip(weights, table[1:5]))
    torch.testing.assert_close(bicubic[5], want, rtol=0, atol=1e-5)
    slow = slice(36, 48)  # where waves are long both ways agree
    assert (scaled - bicubic)[2:-2, :, slow].abs().max() < 0.02
    assert (scaled - bicubic).abs().max() > 0.02


def test_a_resized_model_keeps_its_weights_and_its_function():
    model = awake(DiT(with_(size=(8, 8), positions="rope", num_classes=5)))
    for b in model.blocks:
        nn.init.zeros_(b.attn.proj.weight)  # each token for itself
    large = D.resize(model, (16, 24))
    x, t, y = batch(FLOW)
    tiled = x.repeat(1, 1, 1, 2, 3)
    close(large(tiled, t, y), model(x, t, y).repeat(1, 1, 1, 2, 3))
    assert large.config.size == (16, 24) and large.places.shape == (96, 2)
    assert large.places[:, 1].max() == pytest.approx(3.5 - 1 / 6)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), large.parameters()))
    assert all(p.data_ptr() != q.data_ptr() for p, q in zip(model.parameters(), large.parameters()))


def test_a_resized_model_is_saved(tmp_path):
    for positions in ("sincos", "rope"):
        large = D.resize(awake(DiT(with_(positions=positions))), (12, 8)).eval()
        large.save_pretrained(tmp_path / positions)
        inputs = batch(with_(size=(12, 8)))
        assert torch.equal(DiT.from_pretrained(tmp_path / positions)(*inputs), large(*inputs))
        with pytest.raises(ValueError, match="positions are not those of the size"):
            D.resize(large, (8, 8))
    twice = D.resize(D.resize(awake(DiT(FLOW)), (16, 16)), (8, 8), "bicubic")
    assert twice.pos_embed.shape == (1, 16, 32)


@pytest.mark.parametrize(
    "changes, size, method, message",
    [
        ({}, (9, 8), "scaled", r"DiTConfig\.patch: 2 does not divide"),
        ({}, (16, 16), "linear", "method must be one of 'scaled', 'bicubic', not 'linear'"),
        (dict(relative_bias=True), (16, 16), "scaled", r"DiTConfig\.relative_bias"),
    ],
)
def test_bad_resizes(changes, size, method, message):
    with pytest.raises(ValueError, match=message):
        D.resize(DiT(with_(**changes)), size, method)


def test_resize_keeps_type():
    model = awake(DiT(FLOW)).double()
    assert {v.dtype for v in D.resize(model, (16, 16)).state_dict().values()} == {torch.float64}
