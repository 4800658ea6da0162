"""ImageNet as OpenXLab packs it: class ids, captions, and what is missing."""

from pathlib import Path

import pytest
from helpers import clips as fixtures

from minisora.data.imagenet import ImageNetClips

# fixtures that several files share
imagenet = fixtures.imagenet


def test_imagenet_val_in_folders_or_with_kaggles_labels(imagenet):
    (imagenet / "meta/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match="has no labels"):
        ImageNetClips(imagenet, "val")
    (imagenet / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000000,n02012849 1 2 3 4\n"
        "ILSVRC2012_val_00000001,n01440764 1 2 3 4 n01440764 5 6 7 8\n"
    )
    assert ImageNetClips(imagenet, "val").labels == [2, 0]
    for n, w in enumerate(("n02012849", "n01440764")):
        (imagenet / "val" / w).mkdir()
        (imagenet / f"val/ILSVRC2012_val_0000000{n}.JPEG").rename(imagenet / f"val/{w}/{n}.JPEG")
    assert ImageNetClips(imagenet, "val").labels == [0, 2]  # by folder, and ids by train


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
        ImageNetClips(imagenet, "val")
    assert words in str(e.value) and "\n" not in str(e.value)


def test_a_broken_imagenet_picture_is_named(imagenet):
    data = ImageNetClips(imagenet)
    Path(data[1].source).write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot read .*n01440764_1.JPEG"):
        data[1]


def test_a_part_of_imagenet_keeps_its_ids(imagenet):
    for f in (imagenet / "train/n01440764").iterdir():
        f.unlink()
    (imagenet / "train/n01440764").rmdir()
    data = ImageNetClips(imagenet, size=16)
    assert [(c.caption, c.attributes["label"]) for c in data] == [("goldfish", 1)] * 2 + [
        ("crane", 2)
    ] * 2
    assert [c.caption for c in ImageNetClips(imagenet, "val", size=16)] == ["crane", "tench"]
    (imagenet / "meta/synset_words.txt").unlink()
    assert ImageNetClips(imagenet, size=16).labels == [0, 0, 1, 1]  # nobody says which they are
