"""What `estimate` says and what `fit` then needs, of three models on a processor. Writes benchmarks/estimate.json.

    python benchmarks/estimate.py [--steps 20] [--out benchmarks/estimate.json]

Said and done in one process, one after the other, on one thread, in CPU time, so that other programs on the machine hardly
count. Memory is the most bytes that PyTorch's allocator had given out at once during a `fit` of four updates, by the
profiler's record; time is that of an update, of `--steps` of them after the first ten, from the log."""

import argparse
import json
from itertools import accumulate
from pathlib import Path

import torch
from machine import machine

from minisora.diffusion import Diffusion
from minisora.dit import DiT, DiTConfig
from minisora.interpolants import Interpolant
from minisora.models.conditions import WordCondition
from minisora.models.layers import BlockConfig
from minisora.models.preconditioning import EDMOutput
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import estimate, fit

TOY = dict(
    size=(4, 8, 8),
    channels=1,
    patch=(2, 2, 2),
    width=48,
    depth=3,
    heads=4,
    condition=WordCondition(4),
    output=EDMOutput(),
    relative_bias=True,
)
FIRST = dict(
    size=(16, 8, 8),
    channels=8,
    patch=(4, 2, 2),
    width=144,
    depth=6,
    heads=6,
    condition=WordCondition(20, slots=3, in_context=True),
    block=BlockConfig(norm="rms", mlp="swiglu", qk_norm=True),
    relative_bias=True,
)
IMAGES = dict(size=(16, 16), patch=2, width=192, depth=4, heads=3, num_classes=10)
RUNS = {
    "lesson 08's dots, batch 32": (lambda: VideoDiT(VideoDiTConfig(**TOY)), Interpolant(), 32),
    "the first video's model, batch 8": (
        lambda: VideoDiT(VideoDiTConfig(**FIRST)),
        Interpolant(prediction="data"),
        8,
    ),
    "a DiT for images, DDPM, batch 12": (
        lambda: DiT(DiTConfig(**IMAGES)),
        Diffusion(variance="learned-range"),
        12,
    ),
}


def latents(model, n=64):
    "Noise and labels of the shapes that a model takes."
    c, g = model.config, torch.Generator().manual_seed(0)
    size = c.size if len(c.size) == 3 else (1, *c.size)
    slots = c.condition.slots if isinstance(c, VideoDiTConfig) else 1
    return torch.randn(n, c.channels, *size, generator=g), torch.randint(
        0, 4, (n, slots), generator=g
    )


def peak(job, model):
    "The most bytes at once while `job` runs, with the weights of `model`."
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        job()
    events = [
        (e.start_ns(), e.nbytes())
        for e in seen.profiler.kineto_results.events()
        if e.name() == "[memory]"
    ]
    return max(accumulate(n for _, n in sorted(events, key=lambda e: e[0]))) + sum(
        t.nbytes for t in model.state_dict().values()
    )


def one(name, make, objective, batch, steps):
    model = make()
    data = latents(model)
    options = dict(batch_size=batch, progress=False, device="cpu")
    said = estimate(model, data, objective, **options)
    used = peak(lambda: fit(model, data, objective, steps=4, **options), model)
    log = fit(make(), data, objective, steps=steps + 10, log_every=10, **options).log
    taken = (log[-1]["cpu_seconds"] - log[1]["cpu_seconds"]) / steps
    return dict(
        name=name,
        parameters=said.parameters,
        said_bytes=said.peak,
        used_bytes=used,
        peak_ratio=round(said.peak / used, 3),
        said_seconds=round(said.cpu_seconds, 5),
        taken_seconds=round(taken, 5),
        time_ratio=round(said.cpu_seconds / taken, 3),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for name, row in RUNS.items():
        runs.append(one(name, *row, args.steps))
        print(runs[-1], flush=True)
    args.out.write_text(
        json.dumps(dict(machine=machine(), updates=args.steps, runs=runs), indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
