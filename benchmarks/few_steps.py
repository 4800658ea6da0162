"""What fewer sampling steps cost in quality, for the model that ships: benchmarks/few_steps.json.

    python benchmarks/few_steps.py [--steps 2 4 8 16 24] [--n 220]

Nothing else of the recipe's sampler changes: held-out captions, the same noise for every number of
steps, the tuned decoder. `network_rows` is what the solver asks of the network for one clip: a
guided step asks for two rows, and `renoise_average` for a few at the end. The judge is that of
data/judge, which also gives the Fréchet distance to real clips of the same captions."""

import time
from pathlib import Path

import torch
from machine import machine, make_parser

from minisora.core.files import write_json
from minisora.data.video import stack_clips
from minisora.evaluation.features import minisora_judge_features
from minisora.evaluation.frechet import frechet_distance, frechet_interval
from minisora.evaluation.intervals import bootstrap_interval
from minisora.evaluation.judge import AttributeClassifier, attribute_accuracy
from minisora.experiment import Experiment
from minisora.metrics import jerk_px, shape_measures
from minisora.sampling import time_grid

ROOT = Path(__file__).resolve().parents[1]
JUDGE = ROOT / "data" / "judge"


def rows_asked(recipe, steps):
    "Rows that one clip puts through the network: one per step, two where guided, and the end."
    times = time_grid(steps, recipe.shift)[:-1]
    guided = sum(t <= recipe.guidance_until for t in times)
    return steps + guided + recipe.renoise_times


def measure(run, judge, real, prompts, wanted, steps):
    "Measures of the clips that `steps` steps make of the prompts, as one row."
    start = time.process_time()
    clips = run.sample(prompts, seed=run.recipe.seed + 1, num_inference_steps=steps)
    cpu = time.process_time() - start
    jerk = jerk_px(clips, per_clip=True)
    features = minisora_judge_features(JUDGE)
    real_features = features(real)
    made_features = features(clips)
    return dict(
        steps=steps,
        network_rows=rows_asked(run.recipe, steps),
        cpu_ms_a_clip=round(1000 * cpu / len(clips)),
        **attribute_accuracy(judge, clips, wanted),
        **shape_measures(clips, [w["object"] for w in wanted]),
        jerk_px=jerk.median().item(),
        jerk_px_interval=bootstrap_interval(jerk, "median"),
        frechet=frechet_distance(real_features, made_features),
        frechet_interval=frechet_interval(real_features, made_features, rounds=30),
    )


def main():
    parser = make_parser(__doc__, __file__)
    parser.add_argument(
        "--run",
        default=str(ROOT / "data" / "first-video"),
        help="the folder of a finished run, only read (default: data/first-video)",
    )
    parser.add_argument(
        "--steps", nargs="+", type=int, default=[2, 4, 8, 16, 24], help="one row of the record each"
    )
    parser.add_argument("--n", type=int, default=220, help="held-out captions")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = Experiment(args.run)
    judge = AttributeClassifier.from_pretrained(JUDGE)
    held_out = list(run.clips("heldout", args.n, run.recipe.seed + 1))
    real, prompts = stack_clips(held_out)
    wanted = [clip.attributes for clip in held_out]
    rows = []
    for steps in args.steps:
        rows.append(measure(run, judge, real, prompts, wanted, steps))
        print({k: v for k, v in rows[-1].items() if "interval" not in k}, flush=True)
    about = dict(
        model="data/first-video",
        judge="data/judge",
        recipe_steps=run.recipe.num_inference_steps,
        settle=run.recipe.renoise_times,
    )
    write_json(args.out, dict(machine=machine(), **about, rows=rows))


if __name__ == "__main__":
    main()
