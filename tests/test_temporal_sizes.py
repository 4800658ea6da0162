"""Video models for clips of another length or shape: resized, or of several sizes at once."""

import dataclasses

import pytest
import torch
from helpers.models import FRAMES, IN_CONTEXT, close, label, video, video_batch

from minisora.interpolants import Interpolant
from minisora.models.conditions import WordCondition
from minisora.models.inflate import (
    check_positions,
    stretch_bias_table,
    stretch_image_table,
    stretch_time_table,
)
from minisora.models.layouts import Checkpointed, Factorized, Joint, wrap
from minisora.models.positions import (
    InflatedPositions,
    LattePositions,
    LearnedPositions,
    Positions,
    RopePositions,
    SinCosPositions,
    grid_indices,
    sincos_1d,
    sincos_3d,
    token_coordinates,
)
from minisora.models.preconditioning import EDMOutput
from minisora.models.windows import Windows
from minisora.temporal import VideoDiT, resize_video
from minisora.train import fit
from minisora.training.batches import BucketDataset

BOTH = [Joint(), Factorized()]
LEARNED = dict(positions=LattePositions(learned_time=True), layout=Factorized())

# ---------------------------------------------------------------- resized

KINDS = [
    dict(positions=SinCosPositions(), layout=Joint(), relative_bias=False),
    dict(positions=SinCosPositions(), layout=Factorized(), relative_bias=True),
    dict(positions=RopePositions(), layout=Joint(), relative_bias=True),
    dict(positions=RopePositions(), layout=Factorized(), relative_bias=False),
    dict(positions=InflatedPositions(), layout=Factorized(), relative_bias=False),
    dict(positions=InflatedPositions(), layout=Joint(), relative_bias=True),
    dict(positions=LattePositions(), layout=Factorized(), relative_bias=False),
    dict(positions=Positions(), layout=Joint(), relative_bias=True),
]


@pytest.mark.parametrize("size", [(8, 4, 6), (2, 4, 6), (4, 8, 4), (6, 2, 12)], ids=str)
@pytest.mark.parametrize("options", KINDS, ids=label)
def test_every_kind_of_positions_takes_other_sizes(options, size, tmp_path):
    model = video(FRAMES, **options)
    for spread in ("hw", "", "thw"):
        other = resize_video(model, size, spread)
        inputs = video_batch(other.config)
        out = other(*inputs)
        assert out.shape == (3, 4, *size) and out.isfinite().all()
        assert other.training == model.training
        other.save_pretrained(tmp_path / "m")
        assert torch.equal(VideoDiT.from_pretrained(tmp_path / "m")(*inputs), other.eval()(*inputs))
        if options["relative_bias"] and any(a < b for a, b in zip(size, FRAMES.size)):
            continue  # offsets were dropped
        back = resize_video(other, FRAMES.size, spread)
        close(back(*video_batch(FRAMES)), model.eval()(*video_batch(FRAMES)), rel=1e-4)


def test_positions_continue_or_are_spread():
    model = VideoDiT(FRAMES)
    longer = resize_video(model, (8, 4, 6), "")
    finer = resize_video(model, (8, 4, 6), "t")
    assert longer.config.positions.base_size == ()
    assert finer.config.positions.base_size == (4, 4, 6)
    assert torch.equal(longer.pos_embed[:, :24], model.pos_embed)  # frame i stays frame i
    want = sincos_3d(48, (8, 2, 3), (4, 2, 3))
    assert torch.equal(finer.pos_embed[0], want)
    assert not torch.allclose(finer.pos_embed, longer.pos_embed)
    first = sincos_1d(16, token_coordinates((8,), (4,)))[0, 0].item()
    assert first == pytest.approx(torch.tensor(-0.25).sin().item(), abs=1e-6)
    wide = resize_video(finer, (8, 4, 12), "")  # what is spread stays spread
    assert wide.config.positions.base_size == (4, 4, 12)


