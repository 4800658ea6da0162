"""What the parts of W.A.L.T are worth on the course's scenes: benchmarks/walt.json.

    python benchmarks/walt.py [--work runs/walt] [--minutes 4.5] [--clips 216]
    python benchmarks/walt.py --only joint windows

Captioned scenes of all nine motions at 64 pixels. Autoencoder, latents and judge are made once;
each row trains a model of its own on these latents for the same CPU-minutes of one thread, not for
the same number of steps: the seconds of a step are measured first, for all rows in turn. All are
judged on the same held-out captions from the same noise. Rows that are in --work already are kept,
so the script can be stopped and called again; rows not yet made are named as missing."""

import math
import statistics
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import torch
from machine import machine, make_parser

from minisora.clips import MOTIONS
from minisora.core.files import read_json, write_json
from minisora.data.video import stack_clips, to_float, to_uint8
from minisora.experiment import Experiment
from minisora.metrics import area_flicker, jerk_px
from minisora.models.modulation import AdaLNLoRA
from minisora.models.windows import Windows
from minisora.pipeline import VideoPipeline
from minisora.run_report import judged, reconstruct
from minisora.temporal import VideoDiT
from minisora.train import fit, validation_loss
from minisora.walt import SelfConditionedInterpolant

MEASURES = ("all_right", "motion_right")
SHARED = dict(
    motions=MOTIONS, decoder_steps=0, renoise_times=0, judge_steps=400, num_inference_steps=20
)
JOINT = dict(layout="joint")
TURNS = dict(layout=Windows(((1, 0, 0), (0, 2, 2))))
ROWS = {
    "joint": JOINT,
    "windows": TURNS,
    "windows, self-conditioning 0.3": dict(TURNS, self_conditioning=0.3),
    "windows, self-conditioning 0.6": dict(TURNS, self_conditioning=0.6),
    "windows, self-conditioning 0.9": dict(TURNS, self_conditioning=0.9),
    "windows, AdaLN-LoRA 2": dict(TURNS, modulation=AdaLNLoRA(2)),
    "windows, AdaLN-LoRA 16": dict(TURNS, modulation=AdaLNLoRA(16)),
    "windows, AdaLN-LoRA 64": dict(TURNS, modulation=AdaLNLoRA(64)),
    "windows, whole time only small": dict(layout=Windows(((1, 2, 2), (0, 2, 2)))),
    "windows that never talk": dict(layout=Windows(((1, 2, 2),))),
    "joint, seed 1": dict(JOINT, seed=1),
    "windows, seed 1": dict(TURNS, seed=1),
    "joint, seed 2": dict(JOINT, seed=2),
    "windows, seed 2": dict(TURNS, seed=2),
}
SEEDS = {
    name: [k for k in ROWS if k == name or k.startswith(f"{name}, seed")]
    for name in ("joint", "windows")
}
TIMED = [name for name in ROWS if "seed" not in ROWS[name]]


def base_of(name):
    "The row that a row is compared with, or None."
    if ", seed" in name:
        return None
    return {"joint": None, "windows": "joint"}.get(name, "windows")


def model_and_objective(run, name):
    "The untrained model of a row, and what it learns."
    row = dict(ROWS[name])
    seed = row.pop("seed", run.recipe.seed)
    chance = row.pop("self_conditioning", None)
    config = run.recipe.model_config(run.cache.shape, run.vocabulary)
    objective = run.recipe.objective()
    if chance is not None:
        row["channels"] = 2 * config.channels
        fields = {k: v for k, v in objective.to_dict().items() if k != "objective"}
        objective = SelfConditionedInterpolant(**fields, self_conditioning=chance)
    return VideoDiT(replace(config, **row), seed=seed), objective


def train(run, name, steps, **options):
    "What `fit` returns for a row."
    model, objective = model_and_objective(run, name)
    seed = ROWS[name].get("seed", run.recipe.seed)
    told = replace(run.recipe, steps=steps, seed=seed).fit_options()
    return fit(model, run.cache, objective, **told, device="cpu", progress=False, **options)


def seconds_of_steps(run, names, rounds=3, steps=10, skip=2):
    "{name: median CPU seconds of a training step}, the rows in turn, `rounds` times."
    found = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            log = train(run, name, steps + skip, log_every=1).log
            at = torch.tensor([line["cpu_seconds"] for line in log])
            found[name] += at.diff()[skip - 1 :].tolist()
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def heldout(run, n):
    "`n` held-out clips: their frames (n, 3, T, H, W), attributes, captions and normalized latents."
    clips = run.clips("heldout", n, seed=run.recipe.seed + 1)
    frames, captions = stack_clips(clips)
    with torch.no_grad():
        encode = run.autoencoder.encode
        latents = torch.cat([encode(to_float(part)).mode for part in frames.split(16)])
    ids = torch.stack([run.vocabulary.encode(caption, strict=True) for caption in captions])
    normalized = (latents - run.cache.mean) / run.cache.std
    return frames, [clip.attributes for clip in clips], captions, (normalized, ids)


def losses(model, objective, data):
    "Held-out loss; of a self-conditioned model without its own answer, and with it."
    if not hasattr(objective, "self_conditioning"):
        return dict(valid_loss=validation_loss(model, data, objective)[0])
    blind, seeing = (replace(objective, self_conditioning=p) for p in (0.0, 1.0))
    return dict(
        valid_loss=validation_loss(model, data, blind)[0],
        valid_loss_seeing_itself=validation_loss(model, data, seeing)[0],
    )


