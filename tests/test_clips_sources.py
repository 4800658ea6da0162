"""Where clips come from: tar files, data sets that stream, ImageNet in both layouts, UCF-101, Moving MNIST.

Each source is a small stand-in, made here in the layout of the real one."""

import io
import json
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minisora import clips as C


def grey(level, h=20, w=30):
    return Image.fromarray(np.full((h, w), level, np.uint8))


def packed(picture, kind="PNG"):
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def write_tar(path, parts, mode="w"):
    "A tar file of {name: bytes}."
    with tarfile.open(path, mode) as tar:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return C.write_video(tmp_path_factory.mktemp("video") / "x.mp4", C.SceneClips(9)[4])


# ---------------------------------------------------------------- tar files


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
    data = C.TarClips(shards, frames=4)
    assert [s[1] for s in data.samples] == ["deep/0001", "0002", "k", "one"] and not data.refused
    still, film, json_film, first = data[3], data[2], data[1], data[0]
    assert (
        torch.equal(first.frames, C.read_video(video, 4).frames) and first.caption == "a red ball"
    )
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
    data = pickle.loads(pickle.dumps(C.TarClips([shards / "s-000.tar"], frames=4)))
    loader = torch.utils.data.DataLoader(data, batch_size=1, num_workers=2, collate_fn=C.stack)
    assert [names for _, names in loader] == [["a red ball"], ["from json"]]


def test_a_tar_is_indexed_without_reading_its_files(shards, monkeypatch):
    "The index reads headers only; afterwards a sample costs its own bytes."
    read, seen = C.read_part, []
    monkeypatch.setattr(C, "read_part", lambda *a, **k: seen.append(a) or read(*a, **k))
    data = C.TarClips(shards)
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
        data = C.TarClips(shards)
    assert len(data) == 4 and [k for k, _ in data.refused] == [
        "s-002.tar/x",
        "s-002.tar/y",
        "s-002.tar/z",
    ]
    with pytest.raises(ValueError, match="s-002.tar/y: it has no video or picture"):
        C.TarClips(shards, on_error="raise")
    with pytest.raises(ValueError, match="no readable clip in .*s-002.tar/x: it has no"):
        C.TarClips(shards / "s-002.tar")


def test_damaged_tars_are_named(shards, tmp_path):
    whole = (shards / "s-001.tar").read_bytes()
    flipped = whole[:1024] + bytes([whole[1024] ^ 1]) + whole[1025:]  # in the second header
    for damaged in (whole[:300], whole[:700], whole[:1024], whole[:1500], flipped):
        (tmp_path / "cut.tar").write_bytes(damaged)
        with pytest.raises(ValueError, match="cut.tar is no whole tar"):
            C.TarClips(tmp_path / "cut.tar")
    (tmp_path / "no.tar").write_bytes(b"rubbish" * 200)
    with pytest.raises(ValueError, match="no.tar is no whole tar"):
        C.TarClips(tmp_path / "no.tar")
    write_tar(tmp_path / "gz.tar", {"a.txt": b"x"}, "w:gz")
    with pytest.raises(ValueError, match="gz.tar is compressed"):
        C.TarClips(tmp_path / "gz.tar")
    with pytest.raises(FileNotFoundError, match="none.tar"):
        C.TarClips(tmp_path / "none.tar")
    data = C.TarClips(shards / "s-001.tar")
    (shards / "s-001.tar").write_bytes(whole[:1024])  # cut after it was indexed
    with pytest.raises(ValueError, match="s-001.tar/one: the file ends after"):
        data[1]


@pytest.mark.parametrize(
    "parts, words",
    [
        ({"a.json": b"[1]"}, "no object"),
        ({"a.json": b'{"n": 1}'}, "no caption"),
        ({"a.txt": b" "}, "no caption"),
        ({"a.json": b"{oops"}, "a: "),
        ({"a.txt": b"x", "a.cls": b"cat"}, "cat"),
        ({"a.txt": b"\xff\xfe"}, "a: "),
    ],
)
def test_bad_captions_in_tars_are_named(tmp_path, parts, words):
    write_tar(tmp_path / "t.tar", {"a.png": packed(grey(5)), **parts})
    with pytest.raises(ValueError, match="t.tar/a: ") as e:
        C.TarClips(tmp_path / "t.tar")[0]
    assert words in str(e.value) and "\n" not in str(e.value)


