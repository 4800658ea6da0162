"""Embeddings of captions as conditions: added, in context, by cross-attention; and with `fit`."""

import copy
import dataclasses

import pytest
import torch
from helpers.models import FRAMES, VIDEO, awake, close, video, video_batch, without_gradient

from minisora.core.hub import part_to_dict
from minisora.interpolants import Interpolant
from minisora.models.conditions import CONDITIONS, WordCondition
from minisora.models.layouts import Checkpointed, Factorized, Routed, as_part
from minisora.models.modulation import AdaLNLoRA
from minisora.models.text_conditions import (
    CrossAttention,
    PooledText,
    TextCrossAttention,
    TextInContext,
    word_maps,
)
from minisora.models.text_encoders import HashedWords
from minisora.models.windows import Windows
from minisora.sampling import cfg_model, sample
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import fit

ENCODER = HashedWords(12, 6)
PARTS = [PooledText(12), TextInContext(12, 4), TextCrossAttention(12, 4)]
CAPTIONS = ["a red ball moves", "a blue ring grows now", "one star"]
LAYOUTS = dict(
    joint=(VIDEO, {}),
    factorized=(FRAMES, dict(layout=Factorized())),
    windows=(FRAMES, dict(layout=Windows(((1, 0, 0), (0, 2, 2))))),
    lora=(VIDEO, dict(modulation=AdaLNLoRA(2))),
    biased=(FRAMES, dict(layout=Factorized(), relative_bias=True, positions="rope")),
)


def texts(part, captions=CAPTIONS):
    return ENCODER.encode(captions).pack(part.tokens)


def each(parts=PARTS):
    return pytest.mark.parametrize("part", parts, ids=lambda part: part.kind)


@each()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_caption_steers_its_clip_alone(part, layout):
    config, changes = LAYOUTS[layout]
    model = video(config, condition=part, **changes)
    x, t, _ = video_batch(config)
    y = texts(part)
    out = model(x, t, y)
    assert out.shape == x.shape and torch.isfinite(out).all()
    other = model(x, t, texts(part, ["a red ball stays", *CAPTIONS[1:]]))
    assert (other[0] - out[0]).abs().max() > 1e-3 * out.abs().max()
    close(other[1:], out[1:])
    alone = model(x[1:2], t[1:2], y[1:2])
    close(alone, out[1:2], 1e-4)


@each()
def test_no_caption_is_zeros_and_a_learned_null(part):
    model = video(condition=part)
    x, t, _ = video_batch()
    y = texts(part)
    assert model.null_id == 0
    none = model(x, t)
    assert torch.equal(none, model(x, t, torch.zeros_like(y)))
    assert (none - model(x, t, y)).abs().max() > 1e-3
    names = ["text_null"] + ["text_null_token"] * bool(part.tokens)
    for name in names:
        changed = copy.deepcopy(model)
        getattr(changed, name).data.mul_(3.0)
        assert not torch.allclose(changed(x, t), none)
        assert torch.equal(changed(x, t, y), model(x, t, y))


@each()
def test_every_weight_learns(part):
    model = video(condition=part)
    x, t, _ = video_batch()
    y = texts(part)
    y[0] = 0
    model(x, t, y).square().sum().backward()
    assert not without_gradient(model)


@each()
def test_config_and_weights_come_back(part, tmp_path):
    model = video(condition=part)
    model.save_pretrained(tmp_path)
    again = VideoDiT.from_pretrained(tmp_path)
    assert again.config == model.config and again.config.condition == part
    x, t, _ = video_batch()
    assert torch.equal(again(x, t, texts(part)), model(x, t, texts(part)))
    values = part_to_dict(part)
    assert values["kind"] == part.kind and as_part(CONDITIONS, values) == part
    assert VideoDiTConfig.upgrade(model.config.to_dict())["condition"] == values


