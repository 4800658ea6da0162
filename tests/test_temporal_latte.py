"""Latte's layout: its function, its captions, and its joint training on images and clips."""

import dataclasses

import pytest
import torch
from helpers.latte import (
    LATTE,
    PLAIN,
    SHORT,
    TEXT,
    awake_latte,
    captions,
    latte_batch,
    plain_latte,
    with_images,
)
from helpers.models import close, label

from minisora.diffusion import GaussianDiffusion
from minisora.models.conditions import Unconditional, WordCondition
from minisora.models.layouts import Checkpointed, Factorized, Joint, wrap
from minisora.models.positions import Positions, RopePositions
from minisora.models.preconditioning import EDMOutput
from minisora.models.weights import latte_state
from minisora.sampling import cfg_model
from minisora.temporal import VIDEO_PRESETS, VideoDiT
from minisora.train import fit


def by_hand(model, x, t, y, images=0):
    "What plain Latte says, sample by sample: (B, 2 C, F, H, W)."
    state = latte_state(model)
    out = []
    for clip, time, each in zip(x, t, y):
        step = round(1000 * (1 - time.item()))
        out.append(plain_latte(state, clip.transpose(0, 1), step, each[0], 2, each[1:]))
    return torch.stack(out).transpose(1, 2)


@pytest.mark.parametrize("images", [0, 2])
def test_the_function_is_that_of_latte(images):
    model = awake_latte(with_images(LATTE, images))
    inputs = latte_batch(3 + images, ids=1 + images)
    close(model(*inputs), by_hand(model, *inputs), rel=2e-5)


@pytest.mark.parametrize("images", [0, 2])
def test_captions_are_heard_as_in_latte(images):
    model = awake_latte(with_images(TEXT, images))
    x, t, _ = latte_batch(3 + images)
    y = captions(parts=1 + images)
    out = model(x, t, y)
    close(out, by_hand(model, x, t, y), rel=2e-5)
    assert torch.equal(model(x, t, y.flatten(1)), out)
    assert torch.equal(model(x, t, y.mT.contiguous().mT), out)
    if not images:
        assert torch.equal(model(x, t, y[:, 0]), out)  # (B, 77, 768)
    assert not torch.allclose(model(x, t, y.flip(0)), out, rtol=1e-3)


def test_no_caption_is_a_learned_null():
    """A caption of zeros leaves the projection's bias, which trains; guidance and training find
    it by `null_id`."""
    model = awake_latte(SHORT)
    x, t, _ = latte_batch()
    y = captions(numbers=(6,))[:, 0]
    out = model(x, t)
    assert model.null_id == 0 and torch.equal(out, model(x, t, 0 * y))
    out.square().mean().backward()
    weight, bias = model.text_embedding_projection[1].parameters()
    assert bias.grad.any() and not weight.grad.any()
    with torch.no_grad():
        want = 3 * model(x, t, y) - 2 * model(x, t)
        close(cfg_model(model, 3.0)(x, t, y)[:, :4], want[:, :4])


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_fit_trains_on_captions_and_drops_them(dropout):
    model = awake_latte(SHORT)
    before = model.text_embedding_projection[1].weight.detach().clone()
    fit(
        model,
        (latte_batch(n=4)[0], captions(4, numbers=(6,))[:, 0]),
        GaussianDiffusion(variance="learned-range"),
        steps=3,
        batch_size=2,
        warmup=0,
        condition_dropout=dropout,
        device="cpu",
        progress=False,
    )
    still = torch.equal(model.text_embedding_projection[1].weight, before)
    assert still == (dropout == 1)  # zeros teach it nothing


@pytest.mark.parametrize("shape", [(2, 1), (2, 77, 767), (1, 77, 768), (2, 2, 77, 768)])
def test_bad_captions(shape):
    x, t, _ = latte_batch()
    with pytest.raises(ValueError, match=rf"y must be \(2, 59136\), not \({shape[0]}, "):
        VideoDiT(TEXT)(x, t, torch.zeros(shape))


def test_presets_are_those_of_the_paper():
    """673.68 million parameters: Ma et al. 2024, table 3 (its count is of the trained ones,
    class-unconditional)."""
    assert [n for n in VIDEO_PRESETS if n.startswith("Latte")] == [
        f"Latte-{s}/{p}" for s in ("S", "B", "L", "XL") for p in (2, 4, 8)
    ]
    with torch.device("meta"):
        model = VideoDiT(VIDEO_PRESETS["Latte-XL/2"])
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 673.68
    assert model.config.size == (16, 32, 32) and model.out_channels == 8 and model.null_id is None


