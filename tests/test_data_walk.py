"""Which files of a folder are data: links, hidden parts, a run's own; names that a terminal would
obey."""

import os
import warnings

import numpy as np
import pytest
from helpers import clips as fixtures
from helpers.clips import grey, packed, write_tar

from minisora.core.files import write_json
from minisora.data.folders import FolderClips
from minisora.data.imagenet import ImageNetClips
from minisora.data.tars import TarClips
from minisora.data.text import caption_from_path, printable
from minisora.data.unreadable import ReadableSubset
from minisora.data.walk import walk_files
from minisora.latents.cache_import import NpyFolder

# fixtures that several files share
video = fixtures.video

HIDDEN = (
    "._a.mp4",
    ".hidden.mp4",
    ".ipynb_checkpoints/x.mp4",
    ".Trash-1000/files/x.mp4",
    "deep/__MACOSX/a.mp4",
    "deep/.git/x.mp4",
    "$RECYCLE.BIN/x.mp4",
)


@pytest.fixture
def folder(tmp_path, video):
    home = tmp_path / "data"
    for name in ("a.mp4", "deep/b.mp4", *HIDDEN):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(video.read_bytes())
    return home


def test_hidden_parts_are_no_clips_and_are_named(folder):
    with pytest.warns(
        UserWarning, match=r"left out as hidden: .*RECYCLE.BIN, \.Trash-1000"
    ) as said:
        data = FolderClips(folder, 16, 2)
    assert len(said) == 1 and said[0].filename == __file__
    assert [c.caption for c in data] == ["a", "b"] and not data.unreadable
    left = {name for name, _ in data.left_out}
    assert {"._a.mp4", ".ipynb_checkpoints", os.path.join("deep", "__MACOSX")} <= left
    classes = FolderClips(folder, 16, 2, captions="folder", on_error="collect")
    assert [c.caption for c in classes] == ["deep"] and classes[0].attributes["label"] == 0


def test_hidden_files_that_are_no_clips_are_not_worth_a_word(tmp_path, video):
    (tmp_path / "a.mp4").write_bytes(video.read_bytes())
    (tmp_path / ".DS_Store").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").touch()
    (tmp_path / "Thumbs.db").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(FolderClips(tmp_path, 16, 2)) == 1


def test_links_are_followed_once(folder, tmp_path, video):
    other = tmp_path / "elsewhere"
    (other / "more").mkdir(parents=True)
    (other / "c.mp4").write_bytes(video.read_bytes())
    (other / "more/d.mp4").write_bytes(video.read_bytes())
    for name, to in (
        ("one", other),
        ("two", other),
        ("deep/up", folder),
        ("deep/above", tmp_path),
        ("deep/self", folder / "deep/self"),
        ("same.mp4", folder / "a.mp4"),
        ("gone.mp4", folder / "nowhere.mp4"),
    ):
        (folder / name).symlink_to(to)
    data = FolderClips(folder, 16, 2, on_error="collect")
    assert sorted(c.caption for c in data) == ["a", "b", "c", "d", "same"]
    assert ("gone.mp4", "a link to nothing") in data.left_out
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    assert walk_files(linked).files == walk_files(folder).files


def test_what_a_run_wrote_is_no_data(folder, video):
    run = folder / "runs/mine"
    (run / "samples").mkdir(parents=True)
    write_json(run / "recipe.json", {})
    for name in ("a-red-ring.mp4", "samples/0.mp4"):
        (run / name).write_bytes(video.read_bytes())
    with pytest.warns(UserWarning, match="runs/mine left out: it is a run"):
        data = FolderClips(folder, 16, 2)
    assert [c.caption for c in data] == ["a", "b"]


def test_hidden_members_of_a_tar(tmp_path):
    parts = {"a.png": packed(grey(9)), "a.txt": b"x", "._a.png": b"?", "__MACOSX/._a.txt": b"?"}
    parts |= {"./b.png": packed(grey(9)), "./b.txt": b"y", ".ipynb_checkpoints/a.png": b"?"}
    write_tar(tmp_path / "t.tar", parts)
    (tmp_path / "._t.tar").write_bytes(b"?")
    data = TarClips(tmp_path, 16, on_error="collect")
    assert [c.caption for c in data] == ["x", "y"] and not data.unreadable


def test_hidden_files_among_latents(tmp_path):
    for kind in ("features", "labels"):
        home = tmp_path / f"x_{kind}"
        home.mkdir()
        for k in range(3):
            np.save(home / f"{k}.npy", np.zeros((1, 4, 2, 2), np.float32) + k)
            (home / f"._{k}.npy").write_bytes(b"Mac OS X")
        (tmp_path / f".x_{kind}").mkdir()
    assert len(NpyFolder(tmp_path)) == 3


@pytest.mark.parametrize("ending", [".JPEG", ".jpg", ".png", ".PNG"])
def test_imagenet_folders_of_other_endings(tmp_path, ending):
    for k in range(2):
        home = tmp_path / f"train/n0000000{k}"
        home.mkdir(parents=True)
        kind = "PNG" if ending.lower() == ".png" else "JPEG"
        (home / f"x{ending}").write_bytes(packed(grey(90 * k), kind))
        (home / f"._x{ending}").write_bytes(b"?")
    data = ImageNetClips(tmp_path, size=16)
    assert [c.attributes["label"] for c in data] == [0, 1]


# ---------------------------------------------------------------- names

NASTY = "x\x1b[2J\x1b]0;owned\x07\n\u202egnp\u009b31m"


def test_names_are_shown_as_text(tmp_path):
    for name in (f"{NASTY}.mp4", "b\udcff.mp4"):
        (tmp_path / name).write_bytes(b"no video")
    (tmp_path / "good.png").write_bytes(packed(grey(9)))
    with pytest.warns(UserWarning) as said:
        data = FolderClips(tmp_path, 16, 1)
    texts = [str(said[0].message), *(part for pair in data.unreadable for part in pair)]
    for text in texts:
        assert not set(text) & set("\x1b\x07\n\u202e\u009b") and text.encode()
    assert "\\x1b[2J" in texts[0] and "not UTF-8" in dict(data.unreadable)["b\\udcff.mp4"]
    with pytest.raises(ValueError) as e:
        FolderClips(tmp_path, 16, 1, on_error="raise")
    assert str(e.value) == printable(e.value)
    lazy = FolderClips(tmp_path, 16, 1, check="no", on_error="collect")
    with pytest.raises(ValueError) as e:
        [lazy[i] for i in range(len(lazy))]
    assert str(e.value) == printable(e.value)
    good = ReadableSubset(lazy, on_error="collect")
    assert len(good) == 1 and all(reason == printable(reason) for _, reason in good.unreadable)


@pytest.mark.parametrize(
    "name, shown",
    [
        ("déjà vu.mp4", "déjà vu.mp4"),
        ("红球 👩‍🚀", "红球 👩‍🚀"),
        ("a\tb\x7f", "a\\tb\\x7f"),
        ("\ud800", "\\ud800"),
        ("a\u2028b\u2066", "a\\u2028b\\u2066"),
    ],
)
def test_printable(name, shown):
    assert printable(name) == shown


def test_captions_from_names_hold_no_codes():
    assert caption_from_path("Thank\x1b[2J_You\u202e.mp4") == "thank [2j you"
    assert caption_from_path("ve\u0301lo.mp4") == "v\u00e9lo"
