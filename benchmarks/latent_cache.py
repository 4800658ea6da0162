"""The latent cache against one .npy file a sample, one memory map, and copying from memory. Prints
tables, writes benchmarks/latent_cache.json.

python benchmarks/latent_cache.py [--rounds 40] [--samples 8192] [--out
benchmarks/latent_cache.json]

One side is the dataset that DiT's feature extraction made popular and that many projects copied:
for each sample one .npy file of features and one of its label, `np.load` twice in `__getitem__`, a
`DataLoader`. All hold the same latents, freshly written, read warm (the files are in the page
cache), in one process, one thread, through a DataLoader each. *memory* is the least that a float32
batch of float16 or int8 numbers can cost: rows of an array in memory, copied into a batch and
converted, and neither normalized nor checked. *memmap* is that with one large file in the place of
the array.

Every figure is a median over rounds, with the 10th and the 90th percentile; the ways take turns
within a round, and a ratio is the median of the rounds' own ratios, so that what else the machine
does falls on both sides. Rates are per second of CPU time. Writing is also timed by the clock,
twice for the files: as everybody does it, when much is still in memory at the end, and with an
fsync for each file, which is what the cache does for each shard and what a power cut asks for.
Beside it stands the least that writing a cache can cost: sha256 and write(2) of the same bytes, and
nothing else."""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine

from minisora.core.files import short_hash, write_json
from minisora.data.video import Clip
from minisora.latent_cache import LatentCache, write_cache
from minisora.latents.cache_format import FORMAT, VERSION, shard_header

SHAPES = {"image": (4, 1, 32, 32), "video": (4, 16, 32, 32)}  # C, T, h, w


def spread(values):
    "Median and range of a list of measurements."
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return dict(
        median=float(median), p10=float(p10), p90=float(p90), best=max(values), rounds=len(values)
    )


def ratio(ours, theirs):
    "How many times `theirs` is `ours`, round by round."
    return spread([a / b for a, b in zip(ours, theirs)])


# ---------------------------------------------------------------- the other ways


class FilePerSample(torch.utils.data.Dataset):
    "One file of features and one label file a sample."

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


class Rows(torch.utils.data.Dataset):
    "Rows of an array, in memory or mapped, as a batch of float32."

    def __init__(self, array):
        self.array = array

    def __len__(self):
        return len(self.array)

    def __getitems__(self, indices):
        index = np.asarray(indices)
        batch = torch.from_numpy(np.take(self.array, index, 0)).float()
        return dict(latents=batch, index=torch.from_numpy(index))


def save(file, array, fsync):
    "`np.save`, and with `fsync` the disk has it when this returns."
    if not fsync:
        np.save(file, array)
        return
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


# ---------------------------------------------------------------- writing


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
        return tuple(m[start : start + len(x)] for m in (self.latents, self.logvar))


def least_write(folder, tmp, batch_bytes):
    """Samples a second of CPU time if all there were to do is sha256, write(2) and fsync of the
    tensors' files."""
    samples = len(LatentCache(folder, check="size"))
    shards = [f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))]
    t = time.process_time()
    for k, shard in enumerate(shards):
        h = hashlib.sha256()
        with open(f"{tmp}/least{k}", "wb", buffering=0) as f:
            for at in range(0, len(shard), batch_bytes):
                part = memoryview(shard)[at : at + batch_bytes]
                f.write(part)
                h.update(part)
            os.fsync(f.fileno())
    spent = time.process_time() - t
    for k in range(len(shards)):
        os.remove(f"{tmp}/least{k}")
    return samples / spent


def timed_write(write, folder, n):
    "(samples a second of CPU time, of wall time, what `write` returns)."
    cpu = time.process_time()
    wall = time.perf_counter()
    out = write(folder)
    return n / (time.process_time() - cpu), n / (time.perf_counter() - wall), out


