"""Kill one of several processes at random moments, again and again: does the run go on, and with
the same weights?

python benchmarks/restarts.py --out benchmarks/restarts.json

A run of four processes under torchrun (two share the weights, two each clip) is killed `--kills`
times: one process, drawn at random, gets SIGKILL at a random moment. torchrun starts all of them
again, and `fit` resumes from its last checkpoint. In the end the weights are compared with those of
a run that nobody disturbed, bit for bit."""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from machine import machine

from minisora.core.files import write_json
from minisora.interpolants import Interpolant
from minisora.models.conditions import WordCondition
from minisora.parallel import Parallel
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import fit
from minisora.training.checkpoint import load_checkpoint

SIZES = {4: Parallel(shard=2, sequence=2, method="dsp"), 2: Parallel(sequence=2, method="dsp")}


class Clips(torch.utils.data.Dataset):
    "Random latents that take a moment to read, so that a run lasts."

    def __init__(self, seconds):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(32, 2, 4, 4, 4, generator=g)
        self.y = torch.randint(0, 5, (32, 1), generator=g)
        self.seconds = seconds

    def __len__(self):
        return len(self.x)

    def __getitems__(self, index):
        time.sleep(self.seconds)
        return dict(latents=self.x[index], condition=self.y[index], index=torch.tensor(index))


def kill_later(seed, kills):
    "In one process of this start, SIGKILL within the first second of training."
    start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if start >= kills:
        return
    draw = random.Random(f"{seed}/{start}")
    victim = draw.randrange(int(os.environ["WORLD_SIZE"]))
    if victim == int(os.environ["RANK"]):
        wait = draw.uniform(0.05, 1.0)
        threading.Timer(wait, os.kill, (os.getpid(), signal.SIGKILL)).start()


def worker(args):
    torch.set_num_threads(1)
    config = VideoDiTConfig(
        size=(4, 4, 4),
        channels=2,
        patch=(1, 2, 2),
        width=16,
        depth=2,
        heads=2,
        layout="factorized",
        condition=WordCondition(5),
    )
    kill_later(args.seed, args.kills)
    parallel = SIZES[int(os.environ["WORLD_SIZE"])]
    fit(
        VideoDiT(config),
        Clips(args.seconds),
        Interpolant(),
        steps=args.steps,
        out=args.worker,
        save_every=1,
        batch_size=4,
        lr=1e-2,
        warmup=2,
        device="cpu",
        progress=False,
        parallel=parallel,
    )


def run(args, out, kills):
    "One run under torchrun, in which that many are killed."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={args.processes}", f"--max-restarts={2 * kills}"]
    command += [__file__, "--worker", str(out), "--kills", str(kills)]
    command += [f"--steps={args.steps}", f"--seed={args.seed}", f"--seconds={args.seconds}"]
    # a store of its own for each start: in a shared one, addresses of the killed are found
    environment = dict(os.environ, OMP_NUM_THREADS="1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])


def measure(args):
    record = dict(machine=machine(), kills=args.kills, processes=args.processes, steps=args.steps)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        run(args, Path(folder, "alone"), 0)
        record["seconds_undisturbed"] = round(time.monotonic() - began, 1)
        began = time.monotonic()
        run(args, Path(folder, "killed"), args.kills)
        record["seconds_killed"] = round(time.monotonic() - began, 1)
        alone, killed = (load_checkpoint(Path(folder, name)) for name in ("alone", "killed"))
        assert alone.step == killed.step == args.steps
        record["bit_equal"] = all(
            torch.equal(tensor, getattr(killed, part)[name])
            for part in ("model", "ema", "optimizer")
            for name, tensor in getattr(alone, part).items()
        )
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=4, choices=tuple(SIZES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=0.05, help="to read a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    record = measure(args)
    print(record)
    if args.out:
        write_json(args.out, record)


if __name__ == "__main__":
    main()
