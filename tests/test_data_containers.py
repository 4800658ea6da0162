"""Files that are not what their names say: no socket, no other file, no gigabytes, no end of the
scan."""

import io
import json
import socket
import struct
import sys
import tarfile
import zlib

import av
import numpy as np
import pytest
from helpers.clips import encode, grey, packed, ramp, write_tar
from PIL import Image

from minisora.data.folders import FolderClips
from minisora.data.hub import HubClips
from minisora.data.pictures import MAX_PIXELS
from minisora.data.tars import TarClips
from minisora.data.unreadable import ReadableSubset
from minisora.data.video import probe, read_video

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
m=video {port} RTP/AVP 96
a=rtpmap:96 H264/90000
"""
DASH = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S">
<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">
<BaseURL>secret.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>
"""
TEXTS = dict(
    sdp=SDP.format(port=5004),
    concat="ffconcat version 1.0\nfile secret.mp4\n",
    m3u8="#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    dash=DASH,
    rtsp="[Reference]\nRef1=rtsp://127.0.0.1/x\n",
    smil='<smil><body><video src="secret.mp4"/></body></smil>',
)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("ending", [".mp4", ".ts", ".mkv"])
def test_a_text_opens_no_socket_and_no_other_file(tmp_path, name, ending):
    encode(tmp_path / "secret.mp4", ramp(4))
    file = tmp_path / f"x{ending}"
    file.write_text(TEXTS[name])
    opened = []

    def look(event, args):
        if watching and event in ("socket.connect", "socket.bind", "socket.__new__"):
            opened.append(event)
        if watching and event == "open" and "secret" in str(args[0]):
            opened.append(event)

    watching = True
    sys.addaudithook(look)
    stamp = (tmp_path / "secret.mp4").stat().st_atime_ns
    for source in (file, file.read_bytes()):
        for read in (read_video, probe):
            with pytest.raises(ValueError, match="cannot read"):
                read(source)
    watching = False
    assert not opened and (tmp_path / "secret.mp4").stat().st_atime_ns == stamp


def test_a_stream_description_does_not_listen(tmp_path):
    "FFmpeg would bind the port that the text names."
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bound = []
    (tmp_path / "x.mp4").write_text(SDP.format(port=port))
    try:
        read_video(tmp_path / "x.mp4")
    except ValueError as e:
        bound.append(str(e))
    assert "not opened" in bound[0]


def test_a_picture_runs_no_program(tmp_path):
    "PIL would give an EPS to Ghostscript."
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(ValueError, match="it is no picture"):
        read_video(tmp_path / "x.png")


def cover_only(path, fmt="mp4"):
    with av.open(str(path), "w", format=fmt) as out:
        sound = out.add_stream("aac", rate=8000)
        cover = out.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 32
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, np.uint8))
        out.mux(cover.encode(frame))
        out.mux(cover.encode())
        for k in range(8):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate = 8000
            frame.pts = 1024 * k
            out.mux(sound.encode(frame))
        out.mux(sound.encode())
    return path


def test_the_cover_of_a_song_is_no_film(tmp_path):
    try:
        song = cover_only(tmp_path / "song.mp4")
    except (AttributeError, av.FFmpegError):
        pytest.skip("this PyAV writes no cover pictures")
    with av.open(str(song)) as found:
        if not found.streams.video[0].disposition & av.stream.Disposition.attached_pic:
            pytest.skip("this FFmpeg does not mark the cover")
    for read in (read_video, probe):
        with pytest.raises(ValueError, match="only a cover picture"):
            read(song)


# ---------------------------------------------------------------- pictures that unfold


def bomb(width, height):
    "A PNG of few bytes that says it has so many pixels."

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data))
            + kind
            + data
            + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(width + 1) * 64)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(13000, 13000), (65000, 65000), (9000, 8000), (10**6, 100)])
