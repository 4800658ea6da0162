"""Faults that the lesson does not show: kills, damage, full disks, foreign files."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, benchmark
from safetensors import safe_open

from minisora import latent_cache as lc
from minisora.clips import Clip
from minisora.latent_cache import LatentCache, repair, verify, write_cache

FLOAT16 = 2e-3  # relative: half of float16's last place, and a little for the sums


class Clips:
    "`n` clips of noise (3, 2, 16, 16); clip i is a pure function of i."

    def __init__(self, n=20, size=16, odd=None):
        self.n, self.size, self.odd = n, size, odd

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        size = 8 if i == self.odd else self.size
        frames = torch.randint(
            256, (3, 2, size, size), generator=torch.Generator().manual_seed(i), dtype=torch.uint8
        )
        return Clip(
            frames, f"clip number {i % 7}", 8.0, f"noise:{i}", dict(digit=i % 7, name="naïve 图")
        )


class Counted(Clips):
    "Clips that know the most of them that were in memory at once."

    def __init__(self, *args):
        super().__init__(*args)
        self.alive, self.most = weakref.WeakSet(), 0

    def __getitem__(self, i):
        clip = super().__getitem__(i)
        self.alive.add(clip.frames)
        self.most = max(self.most, len(self.alive))
        return clip


class Tiny(torch.nn.Module):
    "An autoencoder of one matrix: 8×8 patches to 5 channels, and a log-variance of -2."

    def __init__(self, seed=0, slow=0.0):
        super().__init__()
        self.spec, self.slow, self.batches = dict(factors=[1, 8, 8], channels=5), slow, 0
        w = torch.randn(5, 3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        self.net = torch.nn.Conv3d(3, 5, (1, 8, 8), (1, 8, 8))
        with torch.no_grad():
            self.net.weight.copy_(w)
            self.net.bias.zero_()

    def encode(self, x):
        self.batches += 1
        if self.slow:
            time.sleep(self.slow)
        z = self.net(x)
        return z, torch.full_like(z, -2.0)


def write(path, n=20, **options):
    "A cache of 20 clips in three shards (8, 8, 4), batches of 4."
    return write_cache(
        path, Clips(n), Tiny(), **dict(dict(batch_size=4, shard_size=8, progress=False), **options)
    )


def content(path):
    "Every file of a folder, as bytes."
    return {p.name: p.read_bytes() for p in sorted(Path(path).iterdir())}


def exact(indices, n=20):
    "The means that the encoder gives for these clips, float32."
    with torch.no_grad():
        return torch.cat(
            [Tiny().encode(Clips(n)[i].frames[None].float() / 127.5 - 1)[0] for i in indices]
        )


# ---------------------------------------------------------------- what is written is what is read


@pytest.mark.parametrize(
    "dtype, tolerance",
    [("float32", 1e-5), ("float16", FLOAT16), ("bfloat16", 2e-2), ("int8", 0.5 / 127)],
)
@pytest.mark.parametrize("per_channel", [False, True])
def test_round_trip(tmp_path, dtype, tolerance, per_channel):
    cache = write(tmp_path / "c", dtype=dtype, per_channel=per_channel)
    every = list(range(20))
    z, want = cache[every]["latents"], exact(every)
    assert len(cache) == 20 and z.shape == (20, 5, 2, 2, 2) and z.dtype == torch.float32
    relative = (
        1e-5 if dtype == "int8" else tolerance
    )  # an int8's error is a share of the largest number
    torch.testing.assert_close(
        cache.denormalise(z), want, rtol=relative, atol=tolerance * want.abs().max().item()
    )
    torch.testing.assert_close(cache.normalise(cache.denormalise(z)), z, rtol=1e-4, atol=1e-4)
    axes = (0, 2, 3, 4) if per_channel else (0, 1, 2, 3, 4)
    torch.testing.assert_close(z.mean(axes), torch.zeros_like(z.mean(axes)), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        z.std(axes, correction=0), torch.ones_like(z.std(axes)), rtol=1e-3, atol=0
    )
    assert cache.mean.shape == ((5, 1, 1, 1) if per_channel else ())
    assert cache.captions == [Clips()[i].caption for i in every]
    assert cache.sources[13] == "noise:13" and cache.attributes[13] == dict(
        digit=6, name="naïve 图"
    )


@pytest.mark.parametrize(
    "index", [[3], [19, 0, 7, 8], [-1, 2], np.array([5, 5, 5]), torch.tensor([1, 15])]
)
def test_any_batch_has_the_same_samples(tmp_path, index):
    cache = write(tmp_path / "c")
    batch, ids = cache[index], [int(i) % 20 for i in index]
    assert batch["index"].tolist() == ids
    for z, i in zip(batch["latents"], ids):
        assert torch.equal(z, cache[i]["latents"])
    assert torch.equal(cache[2:11:3]["latents"], cache[[2, 5, 8]]["latents"])
    assert torch.equal(batch["latents"], cache.__getitems__(index)["latents"])


@pytest.mark.parametrize("i", [20, -21])
def test_index_outside(tmp_path, i):
    with pytest.raises(IndexError, match=f"sample {i} of a cache with 20"):
        write(tmp_path / "c")[i]


def test_others_can_read_the_shards(tmp_path):
    write(tmp_path / "c", moments=True)
    with safe_open(tmp_path / "c/latents-00001.safetensors", "pt") as f:
        assert set(f.keys()) == {"moments"} and f.metadata()["start"] == "8"
        mean, logvar = f.get_tensor("moments").chunk(2, 1)  # as diffusers orders them
        torch.testing.assert_close(mean.float(), exact(range(8, 16)), rtol=FLOAT16, atol=FLOAT16)
        assert torch.equal(logvar, torch.full((8, 5, 2, 2, 2), -2.0).half())


class Words:
    def encode(self, caption):
        return torch.tensor([int(caption.split()[-1]), 1])


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_data_loader(tmp_path, workers):
    write(tmp_path / "c")
    cache = LatentCache(tmp_path / "c", Words())
    cache[0]  # maps are open when the workers start
    loader = torch.utils.data.DataLoader(
        cache, 6, num_workers=workers, collate_fn=LatentCache.collate
    )
    seen = torch.cat([b["latents"] for b in loader])
    assert torch.equal(seen, cache[range(20)]["latents"])
    conditions = torch.cat([b["condition"] for b in loader])
    assert conditions.dtype == torch.long and conditions.tolist() == [[i % 7, 1] for i in range(20)]


def test_pickle(tmp_path):
    cache = write(tmp_path / "c")
    cache[range(20)]
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy[[4, 18]]["latents"], cache[[4, 18]]["latents"])


def test_moments(tmp_path):
    cache = write(tmp_path / "c", moments=True, dtype="float32")
    first, std = cache[range(20)]["latents"], np.exp(-1)
    assert torch.equal(cache[[17]]["latents"][0], first[17]), (
        "a sample must not depend on its batch"
    )
    cache.set_epoch(1)
    second = cache[range(20)]["latents"]
    assert not torch.equal(first, second)
    assert torch.equal(LatentCache(tmp_path / "c", seed=0)[range(20)]["latents"], first)
    assert not torch.equal(LatentCache(tmp_path / "c", seed=1)[range(20)]["latents"], first)
    mean = LatentCache(tmp_path / "c", sample=False)
    torch.testing.assert_close(
        mean.denormalise(mean[range(20)]["latents"]), exact(range(20)), rtol=1e-4, atol=1e-4
    )
    noise = torch.stack([cache.denormalise(z) for z in (first, second)]) - exact(range(20))
    assert abs(noise.std() - std) < 0.03 * std and abs(noise.mean()) < 0.03
    both = torch.corrcoef(noise.flatten(1))[0, 1]
    assert abs(both) < 0.1, "two epochs must draw independent samples"
    assert abs(first.std() - 1) < 0.02, "the statistics must count the posterior variance"


def test_workers_see_the_epoch(tmp_path):
    cache = write(tmp_path / "c", moments=True)
    loader = torch.utils.data.DataLoader(
        cache, 20, num_workers=1, collate_fn=LatentCache.collate, persistent_workers=True
    )
    first = next(iter(loader))["latents"]
    cache.set_epoch(5)
    fifth = next(iter(loader))["latents"]
    assert not torch.equal(first, fifth) and torch.equal(fifth, cache[range(20)]["latents"])


def test_stored_samples(tmp_path):
    a, b, c = (write(tmp_path / n, sample_seed=s) for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert a.manifest["tensors"] == ["sample"]
    assert torch.equal(a[range(20)]["latents"], b[range(20)]["latents"])
    assert not torch.equal(a[range(20)]["latents"], c[range(20)]["latents"])
    noise = a.denormalise(a[range(20)]["latents"]) - exact(range(20))
    assert abs(noise.std() - np.exp(-1)) < 0.03


def test_no_global_randomness(tmp_path):
    ae, state, numpy_state = Tiny(), torch.get_rng_state(), np.random.get_state()[1].copy()
    write_cache(tmp_path / "c", Clips(), ae, moments=True, progress=False)[range(20)]
    assert (
        torch.equal(state, torch.get_rng_state())
        and (numpy_state == np.random.get_state()[1]).all()
    )


# ---------------------------------------------------------------- writing: once, and from where it stopped


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
    with pytest.raises(ValueError, match=f"another {field}"):
        write_cache(tmp_path / "c", Clips(n), Tiny(seed), **options)
    assert content(tmp_path / "c") == before
    new = write_cache(tmp_path / "c", Clips(n), Tiny(seed), overwrite=True, **options)
    assert (
        not verify(tmp_path / "c")
        and content(tmp_path / "c") != before
        and new.manifest["autoencoder"] == lc.identity(Tiny(seed))
    )
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


class Stop(Exception):
    pass


class Stopping(Clips):
    "Clips that fail at number `at`, once."

    def __init__(self, at, n=20):
        super().__init__(n)
        self.at = at

    def __getitem__(self, i):
        if i == self.at:
            self.at = None
            raise Stop(i)
        return super().__getitem__(i)


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
    with pytest.raises(ValueError, match=r"c\.part was made with another autoencoder"):
        write_cache(tmp_path / "c", clips, Tiny(1), batch_size=4, progress=False)
    cache = write_cache(
        tmp_path / "c", clips, Tiny(1), batch_size=4, progress=False, overwrite=True
    )
    assert cache.manifest["autoencoder"] == lc.identity(Tiny(1)) and not verify(tmp_path / "c")


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
    assert content(tmp_path / "c") == content(tmp_path / "fresh") and not verify(fresh.path)


CHILD = """
import sys, torch
sys.path[:0] = [{tests!r}, {root!r}]
torch.set_num_threads(1)
from test_latent_cache import Clips, Tiny, write_cache
print('go', flush=True)
write_cache({path!r}, Clips(120), Tiny(slow={slow}), batch_size=4, shard_size=40, progress=False,
            overwrite={overwrite}, dtype={dtype!r})
