"""An image model's weights in a video model: at first it is the image model, frame by frame, and
then it learns time."""

import dataclasses

import pytest
import torch
from helpers.latte import LATTE, latte_batch, plain_latte
from helpers.models import awake, close, label

from minisora.dit import DiT, DiTConfig
from minisora.models.conditions import Unconditional, WordCondition
from minisora.models.inflate import load_image_weights
from minisora.models.layers import BlockConfig
from minisora.models.layouts import Checkpointed, Factorized, wrap
from minisora.models.positions import InflatedPositions, LattePositions, Positions, RopePositions
from minisora.models.preconditioning import DataOutput, DirectOutput, EDMOutput
from minisora.models.weights import latte_state, load_latte_state
from minisora.temporal import VideoDiT, inflate

IMAGE = DiTConfig(size=(8, 8), width=32, depth=2, heads=2, num_classes=5)
SMALL = DiTConfig(size=(4, 6), width=32, depth=2, heads=2, num_classes=5)
FLOW = dict(learn_sigma=False, time_convention="flow")


def frame_by_frame(image, x, t, y):
    return torch.stack([image(x[:, :, i], t, y) for i in range(x.shape[2])], 2)


@pytest.mark.parametrize(
    "options",
    [dict(), dict(num_classes=0, time_scale=1.0, qk_norm=True, **FLOW)],
    ids=label,
)
def test_inflated_equals_the_image_model_frame_by_frame(options):
    image = awake(DiT(dataclasses.replace(SMALL, **options)))
    video = inflate(image, 3)
    x = torch.randn(2, 4, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.9])
    y = torch.tensor([1, 4])
    close(video(x, t, y), frame_by_frame(image, x, t, y))
    # open a temporal gate: frames see each other
    video.blocks[1].adaLN_modulation[1].bias.data.fill_(0.5)
    other = x.clone()
    other[:, :, 0] += 1
    last = [video(z, t, y)[:, :, 2] for z in (x, other)]
    assert not torch.allclose(*last, atol=1e-4)


def test_inflated_knows_the_order_of_frames_once_trained():
    video = inflate(awake(DiT(SMALL)), 3)
    x = torch.randn(1, 4, 3, 4, 6)
    t = torch.tensor([0.5])
    assert torch.allclose(video(x.flip(2), t), video(x, t).flip(2), atol=1e-5)
    video(x, t).square().mean().backward()
    assert video.time_gate.grad.any() and video.blocks[1].adaLN_modulation[1].weight.grad.any()
    video.time_gate.data.fill_(0.5)
    assert not torch.allclose(video(x.flip(2), t), video(x, t).flip(2), atol=1e-3)


INFLATED = [
    dict(),
    dict(norm="rms"),
    dict(mlp="swiglu"),
    dict(qk_norm=True),
    dict(positions="rope"),
    dict(positions="none"),
    dict(relative_bias=True),
    dict(precondition="edm", **FLOW),
    dict(precondition="x", t_clip=0.3, **FLOW),
    dict(num_classes=0),
]


@pytest.mark.parametrize("options", INFLATED, ids=label)
def test_every_image_model_is_inflated_whole(options):
    image = awake(DiT(dataclasses.replace(IMAGE, **options)))
    video = inflate(image, 3)
    x, t, y = latte_batch()
    close(video(x, t, y), frame_by_frame(image, x, t, y))
    video(x, t, y).square().mean().backward()  # and the way into time is open to learning
    assert all(b.adaLN_modulation[1].weight.grad.any() for b in video.blocks[1::2])


def test_a_wrapped_image_model_is_inflated_too():
    "What its training wrapped around it stays with it: the video model is plain."
    image = wrap(awake(DiT(IMAGE)), Checkpointed())
    video = inflate(image, 3)
    assert video.layout == Factorized() and image.layout == Checkpointed()
    inputs = latte_batch()
    close(video(*inputs), frame_by_frame(image, *inputs))
    wrap(video, Checkpointed())(*inputs).square().mean().backward()
    assert all(b.adaLN_modulation[1].weight.grad.any() for b in video.blocks[1::2])


