"""The video DiT beyond its paper: rotary positions in three axes, other lengths and shapes, and tokens routed around blocks."""

import dataclasses
import random
from itertools import combinations

import numpy as np
import pytest
import torch
from test_dit import awake, close
from test_train_buckets import Part
from torch.utils.flop_counter import FlopCounterMode

from minisora import temporal as V
from minisora.dit import rotate
from minisora.interpolants import Interpolant
from minisora.temporal import VideoDiT, VideoDiTConfig, resize_video
from minisora.train import Buckets, fit

TINY = VideoDiTConfig(size=(4, 4, 6), patch=(1, 2, 2), width=48, depth=4, heads=2, vocab=7, slots=2)
BOTH = ("joint", "factorised")


def batch(config=TINY, n=3, seed=2):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, config.channels, *config.size, generator=g),
        torch.rand(n, generator=g),
        torch.randint(0, max(config.vocab, 1), (n, config.slots), generator=g),
    )


# ---------------------------------------------------------------- rotary positions


@pytest.mark.parametrize(
    "width, split",
    [(64, (16, 24, 24)), (128, (32, 48, 48)), (72, (20, 26, 26)), (24, (8, 8, 8)), (8, (4, 2, 2))],
)
def test_split_of_the_head(width, split):
    "16, 24, 24 of 64 channels: CogVideoX's."
    assert V.rope_split(width) == split
    cos, sin = V.rotary_3d(torch.zeros(5, 3), width)
    assert (
        cos.shape == sin.shape == (5, width // 2)
        and torch.equal(cos, torch.ones(5, width // 2))
        and not sin.any()
    )


def test_each_axis_turns_its_own_channels():
    for axis, share in enumerate((range(8), range(8, 20), range(20, 32))):
        place = torch.zeros(1, 3)
        place[0, axis] = 1.0
        cos, sin = V.rotary_3d(place, 64)
        assert sin[0].nonzero().flatten().tolist() == list(share)
        assert sin[0, share[0]].item() == pytest.approx(torch.tensor(1.0).sin().item())


def test_logits_depend_on_offsets_alone():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 64, generator=g).double()
    at = lambda p: [r.double() for r in V.rotary_3d(torch.tensor([p], dtype=torch.float64), 64)]
    logit = lambda a, b: (rotate(q, at(a)) * rotate(k, at(b))).sum().item()
    assert logit((0.0, 1, 2), (3.0, 5, 4)) == pytest.approx(
        logit((7.0, 2, 9), (10.0, 6, 11)), abs=1e-5
    )
    assert abs(logit((0.0, 1, 2), (3.0, 5, 4)) - logit((3.0, 5, 4), (0.0, 1, 2))) > 1e-3


@pytest.mark.parametrize("attention", BOTH)
def test_rope_sees_offsets_and_words_do_not_turn(attention):
    c = dataclasses.replace(TINY, positions="rope", attention=attention, context=True)
    model = awake(VideoDiT(c))
    x, t, y = batch(c)
    pos = V.video_positions(c)
    moved = {
        k: torch.stack(V.rotary_3d(V.places(c.grid) + torch.tensor([2.0, 5, 3]), 24))
        for k in ("turns",)
    }
    assert pos["turns"].shape == (2, 2 + (24 if attention == "joint" else 6), 12)
    assert torch.equal(pos["turns"][:, :2], torch.tensor([1.0, 0]).view(2, 1, 1).expand(2, 2, 12))
    without = awake(VideoDiT(dataclasses.replace(c, context=False)))
    want = without(x, t, y)
    if attention == "joint":
        without.turns = moved["turns"]
    else:
        without.time_turns = torch.stack(V.rotary(torch.arange(4.0)[:, None] + 9, 24))
    close(without(x, t, y), want, rel=1e-4)  # the whole grid shifted: the same function
    assert not torch.allclose(
        model(x.flip(2), t, y).flip(2), model(x, t, y), atol=1e-3
    )  # but not blind to order
    assert not torch.allclose(model(x.flip(4), t, y).flip(4), model(x, t, y), atol=1e-3)


def test_rope_needs_room_in_a_head():
    for width, heads in ((12, 2), (36, 4)):
        with pytest.raises(ValueError, match=r"VideoDiTConfig\.positions"):
            VideoDiTConfig(width=width, heads=heads, positions="rope")


# ---------------------------------------------------------------- other lengths and shapes

KINDS = [
    dict(positions=p, attention=a, relative_bias=b)
    for p, a, b in [
        ("sincos", "joint", False),
        ("sincos", "factorised", True),
        ("rope", "joint", True),
        ("rope", "factorised", False),
        ("inflated", "factorised", False),
        ("inflated", "joint", True),
        ("latte", "factorised", False),
        ("none", "joint", True),
    ]
]


@pytest.mark.parametrize("size", [(8, 4, 6), (2, 4, 6), (4, 8, 4), (6, 2, 12)], ids=str)
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_every_kind_of_positions_takes_other_sizes(options, size, tmp_path):
    model = awake(VideoDiT(dataclasses.replace(TINY, **options)))
    for spread in ("hw", "", "thw"):
        other = resize_video(model, size, spread)
        inputs = batch(other.config)
        out = other(*inputs)
        assert (
            out.shape == (3, 4, *size)
            and out.isfinite().all()
            and not other.training ^ model.training
        )
        other.save_pretrained(tmp_path / "m")
        assert torch.equal(VideoDiT.from_pretrained(tmp_path / "m")(*inputs), other.eval()(*inputs))
        if options["relative_bias"] and any(a < b for a, b in zip(size, TINY.size)):
            continue  # offsets were dropped
        close(
            resize_video(other, TINY.size, spread)(*batch()), model.eval()(*batch()), rel=1e-4
        )  # and back


SMALLER = [
    dict(attention=a, positions=p) for a in BOTH for p in ("sincos", "rope", "inflated", "none")
] + [
    dict(attention="factorised", positions="latte"),
    dict(attention="factorised", positions="latte", learned_time=True),
    *[dict(attention=a, relative_bias=True, context=True) for a in BOTH],
    *[dict(attention=a, positions="rope", context=True) for a in BOTH],
    dict(precondition="edm"),
]


@pytest.mark.parametrize("options", SMALLER, ids=str)
@pytest.mark.parametrize("size", [(2, 4, 6), (4, 2, 4), (1, 4, 2)])
def test_a_smaller_clip_stands_at_the_first_places(options, size):
    "… which is what `resize_video` makes of the model, step by step."
    c = dataclasses.replace(TINY, smaller=True, **options)
    model = awake(VideoDiT(c))
    with torch.no_grad():
        for k, p in model.named_parameters():
            if "bias." in k and "table" in k or k in ("temp_embed", "time_gate"):
                p.copy_(torch.randn(p.shape))
    x, t, y = batch(dataclasses.replace(c, size=size, trained=()))
    whole = dataclasses.replace(c, smaller=False)
    close(model(x, t, y), resize_video(model, size, spread="")(x, t, y))
    with pytest.raises(ValueError, match="x must be"):
        VideoDiT(whole)(x, t, y)


def test_a_smaller_clip_may_be_routed_and_is_whole_patches():
    c = dataclasses.replace(
        TINY,
        smaller=True,
        route=0.5,
        route_blocks=(1, 3),
        relative_bias=True,
        positions="rope",
        context=True,
    )
    model = awake(VideoDiT(c)).train()
    x, t, y = batch(dataclasses.replace(c, size=(2, 4, 4)))
    assert model(x, t, y).shape == x.shape
    for shape in ((4, 3, 6), (5, 4, 6), (4, 4, 8)):
        with pytest.raises(
            ValueError, match=r"x must be .* or smaller, in whole patches \(1, 2, 2\)"
        ):
            model(torch.zeros(3, c.channels, *shape), t, y)
    with pytest.raises(ValueError, match="smaller"):
        dataclasses.replace(TINY, smaller=True, images=2, attention="factorised", positions="latte")


@pytest.mark.parametrize("attention", BOTH)
def test_fit_trains_one_model_on_buckets_of_several_sizes(attention, tmp_path):
    c = dataclasses.replace(TINY, smaller=True, attention=attention, relative_bias=True, slots=1)
    data = Buckets(
        dict(
            long=Part((4, 4, 4, 4), 12, 0),
            wide=Part((4, 2, 4, 6), 12, 1),
            still=Part((4, 1, 4, 4), 12, 2),
        )
    )
    options = dict(
        steps=9, batch_size=dict(long=2, wide=3, still=6), lr=1e-3, progress=False, save_every=3
    )
    whole = fit(VideoDiT(c), data, Interpolant(), out=tmp_path / "a", **options)
    fit(VideoDiT(c), data, Interpolant(), out=tmp_path / "b", stop_at=4, **options)
    again = fit(VideoDiT(c), data, Interpolant(), out=tmp_path / "b", **options)
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)
    moved = [
        k
        for k, p in VideoDiT(c).named_parameters()
        if not torch.equal(p, dict(whole.model.named_parameters())[k])
    ]
    assert any("bias.0.table" in k for k in moved) and "x_embedder.weight" in moved


def test_positions_go_on_or_are_spread():
    model = VideoDiT(TINY)
    longer, finer = resize_video(model, (8, 4, 6), ""), resize_video(model, (8, 4, 6), "t")
    assert longer.config.trained == () and finer.config.trained == (4, 4, 6)
    assert torch.equal(longer.pos_embed[:, :24], model.pos_embed)  # frame i stays frame i
    want = V.sincos_3d(48, (8, 2, 3), (4, 2, 3))
    assert torch.equal(finer.pos_embed[0], want) and not torch.allclose(
        finer.pos_embed, longer.pos_embed
    )
    assert V.sincos_1d(16, V.places((8,), (4,)))[0, 0].item() == pytest.approx(
        torch.tensor(-0.25).sin().item(), abs=1e-6
    )
    wide = resize_video(finer, (8, 4, 12), "")  # what is spread stays spread
    assert wide.config.trained == (4, 4, 12)
    for positions, name in (
        ("latte", "temp_embed"),
        ("inflated", "time_embed"),
        ("rope", "time_turns"),
    ):
        m = VideoDiT(dataclasses.replace(TINY, positions=positions, attention="factorised"))
        a, b, c = [
            getattr(k, name)
            for k in (m, resize_video(m, (8, 4, 6), ""), resize_video(m, (8, 4, 6), "t"))
        ]
        n = a.shape[1]
        assert torch.equal(b[:, :n], a) and not torch.allclose(b, c, atol=1e-3), positions


def test_relative_biases_count_steps():
    model = awake(VideoDiT(dataclasses.replace(TINY, relative_bias=True)))
    wide = resize_video(model, (4, 4, 10))
    old, new = model.bias[0]().view(2, 4, 2, 3, 4, 2, 3), wide.bias[0]().view(2, 4, 2, 5, 4, 2, 5)
    assert torch.equal(new[..., :3, :, :, :3], old)  # what was known stays
    assert torch.equal(
        new[:, 0, 0, 0, 1, 1, 4], old[:, 0, 0, 0, 1, 1, 2]
    )  # farther: as the farthest
    assert torch.equal(resize_video(wide, TINY.size).bias[0](), model.bias[0]())


def test_learned_moments_are_spread_and_do_not_go_on():
    c = dataclasses.replace(TINY, positions="latte", attention="factorised", learned_time=True)
    model = awake(VideoDiT(c))
    assert torch.equal(resize_video(model, (2, 4, 6)).temp_embed, model.temp_embed[:, :2])
    spread = resize_video(model, (8, 4, 6), "t").temp_embed
    close(spread[:, 1:3].mean(1), model.temp_embed[:, :2].mean(1))  # on the line between two
    with pytest.raises(ValueError, match="4 learned moments do not go on to 8"):
        resize_video(model, (8, 4, 6))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: resize_video(m, (8, 4, 6), "xy"), "letters of 'thw', not 'xy'"),
        (lambda m: resize_video(m, (8, 5, 6)), r"VideoDiTConfig\.patch"),
        (lambda m: resize_video(shifted(m), (8, 4, 6)), "pos_embed is not that of the size"),
        (lambda m: m(torch.zeros(1, 4, 8, 4, 6), torch.ones(1)), "x must be"),
    ],
)
def test_bad_resizes(call, message):
    with pytest.raises(ValueError, match=message):
        call(VideoDiT(TINY))


