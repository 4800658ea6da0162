"""Kills, full disks, several processes; overlap of reading, encoding and writing; memory."""

import errno
import fcntl
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from helpers.latent_cache import (
    Clips,
    Counted,
    Stop,
    Stopping,
    Tiny,
    child,
    content,
    flip,
    write,
)

from minisora import latent_cache as lc
from minisora.latent_cache import LatentCache, verify_cache, write_cache
from minisora.latents import cache_writer
from minisora.latents.cache_plan import autoencoder_fingerprint
from minisora.latents.cache_writer import rank_and_world


# ---------------------------------------------------------------- once, and from where it stopped


def test_same_input_same_bytes(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"], "nothing else may stay behind"
    assert set(content(tmp_path / "a")) == {
        "manifest.json",
        *(f"latents-0000{k}.{s}" for k in range(3) for s in ("safetensors", "jsonl")),
    }


def test_a_finished_cache_is_reused(tmp_path):
    write(tmp_path / "c")
    before, ae = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()}, Tiny()
    write_cache(tmp_path / "c", Clips(), ae, batch_size=4, shard_size=8, progress=False)
    assert ae.batches == 1, "only the shape is asked for"
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()} == before


@pytest.mark.parametrize(
    "n, seed, options, field",
    [
        (20, 1, {}, "autoencoder"),
        (19, 0, {}, "samples"),
        (20, 0, dict(dtype="float32"), "dtype"),
        (20, 0, dict(moments=True), "tensors"),
        (20, 0, dict(batch_size=2), "batch_size"),
        (20, 0, dict(per_channel=True), "per_channel"),
        (20, 0, dict(limit=12), "samples"),
    ],
)
def test_another_plan_is_an_error_that_names_the_field(tmp_path, n, seed, options, field):
    write(tmp_path / "c")
    before = content(tmp_path / "c")
    options = dict(dict(batch_size=4, shard_size=8, progress=False), **options)
    with pytest.raises(ValueError, match=f"exists with {field}="):
        write_cache(tmp_path / "c", Clips(n), Tiny(seed), **options)
    assert content(tmp_path / "c") == before
    new = write_cache(tmp_path / "c", Clips(n), Tiny(seed), overwrite=True, **options)
    assert (
        not verify_cache(tmp_path / "c")
        and content(tmp_path / "c") != before
        and new.manifest["autoencoder"] == autoencoder_fingerprint(Tiny(seed))
    )
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("at", range(1, 19, 3))
@pytest.mark.parametrize("options", [{}, dict(moments=True)], ids=["mean", "moments"])
def test_resumes_at_the_batch(tmp_path, at, options):
    write(tmp_path / "whole", **options)
    clips, options = Stopping(at), dict(batch_size=4, shard_size=8, progress=False, **options)
    with pytest.raises(Stop):
        write_cache(tmp_path / "c", clips, Tiny(), **options)
    assert not (tmp_path / "c").exists() and (tmp_path / "c.part").exists()
    with pytest.raises(FileNotFoundError, match="in the making"):
        LatentCache(tmp_path / "c")
    ae = Tiny()
    write_cache(tmp_path / "c", clips, ae, **options)
    done = at // 4 * 4
    assert ae.batches - 1 <= (20 - done) // 4 + 1, "at most one batch may be encoded twice"
    assert (
        content(tmp_path / "c") == content(tmp_path / "whole")
        and not (tmp_path / "c.part").exists()
    )


def test_resume_with_another_autoencoder_is_refused(tmp_path):
    clips = Stopping(9)
    with pytest.raises(Stop):
        write_cache(tmp_path / "c", clips, Tiny(), batch_size=4, progress=False)
    with pytest.raises(ValueError, match=r"c\.part exists with autoencoder="):
        write_cache(tmp_path / "c", clips, Tiny(1), batch_size=4, progress=False)
    cache = write_cache(
        tmp_path / "c", clips, Tiny(1), batch_size=4, progress=False, overwrite=True
    )
    assert cache.manifest["autoencoder"] == autoencoder_fingerprint(Tiny(1)) and not verify_cache(
        tmp_path / "c"
    )


