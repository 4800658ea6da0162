"""One way to open clips: what a source is, which options it takes, and what is said of it at the
end."""

import warnings

import pytest
from helpers import clips as fixtures
from helpers.clips import grey, packed, ramp, encode, write_tar

from minisora.data.folders import FolderClips
from minisora.data.hub import HubClips, StreamClips
from minisora.data.imagenet import ImageNetClips
from minisora.data.opening import open_clips
from minisora.data.tars import TarClips
from minisora.data.unreadable import ReadableSubset

# fixtures that several files share
video = fixtures.video
imagenet = fixtures.imagenet
imagenet_rows = fixtures.imagenet_rows


def inner(clips):
    return clips.dataset if isinstance(clips, ReadableSubset) else clips


def test_each_source_is_found_out(tmp_path, video, imagenet, imagenet_rows, datasets):
    films = tmp_path / "films"
    films.mkdir()
    (films / "a ball.mp4").write_bytes(video.read_bytes())
    (films / "list.csv").write_text("path,text\na ball.mp4,a ring\n")
    (tmp_path / "tars").mkdir()
    tar = {"a.png": packed(grey(9)), "a.txt": b"x"}
    tar = write_tar(tmp_path / "tars/t.tar", tar)
    imagenet_rows.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet").mkdir()
    imagenet_rows.to_parquet(str(tmp_path / "parquet/train-00000.parquet"))
    for source, kind, n in (
        (films, FolderClips, 1),
        (films / "list.csv", FolderClips, 1),
        (films / "a ball.mp4", FolderClips, 1),
        (tar, TarClips, 1),
        (tar.parent, TarClips, 1),
        (imagenet, ImageNetClips, 6),
        (tmp_path / "saved", HubClips, 6),
        (tmp_path / "parquet", HubClips, 6),
        (f"imagenet-1k={tmp_path / 'parquet'}", HubClips, 6),
    ):
        clips = open_clips(source, size=16, on_error="collect")
        assert isinstance(inner(clips), kind) and len(clips) == n, source
        assert clips[0].frames.shape[-2:] == (16, 16)
    stream = open_clips(tmp_path / "parquet", streaming=True, size=16)
    assert isinstance(stream, StreamClips) and len(list(stream)) == 6
    assert [c.caption for c in open_clips(films / "list.csv", on_error="collect")] == ["a ring"]


@pytest.mark.parametrize(
    "source, options, words",
    [
        ("nowhere/at/all", {}, "no clips at nowhere/at/all: no such file or folder"),
        ("./nowhere", {}, "no such file or folder"),
        ("list.csv", {}, "no such file or folder"),
        ("nowhere", {}, "no data set nowhere: no such folder"),
        (".", dict(split="val"), "no split 'val'"),
        (".", dict(streaming=True), "not streamed"),
        (".", dict(check="perhaps"), "check must be one of"),
        ("t.tar", dict(stride=2.0), "stride: only for a folder of clips, and t.tar is opened as"),
        ("t.tar", dict(frame_folders=8, captions="folder"), "captions, frame_folders: only"),
        ("ucf101", {}, "pass path="),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, video, source, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_bytes(video.read_bytes())
    if source == "t.tar":
        write_tar(tmp_path / "t.tar", {"a.png": packed(grey(9)), "a.txt": b"x"})
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        open_clips(source, **options)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_one_report_at_the_end(tmp_path, video):
    for name in ("walk_0.mp4", "walk_1.mp4", ".ipynb_checkpoints/x.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(video.read_bytes())
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.warns(UserWarning) as said:
        open_clips(tmp_path, size=16, frames=2)
    assert len(said) == 1 and said[0].filename == __file__
    text = str(said[0].message)
    for words in ("1 of 3 cannot be read", "bad.mp4: Invalid", ".ipynb_checkpoints", "numbers at"):
        assert words in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_clips(tmp_path, size=16, frames=2, on_error="collect")


def test_options_of_a_folder_reach_it(tmp_path):
    encode(tmp_path / "film.mp4", ramp(64))
    clips = open_clips(tmp_path, size=16, frames=8, fps=8, stride=2.0)
    assert [c.attributes["start"] for c in clips] == [0, 2, 4, 6]