def shifted(model):
    model.pos_embed += 0.1
    return model


# ---------------------------------------------------------------- routing

ROUTES = [
    dict(attention=a, positions=p, relative_bias=b, context=k)
    for a, p, b, k in [
        ("joint", "sincos", False, False),
        ("joint", "rope", True, True),
        ("factorised", "rope", True, True),
        ("factorised", "latte", False, False),
    ]
]


def routed(share=0.5, **options):
    return dataclasses.replace(TINY, depth=6, route=share, route_blocks=(2, 4), **options)


def test_drawn_tokens_are_uniform():
    "Each token, each pair and each triple as often as the others, of samples that are all but alike."
    x = torch.ones(6000, 1, 2, 2, 2)
    x[:, 0, 1, 1, 1] += torch.arange(6000) * 2.0**-20
    kept = V.routed_tokens(x, 10, 0.7)
    assert (
        kept.shape == (6000, 3)
        and (kept.diff(dim=1) > 0).all()
        and kept.min() == 0
        and kept.max() == 9
    )
    for n, kinds in ((1, 10), (2, 45), (3, 120)):
        sets = torch.stack(
            [sum(10**k * c for k, c in enumerate(rows)) for rows in combinations(kept.unbind(1), n)]
        )
        counts = torch.unique(sets, return_counts=True)[1]
        mean = sets.numel() / kinds  # chi² has kinds − 1 ± √(2 kinds)
        assert (
            len(counts) == kinds
            and (counts - mean).square().sum() / mean < kinds + 4 * (2 * kinds) ** 0.5
        )
    both = (
        (V.routed_tokens(x, 64, 0.5)[1:, :, None] == V.routed_tokens(x, 64, 0.5)[:-1, None])
        .sum((1, 2))
        .float()
    )
    assert (
        15.8 < both.mean() < 16.2 and 1.8 < both.std() < 2.2
    )  # neighbours: hypergeometric, 16 ± 2
    assert torch.equal(
        V.routed_tokens(x[:2], 4, 0.2), torch.arange(4).expand(2, 4)
    )  # less than a token: none


