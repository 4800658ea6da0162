"""Shapes and times: where a clip is cropped, which bucket it goes to, which second it begins at."""

import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from test_clips import encode, needs, ramp

from minisora import clips as C

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def quarters(h=40, w=60):
    "A picture whose red grows to the right and green downwards, so that a crop says where it lies."
    x = np.zeros((h, w, 3), np.uint8)
    x[..., 0], x[..., 1] = np.linspace(0, 240, w)[None], np.linspace(0, 240, h)[:, None]
    return x


# ---------------------------------------------------------------- crops


def test_the_centre_crop_is_what_it_was():
    "A square in the centre: against PIL asked for it by hand."
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 255, (45, 71, 3), np.uint8)
    by_hand = Image.fromarray(image).resize(
        (16, 16), Image.BICUBIC, box=(13, 0, 58, 45), reducing_gap=2
    )
    assert (C.square(image, 16) == np.asarray(by_hand)).all()
    assert (C.resize_crop(image, (16, 16)) == np.asarray(by_hand)).all()
    assert (C.resize_crop(image, (45, 71)) == image).all()


def test_crops_keep_the_aspect():
    "A circle stays a circle in any shape, also where stored pixels are not square."
    yy, xx = np.mgrid[0:80, 0:80]
    disc = ((np.hypot(yy - 39.5, xx - 39.5) < 14) * 255).astype(np.uint8)
    for shape, aspect in (((40, 64), 1.0), ((64, 24), 1.0), ((40, 40), 2.0)):
        stored = disc if aspect == 1 else disc[:, ::2]
        out = C.resize_crop(stored, shape, aspect)[..., 0] > 127
        assert out.shape == shape
        h, w = np.ptp(np.nonzero(out)[0]) + 1, np.ptp(np.nonzero(out)[1]) + 1
        assert abs(h - w) <= 1 and h > 12


