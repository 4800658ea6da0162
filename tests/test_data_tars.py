"""Tar files: read at random, never unpacked; damage and what is missing are named."""

import json
import pickle
import warnings

import pytest
import torch
from helpers import clips as fixtures
from helpers.clips import grey, packed, write_tar

from minisora.data.tars import TarClips, _expand_braces, _read_part
from minisora.data.video import read_video, stack_clips

# fixtures that several files share
video = fixtures.video


@pytest.fixture
def shards(tmp_path, video):
    a = {
        "deep/0001.mp4": video.read_bytes(),
        "deep/0001.txt": " a red ball\n".encode(),
        "0002.json": json.dumps({"text": "from json", "mood": "calm"}).encode(),
        "0002.mp4": video.read_bytes(),
    }
    b = {
        **{f"k.{t}.png": packed(grey(20 * t)) for t in (10, 9, 2, 1)},
        "k.txt": "déjà vu".encode(),
        "k.cls": b"7",
        "one.JPG": packed(grey(90), "JPEG"),
        "one.txt": b"a still",
        "one.json": b'{"caption": "no", "n": 1}',
    }
    write_tar(tmp_path / "s-000.tar", a)
    write_tar(tmp_path / "s-001.tar", b)
    return tmp_path


def test_tar_files_are_read_at_random(shards, video):
    data = TarClips(shards, frames=4)
    assert [s[1] for s in data.samples] == ["deep/0001", "0002", "k", "one"] and not data.unreadable
    still, film, json_film, first = data[3], data[2], data[1], data[0]
    assert torch.equal(first.frames, read_video(video, 4).frames) and first.caption == "a red ball"
    assert first.source == f"{shards / 's-000.tar'}/deep/0001"
    assert (json_film.caption, json_film.attributes) == ("from json", {"mood": "calm"})
    assert film.frames[0, :, 0, 0].tolist() == [20, 40, 180, 200]  # in the order of the numbers
    assert (film.caption, film.attributes) == ("déjà vu", {"label": 7})
    assert still.frames.shape == (3, 1, 64, 64) and (still.caption, still.attributes) == (
        "a still",
        {"n": 1},
    )
    with pytest.raises(IndexError):
        data[4]


def test_tar_clips_travel_to_workers(shards):
    data = pickle.loads(pickle.dumps(TarClips([shards / "s-000.tar"], frames=4)))
    loader = torch.utils.data.DataLoader(data, batch_size=1, num_workers=2, collate_fn=stack_clips)
    assert [names for _, names in loader] == [["a red ball"], ["from json"]]


def test_a_tar_is_indexed_without_reading_its_files(shards, monkeypatch):
    "The index reads headers only; afterwards a sample costs its own bytes."
    read, seen = _read_part, []
    monkeypatch.setattr(
        "minisora.data.tars._read_part", lambda *a, **k: seen.append(a) or read(*a, **k)
    )
    data = TarClips(shards)
    # the first bytes, the closing block
    assert sum(n for _, _, n in seen) == 2 * (2 + 512)
    seen.clear()
    data[3]
    assert sorted(s for _, _, s in seen) == sorted(s for _, s in data.samples[3][2].values())


def test_samples_that_lack_something_are_reported(shards, video):
    write_tar(shards / "s-002.tar", {"x.mp4": video.read_bytes(), "y.txt": b"alone", "z.npy": b"?"})
    with pytest.warns(
        UserWarning, match="3 of 7 cannot be read.*s-002.tar/x: it has no .txt or .json"
    ):
        data = TarClips(shards)
    assert len(data) == 4 and [k for k, _ in data.unreadable] == [
        "s-002.tar/x",
        "s-002.tar/y",
        "s-002.tar/z",
    ]
    with pytest.raises(ValueError, match="s-002.tar/y: it has no video or picture"):
        TarClips(shards, on_error="raise")
    with pytest.raises(ValueError, match="no readable clip in .*s-002.tar/x: it has no"):
        TarClips(shards / "s-002.tar")


def test_damaged_tars_are_named(shards, tmp_path):
    whole = (shards / "s-001.tar").read_bytes()
    flipped = whole[:1024] + bytes([whole[1024] ^ 1]) + whole[1025:]  # in the second header
    for damaged in (whole[:300], whole[:700], whole[:1024], whole[:1500], flipped):
        (tmp_path / "cut.tar").write_bytes(damaged)
        with pytest.raises(ValueError, match="cut.tar is no whole tar"):
            TarClips(tmp_path / "cut.tar")
    (tmp_path / "no.tar").write_bytes(b"rubbish" * 200)
    with pytest.raises(ValueError, match="no.tar is no whole tar"):
        TarClips(tmp_path / "no.tar")
    write_tar(tmp_path / "gz.tar", {"a.txt": b"x"}, "w:gz")
    with pytest.raises(ValueError, match="gz.tar is compressed"):
        TarClips(tmp_path / "gz.tar")
    with pytest.raises(FileNotFoundError, match="none.tar"):
        TarClips(tmp_path / "none.tar")
    data = TarClips(shards / "s-001.tar")
    (shards / "s-001.tar").write_bytes(whole[:1024])  # cut after it was indexed
    with pytest.raises(ValueError, match="s-001.tar/one: the file ends after"):
        data[1]


@pytest.mark.parametrize(
    "parts, words",
    [
        ({"a.json": b"[1]"}, "no object"),
        ({"a.json": b'{"n": 1}'}, "no caption"),
        ({"a.txt": b" "}, "its caption is empty"),
        ({"a.json": b"{oops"}, "a: "),
        ({"a.txt": b"x", "a.cls": b"cat"}, "cat"),
        ({"a.txt": b"\xff\xfe"}, "a: "),
    ],
)
def test_bad_captions_in_tars_are_named(tmp_path, parts, words):
    write_tar(tmp_path / "t.tar", {"a.png": packed(grey(5)), **parts})
    with pytest.raises(ValueError, match="t.tar/a: ") as e:
        TarClips(tmp_path / "t.tar")[0]
    assert words in str(e.value) and "\n" not in str(e.value)


def test_nothing_is_said_where_nothing_is_wrong(shards):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TarClips(shards)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("s.tar", ["s.tar"]),
        ("s-{008..011}.tar", ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]),
        ("{9..10}", ["9", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("{x}", ["{x}"]),
    ],
)
def test_braces(pattern, names):
    assert _expand_braces(pattern) == names


def test_tars_by_braces(tmp_path):
    for k in range(3):
        write_tar(tmp_path / f"s-{k:02d}.tar", {"a.png": packed(grey(k)), "a.txt": str(k).encode()})
    assert [c.caption for c in TarClips(f"{tmp_path}/s-{{00..02}}.tar")] == ["0", "1", "2"]
    with pytest.raises(FileNotFoundError, match="no tar file at .*s-03.tar"):
        TarClips(f"{tmp_path}/s-{{02..04}}.tar")
    (tmp_path / "s-00.tar").rename(tmp_path / "s-{1,2}.tar")
    assert [c.caption for c in TarClips(tmp_path / "s-{1,2}.tar")] == [
        "0"
    ]  # a file of that very name
