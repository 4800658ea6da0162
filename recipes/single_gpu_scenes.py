"""The part `scenes` of single_gpu.py: captioned scenes of nine motions, by our recipe and a plain
one."""

import torch
from common import IMAGES, save_half
from single_gpu_training import DATA_PREDICTION, Autocast, SlicedTraining, count_weights, encode

from minisora import viz
from minisora.autoencoder import load_autoencoder
from minisora.clips import SceneClips, scene_caption
from minisora.core.files import write_json
from minisora.data.video import stack_clips, to_float
from minisora.data.vocabulary import Vocabulary
from minisora.evaluation.judge import AttributeClassifier, attribute_accuracy, train_judge
from minisora.interpolants import Interpolant
from minisora.metrics import area_flicker, jerk_px, shape_measures
from minisora.models.conditions import WordCondition
from minisora.recipe import MODERN_BLOCK
from minisora.sampling import renoise_average, sample
from minisora.temporal import VideoDiT, VideoDiTConfig

BAR = 0.97  # share of held-out prompts that the judge should read right
ATTRIBUTES = ("object", "colour", "motion")  # as the library calls them in judges


def render(args, preset, count, split, seed):
    """Rendered scenes, by several processes beside a GPU: uint8 (count, 3, T, H, W), their captions
    and attributes."""
    data = SceneClips(count, split, seed, frames=preset.frames, size=preset.size[0])
    loader = torch.utils.data.DataLoader(
        data,
        64,
        num_workers=12 if args.device.type == "cuda" else 0,
        collate_fn=lambda clips: stack_clips(clips)[0],
    )
    chosen = [data.combinations[i % len(data.combinations)] for i in range(count)]
    attributes = [dict(zip(ATTRIBUTES, values)) for values in chosen]
    return torch.cat(list(loader)), [scene_caption(*values) for values in chosen], attributes


