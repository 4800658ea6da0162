"""What a training wraps around a model's layout: order, undoing, copies and files; and
checkpointing."""

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from helpers.models import (
    FRAMES,
    IN_CONTEXT,
    TINY,
    VIDEO,
    awake,
    batch,
    label,
    same,
    video,
    video_batch,
)

from minisora.dit import DiT
from minisora.models import layouts
from minisora.models.layouts import (
    WRAPPERS,
    Checkpointed,
    Factorized,
    Joint,
    Offloaded,
    Routed,
    Wrapper,
    as_part,
    unwrap,
    wrap,
    wrapped,
)
from minisora.temporal import VideoDiT

ROUTED = Routed(0.5, blocks=(2, 4))
EVERY_OTHER = Checkpointed(every=2)


def chain(model):
    "The layouts of a model from the outside in."
    layout = model.layout
    found = [layout]
    while isinstance(layout, Wrapper):
        layout = layout.inner
        found.append(layout)
    return found


def gradients(model, inputs):
    "The answer and all gradients, in training."
    model.train().zero_grad()
    out = model(*inputs)
    out.square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters())]


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


# ---------------------------------------------------------------- on and off


def test_the_last_wrapper_is_the_outermost():
    model = VideoDiT(FRAMES)
    assert wrap(model, ROUTED, EVERY_OTHER) is model
    assert chain(model) == [EVERY_OTHER, ROUTED, Joint()]
    assert chain(wrap(VideoDiT(FRAMES), EVERY_OTHER, ROUTED)) == [ROUTED, EVERY_OTHER, Joint()]
    assert chain(wrap(model)) == [EVERY_OTHER, ROUTED, Joint()]  # none more


@pytest.mark.parametrize("layout", [Joint(), Factorized()], ids=lambda p: p.kind)
def test_the_order_of_wrappers_changes_no_number(layout):
    options = dict(layout=layout, positions="rope", relative_bias=True, condition=IN_CONTEXT)
    inputs = video_batch(FRAMES)
    one, other, routed, plain = [
        gradients(video(FRAMES, *wrappers, **options), inputs)
        for wrappers in ((ROUTED, EVERY_OTHER), (EVERY_OTHER, ROUTED), (ROUTED,), ())
    ]
    assert equal(one, other) and equal(one, routed)
    assert not torch.allclose(one[0], plain[0], atol=1e-4)


def test_unwrap_takes_all_away():
    model = wrap(video(FRAMES), ROUTED, EVERY_OTHER)
    assert unwrap(model) is model and chain(model) == [Joint()]
    assert unwrap(model).layout is FRAMES.layout  # and again, where there is nothing
    assert equal(
        gradients(model, video_batch(FRAMES)), gradients(video(FRAMES), video_batch(FRAMES))
    )


def test_wrapped_puts_back_what_was_there():
    model = wrap(VideoDiT(FRAMES), EVERY_OTHER)
    before = model.layout
    with wrapped(model, ROUTED) as inside:
        assert inside is model and chain(model) == [ROUTED, EVERY_OTHER, Joint()]
        with wrapped(model, Checkpointed()):
            assert len(chain(model)) == 4
        assert chain(model) == [ROUTED, EVERY_OTHER, Joint()]
    assert model.layout is before


def test_wrapped_puts_back_after_an_error():
    model = wrap(VideoDiT(FRAMES), EVERY_OTHER)
    before = model.layout
    with pytest.raises(RuntimeError, match="out of memory"), wrapped(model, ROUTED):
        raise RuntimeError("out of memory")
    assert model.layout is before
    with wrapped(model, ROUTED):  # even where the inside forgot to
        unwrap(model)
    assert model.layout is before


def test_a_wrapper_that_is_refused_leaves_the_model_as_it_was():
    model = VideoDiT(FRAMES)
    before = model.layout
    bad = Routed(0.5, blocks=(2, 9))
    with pytest.raises(ValueError, match="2, 9 of 4 blocks"):
        wrap(model, EVERY_OTHER, bad)
    assert model.layout is before
    with pytest.raises(ValueError, match="2, 9 of 4 blocks"), wrapped(model, EVERY_OTHER, bad):
        raise AssertionError("the inside must not run")
    assert model.layout is before


