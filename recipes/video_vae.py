"""Train MiniSora's causal video autoencoder on scenes, moving digits and real clips, and measure it
on held-out ones.

    python recipes/video_vae.py            # train, or resume a run, then measure
    python recipes/video_vae.py --ship     # and write benchmarks/video_vae.json and data/video-vae
    python recipes/video_vae.py --score digits64     # only measure the shipped weights again

Stopped at any moment, the same command resumes from the last saved state (every 50 steps), to the
bit as if it had never stopped. Decoded clips are kept in --out. One thread is enough: a step takes
about 0.3 s of one core."""

import json
import time
from pathlib import Path

import torch
from common import DATASETS, IMAGES, RECORDS, ROOT, SHIPPED, machine, make_parser, save_half
from safetensors.torch import load_file, save_file
from video_vae_measures import REAL, at_480p, decibels, quality

from minisora import viz
from minisora.autoencoder import load_autoencoder
from minisora.clips import DigitClips, SceneClips
from minisora.core.files import read_json, write_json
from minisora.core.tensors import load_tensors
from minisora.core.hub import load_strict
from minisora.data.named import load_digits
from minisora.data.video import read_video, stack_clips, to_float
from minisora.latents.video_vae import CausalVideoVAE
from minisora.latents.video_vae_training import (
    CropSampler,
    PerceptualNet,
    VideoVAELoss,
    train_perceptual_net,
    train_video_vae,
)

FILES = dict(zip(REAL, ("*.mp4", "*.mkv")))
MODEL = dict(channels=48, width=128, depth=2)
# of the sources, in the last stage: more people, fewer signs
LAST_SHARES = (0.45, 0.12, 0.05, 0.05, 0.30, 0.03)
# nearly the squared error alone
LAST_LOSS = VideoVAELoss(l1=0.2, l2=10.0, perceptual=0.05, noise=0.02)
BARS = dict(scenes64=27, scenes128=27, signs=30, asl=30)  # dB on held-out clips
BAR_480P = 30
MAX_MEGABYTES = 8  # of weights that ship

CARD = """---
license: apache-2.0
library_name: minisora
---
# MiniSora's causal video autoencoder

A latent stands for 4 frames and 8×8 pixels, {channels} numbers each; the first frame stands alone,
so an image is a clip of one frame: 1 + 4k frames become 1 + k latents. {weights:,} weights, in half
precision, {megabytes:.1f} MB.

Trained from zero by `python recipes/video_vae.py --ship` in {minutes:.0f} minutes on one
processor core: {steps:,} steps, the last {color:,} with the colors of half of the clips exchanged
and the last {last:,} of those with clips laid over each other and nearly the squared error alone,
on procedural scenes and moving digits that the library renders, clips of an animated avatar that
signs (`signs`, MIT) and of people who sign (`asl`, CC BY 4.0). Loss: L1, squared error, a
perceptual distance from a small network trained in the same run, and KL; no adversary. No other
weights or data went into it.

On clips not trained on (held-out combinations, words and people's clips), in dB:

| what | size | measure | this | its PCA start |
|---|---|---|---|---|
{rows}

It was trained for minutes, on few people and one avatar: take it for the lessons, not for
production.

```python
from minisora.autoencoder import load_autoencoder
ae = load_autoencoder("data/video-vae")
# clips (B, 3, 1 + 4k, H, W) in [-1, 1] -> latents (B, {channels}, 1 + k, H/8, W/8)
z = ae.encode(clips).mode
```
"""