def test_a_sample_alone_takes_the_way_it_takes_in_any_batch():
    x = torch.randn(8, 4, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    kept, order = V.routed_tokens(x, 24, 0.5), [5, 2, 7]
    assert (
        torch.equal(V.routed_tokens(x[order], 24, 0.5), kept[order])
        and len(kept.unique(dim=0)) == 8
    )
    assert torch.equal(
        V.routed_tokens(x.transpose(1, 4).contiguous().transpose(1, 4), 24, 0.5), kept
    )  # in any layout
    torch.rand(3)
    assert torch.equal(V.routed_tokens(x.clone().requires_grad_(), 24, 0.5), kept)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert len(V.routed_tokens(x.to(dtype), 24, 0.5).unique(dim=0)) == 8


@pytest.mark.parametrize("checkpoint", (False, True))
def test_no_global_generator_is_touched(checkpoint):
    model, states = (
        awake(VideoDiT(routed(checkpoint=checkpoint))),
        lambda: (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
    )
    before, (x, t, y) = states(), batch()
    model(x, t, y).square().mean().backward()
    assert states() == before
    fit(model, (x, y), Interpolant(), steps=1, batch_size=3, progress=False)
    assert states() == before


@pytest.mark.parametrize("options", ROUTES, ids=str)
def test_routing_is_off_in_eval_and_reaches_every_token_in_training(options):
    c = routed(**options)
    model, plain, (x, t, y) = (
        awake(VideoDiT(c)),
        awake(VideoDiT(dataclasses.replace(c, route=0.0))),
        batch(c),
    )
    assert torch.equal(model.eval()(x, t, y), plain(x, t, y))
    model.train()
    x.requires_grad_()
    a, b, other = model(x, t, y), model(x, t, y), model(x * (1 + 1e-6), t, y)
    assert (
        torch.equal(a, b)
        and not torch.allclose(a, other, atol=1e-4)
        and not torch.allclose(a, plain(x, t, y), atol=1e-4)
    )
    a.square().mean().backward()
    by_token = V.patchify(x.grad, c.patch).abs().amax(-1)
    assert (by_token > 0).all()  # every token, routed or not
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("attention", BOTH)
def test_routed_tokens_skip_exactly_their_blocks(attention, monkeypatch):
    "With all other blocks silent, routed tokens come out as they went in, and kept ones see only one another."
    c = routed(attention=attention, vocab=0, slots=1)
    model, (x, t, _) = awake(VideoDiT(c)), batch(c)
    for i in (0, 1, 4, 5):
        model.blocks[i].adaLN_modulation[1].weight.data.zero_()
        model.blocks[i].adaLN_modulation[1].bias.data.zero_()
    silent = awake(VideoDiT(c))
    [
        (b.adaLN_modulation[1].weight.data.zero_(), b.adaLN_modulation[1].bias.data.zero_())
        for b in silent.blocks
    ]
    S = 6 if attention == "factorised" else 24
    rows = V.routed_tokens(x, S, 0.5)
    kept = torch.zeros(3, S).scatter(1, rows, 1.0).bool()
    if attention == "factorised":
        kept = kept.repeat(1, 4)  # the same places in every frame
    tokens = lambda z: V.patchify(z, c.patch)
    out, still = tokens(model(x, t)), tokens(silent.eval()(x, t))
    close(out[~kept], still[~kept])
    assert (out[kept] - still[kept]).abs().amax(-1).min() > 1e-4
    noisy = x + (~kept).float().view(3, 1, 4, 2, 3).repeat_interleave(2, 3).repeat_interleave(
        2, 4
    )  # change the routed only
    monkeypatch.setattr(V, "routed_tokens", lambda *_: rows)  # other bits, the same way
    close(tokens(model(noisy, t))[kept], out[kept])


@pytest.mark.parametrize("attention", BOTH)
def test_each_sample_has_its_own_places(attention):
    "A batch is its samples one by one, each with its own route, turns and biases."
    c = routed(attention=attention, positions="rope", relative_bias=True, context=True)
    model, (x, t, y) = awake(VideoDiT(c)), batch(c)
    close(model(x, t, y), torch.cat([model(x[[i]], t[[i]], y[[i]]) for i in range(3)]))


@pytest.mark.parametrize("attention", BOTH)
def test_routed_with_every_token_kept_is_the_plain_model(attention):
    "The detour through gather, per-sample rope and bias and scatter changes nothing by itself."
    c = routed(
        0.01, attention=attention, positions="rope", relative_bias=True, context=True
    )  # rounds down to none
    model, plain, inputs = (
        awake(VideoDiT(c)),
        awake(VideoDiT(dataclasses.replace(c, route=0.0))),
        batch(c),
    )
    close(model(*inputs), plain(*inputs))


@pytest.mark.parametrize("attention", BOTH)
def test_flops_saved(attention):
    "Half of the tokens skip 8 of 10 blocks: the linear layers of these cost half, attention a half to a quarter."
    c = VideoDiTConfig(
        size=(4, 16, 16),
        patch=(1, 2, 2),
        width=64,
        depth=10,
        heads=2,
        attention=attention,
        route=0.5,
        route_blocks=(2, 10),
    )

    def flops(config):
        with torch.device("meta"):
            model = VideoDiT(config).to("meta")
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 4, 4, 16, 16, device="meta"), torch.empty(1, device="meta"))
        return counter.get_total_flops()

    full = flops(dataclasses.replace(c, route=0.0))
    assert 0.50 < flops(c) / full < 0.62
    with torch.device("meta"):
        model = VideoDiT(c).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 4, 4, 16, 16, device="meta"), torch.empty(1, device="meta"))
    assert counter.get_total_flops() == full