def test_a_place_moves_the_crop():
    x = quarters()
    left, centre, right = (C.resize_crop(x, 40, place=(0.5, p))[20, 20, 0] for p in (0, 0.5, 1))
    assert left < centre < right and abs(left - 80) < 6 and abs(right - 160) < 6
    top, bottom = (C.resize_crop(x, (20, 60), place=(p, 0.5))[10, 30, 1] for p in (0, 1))
    assert abs(top - 60) < 8 and abs(bottom - 180) < 8


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_place_means_the_same_on_a_turned_film(degrees):
    "Turned upright first, then cropped: the crop of the stored picture must say the same."
    stored = np.random.default_rng(1).integers(0, 255, (30, 50, 3), np.uint8)

    class Frame:
        rotation, format = degrees, type("F", (), dict(components=(), name="rgb24"))

        def to_ndarray(self, format):
            return stored

    for size, place in (((20, 12), (0.2, 0.9)), ((12, 20), (1, 0)), (16, (0.5, 0.1))):
        due = C.resize_crop(np.rot90(stored, degrees // 90), size, place=place)
        got = C.upright(Frame(), size, place=place)
        assert got.shape == due.shape and np.abs(got.astype(int) - due).max() <= 1


def test_random_crops_are_a_pure_function_of_seed_epoch_and_index(tmp_path):
    wide = np.stack([quarters(32, 96)] * 8)
    for k in range(3):
        encode(tmp_path / f"{k}.mp4", wide)
    data = C.FolderClips(tmp_path, 32, 2, crop="random", seed=5)
    again = C.FolderClips(tmp_path, 32, 2, crop="random", seed=5, check="no")
    red = lambda d: [round(c.frames[0].float().mean().item()) for c in d]
    first = red(data)
    assert first == red(again) and len(set(first)) == 3
    data.set_epoch(1)
    assert red(data) != first
    data.set_epoch(0)
    assert red(data) == first != red(C.FolderClips(tmp_path, 32, 2, crop="random", seed=6))
    assert len({*red(C.FolderClips(tmp_path, 32, 2))}) == 1  # the centre
    places = np.array([C.crop_place("random", 0, 0, i) for i in range(300)])
    assert places.min() < 0.05 and places.max() > 0.95 and np.abs(places.mean(0) - 0.5).max() < 0.06


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: C.resize_crop(quarters(), 0), "size must be"),
        (lambda: C.resize_crop(quarters(), (8, 8, 8)), "size must be"),
        (lambda: C.resize_crop(quarters(), 7.5), "size must be"),
        (lambda: C.crop_place("middle"), "crop must be"),
        (lambda: C.crop_place((0.5, 2)), "crop must be"),
        (lambda: C.read_video("x.mp4", frames=0), "frames"),
        (lambda: C.read_video("x.mp4", fps=0), "fps"),
        (lambda: C.read_video("x.mp4", start=1.0), "start"),
        (lambda: C.FolderClips(".", check="yes"), "check must be one of decode, open, no"),
        (
            lambda: C.FolderClips(".", on_error="skip"),
            "on_error must be one of warn, raise, collect",
        ),
        (lambda: C.FolderClips(".", buckets=C.bucket_table(lengths=(1, 8))), "need fps"),
        (lambda: C.BucketSampler([1, 1], 0), "batch_size"),
        (lambda: C.BucketSampler([1, 1], 2, rank=2, world_size=2), "rank 2"),
        (lambda: C.BucketSampler([1, 2], 2, drop_last=True), "no bucket fills"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError) as e:
        call()
    assert words in str(e.value) and "\n" not in str(e.value)


# ---------------------------------------------------------------- time


def test_a_clip_may_begin_at_any_second(tmp_path):
    path = encode(tmp_path / "x.mp4", ramp(32))  # four seconds at 8 a second
    level = lambda **k: C.read_video(path, size=32, **k).frames[0].float().mean((1, 2))
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
    clip = C.read_video(path, 16, 32, fps=8)
    assert clip.fps == 8
    step = clip.frames[0].float().mean((1, 2)).diff()
    assert (step - 3 * 240 / 47).abs().max() < 3
    slow = C.read_video(encode(tmp_path / "y.mkv", ramp(8), "matroska", rate=8), 24, 32, fps=24)
    level = slow.frames[0].float().mean((1, 2)).view(8, 3)
    assert np.ptp(level.numpy(), 1).max() == 0 and (level[:, 0].diff() > 25).all()


def test_reading_stops_where_the_clip_ends(tmp_path, monkeypatch):
    "Of a long film only the part up to the clip's end is decoded."
    path, seen, turn = encode(tmp_path / "x.mp4", ramp(400)), [], C.decoder

    def counted(stream):
        decode = turn(stream)
        return lambda packet: [seen.append(f) or f for f in decode(packet)]

    monkeypatch.setattr(C, "decoder", counted)
    C.read_video(path, 8, 32, fps=8, start=1.0)
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
    held, info = C.read_video(path, 7, 24), C.probe(path)
    monkeypatch.setattr(C, "HOLD_BYTES", 300)
    packets = []
    container, stream = C.open_video(path)
    with container:
        C.time_span(container, stream, packets)
    assert not packets and C.probe(path) == info
    again = C.read_video(path, 7, 24)
    assert torch.equal(again.frames, held.frames) and again.fps == held.fps


def test_probe(tmp_path):
    path = encode(tmp_path / "x.mp4", np.zeros((12, 32, 48, 3), np.uint8), rate=6)
    info = C.probe(path)
    assert (
        (info.height, info.width) == (32, 48) and info.seconds == pytest.approx(2) and info.fps == 6
    )
    assert C.probe(path.read_bytes()) == info
    (tmp_path / "y.mp4").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="cannot read .*y.mp4"):
        C.probe(tmp_path / "y.mp4")
    with pytest.raises(FileNotFoundError, match="cannot read .*z.mp4: no such file"):
        C.probe(tmp_path / "z.mp4")


