"""What a clip at 480p costs the transformer, and what its latents still show:
benchmarks/compression.json.

    python benchmarks/compression.py --data ../shared/data

Each row is one way to make tokens of 33 frames of 480×864 pixels: the video autoencoder's 4×8×8
latents cut into patches, or a second, linear stage (`PCACompressedVAE`, a PCA of the training
words' latents) and smaller patches. Tokens and FLOPs of a training step are those of one and the
same transformer, counted on no device; PSNR is of words that neither the PCA nor the choice of rows
has seen, and of some that the PCA has. About six minutes of one core."""

import json
import time
from pathlib import Path

import torch
from machine import machine, make_parser

from minisora.autoencoder import load_autoencoder
from minisora.core.files import write_json
from minisora.data.video import read_video, to_float
from minisora.latents.compression import PCACompressedVAE
from minisora.metrics import mse_to_psnr, psnr
from minisora.models.conditions import WordCondition
from minisora.models.cost import training_flops
from minisora.temporal import VideoDiT, VideoDiTConfig

ROOT = Path(__file__).resolve().parents[1]
SIZE = (480, 864)
FRAMES = 33
DIT = dict(width=256, depth=8, heads=4)
ROWS = [  # fold, channels (None: the video autoencoder alone), patches
    (1, None, ((1, 2, 2), (1, 4, 4), (3, 2, 2), (3, 4, 4))),
    (2, 64, ((1, 2, 2),)),
    (4, 32, ((1, 1, 1),)),
    (4, 64, ((1, 1, 1), (3, 1, 1))),
    (4, 128, ((1, 1, 1),)),
    (4, 256, ((1, 1, 1),)),
    (12, 192, ((1, 1, 1),)),
]
HELD_OUT = ("Beautiful", "Home", "Sing", "World")


def read_clip(path, frames, size):
    "One word as (1, 3, T, H, W) in [-1, 1]: the whole video squeezed into the frames."
    return to_float(read_video(path, frames, size).frames[None])


def moving_psnr(clips, reference):
    "PSNR (dB) where the reference moves: pixels over a tenth from their mean in time."
    still = reference.mean(2, keepdim=True)
    moves = (reference - still).abs().amax(1, keepdim=True) > 0.2  # (B, 1, T, H, W)
    mask = moves.float().expand_as(reference)
    error = (mask * (clips.clamp(-1, 1) - reference) ** 2).sum() / mask.sum()
    return mse_to_psnr(error).item()


def cost(fold, channels, patch, factors=(4, 8, 8)):
    "Tokens, numbers per token, and FLOPs (10¹²) of one clip's training step."
    frames, height, width = factors
    size = (1 + (FRAMES - 1) // frames, SIZE[0] // height // fold, SIZE[1] // width // fold)
    config = VideoDiTConfig(
        channels=channels, size=size, patch=patch, condition=WordCondition(150), **DIT
    )
    t, h, w = config.grid
    return dict(
        tokens=t * h * w,
        numbers_a_token=channels * patch[0] * patch[1] * patch[2],
        tflops_a_step=round(training_flops(VideoDiT(config)) / 1e12, 3),
    )


class Words:
    "The words that are encoded: some to fit the PCA to, some held out, as many that it has seen."

    def __init__(self, folder, frames, size, every, held_out):
        files = {file.stem: file for file in sorted(folder.glob("*.mp4"))}
        if not files:
            raise SystemExit(f"no *.mp4 in {folder}")
        self.shape = (frames, size)
        self.train = [file for name, file in files.items() if name not in HELD_OUT][::every]
        self.held_out = self.read(files[name] for name in HELD_OUT[:held_out])
        count = len(self.held_out)
        self.seen = self.read(self.train[:: max(1, len(self.train) // count)][:count])

    def read(self, files):
        return torch.cat([read_clip(file, *self.shape) for file in files])

    @torch.no_grad()
    def latents(self, ae):
        "Latents (1, C, T, h, w) of each training word."
        return [ae.encode(read_clip(file, *self.shape)).mode for file in self.train]


@torch.no_grad()
def quality(ae, words):
    "PSNR (dB) of what comes back: of the held-out words, and where they and the seen ones move."
    held_out, seen = (
        torch.cat([ae(clip[None]) for clip in clips]) for clips in (words.held_out, words.seen)
    )
    return dict(
        psnr=round(psnr(held_out, words.held_out), 2),
        moving_psnr=round(moving_psnr(held_out, words.held_out), 2),
        seen_moving_psnr=round(moving_psnr(seen, words.seen), 2),
    )


def compare(ae, words, report):
    "All rows, each with its cost and quality."
    known = words.latents(ae)
    report(f"{len(known)} training words encoded")
    rows = []
    for fold, channels, patches in ROWS:
        stages = ae
        if channels is not None:
            stages = PCACompressedVAE.from_autoencoder(ae, fold, channels)
            stages.init_pca(known)
        spec = stages.spec
        shown = quality(stages, words)
        for patch in patches:
            what = dict(
                compression="×".join(map(str, spec.factors)),
                channels=spec.channels,
                patch="×".join(map(str, patch)),
            )
            rows.append(what | cost(fold, spec.channels, patch) | shown)
            report(rows[-1])
    most = max(row["tflops_a_step"] for row in rows)
    for row in rows:
        row["times_cheaper"] = round(most / row["tflops_a_step"], 1)
    return rows


def parse_arguments():
    parser = make_parser(__doc__, __file__)
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="the folder that holds the clips, in signs/",
    )
    parser.add_argument(
        "--vae",
        default=str(ROOT / "data" / "video-vae"),
        help="the video autoencoder's folder (default: data/video-vae)",
    )
    parser.add_argument(
        "--frames", type=int, default=9, help="frames of a clip that is encoded, 1 + 4k"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=SIZE, help="its height and width, multiples of 96"
    )
    parser.add_argument(
        "--every", type=int, default=7, help="one word of so many is encoded for the PCA"
    )
    parser.add_argument("--held", type=int, default=4, help="held-out words measured, at most 4")
    return parser.parse_args()


def main():
    args = parse_arguments()
    start = time.perf_counter()

    def report(what):
        print(what, f"{time.perf_counter() - start:.0f} s", flush=True)

    ae = load_autoencoder(args.vae)
    words = Words(args.data / "signs", args.frames, args.size, args.every, args.held)
    rows = compare(ae, words, report)
    measured_on = dict(
        frames=args.frames,
        size=list(args.size),
        words=list(HELD_OUT[: args.held]),
        training_words=len(words.train),
    )
    result = dict(
        machine=machine(),
        autoencoder=dict(name=Path(args.vae).name, **ae._hub_mixin_config),
        dit=DIT,
        clip=dict(frames=FRAMES, size=list(SIZE)),
        measured_on=measured_on,
        rows=rows,
    )
    write_json(args.out, result)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
