"""Video files: sampled by time, turned upright, written whole; what cannot be read is named."""

import os

import av
import numpy as np
import pytest
import torch
from helpers.clips import SHARED, encode, needs, ramp

from minisora.clips import SceneClips
from minisora.data.pictures import resize_crop
from minisora.data.video import (
    _decoder,
    _open_video,
    _oriented_crop,
    _video_time_span,
    probe,
    read_video,
    stack_clips,
    to_float,
    to_uint8,
    write_video,
)

# ---------------------------------------------------------------- to a file and back


def test_a_clip_survives_the_way_to_a_file_and_back(tmp_path):
    clip = SceneClips(10)[4]
    path = write_video(tmp_path / "A-red_BALL moves.mp4", clip)
    back = read_video(path)
    assert (
        back.caption == "a red ball moves"
        and back.fps == pytest.approx(8)
        and back.source == str(path)
    )
    assert (back.frames.float() - clip.frames.float()).abs().mean() < 2
    assert os.listdir(tmp_path) == [path.name]  # nothing half-written stays
    with av.open(str(path)) as f:
        stream = f.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")


def test_odd_sides_and_floats_can_be_written(tmp_path):
    path = write_video(tmp_path / "x.mp4", torch.ones(3, 3, 33, 47), fps=29.97)
    with av.open(str(path)) as f:
        assert (f.streams.video[0].width, f.streams.video[0].height) == (48, 34)
    assert read_video(path).frames.float().mean() > 250


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_video(tmp_path / "x.mp4", SceneClips(1)[0])
    old = path.read_bytes()

    def full(part, *_):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minisora.data.video._encode_mp4", full)
    with pytest.raises(OSError, match="x.mp4.*No space left"):
        write_video(path, SceneClips(2)[1])
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["x.mp4"]
    monkeypatch.undo()
    with open(path, "rb") as reader:  # who reads the old file keeps it
        write_video(path, SceneClips(2)[1])
        assert reader.read() == old != path.read_bytes()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_video(tmp_path / "nowhere" / "x.mp4", SceneClips(1)[0])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: read_video("x.mp4", frames=0), "frames must be a whole number from 1, not 0"),
        (lambda: read_video("x.mp4", fps=0), "fps must be a number above 0, not 0"),
        (lambda: read_video("x.mp4", start=1.0), "start=1.0 requires fps"),
        (lambda: read_video("x.mp4", fps=8, start=-1), "start must be a number, 0 or more"),
        (lambda: write_video("x.mp4", torch.zeros(1, 2, 3)), "must be (3, T, H, W)"),
        (lambda: write_video("x.mp4", torch.zeros(3, 1, 4, 4), fps=0), "fps must be"),
        (lambda: to_float(torch.zeros(3)), "must be uint8"),
        (lambda: to_uint8(torch.zeros(3, dtype=torch.uint8)), "must be float"),
        (lambda: stack_clips([]), "one shape"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError) as e:
        call()
    assert words in str(e.value) and "\n" not in str(e.value)


# ---------------------------------------------------------------- time


def test_frames_are_sampled_by_time_not_by_count(tmp_path):
    """12 quick frames in the first second, 4 slow ones in the second: half the clip shows the slow
    ones."""
    stamps = [*range(0, 1000, 84), *range(1008, 2000, 250)]
    path = encode(tmp_path / "vfr.mkv", ramp(len(stamps)), "matroska", stamps=stamps)
    grey = read_video(path, frames=8, size=32).frames[0].float().mean((1, 2))
    slow = 8 + 240 * 12 / (len(stamps) - 1)  # the first slow frame's brightness
    assert (grey.diff() >= -1).all() and (grey >= slow - 6).sum() == 4


def test_more_frames_than_the_file_has_and_fewer(tmp_path):
    path = encode(tmp_path / "x.mp4", ramp(8))
    level = lambda n, **k: read_video(path, frames=n, size=32, **k).frames[0].float().mean((1, 2))
    for part in (level(16)[::2], level(16)[1::2]):
        assert torch.allclose(part, level(8), atol=1)
    assert torch.allclose(level(4, fps=8), level(8)[2:6], atol=1)  # the middle half second
    held = level(16, fps=8)  # a second is missing: the last holds
    assert torch.allclose(held[:8], level(8), atol=1) and (held[8:] == held[7]).all()


def test_a_clip_may_begin_at_any_second(tmp_path):
    path = encode(tmp_path / "x.mp4", ramp(32))  # four seconds at 8 a second
    level = lambda **k: read_video(path, size=32, **k).frames[0].float().mean((1, 2))
    whole = level(frames=32)
    assert torch.allclose(level(frames=8, fps=8, start=2.0), whole[16:24], atol=1)
    assert torch.allclose(level(frames=8, fps=8, start=0.0), whole[:8], atol=1)
    assert torch.allclose(level(frames=8, fps=4, start=1.0), whole[8:24].view(8, 2).mean(1), atol=5)
    tail = level(frames=8, fps=8, start=3.5)  # half a second is there
    assert torch.allclose(tail[:4], whole[28:], atol=1) and (tail[4:] == tail[3]).all()
    with pytest.raises(ValueError, match="x.mp4: second 4 lies behind its end at 4"):
        level(fps=8, start=4.0)


