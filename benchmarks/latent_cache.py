"""The latent cache against one .npy file a sample. Prints a table, writes benchmarks/latent_cache.json.

    python benchmarks/latent_cache.py [--seconds 0.6] [--samples 8192] [--out benchmarks/latent_cache.json]

The other side is the dataset that DiT's feature extraction made popular and that many projects copied: for
each sample one .npy file of features and one of its label, `np.load` twice in `__getitem__`, a `DataLoader`.
Both sides hold the same latents, freshly written, read warm (the files are in the page cache), in one process, one
thread. Rates are per second of CPU time, so that other programs on the machine count little. They do count, by emptying
the processor's caches: so the two sides take turns, some milliseconds each, and of each its fastest stretch counts.
Writing is also timed by the clock, twice for the files: as everybody does it, when much is still in memory at the end,
and with an fsync for each file, which is what the cache does for each shard and what a power cut asks for.
Beside it stands the least that writing a cache can cost: sha256 and write(2) of the same bytes, and nothing else."""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine

from minisora.clips import Clip
from minisora.latent_cache import (
    FORMAT,
    VERSION,
    LatentCache,
    digest,
    shard_header,
    write_cache,
    write_json,
)

SHAPES = {"image": (4, 1, 32, 32), "video": (4, 16, 32, 32)}  # C, T, h, w


class FilePerSample(torch.utils.data.Dataset):
    "One file of features and one label file a sample."

    def __init__(self, features, labels):
        self.features, self.labels = features, labels
        self.feature_files, self.label_files = (sorted(os.listdir(d)) for d in (features, labels))

    def __len__(self):
        return len(self.feature_files)

    def __getitem__(self, i):
        return (
            torch.from_numpy(np.load(os.path.join(self.features, self.feature_files[i]))),
            torch.from_numpy(np.load(os.path.join(self.labels, self.label_files[i]))),
        )


def save(file, array, fsync):
    "`np.save`, and with `fsync` the disk has it when this returns."
    if not fsync:
        return np.save(file, array)
    with open(file, "wb") as f:
        np.save(f, array)
        f.flush()
        os.fsync(f.fileno())


def write_file_per_sample(folder, latents, fsync=False):
    "As `extract_features` does it: a batch of one, float32, one file for the features and one for the label."
    for sub in ("features", "labels"):
        os.makedirs(f"{folder}/{sub}")
    for i, z in enumerate(latents):
        save(f"{folder}/features/{i}.npy", z[None].numpy(), fsync)
        save(f"{folder}/labels/{i}.npy", np.array([i % 1000]), fsync)
    return FilePerSample(f"{folder}/features", f"{folder}/labels")


class TinyClips:
    "Clips of one pixel that only say which latent they stand for, so that writing is timed and not encoding."

    def __init__(self, n):
        self.n, self.frames = n, torch.zeros(3, 1, 1, 1, dtype=torch.uint8)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return Clip(self.frames, "", 1.0, str(i), dict(label=i % 1000))


class Replay:
    "An 'autoencoder' that hands out ready latents in order."

    def __init__(self, latents):
        self.latents, self.at, self.spec = latents, -1, None
        self.logvar = torch.zeros(1).expand_as(latents)

    def encode(self, x):
        start = max(self.at, 0)
        self.at = 0 if self.at < 0 else start + len(x)  # the first call only asks for the shape
        return tuple(m[start : start + len(x)] for m in (self.latents, self.logvar))


def stretch(batches, seconds):
    "Batches a second of CPU time, over at least `seconds` of it, after one to fill the processor's caches again."
    next(batches)
    n, t = 0, time.process_time()
    while (spent := time.process_time() - t) < seconds or not n:
        next(batches)
        n += 1
    return n / spent


def endless(loader):
    while True:
        yield from loader


def reading_rates(ways, batch, seconds, rounds=200):
    """Random batches a second of CPU time out of a DataLoader, for each dataset in `ways`: the fastest of `rounds`
    stretches, taken in turns. With a warm page cache and a core to oneself that is wall time."""
    best = {}
    for name, data in ways.items():
        collate = LatentCache.collate if isinstance(data, LatentCache) else None
        loader = torch.utils.data.DataLoader(
            data, batch, shuffle=True, drop_last=True, collate_fn=collate
        )
        best[name], ways[name] = 0, endless(loader)
    for _ in range(rounds):
        for name, batches in ways.items():
            best[name] = max(best[name], stretch(batches, seconds / rounds))
    return best


def folder_bytes(folder):
    "Bytes of the files, and what they take on disk (whole blocks)."
    s = [f.stat() for f in Path(folder).rglob("*") if f.is_file()]
    return sum(x.st_size for x in s), sum(x.st_blocks * 512 for x in s)


