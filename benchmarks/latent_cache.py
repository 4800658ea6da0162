"""The latent cache against one .npy file per sample. Prints a table, writes
benchmarks/latent_cache.json.

    python benchmarks/latent_cache.py [--seconds 0.6] [--samples 8192] [--out FILE]

The other side is the dataset that DiT's feature extraction made popular and that many projects
copied: for each sample one .npy file of features and one of its label, `np.load` twice in
`__getitem__`, a `DataLoader`. Both sides hold the same latents, freshly written, read warm (the
files are in the page cache), in one process, one thread. Rates are per second of CPU time, so that
other programs on the machine count little. They do count, by emptying the processor's caches: so
the two sides take turns, some milliseconds each, and of each its fastest stretch counts. Writing is
also timed by the clock, twice for the files: as everybody does it, when much is still in memory at
the end, and with an fsync for each file, which is what the cache does for each shard and what a
power cut asks for. Beside it stands the least that writing a cache can cost: sha256 and write(2) of
the same bytes, and nothing else."""

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
from machine import machine, make_parser

from minisora.core.files import short_hash, write_json
from minisora.core.protocols import Clip
from minisora.latent_cache import LatentCache, write_cache
from minisora.latents.cache_format import FORMAT, VERSION, shard_header

SHAPES = {"image": (4, 1, 32, 32), "video": (4, 16, 32, 32)}  # C, T, h, w


class FilePerSample(torch.utils.data.Dataset):
    "One file of features and one label file per sample."

    def __init__(self, features, labels):
        self.features = features
        self.labels = labels
        self.feature_files = sorted(os.listdir(features))
        self.label_files = sorted(os.listdir(labels))

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
    """As `extract_features` does it: a batch of one, float32, one file for the features and one for
    the label."""
    for sub in ("features", "labels"):
        os.makedirs(f"{folder}/{sub}")
    for i, z in enumerate(latents):
        save(f"{folder}/features/{i}.npy", z[None].numpy(), fsync)
        save(f"{folder}/labels/{i}.npy", np.array([i % 1000]), fsync)
    return FilePerSample(f"{folder}/features", f"{folder}/labels")


class TinyClips:
    """Clips of one pixel that only say which latent they stand for, so that writing is timed and
    not encoding."""

    def __init__(self, n):
        self.n = n
        self.frames = torch.zeros(3, 1, 1, 1, dtype=torch.uint8)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return Clip(self.frames, "", 1.0, str(i), dict(label=i % 1000))


class Replay:
    "An 'autoencoder' that hands out ready latents in order."

    def __init__(self, latents):
        self.latents = latents
        self.at = -1
        self.spec = None
        self.logvar = torch.zeros(1).expand_as(latents)

    def encode(self, x):
        start = max(self.at, 0)
        self.at = 0 if self.at < 0 else start + len(x)  # the first call only asks for the shape
        rows = slice(start, start + len(x))
        return self.latents[rows], self.logvar[rows]


def stretch(batches, seconds):
    """Batches per second of CPU time, over at least `seconds` of it, after one to fill the
    processor's caches again."""
    next(batches)
    n = 0
    start = time.process_time()
    while (spent := time.process_time() - start) < seconds or not n:
        next(batches)
        n += 1
    return n / spent


def endless(loader):
    "Batch after batch, epoch after epoch."
    while True:
        yield from loader


def reading_rates(ways, batch, seconds, rounds=200):
    """Random batches per second of CPU time out of a DataLoader, for each dataset in `ways`: the
    fastest of `rounds` stretches, taken in turns. With a warm page cache and a core to oneself that
    is wall time."""
    best = dict.fromkeys(ways, 0)
    loaders = {}
    for name, data in ways.items():
        collate = LatentCache.collate if isinstance(data, LatentCache) else None
        loader = torch.utils.data.DataLoader(
            data, batch, shuffle=True, drop_last=True, collate_fn=collate
        )
        loaders[name] = endless(loader)
    for _ in range(rounds):
        for name, batches in loaders.items():
            best[name] = max(best[name], stretch(batches, seconds / rounds))
    return best


def folder_bytes(folder):
    "Bytes of the files, and what they take on disk (whole blocks)."
    found = [file.stat() for file in Path(folder).rglob("*") if file.is_file()]
    return sum(f.st_size for f in found), sum(f.st_blocks * 512 for f in found)


def best_write(write, folder, n):
    """Samples written per second of CPU time, and of wall time (with the disk's part), the best of
    three; what `write` returned last, and its folder."""
    cpu = 0
    wall = 0
    for i in range(3):
        last = f"{folder}{i}"
        cpu_start = time.process_time()
        wall_start = time.perf_counter()
        out = write(last)
        cpu = max(cpu, n / (time.process_time() - cpu_start))
        wall = max(wall, n / (time.perf_counter() - wall_start))
    return dict(write_cpu=cpu, write_wall=wall), out, last


