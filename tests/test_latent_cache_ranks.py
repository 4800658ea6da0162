"""Several processes write one cache; reading overlaps encoding; memory is bounded by the batch."""

import fcntl
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_latent_cache import Clips, Counted, Stop, Stopping, Tiny, content, write

from minisora import latent_cache as lc
from minisora.latent_cache import LatentCache, verify, write_cache

CHILD = """
import sys, torch
sys.path[:0] = [{tests!r}, {root!r}]
torch.set_num_threads(1)
from test_latent_cache import Clips, Tiny, write_cache
print(len(write_cache({path!r}, Clips(60), Tiny(slow={slow}), batch_size=4, shard_size=8, progress=False)))
"""


def start(path, rank, world_size, slow=0.0):
    "One rank in a process of its own, told who it is as torchrun and accelerate do it."
    code = CHILD.format(tests=str(ROOT / "tests"), root=str(ROOT), path=str(path), slow=slow)
    env = os.environ | dict(RANK=str(rank), WORLD_SIZE=str(world_size))
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], env=env, stdout=subprocess.PIPE, text=True
    )


def whole(folder):
    write(folder / "whole", n=60)
    return content(folder / "whole")


def kill_after(process, part, k, batches=1):
    "Kill -9 when shard k has this many whole batches; returns how many it has then."
    journal = part / f"latents-{k:05d}.journal"
    while process.poll() is None and (
        not journal.exists() or journal.read_bytes().count(b"\n") < batches
    ):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (
        "it must be killed before it is done, or this tests nothing"
    )
    process.stdout.close()
    return journal.read_bytes().count(b"\n")


def test_two_processes_leave_the_bytes_of_one(tmp_path):
    children = [start(tmp_path / "c", r, 2, slow=0.01) for r in range(2)]
    assert [p.communicate()[0] for p in children] == ["60\n", "60\n"] and not any(
        p.returncode for p in children
    )
    assert content(tmp_path / "c") == whole(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "whole"], (
        "nothing else may stay behind"
    )


def test_ranks_write_disjoint_shards(tmp_path, monkeypatch):
    "Each shard is opened by the rank it belongs to, and by another only if nobody has done it."
    opened, real = [], lc.ShardWriter.__init__

    def init(self, part, plan, k):
        opened.append(k)
        real(self, part, plan, k)

    monkeypatch.setattr(lc.ShardWriter, "__init__", init)
    real_publish = lc.publish
    monkeypatch.setattr(lc, "publish", lambda *a: None)
    with pytest.raises(FileNotFoundError, match="in the making"):
        write(tmp_path / "c", n=60, rank=1, world_size=3)
    assert opened == [1, 4, 7, 0, 2, 3, 5, 6], "its own first"
    monkeypatch.setattr(lc, "publish", real_publish)
    opened.clear()
    write(tmp_path / "c", n=60, rank=0, world_size=3)
    assert opened == [0, 3, 6], "what another rank has finished is not opened"
    assert content(tmp_path / "c") == whole(tmp_path)


def test_a_killed_rank_is_noticed_and_its_work_goes_on(tmp_path):
    p = start(tmp_path / "c", 1, 2, slow=0.05)
    assert kill_after(p, tmp_path / "c.part", 1) == 1
    ae = Tiny()
    with pytest.warns(
        UserWarning, match=r"latents-00001.safetensors: .* is gone after 4 of 8 samples"
    ):
        write_cache(
            tmp_path / "c",
            Clips(60),
            ae,
            batch_size=4,
            shard_size=8,
            progress=False,
            rank=0,
            world_size=2,
        )
    assert content(tmp_path / "c") == whole(tmp_path) and ae.batches == 1 + 15 - 1


