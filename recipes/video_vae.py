"""Train MiniSora's causal video autoencoder on scenes, moving digits and real clips; measure it on held-out ones.

    python benchmarks/video_vae.py            # train, or go on with a run, then measure
    python benchmarks/video_vae.py --ship     # … and write benchmarks/video_vae.json and data/video-vae
    python benchmarks/video_vae.py --score digits64     # only measure the shipped weights on a held-out source again

Stopped at any moment, the same command goes on from the last saved state (every 50 steps), to the bit as if it had
never stopped. Decoded clips are kept in --out. One thread is enough: a step takes about 0.3 s of one core."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from machine import machine
from safetensors.torch import load_file, save_file

from minisora import viz
from minisora.autoencoder import (
    CausalVideoVAE,
    Eyes,
    VideoLoss,
    Windows,
    autoencoder_by_name,
    encode_pieces,
    load_strict,
    tiled_decode,
    train_eyes,
    train_video_vae,
)
from minisora.clips import DigitClips, SceneClips, load_digits, read_video, stack, to_float
from minisora.latent_cache import write_json
from minisora.metrics import foreground_psnr, psnr

ROOT = Path(__file__).resolve().parents[1]
FILES = dict(signs="*.mp4", asl="*.mkv")
MODEL = dict(channels=48, width=128, depth=2)
LAST_SHARES = (
    0.45,
    0.12,
    0.05,
    0.05,
    0.30,
    0.03,
)  # of the sources, in the last stage: more people, fewer signs
LAST_LOSS = VideoLoss(
    l1=0.2, l2=10.0, perceptual=0.05, noise=0.02
)  # nearly the squared error alone

CARD = """---
license: apache-2.0
library_name: minisora
---
# MiniSora's causal video autoencoder

A latent stands for 4 frames and 8×8 pixels, {channels} numbers each; the first frame stands alone, so an image is a clip of one
frame: 1 + 4k frames become 1 + k latents. {weights:,} weights, in half precision, {megabytes:.1f} MB.

Trained from zero by `python benchmarks/video_vae.py --ship` in {minutes:.0f} minutes on one processor core: {steps:,} steps, the last {colour:,}
with the colours of half of the clips exchanged and the last {last:,} of those with clips laid over each other and nearly the squared error
alone, on procedural scenes and moving digits that the library renders, clips of an animated avatar that signs (`signs`, MIT) and of
people who sign (`asl`, CC BY 4.0). Loss: L1, squared error, a perceptual distance from a small network trained in the same
run, and KL; no adversary. No other weights or data went into it.

