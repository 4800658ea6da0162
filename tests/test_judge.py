"""The judge: where it looks, what it sees there, what it learns, and what is counted."""

import json

import pytest
import torch
from helpers.metrics import frame_with, generator, square_at

from minisora.clips import SceneClips
from minisora.core.hub import JUDGES
from minisora.core.protocols import Clip
from minisora.data.video import stack_clips, to_float
from minisora.evaluation.foreground import as_pixels, object_boxes
from minisora.evaluation.intervals import binomial_interval
from minisora.evaluation.judge import (
    AttributeClassifier,
    _attribute_values,
    _object_crops,
    _reconstructions,
    attribute_accuracy,
    confusion_matrix,
    train_judge,
)


# ---------------------------------------------------------------- what it sees


def test_crops_show_what_is_in_the_box():
    f = torch.rand(2, 3, 28, 28, generator=generator())
    whole = torch.tensor([[0.0, 0, 1]] * 2)
    assert torch.allclose(_object_crops(f, whole), f, atol=1e-4)
    marked = frame_with(20, 4, 8, (64, 64))
    seen = _object_crops(marked, torch.tensor([[(24 / 32) - 1, (8 / 32) - 1, 4 / 32]]))
    assert seen.min() > 0.4 and seen[..., 2:-2, 2:-2].min() > 0.999  # the square fills the crop


def test_training_crops_shake_a_little_and_repeat():
    f = frame_with(20, 24, 14, (64, 64))
    box = object_boxes(frame_with(20, 24, 14, (64, 64)))
    f = f.expand(40, -1, -1, -1)
    box = box.expand(40, -1)
    a, b = (_object_crops(f, box, generator(1)) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a[0], a[1])
    shown = a.mean((1, 2, 3)) / _object_crops(f, box).mean((1, 2, 3))
    assert 0.4 < shown.min() < shown.max() < 1.8 and shown.std() > 0.1


def test_what_is_read_does_not_depend_on_where_it_is():
    "The same object elsewhere gives the same `what` features, so one place is enough to learn it."
    judge = AttributeClassifier({"object": ["a", "b"]}, width=4).eval()
    x = torch.stack([frame_with(20, 24, s, (64, 64), -1.0)[0] for s in (8, 11, 14)], 1)[None]
    with torch.no_grad():
        here = judge.features(x)
        there = judge.features(x.roll((4, -6), (-2, -1)))
    assert torch.allclose(here[:, :32], there[:, :32], atol=1e-3)
    assert not torch.allclose(
        here[:, 32:], there[:, 32:], atol=1e-3
    )  # where and how it moves is seen


def test_training_draws_looks_from_the_generator_only():
    judge = AttributeClassifier({"object": ["a", "b"]}, width=4).eval()
    x = to_float(stack_clips(SceneClips(4, "all", 5, ("grow",)))[0])
    before = torch.get_rng_state()
    a, b = (judge.features(x, generator(2)) for _ in range(2))
    assert torch.equal(judge.features(x), judge.features(x)), "reading a clip is not random"
    assert torch.equal(a, b) and torch.equal(before, torch.get_rng_state())
    assert not torch.allclose(a, judge.features(x), atol=1e-3)


# ---------------------------------------------------------------- counting


class Reader:
    "A stand-in for a judge that reads what it was told."

    attributes = {"colour": ["blue", "red"], "motion": ["left", "right", "up"]}

    def __init__(self, read):
        self.read = read

    def predict(self, clips):
        return self.read


READ = [
    dict(colour="red", motion="up"),
    dict(colour="red", motion="left"),
    dict(colour="blue", motion="up"),
]


WANTED = [
    dict(colour="red", motion="up", fps=8),
    dict(colour="red", motion="up", fps=8),
    dict(colour="red", motion="up", fps=8),
]


def test_shares_are_counted_by_attribute_and_together():
    got = attribute_accuracy(Reader(READ), torch.zeros(3, 3, 1, 8, 8), WANTED)
    assert got["n"] == 3 and got["all_right"] == pytest.approx(1 / 3)
    assert got["colour_right"] == pytest.approx(2 / 3) and got["motion_right"] == pytest.approx(
        2 / 3
    )
    assert got["all_right_interval"] == binomial_interval(1, 3) and "fps_right" not in got
    assert got["colour_right_interval"] == binomial_interval(2, 3)
    table = confusion_matrix(Reader(READ), torch.zeros(3, 3, 1, 8, 8), "motion", WANTED)
    assert table.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 2]]


def test_what_judging_refuses():
    clips = torch.zeros(3, 3, 1, 8, 8)
    with pytest.raises(ValueError, match="3 clips, but 2 sets"):
        attribute_accuracy(Reader(READ), clips, WANTED[:2])
    with pytest.raises(ValueError, match="wanted colour must be one of 'blue', 'red', not 'pink'"):
        attribute_accuracy(Reader(READ), clips, [dict(w, colour="pink") for w in WANTED])
    with pytest.raises(ValueError, match="nothing to judge: the judge reads colour, motion"):
        attribute_accuracy(Reader(READ), clips, [{}] * 3)


# ---------------------------------------------------------------- training


COLOURS = {"red": (220, 40, 40), "green": (40, 220, 40), "blue": (40, 40, 220)}


