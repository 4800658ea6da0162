"""Tables read strictly; captions that are none refused by row; caption files beside clips; cuts and
windows."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from helpers import clips as fixtures
from helpers.clips import encode, grey, packed, ramp, write_tar
from PIL import Image

from minisora.data.cuts import clip_times, window_starts
from minisora.data.folders import FolderClips
from minisora.data.hub import HubClips
from minisora.data.tables import manifest_rows
from minisora.data.tars import TarClips
from minisora.data.text import one_caption
from minisora.data.video import _decode_part, _decoder, read_video, write_video

# fixtures that several files share
video = fixtures.video


def table(path, text, name="m.csv", encoding="utf-8"):
    (path / name).write_bytes(text.encode(encoding))
    return path / name


# ---------------------------------------------------------------- strict


@pytest.mark.parametrize(
    "text, words",
    [
        ('file,caption\na.mp4,"a ball\nb.mp4,a ring\n', "line 2: unexpected end"),
        ('file,caption\na.mp4,"a ball\nb.mp4,a ring"\n', "holds another line"),
        ('file;caption\na.mp4;"a ball\nb.png;a ring"\n', "holds another line"),
        ('file,caption\na.mp4,"a ball\nb.mp4,"a ring"\n', "line 2"),
        ('file,caption\na.mp4,x\nb.mp4,"a" ring\n', "line 3"),
        ('file,caption\na.mp4,"' + "x" * 140_000 + '"\n', "line 2: a cell has more than 131072"),
        ("file,caption,caption\na.mp4,x,y\n", "line 1: the column 'caption' comes 2 times"),
        ("file,caption,mood,mood\na.mp4,x,y,z\n", "the column 'mood' comes 2 times"),
        ("file,caption\na.mp4\n", "row 1 (line 2): 1 cells for 2 columns"),
        ("file,caption\n\na.mp4,one, two\n", "row 1 (line 3): ' two' belongs to no column"),
        ("file\na.mp4\n", "no 'caption'"),
        ("file,caption\na.mp4,d\udcff\n", "line 2: not UTF-8"),
    ],
)
def test_a_table_that_is_not_whole_is_refused(tmp_path, text, words):
    (tmp_path / "m.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError) as e:
        manifest_rows(tmp_path / "m.csv")
    assert words in str(e.value) and "m.csv" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"file": "a.mp4", "caption": "x", "caption": "y"}', "'caption' comes twice"),
        ('{"file": "a.mp4", "caption": "x"}\n{"a":' + "[" * 200_000, "(line 2)"),
        ('\n{"file": "a.mp4"', "row 1 (line 2)"),
        ('"a.mp4"', "no object"),
    ],
)
def test_json_lines_are_strict_too(tmp_path, text, words):
    with pytest.raises(ValueError) as e:
        manifest_rows(table(tmp_path, text, "m.jsonl"))
    assert words in str(e.value) and "m.jsonl" in str(e.value) and len(str(e.value)) < 600


@pytest.mark.parametrize(
    "text, name",
    [
        ("file,caption\na.mp4,a ball\n", "m.csv"),
        ("path,text\na.mp4,a ball\n", "m.csv"),
        ("video,caption\na.mp4,a ball\n", "m.csv"),
        ("file_name,text\na.mp4,a ball\n", "m.csv"),
        ("File_Name;Caption\na.mp4;a ball\n", "m.csv"),
        ("caption\tfile\na ball\ta.mp4\n", "m.tsv"),
        (",file,caption\n0,a.mp4,a ball\n", "m.csv"),
        ('"file","caption"\r\n"a.mp4","a ball"\r\n', "m.csv"),
        ('{"video": "a.mp4", "prompt": "a ball"}\n', "m.jsonl"),
    ],
)
def test_the_columns_of_others_are_understood(tmp_path, text, name):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (row,) = manifest_rows(table(tmp_path, text, name, encoding))
        assert row == dict(file="a.mp4", caption="a ball")


def test_what_a_column_says_is_not_taken_twice(tmp_path):
    (row,) = manifest_rows(table(tmp_path, "file,path,caption,text\na.mp4,/x,one,two\n"))
    assert row == dict(file="a.mp4", caption="one", path="/x", text="two")


# ---------------------------------------------------------------- captions that are none


@pytest.mark.parametrize(
    "value", [3, 1.5, float("nan"), None, True, {"text": "x"}, [], ["x", 4], ""]
)
def test_what_is_no_text_is_refused_by_row(tmp_path, video, value, datasets):
    (tmp_path / "a.mp4").write_bytes(video.read_bytes())
    rows = [dict(file="a.mp4", caption="a ball"), dict(file="a.mp4", caption=value)]
    table(tmp_path, "".join(json.dumps(r) + "\n" for r in rows), "manifest.jsonl")
    data = FolderClips(tmp_path, 16, 2, on_error="collect")
    assert [c.caption for c in data] == ["a ball"]
    ((file, reason),) = data.unreadable
    assert file == "a.mp4" and "row 2 (line 2): its " in reason
    part = json.dumps(dict(caption=value)).encode()
    tar = write_tar(tmp_path / "t.tar", {"a.png": packed(grey(9)), "a.json": part})
    with pytest.raises(ValueError, match="t.tar/a: its "):
        TarClips(tar)[0]


@pytest.mark.parametrize("value", [3, 1.5, float("nan"), None])
def test_columns_of_numbers_are_no_captions(datasets, value):
    rows = datasets.Dataset.from_list([dict(image=grey(9), text=value or 0.0)])
    with pytest.raises(ValueError, match=r"row 0: its caption is .* \((float|int)\), not a text"):
        HubClips(rows)[0]


def test_a_class_that_is_none_is_not_the_last_one(datasets):
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    rows = datasets.Dataset.from_list(
        [dict(image=grey(9), label=-1), dict(image=grey(9), label=1)], features=kinds
    )
    data = HubClips(rows, label="label")
    assert (data[1].caption, data[1].attributes["label"]) == ("b", 1)
    with pytest.raises(ValueError, match="row 0: its label is -1, not a class id from 0 to 1"):
        data[0]
    tar = {"a.png": packed(grey(9)), "a.txt": b"x", "a.cls": b"-1"}
    assert "-1" in str(pytest.raises(ValueError, _tar_clip, tar).value)


def _tar_clip(parts):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as tmp:
        return TarClips(write_tar(Path(tmp) / "t.tar", parts))[0]


def test_of_several_captions_one_is_picked(tmp_path, video, datasets):
    texts = ["a ball", "a red ball", "something red"]
    (tmp_path / "a.mp4").write_bytes(video.read_bytes())
    line = json.dumps(dict(file="a.mp4", caption=texts))
    table(tmp_path, f"{line}\n" * 12, "manifest.jsonl")
    folder = FolderClips(tmp_path, 16, 2, seed=3)
    kinds = datasets.Features(
        image=datasets.Image(), captions=datasets.List(datasets.Value("string"))
    )
    rows = [dict(image=grey(9), captions=texts)] * 12
    rows = datasets.Dataset.from_list(rows, features=kinds)
    hub = HubClips(rows, caption="captions", size=16, seed=3)
    parts = {}
    for k in range(12):
        parts |= {f"{k:02d}.png": packed(grey(9))}
        parts |= {f"{k:02d}.json": json.dumps(dict(caption=texts)).encode()}
    tar = TarClips(write_tar(tmp_path / "t.tar", parts), 16, seed=3)
    for data in (folder, hub, tar):
        first = [c.caption for c in data]
        assert set(first) == set(texts)
        assert first == [one_caption(texts, 3, 0, i) for i in range(12)]
        assert first == [c.caption for c in data]
        data.set_epoch(1)
        assert [c.caption for c in data] != first
        assert data.every_caption() == set(texts)


# ---------------------------------------------------------------- files beside clips


def test_captions_beside_clips(tmp_path, video):
    said = {
        "0001.txt": "a red ball\n",
        "0002.caption": "\ufeffdéjà vu",
        "0003.json": '{"text": "from json", "mood": "calm", "file": "?"}',
        "deep/0001.TXT": "another",
    }
    for name, text in said.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        clip = tmp_path / name
        clip.with_suffix(".mp4").write_bytes(video.read_bytes())
    (tmp_path / "notes.txt").write_text("buy milk")
    data = FolderClips(tmp_path, 16, 2, on_error="collect")
    assert [c.caption for c in data] == ["a red ball", "déjà vu", "from json", "another"]
    assert data[2].attributes == dict(mood="calm")
    assert [f for f, _ in data.unreadable] == ["notes.txt"]


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("b.txt", b" \n", "its caption is empty"),
        ("b.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("b.json", b"{oops", "no JSON"),
        ("b.json", b'{"caption": 4}', "its caption is 4 (int)"),
        ("b.json", b"[" * 100_000, "nested too deeply"),
        ("b.caption", b"x" * 2**21, "no caption"),
        ("c.txt", b"other", "no caption beside it"),
    ],
)
def test_bad_caption_files_are_named(tmp_path, video, name, data, words):
    for clip in "ab":
        (tmp_path / f"{clip}.mp4").write_bytes(video.read_bytes())
    (tmp_path / "a.txt").write_text("a ball")
    (tmp_path / name).write_bytes(data)
    found = FolderClips(tmp_path, 16, 2, on_error="collect")
    assert [c.caption for c in found] == ["a ball"]
    assert words in dict(found.unreadable)["b.mp4"]


def test_numbers_at_the_end_of_names_are_told(tmp_path, video):
    for name in ("walk_0", "walk_1", "a ball"):
        (tmp_path / f"{name}.mp4").write_bytes(video.read_bytes())
    with pytest.warns(UserWarning, match="numbers at the end .* 'walk 0' and 'walk 1'"):
        FolderClips(tmp_path, 16, 2)
    for k in range(2):
        (tmp_path / f"walk_{k}.txt").write_text("he walks")
    (tmp_path / "a ball.txt").write_text("a ball")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FolderClips(tmp_path, 16, 2)


# ---------------------------------------------------------------- cuts and windows


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    "Ten seconds at 8 a second, a key frame each second; its brightness says the time."
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        stream.options = {"g": "8", "crf": "1"}
        for picture in ramp(80):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        out.mux(stream.encode())
    return path


def seconds(clip):
    "The moments that a clip's frames show."
    return (clip.frames[0].float().mean((1, 2)) - 8).div(240 / 79).div(8).numpy()


@pytest.mark.parametrize(
    "cells, due, rate",
    [
        ("2,4", (2, 4), 2),
        ("0:02,0:04.0", (2, 4), 2),
        ("8,", (8, 10), 2),
        (",1.5", (0, 1.5), 4 / 1.5),
        (",", (0, 10), 0.4),
    ],
)
def test_start_and_end_cut_the_clip(tmp_path, film, cells, due, rate):
    os.symlink(film, tmp_path / "film.mp4")
    table(tmp_path, f"file,caption,start,end\nfilm.mp4,x,{cells}\n", "manifest.csv")
    clip = FolderClips(tmp_path, 16, 4)[0]
    middle = due[0] + (np.arange(4) + 0.5) / 4 * (due[1] - due[0])
    assert np.abs(seconds(clip) - np.floor(middle * 8 + 1e-6) / 8).max() < 0.1
    assert clip.fps == pytest.approx(rate)


@pytest.mark.parametrize(
    "cells, words",
    [
        ("soon,4", "its start is 'soon'"),
        ("4,2", "its end, 2,"),
        ("-1,2", "start"),
        ("2,19", "end=19"),
        ("12,14", "second 12 lies behind"),
    ],
)
def test_cuts_that_are_none_are_refused_by_row(tmp_path, film, cells, words):
    os.symlink(film, tmp_path / "film.mp4")
    text = f"file,caption,start,end\nfilm.mp4,good,1,2\nfilm.mp4,bad,{cells}\n"
    table(tmp_path, text, "manifest.csv")
    data = FolderClips(tmp_path, 16, 4, on_error="collect")
    assert [c.caption for c in data] == ["good"] and words in data.unreadable[0][1]


def test_a_part_is_decoded_from_its_key_frame(film, monkeypatch):
    seen, turn = [], _decoder

    def counted(stream):
        decode = turn(stream)
        return lambda packet: [seen.append(f) or f for f in decode(packet)]

    parts = [(s, e) for s in (0.0, 1.1, 4.99, 8.0, 9.5) for e in (s + 0.4, 10.0)]
    whole = []
    monkeypatch.setattr("minisora.data.video._decode_part", lambda *a: None)
    for start, end in parts:
        whole.append(read_video(film, 3, 16, start=start, end=end))
    monkeypatch.setattr("minisora.data.video._decode_part", _decode_part)
    for (start, end), due in zip(parts, whole):
        clip = read_video(film, 3, 16, start=start, end=end)
        assert clip.frames.equal(due.frames) and clip.fps == due.fps
    monkeypatch.setattr("minisora.data.video._decoder", counted)
    read_video(film, 4, 16, fps=8, start=8.0)
    assert 4 <= len(seen) <= 20, "of 80 frames"


def test_a_long_film_is_many_windows(tmp_path, film):
    os.symlink(film, tmp_path / "film.mp4")
    data = FolderClips(tmp_path, 16, 8, fps=4, stride=3)
    assert [c.attributes["start"] for c in data] == [0, 3, 6] and {c.fps for c in data} == {4}
    for clip in data:
        assert abs(seconds(clip)[0] - clip.attributes["start"]) < 0.3
    table(tmp_path, "file,caption,start,end\nfilm.mp4,x,2,7\n", "manifest.csv")
    assert [r["start"] for r in FolderClips(tmp_path, 16, 8, fps=4, stride=3).rows] == [2, 5]
    assert len(FolderClips(film, 16, 8, fps=4, stride=1)) == 9
    with pytest.raises(ValueError, match="stride needs fps"):
        FolderClips(tmp_path, stride=3)
    with pytest.raises(ValueError, match="stride must be a number above 0"):
        FolderClips(tmp_path, fps=4, stride=0)


def test_a_clip_says_how_fast_it_is(tmp_path):
    for k, n in enumerate((16, 48)):
        encode(tmp_path / f"{'ab'[k]}.mp4", ramp(n))
    assert [c.fps for c in FolderClips(tmp_path, 16, 16)] == [8, pytest.approx(16 / 6)]
    assert {c.fps for c in FolderClips(tmp_path, 16, 16, fps=8)} == {8}


def test_windows_and_times():
    assert window_starts(0.0, 10.0, 2.0, 2.0) == [0, 2, 4, 6, 8]
    assert window_starts(0.0, 0.3, 0.1, 0.1) == pytest.approx([0, 0.1, 0.2])
    times, rate = clip_times(1.0, 3.0, 4)
    assert times == [1.25, 1.75, 2.25, 2.75] and rate == 2


# ---------------------------------------------------------------- pictures that move


def moving(path, **options):
    levels = [Image.new("RGB", (32, 24), (30 * k,) * 3) for k in range(8)]
    levels[0].save(path, save_all=True, append_images=levels[1:], duration=125, **options)


@pytest.mark.parametrize("name", ["x.webp", "x.png", "x.gif", "x.apng"])
def test_animated_pictures_are_films(tmp_path, name, datasets):
    fmt = dict(format="PNG") if name == "x.apng" else {}
    moving(tmp_path / name, **fmt, **(dict(lossless=True) if name == "x.webp" else {}))
    data = (tmp_path / name).read_bytes()
    kinds = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    cell = dict(bytes=data, path=None)
    rows = datasets.Dataset.from_list([dict(image=cell, text="x")], features=kinds)
    tar = write_tar(tmp_path / "t.tar", {name: data, "x.txt": b"x"})
    found = [FolderClips(tmp_path, 24, 4, on_error="collect"), HubClips(rows, size=24, frames=4)]
    for clips in [*found, TarClips(tar, 24, 4)]:
        clip = clips[0]
        level = clip.frames[0, :, 5, 5].tolist()
        assert np.abs(np.array(level) - [30, 90, 150, 210]).max() < 4
        assert clip.fps == pytest.approx(4, rel=0.05)
    Image.new("RGB", (32, 24)).save(tmp_path / "still.png")
    mixed = FolderClips(tmp_path, 24, 4, on_error="collect")
    assert len(mixed) == 1 and "beside videos" in dict(mixed.unreadable)["still.png"]


def test_folders_of_frames_are_films_if_asked(tmp_path):
    for folder in ("a red ball", "deep/down"):
        (tmp_path / folder).mkdir(parents=True)
        for k in range(12):
            grey(20 * k).save(tmp_path / folder / f"frame{k}.png")
    assert len(FolderClips(tmp_path, 16, 4, on_error="collect")) == 24
    data = FolderClips(tmp_path, 16, 4, frame_folders=12)
    assert [c.caption for c in data] == ["a red ball", "down"]
    assert data[0].frames[0, :, 3, 3].tolist() == [20, 80, 140, 200] and data[0].fps == 4
    assert len(FolderClips(tmp_path, 16, 4, fps=12, stride=0.5, frame_folders=12)) == 4
    (tmp_path / "a red ball.txt").write_text("a ball that is red")
    (tmp_path / "deep/down.txt").write_text("deeper")
    said = FolderClips(tmp_path, 16, 4, frame_folders=12)
    assert [c.caption for c in said] == ["a ball that is red", "deeper"]
    with pytest.raises(ValueError, match="frame_folders must be a number above 0"):
        FolderClips(tmp_path, frame_folders=0)


@pytest.mark.parametrize("options", [dict(), dict(fps=2), dict(fps=2, stride=1.0)])
def test_a_cut_shows_nothing_behind_its_end(tmp_path, options):
    "Where a cut is shorter than a clip, its last frame stays."
    film = torch.zeros(3, 40, 32, 32, dtype=torch.uint8)
    film[0, :10] = 220
    film[2, 10:] = 220
    write_video(tmp_path / "film.mp4", film, fps=10)
    (tmp_path / "manifest.csv").write_text("file,caption,start,end\nfilm.mp4,red,0,1\n")
    clips = FolderClips(tmp_path, size=32, frames=4, **options)
    red = clips[0].frames[0, :, 16, 16].int()
    blue = clips[0].frames[2, :, 16, 16].int()
    assert (red > 150).all() and (blue < 80).all()


# ---------------------------------------------------------------- other tables, other neighbours


@pytest.mark.parametrize(
    "text",
    [
        'caption,file\n"a ball,a.mp4\na ring",b.mp4\n',
        'caption;file\n"a ball;a.mp4\na ring";b.mp4\n',
        'id,caption,file,fps\n1,"a ball,a.mp4,8\n2,a ring",b.mp4,8\n',
        'caption,file\r\n"a ball,a.PNG\r\na ring",b.mp4\r\n',
    ],
)
def test_a_quote_that_closes_in_another_line_is_found_in_any_order_of_columns(tmp_path, text):
    with pytest.raises(ValueError, match=r"row 1 \(line 2\).*holds another line"):
        manifest_rows(table(tmp_path, text))


def test_a_caption_may_have_lines_and_name_a_film(tmp_path):
    text = 'caption,file\n"as in x.mp4,\nslower",a.mp4\n"one\ntwo, three",b.mp4\n'
    rows = manifest_rows(table(tmp_path, text))
    assert [row["caption"] for row in rows] == ["as in x.mp4,\nslower", "one\ntwo, three"]


@pytest.mark.parametrize("kind", ["start_sec,end_sec", "start_s,end_s", "clip_start,clip_end"])
def test_seconds_by_other_names_cut_the_film(tmp_path, video, kind):
    start, end = kind.split(",")
    text = f"file,caption,{kind}\n{video.name},a ball,0.25,0.75\n"
    (row,) = manifest_rows(table(tmp_path, text))
    assert (row["cut"].start, row["cut"].end) == (0.25, 0.75)
    shutil.copy(video, tmp_path / "x.mp4")
    (tmp_path / "m.csv").unlink()
    (tmp_path / "x.json").write_text(json.dumps({"caption": "a ball", start: 0.25, end: 0.75}))
    (clip,) = FolderClips(tmp_path, size=16, frames=2)
    assert (clip.attributes["start"], clip.attributes["end"]) == (0.25, 0.75)


def test_json_beside_a_clip_that_has_no_caption_is_said(tmp_path, video):
    shutil.copy(video, tmp_path / "0001.mp4")
    (tmp_path / "0001.json").write_text('{"title": "a ball"}')
    with pytest.warns(UserWarning, match="0001.json has no caption.*names of the files"):
        assert FolderClips(tmp_path, size=16, frames=2)[0].caption == "0001"
    (tmp_path / "0001.json").write_text('{"title": "x", "description": "a ball"}')
    clip = FolderClips(tmp_path, size=16, frames=2)[0]
    assert (clip.caption, clip.attributes) == ("a ball", {"title": "x"})


def test_numbers_in_front_of_names_are_said(tmp_path, video):
    for name in ("0001-walk", "0002_walk"):
        shutil.copy(video, tmp_path / f"{name}.mp4")
    with pytest.warns(UserWarning, match="numbers in front of file names are words"):
        FolderClips(tmp_path, size=16, frames=2)