On clips not trained on (held-out combinations, words and people's clips), in dB:

| what | size | measure | this | its PCA start |
|---|---|---|---|---|
{rows}

It was trained for minutes, on few people and one avatar: take it for the lessons, not for production.

```python
from minisora.autoencoder import autoencoder_by_name
ae = autoencoder_by_name("data/video-vae")
z = ae.encode(clips).mode        # (B, 3, 1 + 4k, H, W) in [-1, 1] -> (B, {channels}, 1 + k, H/8, W/8)
```
"""


def split(files, every):
    "Every `every`-th file is held out: (training, held out)."
    return [f for i, f in enumerate(files) if i % every != every // 2], files[every // 2 :: every]


def decoded(path, make):
    "A uint8 tensor from a file, made and written first where it is missing."
    if not path.is_file():
        save_file(dict(clips=make()), path)
    return load_file(path)["clips"]


def real(folder, name, size, frames, fps, every, thin=1):
    "Functions that read the (training, held-out) uint8 clips of a folder: the middle `frames` frames of every `thin`-th."
    files = sorted((folder / name).glob(FILES[name]))
    if not files:
        raise FileNotFoundError(f"no {FILES[name]} in {folder / name}")
    read = lambda some: torch.stack([read_video(f, frames, size, fps).frames for f in some])
    return [lambda s=s: read(s[::thin]) for s in split(files, every)]


def rendered(n, split, seed, size, frames=17):
    return stack(SceneClips(n, split, seed, frames=frames, size=size))[0]


def sources(data, out, few):
    "What is trained on, [(clips, share)], and what is held out, {name: clips}; `few` clips of each for a quick look."
    signs, signs_held = real(data, "signs", 128, 25, 24, 8)
    asl, asl_held = real(data, "asl", 128, 33, 30, 5)
    large, _ = real(data, "signs", 320, 13, 24, 8, thin=4)
    mnist = data / "mnist" / "mnist.npz"
    digits = lambda: stack(DigitClips(*load_digits(mnist), 300, frames=17))[0]
    digits_held = lambda: stack(
        DigitClips(*load_digits(mnist, "test"), 36, "heldout", 4, frames=17)
    )[0]
    get = lambda name, make: decoded(out / f"{name}.safetensors", make)[:few]
    train = [
        (get("scenes64", lambda: rendered(2400, "train", 0, 64)), 0.42),
        (get("scenes128", lambda: rendered(600, "train", 1, 128)), 0.18),
        (get("digits64", digits), 0.08),
        (get("signs", signs), 0.07),
        (get("asl", asl), 0.21),
        (get("large", large), 0.04),
    ]
    held = dict(
        scenes64=get("held64", lambda: rendered(36, "heldout", 2, 64)),
        scenes128=get("held128", lambda: rendered(18, "heldout", 3, 128)),
        digits64=get("held_digits", digits_held),
        signs=get("held_signs", signs_held)[:, :, :17],
        asl=get("held_asl", asl_held)[:, :, :17],
    )
    return train, held


def widescreen(path, frames, height=480, width=848):
    "The first frames of a video file at 848×480: uint8 (1, 3, T, H, W)."
    with av.open(str(path)) as c:
        pictures = [f.to_ndarray(format="rgb24") for f, _ in zip(c.decode(video=0), range(frames))]
    x = torch.stack([torch.from_numpy(p) for p in pictures]).permute(0, 3, 1, 2).float()
    x = (
        F.interpolate(x, (height, width), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )
    return x.transpose(0, 1)[None]


@torch.no_grad()
def quality(ae, held):
    "dB on held-out clips: PSNR for real ones, foreground PSNR for those drawn on black; over all, and of the worst clip."
    out = {}
    for name, clips in held.items():
        y, measure = (
            torch.cat([ae(to_float(c)) for c in clips.split(4)]),
            psnr if name in FILES else foreground_psnr,
        )
        worst = min(float(v) for v in measure(y, clips, per_clip=True))
        out[name] = dict(
            measure=measure.__name__,
            clips=len(clips),
            db=round(float(measure(y, clips)), 2),
            worst=round(worst, 2),
        )
    return out


def peak(mode, folder, frames):
    "Peak resident memory (MB) and seconds of decoding 848×480 in a process of its own."
    out = subprocess.run(
        [
            sys.executable,
            __file__,
            "--peak",
            mode,
            "--folder",
            str(folder),
            "--frames",
            str(frames),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


def resident():
    "Peak resident memory of this process in MB. From /proc: getrusage would count the parent's before the exec too."
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(k for k in lines if k.startswith("VmHWM")).split()[1]) / 1024)


@torch.no_grad()
def measure_peak(mode, folder, frames):
    ae = autoencoder_by_name(folder)
    z = torch.randn(
        1,
        ae.spec.channels,
        1 + (frames - 1) // 4,
        60,
        106,
        generator=torch.Generator().manual_seed(0),
    )
    base, start = resident(), time.perf_counter()
    if mode == "whole":
        ae.decode(z)
    if mode == "tiled":
        tiled_decode(ae, z)
    print(
        json.dumps(
            dict(peak_mb=resident(), before_mb=base, seconds=round(time.perf_counter() - start, 1))
        )
    )


@torch.no_grad()
def at_480p(ae, folder, path, frames):
    "One held-out signs clip at 848×480: encoded in pieces, decoded in tiles; quality, and memory against decoding whole."
    clip = to_float(widescreen(path, frames))
    pieces = [clip[:, :, :1], *clip[:, :, 1:].split(4, 2)]
    z = torch.cat([m.mode for m in encode_pieces(ae, pieces)], 2)
    y = tiled_decode(ae, z)
    off = (y - ae.decode(z)).abs().max().item()
    return dict(
        file=path.name,
        frames=frames,
        size="848x480",
        psnr=round(float(psnr(y, clip)), 2),
        largest_difference_to_whole=round(off, 5),
        whole=peak("whole", folder, frames),
        tiled=peak("tiled", folder, frames),
    )


def eyes_for(windows, out, steps):
    "The perceptual network, trained once a run."
    n, path = sum(len(c) for c in windows.clips), out / "eyes.safetensors"
    about = out / "eyes.json"
    if path.is_file():
        eyes = Eyes(n)
        load_strict(eyes, path)
        return eyes.eval().requires_grad_(False), json.loads(about.read_text())
    start = time.perf_counter()
    eyes, (clip, kind) = train_eyes(windows.frame, n, steps)
    save_file(eyes.state_dict(), path)
    write_json(
        about,
        dict(
            clips=n,
            steps=steps,
            seconds=round(time.perf_counter() - start, 1),
            which_clip=round(clip, 3),
            how_spoilt=round(kind, 3),
        ),
    )
    return eyes, json.loads(about.read_text())


def cpu(out, start=False):
    "Processor seconds that training took, over all parts of a run: called at the start of a part and every report."
    path, now = out / "cpu.json", time.process_time()
    before = json.loads(path.read_text()) if path.is_file() else dict(spent=0)
    spent = before["spent"] if start else before["spent"] + now - before["at"]
    write_json(path, dict(spent=round(spent, 1), at=now))
    return round(spent, 1)


def ship(ae, result, folder):
    "Half-precision weights, config and card into data/video-vae."
    ae.save_pretrained(folder)
    save_file(
        {k: v.half().contiguous() for k, v in ae.state_dict().items()}, folder / "model.safetensors"
    )
    write_card(ae, result, folder)


def write_card(ae, result, folder):
    "data/video-vae's README.md, from the record."
    size = (folder / "model.safetensors").stat().st_size / 1e6
    if size > 8:
        raise ValueError(f"{folder}: {size:.1f} MB of weights, at most 8 are shipped")
    rows = [
        f"| {k} | {k[-2:] if k.endswith('64') else 128} | {v['measure'].replace('_', ' ')} | {v['db']} | {result['pca'][k]['db']} |"
        for k, v in result["held_out"].items()
    ]
    wide = result["at_480p"]
    rows.append(f"| a signs clip, in tiles | {wide['size']} | psnr | {wide['psnr']} | |")
    card = CARD.format(
        rows="\n".join(rows),
        channels=ae.spec.channels,
        weights=sum(p.numel() for p in ae.parameters()),
        megabytes=size,
        minutes=result["training"]["cpu_seconds"] / 60,
        steps=result["training"]["steps"],
        colour=result["recipe"]["colour_steps"] + result["recipe"]["last_steps"],
        last=result["recipe"]["last_steps"],
    )
    (folder / "README.md").write_text(card)


def score(a):
    "Measure the shipped weights, and the PCA they started from, on the held-out sources named; the rest of the record stays."
    train, held = sources(a.data, a.out, a.few)
    unknown = sorted(set(a.score) - set(held))
    if unknown:
        raise ValueError(f"--score {unknown[0]}: no such held-out source; known: {', '.join(held)}")
    path, folder = ROOT / "benchmarks" / "video_vae.json", ROOT / "data" / "video-vae"
    result, some, start = (
        json.loads(path.read_text()),
        {k: held[k] for k in a.score},
        CausalVideoVAE(**MODEL),
    )
    start.init_pca(Windows(train, a.frames, a.crop).draw(256, torch.Generator().manual_seed(0))[0])
    ae = autoencoder_by_name(folder)
    for part, net in (("pca", start), ("held_out", ae)):
        found = result[part] | quality(net, some)
        result[part] = {k: found[k] for k in held if k in found}
        print(part, {k: result[part][k]["db"] for k in some})
    result["scored_later"] = dict(sources=a.score, machine=machine())
    write_json(path, result)
    write_card(ae, result, folder)


@torch.no_grad()
def picture(ae, held):
    "Two held-out words of the avatar and two of people, above what comes back: nbs/images/video-vae.webp."
    x = to_float(torch.cat([held["signs"][[0, 7]], held["asl"][:2]]))
    rows = [torch.cat(list(c), -1) for c in (x, ae(x))]  # each (3, T, H, 4·W)
    (ROOT / "nbs" / "images" / "video-vae.webp").write_bytes(
        viz.animated(torch.cat(rows, -2), fps=8)
    )


def main(a):
    a.out.mkdir(parents=True, exist_ok=True)
    if a.threads:
        torch.set_num_threads(a.threads)
    train, held = sources(a.data, a.out, a.few)
    windows, ae = Windows(train, a.frames, a.crop), CausalVideoVAE(**MODEL)
    print("clips to train on:", [len(c) for c in windows.clips], flush=True)
    ae.init_pca(windows.draw(256, torch.Generator().manual_seed(0))[0])
    pca = quality(ae, held)
    print("PCA start:", {k: v["db"] for k, v in pca.items()}, flush=True)
    eyes, about_eyes = eyes_for(windows, a.out, a.eyes)
    print("eyes:", about_eyes, flush=True)

    def report(step, done, terms):
        print(
            f"step {step}, {done:.0%}, {cpu(a.out):.0f} s of a core:",
            {k: round(v, 5) for k, v in terms.items()},
            flush=True,
        )

    cpu(a.out, start=True)
    first_loss = VideoLoss(perceptual=a.perceptual)
    colourful = Windows(train, a.frames, a.crop, recolour=0.5)
    last = Windows(
        [(c, share) for (c, _), share in zip(train, LAST_SHARES)],
        a.frames,
        a.crop,
        recolour=0.5,
        mix=0.4,
    )
    stages = [
        ("state", windows, a.steps, a.lr, first_loss),
        ("state-colour", colourful, a.colour_steps, a.lr / 2, first_loss),
        ("state-last", last, a.last_steps, a.lr, LAST_LOSS),
    ]
    for k, (name, some, steps, lr, loss) in enumerate(stages):
        log = train_video_vae(
            ae,
            some,
            steps=steps,
            lr=lr,
            loss=loss,
            pca=k == 0,
            seed=k,
            batch=a.batch,
            eyes=eyes,
            every=50,
            report=report,
            state=a.out / f"{name}.safetensors",
        )
    log["steps"] = a.steps + a.colour_steps + a.last_steps
    log["cpu_seconds"] = cpu(a.out)
    ae = ae.half().float().eval()  # what is shipped is what is measured
    ae.save_pretrained(a.out / "model")
    result = dict(
        machine=machine(),
        model=MODEL,
        recipe=dict(
            steps=a.steps,
            colour_steps=a.colour_steps,
            last_steps=a.last_steps,
            batch=a.batch,
            crop=a.crop,
            frames=a.frames,
            lr=a.lr,
        ),
        training=log,
        eyes=about_eyes,
        pca=pca,
        held_out=quality(ae, held),
    )
    wide = split(sorted((a.data / "signs").glob(FILES["signs"])), 8)[1][5]
    result["at_480p"] = at_480p(ae, a.out / "model", wide, a.wide)
    bars = dict(scenes64=27, scenes128=27, signs=30, asl=30)
    result["bars"] = {k: dict(bar=b, met=result["held_out"][k]["db"] >= b) for k, b in bars.items()}
    result["bars"]["at_480p"] = dict(bar=30, met=result["at_480p"]["psnr"] >= 30)
    write_json(
        ROOT / "benchmarks" / "video_vae.json" if a.ship else a.out / "video_vae.json", result
    )
    if a.ship:
        ship(ae, result, ROOT / "data" / "video-vae")
        picture(ae, held)
    print(json.dumps({k: result[k] for k in ("training", "held_out", "at_480p", "bars")}, indent=1))


if __name__ == "__main__":
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="the folder that holds signs, asl and mnist",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=ROOT / "runs" / "video-vae",
        help="decoded clips and the run's state",
    )
    p.add_argument(
        "--steps", type=int, default=10_000, help="steps of training, about 45 minutes of one core"
    )
    p.add_argument(
        "--colour-steps",
        type=int,
        default=3000,
        help="steps after those, at half the rate, on windows of other colours",
    )
    p.add_argument(
        "--last-steps",
        type=int,
        default=8500,
        help="steps after those, on clips laid over each other too, for the squared error",
    )
    p.add_argument("--batch", type=int, default=5, help="windows a step")
    p.add_argument("--crop", type=int, default=48, help="pixels, each side of a window")
    p.add_argument("--frames", type=int, default=13, help="frames of a window, 1 + 4k")
    p.add_argument("--lr", type=float, default=2e-3, help="the highest learning rate")
    p.add_argument(
        "--perceptual",
        type=float,
        default=VideoLoss.perceptual,
        help="weight of the perceptual distance",
    )
    p.add_argument(
        "--eyes", type=int, default=300, help="steps of training of the perceptual network"
    )
    p.add_argument("--wide", type=int, default=17, help="frames of the clip at 848×480, 1 + 4k")
    p.add_argument(
        "--few",
        type=int,
        default=None,
        help="use only so many clips of each source, for a quick look",
    )
    p.add_argument(
        "--threads", type=int, default=0, help="processor threads; 0: as many as torch takes"
    )
    p.add_argument(
        "--ship", action="store_true", help="write benchmarks/video_vae.json and data/video-vae"
    )
    p.add_argument("--peak", choices=("whole", "tiled"), help=argparse.SUPPRESS)
    p.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    p.add_argument(
        "--score",
        nargs="+",
        metavar="SOURCE",
        help="measure the shipped weights on these held-out sources; no training",
    )
    a = p.parse_args()
    if a.peak:
        measure_peak(a.peak, a.folder, a.frames)
    elif a.score:
        a.out.mkdir(parents=True, exist_ok=True)
        score(a)
    else:
        main(a)
