"""The two trainings of lesson 16, on one GPU (or, much reduced, on a processor): benchmarks/single_gpu.json.

    python benchmarks/single_gpu.py --part signs  --data ../shared/data --out $OUT     # ten minutes of one H100
    python benchmarks/single_gpu.py --part scenes --data ../shared/data --out $OUT     # ten minutes more
    python benchmarks/single_gpu.py --part signs --preset cpu --chunk 3                # again and again, until it is done
    python benchmarks/single_gpu.py --part scenes --preset smoke                       # does it run? (seconds)
    python benchmarks/single_gpu.py --part plan                                        # what 480p will need: counted, not run

`signs`: type a word, get the avatar signing it at 480p, and a sentence by going on from the last frames; words are
held out. `scenes`: captioned scenes of nine motions, held-out combinations read by a judge, the plain recipe and ours
by minutes of training. Everything measured goes to single_gpu.json in --out, with films (mp4), a contact sheet (png)
and the weights in half precision: at most eight files, none above 15 MB. What takes long is kept in --work, so the same command
goes on where it was stopped; --chunk leaves after so many minutes of training, to be called again."""

import argparse
import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from compression import moving_psnr
from first_video import halve
from machine import machine
from PIL import Image
from safetensors.torch import load_file, save_file

from minisora import viz
from minisora.autoencoder import autoencoder_by_name, tiled_decode
from minisora.clips import (
    SceneClips,
    Vocabulary,
    caption_of,
    read_video,
    scene_caption,
    stack,
    to_float,
    write_video,
)
from minisora.interpolants import Interpolant
from minisora.latent_cache import write_json
from minisora.metrics import (
    Judge,
    area_flicker,
    jerk_px,
    judge_clips,
    nearest_clip,
    psnr,
    shape_measures,
    train_judge,
)
from minisora.pipeline import MODERN
from minisora.sampling import sample, settle
from minisora.single_gpu import Avatar, Continuation, FoldedVAE, seams, training_flops, tune_refiner
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import estimate, fit

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "nbs" / "images"
NEAR = (60, 104)  # height and width at which clips are compared with those of the training
REST = "rest"  # the caption of a clip that runs backwards: from the sign to arms at rest
OURS = dict(prediction="data", weight="velocity", max_weight=25.0, std=1.4)


CARD = """---
license: apache-2.0
library_name: minisora
---
# An avatar that signs, at 480p

Type words, get a film: 864×480 pixels, 33 frames a word, each clip going on where the last one ended. Weights in half precision.
Made by `python benchmarks/single_gpu.py --part signs --preset {preset} --ship` in {minutes:.0f} minutes of training on {machine}, from one
clip a word of an animated avatar ([MIT](https://github.com/jigargajjar55/Audio-Speech-To-Sign-Language-Converter)). **This is memorised
motion**: it knows the signs of *{words}*, and no others; "rest" lets the arms down. `benchmarks/single_gpu.json` has what was
measured.

```python
from minisora.single_gpu import Avatar
avatar = Avatar.from_pretrained("data/avatar")
film = avatar.film({film})                     # (3, T, 480, 864), in [-1, 1]
```
"""


@dataclass(frozen=True)
class Preset:
    "One row a machine; the two parts read what they need."

    minutes: float = 4.0  # of training; of each of the two recipes for scenes
    steps: int = 0  # 0: as many as the minutes allow, by `estimate`
    batch: int = 16
    lr: float = 1.5e-3
    width: int = 224
    depth: int = 8
    heads: int = 4
    bias: bool = (
        False  # relative bias, which learns faster in short runs and bars the fast attention
    )
    size: tuple = (480, 864)
    frames: int = 33
    sample_steps: int = 24
    fold: int = 4  # signs: latents a side that the second stage makes one
    channels: int = 128  # signs: numbers it leaves
    refine: int = 256  # signs: width of the network that mends what a PCA cannot see
    refine_steps: int = 3000
    again: float = 0.5  # signs: of the steps or minutes once more, on going on above all
    patch: tuple = (1, 1, 1)
    words: tuple = ()  # signs: the words to train on; none named: all that are not held out
    held_out: tuple = ("beautiful", "home", "sing", "world", "thank you")
    sentences: tuple = (("hello", "you", "learn"), ("thank", "you"))
    clips: int = 6000  # scenes: rendered for training
    judge_steps: int = 600
    judged: int = 216  # scenes: held-out prompts a judge reads
    looks: int = 6  # scenes: how often during training


