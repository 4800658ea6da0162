"""How well the judge reads real clips of combinations that it was not trained on, and what training it costs.

    python benchmarks/judge.py scenes --autoencoder data/first-video/decoder --steps 250
    python benchmarks/judge.py digits --data ../shared/data/mnist/mnist.npz --autoencoder runs/digits/decoder --steps 800

Real clips and their reconstructions by the autoencoder, n of each; one row a call in judge.json. The digits of the
judged clips are the data's test split.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from machine import machine

from minisora.autoencoder import ImageVAE
from minisora.clips import SIMPLE_MOTIONS, DigitClips, SceneClips, load_digits, stack
from minisora.latent_cache import write_json
from minisora.metrics import judge_clips, reconstructions, train_judge

HERE = Path(__file__).parent


def clips_of(kind, data, split, n, seed):
    if kind == "scenes": return SceneClips(n, split, seed=seed, motions=SIMPLE_MOTIONS)
    images = load_digits(data, split="test" if split == "heldout" else "train")
    return DigitClips(*images, n, split=split, seed=seed, motions=SIMPLE_MOTIONS)


def measure(kind, data, autoencoder, steps, n, seed):
    "One row: cost of `train_judge` as the pipeline calls it, rendering included, and the judge's accuracies."
    ae = ImageVAE.from_pretrained(autoencoder)
    cpu = time.process_time()
    judge = train_judge(clips_of(kind, data, "all", 6200, seed + 2), steps=steps, autoencoder=ae, seed=seed)
    cpu = time.process_time() - cpu
    real = [c for c in clips_of(kind, data, "heldout", n, seed + 1)]
    x, wanted = stack(real)[0], [c.attributes for c in real]
    return dict(kind=kind, steps=steps, seed=seed, cpu_seconds=round(cpu, 1), real=judge_clips(judge, x, wanted),
                reconstructions=judge_clips(judge, reconstructions(x, ae), wanted))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("scenes", "digits"))
    parser.add_argument("--data", default="../shared/data/mnist/mnist.npz")
    parser.add_argument("--autoencoder", default=str(HERE.parent / "data/first-video/decoder"))
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--n", type=int, default=440)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(HERE / "judge.json"))
    a = parser.parse_args()
    torch.set_num_threads(1)
    row = measure(a.kind, a.data, a.autoencoder, a.steps, a.n, a.seed)
    out = Path(a.out)
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    same = ("kind", "steps", "seed")
    rows = [r for r in rows if any(r[k] != row[k] for k in same)] + [row]
    write_json(out, dict(machine=machine(), rows=sorted(rows, key=lambda r: [r[k] for k in same])))
    print(json.dumps(row))