def test_frame_rates_are_resampled(tmp_path):
    "24 a second to 8 takes every third, 8 to 24 shows each three times; the clip says its rate."
    path = encode(tmp_path / "x.mkv", ramp(48), "matroska", rate=24)
    clip = read_video(path, 16, 32, fps=8)
    assert clip.fps == 8
    step = clip.frames[0].float().mean((1, 2)).diff()
    assert (step - 3 * 240 / 47).abs().max() < 3
    slow = read_video(encode(tmp_path / "y.mkv", ramp(8), "matroska", rate=8), 24, 32, fps=24)
    level = slow.frames[0].float().mean((1, 2)).view(8, 3)
    assert np.ptp(level.numpy(), 1).max() == 0 and (level[:, 0].diff() > 25).all()


def test_reading_stops_where_the_clip_ends(tmp_path, monkeypatch):
    "Of a long film only the part up to the clip's end is decoded."
    path, seen, turn = encode(tmp_path / "x.mp4", ramp(400)), [], _decoder

    def counted(stream):
        decode = turn(stream)
        return lambda packet: [seen.append(f) or f for f in decode(packet)]

    monkeypatch.setattr("minisora.data.video._decoder", counted)
    read_video(path, 8, 32, fps=8, start=1.0)
    assert 16 <= len(seen) < 200


