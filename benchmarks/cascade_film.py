"""A real clip through the code and back, in the memory of a tile:

    python benchmarks/cascade_film.py FILM [--pipeline FOLDER] [--size 480 848]

Frames of FILM, 24 a second from --start on, go through compressor, decoder and autoencoder of a
cascade's pipeline, or of one that was not trained, as large as the small presets, which needs the
same memory. Said are the most bytes that this process had at once (so: a process for each figure),
the seconds, and the error, PSNR in dB, beside that of the clip's own mean color."""

import argparse
import json
import time
from dataclasses import replace

import torch
from machine import peak_resident

from minisora.cascade import CASCADE_PRESETS, CascadeUNet
from minisora.cascade_objective import CodeConditionedInterpolant
from minisora.cascade_pipeline import CascadePipeline
from minisora.data.video import read_video, to_float
from minisora.data.vocabulary import Vocabulary
from minisora.interpolants import Interpolant
from minisora.latents.paella_vq import PAELLA_PRESETS, PaellaVQ
from minisora.latents.semantic import SemanticCompressor


def untrained(frames=16):
    "A pipeline as large as the small presets, with layers along time."
    stages = [
        CascadeUNet(
            replace(
                CASCADE_PRESETS[name],
                size=(frames, *CASCADE_PRESETS[name].size[1:]),
                temporal="all",
            )
        ).eval()
        for name in ("c-tiny", "b-tiny")
    ]
    prompt = stages[0].config.prompt
    words = [f"word{i}" for i in range(prompt.vocab - 1)]
    return CascadePipeline(
        prior=stages[0],
        objective=Interpolant(),
        decoder=stages[1],
        decoder_objective=CodeConditionedInterpolant(),
        autoencoder=PaellaVQ(**PAELLA_PRESETS["tiny"]).eval(),
        compressor=SemanticCompressor().eval(),
        vocabulary=Vocabulary(words, prompt.slots),
    )


def psnr(made, clip):
    "dB, of clips in [-1, 1]."
    return float(10 * torch.log10(4 / (made - clip).square().mean()))


def measure(film, pipe, frames, size, start=0.0, **options):
    "The record of one clip."
    clip = to_float(read_video(film, frames, tuple(size), fps=24.0, start=start).frames)[None]
    before = peak_resident()
    began = time.perf_counter()
    made = pipe.reconstruct(clip, **options)
    seconds = time.perf_counter() - began
    still = clip.mean((2, 3, 4), keepdim=True).expand_as(clip)
    return dict(
        frames=frames,
        size=list(size),
        code=list(pipe.compressor.spec.latent_shape(*clip.shape[2:])),
        peak_gb=round(peak_resident() / 1e9, 2),
        before_gb=round(before / 1e9, 2),
        seconds=round(seconds, 1),
        psnr=round(psnr(made, clip), 2),
        psnr_of_mean=round(psnr(still, clip), 2),
        threads=torch.get_num_threads(),
    )


def main():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("film")
    parser.add_argument("--pipeline", help="folder of a CascadePipeline; else one not trained")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 848))
    parser.add_argument("--start", type=float, default=0.0, help="second of the film")
    parser.add_argument("--tile", type=int, help="latents; the decoder's own if left out")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    pipe = CascadePipeline.from_pretrained(args.pipeline) if args.pipeline else untrained()
    options = dict(tile=args.tile, num_inference_steps=args.steps)
    print(json.dumps(measure(args.film, pipe, args.frames, args.size, args.start, **options)))


if __name__ == "__main__":
    main()