# ---------------------------------------------------------------- images behind the frames

JOINT = with_images(LATTE)


def test_images_are_seen_in_space_and_not_in_time():
    """Neither a frame nor another image hears an image; a frame hears the frames; the label of
    an image is its own."""
    model = awake_latte(JOINT).eval()
    x, t, y = latte_batch(5, n=1, ids=3)
    out = model(x, t, y)

    def moved(x, y):
        "Which frames and images of the answer change."
        return ((model(x, t, y) - out).abs().amax((0, 1, 3, 4)) > 1e-5).tolist()

    other = x.clone()
    other[:, :, 3] += 1  # the first image
    assert moved(other, y) == [False, False, False, True, False]
    other = x.clone()
    other[:, :, 0] += 1  # a frame
    assert moved(other, y) == [True] * 3 + [False] * 2
    other = y.clone()
    other[:, 1] = (y[:, 1] + 1) % 5
    assert moved(x, other) == [False] * 3 + [True, False]
    close(model(x[:, :, :3], t, y[:, :1]), out[:, :, :3])  # the clip alone is the same clip
    null = torch.full((1, 3), 5)
    assert torch.equal(model(x, t), model(x, t, null))


def test_images_train_the_spatial_blocks_alone():
    model = awake_latte(JOINT)
    out = model(*latte_batch(5, ids=3))
    out[:, :, 3:].square().mean().backward()  # a loss on the images only
    weights = [b.attn.qkv.weight for b in model.blocks]
    trained = [w.grad is not None and bool(w.grad.any()) for w in weights]
    assert trained == [True, False, True, False]


@pytest.mark.parametrize(
    "options",
    [
        dict(condition=Unconditional()),
        dict(positions=RopePositions()),
        dict(positions=Positions(), relative_bias=True),
        dict(condition=WordCondition(5, slots=2)),
        dict(output=EDMOutput(), time_convention="flow"),
        dict(wrapper=Checkpointed()),
    ],
    ids=label,
)
def test_images_with_other_options(options):
    changes = {k: v for k, v in options.items() if k != "wrapper"}
    model = awake_latte(dataclasses.replace(JOINT, **changes))
    if "wrapper" in options:
        wrap(model, options["wrapper"])
    slots = getattr(model.config.condition, "slots", 1)
    x, t, y = latte_batch(5, ids=3 * slots)
    out = model(x, t, y)
    assert out.shape == (2, model.out_channels, 5, 8, 8)
    close(model(x[:, :, :3], t, y[:, :slots]), out[:, :, :3])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, x, t, y: m(x[:, :, :4], t, y), r"x must be \(B, 4, 3, 8, 8\) or 5 frames, not"),
        (lambda m, x, t, y: m(x[0], t, y), "x must be"),
        (lambda m, x, t, y: m(x, t, y[:, :1]), r"y must be \(2, 3\), not \(2, 1\)"),
    ],
)
def test_bad_calls_with_images(call, message):
    with pytest.raises(ValueError, match=message):
        call(VideoDiT(JOINT), *latte_batch(5, ids=3))


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(condition=WordCondition(5, in_context=True)),
            r"VideoDiTConfig\.layout: num_joint_images needs patches of one frame, and no tokens",
        ),
        (
            dict(size=(4, 8, 8), patch=(2, 2, 2)),
            r"VideoDiTConfig\.layout: num_joint_images needs patches of one frame, and no tokens",
        ),
        (
            dict(positions="sincos"),
            r"VideoDiTConfig\.layout: num_joint_images have no place in time.*'sincos'",
        ),
        (
            dict(positions="inflated"),
            r"VideoDiTConfig\.layout: num_joint_images have no place in time.*'inflated'",
        ),
        (
            dict(layout=Joint()),
            r"VideoDiTConfig\.positions: 'latte' needs blocks in time, layout='factorized'",
        ),
        (dict(variable_size=True), r"VideoDiTConfig\.variable_size: a shorter clip and images"),
    ],
    ids=label,
)
def test_bad_latte_configs(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(JOINT, **options)


@pytest.mark.parametrize("number", [-1, 1.5, True, "two"])
def test_a_bad_number_of_images(number):
    with pytest.raises(ValueError, match=r"Factorized\.num_joint_images must be a whole number fr"):
        Factorized(number)


def test_no_images_ask_nothing_of_the_rest():
    for positions in ("sincos", "inflated", "rope", "none"):
        dataclasses.replace(PLAIN, layout=Factorized(), positions=positions, variable_size=True)