@pytest.mark.parametrize(
    "positions, name", [("latte", "temp_embed"), ("inflated", "time_embed"), ("rope", "time_rope")]
)
def test_moments_continue_or_are_spread(positions, name):
    model = video(FRAMES, positions=positions, layout=Factorized())
    longer = getattr(resize_video(model, (8, 4, 6), ""), name)
    finer = getattr(resize_video(model, (8, 4, 6), "t"), name)
    own = getattr(model, name)
    assert torch.equal(longer[:, : own.shape[1]], own)
    assert not torch.allclose(longer, finer, atol=1e-3)


def test_relative_biases_count_steps():
    model = video(FRAMES, relative_bias=True)
    wide = resize_video(model, (4, 4, 10))
    old = model.bias[0]().view(2, 4, 2, 3, 4, 2, 3)
    new = wide.bias[0]().view(2, 4, 2, 5, 4, 2, 5)
    assert torch.equal(new[..., :3, :, :, :3], old)  # what was known stays
    # farther: as the farthest
    assert torch.equal(new[:, 0, 0, 0, 1, 1, 4], old[:, 0, 0, 0, 1, 1, 2])
    assert torch.equal(resize_video(wide, FRAMES.size).bias[0](), model.bias[0]())


def test_learned_moments_are_spread_and_do_not_continue():
    model = video(FRAMES, **LEARNED)
    assert torch.equal(resize_video(model, (2, 4, 6)).temp_embed, model.temp_embed[:, :2])
    spread = resize_video(model, (8, 4, 6), "t").temp_embed
    close(spread[:, 1:3].mean(1), model.temp_embed[:, :2].mean(1))  # on the line between two
    with pytest.raises(ValueError, match="4 learned frame positions do not continue to 8"):
        resize_video(model, (8, 4, 6))


def test_a_resized_model_is_another_one():
    model = wrap(video(FRAMES), Checkpointed())
    other = resize_video(model, (8, 4, 6))
    assert other.layout == Joint()  # what a training wraps is not a model's
    own = dict(model.named_parameters())
    for name, p in other.named_parameters():
        assert torch.equal(p, own[name]) and p.data_ptr() != own[name].data_ptr(), name
    half = resize_video(video(FRAMES).double(), (8, 4, 6))
    assert {p.dtype for p in half.parameters()} == {torch.float64}


# ---------------------------------------------------------------- tables


def test_a_table_of_biases_is_cut_or_continued():
    table = torch.arange(2 * 3 * 5.0).view(2, 15)  # offsets of a grid (1, 2, 3), two heads
    assert torch.equal(stretch_bias_table(table, (1, 2, 3), (1, 2, 3)), table)
    wide = stretch_bias_table(table, (1, 2, 3), (1, 2, 4)).view(2, 3, 7)
    assert torch.equal(wide[..., 1:6], table.view(2, 3, 5))
    assert torch.equal(wide[..., 0], wide[..., 1]) and torch.equal(wide[..., 6], wide[..., 5])
    small = stretch_bias_table(table, (1, 2, 3), (1, 1, 2)).view(2, 3)
    assert torch.equal(small, table.view(2, 3, 5)[:, 1, 1:4])


def test_a_table_of_moments_is_stretched_or_cut():
    table = torch.arange(4.0).view(1, 4, 1)
    assert stretch_time_table(table, 2, False).flatten().tolist() == [0, 1]
    assert stretch_time_table(table, 8, True).flatten().tolist() == [
        0,
        0.25,
        0.75,
        1.25,
        1.75,
        2.25,
        2.75,
        3,
    ]


def test_a_table_of_a_picture_is_stretched_like_one():
    rows = torch.arange(4.0).repeat_interleave(4).view(1, 16, 1)
    same = stretch_image_table(rows, (4, 4), (4, 4))
    torch.testing.assert_close(same, rows)
    assert stretch_image_table(rows, (4, 4), (8, 2)).view(8, 2).std(1).max() < 1e-6


