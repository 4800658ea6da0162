"""Pictures, crops, bad files, buckets and names in braces: what every source of clips does in the same way."""

import warnings

import numpy as np
import pytest
import test_clips_sources as sources
import torch
from PIL import Image
from test_clips_sources import grey, packed, write_tar
from torch.utils.data import Subset

from minisora import clips as C
from minisora.latent_cache import LatentCache, write_cache, write_caches
from minisora.train import Buckets

imagenet, video = sources.imagenet, sources.video  # fixtures


def ramp(h=16, w=48):
    "A picture whose red grows from left to right: a crop of it says where it was taken."
    x = np.zeros((h, w, 3), np.uint8)
    x[..., 0] = np.linspace(0, 250, w)
    return Image.fromarray(x)


def photo(path, picture, orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    picture.save(path, quality=95, exif=exif)
    return path


@pytest.fixture
def pictures(tmp_path):
    for k, name in enumerate(
        ("b_cats/1.jpg", "b_cats/2.PNG", "a-dogs/1.webp", "a-dogs/deep/3.JPEG")
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo(tmp_path / name, grey(50 * k))
    return tmp_path


# ---------------------------------------------------------------- folders of pictures


def test_a_folder_of_pictures(pictures):
    data = C.FolderClips(pictures, size=24, on_error="raise")
    assert [c.caption for c in data] == ["1", "3", "1", "2"]
    assert all(c.frames.shape == (3, 1, 24, 24) for c in data)
    levels = [round(c.frames.float().mean().item() / 50) for c in data]
    assert levels == [2, 3, 0, 1] and data[1].source == str(pictures / "a-dogs/deep/3.JPEG")


def test_folders_as_classes(pictures):
    (pictures / "readme.txt").write_text("hello")
    (pictures / "c_empty").mkdir()
    data = C.FolderClips(pictures, captions="folder", on_error="collect")
    assert [(c.caption, c.attributes["label"]) for c in data] == [("a dogs", 0)] * 2 + [
        ("b cats", 1)
    ] * 2
    assert data.refused == [("readme.txt", "it lies in none of the folders")]
    (pictures / "manifest.csv").write_text("file,caption\na-dogs/1.webp,listed\n")
    assert [c.caption for c in C.FolderClips(pictures)] == ["listed"]
    assert len(C.FolderClips(pictures, captions="folder", on_error="collect")) == 4
    with pytest.raises(ValueError, match="captions=.folder. takes no manifest"):
        C.FolderClips(pictures / "manifest.csv", captions="folder")
    with pytest.raises(ValueError, match="captions must be one of file, folder"):
        C.FolderClips(pictures, captions="label")


@pytest.mark.parametrize("orientation, corner", [(1, 0), (3, 250), (6, 0), (8, 250)])
def test_photos_are_upright(tmp_path, orientation, corner):
    photo(tmp_path / "x.jpg", ramp(), orientation)
    clip = C.FolderClips(tmp_path, size=(48, 16) if orientation > 5 else (16, 48))[0]
    assert abs(int(clip.frames[0, 0, 0, 0]) - corner) < 16  # 6: top is what was left; 8: right
    info = C.probe(tmp_path / "x.jpg")
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
        data = C.FolderClips(tmp_path, check=check, on_error="collect")
        assert len(data) == 1 and [f for f, _ in data.refused] == [
            "cut.png",
            "empty.png",
            "torn.png",
            "vast.bmp",
        ]
        assert all(reason and "cannot read" not in reason for _, reason in data.refused)


def test_pictures_beside_videos(tmp_path, video):
    (tmp_path / "film.mp4").write_bytes(video.read_bytes())
    photo(tmp_path / "still.png", grey(90, 32, 64))
    data = C.FolderClips(tmp_path, 32, 4, on_error="collect")
    assert len(data) == 1 and data.refused == [
        ("still.png", "a picture beside videos needs buckets, or frames=1")
    ]
    assert C.stack(C.FolderClips(tmp_path, 32, 1))[0].shape == (2, 3, 1, 32, 32)
    data = C.FolderClips(tmp_path, frames=4, buckets=C.bucket_table(32, (1, 2), lengths=(4,)))
    assert [b.frames for b in data.bucket_of] == [4, 1] and data.bucket_of[
        1
    ].width > data.bucket_of[1].height
    for clip, b in zip(data, data.bucket_of):
        assert clip.frames.shape[1:] == (b.frames, b.height, b.width)


# ---------------------------------------------------------------- manifests


def test_commas_without_quotes(tmp_path):
    (tmp_path / "m.csv").write_text(
        'file,caption\na.mp4,"one, two"\nb.mp4,a red ball, moving left\n'
    )
    with pytest.raises(ValueError, match="m.csv, row 2: ' moving left' belongs to no column") as e:
        C.read_manifest(tmp_path / "m.csv")
    assert "quotes" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("check", ["decode", "open", "no"])
def test_files_missing_from_a_folder_are_refused_like_others(pictures, check):
    (pictures / "m.csv").write_text("file,caption\nnone.png,x\na-dogs/1.webp,there\ngone.png,y\n")
    data = C.FolderClips(pictures / "m.csv", check=check, on_error="collect")
    assert [c.caption for c in data] == ["there"]
    assert data.refused == [("none.png", "no such file"), ("gone.png", "no such file")]
    with pytest.raises(
        ValueError, match="2 of 3 cannot be read in .*none.png: no such file; gone.png"
    ):
        C.FolderClips(pictures / "m.csv", check=check, on_error="raise")


# ---------------------------------------------------------------- one crop for all


@pytest.fixture
def made(tmp_path, datasets):
    "The same three pictures as a folder, a tar, rows, a stream and ImageNet: {name: make(**options)}."
    home = tmp_path / "pics"
    (home / "train/n01440764").mkdir(parents=True)
    for k in range(3):
        ramp().save(home / f"train/n01440764/{k}.JPEG", quality=95)
    files = sorted(home.rglob("*.JPEG"))
    raw = [f.read_bytes() for f in files]
    tar = write_tar(
        tmp_path / "p.tar",
        {f"{k}{e}": d for k, b in enumerate(raw) for e, d in ((".jpg", b), (".txt", b"x"))},
    )
    kinds = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    rows = datasets.Dataset.from_list(
        [dict(image=dict(bytes=b, path=None), text="x") for b in raw], features=kinds
    )
    return dict(
        folder=lambda **o: C.FolderClips(home, 16, **o),
        tar=lambda **o: C.TarClips(tar, 16, **o),
        rows=lambda **o: C.HubClips(rows, size=16, **o),
        stream=lambda **o: C.StreamClips(rows.to_iterable_dataset(), size=16, **o),
        imagenet=lambda **o: C.open_source("imagenet-1k", home, size=16, **o),
    )


def test_every_source_crops_in_the_same_way(made):
    for options in (dict(), dict(crop=(0, 1)), dict(crop="random", seed=3)):
        found = {name: [c.frames for c in make(**options)] for name, make in made.items()}
        for name, frames in found.items():
            assert torch.equal(torch.stack(frames), torch.stack(found["folder"])), name
    assert len({int(f[0].float().mean()) for f in found["folder"]}) > 1  # random: not all alike
    for name, make in made.items():
        data = make(crop="random", seed=3)
        data.set_epoch(1)
        assert not torch.equal(torch.stack([c.frames for c in data]), torch.stack(found[name])), (
            name
        )
        with pytest.raises(ValueError, match="crop must be"):
            make(crop="middle")


def test_videos_are_cropped_in_rows_and_tars(tmp_path, datasets):
    wide = torch.from_numpy(np.array(ramp(32, 96))).permute(2, 0, 1)[:, None].repeat(1, 4, 1, 1)
    film = C.write_video(tmp_path / "f.mp4", wide).read_bytes()
    kinds = datasets.Features(video=datasets.Video(decode=False), text=datasets.Value("string"))
    rows = datasets.Dataset.from_list(
        [dict(video=dict(bytes=film, path=None), text="x")], features=kinds
    )
    write_tar(tmp_path / "f.tar", {"f.mp4": film, "f.txt": b"x"})
    want = C.read_video(film, 2, 32, caption="x", place=(0.5, 1)).frames
    assert want[0].float().mean() > 180
    for data in (
        C.HubClips(rows, size=32, frames=2, crop=(0.5, 1)),
        C.TarClips(tmp_path, 32, 2, crop=(0.5, 1)),
    ):
        assert torch.equal(data[0].frames, want)


# ---------------------------------------------------------------- what is damaged


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
    photos = C.ImageNetClips(imagenet, size=16)
    (imagenet / "train" / photos.files[1]).write_bytes(b"no picture")
    for clips, wrong, named in (
        (C.TarClips(tar, 16), [1], "t.tar/1: "),
        (C.HubClips(rows, size=16), [1, 2], "row 1: "),
        (photos, [1], photos.files[1]),
    ):
        with pytest.warns(
            UserWarning, match=f"{len(wrong)} of {len(clips)} cannot be read in"
        ) as said:
            good = C.Readable(clips)
        assert named in str(said[0].message) and len(said) == 1 and said[0].filename == __file__
        assert [k for k, _ in good.refused] == wrong and good.indices == [
            k for k in range(len(clips)) if k not in wrong
        ]
        assert [c.source for c in good] == [clips[k].source for k in good.indices]
        with pytest.raises(ValueError, match="cannot be read"):
            C.Readable(clips, on_error="raise")
        with pytest.raises(ValueError):
            C.stack(clips)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            good = C.Readable(clips, on_error="collect")
        assert len(
            write_cache(tmp_path / type(clips).__name__, good, Halves(), progress=False)
        ) == len(good)
    with pytest.raises(ValueError, match="no readable clip in Subset"):
        C.Readable(Subset(photos, [1]))
    good.set_epoch(4)
    assert photos.epoch == 4


def test_a_stream_passes_over_bad_rows(datasets):
    cells = [
        dict(image=dict(bytes=packed(grey(k)) if k % 2 else b"rubbish", path=None), text="x")
        for k in range(4)
    ]
    kinds = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    lazy = datasets.Dataset.from_list(cells, features=kinds).to_iterable_dataset()
    with pytest.raises(ValueError, match="row 0: it is no picture"):
        list(C.StreamClips(lazy))
    stream = C.StreamClips(lazy, on_error="collect")
    for _ in range(2):  # each pass counts anew
        assert [c.source for c in stream] == ["row 1", "row 3"] and [
            r for r, _ in stream.refused
        ] == ["row 0", "row 2"]
    with pytest.warns(
        UserWarning, match="2 of 4 cannot be read in the stream; row 0: it is no picture"
    ):
        list(C.StreamClips(lazy, on_error="warn"))
    with pytest.raises(ValueError, match="on_error must be one of"):
        C.StreamClips(lazy, on_error="skip")


def test_a_null_is_named(datasets):
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"]))
    rows = datasets.Dataset.from_list(
        [dict(image=None, label=0), dict(image=grey(3), label=None)], features=kinds
    )
    data = C.HubClips(rows)
    with pytest.raises(ValueError, match="row 0: its image is missing"):
        data[0]
    with pytest.raises(ValueError, match="row 1: its label is missing"):
        data[1]


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
    assert C.braces(pattern) == names


def test_tars_by_braces(tmp_path):
    for k in range(3):
        write_tar(tmp_path / f"s-{k:02d}.tar", {"a.png": packed(grey(k)), "a.txt": str(k).encode()})
    assert [c.caption for c in C.TarClips(f"{tmp_path}/s-{{00..02}}.tar")] == ["0", "1", "2"]
    with pytest.raises(FileNotFoundError, match="no tar file at .*s-03.tar"):
        C.TarClips(f"{tmp_path}/s-{{02..04}}.tar")
    (tmp_path / "s-00.tar").rename(tmp_path / "s-{1,2}.tar")
    assert [c.caption for c in C.TarClips(tmp_path / "s-{1,2}.tar")] == [
        "0"
    ]  # a file of that very name


def test_a_part_of_imagenet_keeps_its_ids(imagenet):
    for f in (imagenet / "train/n01440764").iterdir():
        f.unlink()
    (imagenet / "train/n01440764").rmdir()
    data = C.ImageNetClips(imagenet, size=16)
    assert [(c.caption, c.attributes["label"]) for c in data] == [("goldfish", 1)] * 2 + [
        ("crane", 2)
    ] * 2
    assert [c.caption for c in C.ImageNetClips(imagenet, "val", size=16)] == ["crane", "tench"]
    (imagenet / "meta/synset_words.txt").unlink()
    assert C.ImageNetClips(imagenet, size=16).labels == [0, 0, 1, 1]  # nobody says which they are


# ---------------------------------------------------------------- a cache for each bucket


class Halves:
    "An autoencoder that keeps every other pixel."

    def encode(self, x):
        return x[..., ::2, ::2], None


def test_a_cache_for_each_bucket(tmp_path, video, pictures):
    folder = tmp_path / "b_cats"
    (folder / "film.mp4").write_bytes(video.read_bytes())
    clips = C.FolderClips(folder, fps=8, buckets=C.bucket_table(32, (1, 3 / 2), lengths=(4, 8)))
    caches = write_caches(tmp_path / "caches", clips, Halves(), progress=False, dtype="float32")
    assert {name: len(c) for name, c in caches.items()} == {"1x24x40": 2, "8x32x32": 1}
    for name, cache in caches.items():
        ids = [
            i for i, b in enumerate(clips.bucket_of) if f"{b.frames}x{b.height}x{b.width}" == name
        ]
        for k, i in enumerate(ids):
            latents = cache.denormalise(cache[k]["latents"])
            assert torch.allclose(latents, C.to_float(clips[i].frames)[..., ::2, ::2], atol=1e-5), (
                name
            )
    data = Buckets(caches)
    assert len(data) == 3 and data.bucket_of == ["1x24x40"] * 2 + ["8x32x32"]
    again = write_caches(tmp_path / "caches", clips, Halves(), progress=False, dtype="float32")
    opened = {p.name: LatentCache(p) for p in sorted((tmp_path / "caches").iterdir())}
    assert list(again) == list(opened) == list(caches)
    with pytest.raises(ValueError, match="these FolderClips are in no buckets"):
        write_caches(tmp_path / "d", C.FolderClips(folder, frames=1), Halves())
    with pytest.raises(ValueError, match="these list are in no buckets"):
        write_caches(tmp_path / "d", [], Halves())
    with pytest.raises(ValueError, match="1x24x40 is a latent cache"):
        write_caches(tmp_path / "caches/1x24x40", clips, Halves())
    assert not (tmp_path / "d").exists()
