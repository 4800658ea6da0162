"""How well a run's judge reads real clips of combinations that it was not trained on, and what training it cost.

    cp -r data/first-video runs/judge && python benchmarks/judge.py runs/judge
    python benchmarks/judge.py runs/digits          # a folder of `make video DATA=mnist.npz OUT=runs/digits`
    python benchmarks/judge.py runs/first-video --ship      # … and its judge, in half precision, into data/judge

Real clips and their reconstructions by the run's autoencoder, n of each; one row a kind, steps and seed in judge.json.
The digits of the judged clips are the data's test split. A judge that the run lacks is trained; `cpu_seconds` is what
training it took, rendering included. `--ship` judges with the weights as they ship, prints the two sums that
`minisora.metrics.JUDGE` must name, and writes the card.
"""

import argparse
import json
from pathlib import Path

import torch
from machine import machine

from minisora.clips import stack
from minisora.latent_cache import file_hash, write_json
from minisora.metrics import Judge, judge_clips
from minisora.pipeline import Run

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "judge"
CARD = """---
license: apache-2.0
library_name: minisora
---
# MiniSora's judge

Reads object, colour and motion off a clip of the procedural scenes that the library renders; its {features} features make a Fréchet
distance that is the same number everywhere, called `Fréchet distance, minisora-judge`. {weights:,} weights, in half precision.

It is the judge of the first video: a small convolutional network trained from zero by `make video`, {steps} steps in {seconds:.0f}
CPU-seconds, on real clips of every combination of six objects, six colours and six motions, 16 frames of 64×64 pixels, a third of
each batch as the autoencoder of `data/first-video` hands them back, all with a little noise. Written by
`python benchmarks/judge.py runs/first-video --ship`, where `runs/first-video` is a run of `make video`.

| on {n} clips it was not trained on | all three right | object | colour | motion |
|---|---|---|---|---|
| real | {real} |
| reconstructions | {reconstructions} |

It knows these scenes only. The distance tells models of such scenes apart; of other clips it says little.

```python
from minisora.metrics import frechet_distance, shipped_judge_network
network = shipped_judge_network()              # or: minisora measure --networks minisora-judge
frechet_distance(network(real), network(made)) # clips (N, 3, T, H, W), uint8 or in [-1, 1]
```

sha256, checked on loading:

{sums}
"""


def measure(run, n):
    "One row: the judge's accuracies on `n` real held-out clips and on their reconstructions, and its cost."
    judge, r = run.judge, run.recipe
    cpu = json.loads((run.out / "times.json").read_text())["judge"]["cpu"]
    real = [c for c in run.clips("heldout", n, r.seed + 1)]
    x, wanted = stack(real)[0], [c.attributes for c in real]
    rec = torch.cat([run.reconstruct(k) for k in x.split(16)])
    return dict(
        kind=r.kind,
        steps=r.judge_steps,
        seed=r.seed,
        cpu_seconds=round(cpu, 1),
        real=judge_clips(judge, x, wanted),
        reconstructions=judge_clips(judge, rec, wanted),
        machine=machine(),
    )


def ship(judge, folder):
    "Config and weights, in half precision; the judge as it comes back from there."
    judge.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    return Judge.from_pretrained(folder)


def card(judge, row):
    "The model card, with what was measured."
    sums = {k: file_hash(SHIPPED / k) for k in ("config.json", "model.safetensors")}
    print("JUDGE =", sums)
    share = lambda s: " | ".join(
        f"{s[k]:.3f}" for k in ("all_right", "object_right", "colour_right", "motion_right")
    )
    return CARD.format(
        features=12 * judge.width,
        weights=sum(p.numel() for p in judge.parameters()),
        steps=row["steps"],
        seconds=row["cpu_seconds"],
        n=row["real"]["n"],
        real=share(row["real"]),
        reconstructions=share(row["reconstructions"]),
        sums="\n".join(f"    {v}  {k}" for k, v in sums.items()),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--n", type=int, default=440)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    parser.add_argument("--ship", action="store_true", help="the judge of scenes into data/judge")
    a = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(a.run)
    if a.ship:
        run.judge = ship(run.judge, SHIPPED)
    row, out, same = measure(run, a.n), Path(a.out), ("kind", "steps", "seed")
    if a.ship:
        (SHIPPED / "README.md").write_text(card(run.judge, row))
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    rows = [r for r in rows if any(r[k] != row[k] for k in same)] + [row]
    write_json(out, dict(rows=sorted(rows, key=lambda r: [r[k] for k in same])))
    print(json.dumps(row))