@pytest.mark.parametrize("world_size", [1, 3])
def test_killed_ranks_are_resumed_by_another_number_of_ranks(tmp_path, world_size):
    children = [start(tmp_path / "c", r, 2, slow=0.05) for r in range(2)]
    assert all(kill_after(p, tmp_path / "c.part", r) for r, p in enumerate(children))
    assert not (tmp_path / "c").exists()
    if world_size == 1:
        write(tmp_path / "c", n=60)
    else:
        children = [start(tmp_path / "c", r, 3, slow=0.01) for r in range(3)]
        assert [p.communicate()[0] for p in children] == ["60\n"] * 3
    assert content(tmp_path / "c") == whole(tmp_path) and not verify(tmp_path / "c")


def test_a_late_rank_finds_all_done(tmp_path):
    write(tmp_path / "c", n=60, rank=0, world_size=2)
    before, ae = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()}, Tiny()
    for overwrite in (False, True):
        write_cache(
            tmp_path / "c",
            Clips(60),
            ae,
            batch_size=4,
            shard_size=8,
            progress=False,
            rank=1,
            world_size=2,
            overwrite=overwrite,
        )
    assert (
        ae.batches == 2 and {p: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()} == before
    )


def test_a_rank_that_another_overtakes(tmp_path, monkeypatch):
    "While this rank encodes its first batch, another one publishes everything."
    real = lc.publish

    def slow_publish(path, part, plan, shards, config=None):
        monkeypatch.setattr(lc, "publish", real)
        write(tmp_path / "c", n=60, rank=1, world_size=2)  # finds all shards finished
        assert LatentCache(tmp_path / "c").manifest["samples"] == 60
        real(path, part, plan, shards, config)

    monkeypatch.setattr(lc, "publish", slow_publish)
    write(tmp_path / "c", n=60, rank=0, world_size=2)
    assert content(tmp_path / "c") == whole(tmp_path)


@pytest.mark.parametrize("alive", [0, 20])
def test_a_rank_that_hangs(tmp_path, monkeypatch, alive):
    "A shard that is locked and does not grow is an error after `patience`; as long as it grows it is waited for."
    with pytest.raises(Stop):
        write_cache(
            tmp_path / "c", Stopping(9, 60), Tiny(), batch_size=4, shard_size=8, progress=False
        )
    clock = [0]

    with open(tmp_path / "c.part/latents-00001.journal", "ab", buffering=0) as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def sleep(_):
            clock[0] += 1
            if clock[0] <= alive:
                held.write(b"x")

        with monkeypatch.context() as m:
            m.setattr(lc, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
            with pytest.raises(
                TimeoutError, match=r"latents-00001.safetensors has not grown for 10 s"
            ):
                write(tmp_path / "c", n=60, rank=0, world_size=2, patience=10)
    assert alive + 10 <= clock[0] <= alive + 12
    write(tmp_path / "c", n=60)
    assert content(tmp_path / "c") == whole(tmp_path)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(rank=2, world_size=2), "rank 2 is not one of world_size 2"),
        (dict(rank=-1, world_size=2), "rank -1"),
        (dict(rank=0), "rank and world_size, or neither"),
    ],
)
def test_bad_ranks(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "c", **given)
    assert not list(tmp_path.iterdir())


def test_ranks_of_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert lc.ranks() == (3, 5) and lc.ranks(0, 1) == (0, 1)


# ---------------------------------------------------------------- one process: overlap, memory, progress


def test_writing_overlaps_encoding(tmp_path, monkeypatch):
    "Batch 1 is not written before batch 2 is encoded: if one waited for the other this would time out."
    encoded, real, order = threading.Event(), lc.ShardWriter.append, []

    def append(self, *a):
        if not self.done:
            assert encoded.wait(20), "the next batch is not encoded while this one is written"
        real(self, *a)
        order.append(self.done)

    class Tells(Tiny):
        def encode(self, x):
            if self.batches == 2:
                encoded.set()  # the first call only asked for the shape
            return super().encode(x)

    monkeypatch.setattr(lc.ShardWriter, "append", append)
    write_cache(tmp_path / "c", Clips(12), Tells(), batch_size=4, progress=False)
    assert order == [4, 8, 12]


