"""How well a run's judge reads real clips of combinations that it was not trained on, and what training it cost.

    cp -r data/first-video runs/judge && python benchmarks/judge.py runs/judge
    python benchmarks/judge.py runs/digits          # a folder of `make video DATA=mnist.npz OUT=runs/digits`

Real clips and their reconstructions by the run's autoencoder, n of each; one row a kind, steps and seed in judge.json.
The digits of the judged clips are the data's test split. A judge that the run lacks is trained; `cpu_seconds` is what
training it took, rendering included.
"""

import argparse
import json
from pathlib import Path

import torch
from machine import machine

from minisora.clips import stack
from minisora.latent_cache import write_json
from minisora.metrics import judge_clips
from minisora.pipeline import Run


def measure(run, n):
    "One row: the judge's accuracies on `n` real held-out clips and on their reconstructions, and its cost."
    judge, r = run.judge, run.recipe
    cpu = json.loads((run.out / "times.json").read_text())["judge"]["cpu"]
    real = [c for c in run.clips("heldout", n, r.seed + 1)]
    x, wanted = stack(real)[0], [c.attributes for c in real]
    rec = torch.cat([run.reconstruct(k) for k in x.split(16)])
    return dict(kind=r.kind, steps=r.judge_steps, seed=r.seed, cpu_seconds=round(cpu, 1),
                real=judge_clips(judge, x, wanted), reconstructions=judge_clips(judge, rec, wanted), machine=machine())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--n", type=int, default=440)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    a = parser.parse_args()
    torch.set_num_threads(1)
    row, out, same = measure(Run(a.run), a.n), Path(a.out), ("kind", "steps", "seed")
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    rows = [r for r in rows if any(r[k] != row[k] for k in same)] + [row]
    write_json(out, dict(rows=sorted(rows, key=lambda r: [r[k] for k in same])))
    print(json.dumps(row))
