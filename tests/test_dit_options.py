"""Options of the DiT that are not in its paper, and latents of another size: each does what it says, and nothing else."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from test_dit import TINY, awake, batch, close
from torch import nn

from minisora import dit as D
from minisora.dit import PRESETS, DiT, DiTConfig

FLOW = dataclasses.replace(TINY, time="flow", learn_sigma=False)
OPTIONS = [
    dict(qk_norm=True),
    dict(norm="rms"),
    dict(mlp="swiglu"),
    dict(positions="rope"),
    dict(positions="none"),
    dict(relative_bias=True),
    dict(precondition="edm"),
    dict(precondition="x"),
    dict(checkpoint=True),
]
ALL = dict(
    qk_norm=True,
    norm="rms",
    mlp="swiglu",
    positions="rope",
    relative_bias=True,
    precondition="edm",
    checkpoint=True,
)


def with_(**changes):
    return dataclasses.replace(FLOW, **changes)


# ---------------------------------------------------------------- all options


def test_options_are_off_and_explained():
    import inspect

    c, lines = DiTConfig(), inspect.getsource(DiTConfig).splitlines()
    for option in OPTIONS:
        ((name, value),) = option.items()
        assert getattr(c, name) != value
        assert len(next(s for s in lines if s.strip().startswith(name + ":")).split("#")[1]) > 20


@pytest.mark.parametrize("option", [*OPTIONS, ALL], ids=str)
def test_options_change_what_they_should(option):
    plain, model, (x, t, y) = awake(DiT(FLOW)), awake(DiT(with_(**option))), batch(FLOW)
    for key, value in plain.state_dict().items():  # the same weights, where there are such
        if key in model.state_dict() and model.state_dict()[key].shape == value.shape:
            model.state_dict()[key].copy_(value)
    assert model(x, t, y).shape == x.shape and model(x, t, y).isfinite().all()
    assert torch.equal(model(x[:, :, 0], t, y), model(x, t, y)[:, :, 0])
    assert torch.equal(plain(x, t, y), model(x, t, y)) == (option == dict(checkpoint=True))


@pytest.mark.parametrize("option", [*OPTIONS, ALL], ids=str)
def test_options_learn_in_every_weight(option):
    model, (x, t, y) = awake(DiT(with_(**option))), batch(FLOW)
    model(x, t, y).square().mean().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("option", [*OPTIONS, ALL], ids=str)
def test_options_are_saved(tmp_path, option):
    model, (x, t, y) = awake(DiT(with_(**option))).eval(), batch(FLOW)
    model.save_pretrained(tmp_path / "m")
    again = DiT.from_pretrained(tmp_path / "m")
    assert again.config == model.config and torch.equal(again(x, t, y), model(x, t, y))


@pytest.mark.parametrize(
    "option",
    [dict(mlp="swiglu", mlp_ratio=3.0), dict(positions="rope"), dict(relative_bias=True)],
    ids=str,
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
        (dict(mlp="relu"), r"DiTConfig\.mlp"),
        (dict(positions="3d"), r"DiTConfig\.positions"),
        (dict(precondition="v"), r"DiTConfig\.precondition"),
        (dict(precondition="edm", learn_sigma=True), r"DiTConfig\.precondition"),
        (dict(precondition="x", time="ddpm"), r"DiTConfig\.precondition"),
        (dict(t_clip=0.0), r"DiTConfig\.t_clip"),
        (dict(positions="rope", heads=16), r"DiTConfig\.positions"),
        (dict(checkpoint=1), r"DiTConfig\.checkpoint must be bool"),
        (dict(qk_norm="yes"), r"DiTConfig\.qk_norm"),
        (dict(relative_bias=1), r"DiTConfig\.relative_bias"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(ValueError, match=message):
        with_(**changes)


@pytest.mark.parametrize("option", [{}, *OPTIONS, ALL], ids=str)
def test_options_in_bfloat16(option):
    model, (x, t, y) = awake(DiT(with_(**option)), std=0.1), batch(FLOW)
    want, t = model(x, t.clamp(max=0.9), y), t.clamp(max=0.9)
    close(model.bfloat16()(x.bfloat16(), t, y).float(), want, rel=0.05)


# ---------------------------------------------------------------- norms and MLPs


def test_rms_norm_does_not_centre():
    x = torch.randn(4, 7, 32) * 3 + 2
    want = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(D.token_norm(32, "rms")(x), want)
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(
        D.token_norm(32)(x), centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    )
    small = torch.randn(1, 32) * 1e-3  # here eps is as large as the tokens: 1e-5 would show
    torch.testing.assert_close(
        D.token_norm(32, "rms")(small), small / (small.square().mean() + 1e-6).sqrt()
    )
    block, final = D.DiTBlock(32, 2, norm="rms"), D.FinalLayer(32, 4, "rms")
    assert all(
        isinstance(m, nn.RMSNorm) and m.weight is None
        for m in (block.norm1, block.norm2, final.norm_final)
    )


def test_swiglu_is_gated_and_as_large_as_the_mlp():
    layer = awake(D.SwiGLU(32, 128))
    x, (a, b) = torch.randn(5, 32), layer.fc1.weight.chunk(2)
    ba, bb = layer.fc1.bias.chunk(2)
    torch.testing.assert_close(layer(x), layer.fc2(F.silu(x @ a.T + ba) * (x @ b.T + bb)))
    for name in ("S/2", "B/2", "L/2", "XL/2"):
        c = PRESETS[f"DiT-{name}"]
        with torch.device("meta"):
            n, m = [
                D.count_parameters(DiT(dataclasses.replace(c, mlp=k))) for k in ("gelu", "swiglu")
            ]
        assert abs(m / n - 1) < 0.001 and D.gated_width(4 * c.width) % 8 == 0


# ---------------------------------------------------------------- rotary positions


@pytest.mark.parametrize(
    "grid, width", [((6, 8), 16), ((3, 6, 8), 24), ((3, 6, 8), 16), ((3, 6, 8), 72), ((16,), 8)]
)
def test_rotary_sees_offsets_only(grid, width):
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, width, generator=g)
    where = D.places(grid) if len(grid) > 1 else D.places(grid)[:, None]
    n, rope = len(where), D.rotary(where, width)
    assert rope[0].shape == rope[1].shape == (n, width // 2)
    logits = D.rotate(q.expand(n, -1), rope) @ D.rotate(k.expand(n, -1), rope).T
    seen = {}
    for i in range(n):
        for j in range(n):
            seen.setdefault(tuple((where[j] - where[i]).tolist()), []).append(logits[i, j].item())
    assert max(max(v) - min(v) for v in seen.values()) < 1e-4
    means = sorted(sum(v) / len(v) for v in seen.values())
    assert min(b - a for a, b in zip(means, means[1:])) > 0, (
        "two offsets look alike"
    )  # every axis turns something
    x = torch.randn(n, width, generator=g)
    torch.testing.assert_close(D.rotate(x, rope).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(D.rotate(x, rope)[0], x[0])  # place 0 is not turned


def test_rotary_by_hand():
    cos, sin = D.rotary(
        torch.tensor([[2.0, 3.0]]), 8
    )  # two pairs for the row, two for the column: 1 and 1/10
    angles = torch.tensor([[2.0, 0.2, 3.0, 0.3]])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())
    x = torch.zeros(1, 8)
    x[0, 2] = 1  # the first half of pair 2: the column's fast one
    want = torch.zeros(1, 8)
    want[0, 2], want[0, 6] = angles[0, 2].cos(), angles[0, 2].sin()
    torch.testing.assert_close(D.rotate(x, (cos, sin)), want)
    counts = [D.rotary(torch.eye(3)[i : i + 1], 16)[1].ne(0).sum().item() for i in range(3)]
    assert counts == [4, 2, 2]  # what is left over goes to the first axis
    for width in (2, 7):
        with pytest.raises(ValueError, match=f"{width} channels"):
            D.rotary(torch.zeros(1, 2), width)


def test_rope_in_the_model_sees_offsets():
    "With rope alone, content that moves is answered in the same way, but for the border."
    layer = awake(D.Attention(32, 2))
    x, rope = torch.randn(1, 16, 32), D.rotary(D.places((4, 4)), 16)
    moved = D.rotary(D.places((4, 4)) + torch.tensor([3.0, 5.0]), 16)
    close(layer(x, rope=moved), layer(x, rope=rope), rel=1e-4)
    assert not torch.allclose(layer(x, rope=rope), layer(x), atol=1e-3)
    v = layer.qkv(x)[..., 64:]  # values are not turned: equal keys give their mean
    with torch.no_grad():
        layer.qkv.weight[:64] = 0
        layer.qkv.bias[:64] = 0
    close(layer(x, rope=rope)[0, 3], layer.proj(v.mean(1))[0])


# ---------------------------------------------------------------- relative bias and preconditioning


def test_relative_bias_is_one_number_for_each_head_and_offset():
    bias = D.RelativeBias(3, (1, 3, 4))
    nn.init.normal_(bias.table)
    out, where = bias(), D.places((1, 3, 4))
    assert out.shape == (3, 12, 12)
    seen = {}
    for i in range(12):
        for j in range(12):
            seen.setdefault(tuple((where[j] - where[i]).tolist()), set()).add(out[1, i, j].item())
    assert (
        all(len(v) == 1 for v in seen.values())
        and len({*map(min, seen.values())}) == len(seen) == 5 * 7
    )


def test_relative_bias_starts_at_a_neighbour():
    out = D.RelativeBias(5, (1, 4, 4))().view(5, 4, 4, 4, 4)
    assert [divmod(h[1, 1].argmax().item(), 4) for h in out] == [
        (1, 1),
        (1, 2),
        (1, 0),
        (2, 1),
        (0, 1),
    ]
    assert (
        out.max() == 0
        and out.min() == -16
        and out[0, 1, 1, 1, 2] == -1
        and out[0, 0, 0, 1, 1] == -2
    )
    padded = D.RelativeBias(2, (1, 2, 2), extra=3)()
    assert padded.shape == (2, 7, 7) and not padded[:, :3].any() and not padded[:, :, :3].any()
    c = with_(relative_bias=True)
    assert [b.table.shape for b in DiT(c).bias] == [(2, 49)] * 2


def test_preconditioning_is_exact_where_the_answer_is_known():
    g = torch.Generator().manual_seed(0)
    t = torch.rand(64, generator=g)
    data, noise = torch.randn(2, 64, 4, 1, 32, 32, generator=g)
    s = t.view(-1, 1, 1, 1, 1)
    x, v = s * data + (1 - s) * noise, data - noise
    var = D.path_variance(t)
    torch.testing.assert_close(x.flatten(1).var(1), var.flatten(), rtol=0.2, atol=0)
    rest = (v * var - (2 * s - 1) * x) / var.sqrt()
    assert (rest.flatten(1).std(1) - 1).abs().max() < 0.05 and (rest * x).flatten(1).mean(
        1
    ).abs().max() < 0.06
    torch.testing.assert_close(D.velocity_from_rest(x, rest, t), v, rtol=1e-3, atol=1e-4)
    late = t < 0.95
    torch.testing.assert_close(
        D.velocity_from_data(x, data, t)[late], v[late], rtol=1e-3, atol=1e-4
    )
    one = torch.ones(1)
    assert D.velocity_from_data(x[:1], data[:1] + 1, one)[0].mean() == pytest.approx(
        ((data[0] + 1 - x[0]) / 0.05).mean().item(), rel=1e-4
    )


def test_preconditioning_in_the_model():
    x, t, y = batch(FLOW)
    var = D.path_variance(t)
    fresh = {
        k: DiT(with_(precondition=k))(x, t, y) for k in ("edm", "x")
    }  # the network adds nothing yet
    torch.testing.assert_close(fresh["edm"], (2 * t - 1).view_as(var) * x / var)
    torch.testing.assert_close(fresh["x"], -x / (1 - t).clamp(min=0.05).view_as(var))
    plain, edm = awake(DiT(FLOW)), awake(DiT(with_(precondition="edm")))
    close(edm(x, t, y), D.velocity_from_rest(x, plain(x / var.sqrt(), t, y), t))
    data = awake(DiT(with_(precondition="x", t_clip=0.5)))
    close(data(x, t, y), D.velocity_from_data(x, plain(x / var.sqrt(), t, y), t, 0.5))


# ---------------------------------------------------------------- checkpointing


def test_checkpointing_keeps_gradients_and_drops_activations():
    options = dict(qk_norm=True, positions="rope", relative_bias=True)
    grads, kept, (x, t, y) = {}, {}, batch(FLOW)
    for on in (False, True):
        model, saved = awake(DiT(with_(**options, depth=4, checkpoint=on))), []
        pack = lambda v, saved=saved: saved.append(v.numel()) or v
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
            loss = model(x, t, y).square().mean()
        kept[on] = sum(saved)
        loss.backward()
        grads[on] = {k: p.grad for k, p in model.named_parameters()}
    assert all(torch.equal(v, grads[True][k]) and v.any() for k, v in grads[False].items())
    assert kept[True] < kept[False] / 3
    with torch.no_grad():
        assert not model(x, t, y).requires_grad


def test_checkpointing_runs_each_block_twice_only_when_it_learns():
    model, (x, t, y), calls = awake(DiT(with_(checkpoint=True))), batch(FLOW), []
    model.blocks[0].register_forward_pre_hook(lambda *a: calls.append(1))
    model(x, t, y).mean().backward()
    assert len(calls) == 2
    with torch.no_grad():
        model(x, t, y)
    assert len(calls) == 3


# ---------------------------------------------------------------- unconditional, non-square, another size


@pytest.mark.parametrize("size, patch", [((4, 12), 2), ((12, 4), 4), ((6, 8), 1)])
def test_nonsquare_latents(size, patch):
    c = with_(size=size, patch=patch, num_classes=0)
    model, (x, t, _) = awake(DiT(c)), batch(c)
    assert (
        model(x, t).shape == x.shape and model.null_id is None and not hasattr(model, "y_embedder")
    )
    # one patch changes: with attention cut off, exactly that patch of the answer changes
    for b in model.blocks:
        nn.init.zeros_(b.attn.proj.weight)
    other, (p, (h, w)) = x.clone(), (patch, model.grid[1:])
    r, q = h - 1, w // 2
    other[:, :, 0, r * p : (r + 1) * p, q * p : (q + 1) * p] += 1
    changed = (model(x, t) - model(other, t)).abs().amax((0, 1, 2)) > 1e-6
    want = torch.zeros(size, dtype=torch.bool)
    want[r * p : (r + 1) * p, q * p : (q + 1) * p] = True
    assert torch.equal(changed, want)


def test_places_are_the_middles_of_stretched_cells():
    assert torch.equal(
        D.places((2, 3)),
        torch.tensor([[i, j] for i in range(2) for j in range(3)], dtype=torch.float64),
    )
    assert D.places((2, 3, 2)).tolist()[-1] == [1, 2, 1] and D.places((2, 3, 2)).tolist()[1] == [
        0,
        0,
        1,
    ]
    assert D.places((2, 1), (4, 1))[:, 0].tolist() == [0.5, 2.5]
    assert D.places((8, 1), (4, 1))[:, 0].tolist() == [
        -0.25,
        0.25,
        0.75,
        1.25,
        1.75,
        2.25,
        2.75,
        3.25,
    ]
    # a picture of places, resized as pictures are, has the same numbers away from its border
    ramp = torch.arange(8.0).view(1, 1, 8)
    for mode in ("linear", "nearest-exact"):
        for n in (16, 12, 4):
            got = F.interpolate(ramp, n, mode=mode).flatten().double()
            want = D.places((n, 1), (8, 1))[:, 0]
            inside = (want > 0) & (want < 7)
            assert (got - want)[inside].abs().max() <= (1e-6 if mode == "linear" else 0.5)


@pytest.mark.parametrize("positions", ["sincos", "rope", "none"])
@pytest.mark.parametrize("method", ["scaled", "bicubic"])
def test_resize_is_exact_at_the_trained_size(positions, method):
    model, (x, t, y) = (
        awake(DiT(with_(positions=positions, size=(8, 12)))).eval(),
        batch(with_(size=(8, 12))),
    )
    other = D.resize(model, (8, 12), method)
    assert (
        other.config == model.config
        and not other.training
        and torch.equal(other(x, t, y), model(x, t, y))
    )
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_resized_positions_land_between_the_trained_ones():
    model = awake(DiT(with_(size=(16, 16), width=64)))
    scaled, bicubic = [
        D.resize(model, (32, 16), m).pos_embed[0].view(16, 8, 64) for m in ("scaled", "bicubic")
    ]
    rows = (torch.arange(16).double() + 0.5) / 2 - 0.5  # 32 rows of latents: 16 of tokens on 8
    w = 10000 ** -(torch.arange(16).double() / 16)
    want = torch.cat([(rows[:, None] * w).sin(), (rows[:, None] * w).cos()], 1)
    torch.testing.assert_close(
        scaled[:, 0, 32:].double(), want, rtol=0, atol=1e-6
    )  # the row's half
    assert torch.equal(
        scaled[5, :, :32], D.sincos_2d(64, (8, 8)).view(8, 8, 64)[5, :, :32]
    )  # columns stay
    table = model.pos_embed[0].view(8, 8, 64)
    # cubic convolution with a = -0.75 by hand, row 5 of 16: place 2.25 between 1, 2, 3, 4
    a, s = -0.75, 0.25
    near = lambda d: (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = lambda d: a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    want = (
        far(1 + s) * table[1] + near(s) * table[2] + near(1 - s) * table[3] + far(2 - s) * table[4]
    )
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
    assert (
        large.config.size == (16, 24)
        and large.places.shape == (96, 2)
        and large.places[:, 1].max() == pytest.approx(3.5 - 1 / 6)
    )
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), large.parameters()))
    assert all(p.data_ptr() != q.data_ptr() for p, q in zip(model.parameters(), large.parameters()))


def test_a_resized_model_is_saved(tmp_path):
    for positions in ("sincos", "rope"):
        large = D.resize(awake(DiT(with_(positions=positions))), (12, 8)).eval()
        large.save_pretrained(tmp_path / positions)
        x, t, y = batch(with_(size=(12, 8)))
        assert torch.equal(DiT.from_pretrained(tmp_path / positions)(x, t, y), large(x, t, y))
        with pytest.raises(ValueError, match="positions are not those of the size"):
            D.resize(large, (8, 8))
    assert D.resize(D.resize(awake(DiT(FLOW)), (16, 16)), (8, 8), "bicubic").pos_embed.shape == (
        1,
        16,
        32,
    )


@pytest.mark.parametrize(
    "changes, size, method, message",
    [
        ({}, (9, 8), "scaled", r"DiTConfig\.patch: 2 does not divide"),
        ({}, (16, 16), "linear", "'scaled' or 'bicubic', not 'linear'"),
        (dict(relative_bias=True), (16, 16), "scaled", r"DiTConfig\.relative_bias"),
    ],
)
def test_bad_resizes(changes, size, method, message):
    with pytest.raises(ValueError, match=message):
        D.resize(DiT(with_(**changes)), size, method)


def test_resize_keeps_type():
    model = awake(DiT(FLOW)).double()
    assert {v.dtype for v in D.resize(model, (16, 16)).state_dict().values()} == {torch.float64}