def test_what_is_encoded_is_written_though_the_next_batch_fails(tmp_path):
    for at, done in ((0, 0), (3, 0), (4, 4), (9, 8)):
        with pytest.raises(Stop):
            write_cache(
                tmp_path / str(at), Stopping(at), Tiny(), batch_size=4, limit=18, progress=False
            )
        journals = list((tmp_path / f"{at}.part").glob("*.journal"))
        assert sum(len(j.read_text().splitlines()) for j in journals) == done // 4


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_batch_that_cannot_be_written_ends_the_call(tmp_path, monkeypatch, at):
    "Writing runs in a thread: its errors must come out, of the last batch and of any before it."
    real, calls = lc.ShardWriter.append, []

    def append(self, *a):
        calls.append(a)
        if len(calls) == at + 1:
            raise OSError(28, "No space left on device")
        real(self, *a)

    monkeypatch.setattr(lc.ShardWriter, "append", append)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "c", 12, shard_size=12)
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr(lc.ShardWriter, "append", real)
    write(tmp_path / "c", 12, shard_size=12)
    assert content(tmp_path / "c") == content(write(tmp_path / "whole", 12, shard_size=12).path)


class Large(Tiny):
    "Latents so large, (2, 1, 256, 256), that a batch of them is rounded and summed up in several parts."

    def __init__(self, bad=None):
        super().__init__()
        self.bad = None if bad is None else Clips()[bad].frames.float() / 127.5 - 1

    def encode(self, x):
        z = x[:, :2, :1].repeat(1, 1, 1, 16, 16)  # (B, 2, 1, 256, 256)
        if self.bad is not None:
            z[(x == self.bad).flatten(1).all(1)] = float("nan")
        return z, None


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_large_latents_are_counted_one_by_one(tmp_path, dtype):
    options = dict(batch_size=5, progress=False, dtype=dtype)
    with pytest.raises(ValueError, match=r"clip 8 \(noise:8\): its latents are not finite"):
        write_cache(tmp_path / "bad", Clips(10), Large(bad=8), **options)
    z = write_cache(tmp_path / "c", Clips(10), Large(), **options)[range(10)]["latents"]
    assert abs(z.mean()) < 1e-3 and abs(z.std() - 1) < 1e-3


def test_reading_overlaps_encoding(tmp_path):
    "Encoding batch 1 cannot end before reading of batch 2 has begun: without overlap this would time out."
    begun = threading.Event()

    class Watched(Clips):
        def __getitem__(self, i):
            if i == 4:
                begun.set()
            return super().__getitem__(i)

    class Waits(Tiny):
        def encode(self, x):
            if self.batches == 1:
                assert begun.wait(20), "the next batch is not read while this one is encoded"
            return super().encode(x)

    write_cache(tmp_path / "c", Watched(), Waits(), batch_size=4, shard_size=8, progress=False)


def test_memory_is_bounded_by_the_batch(tmp_path):
    clips = Counted(200)
    write_cache(tmp_path / "c", clips, Tiny(), batch_size=4, shard_size=80, progress=False)
    gc.collect()
    assert 4 < clips.most <= 3 * 4 + 2, (
        f"{clips.most} clips were in memory: three batches, and the two that the plan looks at"
    )


def test_progress_counts_only_what_is_done_now(tmp_path, monkeypatch):
    bars = []

    class Bar(lc.tqdm):
        def __init__(self, *a, **k):
            super().__init__(*a, **k, file=open(os.devnull, "w"))
            bars.append(self)

    with pytest.raises(Stop):
        write_cache(tmp_path / "c", Stopping(9), Tiny(), batch_size=4, shard_size=8, progress=False)
    monkeypatch.setattr(lc, "tqdm", Bar)
    write(tmp_path / "c", progress=True)
    (bar,) = bars
    assert (bar.total, bar.n, bar.initial, bar.unit) == (20, 20, 8, " clips")
    assert re.search(r"20/20 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ clips/s\]", str(bar)), (
        f"speed and time left: {bar}"
    )
    torch.testing.assert_close(
        LatentCache(tmp_path / "c")[[3]]["latents"], write(tmp_path / "d")[[3]]["latents"]
    )
