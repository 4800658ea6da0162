"""How well a run's judge reads real clips of combinations that it was not trained on, and what
training it cost: benchmarks/judge.json.

    cp -r data/first-video runs/judge && python recipes/judge.py runs/judge
    python recipes/judge.py runs/digits          # of `make video DATA=mnist.npz OUT=runs/digits`
    python recipes/judge.py runs/first-video --ship     # and its judge into data/judge

Real clips and their reconstructions by the run's autoencoder, n of each; one row per kind, steps
and seed. The digits of the judged clips are the data's test split. A judge that the run lacks is
trained; `cpu_seconds` is what training it took, rendering included. `--ship` judges with the
weights as they ship, in half precision, prints the beginnings of the two sums that
`minisora.evaluation.features._JUDGE_SHA256` must hold, and writes the card."""

import json
from pathlib import Path

import torch
from common import RECORDS, SHIPPED, machine, make_parser, save_half

from minisora.core.files import read_json, sha256_file, write_json
from minisora.data.video import stack_clips
from minisora.evaluation.judge import AttributeClassifier, attribute_accuracy
from minisora.experiment import Experiment

CARD = """---
license: apache-2.0
library_name: minisora
---
# MiniSora's judge

Reads object, color and motion off a clip of the procedural scenes that the library renders; its
{features} features make a Fréchet distance that is the same number everywhere, called
`Fréchet distance, minisora-judge`. {weights:,} weights, in half precision.

It is the judge of the first video: a small convolutional network trained from zero by `make video`,
{steps} steps in {seconds:.0f} CPU-seconds, on real clips of every combination of six objects, six
colors and six motions, 16 frames of 64×64 pixels, a third of each batch as the autoencoder of
`data/first-video` hands them back, all with a little noise. Written by
`python recipes/judge.py runs/first-video --ship`, where `runs/first-video` is a run of
`make video`.

| on {n} clips it was not trained on | all three right | object | color | motion |
|---|---|---|---|---|
| real | {real} |
| reconstructions | {reconstructions} |

It knows these scenes only. The distance tells models of such scenes apart; of other clips it says
little.

```python
from minisora.evaluation.features import minisora_judge_features
from minisora.evaluation.frechet import frechet_distance
features = minisora_judge_features("data/judge")   # or: minisora evaluate --networks minisora-judge
frechet_distance(features(real), features(made))     # clips (N, 3, T, H, W), uint8 or in [-1, 1]
```

sha256, checked on loading:

{sums}
"""


def measure(run, n):
    "One row: the judge's accuracies on `n` real held-out clips and on reconstructions; its cost."
    recipe = run.recipe
    judge = run.judge
    cpu = run.times()["judge"]["cpu"]
    clips = list(run.clips("heldout", n, recipe.seed + 1))
    real = stack_clips(clips)[0]
    wanted = [clip.attributes for clip in clips]
    rebuilt = torch.cat([run.reconstruct(part) for part in real.split(16)])
    return dict(
        kind=recipe.kind,
        steps=recipe.judge_steps,
        seed=recipe.seed,
        cpu_seconds=round(cpu, 1),
        real=attribute_accuracy(judge, real, wanted),
        reconstructions=attribute_accuracy(judge, rebuilt, wanted),
        machine=machine(),
    )


def shares(found):
    "Accuracies as cells of a table; 'colour' is what judges have called the attribute since 0.1."
    names = ("all_right", "object_right", "colour_right", "motion_right")
    return " | ".join(f"{found[name]:.3f}" for name in names)


def card(judge, row, folder):
    "The model card, with what was measured."
    sums = {name: sha256_file(folder / name) for name in ("config.json", "model.safetensors")}
    print("_JUDGE_SHA256 =", {name: value[:16] for name, value in sums.items()})
    return CARD.format(
        features=12 * judge.width,
        weights=sum(p.numel() for p in judge.parameters()),
        steps=row["steps"],
        seconds=row["cpu_seconds"],
        n=row["real"]["n"],
        real=shares(row["real"]),
        reconstructions=shares(row["reconstructions"]),
        sums="\n".join(f"    {value}  {name}" for name, value in sums.items()),
    )


def add_row(file, row):
    "Write the row into the record, in the place of one of the same kind, steps and seed."
    same = ("kind", "steps", "seed")
    rows = read_json(file)["rows"] if file.exists() else []
    rows = [r for r in rows if any(r[k] != row[k] for k in same)] + [row]
    write_json(file, dict(rows=sorted(rows, key=lambda r: [r[k] for k in same])))


def parse_arguments():
    parser = make_parser(__doc__)
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--n", type=int, default=440, help="clips of each kind")
    parser.add_argument(
        "--out",
        type=Path,
        default=RECORDS / "judge.json",
        metavar="FILE",
        help="where the row is written, as JSON (default: benchmarks/judge.json)",
    )
    parser.add_argument("--ship", action="store_true", help="the judge of scenes into --folder")
    parser.add_argument(
        "--folder",
        type=Path,
        default=SHIPPED / "judge",
        help="what --ship writes (default: data/judge)",
    )
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(1)
    run = Experiment(args.run)
    if args.ship:
        save_half(run.judge, args.folder)
        run.judge = AttributeClassifier.from_pretrained(args.folder)
    row = measure(run, args.n)
    if args.ship:
        (args.folder / "README.md").write_text(card(run.judge, row, args.folder))
    add_row(args.out, row)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
