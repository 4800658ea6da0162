"""What cannot be read is named, in one report, whatever the source."""

import warnings

import pytest
from helpers import clips as fixtures
from helpers.clips import grey, packed, write_tar
from torch.utils.data import Subset

from minisora.data.hub import HubClips
from minisora.data.imagenet import ImageNetClips
from minisora.data.tars import TarClips
from minisora.data.unreadable import ReadableSubset, _format_unreadable
from minisora.data.video import stack_clips
from minisora.latent_cache import write_cache

# fixtures that several files share
imagenet = fixtures.imagenet


def test_a_report_is_short(tmp_path):
    assert (
        _format_unreadable([(f"{k}.mp4", "bad") for k in range(900)], 1000, tmp_path).count("bad")
        == 3
    )


class Halves:
    "An autoencoder that keeps every other pixel."

    def encode(self, x):
        return x[..., ::2, ::2], None


def test_readable_leaves_out_what_no_source_can_read(tmp_path, datasets, imagenet):
    bad = packed(grey(9))[:45]
    tar = write_tar(
        tmp_path / "t.tar",
        {
            f"{k}{e}": d
            for k in range(3)
            for e, d in ((".png", bad if k == 1 else packed(grey(9))), (".txt", b"x"))
        },
    )
    kinds = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    cells = [dict(image=dict(bytes=b, path=None), text="x") for b in (packed(grey(9)), bad)] + [
        dict(image=None, text="x")
    ]
    rows = datasets.Dataset.from_list(cells, features=kinds)
    photos = ImageNetClips(imagenet, size=16)
    (imagenet / "train" / photos.files[1]).write_bytes(b"no picture")
    for clips, wrong, named in (
        (TarClips(tar, 16), [1], "t.tar/1: "),
        (HubClips(rows, size=16), [1, 2], "row 1: "),
        (photos, [1], photos.files[1]),
    ):
        with pytest.warns(
            UserWarning, match=f"{len(wrong)} of {len(clips)} cannot be read in"
        ) as said:
            good = ReadableSubset(clips)
        assert named in str(said[0].message) and len(said) == 1 and said[0].filename == __file__
        assert [k for k, _ in good.unreadable] == wrong and good.indices == [
            k for k in range(len(clips)) if k not in wrong
        ]
        assert [c.source for c in good] == [clips[k].source for k in good.indices]
        with pytest.raises(ValueError, match="cannot be read"):
            ReadableSubset(clips, on_error="raise")
        with pytest.raises(ValueError):
            stack_clips(clips)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            good = ReadableSubset(clips, on_error="collect")
        assert len(
            write_cache(tmp_path / type(clips).__name__, good, Halves(), progress=False)
        ) == len(good)
    with pytest.raises(ValueError, match="no readable clip in Subset"):
        ReadableSubset(Subset(photos, [1]))
    good.set_epoch(4)
    assert photos.epoch == 4
