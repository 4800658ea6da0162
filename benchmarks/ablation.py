"""What each ingredient of the first video's recipe is worth: benchmarks/ablation.json.

    python benchmarks/ablation.py [--run runs/first-video] [--steps 1200] [--clips 110]
    python benchmarks/ablation.py --only "the plain recipe"

Autoencoder, latents and judge are those of a finished run; each row trains a model of its own for
the same number of steps from the same seed and is judged on the same held-out captions, decoded by
the untuned autoencoder. Rows that are in --work already are kept, so the script can be stopped and
called again; rows not yet made are named as missing. With the first and the last row it also draws
their clips: nbs/images/ablation.png."""

import math
import shutil
from pathlib import Path

import torch
from machine import machine, make_parser
from pictures import save_small

from minisora import viz
from minisora.core.files import read_json, write_json
from minisora.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]
PLAIN = dict(
    shift=1.0,
    time_std=1.0,
    prediction="velocity",
    relative_bias=False,
    in_context=False,
    init_std=0.02,
    per_channel=True,
    lr=1e-3,
    temporal_diff_weight=0.0,
    jerk_weight=0.0,
)
ROWS = {
    "ours": {},
    "ours, times not shifted to the noise": dict(shift=1.0),
    "ours, predicting the velocity": dict(prediction="velocity"),
    "ours, without relative bias": dict(relative_bias=False),
    "ours, words in adaLN only and small": dict(in_context=False, init_std=0.02),
    "ours, each latent channel whitened": dict(per_channel=True),
    "ours, no loss on how the error moves": dict(temporal_diff_weight=0.0, jerk_weight=0.0),
    "the plain recipe": PLAIN,
}


def train_and_judge(name, changes, source, folder, steps, n):
    "One row: a run in `folder`, whose stages that all rows share are linked from `source`."
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("autoencoder", "latents", "judge"):
        if not (folder / part).exists():
            (folder / part).symlink_to((source / part).resolve())
    shutil.copy(source / "captions.json", folder / "captions.json")
    run = Experiment(
        folder, steps=steps, eval_clips=n, num_inference_steps=20, decoder_steps=0, **changes
    )
    report = run.evaluate()
    numbers = {k: v for k, v in report.items() if not isinstance(v, (dict, list, tuple))}
    return dict(numbers, recipe=name, changes=changes, seed=run.recipe.seed)


def draw(ours, plain, file):
    "Clips of four prompts by both recipes, in turn."
    runs = Experiment(plain), Experiment(ours)
    prompts = runs[0].prompts(16)[::4]
    made = [run.sample(prompts, seed=3) for run in runs]
    clips = [clip for pair in zip(*made) for clip in pair]
    labels = [f"{prompt} ({which})" for prompt in prompts for which in ("plain", "ours")]
    save_small(viz.contact_sheet(torch.stack(clips), labels), file)


def parse_arguments():
    parser = make_parser(__doc__, __file__)
    parser.add_argument(
        "--run", type=Path, default=Path("runs/first-video"), help="the finished run"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/ablation"),
        help="where the rows' runs are written and kept (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=1200, help="training steps of each row")
    parser.add_argument("--clips", type=int, default=110, help="held-out captions of each row")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=list(ROWS), choices=ROWS, help="rows to make"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        default=ROOT / "nbs" / "images" / "ablation.png",
        help="where the picture is written (default: nbs/images/ablation.png)",
    )
    return parser.parse_args()


def main():
    args = parse_arguments()
    folders = {name: args.work / str(k) for k, name in enumerate(ROWS)}
    for name in args.only:
        file = folders[name].with_suffix(".json")
        if file.exists():
            continue
        row = train_and_judge(name, ROWS[name], args.run, folders[name], args.steps, args.clips)
        write_json(file, row)
        shown = ("all_right", "motion_right", "jerk_px", "area_flicker")
        print(name, {k: row[k] for k in shown}, flush=True)
    files = [folder.with_suffix(".json") for folder in folders.values()]
    rows = [read_json(file) for file in files if file.exists()]
    made = [row["recipe"] for row in rows]
    about = dict(machine=machine(), steps=args.steps, noise=2 * math.sqrt(0.25 / args.clips))
    missing = [name for name in ROWS if name not in made]
    write_json(args.out, dict(about, rows=rows, missing=missing))
    if len(rows) > 1:
        draw(folders[made[0]], folders[made[-1]], args.picture)


if __name__ == "__main__":
    main()