def judge(run, frames, wanted):
    "Shares that are right with their intervals, and how clips move."
    found = judged(run, frames, wanted)
    return dict(found, jerk_px=jerk_px(frames), area_flicker=area_flicker(frames))


def train_and_judge(run, name, steps, held):
    "One row."
    _, wanted, captions, data = held
    trained = train(run, name, steps)
    pipeline = VideoPipeline(
        trained.ema,
        run.autoencoder,
        run.vocabulary,
        trained.objective,
        **run.statistics(),
        sampling=run.recipe.sampling(),
    )
    began = time.process_time()
    made = pipeline(captions, seed=run.recipe.seed + 1, batch_size=32).frames
    seconds = time.process_time() - began
    return dict(
        name=name,
        base=base_of(name),
        seed=ROWS[name].get("seed", run.recipe.seed),
        steps=trained.step,
        train_cpu_minutes=round(trained.cpu_minutes, 3),
        sampling_cpu_seconds=round(seconds, 1),
        parameters=sum(p.numel() for p in trained.model.parameters()),
        train_loss=trained.log[-1]["loss"],
        **losses(trained.ema, trained.objective, data),
        **judge(run, to_uint8(made), wanted),
    )


def difference(row, base, measure="all_right"):
    """How much larger a share is than in `base`, and the 95 % interval of a difference of two
    shares (Newcombe 1998, method 10)."""
    p, q = row[measure], base[measure]
    (low, high), (base_low, base_high) = (r[f"{measure}_interval"] for r in (row, base))
    lower = p - q - math.hypot(p - low, base_high - q)
    upper = p - q + math.hypot(high - p, q - base_low)
    return p - q, (lower, upper)


def compare(rows, measure="all_right"):
    """Each row beside its base; `seeds`: the shares of the rows that differ in the seed alone, and
    `seed_noise`, the largest difference between two of them. A difference counts where its
    interval leaves out 0 and it is larger than that of two seeds."""
    made = {row["name"]: row for row in rows}
    seeds = {name: [made[k][measure] for k in same if k in made] for name, same in SEEDS.items()}
    apart = [abs(a - b) for shares in seeds.values() for a, b in combinations(shares, 2)]
    seed_noise = max(apart, default=None)
    compared = []
    for row in rows:
        if row["base"] in made:
            found, interval = difference(row, made[row["base"]], measure)
            counts = interval[0] * interval[1] > 0 and abs(found) > (seed_noise or 0.0)
            about = dict(name=row["name"], base=row["base"], difference=found)
            compared.append(dict(about, interval=interval, counts=counts))
    return dict(measure=measure, seeds=seeds, seed_noise=seed_noise, compared=compared)


def says(found):
    "`compare`'s numbers as sentences."
    lines = []
    for row in found["compared"]:
        points, low, high = (100 * x for x in (row["difference"], *row["interval"]))
        verdict = "a difference" if row["counts"] else "within the noise"
        numbers = f"{points:+.1f} points, 95 % from {low:+.1f} to {high:+.1f}"
        lines.append(f"{row['name']} beside {row['base']}: {numbers}: {verdict}.")
    if found["seed_noise"] is not None:
        noise = 100 * found["seed_noise"]
        lines.append(f"Two seeds of the same row are up to {noise:.1f} points apart.")
    return lines


def parse_arguments():
    parser = make_parser(__doc__, __file__)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/walt"),
        help="where shared stages and rows are written and kept (default: %(default)s)",
    )
    parser.add_argument("--minutes", type=float, default=4.5, help="CPU-minutes to train each row")
    parser.add_argument("--steps", type=int, help="steps instead of minutes, for a trial")
    parser.add_argument("--clips", type=int, default=216, help="held-out captions of each row")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=list(ROWS), choices=ROWS, help="rows to make"
    )
    return parser.parse_args()


def once(file, make, *arguments):
    "What a JSON file holds, or what `make(*arguments)` returns, written there."
    if not file.exists():
        write_json(file, make(*arguments))
    return read_json(file)


def main():
    args = parse_arguments()
    torch.set_num_threads(1)
    run = Experiment(args.work / "stages", device="cpu", progress=False, **SHARED)
    run.judge, run.cache  # noqa: B018 (made here, once)
    held = heldout(run, args.clips)
    real = dict(
        clips=judge(run, held[0], held[1]),
        reconstructions=judge(run, to_uint8(reconstruct(run, held[0])), held[1]),
    )
    seconds = once(args.work / "seconds.json", seconds_of_steps, run, TIMED)
    files = {name: args.work / f"{k:02}.json" for k, name in enumerate(ROWS)}
    for name in args.only:
        kind = name.partition(", seed")[0]
        steps = args.steps or round(60 * args.minutes / seconds[kind])
        row = once(files[name], train_and_judge, run, name, steps, held)
        print({k: v for k, v in row.items() if "interval" not in k}, flush=True)
        rows = [read_json(file) for file in files.values() if file.exists()]
        found = [compare(rows, measure) for measure in MEASURES]
        missing = [name for name in ROWS if not files[name].exists()]
        about = dict(machine=machine(), threads=1, minutes=args.minutes, n=args.clips)
        about |= dict(seconds_per_step=seconds, real=real, missing=missing)
        write_json(
            args.out,
            dict(about, rows=rows, comparisons=found, says={f["measure"]: says(f) for f in found}),
        )


if __name__ == "__main__":
    main()