@pytest.mark.parametrize(
    "fmt, codec, pix",
    [
        ("mp4", "libx264", "yuv420p"),
        ("avi", "mpeg4", "yuv420p"),
        ("mpegts", "libx264", "yuv420p"),
        ("h264", "libx264", "yuv420p"),
        ("gif", "gif", "rgb8"),
        ("webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_a_film_too_large_to_hold_is_read_twice_to_the_same_end(
    tmp_path, monkeypatch, fmt, codec, pix
):
    path = encode(tmp_path / "x.film", ramp(20), fmt, codec, pix)
    held, info = read_video(path, 7, 24), probe(path)
    monkeypatch.setattr("minisora.data.video._HOLD_BYTES", 300)
    packets = []
    container, stream = _open_video(path)
    with container:
        _video_time_span(container, stream, packets)
    assert not packets and probe(path) == info
    again = read_video(path, 7, 24)
    assert torch.equal(again.frames, held.frames) and again.fps == held.fps


# ---------------------------------------------------------------- space


def test_the_middle_is_kept_and_nothing_is_squeezed(tmp_path):
    wide = np.zeros((4, 64, 128, 3), np.uint8)
    wide[:, :, 32:96] = 255  # exactly the centre square is white
    assert read_video(encode(tmp_path / "x.mp4", wide), 4, 32).frames.float().mean() > 250
    wide[:, :, 31:97] = 255 - wide[:, :, 31:97]
    assert read_video(encode(tmp_path / "y.mp4", wide), 4, 32).frames.float().mean() < 12


def test_transparency_lies_over_black(tmp_path):
    x = np.full((4, 32, 32, 4), 255, np.uint8)
    x[..., 3] = 0
    x[:, :, :16, 3] = 128
    got = read_video(encode(tmp_path / "x.mov", x, "mov", "qtrle", "argb"), 4, 32).frames.float()
    assert got[..., 17:].max() == 0 and abs(got[..., :15].mean() - 128) < 2


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_an_anchor_means_the_same_on_a_turned_film(degrees):
    "Turned upright first, then cropped: the crop of the stored picture must say the same."
    stored = np.random.default_rng(1).integers(0, 255, (30, 50, 3), np.uint8)

    class Frame:
        rotation, format = degrees, type("F", (), dict(components=(), name="rgb24"))

        def to_ndarray(self, format):
            return stored

    for size, anchor in (((20, 12), (0.2, 0.9)), ((12, 20), (1, 0)), (16, (0.5, 0.1))):
        due = resize_crop(np.rot90(stored, degrees // 90), size, anchor=anchor)
        got = _oriented_crop(Frame(), size, anchor=anchor)
        assert got.shape == due.shape and np.abs(got.astype(int) - due).max() <= 1


@needs("awkward")
@pytest.mark.parametrize("degrees, turns", [(90, -1), (180, 2), (270, 1)])
def test_rotated_films_stand_upright(degrees, turns):
    path = SHARED / "awkward" / f"video_{degrees}.mov"
    with av.open(str(path)) as f:
        first = next(f.decode(video=0)).to_ndarray(format="rgb24")
    assert torch.equal(
        read_video(path).frames[:, 0],
        torch.from_numpy(np.rot90(resize_crop(first, 64), turns).copy()).permute(2, 0, 1),
    )


# ---------------------------------------------------------------- files of all kinds


@pytest.mark.parametrize(
    "ext, fmt, codec, pix",
    [
        ("avi", "avi", "mpeg4", "yuv420p"),
        ("h264", "h264", "libx264", "yuv420p"),
        ("gif", "gif", "gif", "rgb8"),
        ("ts", "mpegts", "libx264", "yuv420p"),
    ],
)
def test_containers_with_and_without_time_stamps(tmp_path, ext, fmt, codec, pix):
    path = encode(tmp_path / f"x.{ext}", ramp(8), fmt, codec, pix)
    if ext == "h264":
        path = path.rename(path.with_suffix(".ts"))
    grey = read_video(path, 8, 32).frames[0].float().mean((1, 2))
    assert (grey.diff() > 10).all()


def test_an_mp4_without_video_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with pytest.raises(ValueError, match="sound.mp4.*no video"):
        read_video(tmp_path / "sound.mp4")
    with pytest.raises(FileNotFoundError, match="none.mp4: no such file"):
        read_video(tmp_path / "none.mp4")


def test_probe(tmp_path):
    path = encode(tmp_path / "x.mp4", np.zeros((12, 32, 48, 3), np.uint8), rate=6)
    info = probe(path)
    assert (
        (info.height, info.width) == (32, 48) and info.seconds == pytest.approx(2) and info.fps == 6
    )
    assert probe(path.read_bytes()) == info
    (tmp_path / "y.mp4").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="cannot read .*y.mp4"):
        probe(tmp_path / "y.mp4")
    with pytest.raises(FileNotFoundError, match="cannot read .*z.mp4: no such file"):
        probe(tmp_path / "z.mp4")


@needs("awkward")
def test_probe_sees_films_upright():
    for degrees in (0, 90, 180, 270):
        info = probe(SHARED / f"awkward/video_{degrees}.mov")
        with av.open(str(SHARED / f"awkward/video_{degrees}.mov")) as f:
            s = f.streams.video[0]
        stored = (s.height, s.width)
        assert (info.height, info.width) == (stored if degrees in (0, 180) else stored[::-1])


@needs("awkward")
def test_each_awkward_file_decodes_right_or_is_refused_by_name():
    """Every picture of every file, against a plain PyAV loop sorted by its time-stamps and turned
    upright."""
    refused, compared = [], 0
    for path in sorted((SHARED / "awkward").iterdir()):
        try:
            info = probe(path)
        except ValueError as e:
            assert path.name in str(e)
            refused.append(path.name)
            continue
        # test_clips looks at its alpha
        if path.name == "transparent.webm":
            continue
        try:
            with av.open(f"file:{path}") as f:
                frames = [x for x in f.decode(video=0)]
        except av.FFmpegError:
            with pytest.raises(ValueError, match=path.name):
                read_video(path)
            refused.append(path.name)
            continue
        stamps = np.array([float(x.pts * x.time_base) for x in frames])
        assert (np.diff(stamps) > 0).all()
        clip = read_video(path, 7, (36, 48))
        moments = stamps[0] + (np.arange(7) + 0.5) / 7 * info.seconds
        for k, n in enumerate(np.searchsorted(stamps, moments + 1e-6, side="right") - 1):
            due = np.rot90(frames[n].to_ndarray(format="rgb24"), round(frames[n].rotation / 90))
            due = resize_crop(due, (36, 48))
            assert (
                np.abs(clip.frames[:, k].permute(1, 2, 0).numpy().astype(int) - due).mean() < 1
            ), path.name
            compared += 1
    assert refused == ["corrupted.mp4", "doc_medias_result.webm"] and compared == 9 * 7


@needs("signs")
def test_signs():
    clip = read_video(SHARED / "signs" / "Thank You.mp4", size=96)
    assert clip.caption == "thank you" and clip.frames.shape == (3, 16, 96, 96)
    with av.open(str(SHARED / "signs" / "Thank You.mp4")) as f:
        n = f.streams.video[0].frames
    assert clip.fps == pytest.approx(16 / (n / 24), rel=0.02)


def test_memory_stays_small(tmp_path, monkeypatch):
    "Of 200 large frames only a few are alive at a time."
    import gc

    path = encode(tmp_path / "x.mp4", np.zeros((200, 48, 64, 3), np.uint8))
    alive, turn = [], _oriented_crop

    def counted(frame, *a):
        alive.append(
            sum(type(o) is av.VideoFrame for o in gc.get_objects()) if len(alive) % 40 == 39 else 0
        )
        return turn(frame, *a)

    monkeypatch.setattr("minisora.data.video._oriented_crop", counted)
    read_video(path, frames=100)
    assert len(alive) == 100 and 0 < max(alive) <= 20  # a decoder's few, not all 200
