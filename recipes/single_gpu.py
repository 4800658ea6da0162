"""The two trainings of the final lesson, on one GPU (or, much reduced, on a processor): figures go
into benchmarks/single_gpu.json.

    python recipes/single_gpu.py --part signs --out $OUT      # ten minutes of one H100
    python recipes/single_gpu.py --part scenes --out $OUT     # ten minutes more
    python recipes/single_gpu.py --part signs --preset cpu --chunk 3   # repeat until it is done
    python recipes/single_gpu.py --part scenes --preset smoke          # does it run? (seconds)
    python recipes/single_gpu.py --part plan                  # what 480p will need, as counted

`signs`: type a word, get the avatar signing it at 480p, and a sentence by continuing from the
last frames; words are held out (clips: --data). `scenes`: captioned scenes of nine motions,
held-out combinations read by a judge, the plain recipe and ours by minutes of training. Everything
measured goes to single_gpu.json in --out, with films (mp4), a contact sheet (png) and the weights
in half precision: at most eight files, none above 15 MB. What takes long is kept in --work, so the
same command resumes where it was stopped; --chunk leaves after so many minutes of training, to be
called again."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from common import DATASETS, RECORDS, ROOT, SHIPPED, machine, make_parser
from single_gpu_presets import PRESETS
from single_gpu_scenes import scenes
from single_gpu_signs import signs
from single_gpu_training import DATA_PREDICTION, Stages, print_json

from minisora.autoencoder import load_autoencoder
from minisora.core.files import read_json, write_json
from minisora.frames import FramePrediction
from minisora.latents.compression import PCACompressedVAE
from minisora.models.conditions import WordCondition
from minisora.models.cost import training_flops
from minisora.recipe import MODERN_BLOCK
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import estimate_cost


def plan_config(args, preset):
    "The model for 480p."
    ae = load_autoencoder(args.vae)
    spec = PCACompressedVAE.from_autoencoder(ae, preset.fold, preset.channels).spec
    return VideoDiTConfig(
        channels=preset.channels + 1,
        size=spec.latent_shape(preset.frames, *preset.size)[1:],
        patch=preset.patch,
        width=preset.width,
        depth=preset.depth,
        heads=preset.heads,
        block=MODERN_BLOCK,
        condition=WordCondition(150, slots=2, in_context=True, init_std=0.5),
    )


def plan(args, preset, stages):
    """Training at 480p before there is a card: operations counted, memory measured here in float32,
    on a third of the frames. Sampling is in flops.json."""
    config = plan_config(args, preset)
    n = 2
    thin = 3  # activations grow with the tokens
    size = (config.size[0] // thin, *config.size[1:])
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(n, preset.channels, *size, generator=generator)
    data = (latents, torch.randint(150, (n, 2), generator=generator))
    objective = FramePrediction(**DATA_PREDICTION, known_frames=(0, 1))

    def cost(depth):
        model = VideoDiT(replace(config, depth=depth, size=size))
        return estimate_cost(model, data, objective, batch_size=n, device="cpu")

    with stages("estimate"):
        one = cost(1)
        two = cost(2)

    def whole(field):
        "Every further block needs as much again."
        first = getattr(one, field)
        return first + (preset.depth - 1) * (getattr(two, field) - first)

    clip = thin * whole("activations") / n
    t, h, w = config.grid
    return dict(
        tokens=t * h * w,
        weights=whole("parameters"),
        static_gb=whole("static") / 2**30,
        activations_gb_a_clip_float32=clip / 2**30,
        batch=preset.batch,
        peak_gb_float32=(whole("static") + preset.batch * clip) / 2**30,
        card_gb=24,
        tflops_a_training_clip=training_flops(VideoDiT(config)) / 1e12,
    )


PARTS = dict(signs=signs, scenes=scenes, plan=plan)


def parse_arguments():
    parser = make_parser(__doc__)
    parser.add_argument("--part", choices=PRESETS, required=True)
    parser.add_argument("--preset", default="gpu", help="gpu, cpu or smoke")
    parser.add_argument(
        "--data", type=Path, default=DATASETS, help="the folder that holds the clips, in signs/"
    )
    parser.add_argument(
        "--vae", default=str(SHIPPED / "video-vae"), help="the video autoencoder's folder"
    )
    parser.add_argument("--out", type=Path, help="what was measured and made (default: in --work)")
    parser.add_argument(
        "--work", type=Path, help="what a run resumes from (default: runs/single-gpu)"
    )
    parser.add_argument("--minutes", type=float, help="of training, instead of the preset's")
    parser.add_argument(
        "--chunk",
        type=float,
        default=0,
        help="leave after so many minutes of training, to be called again",
    )
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="after --chunk minutes, or at once, measure what there is",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="write the figures into benchmarks/single_gpu.json and the lesson's pictures too",
    )
    parser.add_argument(
        "--ship", action="store_true", help="signs: write the weights into data/avatar too"
    )
    parser.add_argument("--device", help="default: CUDA where there is one")
    args = parser.parse_args()
    if args.preset not in PRESETS[args.part]:
        known = ", ".join(PRESETS[args.part])
        parser.error(f"--preset {args.preset}: {args.part} has {known}")
    return args


def set_up(args):
    "Folders, device, and by which clock minutes count: a processor may be shared."
    args.device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    args.clock = "" if args.device.type == "cuda" else "cpu_"
    args.work = (args.work or ROOT / "runs" / "single-gpu") / f"{args.part}-{args.preset}"
    args.out = args.out or args.work / "results"
    for folder in (args.work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    if args.device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def main():
    args = parse_arguments()
    set_up(args)
    preset = PRESETS[args.part][args.preset]
    if args.minutes is not None:
        preset = replace(preset, minutes=args.minutes)
    stages = Stages(args.work, args.device)
    found = PARTS[args.part](args, preset, stages)
    about = dict(
        preset=args.preset,
        machine=machine(),
        autoencoder=Path(args.vae).name,
        recipe=asdict(preset),
        stages=stages.seen,
    )
    for folder in [args.out, RECORDS] if args.record else [args.out]:
        file = folder / "single_gpu.json"
        before = read_json(file) if file.is_file() else {}
        write_json(file, dict(before, **{f"{args.part}-{args.preset}": about | found}))
    print_json(about | found)


if __name__ == "__main__":
    main()
