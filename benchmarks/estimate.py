"""What `estimate_cost` says and what `fit` then needs, of three models: benchmarks/estimate.json.

    python benchmarks/estimate.py [--steps 20] [--out FILE]

Said and done in one process, one after the other, on one thread of a processor, in CPU time, so
that other programs on the machine hardly count. Memory is the most bytes that PyTorch's allocator
had given out at once during a `fit` of four updates, by the profiler's record; time is that of an
update, of `--steps` of them after the first ten, from the log."""

from itertools import accumulate

import torch
from machine import machine, make_parser

from minisora.core.files import write_json
from minisora.diffusion import GaussianDiffusion
from minisora.dit import DiT, DiTConfig
from minisora.interpolants import Interpolant
from minisora.models.conditions import WordCondition
from minisora.models.preconditioning import EDMOutput
from minisora.recipe import MODERN_BLOCK
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import estimate_cost, fit

TOY = VideoDiTConfig(
    size=(4, 8, 8),
    channels=1,
    patch=(2, 2, 2),
    width=48,
    depth=3,
    heads=4,
    condition=WordCondition(4),
    output=EDMOutput(),
    relative_bias=True,
)
FIRST_VIDEO = VideoDiTConfig(
    size=(16, 8, 8),
    channels=8,
    patch=(4, 2, 2),
    width=144,
    depth=6,
    heads=6,
    condition=WordCondition(20, slots=3, in_context=True),
    block=MODERN_BLOCK,
    relative_bias=True,
)
IMAGES = DiTConfig(size=(16, 16), patch=2, width=192, depth=4, heads=3, num_classes=10)
RUNS = {  # name: (model, its config, objective, batch size)
    "lesson 08's dots, batch 32": (VideoDiT, TOY, Interpolant(), 32),
    "the first video's model, batch 8": (VideoDiT, FIRST_VIDEO, Interpolant(prediction="data"), 8),
    "a DiT for images, DDPM, batch 12": (
        DiT,
        IMAGES,
        GaussianDiffusion(variance="learned-range"),
        12,
    ),
}


def random_latents(config, n=64):
    "Noise and labels of the shapes that a model takes."
    generator = torch.Generator().manual_seed(0)
    size = config.size if len(config.size) == 3 else (1, *config.size)
    slots = config.condition.slots if isinstance(config, VideoDiTConfig) else 1
    latents = torch.randn(n, config.channels, *size, generator=generator)
    return latents, torch.randint(0, 4, (n, slots), generator=generator)


def peak_bytes(job, model):
    "The most bytes at once while `job` runs, with the weights of `model`."
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as seen:
        job()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    most = max(accumulate(e.nbytes() for e in events))
    return most + sum(t.nbytes for t in model.state_dict().values())


def compare(name, make, config, objective, batch_size, steps):
    "One row: what is estimated, and what is then used."
    model = make(config)
    data = random_latents(config)
    options = dict(batch_size=batch_size, progress=False, device="cpu")
    said = estimate_cost(model, data, objective, **options)
    used = peak_bytes(lambda: fit(model, data, objective, steps=4, **options), model)
    log = fit(make(config), data, objective, steps=steps + 10, log_every=10, **options).log
    taken = (log[-1]["cpu_seconds"] - log[1]["cpu_seconds"]) / steps
    return dict(
        name=name,
        parameters=said.parameters,
        said_bytes=said.peak,
        used_bytes=used,
        peak_ratio=round(said.peak / used, 3),
        said_seconds=round(said.cpu_seconds, 5),
        taken_seconds=round(taken, 5),
        time_ratio=round(said.cpu_seconds / taken, 3),
    )


def main():
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--steps", type=int, default=20, help="updates that are timed, 10 or more")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for name, run in RUNS.items():
        runs.append(compare(name, *run, args.steps))
        print(runs[-1], flush=True)
    write_json(args.out, dict(machine=machine(), updates=args.steps, runs=runs))


if __name__ == "__main__":
    main()