def test_places_of_a_smaller_grid():
    assert grid_indices((2, 3), (2, 3), "cpu") == slice(None)
    assert grid_indices((2, 3), [2, 2], "cpu").tolist() == [0, 1, 3, 4]
    assert grid_indices((4, 2, 3), (2, 1, 2), "cpu").tolist() == [0, 1, 6, 7]


# ---------------------------------------------------------------- smaller clips

SMALLER = [
    *[
        dict(layout=layout, positions=positions)
        for layout in BOTH
        for positions in ("sincos", "rope", "inflated", "none")
    ],
    dict(layout=Factorized(), positions="latte"),
    LEARNED,
    *[dict(layout=layout, relative_bias=True, condition=IN_CONTEXT) for layout in BOTH],
    *[dict(layout=layout, positions="rope", condition=IN_CONTEXT) for layout in BOTH],
    dict(output=EDMOutput()),
]


@pytest.mark.parametrize("options", SMALLER, ids=label)
@pytest.mark.parametrize("size", [(2, 4, 6), (4, 2, 4), (1, 4, 2)], ids=str)
def test_a_smaller_clip_stands_at_the_first_places(options, size):
    "… which is what `resize_video` makes of the model, step by step."
    model = video(FRAMES, variable_size=True, **options)
    with torch.no_grad():
        for k, p in model.named_parameters():
            if "bias." in k and "table" in k or k in ("temp_embed", "time_gate"):
                p.copy_(torch.randn(p.shape))
    inputs = video_batch(FRAMES, size=size)
    close(model(*inputs), resize_video(model, size, spread="")(*inputs))
    with pytest.raises(ValueError, match="x must be"):
        video(FRAMES, **options)(*inputs)


def test_a_shorter_clip_and_images_look_alike():
    with pytest.raises(ValueError, match=r"VideoDiTConfig\.variable_size: a shorter clip and"):
        dataclasses.replace(FRAMES, variable_size=True, layout=Factorized(2), positions="latte")


class Noise(torch.utils.data.Dataset):
    "A bucket: n samples of noise of one shape, and a word for each."

    def __init__(self, shape, n, seed):
        g = torch.Generator().manual_seed(seed)
        self.latents = torch.randn(n, *shape, generator=g)
        self.words = torch.randint(0, 5, (n, 1), generator=g)

    def __len__(self):
        return len(self.latents)

    def __getitems__(self, index):
        return dict(
            latents=self.latents[index],
            condition=self.words[index],
            index=torch.as_tensor(index),
        )


@pytest.mark.parametrize("layout", BOTH, ids=lambda p: p.kind)
def test_fit_trains_one_model_on_buckets_of_several_sizes(layout, tmp_path):
    c = dataclasses.replace(
        FRAMES, variable_size=True, layout=layout, relative_bias=True, condition=WordCondition(7)
    )
    shapes = dict(long=(4, 4, 4, 4), wide=(4, 2, 4, 6), still=(4, 1, 4, 4))
    data = BucketDataset(
        {name: Noise(shape, 12, n) for n, (name, shape) in enumerate(shapes.items())}
    )

    def go(folder, **options):
        return fit(
            VideoDiT(c),
            data,
            Interpolant(),
            out=tmp_path / folder,
            steps=9,
            batch_size=dict(long=2, wide=3, still=6),
            lr=1e-3,
            progress=False,
            save_every=3,
            **options,
        )

    whole = go("a")
    go("b", stop_at=4)
    again = go("b")
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)
    before = dict(VideoDiT(c).named_parameters())
    moved = [k for k, p in whole.model.named_parameters() if not torch.equal(p, before[k])]
    assert any("bias.0.table" in k for k in moved) and "x_embedder.weight" in moved


# ---------------------------------------------------------------- learned places and moments


def between(table, n):
    "Learned positions (m, D) at n places spread over them, linear, by hand."
    at = token_coordinates((n,), (len(table),)).flatten().clamp(0, len(table) - 1)
    low = at.long().clamp(max=len(table) - 2)
    share = (at - low)[:, None].float()
    return table[low] * (1 - share) + table[low + 1] * share


