"""Numbers beyond eight bits: scaled where their meaning is clear, refused by name where it is not.
"""

import io

import numpy as np
import pytest
from helpers.clips import encode, packed
from PIL import Image

import av
from minisora.data.depth import to_eight_bits
from minisora.data.folders import FolderClips
from minisora.data.hub import HubClips
from minisora.data.pictures import resize_crop, still_clip
from minisora.data.video import read_video

RAMP = np.linspace(0, 65535, 5).astype(np.uint16)
DUE = [0, 64, 127, 191, 255]
WIDE = RAMP.repeat(8)[None].repeat(8, 0)


def forms():
    unit = WIDE / 65535
    return dict(
        uint16=WIDE,
        big_endian=WIDE.astype(">u2"),
        I16=Image.fromarray(WIDE),
        I=Image.fromarray(WIDE.astype(np.int32)),
        F=Image.fromarray(unit.astype(np.float32)),
        float16=unit.astype(np.float16),
        float64=unit,
        float_of_bytes=np.rint(unit * 255),
        int64=np.rint(unit * 255).astype(np.int64),
        rgb16=np.stack([WIDE] * 3, -1),
        one_channel=WIDE[..., None],
        png=Image.open(io.BytesIO(packed(Image.fromarray(WIDE)))),
    )


@pytest.mark.parametrize("name", forms())
def test_a_ramp_is_a_ramp_in_every_form(name):
    picture = forms()[name]
    found = to_eight_bits([picture])[0]
    found = found if found.ndim == 2 else found[..., 0]
    assert np.abs(found[0, ::8].astype(int) - DUE).max() <= 1
    clip = still_clip([picture], "x", size=(8, 40), several=False)
    assert np.abs(clip.frames[0, 0, 0, ::8].numpy().astype(int) - DUE).max() <= 1
    assert np.abs(resize_crop(picture, (8, 40))[0, ::8, 0].astype(int) - DUE).max() <= 1


@pytest.mark.parametrize(
    "picture, words",
    [
        (np.linspace(-1, 1, 64).reshape(8, 8), "float64 from -1 to 1"),
        (np.full((8, 8), 150.5), "150.5"),
        (np.full((8, 8), np.nan), "NaN"),
        (np.full((8, 8), np.inf, np.float32), "infinite"),
        (WIDE.astype(np.int64), "int64"),
        (np.full((8, 8), -3), "-3"),
        (np.full((8, 8), 200, np.uint16), "uint16 from 200 to 200"),
        (np.zeros((3, 8, 8), np.uint8), "(3, 8, 8)"),
        (np.zeros((8, 8, 2), np.uint8), "(8, 8, 2)"),
        (Image.fromarray(np.full((8, 8), 2**20, np.int32)), "int32"),
    ],
)
def test_what_is_not_clear_is_refused(picture, words):
    with pytest.raises(ValueError) as e:
        to_eight_bits([picture])
    assert words in str(e.value) and "\n" not in str(e.value)


def test_pictures_of_a_clip_are_scaled_together():
    "A dark frame among floats of bytes is not a bright one."
    dark, light = np.ones((8, 8)), np.full((8, 8), 200.0)
    assert [int(a.max()) for a in to_eight_bits([dark, light])] == [1, 200]
    deep = [Image.fromarray(np.full((8, 8), v, np.int32)) for v in (257, 65535)]
    assert [int(a.max()) for a in to_eight_bits(deep)] == [1, 255]


def test_sixteen_bits_in_a_folder_and_a_data_set(tmp_path, datasets):
    Image.fromarray(WIDE).save(tmp_path / "x.png")
    found = [FolderClips(tmp_path, size=(8, 40))[0]]
    cell = dict(bytes=(tmp_path / "x.png").read_bytes(), path=None)
    kinds = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    rows = datasets.Dataset.from_list([dict(image=cell, text="x")], features=kinds)
    found.append(HubClips(rows, size=(8, 40))[0])
    kinds = datasets.Features(
        film=datasets.Array4D((2, 8, 40, 3), "uint16"), text=datasets.Value("string")
    )
    film = np.stack([np.stack([WIDE] * 3, -1)] * 2)
    rows = datasets.Dataset.from_list([dict(film=film, text="x")], features=kinds)
    found.append(HubClips(rows.with_format("numpy"), size=(8, 40), frames=2)[0])
    for clip in found:
        assert np.abs(clip.frames[0, 0, 0, ::8].numpy().astype(int) - DUE).max() <= 1


def pq(nits):
    y = (nits / 10000) ** (1305 / 8192)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


@pytest.mark.parametrize("curve, level", [(16, pq(203)), (18, 0.75)], ids=["PQ", "HLG"])
def test_hdr_white_is_white(tmp_path, curve, level):
    with av.open(str(tmp_path / "x.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = curve, 9, 9
        for _ in range(2):
            frame = av.VideoFrame(32, 32, "yuv420p10le")
            for plane, value in zip(frame.planes, (64 + 876 * level, 512, 512)):
                plane.update(np.full(plane.buffer_size // 2, int(value), np.uint16).tobytes())
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    frames = read_video(tmp_path / "x.mp4", 2, 16).frames
    assert 235 < frames.float().mean() < 255 and frames.float().std() < 2


def test_ten_bits_without_hdr_are_as_they_were(tmp_path):
    film = np.full((4, 32, 32, 3), 100, np.uint8)
    ten = encode(tmp_path / "x.mp4", film, pix_fmt="yuv420p10le")
    assert abs(read_video(ten, 2, 16).frames.float().mean() - 100) < 3
