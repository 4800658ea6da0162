"""Named datasets: MNIST, ImageNet in both layouts, UCF-101, Moving MNIST.

Each is a small stand-in, made here in the layout of the real one."""

import numpy as np
import pytest
from helpers import clips as fixtures
from helpers.clips import SHARED, needs

from minisora.clips import DigitClips, SceneClips
from minisora.data.hub import HubClips
from minisora.data.imagenet import ImageNetClips
from minisora.data.named import DATASETS, _camel_to_words, load_digits, open_named_dataset
from minisora.data.video import write_video

# fixtures that several files share
imagenet = fixtures.imagenet
imagenet_rows = fixtures.imagenet_rows


@needs("mnist/mnist.npz")
def test_mnist():
    path = SHARED / "mnist" / "mnist.npz"
    images, labels = load_digits(path, "test")
    data = DigitClips(images, labels, 20)
    assert images.shape == (10000, 28, 28) and data[3].frames.float().mean() > 1
    with pytest.raises(ValueError, match="valid_images"):
        load_digits(path, "valid")
    with pytest.raises(FileNotFoundError, match="nothing.npz"):
        load_digits("nothing.npz")


def test_imagenet_of_the_hub(datasets, imagenet_rows, tmp_path):
    "The hub's layout: data/train-00000-of-00002.parquet and so on."
    home = tmp_path / "imagenet-1k"
    (home / "data").mkdir(parents=True)
    for k in (0, 1):
        imagenet_rows.shard(2, k).to_parquet(str(home / f"data/train-0000{k}-of-00002.parquet"))
    imagenet_rows.select([5]).to_parquet(str(home / "data/validation-00000-of-00001.parquet"))
    rows = open_named_dataset("imagenet-1k", home, size=32)
    assert type(rows) is HubClips and len(rows) == 6 and rows[3].frames.shape == (3, 1, 32, 32)
    labels = [c.attributes["label"] for c in rows]
    assert labels == [0, 1] * 3 and [c.caption for c in rows][:2] == ["tench", "goldfish"]
    val = open_named_dataset("imagenet-1k", home, "val", size=32)
    assert len(val) == 1 and val[0].frames.unique().tolist() == [50]
    stream = list(open_named_dataset("imagenet-1k", home, size=32, streaming=True))
    assert [s.attributes for s in stream] == [c.attributes for c in rows]


def test_imagenet_of_openxlab(imagenet):
    data = open_named_dataset("imagenet-1k", imagenet, size=24)
    assert type(data) is ImageNetClips and len(data) == 6 and data[4].frames.shape == (3, 1, 24, 24)
    assert [c.attributes["label"] for c in data] == [0, 0, 1, 1, 2, 2]
    assert [c.caption for c in data][::2] == ["tench", "goldfish", "crane"]
    assert data[2].attributes == dict(label=1, wnid="n01443537") and data[2].source.endswith(
        "n01443537_0.JPEG"
    )
    assert abs(data[3].frames.float().mean() - 114) < 2
    val = open_named_dataset("imagenet-1k", imagenet, "validation", size=24)
    assert [
        (c.caption, c.attributes["label"], round(c.frames.float().mean().item(), -2)) for c in val
    ] == [("crane", 2, 200), ("tench", 0, 0)]


def test_words_of_class_names():
    names = {
        "ApplyEyeMakeup": "apply eye makeup",
        "YoYo": "yo yo",
        "TaiChi": "tai chi",
        "HandstandPushups": "handstand pushups",
        "ball": "ball",
        "JumpingJack": "jumping jack",
    }
    assert {k: _camel_to_words(k) for k in names} == names


@pytest.fixture
def ucf101(tmp_path):
    for name in ("ApplyEyeMakeup", "YoYo"):
        (tmp_path / "UCF-101" / name).mkdir(parents=True)
        for g in (1, 8):
            made = write_video(tmp_path / "x.mp4", SceneClips(9)[g % 3])
            made.rename(tmp_path / "UCF-101" / name / f"v_{name}_g{g:02d}_c01.avi")
    (tmp_path / "ucfTrainTestlist").mkdir()
    (tmp_path / "ucfTrainTestlist/trainlist01.txt").write_text(
        "YoYo/v_YoYo_g08_c01.avi 2\nApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n"
    )
    (tmp_path / "ucfTrainTestlist/testlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi\n")
    return tmp_path


def test_ucf101(datasets, ucf101):
    train, test = (open_named_dataset("ucf101", ucf101, s, size=32) for s in ("train", "test"))
    assert [(c.caption, c.attributes["label"]) for c in train] == [
        ("yo yo", 1),
        ("apply eye makeup", 0),
    ]
    assert len(test) == 1 and test[0].frames.shape == (3, 16, 32, 32) and test[0].fps == 8
    assert (test[0].frames.float() - SceneClips(9, size=32)[1].frames.float()).abs().mean() < 4
    assert (
        next(iter(open_named_dataset("ucf101", ucf101, size=32, streaming=True))).caption == "yo yo"
    )
    (ucf101 / "UCF-101/YoYo/v_YoYo_g01_c01.avi").unlink()
    with pytest.raises(FileNotFoundError, match="testlist01.txt names YoYo/v_YoYo_g01"):
        open_named_dataset("ucf101", ucf101, "test")
    with pytest.raises(FileNotFoundError, match="avi"):
        open_named_dataset("ucf101", ucf101 / "ucfTrainTestlist")


def test_moving_mnist(datasets, tmp_path):
    films = np.random.default_rng(0).integers(0, 255, (20, 10, 64, 64), np.uint8)
    np.save(tmp_path / "mnist_test_seq.npy", films)
    train, test = (
        open_named_dataset("moving-mnist", tmp_path),
        open_named_dataset("moving-mnist", tmp_path, "test"),
    )
    assert (len(train), len(test)) == (9, 1) and train[0].caption == "two moving digits"
    # exact: 64 stays 64, 20 stay 20
    for c in range(3):
        assert (train[4].frames[c].numpy() == films[:, 4]).all()
    assert (test[0].frames[0].numpy() == films[:, 9]).all()
    np.save(tmp_path / "mnist_test_seq.npy", films[0].astype(float))
    with pytest.raises(ValueError, match="must be uint8"):
        open_named_dataset("moving-mnist", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_named_dataset("moving-mnist", tmp_path / "nowhere")


def test_the_table_of_sources():
    with pytest.raises(
        ValueError, match="name must be one of 'imagenet-1k', 'mnist', 'ucf101', 'moving-mnist'"
    ):
        open_named_dataset("imagenet")
    with pytest.raises(ValueError, match="ucf101 has no Hub dataset; pass path="):
        open_named_dataset("ucf101")
    assert all(row.open and row.column and row.caption for row in DATASETS.values())