"""


def child(path, slow, overwrite=False, dtype="float16"):
    code = CHILD.format(
        tests=str(ROOT / "tests"),
        root=str(ROOT),
        path=str(path),
        slow=slow,
        overwrite=overwrite,
        dtype=dtype,
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_kill_9(tmp_path):
    "Killed again and again at moments of its own choosing, then finished: the bytes of an unbroken run."
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
    assert content(tmp_path / "c") == content(tmp_path / "whole") and not verify(cache.path)


def test_kill_9_while_overwriting_leaves_the_old_cache(tmp_path):
    old = write_cache(tmp_path / "c", Clips(60), Tiny(1), progress=False)
    p = child(tmp_path / "c", slow=0.03, overwrite=True)
    while not list((tmp_path / "c.part").glob("*.journal")) and p.poll() is None:
        time.sleep(0.005)
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -signal.SIGKILL
    p.stdout.close()
    assert LatentCache(tmp_path / "c").manifest == old.manifest


@pytest.mark.parametrize("kill_at", range(6))
def test_killed_while_publishing(tmp_path, monkeypatch, kill_at):
    "Stop before each rename or removal of the last act: what is at the path is the old cache or the new one."
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
    assert len(calls) == kill_at + 1
    found = LatentCache(tmp_path / "c")
    new = write(tmp_path / "new")
    assert found.manifest in (old.manifest, new.manifest)
    write(tmp_path / "c", overwrite=True)
    assert content(tmp_path / "c") == content(tmp_path / "new")


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


# ---------------------------------------------------------------- damage


def flip(path, at, bit=1):
    "Flip one bit of a file."
    raw = bytearray(path.read_bytes())
    raw[at] ^= bit
    path.write_bytes(raw)


SHARD, ROWS = "latents-00001.safetensors", "latents-00001.jsonl"
FAULTS = {
    "truncated": (SHARD, lambda p: os.truncate(p, p.stat().st_size - 1), "bytes where"),
    "empty": (SHARD, lambda p: os.truncate(p, 0), "damaged"),
    "longer": (SHARD, lambda p: p.write_bytes(p.read_bytes() + b"\0"), "bytes where"),
    "a flipped bit": (SHARD, lambda p: flip(p, -5), "sha256"),
    "a flipped bit in its head": (SHARD, lambda p: flip(p, 30), "damaged|shard|version"),
    "missing": (SHARD, lambda p: p.unlink(), "missing"),
    "another shard of this cache": (
        SHARD,
        lambda p: shutil.copy(p.with_name("latents-00000.safetensors"), p),
        "another shard",
    ),
    "rows missing": (ROWS, lambda p: p.unlink(), "missing"),
    "a flipped bit in the rows": (ROWS, lambda p: flip(p, 20), "sha256"),
}


@pytest.mark.parametrize("name, harm, message", FAULTS.values(), ids=FAULTS)
def test_damage_is_an_error_that_names_the_file_and_repair_mends_it(tmp_path, name, harm, message):
    write(tmp_path / "c")
    before = content(tmp_path / "c")
    harm(tmp_path / "c" / name)
    assert content(tmp_path / "c") != before
    with pytest.raises(ValueError, match=f"{name} .*({message})") as e:
        LatentCache(tmp_path / "c")
    assert len(str(e.value).splitlines()) == 1
    assert list(verify(tmp_path / "c")) == [SHARD]
    assert repair(tmp_path / "c", Clips(), Tiny()) == [SHARD]
    assert content(tmp_path / "c") == before and [p.name for p in tmp_path.iterdir()] == ["c"]
    assert repair(tmp_path / "c", Clips(), Tiny()) == []


def test_sizes_alone_are_a_weaker_check(tmp_path):
    write(tmp_path / "c")
    flip(tmp_path / "c" / SHARD, -5)
    LatentCache(tmp_path / "c", check="size")
    os.truncate(
        tmp_path / "c" / SHARD, 2000 if (tmp_path / "c" / SHARD).stat().st_size > 2000 else 500
    )
    with pytest.raises(ValueError, match=SHARD):
        LatentCache(tmp_path / "c", check="size")
    with pytest.raises(ValueError, match="check must be True or 'size'"):
        LatentCache(tmp_path / "c", check="never")


def test_a_foreign_shard(tmp_path):
    write(tmp_path / "c")
    write_cache(tmp_path / "other", Clips(), Tiny(1), batch_size=4, shard_size=8, progress=False)
    shutil.copy(tmp_path / "other" / SHARD, tmp_path / "c" / SHARD)
    assert (tmp_path / "c" / SHARD).stat().st_size == (tmp_path / "other" / SHARD).stat().st_size
    for check in (True, "size"):
        with pytest.raises(ValueError, match=f"{SHARD} belongs to another cache"):
            LatentCache(tmp_path / "c", check=check)


def test_another_version_of_a_shard(tmp_path):
    write(tmp_path / "c")
    file = tmp_path / "c" / SHARD
    raw = file.read_bytes()
    assert raw.count(b'"version": "2"') == 1
    file.write_bytes(raw.replace(b'"version": "2"', b'"version": "9"'))
    for check in (True, "size"):
        with pytest.raises(ValueError, match=f"{SHARD} has format version 9; this code reads 2"):
            LatentCache(tmp_path / "c", check=check)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda m: m.update(version=3), "format version 3; this code reads 2"),
        (
            lambda m: m.update(version=1, tensors=["mean", "logvar"]),
            "format version 1; this code reads 2",
        ),
        (lambda m: m.update(format="else"), "no manifest of a latent cache"),
        (lambda m: m["statistics"]["all"].update(std=0.5), "changed after it was written"),
        (lambda m: m["shards"].pop(), "changed after it was written"),
        (lambda m: m.pop("sha256"), "changed after it was written"),
    ],
)
def test_manifest(tmp_path, edit, message):
    write(tmp_path / "c")
    file = tmp_path / "c/manifest.json"
    m = json.loads(file.read_text())
    edit(m)
    file.write_text(json.dumps(m))
    with pytest.raises(ValueError, match=f"manifest.json .*{message}"):
        LatentCache(tmp_path / "c")


@pytest.mark.parametrize(
    "harm",
    [lambda p: os.truncate(p, 100), lambda p: p.write_text("[]"), lambda p: p.write_text("")],
)
def test_a_broken_manifest(tmp_path, harm):
    write(tmp_path / "c")
    harm(tmp_path / "c/manifest.json")
    with pytest.raises(ValueError, match="manifest.json"):
        LatentCache(tmp_path / "c")
    with pytest.raises(ValueError, match="manifest.json"):
        write(tmp_path / "c")


def test_no_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished latent cache at .*nowhere"):
        LatentCache(tmp_path / "nowhere")


def test_another_autoencoder(tmp_path):
    write(tmp_path / "c")
    assert len(LatentCache(tmp_path / "c", autoencoder=Tiny())) == 20
    with pytest.raises(ValueError, match="another autoencoder"):
        LatentCache(tmp_path / "c", autoencoder=Tiny(1))
    other = Tiny()
    with torch.no_grad():
        other.net.bias[0] += 1e-7
    assert lc.identity(other) != lc.identity(Tiny()), (
        "the hash must see the smallest change of a weight"
    )


def test_repair_refuses_what_is_not_the_same(tmp_path):
    write(tmp_path / "c")
    flip(tmp_path / "c" / SHARD, -5)
    before = content(tmp_path / "c")
    with pytest.raises(ValueError, match="another autoencoder"):
        repair(tmp_path / "c", Clips(), Tiny(1))

    class Others(Clips):
        def __getitem__(self, i):
            return super().__getitem__(i + 1)

    with pytest.raises(ValueError, match=f"{SHARD}: encoding again gave other bytes"):
        repair(tmp_path / "c", Others(), Tiny())
    assert content(tmp_path / "c") == before and [p.name for p in tmp_path.iterdir()] == ["c"]
    assert repair(tmp_path / "c", Others(), Tiny(), exact=False) == [SHARD]
    assert not verify(tmp_path / "c") and LatentCache(tmp_path / "c").sources[8] == "noise:9"


# ---------------------------------------------------------------- bad input, full and read-only disks


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(dtype="int4"), "dtype 'int4' is not one of float16"),
        (dict(limit=0), "no clips to encode"),
        (dict(batch_size=0), "batch_size"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "c", **options)
    assert not list(tmp_path.iterdir())


def test_clips_of_two_sizes(tmp_path):
    with pytest.raises(
        ValueError, match=r"clip 13 \(noise:13\): frames are torch.uint8 \(3, 2, 8, 8\)"
    ):
        write_cache(tmp_path / "c", Clips(odd=13), Tiny(), batch_size=4, progress=False)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("scale", [1e6, float("nan")])
def test_latents_that_do_not_fit(tmp_path, scale):
    ae, real = Tiny(), Tiny()
    ae.encode = lambda x: [
        m * torch.where(x[:, :1, :1, :1, :1] == x5, scale, 1.0) for m in real.encode(x)
    ]
    x5 = (Clips()[5].frames.float() / 127.5 - 1)[0, 0, 0, 0]
    with pytest.raises(
        ValueError, match=r"clip 5 \(noise:5\): its latents are not finite in float16"
    ):
        write_cache(tmp_path / "c", Clips(), ae, batch_size=4, progress=False)
    assert not (tmp_path / "c").exists()


def test_attributes_that_json_cannot_hold(tmp_path):
    class Odd(Clips):
        def __getitem__(self, i):
            c = super().__getitem__(i)
            return Clip(
                c.frames,
                c.caption,
                c.fps,
                c.source,
                dict(a=np.float32(0.5), b=torch.tensor([1, 2]), c=object() if i == 3 else 0),
            )

    with pytest.raises(TypeError, match="a object .* cannot be stored"):
        write_cache(tmp_path / "c", Odd(), Tiny(), progress=False)
    cache = write_cache(tmp_path / "d", Odd(3), Tiny(), progress=False)
    assert cache.attributes[0] == dict(a=0.5, b=[1, 2], c=0)


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
    "The disk fills up while a batch, a journal line or the manifest is written; later there is space again."

    def full(*a, **k):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        if where == "manifest":
            m.setattr(
                lc,
                "write_json",
                lambda p, d, real=lc.write_json: full() if "manifest" in str(p) else real(p, d),
            )
        else:
            real = lc.ShardWriter.append

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

            m.setattr(lc.ShardWriter, "append", append)
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


def test_training_mode_is_given_back(tmp_path):
    ae = Tiny().train()
    write_cache(tmp_path / "c", Clips(), ae, progress=False)
    assert ae.training
    with pytest.raises(ValueError):
        write_cache(tmp_path / "d", Clips(odd=3), ae, progress=False)
    assert ae.training


def test_a_million_samples_open_at_once(tmp_path):
    "Opening takes no time or memory that grow with the latents: 8 GB of holes, in a new process."
    result = benchmark("latent_cache").sparse_million(tmp_path, rows=False)
    assert (
        result["samples"] == 1_000_000
        and result["added_rss_mb"] < 200
        and result["first_batch_cpu_s"] < 1
    )
