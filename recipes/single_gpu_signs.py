"""The part `signs` of single_gpu.py: type words, get an avatar that signs them at 480p."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from common import IMAGES, SHIPPED, moving_psnr, save_half, stack_pictures
from einops import rearrange
from single_gpu_training import (
    DATA_PREDICTION,
    Autocast,
    SlicedTraining,
    count_weights,
    encode,
    load_or_make,
    shrink,
)

from minisora import viz
from minisora.autoencoder import load_autoencoder
from minisora.data.video import caption_from_path, read_video, to_float, write_video
from minisora.data.vocabulary import Vocabulary
from minisora.evaluation.samples import nearest_clip
from minisora.frames import FramePrediction, joint_discontinuity
from minisora.latents.compression import PCACompressedVAE, train_refiner
from minisora.latents.tiling import tiled_decode
from minisora.metrics import psnr
from minisora.models.conditions import WordCondition
from minisora.models.cost import training_flops
from minisora.pipeline import VideoPipeline
from minisora.recipe import MODERN_BLOCK
from minisora.temporal import VideoDiT, VideoDiTConfig

NEAR = (60, 104)  # height and width at which clips are compared with those of the training
REST = "rest"  # the caption of a clip that runs backwards: from the sign to arms at rest

CARD = """---
license: apache-2.0
library_name: minisora
---
# An avatar that signs, at 480p

