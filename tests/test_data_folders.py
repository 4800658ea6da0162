"""Folders of films and pictures: captions from names, manifests and classes; what cannot be read is
listed."""

import csv
import warnings

import numpy as np
import pytest
import torch
from helpers import clips as fixtures
from helpers.clips import (
    SHARED,
    encode,
    grey,
    needs,
    packed,
    photo,
    quarters,
    red_ramp,
)

from minisora.clips import SceneClips
from minisora.data.buckets import make_buckets
from minisora.data.folders import FolderClips, manifest_rows
from minisora.data.pictures import crop_anchor
from minisora.data.video import _decode_video, probe, stack_clips, write_video

# fixtures that several files share
video = fixtures.video
pictures = fixtures.pictures

# ---------------------------------------------------------------- folders of films


@pytest.fixture
def folder(tmp_path):
    for name, i in (("a_red-ball.mp4", 1), ("Thank You.mp4", 2), ("-dash-.mp4", 3)):
        write_video(tmp_path / name, SceneClips(9)[i])
    (tmp_path / "deeper").mkdir()
    write_video(tmp_path / "deeper" / "below.mp4", SceneClips(9)[5])
    return tmp_path


def test_a_folder_of_clips(folder):
    (folder / "broken.mp4").write_bytes(b"no video at all")
    (folder / "empty.webm").touch()
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden.mp4").touch()
    data = FolderClips(folder, size=32, frames=8)
    assert [c.caption for c in data] == ["dash", "thank you", "a red ball", "below"]
    assert {f for f, _ in data.unreadable} == {"broken.mp4", "empty.webm", "notes.txt"}
    assert dict(data.unreadable)["empty.webm"] == "the file is empty"
    assert "Invalid data" in dict(data.unreadable)["broken.mp4"]
    assert data[0].frames.shape == (3, 8, 32, 32)
    lazy = FolderClips(folder, size=32, frames=8, keep=0)
    assert not lazy.kept and all(torch.equal(a.frames, b.frames) for a, b in zip(lazy, data))


def test_captions_from_a_manifest(folder):
    rows = [("Thank You.mp4", 'hello, "you"', "calm"), ("deeper/below.mp4", "déjà vu", "wild")]
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8-sig") as f:
        csv.writer(f).writerows([("file", "caption", "mood"), *rows])
    data = FolderClips(folder)
    assert [c.caption for c in data] == [r[1] for r in rows] and data[1].attributes == {
        "mood": "wild"
    }
    lines = folder / "list.jsonl"
    lines.write_text('{"file": "Thank You.mp4", "caption": "one"}\n\n', encoding="utf-8")
    assert [c.caption for c in FolderClips(folder, manifest=lines)] == ["one"]
    assert [c.caption for c in FolderClips(lines)] == ["one"]  # the manifest itself will do


