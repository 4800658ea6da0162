"""Small stand-ins for films, pictures, tars and ImageNet, made as a test needs them."""

import io
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from minisora.clips import SceneClips
from minisora.data.video import write_video

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def needs(name):
    return pytest.mark.skipif(
        not (SHARED / name).exists(), reason=f"no {SHARED / name} on this machine"
    )


def encode(path, pictures, fmt="mp4", codec="libx264", pix_fmt="yuv420p", stamps=None, rate=8):
    "Pictures uint8 (T, H, W, 3 or 4) to a file, at the given time-stamps (in 1/1000 s)."
    with av.open(str(path), "w", format=fmt) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = pix_fmt
        if stamps is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i, p in enumerate(pictures):
            kind = "rgba" if p.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(p), format=kind)
            if stamps is not None:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def ramp(n, size=32):
    "n grey pictures, each brighter than the one before."
    return np.stack(
        [np.full((size, size, 3), 8 + 240 * i // max(n - 1, 1), np.uint8) for i in range(n)]
    )


def red_ramp(h=16, w=48):
    "A picture whose red grows from left to right: a crop of it says where it was taken."
    x = np.zeros((h, w, 3), np.uint8)
    x[..., 0] = np.linspace(0, 250, w)
    return Image.fromarray(x)


def quarters(h=40, w=60):
    "A picture whose red grows to the right and green downwards, so that a crop says where it lies."
    x = np.zeros((h, w, 3), np.uint8)
    x[..., 0] = np.linspace(0, 240, w)[None]
    x[..., 1] = np.linspace(0, 240, h)[:, None]
    return x


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
    return write_video(tmp_path_factory.mktemp("video") / "x.mp4", SceneClips(9)[4])


@pytest.fixture
def imagenet_rows(datasets):
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    rows = [dict(image=grey(10 * k), label=k % 2) for k in range(6)]
    return datasets.Dataset.from_list(rows, features=kinds)


@pytest.fixture
def imagenet(tmp_path):
    """OpenXLab's layout: train/<wnid>/*.JPEG, a flat val/, and meta/ with val.txt and
    synset_words.txt."""
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
