"""Tokens that are routed around blocks in training: which they are, what they miss, and what it
saves."""

import dataclasses
import random
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers.models import FRAMES, IN_CONTEXT, TINY, awake, close, label, video, video_batch
from torch.utils.flop_counter import FlopCounterMode

from minisora.dit import DiT, patchify
from minisora.interpolants import Interpolant
from minisora.models import layouts
from minisora.models.conditions import Unconditional, WordCondition
from minisora.models.layers import BlockConfig
from minisora.models.layouts import (
    Checkpointed,
    Factorized,
    Joint,
    Routed,
    gather_index,
    kept_tokens,
    unwrap,
    wrap,
    wrapped,
)
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import fit

SIX = dataclasses.replace(FRAMES, depth=6)
HALF = Routed(0.5, blocks=(2, 4))
BOTH = [Joint(), Factorized()]
FULL = dict(positions="rope", relative_bias=True, condition=IN_CONTEXT)


def kind(part):
    return part.kind


# ---------------------------------------------------------------- which tokens are kept


def test_drawn_tokens_are_uniform():
    """Each token, each pair and each triple as often as the others, of samples that are all but
    alike."""
    x = torch.ones(6000, 1, 2, 2, 2)
    x[:, 0, 1, 1, 1] += torch.arange(6000) * 2.0**-20
    kept = kept_tokens(x, 10, 0.7)
    assert kept.shape == (6000, 3) and (kept.diff(dim=1) > 0).all()
    assert kept.min() == 0 and kept.max() == 9
    for n, kinds in ((1, 10), (2, 45), (3, 120)):
        sets = torch.stack(
            [sum(10**k * c for k, c in enumerate(rows)) for rows in combinations(kept.unbind(1), n)]
        )
        counts = torch.unique(sets, return_counts=True)[1]
        mean = sets.numel() / kinds  # chi² has kinds − 1 ± √(2 kinds)
        chi2 = (counts - mean).square().sum() / mean
        assert len(counts) == kinds and chi2 < kinds + 4 * (2 * kinds) ** 0.5
    half = kept_tokens(x, 64, 0.5)
    both = (half[1:, :, None] == half[:-1, None]).sum((1, 2)).float()
    # neighbors: hypergeometric, 16 ± 2
    assert 15.8 < both.mean() < 16.2 and 1.8 < both.std() < 2.2
    # less than a token: none
    assert torch.equal(kept_tokens(x[:2], 4, 0.2), torch.arange(4).expand(2, 4))