@pytest.mark.parametrize(
    "options, parts",
    [
        (dict(), dict(positions=InflatedPositions(), condition=WordCondition(5))),
        (dict(num_classes=0), dict(condition=Unconditional())),
        (dict(positions="rope"), dict(positions=RopePositions())),
        (dict(positions="none"), dict(positions=Positions())),
        (
            dict(norm="rms", mlp="swiglu", qk_norm=True, mlp_ratio=2.0),
            dict(block=BlockConfig(2.0, "rms", "swiglu", True)),
        ),
        (dict(relative_bias=True), dict(relative_bias=True)),
        (dict(), dict(output=DirectOutput(learn_sigma=True), time_convention="ddpm")),
        (dict(precondition="edm", **FLOW), dict(output=EDMOutput(), time_convention="flow")),
        (dict(precondition="x", t_clip=0.3, **FLOW), dict(output=DataOutput(0.3))),
        (dict(time_scale=1.0, **FLOW), dict(time_scale=1.0, output=DirectOutput())),
    ],
    ids=label,
)
def test_what_an_inflated_model_is_made_of(options, parts):
    config = inflate(DiT(dataclasses.replace(IMAGE, **options)), 3).config
    assert {k: getattr(config, k) for k in parts} == parts
    assert config.layout == Factorized() and config.depth == 4
    assert config.size == (3, 8, 8) and config.patch == (1, 2, 2)


def test_inflated_into_lattes_own_layout(tmp_path):
    image = awake(DiT(IMAGE))
    noise = torch.randn(image.pos_embed.shape, generator=torch.Generator().manual_seed(0))
    image.pos_embed += 0.3 * noise  # its own
    inputs = latte_batch()
    x, _, y = inputs
    video = inflate(image, 3, latte=True)
    assert video.config.positions == LattePositions(learned_time=True)
    close(video(*inputs), frame_by_frame(image, *inputs))
    video(*inputs).square().mean().backward()
    moments = video.temp_embed.grad
    assert moments.any() and torch.unique(moments[0], dim=0).shape[0] == 3
    state = latte_state(video)
    by_hand = plain_latte(state, x[0].transpose(0, 1), 863, y[0, 0], 2)
    close(by_hand, video(*inputs)[0].transpose(0, 1), rel=2e-5)
    # as Latte's own, frozen
    close(load_latte_state(VideoDiT(LATTE), state)(*inputs), video(*inputs))
    video.save_pretrained(tmp_path / "m")
    close(VideoDiT.from_pretrained(tmp_path / "m")(*inputs), video(*inputs))


def test_image_weights_fill_the_spatial_half():
    image = awake(DiT(dataclasses.replace(IMAGE, relative_bias=True)))
    video = VideoDiT(inflate(image, 3).config, seed=1)
    fresh = [p.clone() for b in video.blocks[1::2] for p in b.parameters()]
    assert load_image_weights(video, image) is video
    for ours, theirs in zip(video.blocks[::2], image.blocks):
        assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters()))
    assert torch.equal(video.bias[2].table, image.bias[1].table)
    kept = [p for b in video.blocks[1::2] for p in b.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(kept, fresh))


def moved(image):
    image.pos_embed += 0.1
    return image


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: inflate(DiT(dataclasses.replace(IMAGE, positions="rope")), 3, latte=True),
            "no 'rope' positions",
        ),
        (lambda: inflate(moved(DiT(IMAGE)), 3), "not those of the size"),
        (lambda: inflate(DiT(dataclasses.replace(IMAGE, null_class=False)), 3), "null class"),
    ],
)
def test_what_cannot_be_inflated(make, message):
    with pytest.raises(ValueError, match=f"inflate: .*{message}"):
        make()


def test_without_classes_no_null_row_is_needed():
    bare = dataclasses.replace(IMAGE, num_classes=0, null_class=False)
    assert inflate(DiT(bare), 2).null_id is None