Type words, get a film: 864×480 pixels, 33 frames per word, each clip continuing where the one
before ended. Weights in half precision. Made by
`python recipes/single_gpu.py --part signs --preset {preset} --ship` in {minutes:.0f} minutes of
training on {machine}, from one clip per word of an animated avatar
([MIT](https://github.com/jigargajjar55/Audio-Speech-To-Sign-Language-Converter)). **This is
memorized motion**: it knows the signs of *{words}*, and no others; "rest" lets the arms down.
`benchmarks/single_gpu.json` has what was measured.

```python
from minisora.pipeline import VideoPipeline
pipe = VideoPipeline.from_pretrained("data/avatar")
film = pipe.film({film})
film.save("film.mp4")                          # film.frames: (1, 3, T, 480, 864), in [-1, 1]
```
"""


def read_words(args, preset):
    "({caption: clip (1, 3, T, H, W) uint8} to train on, the same held out)."
    folder = args.data / "signs"
    files = {caption_from_path(file): file for file in sorted(folder.glob("*.mp4"))}
    if not files:
        raise SystemExit(f"no *.mp4 in {folder}")
    wanted = [word for word in preset.words or files if word not in preset.held_out]
    both = [*wanted, *preset.held_out]
    for word in both:
        if word not in files:
            raise SystemExit(f"no clip of {word!r} in {folder}")

    def read(word):
        return read_video(files[word], preset.frames, preset.size).frames[None]

    with ThreadPoolExecutor(12 if args.device.type == "cuda" else 1) as pool:
        clips = list(pool.map(read, both))
    held_out = dict(zip(preset.held_out, clips[len(wanted) :]))
    return dict(zip(wanted, clips)), held_out


class Signs:
    "What the training has: clips, the two-stage autoencoder, latents, vocabulary, objective."

    def __init__(self, args, preset, stages):
        self.args = args
        self.preset = preset
        self.stages = stages
        with stages("reading"):
            self.train, self.held_out = read_words(args, preset)
        self.inner = self.inner_latents()
        self.ae = self.autoencoder()
        codes = self.codes()
        self.mean = codes.mean().item()
        self.std = codes.std().item()
        self.latents = (codes - self.mean) / self.std
        self.vocabulary = Vocabulary.from_captions([*self.train, *self.held_out, REST])
        self.captions = [caption for word in self.train for caption in (word, REST)]
        self.ids = self.vocabulary.encode_batch(self.captions)
        self.objective = FramePrediction(**DATA_PREDICTION, known_frames=(0, 1, 2), shift=3.0)
        words = torch.cat([shrink(to_float(clip), *NEAR) for clip in self.train.values()])
        self.known = {REST: words.flip(2), "word": words}

    def inner_latents(self):
        """The training words in latents of the video autoencoder, forward and backward in time,
        in half precision: (2·words, 48, t, h, w)."""
        self.inner_ae = load_autoencoder(self.args.vae).to(self.args.device)

        def make():
            both = [clip for word in self.train.values() for clip in (word, word.flip(2))]
            latents = [encode(self.inner_ae, clip, self.args.device).half().cpu() for clip in both]
            return dict(latents=torch.cat(latents))

        with self.stages("encoding"):
            return load_or_make(self.args.work / "inner.safetensors", make)["latents"]

    def autoencoder(self):
        "The video autoencoder, a PCA of its latents of the training words, and a refiner."
        preset = self.preset
        path = self.args.work / "autoencoder"
        if not (path / "config.json").is_file():
            ae = PCACompressedVAE.from_autoencoder(
                self.inner_ae, preset.fold, preset.channels, preset.refine
            )
            ae.init_pca(x[None].float().to(self.args.device) for x in self.inner[::2])
            with self.stages("refiner"):
                train_refiner(ae, self.inner, preset.refine_steps, progress=True)
            ae.save_pretrained(path)
        return PCACompressedVAE.from_pretrained(path).to(self.args.device)

    @torch.no_grad()
    def codes(self):
        "What the two-stage autoencoder makes of the inner latents, on the CPU."
        device = self.args.device
        return torch.cat([self.ae.compress(x[None].float().to(device)).cpu() for x in self.inner])

    def model(self):
        preset = self.preset
        channels, *size = self.latents.shape[1:]
        words = WordCondition(
            len(self.vocabulary), self.vocabulary.slots, in_context=True, init_std=0.5
        )
        config = VideoDiTConfig(
            channels=channels + 1,
            size=tuple(size),
            patch=preset.patch,
            width=preset.width,
            depth=preset.depth,
            heads=preset.heads,
            block=MODERN_BLOCK,
            relative_bias=preset.bias,
            condition=words,
        )
        return VideoDiT(config)

    def pipeline(self, model):
        "A `VideoPipeline`. What is learned by heart needs no guidance."
        return VideoPipeline(
            model,
            self.ae,
            self.vocabulary,
            self.objective,
            self.mean,
            self.std,
            fps=24 * (self.preset.frames - 1) / 40,
            sampling=dict(
                num_inference_steps=self.preset.sample_steps, guidance_scale=1.0, shift=3.0
            ),
        )

    def nearest(self, clips, kind="word"):
        "The training clip nearest to each: names, and PSNR to it at 60×104 pixels."
        small = shrink(clips, *NEAR)
        index = nearest_clip(small, self.known[kind])[0].tolist()
        pairs = [(x[None], self.known[kind][i][None]) for x, i in zip(small, index)]
        words = list(self.train)
        return [words[i] for i in index], [round(float(psnr(*pair)), 2) for pair in pairs]


def train_words(run):
    """Words first, then continuing above all: words are learned by then, and continuing is not.
    Rests come twice as often in the second training, and a single known frame too."""
    args = run.args
    preset = run.preset
    options = dict(ema=0.998, schedule="linear")
    model = run.model()
    said = f"{len(run.train)} words, latents {tuple(run.latents.shape)}"
    print(f"{said}, {count_weights(model):,} weights", flush=True)
    data = (run.latents, run.ids)
    result, took = SlicedTraining(
        args, preset, "signs", model, data, run.objective, lr=preset.lr, **options
    ).run()
    more = replace(
        preset,
        steps=round(preset.again * preset.steps),
        minutes=preset.again * preset.minutes,
    )
    rows = [i for i, caption in enumerate(run.captions) for _ in range(1 + (caption == REST))]
    result, again = SlicedTraining(
        args,
        more,
        "signs-again",
        copy.deepcopy(result.ema).requires_grad_(True),
        (run.latents[rows], run.ids[rows]),
        replace(run.objective, known_frames=(0, 1, 1, 2)),
        lr=preset.lr / 2,
        warmup=50,
        **options,
    ).run()
    return result.ema, took, again


class Measures:
    "What the clips of a pipeline are worth, beside the real ones."

    def __init__(self, run, pipeline):
        self.run = run
        self.pipeline = pipeline
        count = min(len(run.train), 24)
        self.words = list(run.train)[:: max(1, len(run.train) // count)][:count]
        self.real = [to_float(run.train[word]) for word in self.words]
        self.held_out = [to_float(clip) for clip in run.held_out.values()]

    def small(self, clips, most=208):
        "Clips at a width of at most `most` pixels."
        height, width = self.run.preset.size
        most = min(width, most)
        return shrink(clips, height * most // width, most)

    def make(self, captions, real, kind="word", known=None, **options):
        """One clip at a time, for the memory: (small clip, nearest training clip, dB to it, to the
        real clip and where that moves, the clip)."""
        for i, (caption, clip) in enumerate(zip(captions, real)):
            frames = None if known is None else known[i]
            made = self.pipeline([caption], frames, seed=11, index=[i], **options).frames
            (name,), (near,) = self.run.nearest(made, kind)
            yield self.small(made), name, near, psnr(made, clip), moving_psnr(made, clip), made

    def make_rests(self, clips):
        "As `make`, from the last frame of each clip back to rest: only that frame says from where."
        backward = [clip.flip(2) for clip in clips]
        last = [clip[:, :, -1:] for clip in clips]
        return self.make([REST] * len(clips), backward, REST, last)

    def words_and_rests(self):
        "(Small clips of the words and of the ways back, what is recorded of them)."
        few = self.words[: -(-len(self.words) // 3)]  # whose clips are kept, to compare with
        rows = []
        for i, row in enumerate(self.make(self.words, self.real)):
            rows.append(row if i < len(few) else row[:5])
        best = [row[5] for row in rows[: len(few)]]
        clips, words = summarize(rows, self.words)
        rebuilt = dict(
            words=self.rebuilt([self.run.train[word] for word in self.words]),
            held_out=self.rebuilt(list(self.run.held_out.values())),
        )
        rests, continuing = summarize(self.make_rests(self.real), self.words)
        found = dict(words=words, reconstructions=rebuilt, going_on=continuing)
        counts = [n for n in (2, 4, 8, 16) if n < self.run.preset.sample_steps]
        found["steps"] = [self.fewer_steps(n, few, best) for n in counts]
        return clips, rests, found

    def fewer_steps(self, steps, words, best):
        "What fewer sampling steps cost: beside the real clips, and `best`, those of all steps."
        rows = []
        for row, clip in zip(self.make(words, self.real, num_inference_steps=steps), best):
            rows.append((*row[:5], psnr(row[5], clip)))
        found = summarize(rows, words)[1]
        return dict(
            steps=steps,
            n=len(words),
            psnr=found["psnr"],
            right=found["right"],
            psnr_to_most_steps=sum(row[5] for row in rows) / len(rows),
        )

    def words_not_trained(self):
        "(Small clips of the held-out words and of the ways back, what is recorded of them)."
        words = list(self.run.held_out)
        clips, made = summarize(self.make(words, self.held_out), words)
        rests, back = summarize(self.make_rests(self.held_out), words)
        still = [psnr(x[:, :, -1:].expand_as(x), x.flip(2)) for x in self.held_out]
        found = dict(
            words=words,
            nearest=list(made["nearest"].values()),
            psnr_to_the_real_clip=made["psnr"],
            rest_from_a_held_out_sign_psnr=back["psnr"],
            rest_if_nothing_moved_psnr=sum(still) / len(still),
        )
        return clips, rests, found

    def rebuilt(self, clips):
        """Clips (1, 3, T, H, W), uint8, through the inner autoencoder alone, the linear stage and
        the whole: PSNR, and that where they move, as means."""
        ae = self.run.ae
        rows = dict(inner=[], linear=[], whole=[])
        for clip in clips:
            latents = encode(ae.inner, clip, self.run.args.device)
            codes = ae.compress(latents)
            ways = dict(
                inner=latents, linear=ae.decompress_linear(codes), whole=ae.decompress(codes)
            )
            real = to_float(clip)
            for name, z in ways.items():
                made = tiled_decode(ae.inner, z, 64, 10, 4).clamp(-1, 1).cpu()
                rows[name].append(torch.tensor([psnr(made, real), moving_psnr(made, real)]))
        mean = {name: (sum(values) / len(values)).tolist() for name, values in rows.items()}
        return {name: dict(zip(("psnr", "moving_psnr"), pair)) for name, pair in mean.items()}


def summarize(rows, names):
    "Rows of `Measures.make` -> (small clips together, means and the share of right nearest clips)."
    clips, nearest, *decibels = zip(*(row[:5] for row in rows))
    means = [sum(values) / len(values) for values in decibels]
    found = dict(
        n=len(names),
        right=sum(map(str.__eq__, nearest, names)) / len(names),
        **dict(zip(("mean_db_to_nearest", "psnr", "moving_psnr"), means)),
        nearest=dict(zip(names, nearest)),
    )
    return torch.cat(clips), found


def films(run, pipeline):
    "(A film of each sentence, back at rest after every word; what is recorded of them)."
    made = []
    rows = []
    for sentence in run.preset.sentences:
        captions = [caption for word in sentence for caption in (word, REST)]
        with run.stages("films"):
            film = pipeline.film(captions, seed=5).frames[0]
        joints = [1 + k * (run.preset.frames - 1) for k in range(1, len(captions))]
        made.append((captions, film))
        rows.append(
            dict(
                words=sentence,
                frames=film.shape[1],
                seconds=round(film.shape[1] / pipeline.fps, 2),
                seams=[round(jump, 2) for jump in joint_discontinuity(film, joints)],
            )
        )
    return made, rows


def pairs(real, made):
    "Real and made clips in turn: (2·B, 3, T, H, W)."
    return rearrange(torch.stack([real, made], 1), "b two ... -> (b two) ...")


def sheets(measures, made, rests, held_out, held_out_rests, sentences):
    "Contact sheets of all that was made."
    real = torch.cat([measures.small(clip) for clip in measures.real])
    words = measures.words
    unknown = list(measures.run.held_out)
    yield viz.contact_sheet(
        pairs(real, made)[:16], [f"{w} ({kind})" for w in words for kind in ("real", "made")][:16]
    )
    yield viz.contact_sheet(rests[:6], [f"{REST} after {w}" for w in words[:6]])
    yield viz.contact_sheet(
        torch.cat([held_out, held_out_rests]),
        [f"{w} (held out)" for w in unknown] + [f"{REST} after {w}, held out" for w in unknown],
    )
    for captions, film in sentences:
        small = measures.small(film[None], 104)
        yield viz.contact_sheet(small, [", ".join(captions)], 4 * len(captions) + 1)


def lesson_pictures(measures, made, rests, sentences, fps):
    "The pictures of the lesson: nbs/images/single_gpu.jpg and avatar.webp."
    real = torch.cat([measures.small(clip) for clip in measures.real])
    words = measures.words
    some = viz.contact_sheet(
        torch.cat([pairs(real, made)[:6], rests[:2]]),
        [f"{w} ({kind})" for w in words[:3] for kind in ("real", "made")]
        + [f"{REST} after {w}" for w in words[:2]],
        6,
        scale=144 / real.shape[-1],
    )
    captions, film = sentences[-1]
    line = viz.contact_sheet(
        measures.small(film[None], 71), [", ".join(captions) + ": one film"], 12
    )
    both = stack_pictures([some, line])
    both.convert("RGB").save(IMAGES / "single_gpu.jpg", quality=72)
    film = measures.small(sentences[0][1][None, :, ::2], 432)[0]
    (IMAGES / "avatar.webp").write_bytes(viz.animation_bytes(film, fps=fps / 2))


def write_pipeline(run, pipeline, folder, captions, minutes):
    "The pipeline, its weights in half precision, and its card."
    save_half(pipeline, folder)
    card = CARD.format(
        preset=run.args.preset,
        words=", ".join(run.train),
        film=list(captions),
        minutes=minutes,
        machine="one processor core" if run.args.device.type == "cpu" else "one GPU",
    )
    (folder / "README.md").write_text(card)


def signs(args, preset, stages):
    "Train, measure, draw, and write the weights; returns what is recorded."
    run = Signs(args, preset, stages)
    with stages("training"):
        ema, took, again = train_words(run)
    pipeline = run.pipeline(Autocast(ema, args.device))
    measures = Measures(run, pipeline)
    with stages("sampling"), torch.no_grad():
        made, rests, found = measures.words_and_rests()
        held_out, held_out_rests, found["held_out"] = measures.words_not_trained()
    sentences, found["films"] = films(run, pipeline)
    write_video(args.out / "signs.mp4", torch.cat([film for _, film in sentences], 1), pipeline.fps)
    drawn = list(sheets(measures, made, rests, held_out, held_out_rests, sentences))
    stack_pictures(drawn).save(args.out / "signs.png")
    if args.record:
        lesson_pictures(measures, made, rests, sentences, pipeline.fps)
    refining = stages.seen["refiner"][f"{args.clock}seconds"]
    minutes = sum(part[f"{args.clock}minutes"] for part in (took, again)) + refining / 60
    folders = [args.out / "avatar"]
    if args.ship:
        folders.append(SHIPPED / "avatar")
    for folder in folders:
        captions, _ = sentences[-1]
        write_pipeline(run, replace(pipeline, model=ema), folder, captions, minutes)
    t, h, w = ema.config.grid
    return dict(
        words_trained=len(run.train),
        weights=count_weights(ema),
        tokens=t * h * w,
        fps=pipeline.fps,
        tflops_a_sample_step=training_flops(VideoDiT(ema.config)) / 1e12,
        training=took,
        again=again,
        **found,
    )