def best_write(write, tmp, n):
    "Samples written a second of CPU time, and of wall time (with the disk's part), the best of three."
    cpu = wall = 0
    for i in range(3):
        c, w = time.process_time(), time.perf_counter()
        out = write(f"{tmp}{i}")
        cpu, wall = (
            max(cpu, n / (time.process_time() - c)),
            max(wall, n / (time.perf_counter() - w)),
        )
    return dict(write_cpu=cpu, write_wall=wall), out, f"{tmp}{i}"


def least_write(folder, tmp, batch_bytes):
    "Samples a second of CPU time if all there were to do is sha256, write(2) and fsync of the tensors' files."
    best, samples = 0, len(LatentCache(folder, check="size"))
    shards = [f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))]
    for _ in range(3):
        t = time.process_time()
        for k, shard in enumerate(shards):
            h = hashlib.sha256()
            with open(f"{tmp}/least{k}", "wb", buffering=0) as f:
                for at in range(0, len(shard), batch_bytes):
                    part = memoryview(shard)[at : at + batch_bytes]
                    f.write(part)
                    h.update(part)
                os.fsync(f.fileno())
        best = max(best, samples / (time.process_time() - t))
        for k in range(len(shards)):
            os.remove(f"{tmp}/least{k}")
    return best


def first_batch(kind, folder, batch):
    "Seconds from nothing to the first batch, in a new process (imports not counted)."
    run = [sys.executable, __file__, "--first", kind, str(folder), str(batch)]
    return float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def time_first_batch(kind, folder, batch):
    t = time.perf_counter()
    data = (
        FilePerSample(f"{folder}/features", f"{folder}/labels")
        if kind == "files"
        else LatentCache(folder, check="size")
    )
    collate = LatentCache.collate if kind == "cache" else None
    next(iter(torch.utils.data.DataLoader(data, int(batch), shuffle=True, collate_fn=collate)))
    print(time.perf_counter() - t)


