"""`make video`, recorded: figures into benchmarks/NAME.json, pictures into nbs/images/.

    python recipes/first_video.py                               # scenes: what `make video` runs
    python recipes/first_video.py --name signs --data FOLDER    # a folder of clips
    python recipes/first_video.py --name digits --data mnist.npz         # moving digits
    python recipes/first_video.py --name nine_motions --motions all      # scenes of all motions

A finished run in --out is taken as it is; an unfinished or missing one is made first. `--ship` also
writes the weights, in half precision, into data/first-video."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from common import IMAGES, RECORDS, SHIPPED, halve, machine, make_parser, save_small, stack_pictures
from einops import rearrange
from PIL import Image
from reference import reference

from minisora import viz
from minisora.clips import MOTIONS
from minisora.core.files import read_json, write_json
from minisora.data.video import stack_clips, to_float
from minisora.evaluation.samples import nearest_clip
from minisora.experiment import Experiment, make_video

WORDS = ("thank you", "hello", "happy", "5", "home", "you")

CARD = """---
license: apache-2.0
library_name: minisora
---
# MiniSora's first video

A text-to-video model of six objects, six colors and six motions: 16 frames of 64×64 pixels, in half
precision. It was trained from zero, on two processor cores, by `make video`, on procedural scenes
that the library renders; no other data. Made by `python recipes/first_video.py --ship`; what it can
and cannot do is in `benchmarks/first_video.json`.

```python
from minisora.pipeline import VideoPipeline
pipe = VideoPipeline.from_pretrained("data/first-video")
clips = pipe("a red ring moves left")
clips.save("ring.gif", scale=4)                # clips.frames: (1, 3, 16, 64, 64), in [-1, 1]
```
"""


def side_by_side(clips, columns=4, pad=2):
    "Clips (B, 3, T, H, W) in one clip (3, T, rows·H, columns·W), in rows that are full."
    clips = torch.nn.functional.pad(clips, (pad, pad, pad, pad), value=-0.6)
    clips = clips[: len(clips) // columns * columns]
    return rearrange(clips, "(row column) c t h w -> c t (row h) (column w)", column=columns)


def scene_pictures(run, folder, name):
    "The clip and the sheet of the home page, and the sheets kept while training, side by side."
    prompts = run.prompts(22)[::2][:8]
    clips = run.sample(prompts, seed=7)
    viz.save_gif(folder / f"{name}.gif", side_by_side(clips), fps=8, scale=1.5)
    save_small(viz.contact_sheet(clips[:6], prompts[:6]), folder / f"{name}-sheet.png")
    previews = [Image.open(file) for file in sorted(run.out.glob("preview-*.png"))]
    save_small(stack_pictures(previews, "across"), folder / f"{name}-progress.png")


def folder_pictures(run, folder, name):
    "Generated clips, each above the real clip nearest to it."
    words = [word for word in WORDS if word in run.captions] or run.captions[:6]
    clips = run.sample(words, seed=7)
    real, captions = stack_clips(run.clips())
    index = nearest_clip(clips, real)[0].tolist()
    pairs = torch.stack([clips, to_float(real[index])], 1)
    labels = []
    for word, i in zip(words, index):
        labels += [f"{word}: generated", f"nearest real clip: {captions[i]}"]
    pairs = rearrange(pairs, "b two ... -> (b two) ...")
    save_small(viz.contact_sheet(pairs, labels), folder / f"{name}.png")


def sheet(run, folder, name):
    "Clips of eight prompts."
    prompts = run.prompts(8)
    made = viz.contact_sheet(run.sample(prompts, seed=7), prompts)
    save_small(made, folder / f"{name}.png")


def ship(run, folder):
    "What sampling needs, weights in half precision."
    for part in ("model", "autoencoder", "decoder"):
        shutil.copytree(run.out / part, folder / part, dirs_exist_ok=True)
        halve(folder / part)
    for file in ("recipe.json", "captions.json"):
        shutil.copy(run.out / file, folder / file)
    (folder / "README.md").write_text(CARD)


def parse_arguments():
    parser = make_parser(__doc__)
    parser.add_argument("--name", default="first_video", help="of the record and the pictures")
    parser.add_argument("--data", default="", help="a folder of clips, or an .npz of digits")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--motions", choices=("simple", "all"), default="simple")
    parser.add_argument("--ship", action="store_true", help="write data/first-video too")
    parser.add_argument(
        "--records",
        type=Path,
        default=RECORDS,
        help="folder where NAME.json is written (default: benchmarks)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        default=IMAGES,
        help="folder where the pictures are written (default: nbs/images)",
    )
    args = parser.parse_args()
    args.out = args.out or Path("runs") / args.name.replace("_", "-")
    return args


def record(run, metrics):
    "What a run is and measured, as a dict."
    log = (run.out / "training" / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in log]
    return dict(
        machine=machine(),
        recipe=dict(asdict(run.recipe), data=Path(run.recipe.data).name),
        metrics=metrics,
        times=read_json(run.out / "times.json"),
        loss=[(row["step"], row["loss"]) for row in rows],
    )


def main():
    args = parse_arguments()
    changes = dict(motions=MOTIONS) if args.motions == "all" else {}
    _, metrics = make_video(args.out, data=args.data, **changes)
    run = Experiment(args.out)
    write_json(args.records / f"{args.name}.json", record(run, metrics))
    args.images.mkdir(exist_ok=True)
    pictures = dict(first_video=scene_pictures, signs=folder_pictures).get(args.name, sheet)
    pictures(run, args.images, args.name.replace("_", "-"))
    if args.ship:
        ship(run, SHIPPED / "first-video")
        reference("first-video", args.out / "training", f"{args.name}.json")


if __name__ == "__main__":
    main()
