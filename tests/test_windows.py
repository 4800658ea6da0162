"""Windows of tokens as a layout: equal to full attention under the mask that says the same."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers.models import awake

from minisora.interpolants import Interpolant
from minisora.models.conditions import WordCondition
from minisora.models.layers import BlockConfig
from minisora.models import windows
from minisora.models.layouts import Checkpointed, Joint, Routed, wrap, wrapped
from minisora.models.windows import (
    FlexWindows,
    Windows,
    merge,
    padding_bias,
    partition,
    window_counts,
)
from minisora.temporal import VideoDiT, VideoDiTConfig

GRIDS = [
    ((2, 4, 4), (2, 2, 2)),
    ((3, 5, 7), (2, 2, 3)),
    ((5, 4, 6), (1, 4, 6)),
    ((1, 3, 3), (1, 2, 2)),
    ((4, 3, 2), (3, 4, 5)),
]


def effective(window, grid):
    return tuple(min(n or w, w) for n, w in zip(window, grid))


@pytest.mark.parametrize("grid, window", GRIDS)
def test_merging_undoes_partitioning(grid, window):
    window = effective(window, grid)
    h = torch.randn(2, torch.Size(grid).numel(), 3)
    rows = partition(h, grid, window)
    counts = torch.Size(window_counts(grid, window)).numel()
    assert rows.shape == (2, counts, torch.Size(window).numel(), 3)
    assert torch.equal(merge(rows, grid, window), h)


@pytest.mark.parametrize("grid, window", GRIDS)
def test_tokens_of_one_window_are_those_of_one_block_of_the_grid(grid, window):
    window = effective(window, grid)
    numbers = 1 + torch.arange(torch.Size(grid).numel()).view(1, -1, 1).float()
    rows = partition(numbers, grid, window)[0, ..., 0]
    padding = padding_bias(grid, window, 2, numbers)
    expected = set()
    for corner in itertools.product(*(range(0, g, w) for g, w in zip(grid, window))):
        places = itertools.product(
            *(range(c, min(c + w, g)) for c, w, g in zip(corner, window, grid))
        )
        expected.add(tuple(1 + (t * grid[1] + y) * grid[2] + x for t, y, x in places))
    found = {tuple(int(n) for n in row if n) for row in rows}
    assert found == expected
    if padding is None:
        assert (rows > 0).all()
    else:
        assert torch.equal(padding[:, 2:].isinf(), rows == 0) and (padding[:, :2] == 0).all()


def config(grid, sizes, **options):
    return VideoDiTConfig(
        size=grid,
        patch=(1, 1, 1),
        channels=3,
        width=24,
        depth=4,
        heads=3,
        layout=Windows(sizes),
        **options,
    )


def same_window(grid, window, front):
    "(slots + N, slots + N) bool: what each token may see. Condition tokens are seen by all."
    places = torch.cartesian_prod(*[torch.arange(n) for n in grid])
    block = places // torch.tensor(window)
    same = (block[:, None] == block[None]).all(-1)
    whole = torch.ones(front + len(same), front + len(same), dtype=torch.bool)
    whole[front:, front:] = same
    return whole


def full_bias(model, i, grid):
    "The relative bias of block i between all tokens of the whole grid, (heads, N, N), or 0."
    if not model.config.relative_bias:
        return 0
    table = model.bias[i].table
    window = torch.tensor(model.layout.window(i, model.grid))
    p = torch.cartesian_prod(*[torch.arange(n) for n in grid])
    offset = (p[None] - p[:, None]).clamp(min=1 - window, max=window - 1) + window - 1
    sizes = 2 * window - 1
    return table[:, (offset[..., 0] * sizes[1] + offset[..., 1]) * sizes[2] + offset[..., 2]]


def by_full_attention(model, x, t, y=None):
    "The same network, each block on all tokens at once, under the mask of its windows."
    c = model.config
    front = model.num_tokens

    def apply_block(self, model, i, h, steering, grid, kept=None):
        seen = same_window(grid, self.window(i, grid), front)
        bias = torch.zeros(c.heads, *seen.shape).masked_fill(~seen, -torch.inf)
        bias[:, front:, front:] += full_bias(model, i, grid)
        rope = getattr(model, "rope", None)
        if rope is not None and grid != model.grid:
            n, m = grid, model.grid
            at = torch.arange(torch.Size(m).numel()).view(m)[: n[0], : n[1], : n[2]].flatten()
            rope = torch.cat([rope[:, :front], rope[:, front + at]], 1)
        out = model.blocks[i](h, steering, bias, rope)
        return torch.cat([h[:, :front], out[:, front:]], 1)

    class Full(Windows):
        pass

    Full.apply_block = apply_block
    other, model.layout = model.layout, Full(model.layout.sizes)
    try:
        return model(x, t, y)
    finally:
        model.layout = other


VARIANTS = {
    "plain": {},
    "relative": dict(relative_bias=True),
    "rope": dict(positions="rope", block=BlockConfig(qk_norm=True, norm="rms", mlp="swiglu")),
    "words": dict(condition=WordCondition(5, slots=2, in_context=True), relative_bias=True),
    "words and rope": dict(
        condition=WordCondition(5, slots=2, in_context=True),
        positions="rope",
        relative_bias=True,
    ),
    "low rank": dict(modulation={"kind": "adaln-lora", "rank": 2}),
}
SIZES = [((1, 0, 0), (0, 2, 2)), ((2, 2, 3), (3, 3, 2), (0, 0, 0)), ((2, 3, 3),)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "grid, smaller", [((4, 4, 4), None), ((3, 5, 4), None), ((4, 5, 4), (3, 4, 2))]
)
def test_equal_to_full_attention_under_the_mask(grid, smaller, variant, sizes):
    options = VARIANTS[variant] | (dict(variable_size=True) if smaller else {})
    model = awake(VideoDiT(config(grid, sizes, **options)))
    g = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, *(smaller or grid), generator=g).requires_grad_()
    t = torch.tensor([0.2, 0.9])
    y = torch.tensor([[0, 4], [5, 2]]) if model.config.condition.null_id else None
    results = []
    for run in (model, lambda *a: by_full_attention(model, *a)):
        model.zero_grad()
        x.grad = None
        out = run(x, t, y)
        out.square().sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((out.detach(), x.grad.clone(), gradients))
    (out, gx, grads), (want, want_x, want_grads) = results
    assert out.abs().max() > 0.01
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gx, want_x, rtol=1e-4, atol=1e-4)
    assert grads.keys() == want_grads.keys()
    for name, grad in grads.items():
        scale = want_grads[name].abs().max().clamp(min=1e-3)
        assert (grad - want_grads[name]).abs().max() <= 1e-4 * scale, name


def test_a_window_of_everything_is_joint_attention():
    everything = config((2, 3, 4), ((0, 0, 0),), relative_bias=True)
    model = awake(VideoDiT(everything))
    joint = VideoDiT(replace(everything, layout=Joint()))
    joint.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 2, 3, 4)
    t = torch.tensor([0.1, 0.7])
    torch.testing.assert_close(model(x, t), joint(x, t), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- images beside clips


def with_images(n, in_context=False, sizes=((1, 0, 0), (0, 2, 2)), **options):
    words = WordCondition(5, slots=2, in_context=in_context)
    base = config((3, 4, 4), sizes, condition=words, **options)
    return awake(VideoDiT(replace(base, layout=replace(base.layout, num_joint_images=n))))


IMAGE_OPTIONS = [
    {},
    dict(relative_bias=True),
    dict(positions="rope"),
    dict(positions="learned"),
    dict(in_context=True),
    dict(in_context=True, relative_bias=True),
    dict(in_context=True, positions="rope", sizes=((1, 3, 3), (0, 2, 2))),
]


@pytest.mark.parametrize("options", IMAGE_OPTIONS, ids=str)
def test_images_behind_a_clip_are_as_alone(options):
    "A clip and 1 + t images in one batch row answer as each of them alone."
    n = 4
    model = with_images(n, **options)
    g = torch.Generator().manual_seed(4)
    clip = torch.randn(2, 3, 3, 4, 4, generator=g)
    images = torch.randn(2, 3, n, 4, 4, generator=g)
    y = torch.randint(0, 6, (2, 1 + n, 2), generator=g)
    t = torch.tensor([0.3, 0.8])
    both = model(torch.cat([clip, images], 2), t, y)
    assert both.shape == (2, 3, 3 + n, 4, 4)
    torch.testing.assert_close(both[:, :, :3], model(clip, t, y[:, 0]), rtol=1e-5, atol=1e-5)
    first = model.layout.sizes[0]
    still = VideoDiT(
        VideoDiTConfig(**{**vars(model.config), "size": (1, 4, 4), "layout": Windows((first,))})
    )
    state = {k: v for k, v in model.state_dict().items() if k in still.state_dict()}
    if "temp_embed" in state:
        state["temp_embed"] = state["temp_embed"][:, :1]
    if options.get("relative_bias"):
        state = {k: v for k, v in state.items() if not k.startswith("bias.")}
        state |= {f"bias.{i}.table": model.bias[0].table for i in range(4)}
        for i in range(0, 4, 2):
            state[f"bias.{i}.table"] = model.bias[i].table
    still.load_state_dict(state)
    still.layout = SpatialOnly((first, first))
    for k in range(n):
        image = images[:, :, k : k + 1]
        alone = still(image, t, y[:, 1 + k])
        torch.testing.assert_close(model(image, t, y[:, 1 + k]), alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(both[:, :, 3 + k : 4 + k], alone, rtol=1e-5, atol=1e-5)


class SpatialOnly(Windows):
    "Odd blocks do nothing: what is left for an image."

    def apply_block(self, model, i, h, c, grid, kept=None):
        return h if i % 2 else super().apply_block(model, i, h, c, grid, kept)


def test_words_are_read_in_windows_of_a_frame_each_by_its_own_image():
    "With images: another caption changes only its own image; windows in time read no words."
    n = 2
    model = with_images(n, in_context=True, relative_bias=True)
    assert [bias.prefix for bias in model.bias] == [2, 0, 2, 0]
    g = torch.Generator().manual_seed(5)
    x = torch.randn(1, 3, 3 + n, 4, 4, generator=g)
    t = torch.tensor([0.4])
    y = torch.tensor([[[0, 1], [2, 3], [4, 0]]])
    before = model(x, t, y)
    for which, frames in ((0, slice(0, 3)), (1, slice(3, 4)), (2, slice(4, 5))):
        other = y.clone()
        other[0, which] = torch.tensor([5, 4])
        moved = (model(x, t, other) - before).abs().amax((0, 1, 3, 4)) > 1e-6
        want = torch.zeros(5, dtype=torch.bool)
        want[frames] = True
        assert torch.equal(moved, want)
    h = torch.randn(1, 3 * 2 + 5 * 16, 24, generator=g)
    c = torch.randn(5, 24, generator=g)
    for i, reads in ((0, True), (1, False)):
        told = h.clone()
        told[:, :6] += 1
        out, again = (model.layout.apply_block(model, i, v, c, (3, 4, 4)) for v in (h, told))
        assert torch.equal(out[:, :6], h[:, :6]) and torch.equal(again[:, :6], told[:, :6])
        assert torch.equal(out[:, 6:], again[:, 6:]) != reads


@pytest.mark.parametrize("in_context", [False, True])
def test_the_loss_of_a_batch_is_that_of_its_parts(in_context):
    "Per sample: a clip and its images in one row cost what they cost apart."
    n = 3
    model = with_images(n, in_context=in_context, relative_bias=True)
    g = torch.Generator().manual_seed(6)
    z, noise = torch.randn(2, 2, 3, 3 + n, 4, 4, generator=g)
    y = torch.randint(0, 6, (2, 1 + n, 2), generator=g)
    t = torch.tensor([0.3, 0.8])
    objective = Interpolant()
    whole = objective.loss(model, z, y, noise, t)["loss"]
    clip = objective.loss(model, z[:, :, :3], y[:, 0], noise[:, :, :3], t)["loss"]
    images = [
        objective.loss(model, z[:, :, k : k + 1], y[:, k - 2], noise[:, :, k : k + 1], t)["loss"]
        for k in range(3, 3 + n)
    ]
    assert whole.shape == (2,)
    torch.testing.assert_close(whole, (3 * clip + sum(images)) / (3 + n), rtol=1e-5, atol=1e-5)


def test_an_image_passes_windows_in_time_untouched():
    model = with_images(4)
    h = torch.randn(2, 7 * 16, 24)
    c = torch.randn(2 * 7, 24)
    out = model.layout.apply_block(model, 1, h, c, (3, 4, 4))
    assert torch.equal(out[:, 3 * 16 :], h[:, 3 * 16 :])
    assert not torch.equal(out[:, : 3 * 16], h[:, : 3 * 16])
    changed = model.layout.apply_block(model, 0, h, c, (3, 4, 4))
    assert (changed != h).any(-1).all()


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(patch=(3, 1, 1)), "patches of one frame"),
        (dict(positions="inflated"), "inflated"),
        (dict(variable_size=True), "look alike"),
        (dict(layout=Windows(((0, 2, 2),), num_joint_images=1)), "window of one frame"),
    ],
)
def test_what_does_not_go_with_images_is_refused(fields, words):
    base = dict(size=(3, 4, 4), patch=(1, 1, 1), width=24, heads=3, depth=2)
    layout = dict(layout=Windows(((1, 0, 0), (0, 2, 2)), num_joint_images=2))
    with pytest.raises(ValueError, match=words):
        VideoDiTConfig(**(base | layout | fields))


# ---------------------------------------------------------------- as a part of a model


@pytest.mark.parametrize(
    "sizes", [(), 3, ((1, 2),), ((1, 0, -1),), ((1, 0, 2.0),), ((True, 0, 0),), "abc"]
)
def test_windows_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match="Windows.sizes must be windows"):
        Windows(sizes)


def test_a_model_with_windows_is_saved_and_loaded(tmp_path):
    model = awake(
        VideoDiT(config((3, 4, 5), SIZES[0], modulation="adaln-lora", relative_bias=True))
    )
    model.save_pretrained(tmp_path / "m")
    again = VideoDiT.from_pretrained(tmp_path / "m")
    assert again.config == model.config and again.config.layout == Windows(SIZES[0])
    x = torch.randn(1, 3, 3, 4, 5)
    t = torch.tensor([0.5])
    assert torch.equal(model(x, t), again(x, t))


def test_routing_is_refused_and_checkpointing_is_exact():
    model = awake(VideoDiT(config((2, 4, 4), SIZES[0])))
    with pytest.raises(ValueError, match="needs all tokens of a window"):
        wrap(model, Routed(0.5, (0, 2)))
    x = torch.randn(1, 3, 2, 4, 4)
    t = torch.tensor([0.5])
    model(x, t).square().sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    wrap(model, Checkpointed())
    model(x, t).square().sum().backward()
    for p, grad in zip(model.parameters(), plain):
        torch.testing.assert_close(p.grad, grad)


# ---------------------------------------------------------------- by FlexAttention


def written_out(q, k, v, score):
    "FlexAttention by its definition, differentiable on any device."
    where = [torch.arange(n).view([-1] + [1] * (3 - i)) for i, n in enumerate(q.shape[:3])]
    logits = q @ k.mT * q.shape[-1] ** -0.5
    return score(logits, *where, torch.arange(k.shape[2])).softmax(-1) @ v


FLEX = [
    (name, sizes, grid, smaller)
    for name in ("plain", "relative", "words and rope")
    for sizes in SIZES[:2]
    for grid, smaller in [((3, 5, 4), None), ((4, 5, 4), (3, 4, 2))]
]


@pytest.mark.parametrize("variant, sizes, grid, smaller", FLEX, ids=str)
def test_by_scores_as_by_a_bias(variant, sizes, grid, smaller, monkeypatch):
    options = VARIANTS[variant] | (dict(variable_size=True) if smaller else {})
    model = awake(VideoDiT(config(grid, sizes, **options)))
    g = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, *(smaller or grid), generator=g)
    t = torch.tensor([0.2, 0.9])
    y = torch.tensor([[0, 4], [5, 2]]) if model.config.condition.null_id else None
    want = model(x, t, y)
    want.square().sum().backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    with wrapped(model, FlexWindows()), torch.no_grad():
        torch.testing.assert_close(model(x, t, y), want, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(windows, "_flex_attention", written_out)
    model.zero_grad()
    with wrapped(model, FlexWindows(), Checkpointed(every=2)):
        model(x, t, y).square().sum().backward()
    assert gradients.keys() == {k for k, p in model.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        scale = gradients[name].abs().max().clamp(min=1e-3)
        assert (p.grad - gradients[name]).abs().max() <= 1e-5 * scale, name


def test_by_scores_with_images_and_their_captions():
    model = with_images(2, in_context=True, relative_bias=True, sizes=((1, 3, 3), (0, 2, 3)))
    g = torch.Generator().manual_seed(7)
    x = torch.randn(2, 3, 5, 4, 4, generator=g)
    t = torch.tensor([0.3, 0.8])
    y = torch.randint(0, 6, (2, 3, 2), generator=g)
    with torch.no_grad():
        want = model(x, t, y)
        with wrapped(model, FlexWindows()):
            torch.testing.assert_close(model(x, t, y), want, rtol=1e-5, atol=1e-5)


def test_where_scores_cannot_be_changed_it_is_said():
    model = awake(VideoDiT(config((2, 4, 4), SIZES[0], relative_bias=True)))
    x = torch.randn(1, 3, 2, 4, 4)
    t = torch.tensor([0.5])
    with wrapped(model, FlexWindows()), pytest.raises(NotImplementedError, match="no backward"):
        model(x, t)
    joint = VideoDiT(replace(model.config, layout=Joint()))
    with pytest.raises(ValueError, match="FlexWindows is for models with layout='windows', not"):
        wrap(joint, FlexWindows())
    bare = awake(VideoDiT(config((2, 4, 4), SIZES[0])))  # neither bias nor padding: as before
    with wrapped(bare, FlexWindows()):
        bare(x, t).sum().backward()