SMALL = dict(
    width=192,
    depth=6,
    heads=6,
    bias=True,
    fold=12,
    channels=192,
    batch=4,
    lr=4e-3,
    sample_steps=8,
    words=(
        "hello",
        "you",
        "learn",
        "thank",
        "good",
        "eat",
        "happy",
        "me",
        "see",
        "sign",
        "help",
        "work",
    ),
    held_out=("world", "thank you"),
    sentences=(("hello", "you", "learn"), ("me", "happy")),
)
SCENES = dict(size=(64, 64), frames=17, patch=(1, 2, 2), depth=6, heads=6, bias=True)
TINY = dict(
    steps=6,
    refine=16,
    refine_steps=4,
    judge_steps=3,
    clips=24,
    judged=6,
    looks=2,
    width=48,
    depth=2,
    heads=4,
    batch=4,
    sample_steps=2,
)
PRESETS = {
    "signs": {
        "gpu": Preset(),
        "cpu": Preset(**SMALL, steps=3000),
        "smoke": Preset(
            **SMALL
            | TINY
            | dict(
                size=(64, 128),
                frames=17,
                words=("hello", "eat"),
                held_out=("world",),
                sentences=(("hello", "eat"),),
                fold=4,
                channels=16,
            )
        ),
    },
    "scenes": {
        "gpu": Preset(**SCENES, minutes=3, batch=64, lr=3e-3, width=192),
        "cpu": Preset(**SCENES, steps=20000, batch=8, lr=4.5e-3, width=144, judged=108),
        "smoke": Preset(**SCENES | TINY),
    },
    "plan": {"gpu": Preset()},
}


class Stages:
    "Seconds and peak memory of the parts of a run, kept in times.json."

    def __init__(self, folder, device):
        self.path, self.device = folder / "times.json", device
        self.seen = json.loads(self.path.read_text()) if self.path.is_file() else {}

    @contextmanager
    def __call__(self, name):
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        if cuda:
            torch.cuda.synchronize()
        old = self.seen.get(name, dict(seconds=0, cpu_seconds=0, peak_gb=0))
        now = dict(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)
        now = {k: round(old[k] + v, 2) for k, v in now.items()}
        if cuda:
            now["peak_gb"] = round(
                max(old["peak_gb"], torch.cuda.max_memory_allocated() / 2**30), 2
            )
        self.seen[name] = dict(old, **now)
        write_json(self.path, self.seen)
        print(f"{name}: {self.seen[name]}", flush=True)


def kept(path, make):
    "A dict of tensors from a file, made and written first where it is missing."
    if not path.is_file():
        save_file(make(), path)
    return load_file(path)