@needs("awkward")
def test_probe_sees_films_upright():
    for degrees in (0, 90, 180, 270):
        info = C.probe(SHARED / f"awkward/video_{degrees}.mov")
        with av.open(str(SHARED / f"awkward/video_{degrees}.mov")) as f:
            s = f.streams.video[0]
        stored = (s.height, s.width)
        assert (info.height, info.width) == (stored if degrees in (0, 180) else stored[::-1])


@needs("awkward")
def test_each_awkward_file_decodes_right_or_is_refused_by_name():
    "Every picture of every file, against a plain PyAV loop sorted by its time-stamps and turned upright."
    refused, compared = [], 0
    for path in sorted((SHARED / "awkward").iterdir()):
        try:
            info = C.probe(path)
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
                C.read_video(path)
            refused.append(path.name)
            continue
        stamps = np.array([float(x.pts * x.time_base) for x in frames])
        assert (np.diff(stamps) > 0).all()
        clip = C.read_video(path, 7, (36, 48))
        moments = stamps[0] + (np.arange(7) + 0.5) / 7 * info.seconds
        for k, n in enumerate(np.searchsorted(stamps, moments + 1e-6, side="right") - 1):
            due = np.rot90(frames[n].to_ndarray(format="rgb24"), round(frames[n].rotation / 90))
            due = C.resize_crop(due, (36, 48))
            assert (
                np.abs(clip.frames[:, k].permute(1, 2, 0).numpy().astype(int) - due).mean() < 1
            ), path.name
            compared += 1
    assert refused == ["corrupted.mp4", "doc_medias_result.webm"] and compared == 9 * 7


# ---------------------------------------------------------------- buckets


def test_the_bucket_table():
    table = C.bucket_table(64, lengths=(1, 16))
    assert len(table) == 10 and C.Bucket(16, 64, 64) in table and table == sorted(table)
    for b in table:
        assert b.height % 8 == b.width % 8 == 0 and abs(b.height * b.width / 64**2 - 1) < 0.25


def test_a_video_goes_to_the_nearest_bucket():
    table = C.bucket_table(64, lengths=(1, 8, 16))
    at = lambda h, w, s=9.0, fps=8: C.nearest_bucket(table, C.VideoInfo(h, w, s, 25.0), fps)
    assert at(720, 1280).width > at(480, 640).width > at(480, 480).width == 64 > at(1280, 720).width
    assert (at(720, 1280).height, at(720, 1280).width) == (
        at(1280, 720).width,
        at(1280, 720).height,
    )
    assert [at(9, 9, s).frames for s in (9.0, 2.0, 1.99, 1.0, 0.5, 0.01)] == [16, 16, 8, 8, 1, 1]
    assert (
        C.nearest_bucket(C.bucket_table(lengths=(8, 16)), C.VideoInfo(9, 9, 0.1, 25.0), 8).frames
        == 8
    )


def test_a_folder_in_buckets(tmp_path):
    for k, (h, w, n) in enumerate([(32, 64, 8), (64, 32, 16), (32, 64, 16), (48, 48, 3)]):
        encode(tmp_path / f"{k}.mp4", np.zeros((n, h, w, 3), np.uint8))
    table = C.bucket_table(32, (0.5, 1, 2), lengths=(1, 8, 16))
    data = C.FolderClips(tmp_path, fps=8, buckets=table)
    lazy = C.FolderClips(tmp_path, fps=8, buckets=table, check="no")
    assert [b.frames for b in data.bucket_of] == [8, 16, 16, 1] and data.bucket_of == lazy.bucket_of
    for clip, late, b in zip(data, lazy, data.bucket_of):
        assert clip.frames.shape == late.frames.shape == (3, b.frames, b.height, b.width)
    batches = list(
        torch.utils.data.DataLoader(
            data, batch_sampler=C.BucketSampler(data.bucket_of, 2), collate_fn=C.stack
        )
    )
    assert sorted(n for _, names in batches for n in names) == ["0", "1", "2", "3"]


