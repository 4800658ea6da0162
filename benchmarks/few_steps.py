"""What fewer sampling steps cost in quality, for the model of data/first-video: benchmarks/few_steps.json.

    python benchmarks/few_steps.py [--steps 2 4 8 16 24] [--n 220]

Nothing else of the recipe's sampler changes: held-out captions, the same noise for every number of steps, the tuned decoder.
`network_rows` is what the solver asks of the network for a clip: a guided step asks for two rows, and `settle` for a few at the end.
The judge is that of data/judge, which also gives the Fréchet distance to real clips of the same captions."""

import argparse
import time
from pathlib import Path

import torch
from machine import machine

from minisora.clips import stack
from minisora.latent_cache import write_json
from minisora.metrics import (
    Judge,
    bootstrap_interval,
    frechet_distance,
    frechet_interval,
    jerk_px,
    judge_clips,
    shape_measures,
    shipped_judge_network,
)
from minisora.pipeline import Run
from minisora.sampling import grid

ROOT = Path(__file__).resolve().parents[1]


def rows_asked(recipe, steps):
    "Rows that a clip puts through the network: one a step, two where guidance is on, and those of `settle`."
    return (
        steps + sum(t <= recipe.guide_until for t in grid(steps, recipe.shift)[:-1]) + recipe.settle
    )


def row(run, judge, real, prompts, wanted, steps):
    "Measures of the clips that `steps` steps make of the prompts."
    start = time.process_time()
    clips = run.sample(prompts, seed=run.recipe.seed + 1, steps=steps)
    cpu, jerk, network = (
        time.process_time() - start,
        jerk_px(clips, per_clip=True),
        shipped_judge_network(ROOT / "data" / "judge"),
    )
    sets = network(real), network(clips)
    return dict(
        steps=steps,
        network_rows=rows_asked(run.recipe, steps),
        cpu_ms_a_clip=round(1000 * cpu / len(clips)),
        **judge_clips(judge, clips, wanted),
        **shape_measures(clips, [w["object"] for w in wanted]),
        jerk_px=jerk.median().item(),
        jerk_px_interval=bootstrap_interval(jerk, "median"),
        frechet=frechet_distance(*sets),
        frechet_interval=frechet_interval(*sets, rounds=30),
    )


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--run", default=str(ROOT / "data" / "first-video"))
    p.add_argument("--steps", nargs="+", type=int, default=[2, 4, 8, 16, 24])
    p.add_argument("--n", type=int, default=220)
    a = p.parse_args()
    torch.set_num_threads(1)
    run, judge = Run(a.run), Judge.from_pretrained(ROOT / "data" / "judge")
    held = [c for c in run.clips("heldout", a.n, run.recipe.seed + 1)]
    real, prompts = stack(held)
    wanted, rows = [c.attributes for c in held], []
    for steps in a.steps:
        rows.append(row(run, judge, real, prompts, wanted, steps))
        print({k: v for k, v in rows[-1].items() if "interval" not in k}, flush=True)
    about = dict(
        model="data/first-video",
        judge="data/judge",
        recipe_steps=run.recipe.sample_steps,
        settle=run.recipe.settle,
    )
    write_json(Path(__file__).with_suffix(".json"), dict(machine=machine(), **about, rows=rows))


if __name__ == "__main__":
    main()