def test_one_wrapper_serves_two_models():
    joint = wrap(VideoDiT(FRAMES), EVERY_OTHER)
    factorized = wrap(VideoDiT(dataclasses.replace(FRAMES, layout=Factorized())), EVERY_OTHER)
    assert EVERY_OTHER.inner is None
    assert joint.layout.inner == Joint() and factorized.layout.inner == Factorized()


def test_what_a_wrapper_does_not_say_the_inner_layout_does():
    model = VideoDiT(dataclasses.replace(FRAMES, layout=Factorized(2), positions="latte"))
    wrap(model, ROUTED, EVERY_OTHER)
    layout = model.layout
    assert layout.num_joint_images == 2 and layout.period == 2 and not layout.joins_time
    assert layout.bias_grid(1, (4, 2, 3)) == (4, 1, 1)
    assert layout.fraction == 0.5 and layout.every == 2
    with pytest.raises(AttributeError, match="nothing"):
        layout.nothing
    for name in ("joins_time", "run_blocks"):  # a wrapper alone is no layout
        assert not hasattr(Checkpointed(), name)


def test_wrappers_have_kinds():
    assert as_part(WRAPPERS, "checkpointed") == Checkpointed()
    assert as_part(WRAPPERS, dict(kind="routed", fraction=0.25, blocks=[1, 3])) == Routed(
        0.25, (1, 3)
    )
    with pytest.raises(
        ValueError, match="be one of 'checkpointed', 'flex-windows', 'offloaded', 'routed'"
    ):
        as_part(WRAPPERS, "sharded")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Checkpointed(0), r"Checkpointed\.every must be a whole number from 1, not 0"),
        (lambda: Offloaded(0), r"Offloaded\.every must be a whole number from 1, not 0"),
        (lambda: Checkpointed(True), r"Checkpointed\.every must be a whole number from 1"),
        (lambda: Checkpointed(1.5), r"Checkpointed\.every must be a whole number from 1, not 1\.5"),
        (
            lambda: dataclasses.replace(VIDEO, layout=Checkpointed()),
            r"VideoDiTConfig\.layout must be one of 'factorized', .*, not 'checkpointed'",
        ),
    ],
)
def test_bad_wrappers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------- copies and files