def writing_rates(ways, z, tmp, name, repeats):
    """Rates of writing in turns: {way: {figure: [one a repeat]}}, and {way: (dataset, folder)} of
    the last one."""
    rates = {kind: dict(write_cpu=[], write_wall=[], write_safe=[]) for kind in ways}
    made = {}
    few = min(len(z), 256)
    for i in range(repeats):
        for kind, write in ways.items():
            folder = f"{tmp}/{name}-{kind}"
            shutil.rmtree(folder, ignore_errors=True)
            cpu, wall, data = timed_write(write, folder, len(z))
            rates[kind]["write_cpu"].append(cpu)
            rates[kind]["write_wall"].append(wall)
            made[kind] = (data, folder)
            if kind == "files":
                safe = f"{tmp}/{name}-safe"
                _, wall, _ = timed_write(
                    lambda d: write_file_per_sample(d, z[:few], fsync=True), safe, few
                )
                shutil.rmtree(safe)
            else:
                size = folder_bytes(folder)[0]
                least = rates[kind].setdefault("write_least_cpu", [])
                least.append(least_write(folder, tmp, max(1, size // len(z) * 32)))
            rates[kind]["write_safe"].append(wall)
    return rates, made


# ---------------------------------------------------------------- reading


def endless(loader):
    while True:
        yield from loader


def stretch(batches, seconds):
    """Batches a second of CPU time, over at least `seconds` of it, after one to fill the
    processor's caches again."""
    next(batches)
    n = 0
    t = time.process_time()
    while (spent := time.process_time() - t) < seconds or not n:
        next(batches)
        n += 1
    return n / spent


def reading_rates(ways, batch, seconds, rounds):
    "Random batches a second of CPU time out of a DataLoader, in turns: {way: [one a round]}."
    loaders = {}
    for name, data in ways.items():
        collate = None if isinstance(data, FilePerSample) else LatentCache.collate
        loader = torch.utils.data.DataLoader(
            data, batch, shuffle=True, drop_last=True, collate_fn=collate
        )
        loaders[name] = endless(loader)
    rates = {name: [] for name in ways}
    for _ in range(rounds):
        for name, batches in loaders.items():
            rates[name].append(stretch(batches, seconds))
    return rates


def opening_times(folder, repeats):
    "Seconds to open a cache: with every byte read, after that, and by sizes."
    notes = os.environ.get("MINISORA_CACHE")
    times = dict(open_first=[], open_again=[], open_size=[])
    with tempfile.TemporaryDirectory() as own:
        for i in range(repeats):
            os.environ["MINISORA_CACHE"] = f"{own}/{i}"
            for name, check in (("open_first", True), ("open_again", True), ("open_size", "size")):
                t = time.perf_counter()
                LatentCache(folder, check=check)
                times[name].append(time.perf_counter() - t)
    os.environ.pop("MINISORA_CACHE")
    if notes:
        os.environ["MINISORA_CACHE"] = notes
    return {name: spread(values) for name, values in times.items()}


def first_batch(kind, folder, batch):
    "Seconds from nothing to the first batch, in a new process (imports not counted)."
    run = [sys.executable, __file__, "--first", kind, str(folder), str(batch)]
    return float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def time_first_batch(kind, folder, batch):
    t = time.perf_counter()
    data = (
        FilePerSample(f"{folder}/features", f"{folder}/labels")
        if kind == "files"
        else LatentCache(folder)
    )
    collate = LatentCache.collate if kind == "cache" else None
    next(iter(torch.utils.data.DataLoader(data, int(batch), shuffle=True, collate_fn=collate)))
    print(time.perf_counter() - t)


def folder_bytes(folder):
    "Bytes of the files, and what they take on disk (whole blocks)."
    s = [f.stat() for f in Path(folder).rglob("*") if f.is_file()]
    return sum(x.st_size for x in s), sum(x.st_blocks * 512 for x in s)


# ---------------------------------------------------------------- all of it


def readers_of(made, z, tmp, name):
    "Every way of reading, {(what it is of, figure): dataset}."
    one_file = f"{tmp}/{name}.npy"
    np.save(one_file, z.half().numpy())
    readers = {
        ("files", "batches"): made["files"][0],
        ("memmap", "batches"): Rows(np.load(one_file, mmap_mode="r")),
        ("memory", "batches"): Rows(z.half().numpy()),
        ("memory", "batches_int8"): Rows(z.to(torch.int8).numpy()),
    }
    for kind in ("cache", "int8"):
        data, folder = made[kind]
        readers[kind, "batches"] = data
        readers[kind, "batches_raw"] = LatentCache(folder, check="size", raw=True)
    return readers


def compare(name, shape, n, batch, settings, tmp):
    "One part of the tables: the same latents, all ways."
    z = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))

    def to_cache(dtype):
        return lambda d: write_cache(
            d, TinyClips(n), Replay(z), batch_size=batch, dtype=dtype, progress=False
        )

    ways = dict(
        files=lambda d: write_file_per_sample(d, z),
        cache=to_cache("float16"),
        int8=to_cache("int8"),
    )
    rates, made = writing_rates(ways, z, tmp, name, settings.repeats)
    out = dict(shape=list(shape), samples=n, batch=batch, ratios={})
    for kind, (data, folder) in made.items():
        size, disk = folder_bytes(folder)
        out[kind] = dict(bytes=size / n, disk=disk / n)
        read = data[0][0][0] if kind == "files" else data.denormalize(data[[0]]["latents"])[0]
        assert torch.allclose(read, z[0], atol=2.5e-2 if kind == "int8" else 4e-3)
    out["cache"]["opening"] = opening_times(made["cache"][1], settings.repeats)
    for kind in ("files", "cache"):
        seconds = [first_batch(kind, made[kind][1], batch) for _ in range(settings.repeats)]
        out[kind]["first"] = spread(seconds)
    readers = readers_of(made, z, tmp, name)
    for (kind, key), values in reading_rates(
        readers, batch, settings.seconds, settings.rounds
    ).items():
        rates.setdefault(kind, {})[key] = values
    for kind, figures in rates.items():
        out.setdefault(kind, {}).update({key: spread(v) for key, v in figures.items()})
    out["ratios"] = ratios(rates)
    return out


def ratios(rates):
    "How many times as fast the cache is as each other way: {way: {figure: spread}}."
    out = {}
    for kind in ("cache", "int8"):
        own = rates[kind]
        out[kind] = {key: ratio(own[key], rates["files"][key]) for key in WRITTEN}
        out[kind]["batches"] = ratio(own["batches"], rates["files"]["batches"])
        out[kind]["batches_raw"] = ratio(own["batches_raw"], rates["files"]["batches"])
        out[kind]["write_least_cpu"] = ratio(own["write_cpu"], own["write_least_cpu"])
        out[kind]["memmap"] = ratio(own["batches"], rates["memmap"]["batches"])
        # the cost of a batch, as many times the least that it can cost
        least = "batches" if kind == "cache" else "batches_int8"
        out[kind]["cost_of_memory"] = ratio(rates["memory"][least], own["batches"])
    return out


WRITTEN = ("write_cpu", "write_wall", "write_safe")


# ---------------------------------------------------------------- a million


def sparse_cache(folder, n, shape, rows):
    "A cache of n latents whose files are holes: nothing but heads and a manifest."
    size = 8192
    folder = Path(folder)
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
    plan["id"] = short_hash(plan)
    shards = []
    row = '{"caption": "", "source": "", "fps": 1, "attributes": {}}\n'
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
    write_json(folder / "manifest.json", m | dict(sha256=short_hash(m)))


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
lines = open('/proc/self/smaps_rollup').read().splitlines()
own = sum(int(line.split()[1]) for line in lines if line.startswith('Anonymous:')) / 1e3
print(*end, imported, before, rss(), own)"""


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


# ---------------------------------------------------------------- the tables


LINES = dict(
    batches="random batches of {batch} as float32, normalized; a CPU second",
    batches_raw="random batches of {batch} as stored; a CPU second",
    write_cpu="samples written, a CPU second",
    write_wall="samples written, a second by the clock",
    write_safe="the same, each file of the left side safe on disk",
)


def show(v):
    return f"{v:,.4f}" if v < 0.1 else f"{v:,.2f}" if v < 20 else f"{v:,.0f}"


def ranged(s, sign=""):
    "A spread as text: median (10th to 90th percentile)."
    return f"{show(s['median'])}{sign} ({show(s['p10'])}–{show(s['p90'])})"


def comparison_rows(r):
    "The rows of one kind of latents: the cache beside one file a sample."
    for key, text in LINES.items():
        files = r["files"].get(key, r["files"]["batches"])
        ours = [
            f"{ranged(r[k][key])} | {ranged(r['ratios'][k][key], '×')}" for k in ("cache", "int8")
        ]
        yield f"| {tuple(r['shape'])} | {text.format(**r)} | {ranged(files)} | {' | '.join(ours)} |"
    for key, text in (("bytes", "bytes a sample, by length"), ("disk", "bytes a sample on disk")):
        files = r["files"][key]
        ours = [f"{show(r[k][key])} | {files / r[k][key]:.2f}×" for k in ("cache", "int8")]
        yield f"| | {text} | {show(files)} | {' | '.join(ours)} |"


def bound_rows(r):
    "What the cache costs beside the least that its work can cost."
    cost = r["ratios"]
    yield (
        f"| {tuple(r['shape'])} | float32 batch: copying and converting the same "
        f"bytes from memory | "
        f"{ranged(r['memory']['batches'])} | {ranged(cost['cache']['cost_of_memory'], '×')} | "
        f"{ranged(cost['int8']['cost_of_memory'], '×')} |"
    )
    least = r["cache"]["write_least_cpu"]
    yield (
        f"| | writing: sha256 and write(2) of the same bytes, samples a CPU second | "
        f"{ranged(least)} | "
        f"{1 / cost['cache']['write_least_cpu']['median']:.2f}× | "
        f"{1 / cost['int8']['write_least_cpu']['median']:.2f}× |"
    )
    yield (
        f"| | speed beside one memory-mapped .npy file | {ranged(r['memmap']['batches'])} | "
        f"{ranged(cost['cache']['memmap'], '×')} | {ranged(cost['int8']['memmap'], '×')} |"
    )
    opening = r["cache"]["opening"]
    size = r["samples"] * r["cache"]["bytes"] / 1e6
    yield (
        f"| | seconds to open {size:.0f} MB: every byte read once, then again, by sizes | "
        f"{ranged(opening['open_first'])} | {ranged(opening['open_again'])} | "
        f"{ranged(opening['open_size'])} |"
    )
    yield (
        f"| | seconds to the first batch in a new process: files, cache | "
        f"{ranged(r['files']['first'])} | {ranged(r['cache']['first'])} | |"
    )


def tables(results):
    "The results as Markdown."
    out = ["| latents | | file per sample | cache | cache / files | int8 | int8 / files |"]
    out += ["|---|---|---:|---:|---:|---:|---:|"]
    parts = [results[name] for name in SHAPES]
    out += [row for r in parts for row in comparison_rows(r)]
    out += ["", "| latents | the least, or beside | that | cost of the cache | cost of int8 |"]
    out += ["|---|---|---:|---:|---:|", *(row for r in parts for row in bound_rows(r))]
    m = results["million"]
    about = results["machine"]
    out += [
        "",
        f"Medians (10th to 90th percentile) on {about['cpu']}, {about['cores']} cores, one thread; "
        f"load {about['load']}.",
        "",
        f"A cache of {m['samples']:,} latents, opened in a new process: first random batch of 256 "
        "after "
        f"{m['first_batch_s']:.2f} s ({m['first_batch_cpu_s']:.2f} s of CPU time). "
        "Resident memory: "
        f"{m['import_torch_rss_mb']:.0f} MB after `import torch`, "
        f"{m['import_minisora_rss_mb']:.0f} MB more "
        f"after importing the cache, {m['added_rss_mb']:.0f} MB more with the cache open "
        "and the batch "
        f"read. Of these {m['process_rss_mb']:.0f} MB {m['own_mb']:.0f} are the process's own; "
        "libraries' files and the cache's pages are the rest.",
    ]
    return "\n".join(out)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=40, help="rounds of reading (%(default)s)")
    p.add_argument("--seconds", type=float, default=0.05, help="CPU time of a way in a round")
    p.add_argument("--repeats", type=int, default=7, help="of writing and opening (%(default)s)")
    p.add_argument(
        "--samples", type=int, default=8192, help="image latents; an eighth as many video latents"
    )
    p.add_argument("--out", default=Path(__file__).with_suffix(".json"))
    p.add_argument("--tmp", help="folder for the files (default: the system's)")
    p.add_argument("--first", nargs=3, help=argparse.SUPPRESS)
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.first:
        time_first_batch(*a.first)
        return
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory(dir=a.tmp) as tmp:
        results = dict(
            image=compare("image", SHAPES["image"], a.samples, 256, a, tmp),
            video=compare("video", SHAPES["video"], a.samples // 8, 32, a, tmp),
            million=sparse_million(tmp),
            machine=machine() | dict(load=load and round(load, 2)),
        )
    print(tables(results))
    write_json(a.out, results)


if __name__ == "__main__":
    main()