def scene_judge(args, preset, ae):
    "Trained on real scenes of all combinations and on their reconstructions."
    path = args.work / "judge"
    if not (path / "config.json").is_file():
        clips = SceneClips(
            max(60, preset.clips // 3), "all", 2, frames=preset.frames, size=preset.size[0]
        )
        judge = train_judge(clips, steps=preset.judge_steps, autoencoder=ae, batch=24)
        judge.save_pretrained(path)
    return AttributeClassifier.from_pretrained(path)


def recipes(preset, shape, vocabulary):
    "{name: (config, objective, options of `fit`, options of `sample`)}: ours, and the plain one."
    channels, *size = shape
    common = dict(
        channels=channels,
        size=tuple(size),
        patch=preset.patch,
        width=preset.width,
        depth=preset.depth,
        heads=preset.heads,
    )
    ids = dict(vocab=len(vocabulary), slots=vocabulary.slots)
    ours = VideoDiTConfig(
        **common,
        block=MODERN_BLOCK,
        relative_bias=preset.bias,
        condition=WordCondition(**ids, in_context=True, init_std=0.5),
    )
    plain = VideoDiTConfig(**common, condition=WordCondition(**ids))
    return dict(
        ours=(
            ours,
            Interpolant(**DATA_PREDICTION, shift=6.0),
            dict(lr=preset.lr, schedule="linear", ema=0.998),
            dict(guidance=3.0, guidance_interval=(0.0, 0.5), shift=6.0, solver="ddim", eta=1.0),
        ),
        plain=(plain, Interpolant(), dict(lr=1e-4, ema=0.998), dict(guidance=4.0)),
    )


class Scenes:
    "What the training has: latents, captions, held-out clips, judge."

    def __init__(self, args, preset, stages):
        self.args = args
        self.preset = preset
        self.stages = stages
        self.ae = load_autoencoder(args.vae).to(args.device)
        with stages("rendering"):
            clips, captions, _ = render(args, preset, preset.clips, "train", 0)
            held_out, self.prompts, self.wanted = render(args, preset, preset.judged, "heldout", 1)
        self.held_out = held_out
        with stages("encoding"):
            parts = [encode(self.ae, part, args.device).cpu() for part in clips.split(32)]
        latents = torch.cat(parts)
        self.mean = latents.mean().item()
        self.std = latents.std().item()
        self.vocabulary = Vocabulary.from_captions([*captions, *self.prompts], drop=("a", "moves"))
        ids = self.vocabulary.encode_batch(captions)
        self.data = ((latents - self.mean) / self.std, ids)
        self.condition = self.vocabulary.encode_batch(self.prompts).to(args.device)
        with stages("judge"):
            self.judge = scene_judge(args, preset, self.ae)

    def measure(self, clips):
        "Measures of clips of the held-out prompts, as a dict."
        return dict(
            attribute_accuracy(self.judge, clips, self.wanted),
            **shape_measures(clips, [wanted["object"] for wanted in self.wanted]),
            jerk_px=jerk_px(clips),
            area_flicker=area_flicker(clips),
        )

    def reconstructions(self):
        "The held-out clips through the autoencoder and back."
        parts = [to_float(part).to(self.args.device) for part in self.held_out.split(32)]
        return torch.cat([self.ae(part).clamp(-1, 1).cpu() for part in parts])

    @torch.no_grad()
    def make(self, model, objective, how):
        "A clip of each held-out prompt."
        model = Autocast(model, self.args.device)
        z = sample(
            model,
            objective,
            self.condition,
            steps=self.preset.sample_steps,
            seed=3,
            batch_size=64,
            **how,
        )
        if "eta" in how:
            z = renoise_average(model, objective, z, self.condition, times=3, seed=3)
        parts = [self.ae.decode(part * self.std + self.mean) for part in z.split(32)]
        return torch.cat([part.clamp(-1, 1).cpu() for part in parts])

    def train(self, name, config, objective, options, how):
        "Train by one recipe, measured on the way: (moving average, its clips, what is recorded)."

        def look(step, ema, minutes):
            found = self.measure(self.make(ema, objective, how))
            found.pop("n")
            return found

        training = SlicedTraining(
            self.args,
            self.preset,
            name,
            VideoDiT(config),
            self.data,
            objective,
            look,
            self.preset.looks,
            **options,
        )
        with self.stages(f"training {name}"):
            result, took = training.run()
        return result.ema, self.make(result.ema, objective, how), took


def draw(run, name, clips):
    "A contact sheet, also for the lesson."
    sheet = viz.contact_sheet(clips[:12], run.prompts[:12])
    sheet.save(run.args.out / f"scenes-{name}.png")
    if run.args.record and name == "ours":
        sheet.convert("RGB").save(IMAGES / "single_gpu_scenes_ours.jpg", quality=80)


def write_weights(run, ema):
    "Our model in half precision, and what its latents and words are."
    folder = run.args.out / "scenes"
    save_half(ema, folder)
    about = dict(mean=run.mean, std=run.std, vocabulary=run.vocabulary.to_dict())
    write_json(folder / "latents.json", about)


def times_faster(ours, plain, clock):
    """For each look at ours: minutes to that share of right clips, and the plain recipe's, all of
    them where it never got there."""
    rows = []
    for look in ours:
        reached = [row for row in plain if row["all_right"] >= look["all_right"]]
        took = (reached or plain[-1:])[0][clock]
        rows.append(
            dict(
                all_right=look["all_right"],
                minutes=look[clock],
                plain_minutes=took,
                plain_got_there=bool(reached),
                times=round(took / look[clock], 2),
            )
        )
    return rows


def scenes(args, preset, stages):
    "Train by both recipes and measure; returns what is recorded."
    run = Scenes(args, preset, stages)
    found = dict(
        n=len(run.prompts),
        real=run.measure(to_float(run.held_out)),
        reconstructions=run.measure(run.reconstructions()),
        recipes={},
    )
    shape = run.data[0].shape[1:]
    for name, recipe in recipes(preset, shape, run.vocabulary).items():
        ema, clips, took = run.train(name, *recipe)
        found["recipes"][name] = dict(took, weights=count_weights(ema))
        draw(run, name, clips)
        if name == "ours":
            write_weights(run, ema)
    looks = {name: took["looks"] for name, took in found["recipes"].items()}
    found["all_right"] = looks["ours"][-1]["all_right"]
    found["bar"] = dict(all_right=BAR, met=found["all_right"] >= BAR)
    found["faster"] = times_faster(looks["ours"], looks["plain"], f"{args.clock}minutes")
    return found