def write_plainly(file, data, batch_bytes):
    "Bytes with their sha256 to a file, as little as can be done."
    digest = hashlib.sha256()
    with open(file, "wb", buffering=0) as f:
        for at in range(0, len(data), batch_bytes):
            part = memoryview(data)[at : at + batch_bytes]
            f.write(part)
            digest.update(part)
        os.fsync(f.fileno())


def least_write(folder, tmp, batch_bytes):
    """Samples per second of CPU time if all there were to do is sha256, write(2) and fsync of the
    tensors' files."""
    best = 0
    samples = len(LatentCache(folder, check="size"))
    shards = [file.read_bytes() for file in sorted(Path(folder).glob("*.safetensors"))]
    files = [f"{tmp}/least{k}" for k in range(len(shards))]
    for _ in range(3):
        start = time.process_time()
        for file, shard in zip(files, shards):
            write_plainly(file, shard, batch_bytes)
        best = max(best, samples / (time.process_time() - start))
        for file in files:
            os.remove(file)
    return best


def first_batch(kind, folder, batch):
    "Seconds from nothing to the first batch, in a new process (imports not counted)."
    command = [sys.executable, __file__, "--first", kind, str(folder), str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def time_first_batch(kind, folder, batch):
    "In this process: what `first_batch` asks for."
    start = time.perf_counter()
    if kind == "files":
        data = FilePerSample(f"{folder}/features", f"{folder}/labels")
    else:
        data = LatentCache(folder, check="size")
    collate = LatentCache.collate if kind == "cache" else None
    next(iter(torch.utils.data.DataLoader(data, int(batch), shuffle=True, collate_fn=collate)))
    return time.perf_counter() - start


def cache_writer(z, batch, dtype):
    "A function that writes latents as a cache into a folder."

    def write(folder):
        clips = TinyClips(len(z))
        return write_cache(folder, clips, Replay(z), batch_size=batch, dtype=dtype, progress=False)

    return write


def safe_files(z, folder, most=256):
    "Samples written per second, each file safe on disk when the next is begun."
    few = z[:most]
    start = time.perf_counter()
    write_file_per_sample(folder, few, fsync=True)
    return len(few) / (time.perf_counter() - start)


def compare(name, shape, n, batch, seconds, tmp):
    "One part of the table: the same latents, both ways."
    z = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
    ways = dict(
        files=lambda folder: write_file_per_sample(folder, z),
        cache=cache_writer(z, batch, "float16"),
        int8=cache_writer(z, batch, "int8"),
    )
    out = dict(shape=list(shape), samples=n, batch=batch)
    readers = {}
    for kind, write in ways.items():
        rates, data, folder = best_write(write, f"{tmp}/{name}-{kind}", n)
        size, disk = folder_bytes(folder)
        first = data[0][0][0] if kind == "files" else data.denormalize(data[[0]]["latents"])[0]
        assert torch.allclose(first, z[0], atol=2.5e-2 if kind == "int8" else 4e-3)
        readers[kind, "batches"] = data
        if kind == "files":
            rates["write_safe"] = safe_files(z, f"{tmp}/{name}-safe")
        else:
            readers[kind, "batches_raw"] = LatentCache(folder, check="size", raw=True)
            rates["write_safe"] = rates["write_wall"]
            rates["write_least_cpu"] = least_write(folder, tmp, size // n * batch)
        out[kind] = dict(**rates, bytes=size / n, disk=disk / n)
        if kind != "int8":
            out[kind]["first"] = first_batch(kind, folder, batch)
    for (kind, key), rate in reading_rates(readers, batch, seconds).items():
        out[kind][key] = rate
    return out


def hollow_plan(n, shape, size):
    "The plan of a cache of n latents in shards of `size`."
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
    return plan | dict(id=short_hash(plan))


def write_hollow_shard(folder, plan, k, rows):
    "Shard k of a plan: a head, a hole in the place of its tensors, and rows without captions."
    shape = plan["shape"]
    start = k * plan["shard_size"]
    samples = min(plan["shard_size"], plan["samples"] - start)
    head = shard_header(plan, start)
    shard = dict(
        file=f"latents-{k:05d}.safetensors",
        rows=f"latents-{k:05d}.jsonl",
        start=start,
        samples=samples,
        sha256="",
        rows_sha256="",
        sums=[[0.0] * shape[0], [1.0] * shape[0]],
        bytes=len(head) + samples * 2 * torch.Size(shape).numel(),
    )
    with open(folder / shard["file"], "wb") as f:
        f.write(head)
        f.truncate(shard["bytes"])
    row = '{"caption": "", "source": "", "fps": 1, "attributes": {}}\n'
    (folder / shard["rows"]).write_text(row * samples if rows else "")
    return shard


def sparse_cache(folder, n, shape, rows, size=8192):
    "A cache of n latents whose files are holes: nothing but heads and a manifest."
    folder = Path(folder)
    folder.mkdir()
    plan = hollow_plan(n, shape, size)
    shards = [write_hollow_shard(folder, plan, k, rows) for k in range(-(-n // size))]
    statistics = dict(
        all=dict(mean=0.0, std=1.0), channel=dict(mean=[0.0] * shape[0], std=[1.0] * shape[0])
    )
    manifest = dict(format=FORMAT, code="", **plan, statistics=statistics, shards=shards)
    write_json(folder / "manifest.json", manifest | dict(sha256=short_hash(manifest)))


OPEN = """
import resource
import sys
import time


def resident():
    return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 1e6


import torch

imported = resident()
from minisora.latent_cache import LatentCache

before = resident()
wall = time.perf_counter()
cpu = time.process_time()
cache = LatentCache(sys.argv[1], check='size')
cache[torch.randint(len(cache), (256,), generator=torch.Generator().manual_seed(0))]
wall = time.perf_counter() - wall
cpu = time.process_time() - cpu
lines = open('/proc/self/smaps_rollup').read().splitlines()
own = sum(int(line.split()[1]) for line in lines if line.startswith('Anonymous:')) / 1e3
print(wall, cpu, imported, before, resident(), own)"""


def sparse_million(tmp, n=1_000_000, shape=(4, 1, 32, 32), rows=True):
    """Seconds to the first random batch of 256 out of a million, and resident memory, in a new
    process.

    Of the resident memory the part that no file backs (`own_mb`) is the process's own; the rest is
    code and data of libraries and the cache's pages, which the system shares between processes and
    may drop."""
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
    batches="random batches of {batch} as float32, normalized; a CPU second",
    batches_raw="random batches of {batch} as stored; a CPU second",
    write_cpu="samples written, a CPU second",
    write_least_cpu="the least: sha256 and write(2) of these bytes",
    write_wall="samples written, a second by the clock",
    write_safe="the same, each file of the left side safe on disk",
    bytes="bytes a sample, by length",
    disk="bytes a sample takes on disk",
    first="seconds to the first batch",
)


def shown(value):
    "A number with as many digits as it needs."
    digits = 3 if value < 1 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def table(results):
    "The results as Markdown."
    lines = [
        "| latents | | file per sample | cache | cache / files | int8 | int8 / files |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for part in (results[name] for name in SHAPES):
        for key, text in LINES.items():
            other = dict(write_least_cpu="write_cpu").get(key, "batches")
            files = part["files"].get(key, part["files"][other])
            rates = [part[kind].get(key) for kind in ("cache", "int8")]
            ours = " | ".join(f"{shown(r)} | {r / files:.3g}×" if r else "– | –" for r in rates)
            what = f"{tuple(part['shape'])} | {text.format(**part)}"
            lines.append(f"| {what} | {shown(files)} | {ours} |")
    return "\n".join([*lines, "", million_text(results["million"])])


def million_text(found):
    "What `sparse_million` measured, in words."
    return (
        f"A cache of {found['samples']:,} latents, opened in a new process: first random batch of "
        f"256 after {found['first_batch_s']:.2f} s ({found['first_batch_cpu_s']:.2f} s of CPU "
        f"time). Resident memory: {found['import_torch_rss_mb']:.0f} MB after `import torch`, "
        f"{found['import_minisora_rss_mb']:.0f} MB more after importing the cache, "
        f"{found['added_rss_mb']:.0f} MB more with the cache open and the batch read. Of these "
        f"{found['process_rss_mb']:.0f} MB {found['own_mb']:.0f} are the process's own; libraries' "
        "files and the cache's pages are the rest."
    )


def parse_arguments():
    parser = make_parser(__doc__, __file__)
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.6,
        help="CPU time for each reading rate, in 200 stretches",
    )
    parser.add_argument(
        "--samples", type=int, default=8192, help="image latents; an eighth as many video latents"
    )
    parser.add_argument("--tmp", help="folder for the files (default: the system's)")
    parser.add_argument("--first", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = parse_arguments()
    if args.first:
        print(time_first_batch(*args.first))
        return
    n = args.samples
    with tempfile.TemporaryDirectory(dir=args.tmp) as tmp:
        results = dict(
            image=compare("image", SHAPES["image"], n, 256, args.seconds, tmp),
            video=compare("video", SHAPES["video"], n // 8, 32, args.seconds, tmp),
            million=sparse_million(tmp),
            machine=machine(),
        )
    print(table(results))
    write_json(args.out, results)


if __name__ == "__main__":
    main()