@pytest.mark.parametrize(
    "field, options",
    [
        ("route", dict(route=1.0)),
        ("route_blocks", dict(route_blocks=(4, 4))),
        ("route_blocks", dict(route_blocks=(2, 7))),
        ("route_blocks", dict(route_blocks=(1, 4), attention="factorised")),
    ],
)
def test_bad_routes(field, options):
    with pytest.raises(ValueError, match=rf"VideoDiTConfig\.{field}"):
        dataclasses.replace(routed(), **options)


def test_fit_with_routing_resumes_bit_equal(tmp_path):
    "The noise of (seed, step, sample index) draws the tokens: stopping changes nothing."
    c = dataclasses.replace(routed(), width=16, heads=2, size=(2, 4, 4), slots=1, checkpoint=True)
    g = torch.Generator().manual_seed(0)
    data = torch.randn(40, 4, 2, 4, 4, generator=g), torch.randint(0, 7, (40, 1), generator=g)
    go = lambda out, **k: fit(
        VideoDiT(c),
        data,
        Interpolant(),
        steps=6,
        batch_size=4,
        out=tmp_path / out,
        progress=False,
        lr=1e-2,
        **k,
    )
    whole = go("a")
    go("b", stop_at=2)
    torch.rand(7)
    go("b", stop_at=3)
    parts = go("b")
    for a, b in ((whole.model, parts.model), (whole.ema, parts.ema)):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert [r["loss"] for r in whole.log] == [r["loss"] for r in parts.log]
    plain = fit(
        VideoDiT(dataclasses.replace(c, route=0.0)),
        data,
        Interpolant(),
        steps=6,
        batch_size=4,
        progress=False,
        lr=1e-2,
    )
    assert not torch.equal(
        plain.model.final_layer.linear.weight, whole.model.final_layer.linear.weight
    )


