"""The lesson's clips: drawn scenes, moving digits, and the figures that show them."""

import numpy as np
import pytest
import torch

from minisora import clips
from minisora.clips import (
    COLORS,
    DIGITS,
    MOTIONS,
    OBJECTS,
    SIMPLE_MOTIONS,
    DigitClips,
    SceneClips,
    attribute_combinations,
    render_scene,
    scene_caption,
    trajectory,
)
from minisora.data.video import stack_clips

# ---------------------------------------------------------------- scenes


def test_scenes_are_pure_functions_of_seed_and_index():
    a, b = SceneClips(50, seed=3), SceneClips(1000, seed=3)
    assert all(torch.equal(a[i].frames, b[i].frames) for i in (0, 7, 49))
    assert not torch.equal(a[7].frames, SceneClips(50, seed=4)[7].frames)
    assert a[7].frames.shape == (3, 16, 64, 64) and a[7].frames.dtype == torch.uint8


def test_the_rendering_does_not_change():
    "Trained weights and benchmarks rest on it: sums of four scenes and of their squares, frozen."
    x = stack_clips([SceneClips(2000, "all", seed=0)[i] for i in (5, 300, 700, 1500)])[0].long()
    assert (x.sum().item(), (x * x).sum().item()) == FROZEN


FROZEN = (8258363, 1704555131)


def test_motion_goes_where_the_caption_says():
    for k, motion in enumerate(("left", "right", "up", "down")):
        for seed in range(20):
            x, y, r = trajectory(motion, np.random.default_rng(seed))
            move = (x[-1] - x[0], y[-1] - y[0])
            assert move[k // 2] * (-1, 1)[k % 2] >= 0.3 and abs(move[1 - k // 2]) < 1e-9, motion
    for seed in range(20):
        for motion, sign in (("grow", 1), ("shrink", -1)):
            r = trajectory(motion, np.random.default_rng(seed))[2]
            assert sign * (r[-1] - r[0]) > 0.1


@pytest.mark.parametrize("motion", MOTIONS)
def test_objects_stay_in_the_frame(motion):
    for seed in range(100):
        x, y, r = trajectory(motion, np.random.default_rng(seed))
        for a in (x, y):
            assert (a - r).min() > -1e-9 and (a + r).max() < 1 + 1e-9


@pytest.mark.parametrize("objects, stride", [(OBJECTS, 6), (DIGITS, 7)])
@pytest.mark.parametrize("motions", [MOTIONS, SIMPLE_MOTIONS])
def test_one_combination_in_ten_is_held_out_evenly(objects, stride, motions):
    parts = {
        s: attribute_combinations(objects, s, motions, stride) for s in ("train", "heldout", "all")
    }
    assert sorted(parts["train"] + parts["heldout"]) == sorted(parts["all"])
    assert len(parts["all"]) == len(objects) * 6 * len(motions)
    assert abs(len(parts["heldout"]) / len(parts["all"]) - 0.1) < 0.025
    for axis in range(3):
        for word in {c[axis] for c in parts["all"]}:
            share = sum(c[axis] == word for c in parts["train"]) / sum(
                c[axis] == word for c in parts["all"]
            )
            assert 0.8 <= share < 1, word


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: render_scene("dog", "red", "left"), "unknown object 'dog'"),
        (lambda: render_scene("ball", "pink", "left"), "unknown color 'pink'"),
        (lambda: render_scene("ball", "red", "jump"), "unknown motion 'jump'"),
        (lambda: SceneClips(4, motions=("left", "jump")), "unknown motion 'jump'"),
        (lambda: SceneClips(4, split="test"), "'test'"),
        (lambda: DigitClips(np.zeros((2, 9, 9)), [0, 1], 3), "must be uint8"),
        (lambda: DigitClips(np.zeros((2, 9, 9), np.uint8), [0, 11], 3), "label 11 has no name"),
        (lambda: DigitClips(np.zeros((2, 9, 9), np.uint8), [0], 3), "as many labels"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError) as e:
        call()
    assert words in str(e.value) and "\n" not in str(e.value)


def test_items_end():
    for data in (SceneClips(3), DigitClips(np.zeros((1, 9, 9), np.uint8), [0], 3)):
        assert len([c for c in data]) == 3


# ---------------------------------------------------------------- digits


def test_digits_move_keep_their_label_and_colour():
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 4:24] = 255
    data = DigitClips(np.stack([image, image]), [3, 7], 30, seed=1)
    clip = next(c for c in data if c.attributes["motion"] == "right")
    assert (
        clip.attributes["object"] in ("three", "seven")
        and clip.attributes["object"] in clip.caption
    )
    mass = clip.frames.float().sum((0, 2))  # (T, W)
    centre = (mass * torch.arange(64)).sum(1) / mass.sum(1)
    assert (centre.diff() > 0.5).all()
    rgb = clip.frames.amax((1, 2, 3)).tolist()
    assert np.abs(np.array(rgb) - COLORS[clip.attributes["colour"]]).max() <= 2
    held = DigitClips(np.stack([image, image]), [3, 7], 9, "heldout", seed=1)
    assert held.combinations and not set(held.combinations) & set(data.combinations)
    assert held[4].caption == scene_caption(*held.combinations[4])


# ---------------------------------------------------------------- names of version 0.1

OLD_NAMES = """
OBJECTS COLOURS MOTIONS SIMPLE_MOTIONS VERBS DIGITS PICTURES HOLD_BYTES UNREADABLE VIDEOS MANIFESTS
KEEP_BYTES first_name SOURCES Clip to_float to_uint8 stack scene_caption polygon_distance ngon
signed_distance trajectory periodic render_scene combinations scene_combinations SceneClips
load_digits render_image DigitClips resize_crop square rgb is_picture open_picture shape_of
crop_place time_span decoder shown_at pixels upright caption_of spaced read_video name_of reason
named_errors open_video decode_video pictures_at VideoInfo probe write_video encode read_manifest
stamp refusals report_refused sift one_of still_clip ClipReader FolderClips Bucket bucket_table
nearest_bucket BucketSampler braces tar_index TarClips read_part png caption_parts open_dataset
RowReader HubClips StreamClips Readable imagenet_names imagenet_labels ImageNetClips words_of
ucf101_dataset moving_mnist_dataset Source open_source Vocabulary content_words known_form
""".split()


def test_all_names_of_version_0_1_are_there():
    assert len(OLD_NAMES) == 91
    for name in OLD_NAMES:
        if name in vars(clips):
            continue
        with pytest.warns(DeprecationWarning, match=f"minisora.clips.{name} is now minisora"):
            assert getattr(clips, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        clips.nothing


def test_old_attributes_and_fields_answer():
    data = SceneClips(3)
    with pytest.warns(DeprecationWarning, match="SceneClips.combos is now combinations"):
        assert data.combos == data.combinations
    with pytest.warns(DeprecationWarning, match="ids_by_slot"):
        vocab = clips.Vocabulary(["a", "b"], 1, places=[[1]])
    with pytest.warns(DeprecationWarning, match="Vocabulary.places is now ids_by_slot"):
        assert vocab.places == vocab.ids_by_slot == ((1,),)


def test_what_caches_and_judges_hold_is_spelled_as_ever():
    assert list(SceneClips(1)[0].attributes) == ["object", "colour", "motion"]
    assert clips.Vocabulary(["a"], 1, ids_by_slot=[[1]]).to_dict() == dict(
        words=["a"], slots=1, drop=[], places=[[1]]
    )