@each(PARTS[1:])
def test_rows_beyond_the_last_token_do_not_count(part):
    model = video(condition=part)
    x, t, _ = video_batch()
    y = texts(part)
    more = ENCODER.encode(CAPTIONS).pack(6)  # the model reads the first four
    assert torch.equal(model(x, t, more), model(x, t, y))
    fewer = y.clone()
    fewer[0, 4] = 0
    assert not torch.allclose(model(x, t, fewer)[0], model(x, t, y)[0])


def test_cross_attention_never_looks_at_padding():
    part = TextCrossAttention(12, 4)
    model = video(condition=part)
    time = torch.zeros(3, 48)
    tokens, mask = part.context(model, time, texts(part))
    assert mask.sum(1).tolist() == [4, 4, 2]
    garbage = torch.where(mask[..., None], tokens, 1e6)
    layer = model.blocks[0].cross_attn
    h = torch.randn(3, 5, 48)
    assert torch.equal(layer(h, garbage, mask), layer(h, tokens, mask))
    look = layer.weights(h, tokens, mask)
    assert torch.allclose(look.sum(-1), torch.ones(3, 2, 5)) and not look[2, :, :, 2:].any()


def test_attention_weights_are_those_of_the_layer():
    layer = awake(CrossAttention(16, 2, qk_norm=True))
    h, text = torch.randn(2, 3, 4, 16), torch.randn(2, 5, 16)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    _, _, v = layer.project(h, text)
    out = (layer.weights(h, text, mask) @ v).transpose(1, 2).flatten(2)
    close(layer.proj(out).view(h.shape), layer(h, text, mask))


def test_a_fresh_cross_attention_changes_nothing():
    x, t, _ = video_batch()
    model = video(condition=TextCrossAttention(12, 4))
    for block in model.blocks:
        fresh = CrossAttention(48, 2)
        block.cross_attn.load_state_dict(fresh.state_dict())
    plain = video(condition=PooledText(12))
    state = {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}
    plain.load_state_dict(state)
    y = texts(TextCrossAttention(12, 4))
    close(model(x, t, y), plain(x, t, y))
    assert not VideoDiT(model.config).blocks[0].cross_attn.proj.weight.any()


def test_checkpointing_and_routing_go_with_it():
    part = TextCrossAttention(12, 4)
    x, t, _ = video_batch()
    y = texts(part)
    y[0] = 0
    plain = video(condition=part)
    plain(x, t, y).square().sum().backward()
    kept = video(VIDEO, Checkpointed(), condition=part)
    kept(x, t, y).square().sum().backward()
    for a, b in zip(plain.parameters(), kept.parameters(), strict=True):
        close(a.grad, b.grad)
    routed = video(VIDEO, Routed(0.5, (0, 2)), condition=part).train()
    assert torch.isfinite(routed(x, t, y)).all()


def test_clips_and_images_have_captions_of_their_own():
    config = dataclasses.replace(FRAMES, positions="none", layout=Factorized(2))
    model = video(config, condition=PooledText(12))
    x = torch.randn(2, 4, 6, 4, 6)
    y = torch.randn(2, 3, 1, 12)
    assert model(x, torch.rand(2), y).shape == x.shape
    with pytest.raises(ValueError, match="cross-attention to text does not go with num_joint_"):
        dataclasses.replace(config, condition=TextCrossAttention(12, 4))


@each()
def test_guidance_and_a_negative_prompt(part):
    model = video(condition=part)
    x, t, _ = video_batch()
    y, against = texts(part), texts(part, ["a green cross"])[0]
    with_y, without = model(x, t, y), model(x, t)
    close(cfg_model(model, 2.0)(x, t, y), without + 2 * (with_y - without), 1e-4)
    other = model(x, t, against.expand_as(y))
    close(cfg_model(model, 2.0, null=against)(x, t, y), other + 2 * (with_y - other), 1e-4)
    made = sample(model, Interpolant(), y, steps=2, guidance=2.0)
    assert torch.isfinite(made).all()


