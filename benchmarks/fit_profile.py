"""Where the time of `fit` goes, and how long compiling keeps it waiting. Writes benchmarks/fit_profile.json.

    python benchmarks/fit_profile.py [--steps 150] [--no-compile] [--out benchmarks/fit_profile.json]

The model, objective and options are those of the first video (pipeline.RECIPES['scenes']): width 144, depth 6, 64 tokens,
batch 8; the latents come from a cache on disk, as in training. Functions of the loop are wrapped in a clock that counts
each moment once, for the innermost. All is CPU time of one thread, so that other programs on the machine do not count;
the first ten updates are left out. Logging is in, and a checkpoint's time as for one in 1000 updates.

Compiling: a fresh process with an empty compiler cache, the CPU seconds (the compiler's included) until the first update is
done, and for each of the next twenty."""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
from machine import machine

from minisora.latent_cache import LatentCache, write_cache
from minisora.models.conditions import WordCondition
from minisora.pipeline import RECIPES, Run
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import _Trainer, fit
from minisora.training import batches, inputs
from minisora.training.ema import EMA

RECIPE, PARTS = RECIPES["scenes"], ("forward", "backward", "optimiser")
UPDATE = ("norm and clipping", "moving average")  # what a bare optimiser step leaves out


class Latents:
    "Clips whose frames are latents already; captions of four words."

    spec = dict(made_by="noise")

    def __init__(self, n, shape):
        self.n, self.shape = n, shape

    def __len__(self):
        return self.n

    def encode(self, x):
        return x, None

    def __getitem__(self, i):
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(i))
        return SimpleNamespace(
            frames=x, caption="", fps=8.0, source=f"{i}", attributes=dict(label=i % 20)
        )


class Words:
    "Four of twenty words for a caption."

    def __init__(self):
        self.n = 0

    def encode(self, caption):
        return torch.tensor([3, 7, 11, 19])


class Clock:
    "Counts CPU seconds by name; of nested calls the inner one counts."

    def __init__(self):
        self.seconds, self.open, self.at = defaultdict(float), ["rest"], time.process_time()

    def turn(self):
        now = time.process_time()
        self.seconds[self.open[-1]] += now - self.at
        self.at = now

    def wrap(self, owner, attribute, name):
        real = getattr(owner, attribute)

        def timed(*args, **kwargs):
            self.turn()
            self.open.append(name)
            try:
                return real(*args, **kwargs)
            finally:
                self.turn()
                self.open.pop()

        setattr(owner, attribute, timed)


def parts(folder):
    "Model, data, objective and options of the first video's training."
    r = RECIPE
    shape = (r.channels, r.frames, r.size // 8, r.size // 8)
    cache = folder / "latents"
    if not cache.exists():
        write_cache(cache, Latents(512, shape), Latents(0, shape), progress=False)
    config = VideoDiTConfig(
        channels=r.channels,
        size=shape[1:],
        patch=r.patch,
        width=r.width,
        depth=r.depth,
        heads=r.heads,
        condition=WordCondition(20, slots=4, in_context=r.context, init_std=r.label_std),
        relative_bias=r.relative_bias,
    )
    options = dict(
        batch_size=r.batch_size,
        lr=r.lr,
        warmup=150,
        schedule="linear",
        weight_decay=0.01,
        betas=(0.9, 0.95),
        ema=r.ema,
        seed=r.seed,
        device="cpu",
        progress=False,
    )
    objective = Run.objective.fget(SimpleNamespace(recipe=r))
    return VideoDiT(config), LatentCache(cache, vocabulary=Words()), objective, options


def profile(folder, steps, warm=10):
    "Share of the CPU time by part, and CPU milliseconds an update."
    model, data, objective, options = parts(folder)
    clock = Clock()
    for owner, attribute, name in (
        (type(objective), "loss", "forward"),
        (torch.Tensor, "backward", "backward"),
        (torch.optim.AdamW, "step", "optimiser"),
        (torch.optim.AdamW, "zero_grad", "optimiser"),
        (EMA, "update", "moving average"),
        (torch.nn.utils, "get_total_norm", "norm and clipping"),
        (torch.nn.utils, "clip_grads_with_norm_", "norm and clipping"),
        (inputs, "indexed_noise", "noise"),
        (batches, "get_batch", "data"),
        (_Trainer, "save", "checkpoint"),
        (_Trainer, "record", "log"),
    ):
        clock.wrap(owner, attribute, name)
    update = _Trainer.update

    def counted(trainer, batch):
        if trainer.step == warm:
            clock.turn()
            clock.seconds.clear()
        update(trainer, batch)

    _Trainer.update = counted
    torch.set_num_threads(1)
    fit(model, data, objective, steps=steps + warm, out=folder / "run", **options)
    clock.turn()
    clock.seconds["checkpoint"] *= steps / 1000  # `save_every` of the recipe
    total = sum(clock.seconds.values())
    return dict(
        updates=steps,
        milliseconds_an_update=round(1e3 * total / steps, 2),
        parameters=sum(p.numel() for p in model.parameters()),
        share={
            k: round(v / total, 5) for k, v in sorted(clock.seconds.items(), key=lambda kv: -kv[1])
        },
        forward_backward_optimiser=round(sum(clock.seconds[k] for k in PARTS) / total, 5),
        forward_backward_update=round(sum(clock.seconds[k] for k in (*PARTS, *UPDATE)) / total, 5),
    )


def used():
    return sum(
        getattr(resource.getrusage(w), f)
        for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        for f in ("ru_utime", "ru_stime")
    )


def startup(folder, how, updates=20):
    "In this process: CPU seconds to the first update, and milliseconds an update after it."
    model, data, objective, options = parts(Path(folder))
    torch.set_num_threads(1)
    at = [used()]
    update = _Trainer.update

    def counted(trainer, batch):
        update(trainer, batch)
        at.append(used())

    _Trainer.update = counted
    fit(model, data, objective, steps=updates + 2, compile=how, **options)
    return dict(
        first_update_seconds=round(at[1] - at[0], 1),
        milliseconds_an_update=round(1e3 * (at[-1] - at[2]) / updates, 1),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--startup", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if args.startup:
        return print(
            json.dumps(
                startup(
                    args.startup[0],
                    {"eager": False, "blocks": "blocks", "whole": True}[args.startup[1]],
                )
            )
        )
    with tempfile.TemporaryDirectory() as folder:
        result = dict(machine=machine(), profile=profile(Path(folder), args.steps))
        for k, v in result["profile"]["share"].items():
            print(f"{k:20} {100 * v:6.2f} %")
        for k in ("forward_backward_optimiser", "forward_backward_update"):
            print(f"{k}: {100 * result['profile'][k]:.2f} %")
        old = json.loads(args.out.read_text()) if args.out.exists() else {}
        result["compile"] = old.get("compile", {})
        for how in () if args.no_compile else ("eager", "blocks", "whole"):
            env = os.environ | dict(
                TORCHINDUCTOR_CACHE_DIR=f"{folder}/{how}", TORCHINDUCTOR_COMPILE_THREADS="1"
            )
            command = [sys.executable, __file__, "--startup", folder, how]
            said = subprocess.run(
                command, env=env, check=True, capture_output=True, text=True
            ).stdout
            result["compile"][how] = json.loads(said.splitlines()[-1])
            print(how, result["compile"][how])
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
