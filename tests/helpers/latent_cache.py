"""Clips of noise, an autoencoder of one matrix, small caches of them, and ways to harm them."""

import os
import shutil
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT

from minisora.clips import Clip
from minisora.latent_cache import write_cache

SHARD = "latents-00001.safetensors"
ROWS = "latents-00001.jsonl"
SMALL = dict(batch_size=4, shard_size=8, progress=False)


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


def flip(path, at, bit=1):
    "Flip one bit of a file."
    raw = bytearray(path.read_bytes())
    raw[at] ^= bit
    path.write_bytes(raw)


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


CHILD = """
import sys, torch
sys.path[:0] = [{tests!r}, {root!r}]
torch.set_num_threads(1)
from helpers.latent_cache import Clips, Tiny, write_cache
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


def npy_folder(folder, n=12, shape=(1, 4, 8, 8), name="imagenet256", dtype=np.float32):
    "As DiT's extract_features leaves them; file i is a pure function of i."
    for kind in ("features", "labels"):
        (folder / f"{name}_{kind}").mkdir(parents=True)
    for i in range(n):
        np.save(
            folder / f"{name}_features/{i}.npy",
            np.random.default_rng(i).normal(size=shape).astype(dtype),
        )
        np.save(folder / f"{name}_labels/{i}.npy", np.array([100 + i]))
    return folder