def test_wrappers_are_not_saved(tmp_path):
    plain = video(FRAMES)
    model = wrap(copy.deepcopy(plain), ROUTED, EVERY_OTHER)
    assert same(model.state_dict(), plain.state_dict()) and model.config == plain.config
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    model.save_pretrained(tmp_path / "wrapped")
    plain.save_pretrained(tmp_path / "plain")
    for name in ("config.json", "model.safetensors"):
        files = [tmp_path / folder / name for folder in ("wrapped", "plain")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    said = json.loads((tmp_path / "wrapped" / "config.json").read_text())
    assert said["layout"] == dict(kind="joint")
    assert chain(VideoDiT.from_pretrained(tmp_path / "wrapped")) == [Joint()]
    assert chain(model) == [EVERY_OTHER, ROUTED, Joint()]  # saving takes nothing away


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_wrapped_model_is_copied_with_its_wrappers(how):
    model = video(FRAMES, ROUTED, EVERY_OTHER, layout=Factorized(), condition=IN_CONTEXT)
    other = how(model)
    assert chain(other) == [EVERY_OTHER, ROUTED, Factorized()]
    inputs = video_batch(FRAMES)
    assert equal(gradients(other, inputs), gradients(model, inputs))
    unwrap(other)
    with torch.no_grad():
        other.blocks[0].attn.proj.weight.zero_()
    assert chain(model) == [EVERY_OTHER, ROUTED, Factorized()]
    assert model.blocks[0].attn.proj.weight.any()


def test_a_wrapper_alone_is_copied():
    for wrapper in (ROUTED, EVERY_OTHER):
        assert copy.deepcopy(wrapper) == pickle.loads(pickle.dumps(wrapper)) == wrapper


# ---------------------------------------------------------------- checkpointing


def kept_and_gradients(model, inputs):
    "Numbers kept for the backward pass, and gradients."
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.train()(*inputs).square().mean()
    loss.backward()
    return sum(saved), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("layout", [Joint(), Factorized()], ids=lambda p: p.kind)
def test_checkpointing_changes_memory_only(layout):
    def train(*wrappers):
        options = dict(depth=6, layout=layout, positions="rope", relative_bias=True)
        model = video(FRAMES, ROUTED, *wrappers, **options)
        return kept_and_gradients(model, video_batch(FRAMES))

    much, want = train()
    little, grads = train(Checkpointed())
    some, also = train(EVERY_OTHER)
    quarter = (much - little) / 4
    assert little < much / 2 and equal(want, grads)
    assert little + quarter < some < much - quarter and equal(want, also)


def test_checkpointing_an_image_model_keeps_gradients_and_drops_activations():
    c = dataclasses.replace(TINY, depth=4, qk_norm=True, positions="rope", relative_bias=True)
    model = awake(DiT(c))
    much, want = kept_and_gradients(model, batch(c))
    model = wrap(awake(DiT(c)), Checkpointed())
    little, grads = kept_and_gradients(model, batch(c))
    assert equal(grads, want) and all(g.any() for g in want)
    assert little < much / 3
    with torch.no_grad():
        assert not model(*batch(c)).requires_grad


@pytest.mark.parametrize("layout", [Joint(), Factorized()], ids=lambda p: p.kind)
def test_offloading_moves_what_blocks_keep_and_no_weight(layout, monkeypatch):
    moved = []
    real = layouts.to_cpu

    def watched(x):
        moved.append(x)
        return real(x)

    monkeypatch.setattr(layouts, "to_cpu", watched)

    def train(*wrappers):
        moved.clear()
        options = dict(depth=6, layout=layout, positions="rope", relative_bias=True)
        model = video(FRAMES, *wrappers, **options).train()
        model(*video_batch(FRAMES)).square().mean().backward()
        weights = {p.data_ptr() for p in model.parameters()}
        assert not any(x.data_ptr() in weights for x in moved)
        return sum(x.nbytes for x in moved), [p.grad for p in model.parameters()]

    none, want = train()
    much, grads = train(Offloaded())
    some, also = train(Offloaded(every=2))
    little, too = train(Checkpointed(), Offloaded())
    assert none == 0 < little < much / 4 and much / 3 < some < much * 2 / 3
    assert equal(want, grads) and equal(want, also) and equal(want, too)
    with torch.no_grad():
        model = video(FRAMES, Offloaded(), depth=2, layout=layout)
        moved.clear()
        model(*video_batch(FRAMES))
    assert not moved


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    "make, inputs", [(lambda: video(FRAMES), video_batch(FRAMES)), (lambda: awake(DiT(TINY)), None)]
)
def test_each_nth_block_runs_twice_and_only_when_it_learns(make, inputs, every):
    model = wrap(make(), Checkpointed(every))
    inputs = inputs or batch()
    calls = [0] * len(model.blocks)
    for i, block in enumerate(model.blocks):

        def count(*_, i=i):
            calls[i] += 1

        block.register_forward_pre_hook(count)
    model(*inputs).mean().backward()
    assert calls == [1 + (i % every == 0) for i in range(len(calls))]
    calls[:] = [0] * len(calls)
    with torch.no_grad():
        model(*inputs)
    assert calls == [1] * len(calls)


@pytest.mark.parametrize(
    "options",
    [dict(layout=Factorized(2), positions="latte"), dict(variable_size=True)],
    ids=label,
)
def test_checkpointing_with_images_and_with_smaller_clips(options):
    "Whatever a block is called on, it is called on it again."
    images = options.get("layout", Joint()).num_joint_images
    size = (4 + images, 4, 6) if images else (2, 4, 4)
    c = dataclasses.replace(FRAMES, **options)
    x, t, y = video_batch(c, size=size)
    y = y.repeat(1, 1 + images)
    plain = gradients(video(c), (x, t, y))
    assert equal(gradients(video(c, Checkpointed()), (x, t, y)), plain)
