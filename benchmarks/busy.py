"""What a training step costs when each core has other work too, for several settings of OpenMP.

python benchmarks/busy.py --out benchmarks/busy.json

Each setting runs in a process of its own, which measures the step of the first-video model by
turns: alone, and beside one busy process per core, started here. Beside them the step's fair share
of the machine is half, so it may take twice as long; `over_share` is how much longer than that it
takes. `before` is PyTorch as it comes: its threads spin while they wait, and so keep the cores from
the one thread that still has work. `now` is what importing minisora first gives.

Other work on the machine changes the wall times, `over_share` with them: then compare settings of
one run, and `cpu_over_work`, the CPU time of a step beside busy processes over that of one thread
without."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
SETTINGS = {
    "before": dict(first="torch"),
    "now": dict(first="minisora"),
    "now, spins a little": dict(first="minisora", GOMP_SPINCOUNT="1000"),
    "one thread": dict(first="torch", OMP_NUM_THREADS="1"),
}


def make_step():
    "A function that makes one update of the first-video model, on random latents."
    import torch

    from minisora.interpolants import Interpolant
    from minisora.models.conditions import WordCondition
    from minisora.models.layers import BlockConfig
    from minisora.temporal import VideoDiT, VideoDiTConfig

    config = VideoDiTConfig(
        size=(16, 8, 8),
        patch=(4, 2, 2),
        width=144,
        depth=6,
        heads=6,
        channels=8,
        relative_bias=True,
        condition=WordCondition(19, 3, True, 0.5),
        block=BlockConfig(norm="rms", mlp="swiglu", qk_norm=True),
    )
    model = VideoDiT(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    objective = Interpolant(prediction="data", shift=6.0)
    x, noise = torch.randn(2, 8, 8, 16, 8, 8)
    y = torch.randint(0, 19, (8, 3))
    t = torch.rand(8)

    def step():
        optimizer.zero_grad()
        objective.loss(model, x, y, noise, t)["loss"].mean().backward()
        optimizer.step()

    return step


def time_steps(step, n, seconds=20):
    "Wall and CPU milliseconds of `n` steps, each a list; of fewer where they take too long."
    wall = []
    cpu = []
    end = time.perf_counter() + seconds
    while len(wall) < n and (time.perf_counter() < end or not wall):
        began = time.perf_counter(), time.process_time()
        step()
        wall.append((time.perf_counter() - began[0]) * 1000)
        cpu.append((time.process_time() - began[1]) * 1000)
    return wall, cpu


def measure(rounds, steps):
    "The times alone and beside busy processes, by turns."
    step = make_step()
    time_steps(step, 3, 5)
    found = {name: [] for name in ("alone", "alone_cpu", "busy", "busy_cpu")}
    for _ in range(rounds):
        for kind in ("alone", "busy"):
            count = os.cpu_count() if kind == "busy" else 0
            others = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)
            ]
            try:
                time.sleep(0.2 if count else 0)
                wall, cpu = time_steps(step, steps)
            finally:
                for other in others:
                    other.kill()
                    other.wait()
            found[kind] += wall
            found[f"{kind}_cpu"] += cpu
    return found


def summary(found):
    "Median and range in ms, and how far above its fair share the step is."
    rows = {
        name: dict(
            median=round(statistics.median(v), 1), low=round(min(v), 1), high=round(max(v), 1)
        )
        for name, v in found.items()
    }
    rows["over_share"] = round(rows["busy"]["median"] / (2 * rows["alone"]["median"]), 2)
    return rows


def child(first, rounds, steps):
    sys.path.insert(0, str(ROOT))
    __import__(first)
    import torch

    found = measure(rounds, steps)
    print(json.dumps(dict(threads=torch.get_num_threads(), **summary(found))))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--out")
    p.add_argument("--child", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        return child(args.child, args.rounds, args.steps)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from machine import machine

    results = dict(machine=machine(), load_before=os.getloadavg()[0], settings={})
    for name, setting in SETTINGS.items():
        env = {k: v for k, v in os.environ.items() if k not in OURS}
        env.update({k: v for k, v in setting.items() if k != "first"})
        command = [sys.executable, __file__, "--child", setting["first"]]
        command += ["--rounds", str(args.rounds), "--steps", str(args.steps)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        results["settings"][name] = json.loads(done.stdout.splitlines()[-1])
        print(name, results["settings"][name], flush=True)
    settings = results["settings"]
    busy = settings["before"]["busy"]["median"] / settings["now"]["busy"]["median"]
    results["before_over_now"] = round(busy, 2)
    one = settings["one thread"]["alone_cpu"]["median"]  # the work itself, without waiting
    for found in settings.values():
        found["cpu_over_work"] = round(found["busy_cpu"]["median"] / one, 2)
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