def train(a, p, name, model, data, objective, look=None, looks=1, **options):
    "`fit` for as many steps as the minutes allow, in slices; `look(step, ema, minutes)` after each of `looks`. Returns (Trained, plan)."
    folder, cuda = a.work / name, a.device.type == "cuda"
    options = (
        dict(
            batch_size=p.batch,
            warmup=100,
            betas=(0.9, 0.95),
            weight_decay=0.01,
            precision="bf16" if cuda else "fp32",
            device=str(a.device),
            progress=False,
            save_every=10**9,
            log_every=20,
            keep=1,
        )
        | options
    )
    path = a.work / f"{name}-plan.json"
    if not path.is_file():
        e = estimate(model, data, objective, **options)
        print(e, flush=True)
        steps = p.steps or max(50, int(60 * p.minutes / e.seconds))
        write_json(
            path,
            dict(
                steps=steps,
                estimated_seconds_a_step=e.seconds,
                estimated_peak_gb=e.peak / 2**30,
                looks=[],
            ),
        )
    plan, start = json.loads(path.read_text()), time.perf_counter()
    steps, trained = plan["steps"], None
    while trained is None or trained.step < steps:
        at = 0 if trained is None else trained.step
        done = len(plan["looks"])  # at 1/2^(looks-1), …, 1/2, 1 of the steps: evenly in the log
        goal = round(steps / 2 ** (looks - 1 - done)) if look and done < looks else steps
        trained = fit(
            model,
            data,
            objective,
            steps=steps,
            stop_at=min(goal, at + max(10, steps // 12)),
            out=folder,
            **options,
        )
        minutes = trained.log[-1]["wall_seconds"] / 60
        print(
            f"{name}: step {trained.step} of {steps}, {minutes:.2f} min, loss {trained.log[-1]['loss']:.4f}",
            flush=True,
        )
        late = minutes > 1.2 * p.minutes and not p.steps
        if (
            look
            and (trained.step >= goal or late)
            and trained.step not in [k["step"] for k in plan["looks"]]
        ):
            plan["looks"].append(
                dict(
                    step=trained.step,
                    minutes=round(minutes, 3),
                    cpu_minutes=round(trained.cpu_minutes, 3),
                    **look(trained.step, trained.ema, minutes),
                )
            )
            print(plan["looks"][-1], flush=True)
            write_json(path, plan)
        over = time.perf_counter() - start > 60 * a.chunk  # at once where --chunk is left out
        if a.as_is and over:
            break
        if a.chunk and over and trained.step < steps:
            raise SystemExit(f"{name}: {trained.step} of {steps} steps; call again to go on")
        if late and trained.step < steps:
            print(f"{name}: out of time after {trained.step} of {steps} steps", flush=True)
            break
    took = dict(
        steps=trained.step,
        of=steps,
        minutes=round(trained.log[-1]["wall_seconds"] / 60, 2),
        cpu_minutes=round(trained.cpu_minutes, 2),
        loss=trained.log[-1]["loss"],
        curve=[
            [r["step"], round(r["loss"], 5)] for r in trained.log[:: max(1, len(trained.log) // 60)]
        ],
    )
    return trained, dict(plan, **took)


def ship(model, folder):
    "What has a `save_pretrained`, its weights in half precision."
    model.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        halve(file)


def shrunk(clips, height, width):
    "Clips (B, 3, T, H, W) -> (B, 3, T, height, width): each pixel the mean of those that it stands for."
    frames = F.interpolate(clips.transpose(1, 2).flatten(0, 1), (height, width), mode="area")
    return frames.unflatten(0, (len(clips), -1)).transpose(1, 2)


def pile(pictures, path):
    "Pictures below each other, in one file."
    whole = Image.new("RGB", (max(k.width for k in pictures), sum(k.height for k in pictures)))
    for i, k in enumerate(pictures):
        whole.paste(k, (0, sum(j.height for j in pictures[:i])))
    whole.save(path)


class Cast:
    "A model as `fit` trains it on CUDA: bfloat16 inside, float32 outside."

    def __init__(self, model, device):
        self.model, self.device = model, device

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, x, t, y=None):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.model(x, t, y).float()


# ---------------------------------------------------------------- signs


def read_words(a, p):
    "({caption: clip (1, 3, T, H, W) uint8} to train on, the same held out)."
    files = {caption_of(f): f for f in sorted((a.data / "signs").glob("*.mp4"))}
    if not files:
        raise SystemExit(f"no *.mp4 in {a.data / 'signs'}")
    wanted = [w for w in p.words or files if w not in p.held_out]
    for w in (*wanted, *p.held_out):
        if w not in files:
            raise SystemExit(f"no clip of {w!r} in {a.data / 'signs'}")
    read = lambda w: read_video(files[w], p.frames, p.size).frames[None]
    with ThreadPoolExecutor(12 if a.device.type == "cuda" else 1) as pool:
        clips = list(pool.map(read, [*wanted, *p.held_out]))
    return dict(zip(wanted, clips)), dict(zip(p.held_out, clips[len(wanted) :]))


@torch.no_grad()
def encode(ae, clip, device):
    return ae.encode(to_float(clip).to(device)).mode


class SignsRun:
    "What the signs part has: clips, the two-stage autoencoder, latents, vocabulary, objective."

    def __init__(self, a, p, stages):
        self.a, self.p, self.stages = a, p, stages
        with stages("reading"):
            self.train, self.held = read_words(a, p)
        self.ae = self.two_stages()
        raw = self.codes()
        self.mean, self.std = raw.mean().item(), raw.std().item()
        self.vocabulary = Vocabulary.from_captions([*self.train, *self.held, REST])
        self.captions = [c for w in self.train for c in (w, REST)]
        self.latents, self.y = (
            (raw - self.mean) / self.std,
            self.vocabulary.encode_batch(self.captions),
        )
        self.objective = Continuation(**OURS, given=(0, 1, 2), shift=3.0)
        words = torch.cat([shrunk(to_float(x), *NEAR) for x in self.train.values()])
        self.known = {REST: words.flip(2), "word": words}

    def two_stages(self):
        """The video autoencoder, a PCA of its latents of the training words, and a refiner. The words' own latents are made on
        the way, forward and backward in time, in half precision: `self.inner` (2·words, 48, t, h, w)."""
        path, inner = self.a.work / "autoencoder", autoencoder_by_name(self.a.vae).to(self.a.device)
        both = lambda: torch.cat(
            [
                encode(inner, k, self.a.device).half().cpu()
                for x in self.train.values()
                for k in (x, x.flip(2))
            ]
        )
        with self.stages("encoding"):
            self.inner = kept(self.a.work / "inner.safetensors", lambda: dict(latents=both()))[
                "latents"
            ]
        if not (path / "config.json").is_file():
            ae = FoldedVAE.around(inner, self.p.fold, self.p.channels, self.p.refine)
            ae.init_pca(x[None].float().to(self.a.device) for x in self.inner[::2])
            with self.stages("refiner"):
                tune_refiner(ae, self.inner, self.p.refine_steps, progress=True)
            ae.save_pretrained(path)
        return FoldedVAE.from_pretrained(path).to(self.a.device)

    @torch.no_grad()
    def codes(self):
        return torch.cat(
            [self.ae.codes(x[None].float().to(self.a.device)).cpu() for x in self.inner]
        )

    def model(self):
        p, (C, *size) = self.p, self.latents.shape[1:]
        return VideoDiT(
            VideoDiTConfig(
                channels=C + 1,
                size=tuple(size),
                patch=p.patch,
                width=p.width,
                depth=p.depth,
                heads=p.heads,
                vocab=len(self.vocabulary),
                slots=self.vocabulary.slots,
                context=True,
                label_std=0.5,
                relative_bias=p.bias,
                **MODERN,
            )
        )

    def avatar(self, model):
        return Avatar(
            model,
            self.ae,
            self.vocabulary,
            self.objective,
            self.mean,
            self.std,
            24 * (self.p.frames - 1) / 40,
            dict(steps=self.p.sample_steps, guidance=1.0, shift=3.0),
        )  # what is learnt by heart needs no guidance

    def nearest(self, clips, kind="word"):
        "The training clip nearest to each: names, and PSNR to it at 60×104 pixels."
        small = shrunk(clips, *NEAR)
        index, _ = nearest_clip(small, self.known[kind])
        db = [
            round(float(psnr(x[None], self.known[kind][i][None])), 2)
            for x, i in zip(small, index.tolist())
        ]
        return [list(self.train)[i] for i in index.tolist()], db


def signs(a, p, stages):
    run = SignsRun(a, p, stages)
    model = run.model()
    print(
        f"{len(run.train)} words, latents {tuple(run.latents.shape)}, {sum(q.numel() for q in model.parameters()):,} weights",
        flush=True,
    )
    options = dict(ema=0.998, schedule="linear")
    with stages("training"):
        trained, took = train(
            a, p, "signs", model, (run.latents, run.y), run.objective, lr=p.lr, **options
        )
        # words are learnt by then, going on is not: rests twice as often, and a single frame is given twice as often
        rows = [i for i, c in enumerate(run.captions) for _ in range(1 + (c == REST))]
        more = replace(p, steps=round(p.again * p.steps), minutes=p.again * p.minutes)
        trained, again = train(
            a,
            more,
            "signs-again",
            copy.deepcopy(trained.ema).requires_grad_(True),
            (run.latents[rows], run.y[rows]),
            replace(run.objective, given=(0, 1, 1, 2)),
            lr=p.lr / 2,
            warmup=50,
            **options,
        )
    avatar = run.avatar(Cast(trained.ema, a.device))
    out, n = {}, min(len(run.train), 24)
    words = list(run.train)[:: max(1, len(run.train) // n)][:n]
    own = [to_float(run.train[w]) for w in words]
    small = lambda x, most=208: shrunk(
        x, p.size[0] * min(p.size[1], most) // p.size[1], min(p.size[1], most)
    )

    def made(captions, real, kind="word", given=None, **options):
        "One at a time, for the memory: (small, nearest training clip, dB to it, to the real clip and where that moves, the clip)."
        for i, (caption, x) in enumerate(zip(captions, real)):
            clip = avatar.clips(
                [caption], None if given is None else given[i], seed=11, index=[i], **options
            )
            (name,), (db,) = run.nearest(clip, kind)
            yield small(clip), name, db, psnr(clip, x), moving_psnr(clip, x), clip

    def measured(rows, names):
        "What `made` yields, but for the clips: small clips together, and the share of the right nearest ones."
        pictures, nearest, *db = zip(*(row[:5] for row in rows))
        db = dict(zip(("mean_db_to_nearest", "psnr", "moving_psnr"), (sum(k) / len(k) for k in db)))
        return torch.cat(pictures), dict(
            n=len(names),
            right=sum(map(str.__eq__, nearest, names)) / len(names),
            **db,
            nearest=dict(zip(names, nearest)),
        )

    def rebuilt(x):
        "A clip (1, 3, T, H, W) through the inner autoencoder alone, the linear stage and the whole: psnr, and where it moves."
        z = encode(run.ae.inner, x, a.device)
        ways = dict(
            inner=z, linear=run.ae.linear(run.ae.codes(z)), whole=run.ae.latents(run.ae.codes(z))
        )
        decoded = (
            (k, tiled_decode(run.ae.inner, v, 64, 10, 4).clamp(-1, 1).cpu())
            for k, v in ways.items()
        )
        return {
            k: torch.tensor([psnr(y, to_float(x)), moving_psnr(y, to_float(x))]) for k, y in decoded
        }

    def rebuilt_all(clips):
        rows = [rebuilt(x) for x in clips]
        mean = {k: (sum(row[k] for row in rows) / len(rows)).tolist() for k in rows[0]}
        return {k: dict(zip(("psnr", "moving_psnr"), v)) for k, v in mean.items()}

    with stages("sampling"), torch.no_grad():
        few = words[: -(-n // 3)]  # whose clips are kept, to compare fewer steps with
        rows = [row if i < len(few) else row[:5] for i, row in enumerate(made(words, own))]
        (pictures, out["words"]), most = measured(rows, words), [row[5] for row in rows[: len(few)]]
        out["reconstructions"] = dict(
            words=rebuilt_all(run.train[w] for w in words), held_out=rebuilt_all(run.held.values())
        )
        # the caption says "rest" to all; only the given frame says from where
        back, out["going_on"] = measured(
            made([REST] * n, [x.flip(2) for x in own], REST, [x[:, :, -1:] for x in own]), words
        )
        out["steps"] = []
        for steps in (s for s in (2, 4, 8, 16) if s < p.sample_steps):
            rows = [
                (*row[:5], psnr(row[5], x)) for row, x in zip(made(few, own, steps=steps), most)
            ]
            scores = measured(rows, few)[1]
            out["steps"].append(
                dict(
                    steps=steps,
                    n=len(few),
                    psnr=scores["psnr"],
                    right=scores["right"],
                    psnr_to_most_steps=sum(row[5] for row in rows) / len(rows),
                )
            )
        true = [to_float(x) for x in run.held.values()]
        held, of_words = measured(made(list(run.held), true), list(run.held))
        down, of_rests = measured(
            made([REST] * len(true), [x.flip(2) for x in true], REST, [x[:, :, -1:] for x in true]),
            list(run.held),
        )
        still = [psnr(x[:, :, -1:].expand_as(x), x.flip(2)) for x in true]
        out["held_out"] = dict(
            words=list(run.held),
            nearest=list(of_words["nearest"].values()),
            psnr_to_the_real_clip=of_words["psnr"],
            rest_from_a_held_out_sign_psnr=of_rests["psnr"],
            rest_if_nothing_moved_psnr=sum(still) / len(still),
        )
    own = torch.cat([small(x) for x in own])
    sheets = [
        viz.contact_sheet(
            torch.stack([c for pair in zip(own, pictures) for c in pair][:16]),
            [f"{w} ({k})" for w in words for k in ("real", "made")][:16],
        ),
        viz.contact_sheet(back[:6], [f"{REST} after {w}" for w in words[:6]]),
        viz.contact_sheet(
            torch.cat([held, down]),
            [f"{w} (held out)" for w in run.held]
            + [f"{REST} after {w}, held out" for w in run.held],
        ),
    ]
    out["films"], whole = [], []
    for sentence in p.sentences:  # every word, then back to rest
        captions = [c for w in sentence for c in (w, REST)]
        with stages("films"):
            film = avatar.film(captions, seed=5)
        whole.append(film)
        sheets.append(
            viz.contact_sheet(small(film[None], 104), [", ".join(captions)], 4 * len(captions) + 1)
        )
        out["films"].append(
            dict(
                words=sentence,
                frames=film.shape[1],
                seconds=round(film.shape[1] / avatar.fps, 2),
                seams=[
                    round(k, 2)
                    for k in seams(film, [1 + k * (p.frames - 1) for k in range(1, len(captions))])
                ],
            )
        )
    write_video(a.out / "signs.mp4", torch.cat(whole, 1), avatar.fps)
    pile(sheets, a.out / "signs.png")
    if a.record:
        few = viz.contact_sheet(
            torch.cat(
                [torch.stack([c for pair in zip(own, pictures) for c in pair][:6]), back[:2]]
            ),
            [f"{w} ({k})" for w in words[:3] for k in ("real", "made")]
            + [f"{REST} after {w}" for w in words[:2]],
            6,
            scale=144 / own.shape[-1],
        )
        pile(
            [
                few,
                viz.contact_sheet(small(film[None], 71), [", ".join(captions) + ": one film"], 12),
            ],
            a.out / "few.png",
        )
        Image.open(a.out / "few.png").convert("RGB").save(IMAGES / "single_gpu.jpg", quality=72)
        (IMAGES / "avatar.webp").write_bytes(
            viz.animated(small(whole[0][None, :, ::2], 432)[0], fps=avatar.fps / 2)
        )
    spent = (
        took[f"{a.clock}minutes"]
        + again[f"{a.clock}minutes"]
        + stages.seen["refiner"][f"{a.clock}seconds"] / 60
    )
    for folder in (a.out / "avatar", ROOT / "data" / "avatar")[: 1 + a.ship]:
        ship(replace(avatar, model=trained.ema), folder)
        (folder / "README.md").write_text(
            CARD.format(
                preset=a.preset,
                words=", ".join(run.train),
                film=list(captions),
                minutes=spent,
                machine="one processor core" if a.device.type == "cpu" else "one GPU",
            )
        )
    t, h, w = trained.ema.config.grid
    return dict(
        words_trained=len(run.train),
        weights=sum(q.numel() for q in trained.ema.parameters()),
        tokens=t * h * w,
        fps=avatar.fps,
        tflops_a_sample_step=training_flops(trained.ema.config) / 1e12,
        training=took,
        again=again,
        **out,
    )


# ---------------------------------------------------------------- scenes


def scenes_frames(a, n, split, seed, p):
    "Rendered scenes, by as many processes as there are cores: uint8 (n, 3, T, H, W), and the Clip's captions and attributes."
    data = SceneClips(n, split, seed, frames=p.frames, size=p.size[0])
    loader = torch.utils.data.DataLoader(
        data, 64, num_workers=12 if a.device.type == "cuda" else 0, collate_fn=lambda c: stack(c)[0]
    )
    attributes = [
        dict(zip(("object", "colour", "motion"), data.combos[i % len(data.combos)]))
        for i in range(n)
    ]
    return (
        dict(clips=torch.cat(list(loader))),
        [scene_caption(*d.values()) for d in attributes],
        attributes,
    )


def scenes(a, p, stages):
    ae = autoencoder_by_name(a.vae).to(a.device)
    with stages("rendering"):
        rendered, captions, _ = scenes_frames(a, p.clips, "train", 0, p)
        held, prompts, wanted = scenes_frames(a, p.judged, "heldout", 1, p)
    with stages("encoding"):
        z = torch.cat([encode(ae, x, a.device).cpu() for x in rendered["clips"].split(32)])
    mean, std = z.mean().item(), z.std().item()
    vocabulary = Vocabulary.from_captions([*captions, *prompts], drop=("a", "moves"))
    data, y = (
        ((z - mean) / std, vocabulary.encode_batch(captions)),
        vocabulary.encode_batch(prompts).to(a.device),
    )
    with stages("judge"):
        judge = the_judge(a, p, ae)
    rec = torch.cat(
        [ae(to_float(x).to(a.device)).clamp(-1, 1).cpu() for x in held["clips"].split(32)]
    )
    measure = lambda x: dict(
        judge_clips(judge, x, wanted),
        **shape_measures(x, [w["object"] for w in wanted]),
        jerk_px=jerk_px(x),
        area_flicker=area_flicker(x),
    )
    out = dict(
        n=len(prompts),
        real=measure(to_float(held["clips"])),
        reconstructions=measure(rec),
        recipes={},
    )
    shape = dict(
        channels=z.shape[1],
        size=tuple(z.shape[2:]),
        patch=p.patch,
        width=p.width,
        depth=p.depth,
        heads=p.heads,
        vocab=len(vocabulary),
        slots=vocabulary.slots,
    )
    ours = (
        VideoDiTConfig(**shape, context=True, label_std=0.5, relative_bias=p.bias, **MODERN),
        Interpolant(**OURS, shift=6.0),
        dict(lr=p.lr, schedule="linear", ema=0.998),
        dict(guidance=3.0, guidance_interval=(0.0, 0.5), shift=6.0, solver="ddim", eta=1.0),
    )
    plain = (VideoDiTConfig(**shape), Interpolant(), dict(lr=1e-4, ema=0.998), dict(guidance=4.0))
    for name, (config, objective, options, how) in dict(ours=ours, plain=plain).items():

        @torch.no_grad()
        def made(ema, objective=objective, how=how):
            s = sample(
                Cast(ema, a.device),
                objective,
                y,
                steps=p.sample_steps,
                seed=3,
                batch_size=64,
                **how,
            )
            if "eta" in how:
                s = settle(Cast(ema, a.device), objective, s, y, times=3, seed=3)
            return torch.cat([ae.decode(k * std + mean).clamp(-1, 1).cpu() for k in s.split(32)])

        look = lambda step, ema, minutes, made=made: {
            k: v for k, v in measure(made(ema)).items() if k != "n"
        }
        with stages(f"training {name}"):
            trained, took = train(
                a, p, name, VideoDiT(config), data, objective, look, p.looks, **options
            )
        out["recipes"][name] = dict(took, weights=sum(q.numel() for q in trained.ema.parameters()))
        sheet = viz.contact_sheet(made(trained.ema)[:12], prompts[:12])
        sheet.save(a.out / f"scenes-{name}.png")
        if a.record and name == "ours":
            sheet.convert("RGB").save(IMAGES / "single_gpu_scenes_ours.jpg", quality=80)
        if name == "ours":
            ship(trained.ema, a.out / "scenes")
            write_json(
                a.out / "scenes" / "latents.json",
                dict(mean=mean, std=std, vocabulary=vocabulary.to_dict()),
            )
    out["all_right"] = out["recipes"]["ours"]["looks"][-1]["all_right"]
    out["bar"] = dict(all_right=0.97, met=out["all_right"] >= 0.97)
    out["faster"] = times_faster(
        *(out["recipes"][k]["looks"] for k in ("ours", "plain")), f"{a.clock}minutes"
    )
    return out


def times_faster(ours, plain, clock):
    "For each look at ours: minutes to that share of right clips, and the plain recipe's, all of them where it never got there."
    rows = []
    for r in ours:
        there = [k for k in plain if k["all_right"] >= r["all_right"]]
        took = (there or plain[-1:])[0][clock]
        rows.append(
            dict(
                all_right=r["all_right"],
                minutes=r[clock],
                plain_minutes=took,
                plain_got_there=bool(there),
                times=round(took / r[clock], 2),
            )
        )
    return rows


def the_judge(a, p, ae):
    "Trained on real scenes of all combinations and on their reconstructions."
    path = a.work / "judge"
    if not (path / "config.json").is_file():
        judge = train_judge(
            SceneClips(max(60, p.clips // 3), "all", 2, frames=p.frames, size=p.size[0]),
            steps=p.judge_steps,
            autoencoder=ae,
            batch=24,
        )
        judge.save_pretrained(path)
    return Judge.from_pretrained(path)


# ---------------------------------------------------------------- the plan


def the_plan(a, p, stages):
    "Training at 480p before there is a card: operations counted, memory measured here in float32. Sampling stands in flops.json."
    spec = FoldedVAE.around(autoencoder_by_name(a.vae), p.fold, p.channels).spec
    config = VideoDiTConfig(
        channels=p.channels + 1,
        size=spec.latent_shape(p.frames, *p.size)[1:],
        patch=p.patch,
        width=p.width,
        depth=p.depth,
        heads=p.heads,
        vocab=150,
        slots=2,
        context=True,
        label_std=0.5,
        **MODERN,
    )
    n, thin, g = (
        2,
        3,
        torch.Generator().manual_seed(0),
    )  # a third of the frames: activations grow with the tokens
    size = (config.size[0] // thin, *config.size[1:])
    data = (torch.randn(n, p.channels, *size, generator=g), torch.randint(150, (n, 2), generator=g))
    need = lambda depth: estimate(
        VideoDiT(replace(config, depth=depth, size=size)),
        data,
        Continuation(**OURS, given=(0, 1)),
        batch_size=n,
        device="cpu",
    )
    with stages("estimate"):
        one, two = need(1), need(2)  # every further block needs as much again
    deep = lambda field: (
        getattr(one, field) + (p.depth - 1) * (getattr(two, field) - getattr(one, field))
    )
    clip = thin * deep("activations") / n
    t, h, w = config.grid
    return dict(
        tokens=t * h * w,
        weights=deep("parameters"),
        static_gb=deep("static") / 2**30,
        activations_gb_a_clip_float32=clip / 2**30,
        batch=p.batch,
        peak_gb_float32=(deep("static") + p.batch * clip) / 2**30,
        card_gb=24,
        tflops_a_training_clip=training_flops(config) / 1e12,
    )


# ---------------------------------------------------------------- both


def main(a):
    a.device, p = (
        torch.device(a.device or ("cuda" if torch.cuda.is_available() else "cpu")),
        PRESETS[a.part][a.preset],
    )
    a.clock = "" if a.device.type == "cuda" else "cpu_"  # a processor may be shared
    if a.minutes is not None:
        p = replace(p, minutes=a.minutes)
    a.work = (a.work or ROOT / "runs" / "single-gpu") / f"{a.part}-{a.preset}"
    if not a.out:
        a.out = a.work / "results"
    for folder in (a.work, a.out):
        folder.mkdir(parents=True, exist_ok=True)
    if a.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    stages = Stages(a.work, a.device)
    found = partial({"signs": signs, "scenes": scenes, "plan": the_plan}[a.part], a, p, stages)()
    found = dict(
        preset=a.preset,
        machine=machine(),
        autoencoder=Path(a.vae).name,
        recipe=asdict(p),
        stages=stages.seen,
        **found,
    )
    for folder in (a.out, ROOT / "benchmarks")[: 1 + a.record]:
        path = folder / "single_gpu.json"
        before = json.loads(path.read_text()) if path.is_file() else {}
        write_json(path, dict(before, **{f"{a.part}-{a.preset}": found}))
    print(
        json.dumps(
            {
                k: v
                for k, v in found.items()
                if k not in ("training", "recipe", "machine", "recipes")
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--part", choices=PRESETS, required=True)
    p.add_argument("--preset", default="gpu", help="gpu, cpu or smoke")
    p.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="the folder that holds signs",
    )
    p.add_argument(
        "--vae", default=str(ROOT / "data" / "video-vae"), help="the video autoencoder's folder"
    )
    p.add_argument("--out", type=Path, help="what was measured and made; default: in --work")
    p.add_argument("--work", type=Path, help="what a run goes on from; default: runs/single-gpu")
    p.add_argument("--minutes", type=float, help="of training, instead of the preset's")
    p.add_argument(
        "--chunk",
        type=float,
        default=0,
        help="leave after so many minutes of training, to be called again",
    )
    p.add_argument(
        "--as-is",
        action="store_true",
        help="after --chunk minutes, or at once, measure what there is",
    )
    p.add_argument(
        "--record",
        action="store_true",
        help="write the figures into benchmarks/single_gpu.json and the lesson's picture too",
    )
    p.add_argument(
        "--ship", action="store_true", help="signs: write the weights into data/avatar too"
    )
    p.add_argument("--device", help="default: CUDA where there is one")
    a = p.parse_args()
    if a.preset not in PRESETS[a.part]:
        p.error(f"--preset {a.preset}: {a.part} has {', '.join(PRESETS[a.part])}")
    main(a)