def test_too_many_pixels_are_refused(tmp_path, datasets, size):
    data = bomb(*size)
    (tmp_path / "x.png").write_bytes(data)
    tar = write_tar(tmp_path / "t.tar", {"x.png": data, "x.txt": b"x"})
    kinds = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    cell = dict(bytes=data, path=None)
    rows = datasets.Dataset.from_list([dict(image=cell, text="x")], features=kinds)
    for read in (
        lambda: read_video(tmp_path / "x.png"),
        lambda: probe(tmp_path / "x.png"),
        lambda: TarClips(tar)[0],
        lambda: HubClips(rows)[0],
    ):
        with pytest.raises(ValueError, match=f"{MAX_PIXELS}.* make it smaller"):
            read()


def test_a_large_photo_is_still_read(tmp_path):
    Image.new("RGB", (6000, 4000), (9, 99, 199)).save(tmp_path / "x.jpg", quality=50)
    assert abs(int(read_video(tmp_path / "x.jpg", 1, 8).frames[1, 0, 4, 4]) - 99) < 3


# ---------------------------------------------------------------- one bad clip


def unknown_codec(path):
    "An mp4 whose film is of a kind that nobody knows."
    data = encode(path, ramp(4)).read_bytes()
    path.write_bytes(data.replace(b"avc1", b"zzzz"))


def deep(path):
    path.with_suffix(".json").write_text('{"a":' * 200_000)
    encode(path, ramp(4))


def wrong_name(path):
    encode(path, ramp(4)).rename(path.parent / b"b\xff.mp4".decode("utf-8", "surrogateescape"))


def folder_called_film(path):
    path.mkdir()
    (path / "x.mp4").write_bytes(b"")


@pytest.mark.parametrize("spoil", [unknown_codec, deep, wrong_name, folder_called_film])
@pytest.mark.parametrize("check", ["decode", "open"])
def test_one_bad_clip_does_not_end_a_scan(tmp_path, spoil, check):
    for name in ("a", "c"):
        encode(tmp_path / f"{name}.mp4", ramp(4))
    spoil(tmp_path / "b.mp4")
    data = FolderClips(tmp_path, 16, 2, on_error="collect", check=check)
    captions = [c.caption for c in data]
    assert [c for c in captions if c in "ac"] == ["a", "c"] and len(data.unreadable) >= 1
    json.dumps(data.unreadable).encode()
    assert all("\n" not in reason for _, reason in data.unreadable)


def test_whatever_a_reader_raises_is_collected():
    errors = [
        AttributeError("'NoneType' object has no attribute 'name'"),
        KeyError("x"),
        MemoryError(),
        RecursionError("maximum recursion depth"),
        TypeError("no"),
        struct.error("short"),
    ]

    class Clips:
        def __len__(self):
            return len(errors) + 1

        def __getitem__(self, i):
            if i:
                raise errors[i - 1]

    found = ReadableSubset(Clips(), on_error="collect")
    assert found.indices == [0] and len(found.unreadable) == len(errors)
    assert dict(found.unreadable)[1].startswith("AttributeError: ")


def sparse_tar(path, size):
    "A tar with a member of that size, of which nothing is there but holes."
    entry = tarfile.TarInfo("b.mp4")
    entry.size = size
    with open(path, "wb") as f:
        for name in ("a", "c"):
            for ending, data in ((".png", packed(grey(9))), (".txt", b"still")):
                part = tarfile.TarInfo(name + ending)
                part.size = len(data)
                f.write(part.tobuf() + data + bytes(-len(data) % 512))
        text = tarfile.TarInfo("b.txt")
        text.size = 1
        f.write(text.tobuf() + b"x" + bytes(511))
        f.write(entry.tobuf())
        f.seek(size + -size % 512, io.SEEK_CUR)
        f.write(bytes(1024))
    return path


@pytest.mark.parametrize("size", [5 * 2**30, 10 * 10**12])
def test_a_vast_member_of_a_tar_is_left_out(tmp_path, size):
    try:
        tar = sparse_tar(tmp_path / "t.tar", size)
    except OSError:
        pytest.skip("this disk makes no such holes")
    data = TarClips(tar, on_error="collect")
    assert [c.caption for c in data] == ["still"] * 2
    (name, reason), = data.unreadable
    assert name == "t.tar/b" and f"{size} bytes" in reason
