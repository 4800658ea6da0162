"""A training step under joint attention and under windows: time, memory, operations.

One model of the course's width at 5 × 16 × 16 tokens, with relative biases as in W.A.L.T and
without, and without them at 5 × 32 × 32, where the written-out attention of all with all would
store 5,120² logits for each head. Each layout runs in a process of its own, in turn, so that a
busy machine hits all alike; times are CPU seconds of one thread, the ratio is taken within a
round. Memory is the process's peak over what it held before the first step.

    python benchmarks/windows.py --rounds 3
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import machine, make_parser

from minisora.models.cost import training_flops
from minisora.models.layers import BlockConfig
from minisora.models.windows import Windows
from minisora.temporal import VideoDiT, VideoDiTConfig

LAYOUTS = dict(
    joint="joint",
    factorized="factorized",
    windows=Windows(((1, 0, 0), (0, 8, 8))),
    small_windows=Windows(((1, 8, 8), (0, 4, 4))),
)
GRIDS = {"5x16x16": ((5, 16, 16), 2), "5x32x32": ((5, 32, 32), 1)}


def config(grid, layout, bias):
    return VideoDiTConfig(
        size=GRIDS[grid][0],
        patch=(1, 1, 1),
        channels=8,
        width=144,
        heads=6,
        depth=4,
        layout=LAYOUTS[layout],
        relative_bias=bias,
        block=BlockConfig(qk_norm=True),
    )


def one(grid, layout, bias, steps):
    "Train `steps` steps here; prints median CPU seconds of a step and peak memory in MB."
    torch.set_num_threads(1)
    model = VideoDiT(config(grid, layout, bias))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    x = torch.randn(GRIDS[grid][1], 8, *GRIDS[grid][0])
    t = torch.rand(len(x))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(steps + 1):
        start = time.process_time()
        optimizer.zero_grad()
        (model(x, t) - x).square().mean().backward()
        optimizer.step()
        times.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps(dict(seconds=statistics.median(times[1:]), megabytes=peak / 1024)))


def spread(values, digits):
    return [round(f(values), digits) for f in (statistics.median, min, max)]


def table(grid, bias, rounds, steps):
    "One row for each layout, with ratios to joint attention: [median, least, most]."
    found = {name: [] for name in LAYOUTS}
    for _ in range(rounds):
        for name in LAYOUTS:
            command = [sys.executable, __file__, "--one", grid, name, str(int(bias)), str(steps)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[name].append(json.loads(out))
    rows = []
    for name, runs in found.items():
        pairs = list(zip(found["joint"], runs))
        rows.append(
            dict(
                grid=grid,
                layout=name,
                relative_bias=bias,
                seconds=spread([r["seconds"] for r in runs], 4),
                faster=spread([j["seconds"] / r["seconds"] for j, r in pairs], 2),
                memory=spread([r["megabytes"] / j["megabytes"] for j, r in pairs], 3),
                megabytes=spread([r["megabytes"] for r in runs], 0),
                gflops=round(training_flops(VideoDiT(config(grid, name, bias))) / 1e9, 1),
            )
        )
        print(rows[-1], flush=True)
    return rows


def main():
    if "--one" in sys.argv:
        grid, layout, bias, steps = sys.argv[2:]
        return one(grid, layout, bool(int(bias)), int(steps))
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for grid, bias in (("5x16x16", False), ("5x16x16", True), ("5x32x32", False)):
        rows += table(grid, bias, args.rounds, args.steps)
        batch = {grid: size for grid, (_, size) in GRIDS.items()}
        record = dict(machine=machine(), threads=1, batch=batch, rows=rows)
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