def split_files(files, every):
    "Every `every`-th file is held out: (training, held out)."
    train = [file for i, file in enumerate(files) if i % every != every // 2]
    return train, files[every // 2 :: every]


def real_clips(folder, name, size, frames, fps, every, thin=1):
    """Functions that read the (training, held-out) uint8 clips of a folder: the middle `frames`
    frames of every `thin`-th."""
    files = sorted((folder / name).glob(FILES[name]))
    if not files:
        raise FileNotFoundError(f"no {FILES[name]} in {folder / name}")

    def reader(some):
        def read():
            return torch.stack([read_video(file, frames, size, fps).frames for file in some])

        return read

    return [reader(some[::thin]) for some in split_files(files, every)]


def rendered(count, split, seed, size, frames=17):
    "A function that renders uint8 clips of scenes."
    return lambda: stack_clips(SceneClips(count, split, seed, frames=frames, size=size))[0]


def digit_clips(file, count, split="train", seed=0):
    "A function that renders uint8 clips of moving digits."
    images = "train" if split == "train" else "test"
    return lambda: stack_clips(
        DigitClips(*load_digits(file, images), count, split, seed, frames=17)
    )[0]


class ClipStore:
    "uint8 clips kept as files, made where they are missing; `few` of each for a quick look."

    def __init__(self, folder, few):
        self.folder = folder
        self.few = few

    def __call__(self, name, make):
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            save_file(dict(clips=make()), path)
        return load_file(path)["clips"][: self.few]


def sources(data, out, few):
    "What is trained on, [(clips, share)], and what is held out, {name: clips}."
    signs, signs_held = real_clips(data, "signs", 128, 25, 24, 8)
    asl, asl_held = real_clips(data, "asl", 128, 33, 30, 5)
    large, _ = real_clips(data, "signs", 320, 13, 24, 8, thin=4)
    mnist = data / "mnist" / "mnist.npz"
    get = ClipStore(out, few)
    train = [
        (get("scenes64", rendered(2400, "train", 0, 64)), 0.42),
        (get("scenes128", rendered(600, "train", 1, 128)), 0.18),
        (get("digits64", digit_clips(mnist, 300)), 0.08),
        (get("signs", signs), 0.07),
        (get("asl", asl), 0.21),
        (get("large", large), 0.04),
    ]
    held_out = dict(
        scenes64=get("held64", rendered(36, "heldout", 2, 64)),
        scenes128=get("held128", rendered(18, "heldout", 3, 128)),
        digits64=get("held_digits", digit_clips(mnist, 36, "heldout", 4)),
        signs=get("held_signs", signs_held)[:, :, :17],
        asl=get("held_asl", asl_held)[:, :, :17],
    )
    return train, held_out


def perceptual_net_for(crops, out, steps):
    "The perceptual network, trained once per run, and what is recorded of it."
    count = sum(len(clips) for clips in crops.clips)
    weights = out / "eyes.safetensors"
    about = out / "eyes.json"
    if weights.is_file():
        net = load_strict(PerceptualNet(count), load_tensors(weights), weights)
        return net.eval().requires_grad_(False), read_json(about)
    start = time.perf_counter()
    net, (clip, kind) = train_perceptual_net(crops.sample_frames, count, steps)
    save_file(net.state_dict(), weights)
    found = dict(
        clips=count,
        steps=steps,
        seconds=round(time.perf_counter() - start, 1),
        which_clip=round(clip, 3),
        how_spoilt=round(kind, 3),
    )
    write_json(about, found)
    return net, read_json(about)


def cpu_seconds(out, start=False):
    """Processor seconds that training took, over all parts of a run: called at the start of a part
    and at every report."""
    path = out / "cpu.json"
    now = time.process_time()
    before = read_json(path) if path.is_file() else dict(spent=0)
    spent = before["spent"] if start else before["spent"] + now - before["at"]
    write_json(path, dict(spent=round(spent, 1), at=now))
    return round(spent, 1)


def stages(args, train):
    "(State file, crops, steps, learning rate, loss) of each stage of the training."
    first_loss = VideoVAELoss(perceptual=args.perceptual)
    size = (args.frames, args.crop)
    last = [(clips, share) for (clips, _), share in zip(train, LAST_SHARES)]
    return [
        ("state", CropSampler(train, *size), args.steps, args.lr, first_loss),
        (
            "state-colour",
            CropSampler(train, *size, color_jitter=0.5),
            args.color_steps,
            args.lr / 2,
            first_loss,
        ),
        (
            "state-last",
            CropSampler(last, *size, color_jitter=0.5, mixup=0.4),
            args.last_steps,
            args.lr,
            LAST_LOSS,
        ),
    ]


def train_stages(args, ae, train, perceptual_net):
    "All stages in turn; returns what is recorded of them."

    def report(step, done, terms):
        shown = {name: round(value, 5) for name, value in terms.items()}
        spent = cpu_seconds(args.out)
        print(f"step {step}, {done:.0%}, {spent:.0f} s of a core:", shown, flush=True)

    cpu_seconds(args.out, start=True)
    for seed, (name, crops, steps, lr, loss) in enumerate(stages(args, train)):
        log = train_video_vae(
            ae,
            crops,
            steps=steps,
            lr=lr,
            loss=loss,
            pca=seed == 0,
            seed=seed,
            batch=args.batch,
            perceptual_net=perceptual_net,
            every=50,
            report=report,
            state=args.out / f"{name}.safetensors",
        )
    log["steps"] = args.steps + args.color_steps + args.last_steps
    log["cpu_seconds"] = cpu_seconds(args.out)
    return log


def recipe(args):
    "What the training was told, by the names of the record."
    return dict(
        steps=args.steps,
        colour_steps=args.color_steps,
        last_steps=args.last_steps,
        batch=args.batch,
        crop=args.crop,
        frames=args.frames,
        lr=args.lr,
    )


def bars(result):
    "The decibels that the project set itself, and whether they are reached."
    found = {
        name: dict(bar=bar, met=result["held_out"][name]["db"] >= bar) for name, bar in BARS.items()
    }
    found["at_480p"] = dict(bar=BAR_480P, met=result["at_480p"]["psnr"] >= BAR_480P)
    return found


def train(args):
    "Train, measure, and with --ship write what ships."
    train_clips, held_out = sources(args.data, args.out, args.few)
    crops = CropSampler(train_clips, args.frames, args.crop)
    ae = CausalVideoVAE(**MODEL)
    print("clips to train on:", [len(clips) for clips in crops.clips], flush=True)
    ae.init_pca(crops.sample(256, torch.Generator().manual_seed(0))[0])
    pca = quality(ae, held_out)
    print("PCA start:", decibels(pca), flush=True)
    net, about_net = perceptual_net_for(crops, args.out, args.eyes)
    print("perceptual net:", about_net, flush=True)
    log = train_stages(args, ae, train_clips, net)
    ae = ae.half().float().eval()  # what is shipped is what is measured
    ae.save_pretrained(args.out / "model")
    result = dict(
        machine=machine(),
        model=MODEL,
        recipe=recipe(args),
        training=log,
        eyes=about_net,
        pca=pca,
        held_out=quality(ae, held_out),
    )
    files = sorted((args.data / "signs").glob(FILES["signs"]))
    wide = split_files(files, 8)[1][5]
    result["at_480p"] = at_480p(ae, args.out / "model", wide, args.wide)
    result["bars"] = bars(result)
    write_json((RECORDS if args.ship else args.out) / "video_vae.json", result)
    if args.ship:
        save_half(ae, SHIPPED / "video-vae")
        write_card(ae, result, SHIPPED / "video-vae")
        draw(ae, held_out)
    shown = ("training", "held_out", "at_480p", "bars")
    print(json.dumps({name: result[name] for name in shown}, indent=1))


def write_card(ae, result, folder):
    "data/video-vae's README.md, from the record."
    size = (folder / "model.safetensors").stat().st_size / 1e6
    if size > MAX_MEGABYTES:
        raise ValueError(f"{folder}: {size:.1f} MB of weights, at most {MAX_MEGABYTES} are shipped")
    rows = []
    for name, found in result["held_out"].items():
        side = name[-2:] if name.endswith("64") else 128
        measure = found["measure"].replace("_", " ")
        rows.append(
            f"| {name} | {side} | {measure} | {found['db']} | {result['pca'][name]['db']} |"
        )
    wide = result["at_480p"]
    rows.append(f"| a signs clip, in tiles | {wide['size']} | psnr | {wide['psnr']} | |")
    told = result["recipe"]
    card = CARD.format(
        rows="\n".join(rows),
        channels=ae.spec.channels,
        weights=sum(p.numel() for p in ae.parameters()),
        megabytes=size,
        minutes=result["training"]["cpu_seconds"] / 60,
        steps=result["training"]["steps"],
        color=told["colour_steps"] + told["last_steps"],
        last=told["last_steps"],
    )
    (folder / "README.md").write_text(card)


@torch.no_grad()
def draw(ae, held_out):
    """Two held-out words of the avatar and two of people, above what comes back:
    nbs/images/video-vae.webp."""
    clips = to_float(torch.cat([held_out["signs"][[0, 7]], held_out["asl"][:2]]))
    rows = [torch.cat(list(part), -1) for part in (clips, ae(clips))]  # (3, T, H, 4·W)
    picture = viz.animation_bytes(torch.cat(rows, -2), fps=8)
    (IMAGES / "video-vae.webp").write_bytes(picture)


def score(args):
    """Measure the shipped weights, and the PCA that they started from, on the held-out sources
    named; the rest of the record stays."""
    train_clips, held_out = sources(args.data, args.out, args.few)
    for name in args.score:
        if name not in held_out:
            known = ", ".join(held_out)
            raise SystemExit(f"--score {name}: no such held-out source; known: {known}")
    some = {name: held_out[name] for name in args.score}
    start = CausalVideoVAE(**MODEL)
    crops = CropSampler(train_clips, args.frames, args.crop)
    start.init_pca(crops.sample(256, torch.Generator().manual_seed(0))[0])
    ae = load_autoencoder(args.folder)
    result = read_json(args.record)
    for part, net in (("pca", start), ("held_out", ae)):
        found = result[part] | quality(net, some)
        result[part] = {name: found[name] for name in held_out if name in found}
        print(part, decibels({name: found[name] for name in some}))
    result["scored_later"] = dict(sources=args.score, machine=machine())
    write_json(args.record, result)
    write_card(ae, result, args.folder)


def parse_arguments():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--data", type=Path, default=DATASETS, help="the folder that holds signs, asl and mnist"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "runs" / "video-vae",
        help="decoded clips and the run's state (default: runs/video-vae)",
    )
    parser.add_argument(
        "--steps", type=int, default=10_000, help="steps of training, about 45 minutes of one core"
    )
    parser.add_argument(
        "--color-steps",
        type=int,
        default=3000,
        help="steps after those, at half the rate, on crops of other colors",
    )
    parser.add_argument(
        "--last-steps",
        type=int,
        default=8500,
        help="steps after those, on clips laid over each other too, for the squared error",
    )
    parser.add_argument("--batch", type=int, default=5, help="crops per step")
    parser.add_argument("--crop", type=int, default=48, help="pixels, each side of a crop")
    parser.add_argument("--frames", type=int, default=13, help="frames of a crop, 1 + 4k")
    parser.add_argument("--lr", type=float, default=2e-3, help="the highest learning rate")
    parser.add_argument(
        "--perceptual",
        type=float,
        default=VideoVAELoss.perceptual,
        help="weight of the perceptual distance",
    )
    parser.add_argument(
        "--eyes", type=int, default=300, help="steps of training of the perceptual network"
    )
    parser.add_argument(
        "--wide", type=int, default=17, help="frames of the clip at 848×480, 1 + 4k"
    )
    parser.add_argument("--few", type=int, help="use only so many clips of each source")
    parser.add_argument(
        "--threads", type=int, default=0, help="processor threads; 0: as many as torch takes"
    )
    parser.add_argument(
        "--ship", action="store_true", help="write benchmarks/video_vae.json and data/video-vae"
    )
    parser.add_argument(
        "--score",
        nargs="+",
        metavar="SOURCE",
        help="measure the shipped weights on these held-out sources; no training",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=SHIPPED / "video-vae",
        help="the weights that --score measures, and their card (default: data/video-vae)",
    )
    parser.add_argument(
        "--record",
        type=Path,
        default=RECORDS / "video_vae.json",
        help="the record that --score updates (default: benchmarks/video_vae.json)",
    )
    return parser.parse_args()


def main():
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.score:
        score(args)
    else:
        train(args)


if __name__ == "__main__":
    main()