@pytest.mark.parametrize(
    "parts, options",
    [
        (2, dict(attention="joint")),
        (4, dict(attention="factorised", context=True, checkpoint=True)),
    ],
    ids=str,
)
def test_a_batch_of_eight_may_go_in_parts(parts, options):
    c = dataclasses.replace(
        routed(), width=16, heads=2, size=(2, 4, 4), slots=1, qk_norm=True, **options
    )
    g = torch.Generator().manual_seed(0)
    data = torch.randn(40, 4, 2, 4, 4, generator=g), torch.randint(0, 7, (40, 1), generator=g)
    train = lambda n: fit(
        awake(VideoDiT(c)),
        data,
        Interpolant(),
        steps=6,
        batch_size=8 // n,
        accumulate=n,
        progress=False,
        lr=1e-3,
        log_every=1,
    )
    whole, split = train(1), train(parts)
    assert [r["loss"] for r in split.log] == pytest.approx(
        [r["loss"] for r in whole.log], rel=1e-5
    ) and len(whole.log) == 6
    for a, b in ((whole.model, split.model), (whole.ema, split.ema)):
        for k, v in a.state_dict().items():
            assert torch.allclose(v, b.state_dict()[k], rtol=1e-5, atol=1e-5), k


# ---------------------------------------------------------------- checkpointing