def test_a_sample_alone_takes_the_way_it_takes_in_any_batch():
    x = torch.randn(8, 4, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    kept = kept_tokens(x, 24, 0.5)
    order = [5, 2, 7]
    assert torch.equal(kept_tokens(x[order], 24, 0.5), kept[order])
    assert len(kept.unique(dim=0)) == 8
    strided = x.transpose(1, 4).contiguous().transpose(1, 4)  # in any memory format
    assert torch.equal(kept_tokens(strided, 24, 0.5), kept)
    torch.rand(3)
    assert torch.equal(kept_tokens(x.clone().requires_grad_(), 24, 0.5), kept)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert len(kept_tokens(x.to(dtype), 24, 0.5).unique(dim=0)) == 8


def test_an_index_takes_the_same_places_of_every_frame():
    rows = torch.tensor([[0, 2], [1, 3]])
    h = torch.randn(2, 4, 5)
    assert torch.equal(h.gather(-2, gather_index(h, rows)), h[torch.arange(2)[:, None], rows])
    frames = torch.randn(2, 3, 4, 5)
    taken = frames.gather(-2, gather_index(frames, rows))
    assert torch.equal(taken[1], frames[1][:, [1, 3]]) and taken.shape == (2, 3, 2, 5)


@pytest.mark.parametrize("wrappers", [(HALF,), (HALF, Checkpointed())], ids=["", "checkpointed"])
def test_no_global_generator_is_touched(wrappers):
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    model = video(SIX, *wrappers)
    x, t, y = video_batch(SIX)
    before = states()
    model(x, t, y).square().mean().backward()
    assert states() == before
    fit(model, (x, y), Interpolant(), steps=1, batch_size=3, progress=False)
    assert states() == before


# ---------------------------------------------------------------- what they miss

ROUTES = [
    dict(),
    FULL,
    dict(layout=Factorized(), **FULL),
    dict(layout=Factorized(), positions="latte"),
]


@pytest.mark.parametrize("options", ROUTES, ids=label)
def test_routing_is_off_in_eval_and_reaches_every_token_in_training(options):
    model = video(SIX, HALF, **options)
    plain = video(SIX, **options)
    x, t, y = video_batch(SIX)
    assert torch.equal(model.eval()(x, t, y), plain(x, t, y))
    model.train()
    x.requires_grad_()
    out = model(x, t, y)
    assert torch.equal(out, model(x, t, y))
    assert not torch.allclose(out, model(x * (1 + 1e-6), t, y), atol=1e-4)
    assert not torch.allclose(out, plain(x, t, y), atol=1e-4)
    out.square().mean().backward()
    by_token = patchify(x.grad, SIX.patch).abs().amax(-1)
    assert (by_token > 0).all()  # every token, routed or not
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def silence(blocks):
    for block in blocks:
        block.adaLN_modulation[1].weight.data.zero_()
        block.adaLN_modulation[1].bias.data.zero_()


@pytest.mark.parametrize("layout", BOTH, ids=kind)
def test_routed_tokens_skip_exactly_their_blocks(layout, monkeypatch):
    """With all other blocks silent, routed tokens come out as they went in, and kept ones see
    only one another."""
    options = dict(layout=layout, condition=Unconditional())
    model = video(SIX, HALF, **options)
    silence([model.blocks[i] for i in (0, 1, 4, 5)])
    silent = video(SIX, **options)
    silence(silent.blocks)
    x, t, _ = video_batch(SIX)
    tokens = 24 if layout.joins_time else 6
    rows = kept_tokens(x, tokens, 0.5)
    kept = torch.zeros(3, tokens).scatter(1, rows, 1.0).bool()
    if not layout.joins_time:
        kept = kept.repeat(1, 4)  # the same places in every frame
    out = patchify(model(x, t), SIX.patch)
    still = patchify(silent(x, t), SIX.patch)
    close(out[~kept], still[~kept])
    assert (out[kept] - still[kept]).abs().amax(-1).min() > 1e-4
    # change the routed only
    pixels = (~kept).float().view(3, 1, 4, 2, 3).repeat_interleave(2, 3).repeat_interleave(2, 4)
    monkeypatch.setattr(layouts, "kept_tokens", lambda *_: rows)  # other bits, the same way
    close(patchify(model(x + pixels, t), SIX.patch)[kept], out[kept])


@pytest.mark.parametrize("layout", BOTH, ids=kind)
def test_each_sample_has_its_own_route(layout):
    "A batch is its samples one by one, each with its own route, turns and biases."
    model = video(SIX, HALF, layout=layout, **FULL)
    x, t, y = video_batch(SIX)
    close(model(x, t, y), torch.cat([model(x[[i]], t[[i]], y[[i]]) for i in range(3)]))


@pytest.mark.parametrize("layout", BOTH, ids=kind)
def test_routed_with_every_token_kept_is_the_plain_model(layout):
    "The detour through gather, per-sample rope and bias and scatter changes nothing by itself."
    options = dict(layout=layout, **FULL)
    inputs = video_batch(SIX)
    few = video(SIX, Routed(0.01, (2, 4)), **options)  # rounds down to none
    close(few(*inputs), video(SIX, **options)(*inputs))
    none = video(SIX, Routed(0.0, (2, 4)), **options)
    assert torch.equal(none(*inputs), video(SIX, **options)(*inputs))


def test_words_in_context_never_skip():
    "They stand in front, and every block is run on them."
    seen = []
    model = video(SIX, HALF, condition=IN_CONTEXT)
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    model(*video_batch(SIX))
    assert seen == [26, 26, 14, 14, 26, 26]  # 2 words, and 24 or 12 tokens
    ends = {}
    model = video(SIX, HALF, condition=IN_CONTEXT)
    model.blocks[1].register_forward_hook(lambda _, args, out: ends.update(before=out))
    model.blocks[2].register_forward_pre_hook(lambda _, args: ends.update(inside=args[0]))
    x, t, y = video_batch(SIX)
    model(x, t, y)
    words = torch.arange(2).expand(3, 2)
    rows = torch.cat([words, 2 + kept_tokens(x, 24, 0.5)], 1)
    assert torch.equal(ends["inside"], ends["before"][torch.arange(3)[:, None], rows])


def test_a_smaller_clip_may_be_routed_and_is_whole_patches():
    model = video(FRAMES, Routed(0.5, blocks=(1, 3)), variable_size=True, **FULL)
    x, t, y = video_batch(FRAMES, size=(2, 4, 4))
    assert model(x, t, y).shape == x.shape
    for size in ((4, 3, 6), (5, 4, 6), (4, 4, 8)):
        with pytest.raises(ValueError, match=r"x must be .* smaller, in whole patches \(1, 2, 2\)"):
            model(torch.zeros(3, 4, *size), t, y)


@pytest.mark.parametrize("layout", BOTH, ids=kind)
def test_flops_saved(layout):
    """Half of the tokens skip 8 of 10 blocks: the linear layers of these cost half, attention a
    half to a quarter."""
    c = VideoDiTConfig(
        size=(4, 16, 16), patch=(1, 2, 2), width=64, depth=10, heads=2, layout=layout
    )
    with torch.device("meta"):
        model = VideoDiT(c).to("meta")

    def flops():
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 4, 4, 16, 16, device="meta"), torch.empty(1, device="meta"))
        return counter.get_total_flops()

    full = flops()
    with wrapped(model, Routed(0.5, blocks=(2, 10))):
        assert 0.50 < flops() / full < 0.62
        model.eval()
        assert flops() == full


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Routed(1.0), r"Routed\.fraction must be below 1, not 1\.0"),
        (lambda: Routed(-0.1), r"Routed\.fraction must be a number, 0 or more, not -0\.1"),
        (lambda: Routed("half"), r"Routed\.fraction must be a number"),
        (lambda: Routed(0.5, (2,)), r"Routed\.blocks must be two whole numbers, .* not \(2,\)"),
        (lambda: Routed(0.5, (2, 3, 4)), r"Routed\.blocks must be two whole .* not \(2, 3, 4\)"),
        (lambda: Routed(0.5, (2, 3.5)), r"Routed\.blocks must be two whole .* not \(2, 3\.5\)"),
        (lambda: Routed(0.5, (True, 2)), r"Routed\.blocks must be two whole .* not \(True, 2\)"),
    ],
)
def test_bad_routes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "blocks, layout, message",
    [
        ((-1, 4), Joint(), r"Routed\.blocks: -1, 4 of 6 blocks"),
        ((4, 4), Joint(), r"Routed\.blocks: 4, 4 of 6 blocks"),
        ((4, 2), Joint(), r"Routed\.blocks: 4, 2 of 6 blocks"),
        ((2, 7), Joint(), r"Routed\.blocks: 2, 7 of 6 blocks"),
        ((1, 4), Factorized(), r"Routed\.blocks: 1, 4 would part a block in space from its block"),
        ((2, 5), Factorized(), r"Routed\.blocks: 2, 5 would part a block in space from its block"),
    ],
)
def test_routes_that_the_model_does_not_have(blocks, layout, message):
    model = VideoDiT(dataclasses.replace(SIX, layout=layout))
    with pytest.raises(ValueError, match=message):
        wrap(model, Routed(0.5, blocks))
    assert model.layout is layout
    with pytest.raises(ValueError, match=message):  # through another wrapper too
        wrap(model, Checkpointed(), Routed(0.5, blocks))


