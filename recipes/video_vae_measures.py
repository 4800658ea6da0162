"""What video_vae.py measures: held-out clips, and a clip at 848×480 with the memory it takes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from einops import rearrange

from minisora.autoencoder import load_autoencoder
from minisora.data.video import to_float
from minisora.latents.tiling import tiled_decode
from minisora.latents.video_vae import encode_stream
from minisora.metrics import foreground_psnr, psnr

REAL = ("signs", "asl")  # sources that are no drawings on black


@torch.no_grad()
def quality(ae, held_out):
    """dB on held-out clips, {name: clips}: PSNR for real ones, foreground PSNR for those drawn on
    black; over all, and of the worst clip."""
    found = {}
    for name, clips in held_out.items():
        made = torch.cat([ae(to_float(part)) for part in clips.split(4)])
        measure = psnr if name in REAL else foreground_psnr
        found[name] = dict(
            measure=measure.__name__,
            clips=len(clips),
            db=round(float(measure(made, clips)), 2),
            worst=round(min(float(v) for v in measure(made, clips, per_clip=True)), 2),
        )
    return found


def decibels(found):
    "What `quality` found, in one line."
    return {name: values["db"] for name, values in found.items()}


def widescreen(path, frames, height=480, width=848):
    "The first frames of a video file at 848×480: uint8 (1, 3, T, H, W)."
    with av.open(str(path)) as file:
        read = zip(file.decode(video=0), range(frames))
        pictures = [frame.to_ndarray(format="rgb24") for frame, _ in read]
    clip = torch.stack([torch.from_numpy(picture) for picture in pictures])
    clip = rearrange(clip, "t h w c -> t c h w").float()
    clip = F.interpolate(clip, (height, width), mode="bilinear", antialias=True)
    clip = clip.round().clamp(0, 255).to(torch.uint8)
    return rearrange(clip, "t c h w -> 1 c t h w")


@torch.no_grad()
def at_480p(ae, folder, path, frames):
    """One held-out signs clip at 848×480: encoded in pieces, decoded in tiles; quality, and memory
    beside decoding it whole."""
    clip = to_float(widescreen(path, frames))
    pieces = [clip[:, :, :1], *clip[:, :, 1:].split(4, 2)]
    z = torch.cat([part.mode for part in encode_stream(ae, pieces)], 2)
    made = tiled_decode(ae, z)
    difference = (made - ae.decode(z)).abs().max().item()
    return dict(
        file=path.name,
        frames=frames,
        size="848x480",
        psnr=round(float(psnr(made, clip)), 2),
        largest_difference_to_whole=round(difference, 5),
        whole=peak("whole", folder, frames),
        tiled=peak("tiled", folder, frames),
    )


def peak(mode, folder, frames):
    "Peak resident memory (MB) and seconds of decoding 848×480 in a process of its own."
    command = [sys.executable, __file__, mode, str(folder), str(frames)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])


def resident():
    """Peak resident memory of this process in MB. From /proc: getrusage would count the parent's
    before the exec too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024)


@torch.no_grad()
def measure_peak(mode, folder, frames):
    "Decode noise at 848×480, 'whole' or 'tiled': what `peak` asks for."
    ae = load_autoencoder(folder)
    shape = (1, ae.spec.channels, 1 + (frames - 1) // 4, 60, 106)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = resident()
    start = time.perf_counter()
    if mode == "whole":
        ae.decode(z)
    else:
        tiled_decode(ae, z)
    seconds = round(time.perf_counter() - start, 1)
    return dict(peak_mb=resident(), before_mb=before, seconds=seconds)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("whole", "tiled"):
        raise SystemExit(f"{__doc__}\n\npython {sys.argv[0]} whole|tiled FOLDER FRAMES")
    print(json.dumps(measure_peak(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
