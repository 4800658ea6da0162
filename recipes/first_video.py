"""`make video`, recorded: figures into benchmarks/NAME.json, pictures into nbs/images/.

    python benchmarks/first_video.py                                     # scenes: what `make video` runs
    python benchmarks/first_video.py --name signs --data FOLDER          # a folder of clips
    python benchmarks/first_video.py --name digits --data mnist.npz      # moving digits
    python benchmarks/first_video.py --name nine_motions --motions all   # scenes that also orbit, bounce and swing

A finished run in --out is taken as it is; an unfinished or missing one is made first. `--ship` also writes the
weights, in half precision, into data/first-video."""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from machine import machine
from PIL import Image
from reference import reference
from safetensors.torch import load_file, save_file

from minisora import viz
from minisora.clips import MOTIONS, stack
from minisora.latent_cache import write_json
from minisora.metrics import nearest_clip
from minisora.pipeline import Run, make_video

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "nbs" / "images"
WORDS = ("thank you", "hello", "happy", "5", "home", "you")


CARD = """---
license: apache-2.0
library_name: minisora
---
# MiniSora's first video

A text-to-video model of six objects, six colours and six motions: 16 frames of 64×64 pixels, in half precision. It was
trained from zero, on two processor cores, by `make video`, on procedural scenes that the library renders; no other data.
Made by `python benchmarks/first_video.py --ship`; what it can and cannot do stands in `benchmarks/first_video.json`.

```python
from minisora.pipeline import Run
clips = Run("data/first-video").sample(["a red ring moves left"])     # (1, 3, 16, 64, 64), in [-1, 1]
```
"""


def tiled(clips, columns=4, pad=2):
    "Clips (B, 3, T, H, W) side by side in one clip (3, T, rows·H, columns·W)."
    x = torch.nn.functional.pad(clips, (pad, pad, pad, pad), value=-0.6)
    rows = [torch.cat(list(r), 3) for r in x.split(columns)]
    return torch.cat([r for r in rows if r.shape == rows[0].shape], 2)


def save_small(picture, name):
    "A picture for the lessons, with a palette."
    picture.convert("RGB").quantize(128).save(IMAGES / f"{name}.png", optimize=True)


def scene_pictures(run, name):
    "The clip and the sheet of the home page, and the sheets kept while training, side by side."
    prompts = run.prompts(22)[::2][:8]
    clips = run.sample(prompts, seed=7)
    viz.save_gif(IMAGES / f"{name}.gif", tiled(clips), fps=8, scale=1.5)
    save_small(viz.contact_sheet(clips[:6], prompts[:6]), f"{name}-sheet")
    sheets = [Image.open(p) for p in sorted(run.out.glob("preview-*.png"))]
    both = Image.new("RGB", (sum(s.width for s in sheets), sheets[0].height))
    for k, s in enumerate(sheets):
        both.paste(s, (sum(q.width for q in sheets[:k]), 0))
    save_small(both, f"{name}-progress")


def folder_pictures(run, name):
    "Generated clips, each above the real clip nearest to it."
    words = [w for w in WORDS if w in run.captions] or run.captions[:6]
    clips = run.sample(words, seed=7)
    real, captions = stack(run.clips())
    index, _ = nearest_clip(clips, real)
    pairs = [k for c, i in zip(clips, index) for k in (c, real[i].float() / 127.5 - 1)]
    labels = [
        k
        for w, i in zip(words, index)
        for k in (f"{w}: generated", f"nearest real clip: {captions[i]}")
    ]
    save_small(viz.contact_sheet(torch.stack(pairs), labels), name)


def sheet(run, name):
    prompts = run.prompts(8)
    save_small(viz.contact_sheet(run.sample(prompts, seed=7), prompts), name)


def halve(file):
    "Weights of a safetensors file in half precision."
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}, file
    )
    file.chmod(0o644)


def ship(run, folder):
    "What sampling needs, weights in half precision."
    for part in ("model", "autoencoder", "decoder"):
        shutil.copytree(run.out / part, folder / part, dirs_exist_ok=True)
        halve(folder / part / "model.safetensors")
    for file in ("recipe.json", "captions.json"):
        shutil.copy(run.out / file, folder / file)
    (folder / "README.md").write_text(CARD)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--name", default="first_video")
    p.add_argument("--data", default="")
    p.add_argument("--out", help="folder of the run")
    p.add_argument("--motions", choices=("simple", "all"), default="simple")
    p.add_argument("--ship", action="store_true")
    args = p.parse_args()
    out = Path(args.out or f"runs/{args.name.replace('_', '-')}")
    _, metrics = make_video(
        out, data=args.data, **(dict(motions=MOTIONS) if args.motions == "all" else {})
    )
    run = Run(out)
    log = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    recipe = dict(asdict(run.recipe), data=Path(run.recipe.data).name)
    write_json(
        ROOT / "benchmarks" / f"{args.name}.json",
        dict(
            machine=machine(),
            recipe=recipe,
            metrics=metrics,
            times=json.loads((out / "times.json").read_text()),
            loss=[(r["step"], r["loss"]) for r in log],
        ),
    )
    IMAGES.mkdir(exist_ok=True)
    pictures = dict(first_video=scene_pictures, signs=folder_pictures).get(args.name, sheet)
    pictures(run, args.name.replace("_", "-"))
    if args.ship:
        ship(run, ROOT / "data" / "first-video")
        reference("first-video", out / "training", f"{args.name}.json")


if __name__ == "__main__":
    main()
