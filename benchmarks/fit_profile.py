"""Where the time of `fit` goes, and how long compiling keeps it waiting:
benchmarks/fit_profile.json.

    python benchmarks/fit_profile.py [--steps 150] [--no-compile] [--out FILE]

Model, objective and options are those of the first video (`RECIPES['scenes']`): width 144, depth 6,
64 tokens, batch 8; the latents come from a cache on disk, as in training. Functions of the loop are
wrapped in a clock that counts each moment once, for the innermost. All is CPU time of one thread,
so that other programs on the machine do not count; the first ten updates are left out. Logging is
in, and a checkpoint's time as for one in 1000 updates.

Compiling: a fresh process with an empty compiler cache, the CPU seconds (the compiler's included)
until the first update is done, and per update for the next twenty."""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from machine import machine, make_parser

from minisora.core.files import write_json
from minisora.core.protocols import Clip
from minisora.latent_cache import LatentCache, write_cache
from minisora.recipe import RECIPES
from minisora.temporal import VideoDiT
from minisora.train import _Trainer, fit
from minisora.training import batches, inputs
from minisora.training.ema import EMA

RECIPE = RECIPES["scenes"]
OPTIONS = dict(
    batch_size=RECIPE.batch_size,
    lr=RECIPE.lr,
    warmup=150,
    schedule="linear",
    weight_decay=0.01,
    betas=(0.9, 0.95),
    ema=RECIPE.ema,
    seed=RECIPE.seed,
    device="cpu",
    progress=False,
)
PARTS = ("forward", "backward", "optimiser")
UPDATE = (*PARTS, "norm and clipping", "moving average")
TIMED = [  # owner, attribute, the part that it counts to
    (type(RECIPE.objective()), "loss", "forward"),
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
]
COMPILE = {"eager": False, "blocks": "blocks", "whole": True}


class NoiseClips:
    "Clips whose frames are latents of noise already, and the encoder that leaves them so."

    spec = dict(made_by="noise")

    def __init__(self, n, shape):
        self.n = n
        self.shape = shape

    def __len__(self):
        return self.n

    def encode(self, x):
        return x, None

    def __getitem__(self, i):
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(i))
        return Clip(x, "", 8.0, f"{i}", dict(label=i % 20))


class Words:
    "In a vocabulary's place: any caption is the same four of twenty words."

    slots = 4

    def __len__(self):
        return 20

    def encode(self, caption):
        return torch.tensor([3, 7, 11, 19])


class Clock:
    "Counts CPU seconds by name; of nested calls the inner one counts."

    def __init__(self):
        self.seconds = defaultdict(float)
        self.open = ["rest"]
        self.at = time.process_time()

    def turn(self):
        "Count the time since the last turn for the innermost name."
        now = time.process_time()
        self.seconds[self.open[-1]] += now - self.at
        self.at = now

    def restart(self):
        "Forget what was counted so far."
        self.turn()
        self.seconds.clear()

    def timed(self, function, name):
        "`function`, counted as `name`."

        def call(*args, **options):
            self.turn()
            self.open.append(name)
            try:
                return function(*args, **options)
            finally:
                self.turn()
                self.open.pop()

        return call


def prepare(folder):
    "Model and latent cache of the first video's training."
    shape = (RECIPE.channels, RECIPE.frames, RECIPE.size // 8, RECIPE.size // 8)
    cache = folder / "latents"
    if not cache.exists():
        clips = NoiseClips(512, shape)
        write_cache(cache, clips, clips, progress=False)
    words = Words()
    model = VideoDiT(RECIPE.model_config(shape, words))
    return model, LatentCache(cache, vocabulary=words)


def run_timed(clock, model, data, steps, warm, out):
    "`fit` for warm + steps updates with its parts timed; afterwards all functions are as before."
    update = _Trainer.update

    def counted(trainer, batch):
        if trainer.step == warm:
            clock.restart()
        update(trainer, batch)

    with ExitStack() as stack:
        for owner, attribute, name in TIMED:
            function = clock.timed(getattr(owner, attribute), name)
            stack.enter_context(patch.object(owner, attribute, function))
        stack.enter_context(patch.object(_Trainer, "update", counted))
        fit(model, data, RECIPE.objective(), steps=steps + warm, out=out, **OPTIONS)
    clock.turn()


def profile(folder, steps, warm=10):
    "Share of the CPU time by part, and CPU milliseconds per update."
    torch.set_num_threads(1)
    model, data = prepare(folder)
    clock = Clock()
    run_timed(clock, model, data, steps, warm, folder / "run")
    seconds = clock.seconds
    seconds["checkpoint"] *= steps / 1000  # `save_every` of the recipe
    total = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return dict(
        updates=steps,
        milliseconds_an_update=round(1e3 * total / steps, 2),
        parameters=sum(p.numel() for p in model.parameters()),
        share={name: round(value / total, 5) for name, value in ordered},
        forward_backward_optimiser=round(sum(seconds[k] for k in PARTS) / total, 5),
        forward_backward_update=round(sum(seconds[k] for k in UPDATE) / total, 5),
    )


def cpu_seconds():
    "CPU seconds of this process and of its children so far."
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def startup(folder, how, updates=20):
    "In this process: CPU seconds to the first update, and milliseconds per update after it."
    torch.set_num_threads(1)
    model, data = prepare(Path(folder))
    objective = RECIPE.objective()
    at = [cpu_seconds()]
    update = _Trainer.update

    def counted(trainer, batch):
        update(trainer, batch)
        at.append(cpu_seconds())

    with patch.object(_Trainer, "update", counted):
        fit(model, data, objective, steps=updates + 2, compile=COMPILE[how], **OPTIONS)
    return dict(
        first_update_seconds=round(at[1] - at[0], 1),
        milliseconds_an_update=round(1e3 * (at[-1] - at[2]) / updates, 1),
    )


def startup_elsewhere(folder, how):
    "`startup` in a process of its own, with an empty compiler cache."
    env = os.environ | dict(
        TORCHINDUCTOR_CACHE_DIR=f"{folder}/{how}", TORCHINDUCTOR_COMPILE_THREADS="1"
    )
    command = [sys.executable, __file__, "--startup", folder, how]
    said = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return json.loads(said.splitlines()[-1])


def main():
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--steps", type=int, default=150, help="updates that are timed")
    parser.add_argument(
        "--no-compile", action="store_true", help="keep what the record says of compiling"
    )
    parser.add_argument("--startup", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.startup:
        print(json.dumps(startup(*args.startup)))
        return
    old = json.loads(args.out.read_text()) if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        found = profile(Path(folder), args.steps)
        for name, share in found["share"].items():
            print(f"{name:20} {100 * share:6.2f} %")
        for name in ("forward_backward_optimiser", "forward_backward_update"):
            print(f"{name}: {100 * found[name]:.2f} %")
        compiled = old.get("compile", {})
        for how in () if args.no_compile else COMPILE:
            compiled[how] = startup_elsewhere(folder, how)
            print(how, compiled[how])
    write_json(args.out, dict(machine=machine(), profile=found, compile=compiled))


if __name__ == "__main__":
    main()