def test_bucket_batches():
    of = [k % 3 if k < 30 else 9 for k in range(34)]
    sampler = C.BucketSampler(of, 4, seed=1)
    batches = list(sampler)
    assert (
        sorted(i for b in batches for i in b) == list(range(34))
        and len(sampler) == len(batches) == 10
    )
    assert all(len({of[i] for i in b}) == 1 and len(b) <= 4 for b in batches)
    assert batches == list(C.BucketSampler(of, 4, seed=1)) != list(C.BucketSampler(of, 4, seed=2))
    assert len({of[b[0]] for b in batches[:4]}) > 1  # buckets come mixed
    sampler.set_epoch(1)
    other = list(sampler)
    assert other != batches and sorted(map(len, other)) == sorted(map(len, batches))
    resumed = C.BucketSampler(of, 4, seed=1)
    resumed.set_epoch(1)
    assert list(resumed) == other
    assert all(len(b) == 4 for b in C.BucketSampler(of, 4, drop_last=True))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_the_batches_evenly(world):
    of = [k % 3 for k in range(30)]
    one = list(C.BucketSampler(of, 4, seed=1))
    parts = [list(C.BucketSampler(of, 4, seed=1, rank=r, world_size=world)) for r in range(world)]
    assert len({len(p) for p in parts}) == 1 and len(
        C.BucketSampler(of, 4, rank=0, world_size=world)
    ) == len(parts[0])
    assert {tuple(b) for p in parts for b in p} == {tuple(b) for b in one}
    assert sum(map(len, parts)) < len(one) + world


# ---------------------------------------------------------------- what cannot be read


@pytest.fixture
def broken(tmp_path):
    for k in range(6):
        C.write_video(tmp_path / f"{k}.mp4", C.SceneClips(9)[k])
    (tmp_path / "3.mp4").write_bytes(b"rubbish")
    (tmp_path / "5.mp4").write_bytes(b"")
    return tmp_path


def test_bad_files_are_reported_at_the_end_or_are_fatal(broken):
    with pytest.warns(UserWarning) as said:
        data = C.FolderClips(broken, 32, 4)
    assert len(said) == 1 and len(data) == 4
    text = str(said[0].message)
    assert text.startswith("2 of 6 cannot be read in ") and "\n" not in text
    assert "3.mp4: Invalid data" in text and "5.mp4: the file is empty" in text
    for check in ("decode", "open"):
        with pytest.raises(ValueError, match="2 of 6 cannot be read.*5.mp4: the file is empty"):
            C.FolderClips(broken, 32, 4, on_error="raise", check=check)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(C.FolderClips(broken, 32, 4, on_error="collect").refused) == 2
        late = C.FolderClips(broken, 32, 4, check="no")
    assert len(late) == 6 and not late.refused and torch.equal(late[2].frames, data[2].frames)
    with pytest.raises(ValueError, match="cannot read .*3.mp4"):
        late[3]


def test_a_report_is_short(tmp_path):
    assert C.refusals([(f"{k}.mp4", "bad") for k in range(900)], 1000, tmp_path).count("bad") == 3


def test_opening_decodes_one_frame_only(broken, monkeypatch):
    decoded, turn = [], C.decode_video
    monkeypatch.setattr(C, "decode_video", lambda *a: decoded.append(a) or turn(*a))
    data = C.FolderClips(broken, 32, 4, check="open", on_error="collect")
    assert len(data) == 4 and not decoded and not data.kept
    data[0]
    assert len(decoded) == 1


def test_what_is_kept_is_bounded(broken, monkeypatch):
    kept = lambda: len(C.FolderClips(broken, 32, 4, on_error="collect").kept)
    assert kept() == 4
    monkeypatch.setattr(C, "KEEP_BYTES", 2 * 3 * 4 * 32 * 32 + 1)
    assert kept() == 2