# ---------------------------------------------------------------- datasets


@pytest.fixture
def imagenet_rows(datasets):
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    rows = [dict(image=grey(10 * k), label=k % 2) for k in range(6)]
    return datasets.Dataset.from_list(rows, features=kinds)


def test_streams_give_what_rows_give(datasets, video, imagenet_rows):
    table = datasets.Dataset.from_dict({"video": [str(video)] * 2, "text": ["a", "b"], "n": [1, 2]})
    table = table.cast_column("video", datasets.Video())
    for data in (table, imagenet_rows):
        rows, stream = C.HubClips(data), list(C.StreamClips(data.to_iterable_dataset()))
        assert len(stream) == len(rows)
        for a, b in zip(rows, stream):
            assert torch.equal(a.frames, b.frames)
            assert (a.caption, a.source, a.attributes) == (b.caption, b.source, b.attributes)


def test_a_folder_is_streamed_or_not_as_asked(datasets, imagenet_rows, tmp_path):
    for d in ("parquet", "disk"):
        (tmp_path / d).mkdir()
    imagenet_rows.to_parquet(str(tmp_path / "parquet/train-00000-of-00001.parquet"))
    imagenet_rows.save_to_disk(str(tmp_path / "disk"))
    for d in ("parquet", "disk"):
        assert isinstance(C.open_dataset(tmp_path / d), datasets.Dataset)
        assert isinstance(C.open_dataset(tmp_path / d, streaming=True), datasets.IterableDataset)


def test_a_stream_reads_only_what_is_asked_for(datasets):
    made = []

    def rows():
        for k in range(100):
            made.append(k)
            yield dict(image=grey(k), text=str(k))

    kinds = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    # columns are found without a schema
    for features in (kinds, None):
        made.clear()
        stream = C.StreamClips(datasets.IterableDataset.from_generator(rows, features=features))
        got = [c.caption for c, _ in zip(stream, range(3))]
        assert got == ["0", "1", "2"] and len(made) < 10


def test_stream_workers_share_the_files(datasets, imagenet_rows):
    stream = C.StreamClips(imagenet_rows.to_iterable_dataset(num_shards=2))
    loader = torch.utils.data.DataLoader(stream, batch_size=1, num_workers=2, collate_fn=C.stack)
    assert sorted(int(x[0, 0, 0, 0, 0]) for x, _ in loader) == [0, 10, 20, 30, 40, 50]


def test_a_broken_row_of_a_stream_is_named(datasets):
    kinds = datasets.Features(video=datasets.Video(decode=False), text=datasets.Value("string"))
    rows = datasets.Dataset.from_list(
        [dict(video=dict(bytes=b"rubbish", path=None), text="x")], features=kinds
    )
    with pytest.raises(ValueError, match="row 0: cannot read"):
        next(iter(C.StreamClips(rows.to_iterable_dataset())))
    with pytest.raises(ValueError, match="no label column 'id'"):
        C.HubClips(rows, label="id")


def test_imagenet_of_the_hub(datasets, imagenet_rows, tmp_path):
    "The hub's layout: data/train-00000-of-00002.parquet and so on."
    home = tmp_path / "imagenet-1k"
    (home / "data").mkdir(parents=True)
    for k in (0, 1):
        imagenet_rows.shard(2, k).to_parquet(str(home / f"data/train-0000{k}-of-00002.parquet"))
    imagenet_rows.select([5]).to_parquet(str(home / "data/validation-00000-of-00001.parquet"))
    rows = C.open_source("imagenet-1k", home, size=32)
    assert type(rows) is C.HubClips and len(rows) == 6 and rows[3].frames.shape == (3, 1, 32, 32)
    labels = [c.attributes["label"] for c in rows]
    assert labels == [0, 1] * 3 and [c.caption for c in rows][:2] == ["tench", "goldfish"]
    val = C.open_source("imagenet-1k", home, "val", size=32)
    assert len(val) == 1 and val[0].frames.unique().tolist() == [50]
    stream = list(C.open_source("imagenet-1k", home, size=32, streaming=True))
    assert [s.attributes for s in stream] == [c.attributes for c in rows]