@pytest.mark.parametrize(
    "harm",
    [
        "torn journal line",
        "garbage in the journal",
        "data of the last batch lost",
        "a bit of the first batch",
        "rows lost",
        "journal lost",
        "tail of rubbish",
    ],
)
def test_a_damaged_part_is_encoded_again(tmp_path, harm):
    write(tmp_path / "whole")
    clips = Stopping(7)
    with pytest.raises(Stop):
        write_cache(tmp_path / "c", clips, Tiny(), batch_size=2, shard_size=8, progress=False)
    data, rows, journal = (
        tmp_path / f"c.part/latents-00000.{s}" for s in ("safetensors", "jsonl", "journal")
    )
    assert len(journal.read_text().splitlines()) == 3
    if harm == "torn journal line":
        os.truncate(journal, journal.stat().st_size - 5)
    if harm == "garbage in the journal":
        journal.write_bytes(b"\0" * 100 + b"\n")
    if harm == "data of the last batch lost":
        os.truncate(data, data.stat().st_size - 30)
    if harm == "a bit of the first batch":
        flip(data, -6 * 80)
    if harm == "rows lost":
        os.truncate(rows, 40)
    if harm == "journal lost":
        journal.unlink()
    if harm == "tail of rubbish":
        for f in (data, rows, journal):
            f.write_bytes(f.read_bytes() + b"\xff" * 999)
    write_cache(tmp_path / "c", clips, Tiny(), batch_size=2, shard_size=8, progress=False)
    fresh = write_cache(
        tmp_path / "fresh", Clips(), Tiny(), batch_size=2, shard_size=8, progress=False
    )
    assert content(tmp_path / "c") == content(tmp_path / "fresh") and not verify_cache(fresh.path)


def test_kill_9(tmp_path):
    """Killed again and again at moments of its own choosing, then finished: the bytes of an
    unbroken run."""
    write(tmp_path / "whole", n=120, shard_size=40)
    sizes, part = [], tmp_path / "c.part"
    for delay in (0.12, 0.31, 0.2):
        p = child(tmp_path / "c", slow=0.03)
        assert p.stdout.readline() == "go\n"
        while not list(part.glob("*.journal")) and p.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        p.send_signal(signal.SIGKILL)
        assert p.wait() == -signal.SIGKILL, (
            "the child must be killed before it is done, or this tests nothing"
        )
        p.stdout.close()
        assert not (tmp_path / "c").exists()
        sizes.append(sum(len(f.read_text().splitlines()) for f in part.glob("*.journal")))
    assert 0 < sizes[0] < sizes[-1] and sizes == sorted(sizes), (
        f"each run must go on from the last: {sizes} batches"
    )
    cache = write(tmp_path / "c", n=120, shard_size=40)
    assert content(tmp_path / "c") == content(tmp_path / "whole") and not verify_cache(cache.path)


def test_kill_9_while_overwriting_leaves_the_old_cache(tmp_path):
    old = write_cache(tmp_path / "c", Clips(60), Tiny(1), progress=False)
    p = child(tmp_path / "c", slow=0.03, overwrite=True)
    while not list((tmp_path / "c.part").glob("*.journal")) and p.poll() is None:
        time.sleep(0.005)
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -signal.SIGKILL
    p.stdout.close()
    assert LatentCache(tmp_path / "c").manifest == old.manifest


@pytest.mark.parametrize("kill_at", range(8))
def test_killed_while_publishing(tmp_path, monkeypatch, kill_at):
    """Stop before each rename or removal of the last act: what is at the path is the old cache or
    the new one."""
    old = write_cache(tmp_path / "c", Clips(), Tiny(1), progress=False)
    calls = []

    def stopping(f):
        def g(*a, **k):
            calls.append(f.__name__)
            if len(calls) > kill_at:
                raise Stop
            return f(*a, **k)

        return g

    with monkeypatch.context() as m:
        real = lc.publish

        def publish(*a):  # from here on, every change of the folder counts
            for where, name in (
                (os, "rename"),
                (os, "replace"),
                (shutil, "rmtree"),
                (Path, "unlink"),
            ):
                m.setattr(where, name, stopping(getattr(where, name)))
            return real(*a)

        m.setattr(lc, "publish", publish)
        with pytest.raises(Stop):
            write(tmp_path / "c", overwrite=True)
    assert len(calls) > kill_at
    found = LatentCache(tmp_path / "c")
    new = write(tmp_path / "new")
    assert found.manifest in (old.manifest, new.manifest)
    write(tmp_path / "c", overwrite=True)
    assert content(tmp_path / "c") == content(tmp_path / "new")