def test_learned_positions_are_spread_over_a_wider_picture():
    "W.A.L.T's 9:16: the places interpolated, the moments kept, the weights too."
    model = video(FRAMES, positions=LearnedPositions(), layout=Windows(((1, 0, 0), (0, 2, 2))))
    wide = resize_video(model, (4, 4, 10))
    assert wide.config.positions.base_size == (4, 4, 6)
    assert wide.pos_embed.shape == (1, 10, 48) and wide.pos_embed.requires_grad
    assert torch.equal(wide.temp_embed, model.temp_embed)
    ramp = torch.arange(3.0)[None, :, None] + 10 * torch.arange(2.0)[:, None, None]
    model.pos_embed.data = ramp.expand(2, 3, 48).reshape(1, 6, 48).clone()
    got = resize_video(model, (4, 4, 12)).pos_embed.view(2, 6, 48)
    torch.testing.assert_close(got[1], got[0] + 10)
    want = token_coordinates((6,), (3,)).flatten().float()  # half a step from place to place
    torch.testing.assert_close(got[0, :, 0], want.clamp(0, 2), rtol=0, atol=0.2)
    same = resize_video(model, FRAMES.size, "thw")
    assert torch.equal(same.pos_embed, model.pos_embed)
    assert torch.equal(same.temp_embed, model.temp_embed)
    assert wide(*video_batch(wide.config)).isfinite().all()


def test_learned_moments_are_interpolated_and_cut():
    model = video(FRAMES, positions=LearnedPositions())
    finer = resize_video(model, (7, 4, 6), "t")
    torch.testing.assert_close(finer.temp_embed[0], between(model.temp_embed[0], 7))
    assert torch.equal(finer.pos_embed, model.pos_embed)
    shorter = resize_video(model, (2, 2, 4), "")  # continued: the first of each axis
    assert torch.equal(shorter.temp_embed, model.temp_embed[:, :2])
    assert torch.equal(shorter.pos_embed, model.pos_embed[:, :2])


def test_learned_moments_of_tubelets():
    positions = dict(positions=LattePositions(learned_time=True), layout=Factorized())
    for options in (positions, dict(positions=LearnedPositions())):
        model = video(**options)  # patches of two frames
        longer = resize_video(model, (8, 4, 6), "t")
        assert longer.temp_embed.shape == (1, 4, 48)
        torch.testing.assert_close(longer.temp_embed[0], between(model.temp_embed[0], 4))


@pytest.mark.parametrize(
    "size, spread, words",
    [
        ((6, 4, 6), "hw", r"4 learned frame positions do not continue to 6: spread them \('t'\)"),
        ((4, 8, 6), "tw", r"2 learned row positions do not continue to 4: spread them \('h'\)"),
        ((4, 4, 8), "th", r"3 learned column positions do not continue to 4: spread them \('w'\)"),
    ],
)
def test_what_was_not_learned_has_no_value(size, spread, words):
    model = video(FRAMES, positions=LearnedPositions())
    with pytest.raises(ValueError, match=words):
        resize_video(model, size, spread)


# ---------------------------------------------------------------- errors


def shifted(model):
    model.pos_embed += 0.1
    return model


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: resize_video(m, (8, 4, 6), "xy"), "letters of 'thw', not 'xy'"),
        (lambda m: resize_video(m, (8, 5, 6)), r"VideoDiTConfig\.patch"),
        (lambda m: resize_video(shifted(m), (8, 4, 6)), "pos_embed is not that of the size"),
        (lambda m: check_positions(shifted(m)), "pos_embed is not that of the size"),
        (lambda m: m(torch.zeros(1, 4, 8, 4, 6), torch.ones(1)), "x must be"),
    ],
)
def test_bad_resizes(call, message):
    with pytest.raises(ValueError, match=message):
        call(VideoDiT(FRAMES))