@pytest.fixture
def imagenet(tmp_path):
    "OpenXLab's layout: train/<wnid>/*.JPEG, a flat val/, and meta/ with val.txt and synset_words.txt."
    home, wnids = tmp_path / "ImageNet-1K", ("n01440764", "n01443537", "n02012849")
    for k, w in enumerate(wnids):
        (home / "train" / w).mkdir(parents=True)
        for n in range(2):
            grey(100 * k + 9 * n + 5).save(home / "train" / w / f"{w}_{n}.JPEG", quality=95)
    for d in ("val", "meta"):
        (home / d).mkdir()
    for n, k in enumerate((2, 0)):
        grey(100 * k).save(home / "val" / f"ILSVRC2012_val_0000000{n}.JPEG", quality=95)
    (home / "meta/val.txt").write_text(
        "ILSVRC2012_val_00000000.JPEG 2\nILSVRC2012_val_00000001.JPEG 0\n"
    )
    (home / "meta/synset_words.txt").write_text(
        "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn02012849 crane\n"
    )
    return home


def test_imagenet_of_openxlab(imagenet):
    data = C.open_source("imagenet-1k", imagenet, size=24)
    assert (
        type(data) is C.ImageNetClips and len(data) == 6 and data[4].frames.shape == (3, 1, 24, 24)
    )
    assert [c.attributes["label"] for c in data] == [0, 0, 1, 1, 2, 2]
    assert [c.caption for c in data][::2] == ["tench", "goldfish", "crane"]
    assert data[2].attributes == dict(label=1, wnid="n01443537") and data[2].source.endswith(
        "n01443537_0.JPEG"
    )
    assert abs(data[3].frames.float().mean() - 114) < 2
    val = C.open_source("imagenet-1k", imagenet, "validation", size=24)
    assert [
        (c.caption, c.attributes["label"], round(c.frames.float().mean().item(), -2)) for c in val
    ] == [("crane", 2, 200), ("tench", 0, 0)]