@pytest.mark.parametrize("name", ["plan.json", "manifest.json"])
def test_what_a_kill_left_half_written_is_not_published(tmp_path, name):
    write(tmp_path / "whole")
    with pytest.raises(Stop):
        write_cache(tmp_path / "c", Stopping(9), Tiny(), batch_size=4, shard_size=8, progress=False)
    (tmp_path / f"c.part/.{name}.12345.part").write_text("{")
    write(tmp_path / "c")
    assert content(tmp_path / "c") == content(tmp_path / "whole")


def test_two_writers(tmp_path):
    p = child(tmp_path / "c", slow=0.2)
    while not list((tmp_path / "c.part").glob("*.journal")) and p.poll() is None:
        time.sleep(0.005)
    time.sleep(0.05)
    try:
        with pytest.raises(OSError, match="another process is writing this cache"):
            write(tmp_path / "c", n=120, shard_size=40)
    finally:
        p.kill()
        p.wait()
        p.stdout.close()


# ---------------------------------------------------------------- full and read-only disks


@pytest.mark.parametrize("what", ["file", "folder"])
def test_something_else_in_the_way(tmp_path, what):
    path = tmp_path / "c"
    if what == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="exists and is not a latent cache"):
            write(path, overwrite=overwrite)
    assert (path if what == "file" else path / "thesis.txt").read_text() == "mine"


def test_an_empty_folder_is_welcome(tmp_path):
    (tmp_path / "c").mkdir()
    assert len(write(tmp_path / "c")) == 20


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write the cache: Not a directory") as e:
        write(tmp_path / "file" / "c")
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES], ids=["read-only", "forbidden"])
def test_a_read_only_folder(tmp_path, monkeypatch, error):
    def refuse(self, *a, **k):
        raise OSError(error, os.strerror(error), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=f"cannot write the cache: {os.strerror(error)}"):
        write(tmp_path / "c")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["data", "journal", "manifest"])
def test_a_full_disk(tmp_path, monkeypatch, where):
    """The disk fills up while a batch, a journal line or the manifest is written; later there is
    space again."""

    def full(*a, **k):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        if where == "manifest":
            real_text = Path.write_text

            def write_text(self, *a, **k):
                return full() if "manifest" in self.name else real_text(self, *a, **k)

            m.setattr(Path, "write_text", write_text)
        else:
            real = cache_writer.ShardWriter.append

            def append(self, *a):
                if self.start + self.done < 12:
                    return real(self, *a)
                getattr(self, where).flush()
                setattr(
                    self,
                    where,
                    type(
                        "Full", (), dict(seek=full, write=full, flush=full, close=lambda s: None)
                    )(),
                )
                return real(self, *a)

            m.setattr(cache_writer.ShardWriter, "append", append)
        with pytest.raises(OSError, match="cannot write the cache: No space left on device") as e:
            write(tmp_path / "c")
    assert (
        e.value.errno == errno.ENOSPC
        and len(str(e.value).splitlines()) == 1
        and str(tmp_path / "c.part") in str(e.value)
    )
    assert not (tmp_path / "c").exists()
    write(tmp_path / "c")
    write(tmp_path / "whole")
    assert content(tmp_path / "c") == content(tmp_path / "whole")


# ---------------------------------------------------------------- several processes


