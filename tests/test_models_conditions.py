"""What a model is told beside the time: words in slots, or the embedding of a caption."""

import dataclasses

import pytest
import torch
from helpers.models import FRAMES, IN_CONTEXT, VIDEO, close, video, video_batch

from minisora.dit import DiTConfig
from minisora.models.conditions import (
    CaptionCondition,
    LabelEmbedder,
    Unconditional,
    WordCondition,
)
from minisora.models.layouts import Factorized
from minisora.temporal import VideoDiT, VideoDiTConfig

CAPTION = dict(condition=CaptionCondition(6), positions="latte", layout=Factorized())


def test_words_are_ordered_only_in_context():
    for condition, equal in ((VIDEO.condition, True), (IN_CONTEXT, False)):
        model = video(condition=condition)
        x, t, _ = video_batch()
        y = torch.tensor([[0, 1]] * 3)
        assert torch.allclose(model(x, t, y), model(x, t, y.flip(1)), atol=1e-5) == equal
        null = torch.full((3, 2), model.null_id)
        assert torch.equal(model(x, t), model(x, t, null)) and model.null_id == 7


def test_words_add_up_at_unit_scale():
    model = video()
    time = model.t_embedder(torch.tensor([0.3]))
    y = torch.tensor([[0, 5]])
    a, b = model.y_embedder(y)[0]
    steering, tokens = model.config.condition(model, time, y)
    close(steering[0] - time, ((a + b) / 2**0.5)[None])
    assert tokens is None


def test_words_in_context_are_tokens_with_their_slots():
    model = video(condition=IN_CONTEXT)
    assert model.num_tokens == 2 and video().num_tokens == 0
    y = torch.tensor([[0, 5], [3, 3]])
    _, tokens = model.config.condition(model, model.t_embedder(torch.rand(2)), y)
    assert torch.equal(tokens, model.y_embedder(y) + model.slot_embed)
    assert not torch.equal(tokens[1, 0], tokens[1, 1])  # one word, two slots


def test_embeddings_start_as_small_as_said():
    for std in (0.02, 0.5):
        model = VideoDiT(dataclasses.replace(VIDEO, condition=WordCondition(200, 2, init_std=std)))
        assert model.y_embedder.embedding_table.weight.std().item() == pytest.approx(std, rel=0.05)


def test_an_unconditional_model_is_told_nothing():
    model = video(condition=Unconditional())
    x, t, y = video_batch()
    assert model.null_id is None and not hasattr(model, "y_embedder")
    assert torch.equal(model(x, t, y), model(x, t))


def test_images_behind_a_clip_have_conditions_of_their_own():
    model = video(FRAMES, condition=WordCondition(7), layout=Factorized(2), positions="latte")
    time = model.t_embedder(torch.rand(2))
    y = torch.tensor([[1, 2, 3], [4, 5, 6]])
    rows, _ = model.config.condition(model, time, y, images=2)
    words = model.y_embedder(y)
    want = time[:, None] + words[:, [0, 0, 0, 0, 1, 2]]  # four frames, then two images
    torch.testing.assert_close(rows, want.flatten(0, 1))


def test_a_caption_steers_the_blocks_and_not_the_head():
    model = video(FRAMES, **CAPTION)
    time = model.t_embedder(torch.rand(2))
    y = torch.randn(2, 6)
    steering, tokens = model.config.condition(model, time, y)
    torch.testing.assert_close(steering, time + model.text_embedding_projection(y))
    head = model.config.condition.for_head(time, torch.cat([steering] * 3))
    assert tokens is None and torch.equal(head, time.repeat_interleave(3, 0))
    assert VIDEO.condition.for_head(time, steering) is steering


# ---------------------------------------------------------------- ids


def test_ids_are_rows_and_the_last_is_the_null():
    table = LabelEmbedder(5, 8)
    assert table.null_id == 5 and LabelEmbedder(5, 8, null=False).null_id is None
    assert table(torch.tensor([[0, 5]])).shape == (1, 2, 8)
    for bad in (-1, 6):
        with pytest.raises(ValueError, match=rf"condition id {bad} is not in 0 … 5 \(null id: 5\)"):
            table(torch.tensor([1, bad]))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: WordCondition(0), r"WordCondition\.vocab must be at least 1, not 0"),
        (lambda: WordCondition(2.0), r"WordCondition\.vocab must be int, not 2\.0"),
        (lambda: WordCondition(3, slots=0), r"WordCondition\.slots must be at least 1, not 0"),
        (lambda: WordCondition(3, in_context=1), r"WordCondition\.in_context must be bool, not 1"),
        (lambda: WordCondition(3, init_std="x"), r"WordCondition\.init_std must be float, not 'x'"),
        (lambda: WordCondition(3, init_std=-0.1), r"WordCondition\.init_std must be a number, 0"),
        (lambda: CaptionCondition(-1), r"CaptionCondition\.dim must be a whole number from 1"),
        (lambda: CaptionCondition(6.0), r"CaptionCondition\.dim must be a whole number from 1"),
        (
            lambda: VideoDiTConfig(condition=CaptionCondition(6)),
            r"VideoDiTConfig\.condition: a caption's embedding needs positions='latte'",
        ),
        (
            lambda: VideoDiTConfig(**{**CAPTION, "positions": "rope"}),
            r"VideoDiTConfig\.condition: a caption's embedding needs positions='latte'",
        ),
        (
            lambda: VideoDiTConfig(condition="sound"),
            r"VideoDiTConfig\.condition must be one of 'caption', 'none', .*'words', not 'sound'",
        ),
        (lambda: DiTConfig(num_classes=-1), r"DiTConfig\.num_classes must be at least 0, not -1"),
    ],
)
def test_bad_conditions(make, message):
    with pytest.raises(ValueError, match=message):
        make()
