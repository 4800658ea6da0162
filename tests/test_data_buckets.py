"""Buckets: a few shapes, the nearest one for each clip, batches of one shape."""

import numpy as np
import pytest
import torch
from helpers import clips as fixtures
from helpers.clips import encode

from minisora.data.buckets import Bucket, BucketSampler, make_buckets, nearest_bucket
from minisora.data.folders import FolderClips
from minisora.data.video import VideoInfo, stack_clips, to_float
from minisora.latent_cache import LatentCache, write_caches
from minisora.training.batches import BucketDataset

# fixtures that several files share
video = fixtures.video
pictures = fixtures.pictures


def test_the_bucket_table():
    table = make_buckets(64, lengths=(1, 16))
    assert len(table) == 10 and Bucket(16, 64, 64) in table and table == sorted(table)
    for b in table:
        assert b.height % 8 == b.width % 8 == 0 and abs(b.height * b.width / 64**2 - 1) < 0.25


def test_a_video_goes_to_the_nearest_bucket():
    table = make_buckets(64, lengths=(1, 8, 16))
    at = lambda h, w, s=9.0, fps=8: nearest_bucket(table, VideoInfo(h, w, s, 25.0), fps)
    assert at(720, 1280).width > at(480, 640).width > at(480, 480).width == 64 > at(1280, 720).width
    assert (at(720, 1280).height, at(720, 1280).width) == (
        at(1280, 720).width,
        at(1280, 720).height,
    )
    assert [at(9, 9, s).frames for s in (9.0, 2.0, 1.99, 1.0, 0.5, 0.01)] == [16, 16, 8, 8, 1, 1]
    assert nearest_bucket(make_buckets(lengths=(8, 16)), VideoInfo(9, 9, 0.1, 25.0), 8).frames == 8


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: BucketSampler([1, 1], 0), "batch_size"),
        (lambda: BucketSampler([1, 1], 2, rank=2, world_size=2), "rank 2"),
        (lambda: BucketSampler([1, 2], 2, drop_last=True), "no bucket fills"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError) as e:
        call()
    assert words in str(e.value) and "\n" not in str(e.value)


def test_a_folder_in_buckets(tmp_path):
    for k, (h, w, n) in enumerate([(32, 64, 8), (64, 32, 16), (32, 64, 16), (48, 48, 3)]):
        encode(tmp_path / f"{k}.mp4", np.zeros((n, h, w, 3), np.uint8))
    table = make_buckets(32, (0.5, 1, 2), lengths=(1, 8, 16))
    data = FolderClips(tmp_path, fps=8, buckets=table)
    lazy = FolderClips(tmp_path, fps=8, buckets=table, check="no")
    assert [b.frames for b in data.bucket_of] == [8, 16, 16, 1] and data.bucket_of == lazy.bucket_of
    for clip, late, b in zip(data, lazy, data.bucket_of):
        assert clip.frames.shape == late.frames.shape == (3, b.frames, b.height, b.width)
    batches = list(
        torch.utils.data.DataLoader(
            data, batch_sampler=BucketSampler(data.bucket_of, 2), collate_fn=stack_clips
        )
    )
    assert sorted(n for _, names in batches for n in names) == ["0", "1", "2", "3"]


def test_bucket_batches():
    of = [k % 3 if k < 30 else 9 for k in range(34)]
    sampler = BucketSampler(of, 4, seed=1)
    batches = list(sampler)
    assert (
        sorted(i for b in batches for i in b) == list(range(34))
        and len(sampler) == len(batches) == 10
    )
    assert all(len({of[i] for i in b}) == 1 and len(b) <= 4 for b in batches)
    assert batches == list(BucketSampler(of, 4, seed=1)) != list(BucketSampler(of, 4, seed=2))
    assert len({of[b[0]] for b in batches[:4]}) > 1  # buckets come mixed
    sampler.set_epoch(1)
    other = list(sampler)
    assert other != batches and sorted(map(len, other)) == sorted(map(len, batches))
    resumed = BucketSampler(of, 4, seed=1)
    resumed.set_epoch(1)
    assert list(resumed) == other
    assert all(len(b) == 4 for b in BucketSampler(of, 4, drop_last=True))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_the_batches_evenly(world):
    of = [k % 3 for k in range(30)]
    one = list(BucketSampler(of, 4, seed=1))
    parts = [list(BucketSampler(of, 4, seed=1, rank=r, world_size=world)) for r in range(world)]
    assert len({len(p) for p in parts}) == 1 and len(
        BucketSampler(of, 4, rank=0, world_size=world)
    ) == len(parts[0])
    assert {tuple(b) for p in parts for b in p} == {tuple(b) for b in one}
    assert sum(map(len, parts)) < len(one) + world


# ---------------------------------------------------------------- a cache for each bucket


class Halves:
    "An autoencoder that keeps every other pixel."

    def encode(self, x):
        return x[..., ::2, ::2], None


def test_a_cache_for_each_bucket(tmp_path, video, pictures):
    folder = tmp_path / "b_cats"
    (folder / "film.mp4").write_bytes(video.read_bytes())
    clips = FolderClips(folder, fps=8, buckets=make_buckets(32, (1, 3 / 2), lengths=(4, 8)))
    caches = write_caches(tmp_path / "caches", clips, Halves(), progress=False, dtype="float32")
    assert {name: len(c) for name, c in caches.items()} == {"1x24x40": 2, "8x32x32": 1}
    for name, cache in caches.items():
        ids = [
            i for i, b in enumerate(clips.bucket_of) if f"{b.frames}x{b.height}x{b.width}" == name
        ]
        for k, i in enumerate(ids):
            latents = cache.denormalize(cache[k]["latents"])
            assert torch.allclose(latents, to_float(clips[i].frames)[..., ::2, ::2], atol=1e-5), (
                name
            )
    data = BucketDataset(caches)
    assert len(data) == 3 and data.bucket_of == ["1x24x40"] * 2 + ["8x32x32"]
    again = write_caches(tmp_path / "caches", clips, Halves(), progress=False, dtype="float32")
    opened = {p.name: LatentCache(p) for p in sorted((tmp_path / "caches").iterdir())}
    assert list(again) == list(opened) == list(caches)
    with pytest.raises(ValueError, match="these FolderClips are in no buckets"):
        write_caches(tmp_path / "d", FolderClips(folder, frames=1), Halves())
    with pytest.raises(ValueError, match="these list are in no buckets"):
        write_caches(tmp_path / "d", [], Halves())
    with pytest.raises(ValueError, match="1x24x40 is a latent cache"):
        write_caches(tmp_path / "caches/1x24x40", clips, Halves())
    assert not (tmp_path / "d").exists()