def test_folders_with_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match="no readable clip in"):
        FolderClips(tmp_path)
    (tmp_path / "x.mp4").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="no readable clip in .*x.mp4: Invalid"):
        FolderClips(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        FolderClips(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no manifest at"):
        FolderClips(tmp_path, manifest=tmp_path / "m.csv")


@needs("awkward")
def test_awkward_files():
    data = FolderClips(SHARED / "awkward")
    assert dict(data.unreadable).keys() == {"corrupted.mp4", "doc_medias_result.webm"}
    assert dict(data.unreadable)["doc_medias_result.webm"] == "the file is empty"
    clips = {c.source.split("/")[-1]: c for c in data}
    assert len(clips) == 10 and clips["-video-with-dash-.mp4"].caption == "video with dash"
    assert {tuple(c.frames.shape) for c in clips.values()} == {(3, 16, 64, 64)}
    assert clips["no_duration.webm"].fps == pytest.approx(
        16 / 4.94, rel=0.02
    )  # 74 frames at 15 a second
    flag = (
        clips["-video-with-dash-.mp4"].frames.float().mean((2, 3))
    )  # red, green, blue, black, white
    assert flag[0, 0] > 200 > 60 > flag[1, 0] and flag[:, 15].min() > 200
    ball = clips["transparent.webm"].frames.float()  # a red ball on nothing
    assert (
        (ball.amax(0) == 0).float().mean() > 0.9 and ball[0].max() > 200 and ball[1:].mean() < 0.1
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: FolderClips(".", check="yes"), "check must be one of 'decode', 'open', 'no'"),
        (
            lambda: FolderClips(".", on_error="skip"),
            "on_error must be one of 'warn', 'raise', 'collect'",
        ),
        (lambda: FolderClips(".", buckets=make_buckets(lengths=(1, 8))), "need fps"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError) as e:
        call()
    assert words in str(e.value) and "\n" not in str(e.value)


def test_random_crops_are_a_pure_function_of_seed_epoch_and_index(tmp_path):
    wide = np.stack([quarters(32, 96)] * 8)
    for k in range(3):
        encode(tmp_path / f"{k}.mp4", wide)
    data = FolderClips(tmp_path, 32, 2, crop="random", seed=5)
    again = FolderClips(tmp_path, 32, 2, crop="random", seed=5, check="no")
    red = lambda d: [round(c.frames[0].float().mean().item()) for c in d]
    first = red(data)
    assert first == red(again) and len(set(first)) == 3
    data.set_epoch(1)
    assert red(data) != first
    data.set_epoch(0)
    assert red(data) == first != red(FolderClips(tmp_path, 32, 2, crop="random", seed=6))
    assert len({*red(FolderClips(tmp_path, 32, 2))}) == 1  # the centre
    anchors = np.array([crop_anchor("random", 0, 0, i) for i in range(300)])
    assert anchors.min() < 0.05 and anchors.max() > 0.95
    assert np.abs(anchors.mean(0) - 0.5).max() < 0.06


# ---------------------------------------------------------------- folders of pictures


def test_a_folder_of_pictures(pictures):
    data = FolderClips(pictures, size=24, on_error="raise")
    assert [c.caption for c in data] == ["1", "3", "1", "2"]
    assert all(c.frames.shape == (3, 1, 24, 24) for c in data)
    levels = [round(c.frames.float().mean().item() / 50) for c in data]
    assert levels == [2, 3, 0, 1] and data[1].source == str(pictures / "a-dogs/deep/3.JPEG")


def test_folders_as_classes(pictures):
    (pictures / "readme.txt").write_text("hello")
    (pictures / "c_empty").mkdir()
    data = FolderClips(pictures, captions="folder", on_error="collect")
    assert [(c.caption, c.attributes["label"]) for c in data] == [("a dogs", 0)] * 2 + [
        ("b cats", 1)
    ] * 2
    assert data.unreadable == [("readme.txt", "it lies in none of the folders")]
    (pictures / "manifest.csv").write_text("file,caption\na-dogs/1.webp,listed\n")
    assert [c.caption for c in FolderClips(pictures)] == ["listed"]
    assert len(FolderClips(pictures, captions="folder", on_error="collect")) == 4
    with pytest.raises(ValueError, match="captions=.folder. takes no manifest"):
        FolderClips(pictures / "manifest.csv", captions="folder")
    with pytest.raises(ValueError, match="captions must be one of 'file', 'folder'"):
        FolderClips(pictures, captions="label")


@pytest.mark.parametrize("orientation, corner", [(1, 0), (3, 250), (6, 0), (8, 250)])
def test_photos_are_upright(tmp_path, orientation, corner):
    photo(tmp_path / "x.jpg", red_ramp(), orientation)
    clip = FolderClips(tmp_path, size=(48, 16) if orientation > 5 else (16, 48))[0]
    assert abs(int(clip.frames[0, 0, 0, 0]) - corner) < 16  # 6: top is what was left; 8: right
    info = probe(tmp_path / "x.jpg")
    assert (info.height, info.width, info.seconds) == (
        (48, 16, 0) if orientation > 5 else (16, 48, 0)
    )


def test_bad_pictures_are_refused_by_name(tmp_path):
    whole = packed(grey(7))
    (tmp_path / "cut.png").write_bytes(whole[:45])
    (tmp_path / "empty.png").touch()
    (tmp_path / "torn.png").write_bytes(whole[:33] + (5).to_bytes(4, "big") + whole[37:])
    (tmp_path / "vast.bmp").write_bytes(
        packed(grey(7), "BMP").replace(
            (30).to_bytes(4, "little") + (20).to_bytes(4, "little"),
            (50000).to_bytes(4, "little") * 2,
        )
    )
    (tmp_path / "whole.png").write_bytes(whole)
    for check in ("decode", "open"):
        data = FolderClips(tmp_path, check=check, on_error="collect")
        assert len(data) == 1 and [f for f, _ in data.unreadable] == [
            "cut.png",
            "empty.png",
            "torn.png",
            "vast.bmp",
        ]
        assert all(reason and "cannot read" not in reason for _, reason in data.unreadable)


def test_pictures_beside_videos(tmp_path, video):
    (tmp_path / "film.mp4").write_bytes(video.read_bytes())
    photo(tmp_path / "still.png", grey(90, 32, 64))
    data = FolderClips(tmp_path, 32, 4, on_error="collect")
    assert len(data) == 1 and data.unreadable == [
        ("still.png", "a picture beside videos needs buckets, or frames=1")
    ]
    assert stack_clips(FolderClips(tmp_path, 32, 1))[0].shape == (2, 3, 1, 32, 32)
    data = FolderClips(tmp_path, frames=4, buckets=make_buckets(32, (1, 2), lengths=(4,)))
    assert [b.frames for b in data.bucket_of] == [4, 1] and data.bucket_of[
        1
    ].width > data.bucket_of[1].height
    for clip, b in zip(data, data.bucket_of):
        assert clip.frames.shape[1:] == (b.frames, b.height, b.width)


# ---------------------------------------------------------------- manifests


@pytest.mark.parametrize(
    "name, text, error, words",
    [
        (
            "m.csv",
            "file,mood\nThank You.mp4,x\n",
            ValueError,
            "row 1 (line 2): no 'caption'; columns are: file, mood",
        ),
        ("m.csv", "caption\nx\n", ValueError, "no 'file'"),
        (
            "m.csv",
            "file,caption\nThank You.mp4,\n",
            ValueError,
            "row 1 (line 2): its caption is empty",
        ),
        ("m.csv", "file,caption\n", ValueError, "has no rows"),
        ("m.jsonl", "{oops\n", ValueError, "is no JSONL"),
        ("m.jsonl", "[1]\n", ValueError, "row 1 (line 1): no object"),
    ],
)
def test_wrong_manifests_are_one_line_errors(folder, name, text, error, words):
    (folder / name).write_text(text)
    with pytest.raises(error) as e:
        FolderClips(folder, manifest=folder / name)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_commas_without_quotes(tmp_path):
    (tmp_path / "m.csv").write_text(
        'file,caption\na.mp4,"one, two"\nb.mp4,a red ball, moving left\n'
    )
    with pytest.raises(ValueError, match=r"m.csv, row 2 \(line 3\): ' moving left' belongs") as e:
        manifest_rows(tmp_path / "m.csv")
    assert "quotes" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("check", ["decode", "open", "no"])
def test_files_missing_from_a_folder_are_refused_like_others(pictures, check):
    (pictures / "m.csv").write_text("file,caption\nnone.png,x\na-dogs/1.webp,there\ngone.png,y\n")
    data = FolderClips(pictures / "m.csv", check=check, on_error="collect")
    assert [c.caption for c in data] == ["there"]
    assert data.unreadable == [("none.png", "no such file"), ("gone.png", "no such file")]
    with pytest.raises(
        ValueError, match="2 of 3 cannot be read in .*none.png: no such file; gone.png"
    ):
        FolderClips(pictures / "m.csv", check=check, on_error="raise")


# ---------------------------------------------------------------- what cannot be read, and what is
# kept


@pytest.fixture
def broken(tmp_path):
    for k in range(6):
        write_video(tmp_path / f"{k}.mp4", SceneClips(9)[k])
    (tmp_path / "3.mp4").write_bytes(b"rubbish")
    (tmp_path / "5.mp4").write_bytes(b"")
    return tmp_path


def test_bad_files_are_reported_at_the_end_or_are_fatal(broken):
    with pytest.warns(UserWarning) as said:
        data = FolderClips(broken, 32, 4)
    assert len(said) == 1 and len(data) == 4
    text = str(said[0].message)
    assert text.startswith("2 of 6 cannot be read in ") and "\n" not in text
    assert "3.mp4: Invalid data" in text and "5.mp4: the file is empty" in text
    for check in ("decode", "open"):
        with pytest.raises(ValueError, match="2 of 6 cannot be read.*5.mp4: the file is empty"):
            FolderClips(broken, 32, 4, on_error="raise", check=check)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(FolderClips(broken, 32, 4, on_error="collect").unreadable) == 2
        late = FolderClips(broken, 32, 4, check="no")
    assert len(late) == 6 and not late.unreadable and torch.equal(late[2].frames, data[2].frames)
    with pytest.raises(ValueError, match="cannot read .*3.mp4"):
        late[3]


def test_opening_decodes_one_frame_only(broken, monkeypatch):
    decoded, turn = [], _decode_video
    monkeypatch.setattr(
        "minisora.data.video._decode_video", lambda *a: decoded.append(a) or turn(*a)
    )
    data = FolderClips(broken, 32, 4, check="open", on_error="collect")
    assert len(data) == 4 and not decoded and not data.kept
    data[0]
    assert len(decoded) == 1


def test_what_is_kept_is_bounded(broken, monkeypatch):
    kept = lambda: len(FolderClips(broken, 32, 4, on_error="collect").kept)
    assert kept() == 4
    monkeypatch.setattr("minisora.data.folders._KEEP_BYTES", 2 * 3 * 4 * 32 * 32 + 1)
    assert kept() == 2