@pytest.mark.parametrize("blocks", [(1, 4), (0, 6), (5, 6)])
def test_joint_attention_may_be_routed_anywhere(blocks):
    model = video(SIX, Routed(0.5, blocks))
    assert model(*video_batch(SIX)).isfinite().all()
    assert video(SIX, Routed(0.5, (0, 6)), layout=Factorized())(*video_batch(SIX)).isfinite().all()


@pytest.mark.parametrize("between", [(), (Checkpointed(),)], ids=["next", "through another"])
def test_a_layout_is_routed_once(between):
    "The inner of two routes would be ignored: a second one is refused, and the first stays."
    first = Routed(0.5, (2, 4))
    message = r"routed already, by Routed\(fraction=0\.5, blocks=\(2, 4\)\)"
    model = VideoDiT(SIX)
    with pytest.raises(ValueError, match=message):
        wrap(model, first, *between, Routed(0.25, (4, 6)))
    assert model.layout is SIX.layout
    wrap(model, first, *between)
    before = model.layout
    with pytest.raises(ValueError, match=message), wrapped(model, first):
        raise AssertionError("the inside must not run")
    assert model.layout is before
    wrap(unwrap(model), Routed(0.25, (4, 6)))  # without the first it may come
    assert model.layout == Routed(0.25, (4, 6))