CHILD = """
import sys, torch
sys.path[:0] = [{tests!r}, {root!r}]
torch.set_num_threads(1)
from helpers.latent_cache import Clips, Tiny, write_cache
options = dict(batch_size=4, shard_size=8, progress=False)
print(len(write_cache({path!r}, Clips(60), Tiny(slow={slow}), **options)))
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
    opened, real = [], cache_writer.ShardWriter.__init__

    def init(self, part, plan, k):
        opened.append(k)
        real(self, part, plan, k)

    monkeypatch.setattr(cache_writer.ShardWriter, "__init__", init)
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
    assert content(tmp_path / "c") == whole(tmp_path) and not verify_cache(tmp_path / "c")


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
    """A shard that is locked and does not grow is an error after `patience`; as long as it grows it
    is waited for."""
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
            m.setattr(
                cache_writer, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep)
            )
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
    assert rank_and_world() == (3, 5) and rank_and_world(0, 1) == (0, 1)


# ---------------------------------------------------------------- one process: overlap, memory


def test_writing_overlaps_encoding(tmp_path, monkeypatch):
    """Batch 1 is not written before batch 2 is encoded: if one waited for the other this would time
    out."""
    encoded, real, order = threading.Event(), cache_writer.ShardWriter.append, []

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

    monkeypatch.setattr(cache_writer.ShardWriter, "append", append)
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
    real, calls = cache_writer.ShardWriter.append, []

    def append(self, *a):
        calls.append(a)
        if len(calls) == at + 1:
            raise OSError(28, "No space left on device")
        real(self, *a)

    monkeypatch.setattr(cache_writer.ShardWriter, "append", append)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "c", 12, shard_size=12)
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr(cache_writer.ShardWriter, "append", real)
    write(tmp_path / "c", 12, shard_size=12)
    assert content(tmp_path / "c") == content(write(tmp_path / "whole", 12, shard_size=12).path)


class Large(Tiny):
    """Latents so large, (2, 1, 256, 256), that a batch of them is rounded and summed up in several
    parts."""

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
    """Encoding batch 1 cannot end before reading of batch 2 has begun: without overlap this would
    time out."""
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


# ---------------------------------------------------------------- the progress bar


@pytest.fixture
def bars(monkeypatch):
    made = []

    class Bar(cache_writer.tqdm):
        def __init__(self, *a, **k):
            super().__init__(*a, **k, file=open(os.devnull, "w"))
            made.append(self)

    monkeypatch.setattr(cache_writer, "tqdm", Bar)
    return made


def test_progress_counts_only_what_is_done_now(tmp_path, monkeypatch):
    bars = []

    class Bar(cache_writer.tqdm):
        def __init__(self, *a, **k):
            super().__init__(*a, **k, file=open(os.devnull, "w"))
            bars.append(self)

    with pytest.raises(Stop):
        write_cache(tmp_path / "c", Stopping(9), Tiny(), batch_size=4, shard_size=8, progress=False)
    monkeypatch.setattr(cache_writer, "tqdm", Bar)
    write(tmp_path / "c", progress=True)
    (bar,) = bars
    assert (bar.total, bar.n, bar.initial, bar.unit) == (20, 20, 8, " clips")
    assert re.search(r"20/20 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ clips/s\]", str(bar)), (
        f"speed and time left: {bar}"
    )
    torch.testing.assert_close(
        LatentCache(tmp_path / "c")[[3]]["latents"], write(tmp_path / "d")[[3]]["latents"]
    )


def test_the_bar_of_rank_0_counts_its_own_share(tmp_path, bars, monkeypatch):
    finished, seen = cache_writer.read_shard_entry, []

    def elsewhere(part, k):
        "Rank 1 finishes its shard, the second, in the meantime."
        if k == 1 and not seen:
            seen.append((bars[0].n, bars[0].total))
            cache_writer.write_shard(
                part, json.loads((part / "plan.json").read_text()), 1, Clips(), Tiny()
            )
        return finished(part, k)

    monkeypatch.setattr(cache_writer, "read_shard_entry", elsewhere)
    write(tmp_path / "c", progress=True, rank=0, world_size=2)
    assert seen == [(12, 12)] and (bars[0].n, bars[0].total) == (12, 12), (
        "shards 0 and 2: 8 + 4 of 20"
    )
    assert "rank 0 of 2" in str(bars[0])


def test_the_bar_grows_with_what_rank_0_takes_over(tmp_path, bars):
    write(tmp_path / "c", progress=True, rank=0, world_size=2)  # rank 1 never comes
    assert (bars[0].n, bars[0].total) == (20, 20)


@pytest.mark.parametrize(
    "n, size, world_size, want", [(20, 8, 1, [20]), (20, 8, 2, [12, 8]), (20, 8, 4, [8, 8, 4, 0])]
)
def test_shares(n, size, world_size, want):
    assert [
        cache_writer.samples_of_rank(dict(samples=n, shard_size=size), r, world_size)
        for r in range(world_size)
    ] == want
