"""What longer.py measures: pictures that become clips, films, and clips made larger."""

import time

import torch
from common import moving_psnr
from longer_data import FRAMES, held_out_scenes, held_out_signs, interpolate, resize

from minisora.clips import MOTIONS, SceneClips, scene_caption
from minisora.data.video import to_float
from minisora.evaluation.judge import AttributeClassifier, attribute_accuracy, train_judge
from minisora.frames import joint_discontinuity
from minisora.metrics import area_flicker, foreground_psnr, jerk_px, psnr, shape_measures

BACK = dict(left="right", up="down", grow="shrink")
BACK |= {b: a for a, b in BACK.items()}


def scene_judge(args, autoencoder):
    "A classifier of objects, colors and nine motions, trained on real clips and reconstructions."
    path = args.work / "judge"
    if not path.is_dir():
        clips = SceneClips(6200, "all", seed=2, motions=MOTIONS, frames=FRAMES)
        judge = train_judge(clips, steps=400, autoencoder=autoencoder)
        judge.save_pretrained(path)
    return AttributeClassifier.from_pretrained(path)


def image_to_video(args, pipe, judge):
    "Held-out combinations begun from a real first frame and the caption."
    clips, items = held_out_scenes(args.n, size=64)
    first = to_float(clips[:, :, :1])
    cpu = time.process_time()
    made = pipe([item.caption for item in items], frames=first, seed=1, batch_size=24).frames
    cpu = time.process_time() - cpu
    wanted = [item.attributes for item in items]
    objects = [item.attributes["object"] for item in items]
    return dict(
        sampling_cpu_seconds_a_clip=round(cpu / len(items), 2),
        **attribute_accuracy(judge, made, wanted),
        **shape_measures(made, objects),
        first_frame_psnr=round(float(psnr(made[:, :, :1], clips[:, :, :1])), 2),
        jerk_px=float(jerk_px(made)),
        real_jerk_px=float(jerk_px(clips)),
        flicker=float(area_flicker(made)),
        real=attribute_accuracy(judge, clips, wanted),
    )


def text_to_video(args, pipe, judge):
    "The same combinations from their captions alone."
    _, items = held_out_scenes(args.n, size=64)
    made = pipe([item.caption for item in items], seed=1, batch_size=24).frames
    wanted = [item.attributes for item in items]
    objects = [item.attributes["object"] for item in items]
    accuracy = attribute_accuracy(judge, made, wanted)
    return accuracy | shape_measures(made, objects)


def film_prompts(attributes, clips):
    "Captions of a film: there and back again, or the same motion on and on."
    motions = [attributes["motion"]]
    while len(motions) < clips:
        motions.append(BACK.get(motions[-1], motions[-1]))
    return [scene_caption(attributes["object"], attributes["colour"], m) for m in motions]


def films(args, pipe, judge, overlap=2, clips=7, n=36):
    "Films of 10 s and more from a real first frame, each clip continuing from the one before."
    real, items = held_out_scenes(n, size=64, seed=6)
    shared = pipe.autoencoder.spec.clip_shape(overlap, 1, 1)[1]
    joints = [FRAMES + k * (FRAMES - shared) for k in range(clips - 1)]
    hardest = []
    last = []
    for i, item in enumerate(items):
        first = to_float(real[i, :, :1])
        film = pipe.film(
            film_prompts(item.attributes, clips), frames=first, overlap=overlap, seed=i
        )
        hardest.append(max(joint_discontinuity(film.frames[0], joints)))
        last.append(film.frames[0, :, -FRAMES:])
    wanted = [{k: v for k, v in item.attributes.items() if k != "motion"} for item in items]
    accuracy = attribute_accuracy(judge, torch.stack(last), wanted)
    hardest = torch.tensor(hardest)
    return dict(
        n=n,
        seconds=film.frames.shape[2] / pipe.fps,
        overlap=overlap,
        same_at_the_end=accuracy,
        hardest_joint_median=float(hardest.median()),
        joints_no_harder=float((hardest <= 1).double().mean()),
    )


def compare(made, clips, objects=None):
    "PSNR, shapes and flicker of clips in [-1, 1] beside the real ones, uint8."
    found = dict(psnr=round(float(psnr(made, clips)), 2), flicker=float(area_flicker(made)))
    if objects:
        found |= shape_measures(made, objects)
        found |= dict(foreground_psnr=round(float(foreground_psnr(made, clips)), 2))
    else:
        found |= dict(moving_psnr=round(moving_psnr(made, to_float(clips)), 2))
    return found


def enlarged(pipe, small, side, **options):
    "By bicubic interpolation, and by the upsampler, clip by clip."
    made = [
        pipe(small[i : i + 1], factor=side // small.shape[-1], index=[i], **options)
        for i in range(len(small))
    ]
    return interpolate(small, side), torch.cat(made)


def upsampling(args, pipe, n=72):
    "Held-out scenes and signs, 64 -> 256 pixels, bicubic interpolation beside it."
    clips, items = held_out_scenes(n)
    objects = [item.attributes["object"] for item in items]
    small = resize(to_float(clips), 64)
    cpu = time.process_time()
    bicubic, made = enlarged(pipe, small, 256)
    cpu = time.process_time() - cpu
    scenes = dict(
        n=n,
        cpu_seconds_a_clip=round(cpu / n, 2),
        bicubic=compare(bicubic, clips, objects),
        made=compare(made, clips, objects),
        real=compare(to_float(clips), clips, objects),
    )
    signs, words = held_out_signs(args.data, 24)
    if signs is None:
        return dict(scenes=scenes)
    bicubic, made = enlarged(pipe, resize(to_float(signs), 64), 256)
    return dict(
        scenes=scenes,
        signs=dict(n=len(words), bicubic=compare(bicubic, signs), made=compare(made, signs)),
    )


def measure(args, pipe):
    "All of it."
    judge = scene_judge(args, pipe.autoencoder)
    found = {}
    for name, part in dict(
        image_to_video=lambda: image_to_video(args, pipe, judge),
        text_to_video=lambda: text_to_video(args, pipe, judge),
        films=lambda: films(args, pipe, judge),
        upsampling=lambda: upsampling(args, pipe.upsampler),
    ).items():
        found[name] = part()
        print(name, found[name], flush=True)
    return found
