"""What a clip at 480p costs the transformer, and what its latents still show: benchmarks/compression.json.

    python benchmarks/compression.py --data ../shared/data

Each row is one way to make tokens of 33 frames of 480×864 pixels: the video autoencoder's 4×8×8 latents cut into
patches, or a second, linear stage (`FoldedVAE`, a PCA of the training words' latents) and smaller patches. Tokens and
FLOPs of a training step are those of one and the same transformer, counted on no device; PSNR is of words that
neither the PCA nor this table's choice has seen, and of some that the PCA has. About six minutes of one core."""

import argparse
import json
import time
from pathlib import Path

import torch
from machine import machine

from minisora.autoencoder import autoencoder_by_name
from minisora.clips import read_video, to_float
from minisora.latent_cache import write_json
from minisora.metrics import decibels, psnr
from minisora.models.conditions import WordCondition
from minisora.models.cost import training_flops
from minisora.single_gpu import FoldedVAE
from minisora.temporal import VideoDiT, VideoDiTConfig

ROOT = Path(__file__).resolve().parents[1]
SIZE, FRAMES = (480, 864), 33
DIT = dict(width=256, depth=8, heads=4)
# fold, channels (None: as the autoencoder), patches
ROWS = [
    (1, None, ((1, 2, 2), (1, 4, 4), (3, 2, 2), (3, 4, 4))),
    (2, 64, ((1, 2, 2),)),
    (4, 32, ((1, 1, 1),)),
    (4, 64, ((1, 1, 1), (3, 1, 1))),
    (4, 128, ((1, 1, 1),)),
    (4, 256, ((1, 1, 1),)),
    (12, 192, ((1, 1, 1),)),
]
HELD_OUT = ("Beautiful", "Home", "Sing", "World")


def clip(path, frames, size):
    "One word as (1, 3, T, H, W) in [-1, 1]: the whole video squeezed into the frames."
    return to_float(read_video(path, frames, size).frames[None])


@torch.no_grad()
def latents_of(ae, files, frames, size):
    return [ae.encode(clip(f, frames, size)).mode for f in files]


def moving_psnr(y, x):
    "PSNR (dB) where the clip moves: pixels that stray by more than a tenth from their mean over time."
    still = x.mean(2, keepdim=True)
    mask = ((x - still).abs().amax(1, keepdim=True) > 0.2).float().expand_as(x)
    return decibels((mask * (y.clamp(-1, 1) - x) ** 2).sum() / mask.sum()).item()


def cost(fold, channels, patch, factors=(4, 8, 8)):
    "Tokens, numbers a token, and FLOPs (10¹²) of one clip's training step."
    size = (
        1 + (FRAMES - 1) // factors[0],
        SIZE[0] // factors[1] // fold,
        SIZE[1] // factors[2] // fold,
    )
    config = VideoDiTConfig(
        channels=channels, size=size, patch=patch, condition=WordCondition(150), **DIT
    )
    t, h, w = config.grid
    return dict(
        tokens=t * h * w,
        numbers_a_token=channels * patch[0] * patch[1] * patch[2],
        tflops_a_step=round(training_flops(VideoDiT(config)) / 1e12, 3),
    )


def main(a):
    start, ae = time.perf_counter(), autoencoder_by_name(a.vae)
    files = {f.stem: f for f in sorted((a.data / "signs").glob("*.mp4"))}
    if not files:
        raise SystemExit(f"no *.mp4 in {a.data / 'signs'}")
    train = [f for k, f in files.items() if k not in HELD_OUT][:: a.every]
    held = torch.cat([clip(files[k], a.frames, a.size) for k in HELD_OUT[: a.held]])
    seen = torch.cat(
        [clip(f, a.frames, a.size) for f in train[:: max(1, len(train) // len(held))][: len(held)]]
    )
    known = latents_of(ae, train, a.frames, a.size)
    print(f"{len(train)} training words encoded, {time.perf_counter() - start:.0f} s", flush=True)
    rows = []
    for fold, channels, patches in ROWS:
        second = ae if channels is None else FoldedVAE.around(ae, fold, channels)
        if channels is not None:
            second.init_pca(known)
        with torch.no_grad():
            y, again = (torch.cat([second(x[None]) for x in k]) for k in (held, seen))
        shown = dict(
            psnr=round(psnr(y, held), 2),
            moving_psnr=round(moving_psnr(y, held), 2),
            seen_moving_psnr=round(moving_psnr(again, seen), 2),
        )
        for patch in patches:
            what = dict(
                compression="×".join(map(str, second.spec.factors)),
                channels=second.spec.channels,
                patch="×".join(map(str, patch)),
            )
            rows.append(what | cost(fold, second.spec.channels, patch) | shown)
            print(rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
    most = max(r["tflops_a_step"] for r in rows)
    for r in rows:
        r["times_cheaper"] = round(most / r["tflops_a_step"], 1)
    result = dict(
        machine=machine(),
        autoencoder=dict(name=Path(a.vae).name, **ae._hub_mixin_config),
        dit=DIT,
        clip=dict(frames=FRAMES, size=list(SIZE)),
        measured_on=dict(
            frames=a.frames,
            size=list(a.size),
            words=list(HELD_OUT[: a.held]),
            training_words=len(train),
        ),
        rows=rows,
    )
    write_json(a.out, result)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="the folder that holds signs",
    )
    p.add_argument(
        "--vae", default=str(ROOT / "data" / "video-vae"), help="the video autoencoder's folder"
    )
    p.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "compression.json")
    p.add_argument(
        "--frames", type=int, default=9, help="frames of a clip that is encoded and decoded, 1 + 4k"
    )
    p.add_argument(
        "--size", type=int, nargs=2, default=SIZE, help="its height and width, multiples of 96"
    )
    p.add_argument(
        "--every", type=int, default=7, help="every so many-th word is encoded for the PCA"
    )
    p.add_argument(
        "--held", type=int, default=4, help="held-out words that are measured, at most 4"
    )
    main(p.parse_args())