def test_imagenet_val_in_folders_or_with_kaggles_labels(imagenet):
    (imagenet / "meta/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match="has no labels"):
        C.ImageNetClips(imagenet, "val")
    (imagenet / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000000,n02012849 1 2 3 4\nILSVRC2012_val_00000001,n01440764 1 2 3 4 n01440764 5 6 "
        "7 8\n"
    )
    assert C.ImageNetClips(imagenet, "val").labels == [2, 0]
    for n, w in enumerate(("n02012849", "n01440764")):
        (imagenet / "val" / w).mkdir()
        (imagenet / f"val/ILSVRC2012_val_0000000{n}.JPEG").rename(imagenet / f"val/{w}/{n}.JPEG")
    assert C.ImageNetClips(imagenet, "val").labels == [0, 2]  # by folder, and ids by train


@pytest.mark.parametrize(
    "spoil, error, words",
    [
        (
            lambda p: (p / "meta/val.txt").write_text("ILSVRC2012_val_00000000.JPEG 2\n"),
            ValueError,
            "00000001.JPEG has no label",
        ),
        (
            lambda p: (p / "meta/val.txt").write_text("ILSVRC2012_val_00000000.JPEG x\n"),
            ValueError,
            "val.txt",
        ),
        (
            lambda p: (p / "meta/val.txt").write_text(
                "ILSVRC2012_val_00000000.JPEG 2\nILSVRC2012_val_00000001.JPEG 3\n"
            ),
            ValueError,
            "no class 3",
        ),
        (lambda p: [f.unlink() for f in (p / "val").iterdir()], ValueError, "no pictures in"),
        (lambda p: (p / "val").rename(p / "test"), FileNotFoundError, "no folder"),
    ],
)
def test_imagenet_that_is_not_whole(imagenet, spoil, error, words):
    spoil(imagenet)
    with pytest.raises(error) as e:
        C.ImageNetClips(imagenet, "val")
    assert words in str(e.value) and "\n" not in str(e.value)


def test_a_broken_imagenet_picture_is_named(imagenet):
    data = C.ImageNetClips(imagenet)
    Path(data[1].source).write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot read .*n01440764_1.JPEG"):
        data[1]


# ---------------------------------------------------------------- recipes


def test_words_of_class_names():
    names = {
        "ApplyEyeMakeup": "apply eye makeup",
        "YoYo": "yo yo",
        "TaiChi": "tai chi",
        "HandstandPushups": "handstand pushups",
        "ball": "ball",
        "JumpingJack": "jumping jack",
    }
    assert {k: C.words_of(k) for k in names} == names


@pytest.fixture
def ucf101(tmp_path):
    for name in ("ApplyEyeMakeup", "YoYo"):
        (tmp_path / "UCF-101" / name).mkdir(parents=True)
        for g in (1, 8):
            made = C.write_video(tmp_path / "x.mp4", C.SceneClips(9)[g % 3])
            made.rename(tmp_path / "UCF-101" / name / f"v_{name}_g{g:02d}_c01.avi")
    (tmp_path / "ucfTrainTestlist").mkdir()
    (tmp_path / "ucfTrainTestlist/trainlist01.txt").write_text(
        "YoYo/v_YoYo_g08_c01.avi 2\nApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n"
    )
    (tmp_path / "ucfTrainTestlist/testlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi\n")
    return tmp_path


def test_ucf101(datasets, ucf101):
    train, test = (C.open_source("ucf101", ucf101, s, size=32) for s in ("train", "test"))
    assert [(c.caption, c.attributes["label"]) for c in train] == [
        ("yo yo", 1),
        ("apply eye makeup", 0),
    ]
    assert len(test) == 1 and test[0].frames.shape == (3, 16, 32, 32) and test[0].fps == 8
    assert (test[0].frames.float() - C.SceneClips(9, size=32)[1].frames.float()).abs().mean() < 4
    assert next(iter(C.open_source("ucf101", ucf101, size=32, streaming=True))).caption == "yo yo"
    (ucf101 / "UCF-101/YoYo/v_YoYo_g01_c01.avi").unlink()
    with pytest.raises(FileNotFoundError, match="testlist01.txt names YoYo/v_YoYo_g01"):
        C.open_source("ucf101", ucf101, "test")
    with pytest.raises(FileNotFoundError, match="avi"):
        C.open_source("ucf101", ucf101 / "ucfTrainTestlist")


def test_moving_mnist(datasets, tmp_path):
    films = np.random.default_rng(0).integers(0, 255, (20, 10, 64, 64), np.uint8)
    np.save(tmp_path / "mnist_test_seq.npy", films)
    train, test = (
        C.open_source("moving-mnist", tmp_path),
        C.open_source("moving-mnist", tmp_path, "test"),
    )
    assert (len(train), len(test)) == (9, 1) and train[0].caption == "two moving digits"
    # exact: 64 stays 64, 20 stay 20
    for c in range(3):
        assert (train[4].frames[c].numpy() == films[:, 4]).all()
    assert (test[0].frames[0].numpy() == films[:, 9]).all()
    np.save(tmp_path / "mnist_test_seq.npy", films[0].astype(float))
    with pytest.raises(ValueError, match="must be uint8"):
        C.open_source("moving-mnist", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        C.open_source("moving-mnist", tmp_path / "nowhere")


def test_the_table_of_sources():
    with pytest.raises(
        ValueError, match="name must be one of imagenet-1k, mnist, ucf101, moving-mnist"
    ):
        C.open_source("imagenet")
    with pytest.raises(ValueError, match="ucf101 is not on the hub"):
        C.open_source("ucf101")
    assert all(row.open and row.column and row.caption for row in C.SOURCES.values())


def test_nothing_is_said_where_nothing_is_wrong(shards):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        C.TarClips(shards)
