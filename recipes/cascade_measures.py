"""What cascade.py measures: reconstructions, pictures and clips from captions, flicker, memory."""

import json
import subprocess
import sys
import time

import torch
from common import RECORDS, SHIPPED
from longer_data import held_out_scenes

from minisora.autoencoder import load_autoencoder
from minisora.cascade import without_time
from minisora.data.video import to_float
from minisora.evaluation.judge import attribute_accuracy
from minisora.metrics import area_flicker, foreground_psnr, jerk_px, psnr, shape_measures

FRAMES = 16
SIDE = 128


def held_out(n):
    "n scenes of combinations that were not trained on: uint8 (n, 3, T, H, W), and the items."
    return held_out_scenes(n, SIDE, frames=FRAMES)


def overlap(made, real):
    "Mean over the frames of intersection over union of what is not black, of clips in [-1, 1]."
    both = [clips.amax(1) > -0.5 for clips in (made, real)]
    shared = (both[0] & both[1]).flatten(2).sum(2)
    either = (both[0] | both[1]).flatten(2).sum(2)
    return float((shared / either.clamp(min=1)).mean())


def motion_measures(clips):
    return dict(jerk_px=float(jerk_px(clips)), flicker=float(area_flicker(clips)))


def look(made, real, objects):
    "Reconstructions in [-1, 1] beside the real clips, uint8."
    return dict(
        psnr=round(float(psnr(made, real)), 2),
        foreground_psnr=round(float(foreground_psnr(made, real)), 2),
        overlap=overlap(made, to_float(real)),
        **shape_measures(made, objects),
        **motion_measures(made),
    )


@torch.no_grad()
def through(autoencoder, real):
    "Real clips, uint8, encoded and decoded, in [-1, 1]; the last frame again where frames lack."
    frames = real.shape[2]
    lacking = -(frames - 1) % autoencoder.spec.factors[0]
    whole = torch.cat([real, real[:, :, -1:].expand(-1, -1, lacking, -1, -1)], 2)
    made = torch.cat([autoencoder(part) for part in to_float(whole).split(8)])
    return made[:, :, :frames].clamp(-1, 1)


def reconstructions(pipe, n=72):
    "Code -> B -> A, with and without B's layers along time; A alone; the course's video VAE."
    real, items = held_out(n)
    objects = [item.attributes["object"] for item in items]
    cpu = time.process_time()
    made = torch.cat([pipe.reconstruct(part) for part in real.split(8)])
    cpu = time.process_time() - cpu
    with without_time(pipe.decoder):
        framewise = torch.cat([pipe.reconstruct(part) for part in real.split(8)])
    alone = through(pipe.autoencoder, real)
    video_vae = through(load_autoencoder(SHIPPED / "video-vae"), real)
    return dict(
        n=n,
        cpu_seconds_a_clip=round(cpu / n, 2),
        whole=look(made, real, objects),
        frame_by_frame=look(framewise, real, objects),
        stage_a_alone=look(alone, real, objects),
        video_vae_alone=look(video_vae, real, objects),
        real=dict(**shape_measures(real, objects), **motion_measures(real)),
    )


def still(frames):
    "Pictures (B, 3, 1, H, W) as clips that stand still."
    return frames.expand(-1, -1, FRAMES, -1, -1)


def pictures(pipe, judge, n):
    "Object and color of pictures of held-out combinations; real ones beside them."
    real, items = held_out(n)
    wanted = [{k: v for k, v in i.attributes.items() if k != "motion"} for i in items]
    made = pipe([item.caption for item in items], seed=1, batch_size=72).frames
    middle = real[:, :, [FRAMES // 2]]
    return dict(
        made=attribute_accuracy(judge, still(made), wanted),
        real=attribute_accuracy(judge, still(middle), wanted),
        shapes=shape_measures(made, [item.attributes["object"] for item in items]),
    )


def clips(pipe, judge, n):
    "Clips of held-out combinations from their captions."
    real, items = held_out(n)
    wanted = [item.attributes for item in items]
    cpu = time.process_time()
    made = pipe([item.caption for item in items], seed=1, batch_size=24).frames
    cpu = time.process_time() - cpu
    return dict(
        cpu_seconds_a_clip=round(cpu / n, 2),
        **attribute_accuracy(judge, made, wanted),
        **shape_measures(made, [item.attributes["object"] for item in items]),
        **motion_measures(made),
        real=attribute_accuracy(judge, real, wanted),
    )


def large(args, folder):
    "A real clip of 480 rows by way of its code, in a process of its own: its error and memory."
    film = args.data / "film" / "big_buck_bunny_480p_30s.mp4"
    if not film.is_file():
        return dict(skipped=f"no {film.name}")
    script = RECORDS / "cascade_film.py"
    call = [sys.executable, script, film, "--pipeline", folder, "--start", "5"]
    return json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