def two_attribute_clips(n, size=(32, 32), frames=6):
    "Squares of three colours that go left or right."
    out = []
    for i in range(n):
        colour = list(COLOURS)[i % 3]
        way = ("left", "right")[i // 3 % 2]
        x0, y0 = (int(v) for v in torch.randint(0, 8, (2,), generator=generator(i)))
        path = [
            (x0 + (2 * t if way == "right" else 2 * (frames - 1 - t)), y0) for t in range(frames)
        ]
        out.append(
            Clip(
                square_at(path, size=size, colour=COLOURS[colour])[0],
                "",
                attributes=dict(colour=colour, way=way, index=i),
            )
        )
    for c in out:
        del c.attributes["index"]
    return out


@pytest.fixture(scope="module")
def judged():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    judge = train_judge(two_attribute_clips(48), steps=80, width=8, batch=12)
    assert torch.equal(before, torch.get_rng_state()), "training consumed the global generator"
    return judge


def test_judge_learns_both_attributes(judged):
    assert judged.attributes == {"colour": ["blue", "green", "red"], "way": ["left", "right"]}
    held = two_attribute_clips(96)[48:]
    assert attribute_accuracy(judged, held)["all_right"] >= 0.95
    still = torch.stack([c.frames[:, 3:4].expand(-1, 6, -1, -1) for c in held])
    wanted = [c.attributes for c in held]
    got = attribute_accuracy(judged, still, wanted)  # frozen: the colour is right, the way is not
    assert got["colour_right"] >= 0.95 and got["way_right"] <= 0.75


def test_judge_reads_any_size_and_length(judged):
    for clip in (
        torch.zeros(1, 3, 1, 48, 80),
        torch.zeros(1, 3, 21, 96, 96),
        torch.zeros(1, 3, 6, 16, 16, dtype=torch.uint8),
    ):
        assert set(judged.predict(clip)[0]) == {"colour", "way"}
        assert judged.features(as_pixels(clip)).shape == (1, 96)


def test_judge_training_repeats():
    clips = two_attribute_clips(12)
    a, b, c = (
        train_judge(clips, steps=3, width=4, batch=4, seed=s).state_dict() for s in (0, 0, 1)
    )
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], c[k]) for k in a)


def test_judge_learns_the_autoencoders_handwriting():
    """Half of each batch are reconstructions: through an inverting codec, only a judge that saw
    it reads on."""
    clips = two_attribute_clips(48)
    held = two_attribute_clips(60)[48:]

    class Inverse(torch.nn.Module):
        def forward(self, x):
            return -x

    coded = _reconstructions(torch.stack([c.frames for c in held]), Inverse())
    wanted = [c.attributes for c in held]
    seen, unseen = (
        train_judge(clips, steps=80, width=8, batch=12, autoencoder=a) for a in (Inverse(), None)
    )
    assert (
        attribute_accuracy(seen, coded, wanted)["colour_right"]
        >= 0.9
        > attribute_accuracy(unseen, coded, wanted)["colour_right"]
    )


def test_judge_saved_and_loaded(judged, tmp_path):
    judged.save_pretrained(tmp_path)
    again = AttributeClassifier.from_pretrained(tmp_path)
    x = torch.stack([c.frames for c in two_attribute_clips(6)])
    assert again.attributes == judged.attributes and again.predict(x) == judged.predict(x)
    assert torch.equal(again.features(as_pixels(x)), judged.features(as_pixels(x)))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        AttributeClassifier.from_pretrained(tmp_path / "nowhere")


def test_judge_needs_attributes():
    with pytest.raises(ValueError, match="no attributes that a judge could learn"):
        train_judge([Clip(torch.zeros(3, 2, 8, 8).byte(), "")], steps=1)
    with pytest.raises(ValueError, match="no clips"):
        train_judge([], steps=1)
    values = _attribute_values(
        [
            Clip(torch.zeros(1), "", attributes=dict(a=2, b=1)),
            Clip(torch.zeros(1), "", attributes=dict(a=1)),
        ]
    )
    assert values == {"a": [1, 2]}


# ---------------------------------------------------------------- saved


def test_a_judge_of_version_0_1_loads(judged, tmp_path):
    """It called the kind by the name of a class; any other kind is refused, and so is an unknown
    field."""
    judged.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    assert config["kind"] == "attribute-classifier"
    assert JUDGES["Judge"] is JUDGES["attribute-classifier"] is AttributeClassifier
    x = torch.stack([c.frames for c in two_attribute_clips(6)])
    for kind in ("Judge", "AttributeClassifier"):
        file.write_text(json.dumps(dict(config, kind=kind)))
        assert AttributeClassifier.from_pretrained(tmp_path).predict(x) == judged.predict(x)
    file.write_text(json.dumps(dict(config, kind="ImageVAE")))
    with pytest.raises(ValueError, match="kind is 'ImageVAE', not 'attribute-classifier'"):
        AttributeClassifier.from_pretrained(tmp_path)
    file.write_text(json.dumps(dict(config, widht=4)))
    with pytest.raises(ValueError, match="no field 'widht'; did you mean 'width'"):
        AttributeClassifier.from_pretrained(tmp_path)


def test_a_judge_of_a_wrong_size_is_refused():
    for field in ("width", "frames", "size"):
        with pytest.raises(ValueError, match=f"{field} must be a whole number from 1 to .*not 0"):
            AttributeClassifier({"a": [0, 1]}, **{field: 0})


def test_its_methods_of_version_0_1_still_work():
    judge = AttributeClassifier({"a": [0, 1]}, width=4, frames=3)
    x = torch.arange(7.0).view(1, 1, 7, 1, 1)
    with pytest.warns(DeprecationWarning, match="AttributeClassifier.pick is now select_frames"):
        assert judge.pick(x).equal(judge.select_frames(x))
    assert judge.select_frames(x).flatten().tolist() == [0, 3, 6]