def compare(name, shape, n, batch, seconds, tmp):
    "One part of the table: the same latents, both ways."
    z = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
    to_cache = lambda dtype: (
        lambda d: write_cache(
            d, TinyClips(n), Replay(z), batch_size=batch, dtype=dtype, progress=False
        )
    )
    ways = dict(
        files=lambda d: write_file_per_sample(d, z),
        cache=to_cache("float16"),
        int8=to_cache("int8"),
    )
    out, readers = dict(shape=list(shape), samples=n, batch=batch), {}
    for kind, write in ways.items():
        rates, data, folder = best_write(write, f"{tmp}/{name}-{kind}", n)
        size, disk = folder_bytes(folder)
        read = data.denormalise(data[[0]]["latents"])[0] if kind != "files" else data[0][0][0]
        assert torch.allclose(read, z[0], atol=2.5e-2 if kind == "int8" else 4e-3)
        readers[kind, "batches"] = data
        if kind != "files":
            readers[kind, "batches_raw"] = LatentCache(folder, check="size", raw=True)
            rates["write_safe"] = rates["write_wall"]
            rates["write_least_cpu"] = least_write(folder, tmp, size // n * batch)
        else:
            few = min(n, 256)
            t = time.perf_counter()
            write_file_per_sample(f"{tmp}/{name}-safe", z[:few], fsync=True)
            rates["write_safe"] = few / (time.perf_counter() - t)
        out[kind] = dict(**rates, bytes=size / n, disk=disk / n)
        if kind != "int8":
            out[kind]["first"] = first_batch(kind, folder, batch)
    for (kind, key), rate in reading_rates(readers, batch, seconds).items():
        out[kind][key] = rate
    return out


def sparse_cache(folder, n, shape, rows):
    "A cache of n latents whose files are holes: nothing but heads and a manifest."
    size, folder = 8192, Path(folder)
    plan = dict(
        version=VERSION,
        samples=n,
        shape=list(shape),
        dtype="float16",
        tensors=["mean"],
        seed=None,
        frames=[3, 1, 256, 256],
        batch_size=16,
        shard_size=size,
        per_channel=False,
        autoencoder={},
        data="",
    )
    plan["id"], shards, row = (
        digest(plan),
        [],
        '{"caption": "", "source": "", "fps": 1, "attributes": {}}\n',
    )
    folder.mkdir()
    for k in range(-(-n // size)):
        head = shard_header(plan, k * size)
        s = dict(
            file=f"latents-{k:05d}.safetensors",
            rows=f"latents-{k:05d}.jsonl",
            start=k * size,
            samples=min(size, n - k * size),
            sha256="",
            rows_sha256="",
            sums=[[0.0] * shape[0], [1.0] * shape[0]],
        )
        s["bytes"] = len(head) + s["samples"] * 2 * torch.Size(shape).numel()
        with open(folder / s["file"], "wb") as f:
            f.write(head)
            f.truncate(s["bytes"])
        (folder / s["rows"]).write_text(row * s["samples"] if rows else "")
        shards.append(s)
    one = dict(
        all=dict(mean=0.0, std=1.0), channel=dict(mean=[0.0] * shape[0], std=[1.0] * shape[0])
    )
    m = dict(format=FORMAT, code="", **plan, statistics=one, shards=shards)
    write_json(folder / "manifest.json", m | dict(sha256=digest(m)))


OPEN = """
import time, resource, sys
rss = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 1e6
import torch
imported = rss()
from minisora.latent_cache import LatentCache
before, t, c = rss(), time.perf_counter(), time.process_time()
cache = LatentCache(sys.argv[1], check='size')
cache[torch.randint(len(cache), (256,), generator=torch.Generator().manual_seed(0))]
end = time.perf_counter() - t, time.process_time() - c
own = sum(int(line.split()[1]) for line in open('/proc/self/smaps_rollup') if line.startswith('Anonymous:')) / 1e3
print(*end, imported, before, rss(), own)"""


def sparse_million(tmp, n=1_000_000, shape=(4, 1, 32, 32), rows=True):
    """Seconds to the first random batch of 256 out of a million, and resident memory, in a new process.

    Of the resident memory the part that no file backs (`own_mb`) is the process's own; the rest is code and
    data of libraries and the cache's pages, which the system shares between processes and may drop."""
    sparse_cache(f"{tmp}/million", n, shape, rows)
    run = [sys.executable, "-c", OPEN, f"{tmp}/million"]
    said = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    wall, cpu, imported, before, after, own = map(float, said.split())
    return dict(
        samples=n,
        first_batch_s=wall,
        first_batch_cpu_s=cpu,
        import_torch_rss_mb=imported,
        import_minisora_rss_mb=before - imported,
        added_rss_mb=after - before,
        process_rss_mb=after,
        own_mb=own,
    )


LINES = dict(
    batches="random batches of {batch} as float32, normalised; a CPU second",
    batches_raw="random batches of {batch} as stored; a CPU second",
    write_cpu="samples written, a CPU second",
    write_least_cpu="the least: sha256 and write(2) of these bytes",
    write_wall="samples written, a second by the clock",
    write_safe="the same, each file of the left side safe on disk",
    bytes="bytes a sample, by length",
    disk="bytes a sample takes on disk",
    first="seconds to the first batch",
)


def table(results):
    "The results as Markdown."
    out = ["| latents | | file per sample | cache | cache / files | int8 | int8 / files |"]
    out += ["|---|---|---:|---:|---:|---:|---:|"]
    show = lambda v: f"{v:,.3f}" if v < 1 else f"{v:,.1f}" if v < 100 else f"{v:,.0f}"
    for r in (results[name] for name in SHAPES):
        for key, text in LINES.items():
            f = r["files"].get(
                key, r["files"][{"write_least_cpu": "write_cpu"}.get(key, "batches")]
            )
            rates = [r[k].get(key) for k in ("cache", "int8")]
            ours = " | ".join(f"{show(c)} | {c / f:.3g}×" if c else "– | –" for c in rates)
            out.append(f"| {tuple(r['shape'])} | {text.format(**r)} | {show(f)} | {ours} |")
    m = results["million"]
    return "\n".join(
        [
            *out,
            "",
            f"A cache of {m['samples']:,} latents, opened in a new process: first random batch of 256 after "
            f"{m['first_batch_s']:.2f} s ({m['first_batch_cpu_s']:.2f} s of CPU time). Resident memory: "
            f"{m['import_torch_rss_mb']:.0f} MB after `import torch`, {m['import_minisora_rss_mb']:.0f} MB more after "
            f"importing the cache, {m['added_rss_mb']:.0f} MB more with the cache open and the batch read. Of these "
            f"{m['process_rss_mb']:.0f} MB {m['own_mb']:.0f} are the process's own; libraries' files and the cache's "
            "pages are the rest.",
        ]
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument(
        "--seconds",
        type=float,
        default=0.6,
        help="CPU time for each reading rate, in 200 stretches",
    )
    p.add_argument(
        "--samples", type=int, default=8192, help="image latents; an eighth as many video latents"
    )
    p.add_argument("--out", default=Path(__file__).with_suffix(".json"))
    p.add_argument("--tmp", help="folder for the files (default: the system's)")
    p.add_argument("--first", nargs=3, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.first:
        return time_first_batch(*a.first)
    with tempfile.TemporaryDirectory(dir=a.tmp) as tmp:
        results = dict(
            image=compare("image", SHAPES["image"], a.samples, 256, a.seconds, tmp),
            video=compare("video", SHAPES["video"], a.samples // 8, 32, a.seconds, tmp),
            million=sparse_million(tmp),
            machine=machine(),
        )
    print(table(results))
    write_json(a.out, results)


if __name__ == "__main__":
    main()