@each()
def test_fit_trains_drops_and_resumes(part, tmp_path):
    "Floats travel as ids do; a run that is stopped and resumed gives the same bits."
    latents = torch.randn(6, 4, 4, 4, 6)
    y = texts(part, CAPTIONS * 2)
    options = dict(steps=4, batch_size=3, condition_dropout=0.5, progress=False, save_every=2)

    def run(out, **more):
        model = VideoDiT(dataclasses.replace(VIDEO, condition=part))
        return fit(model, (latents, y), Interpolant(), out=tmp_path / out, **options, **more)

    whole = run("whole").model.state_dict()
    run("parts", stop_at=2)
    parts = run("parts").model.state_dict()
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    start = VideoDiT(dataclasses.replace(VIDEO, condition=part)).state_dict()
    assert not torch.equal(whole["text_null"], start["text_null"])


def test_dropped_captions_are_the_models_nulls():
    seen = []

    class Seen(VideoDiT):
        def forward(self, x, t, y=None):
            seen.append(y.detach().clone())
            return super().forward(x, t, y)

    part = TextInContext(12, 4)
    y = texts(part, CAPTIONS * 20)
    model = Seen(dataclasses.replace(VIDEO, condition=part))
    data = (torch.randn(60, 4, 4, 4, 6), y)
    fit(model, data, Interpolant(), steps=4, batch_size=30, condition_dropout=0.5, progress=False)
    rows = torch.cat(seen)
    none = (rows == 0).flatten(1).all(1)
    assert 0.3 < none.float().mean() < 0.7
    kept = {tuple(row.flatten().tolist()) for row in rows[~none]}
    assert kept <= {tuple(row.flatten().tolist()) for row in y}


def test_words_in_slots_are_as_they_were():
    x, t, y = video_batch()
    model = video()
    assert model.config.condition == WordCondition(7, slots=2)
    assert "TextReading" not in type(model.blocks[0]).__name__
    assert model.config.condition.add_context(model, y, None, None) is y


@each()
def test_what_is_no_embedding_is_refused_in_words(part):
    model = video(condition=part)
    x, t, ids = video_batch()
    with pytest.raises(
        ValueError, match=r"y must be embeddings of captions, floats, not torch.int"
    ):
        model(x, t, ids)
    with pytest.raises(
        ValueError, match=rf"y must be embeddings of captions \(3, {1 + part.tokens}"
    ):
        model(x, t, torch.randn(3, 9, 11))
    with pytest.raises(ValueError, match=r"not \(2, 9, 12\)"):
        model(x, t, torch.randn(2, 9, 12))
    with pytest.raises(ValueError, match="dim must be at least 1, not 0"):
        type(part)(0)
    with pytest.raises(ValueError, match="has no field 'tokns'"):
        as_part(CONDITIONS, dict(kind=part.kind, tokns=3))


def test_maps_of_words_are_shares_over_the_grid():
    part = TextCrossAttention(12, 4)
    for config, changes in (LAYOUTS["joint"], LAYOUTS["factorized"]):
        model = video(config, condition=part, **changes)
        x, t, _ = video_batch(config)
        maps = word_maps(model, x, t, texts(part))
        assert maps.shape == (3, 4, *model.grid)
        assert torch.allclose(maps.sum(1), torch.ones(3, *model.grid), atol=1e-5)
        assert not maps[2, 2:].any() and maps[0].std() > 1e-4
        assert not any(block.cross_attn._forward_hooks for block in model.blocks)
    with pytest.raises(ValueError, match="word_maps: needs a model with TextCrossAttention"):
        word_maps(video(), x, t, None)


def test_flat_fields_leave_a_text_condition_alone():
    with pytest.warns(DeprecationWarning):
        config = VideoDiTConfig(
            size=(4, 4, 6), patch=(2, 2, 2), width=48, heads=2, condition=PARTS[1], qk_norm=True
        )
    assert config.condition == PARTS[1] and config.block.qk_norm