def test_an_image_model_is_not_routed():
    "A DiT runs its blocks itself: a wrapper that would do nothing is refused."
    with pytest.raises(ValueError, match="Routed is for models whose layout runs the blocks"):
        wrap(DiT(TINY), HALF)


# ---------------------------------------------------------------- in training

SMALL = dict(width=16, heads=2, size=(2, 4, 4), condition=WordCondition(7))
DATA = (
    torch.randn(40, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0)),
    torch.randint(0, 7, (40, 1), generator=torch.Generator().manual_seed(1)),
)


def go(model, **options):
    settings = dict(steps=6, batch_size=4, progress=False, lr=1e-2)
    return fit(model, DATA, Interpolant(), **{**settings, **options})


def weights(result):
    return [v for m in (result.model, result.ema) for v in m.state_dict().values()]


def losses(result):
    return [r["loss"] for r in result.log]


def test_fit_with_routing_resumes_bit_equal(tmp_path):
    "The noise of (seed, step, sample index) draws the tokens: stopping changes nothing."
    c = dataclasses.replace(SIX, **SMALL)

    def routed(folder, **options):
        return go(wrap(VideoDiT(c), HALF, Checkpointed()), out=tmp_path / folder, **options)

    whole = routed("a")
    routed("b", stop_at=2)
    torch.rand(7)
    routed("b", stop_at=3)
    parts = routed("b")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(parts)))
    assert losses(whole) == losses(parts)
    plain = go(VideoDiT(c)).model.final_layer.linear.weight
    assert not torch.equal(plain, whole.model.final_layer.linear.weight)


@pytest.mark.parametrize(
    "parts, wrappers, options",
    [
        (2, (HALF,), dict()),
        (
            4,
            (HALF, Checkpointed()),
            dict(layout=Factorized(), condition=WordCondition(7, in_context=True)),
        ),
    ],
    ids=["joint", "factorized"],
)
def test_a_batch_of_eight_may_go_in_parts(parts, wrappers, options):
    changes = {**SMALL, "block": BlockConfig(qk_norm=True), **options}

    def train(n):
        model = wrap(awake(VideoDiT(dataclasses.replace(SIX, **changes))), *wrappers)
        return go(model, batch_size=8 // n, accumulate=n, lr=1e-3, log_every=1)

    whole = train(1)
    split = train(parts)
    assert losses(split) == pytest.approx(losses(whole), rel=1e-5) and len(whole.log) == 6
    for a, b in zip(weights(whole), weights(split)):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_fit_puts_wrappers_around_the_model_while_it_trains():
    "`fit(…, wrappers=[…])` trains as it does a wrapped model; the wrappers go when it is done."
    c = dataclasses.replace(SIX, **SMALL)
    model = VideoDiT(c)
    given = go(model, wrappers=[HALF, Checkpointed()])
    assert model.layout is c.layout
    wanted = go(wrap(VideoDiT(c), HALF, Checkpointed()))
    assert losses(given) == losses(wanted) != losses(go(VideoDiT(c)))
    assert all(torch.equal(a, b) for a, b in zip(weights(given), weights(wanted)))