@pytest.mark.parametrize("attention", BOTH)
def test_checkpointing_changes_memory_only(attention):
    c = routed(attention=attention, positions="rope", relative_bias=True)

    def train(checkpoint, every=1):
        "Numbers kept for the backward pass, and gradients."
        model, saved = (
            awake(VideoDiT(dataclasses.replace(c, checkpoint=checkpoint, checkpoint_every=every))),
            [],
        )
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append(t.numel()) or t, lambda t: t
        ):
            loss = model(*batch(c)).square().mean()
        loss.backward()
        return sum(saved), [p.grad for p in model.parameters()]

    (much, want), (little, grads), (some, also) = train(False), train(True), train(True, 2)
    assert little < much / 2 and all(torch.equal(a, b) for a, b in zip(want, grads))
    assert little + (much - little) / 4 < some < much - (much - little) / 4 and all(
        torch.equal(a, b) for a, b in zip(want, also)
    )


def test_the_shipped_model_answers_as_ever(root):
    "data/first-video: numbers of the day it was shipped."
    model = VideoDiT.from_pretrained(root / "data" / "first-video" / "model")
    g = torch.Generator().manual_seed(0)
    x, t, y = (
        torch.randn(2, 8, 16, 8, 8, generator=g),
        torch.tensor([0.2, 0.7]),
        torch.tensor([[0, 5, 9], [1, 2, 3]]),
    )
    with torch.no_grad():
        out = model(x, t, y).double()
    assert out.sum().item() == pytest.approx(
        -613.1236354839057, rel=1e-5
    ) and out.square().sum().item() == pytest.approx(7249.051873462418, rel=1e-6)
