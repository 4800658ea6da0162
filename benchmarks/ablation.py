"""What each ingredient of the first video's recipe is worth: benchmarks/ablation.json and nbs/images/ablation.png.

    python benchmarks/ablation.py [--run runs/first-video] [--steps 1200] [--clips 110] [--only NAME ...]

Autoencoder, latents and judge are those of a finished run; each row trains its own model for the same number of
steps from the same seed and is judged on the same held-out captions, decoded by the untuned autoencoder. Rows that are
there already are kept, so the script can be stopped and called again; rows not yet made are named as missing."""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from first_video import save_small
from machine import machine

from minisora import viz
from minisora.latent_cache import write_json
from minisora.pipeline import Run

ROOT = Path(__file__).resolve().parents[1]
PLAIN = dict(
    shift=1.0,
    time_std=1.0,
    prediction="velocity",
    relative_bias=False,
    context=False,
    label_std=0.02,
    per_channel=True,
    lr=1e-3,
    delta=0.0,
    steady=0.0,
)
ROWS = {
    "ours": {},
    "ours, times not shifted to the noise": dict(shift=1.0),
    "ours, predicting the velocity": dict(prediction="velocity"),
    "ours, without relative bias": dict(relative_bias=False),
    "ours, words in adaLN only and small": dict(context=False, label_std=0.02),
    "ours, each latent channel whitened": dict(per_channel=True),
    "ours, no loss on how the error moves": dict(delta=0.0, steady=0.0),
    "the plain recipe": PLAIN,
}


def row(name, changes, source, out, steps, n):
    "Train and judge one variant; the stages that all share are linked from `source`."
    out.mkdir(parents=True, exist_ok=True)
    for part in ("autoencoder", "latents", "judge"):
        if not (out / part).exists():
            (out / part).symlink_to((source / part).resolve())
    shutil.copy(source / "captions.json", out / "captions.json")
    run = Run(out, steps=steps, eval_clips=n, sample_steps=20, tune_steps=0, **changes)
    m = run.metrics()
    return dict(
        {k: v for k, v in m.items() if not isinstance(v, (dict, list, tuple))},
        recipe=name,
        changes=changes,
        seed=run.recipe.seed,
    )


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--run", default="runs/first-video")
    p.add_argument("--out", default="runs/ablation")
    p.add_argument("--steps", type=int, default=1200)
    p.add_argument("--clips", type=int, default=110)
    p.add_argument("--only", nargs="+", default=list(ROWS))
    args = p.parse_args()
    for name in args.only:
        file = Path(args.out) / f"{list(ROWS).index(name)}.json"
        if file.exists():
            continue
        result = row(name, ROWS[name], Path(args.run), file.with_suffix(""), args.steps, args.clips)
        write_json(file, result)
        print(
            name,
            {k: result[k] for k in ("all_right", "motion_right", "jerk_px", "area_flicker")},
            flush=True,
        )
    files = [f for k in range(len(ROWS)) if (f := Path(args.out) / f"{k}.json").exists()]
    rows = [json.loads(f.read_text()) for f in files]
    write_json(
        ROOT / "benchmarks" / "ablation.json",
        dict(
            machine=machine(),
            steps=args.steps,
            noise=2 * math.sqrt(0.25 / args.clips),
            rows=rows,
            missing=[name for name in ROWS if name not in [r["recipe"] for r in rows]],
        ),
    )
    if len(files) < 2:
        return
    ends = Run(files[-1].with_suffix("")), Run(files[0].with_suffix(""))
    prompts = ends[0].prompts(16)[::4]
    clips = [c for pair in zip(*(r.sample(prompts, seed=3) for r in ends)) for c in pair]
    labels = [f"{p} ({which})" for p in prompts for which in ("plain", "ours")]
    save_small(viz.contact_sheet(torch.stack(clips), labels), "ablation")


if __name__ == "__main__":
    main()
