"""The pipeline data/longer: a picture or a caption in, a clip out, larger and longer where asked.

    python recipes/longer.py --part video       # W.A.L.T's windows, frame prediction: 64×64 pixels
    python recipes/longer.py --part upsampler   # 64 -> 128 -> 256 pixels
    python recipes/longer.py --part decoder     # a decoder that is sharper on what they make
    python recipes/longer.py --part measure     # figures into benchmarks/longer.json
    python recipes/longer.py --part ship        # weights in half precision into data/longer

Everything is kept in --work; a part that is finished there is taken as it is, an unfinished one
goes on. One thread is enough: about 30 CPU-minutes for each of the first two."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from common import (
    DATASETS,
    RECORDS,
    SHIPPED,
    TRAINING,
    fresh,
    kept_cache,
    machine,
    make_parser,
    scene_vocabulary,
    ship_pipeline,
)
from longer_data import FRAMES, Tiles
from longer_measures import measure
from single_gpu_training import DATA_PREDICTION, load_or_make

from minisora.autoencoder import load_autoencoder
from minisora.clips import MOTIONS, SceneClips
from minisora.core.files import read_json, write_json
from minisora.core.optim import lr_factor, optimizer_step, set_lr, training_steps
from minisora.data.video import to_float
from minisora.frames import FrameConditionedModel, FramePrediction
from minisora.models.conditions import WordCondition
from minisora.models.modulation import AdaLNLoRA
from minisora.models.windows import Windows
from minisora.pipeline import VideoPipeline
from minisora.recipe import MODERN_BLOCK
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import fit
from minisora.upsampling import (
    GUIDES,
    Upsampling,
    UpsamplerConfig,
    UpsamplerDiT,
    add_level,
    call_upsampler,
)
from minisora.upsampling_pipeline import UpsamplingPipeline

SMALL = dict(  # what both models are, beside their sizes and windows
    patch=(1, 2, 2),
    width=144,
    heads=6,
    block=MODERN_BLOCK,
    modulation=AdaLNLoRA(16),
    relative_bias=True,
)

CARD = """---
license: apache-2.0
library_name: minisora
---
# A small W.A.L.T: from a caption or a picture to a clip, and from 64 to 256 pixels

Six objects, six colors, nine motions: 17 frames of 64×64 pixels, begun from nothing, from a given
picture, or from the frames of the clip before; and a second model that doubles the size, twice.
Attention in windows that take turns, AdaLN-LoRA, frame prediction and upsampling after W.A.L.T
(Gupta et al. 2023); trained from zero by `python recipes/longer.py`, {video:.0f} CPU-minutes for
the first model and {upsampler:.0f} for the second, on one core of {machine}. Data: procedural
scenes that the library renders{signs}. Half precision.
The autoencoder is data/video-vae, its decoder tuned on what the upsampler makes. What it can and
cannot do is measured in `benchmarks/longer.json`.

```python
from minisora.pipeline import VideoPipeline
pipe = VideoPipeline.from_pretrained("data/longer")
clip = pipe("a red ring orbits", size=256)                  # or frames=<a PIL image>
clip.save("ring.mp4")
```
"""

# what the upsampler was trained on too with --signs
SIGNS = """, and for the upsampler
five sixths of 151 films of an animated avatar that signs words
(jigargajjar55/Audio-Speech-To-Sign-Language-Converter, MIT)"""


def condition(words):
    return WordCondition(len(words), words.slots, in_context=True, init_std=0.5)


def latents(args, name, clips, words):
    "A cache of latents of clips of 64×64 pixels, made where it is missing."
    return kept_cache(args.work / name, clips, lambda: load_autoencoder(args.vae), words)


def train_video(args):
    """The first model: what happens, at 64×64 pixels, from a caption, a picture, or two latent
    frames; half of its training clips begin with a picture."""
    words = scene_vocabulary()
    options = dict(motions=MOTIONS, frames=FRAMES)
    cache = latents(args, "latents64", SceneClips(args.clips, seed=0, **options), words)
    held = latents(args, "held64", SceneClips(256, "heldout", seed=1, **options), words)
    channels, *size = cache.shape
    config = VideoDiTConfig(
        channels=channels + 1,
        size=tuple(size),
        depth=6,
        layout=Windows(((1, 0, 0), (0, 2, 2))),
        condition=condition(words),
        **SMALL,
    )
    objective = FramePrediction(**DATA_PREDICTION, shift=5.0, known_frames=(0, 1, 1, 2))
    options = dict(
        batch_size=8,
        warmup=150,
        ema=0.998,
        valid=held.normalize_as(cache),
        valid_every=1000,
        **TRAINING,
    )
    first = fit(
        VideoDiT(config),
        cache,
        objective,
        steps=args.video_steps,
        out=args.work / "video",
        lr=4.5e-3,
        **options,
    )
    # once more, at a lower rate, with a loss on how the error moves: steadier shapes
    second = fit(
        fresh(first.ema),
        cache,
        replace(objective, temporal_diff_weight=2.0),
        steps=args.again_steps,
        out=args.work / "video-again",
        lr=2.5e-3,
        **options,
    )
    return second, first.cpu_minutes + second.cpu_minutes


@torch.no_grad()
def paired_latents(args, tiles, words):
    "What the upsampler learns from: paired latents (N, 2 C, T, H, W), and word ids (N, slots)."
    ae = load_autoencoder(args.vae)
    guide = args.guide

    def make():
        pairs = []
        ids = []
        for large, small, caption in (tiles[i] for i in range(len(tiles))):
            told = guide.encode(ae, small[None])
            pairs.append(torch.cat([ae.encode(large[None]).mode, told], 1).half())
            none = torch.full((words.slots,), len(words))  # the null: nothing is told
            ids.append(none if caption is None else words.encode(caption))
        return dict(pairs=torch.cat(pairs), ids=torch.stack(ids))

    return load_or_make(args.work / f"pairs-{guide.kind}.safetensors", make)


def train_upsampler(args):
    "The second model, for both doublings: what larger pictures have more of."
    words = scene_vocabulary()
    tiles = Tiles(args.scenes, args.data if args.signs else "")
    data = paired_latents(args, tiles, words)
    pairs = data["pairs"].float()
    C = pairs.shape[1] // 2
    mean = pairs[:, :C].mean()
    std = pairs[:, :C].std()
    pairs = (pairs - mean) / std
    config = UpsamplerConfig(
        channels=2 * C + 1,
        size=tuple(pairs.shape[2:]),
        depth=4,
        layout=Windows(((1, 0, 0), (0, 4, 4))),
        condition=condition(words),
        guide=args.guide,
        **SMALL,
    )
    model = UpsamplerDiT(config).fit_features(pairs[::3, C:], pairs[::3, :C])
    objective = Upsampling(**DATA_PREDICTION, shift=4.0, max_level=0.2)
    options = dict(batch_size=4, warmup=100, ema=0.995, **TRAINING)
    out = args.work / f"upsampler-{args.guide.kind}"
    first = fit(
        model,
        (pairs, data["ids"]),
        objective,
        steps=args.upsampler_steps,
        out=out,
        lr=3e-3,
        **options,
    )
    # once more, signs three times as often
    rows = [i for i in range(len(tiles)) for _ in range(1 if i < 2 * args.scenes else 3)]
    second = fit(
        fresh(first.ema),
        (pairs[rows], data["ids"][rows]),
        objective,
        steps=args.upsampler_again_steps,
        out=out.with_name(f"{out.name}-again"),
        lr=2e-3,
        **options,
    )
    write_json(args.work / "statistics.json", dict(mean=mean.item(), std=std.item()))
    return second, first.cpu_minutes + second.cpu_minutes, tiles, pairs


def predicted_larger(result, rows, generator):
    "Latents as the upsampler sees them in noisy ones, at times from 0 to .9, normalized."
    objective = result.objective
    large, told = rows.chunk(2, 1)
    t = 0.9 * torch.rand(len(rows), generator=generator)
    level = objective.max_level * torch.rand(len(rows), generator=generator)
    noise, told_noise = torch.randn(rows.shape, generator=generator).chunk(2, 1)
    told = add_level(told, told_noise, level)
    return call_upsampler(result.ema, objective.add_noise(large, noise, t), told, level, t)


def predicted_clips(result, latents, ids, generator):
    "Latents as the first model sees them in noisy ones, at times from .3 to .95, normalized."
    objective = result.objective
    t = 0.3 + 0.65 * torch.rand(len(latents), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    model = FrameConditionedModel(result.ema, latents[:, :, :1])
    z = objective.predict(model, objective.add_noise(latents, noise, t), t, ids)[0]
    z[:, :, :1] = latents[:, :, :1]
    return z


class DecoderBatches:
    """Latents and the clips that they should decode to, two at a time, of four kinds in turn: clips
    of the first model, as it sees them; large clips as the upsampler sees them, twice; large clips
    as they are."""

    def __init__(self, args):
        words = scene_vocabulary()
        self.video, _ = train_video(args)
        self.upsampler, _, self.tiles, self.pairs = train_upsampler(args)
        self.statistics = read_json(args.work / "statistics.json")
        self.clips = SceneClips(args.clips, seed=0, motions=MOTIONS, frames=FRAMES)
        self.cache = latents(args, "latents64", self.clips, words)

    @torch.no_grad()
    def draw(self, step, generator, count=2):
        "Latents (B, C, t, h, w) and clips (B, 3, T, H, W)."
        if step % 4 == 0:
            index = torch.randint(len(self.cache), (count,), generator=generator).tolist()
            batch = self.cache.__getitems__(index)
            z = predicted_clips(self.video, batch["latents"], batch["condition"], generator)
            frames = torch.stack([self.clips[i].frames for i in index])
            return self.cache.denormalize(z), to_float(frames)
        index = torch.randint(len(self.tiles), (count,), generator=generator)
        rows = self.pairs[index]
        z = rows.chunk(2, 1)[0]
        if step % 4 < 3:
            z = predicted_larger(self.upsampler, rows, generator)
        clips = torch.stack([self.tiles[int(i)][0] for i in index])
        return z * self.statistics["std"] + self.statistics["mean"], clips


def decoder_loss(made, clips):
    """How far a decoded clip is off: absolute error, the object five times as heavy, squared error,
    and the error's change from frame to frame, against flicker."""
    error = made - clips
    shown = (clips - clips[:, :, :1, :1, :1]).abs().amax(1, keepdim=True) > 0.1  # the object
    weight = 1 + 4 * shown
    loss = (weight * (error.abs() + 4 * error.square())).mean()
    return loss + 4 * error.diff(dim=2).abs().mean()


def tune_decoder(args):
    """The video autoencoder, its decoder trained on, for edges: on latents as both models see them.
    The encoder stays as it is."""
    path = args.work / "autoencoder"
    if path.is_dir():
        return
    batches = DecoderBatches(args)
    ae = load_autoencoder(args.vae).train()
    decoder = [p for name, p in ae.named_parameters() if name.startswith(("dec", "skip_out"))]
    optimizer = torch.optim.AdamW(decoder, 1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    losses = [[] for _ in range(4)]
    for step, done in training_steps(args.decoder_steps, None, False, "decoder"):
        set_lr(optimizer, 1e-3 * lr_factor(step, done))
        z, clips = batches.draw(step, generator)
        loss = decoder_loss(ae.decode(z), clips)
        optimizer_step(loss, optimizer, decoder)
        losses[step % 4].append(loss.item())
        if step % 100 == 99:
            said = ", ".join(f"{sum(kind[-25:]) / 25:.4f}" for kind in losses)
            print(f"decoder, step {step + 1}: {said}", flush=True)
    ae.eval().save_pretrained(path)


def pipeline(args):
    "The whole, from what lies in --work."
    words = scene_vocabulary()
    ae = load_autoencoder(args.work / "autoencoder")
    video, minutes = train_video(args)
    result, upsampler_minutes, _, _ = train_upsampler(args)
    statistics = read_json(args.work / "statistics.json")
    upsampler = UpsamplingPipeline(
        result.ema,
        ae,
        result.objective,
        words,
        **statistics,
        level=args.level,
        sampling=dict(num_inference_steps=args.upsampler_calls, solver="ddim", shift=2.0),
    )
    made = VideoPipeline.from_fit(
        video,
        load_autoencoder(args.vae),
        words,
        num_inference_steps=24,
        guidance_scale=2.0,
        guidance_interval=[0.0, 0.5],
        solver="ddim",
        eta=1.0,
    )
    made.autoencoder = ae
    made.upsampler = upsampler
    return made, dict(video=minutes, upsampler=upsampler_minutes)


def ship(args):
    "Write data/longer, in half precision, with its card."
    made, minutes = pipeline(args)
    signs = SIGNS if args.signs else ""
    text = CARD.format(**minutes, signs=signs, machine=machine()["cpu"].partition(" (")[0])
    ship_pipeline(made, SHIPPED / "longer", text)


def parse_arguments():
    parser = make_parser(__doc__, __file__)
    parser.add_argument(
        "--part", choices=("video", "upsampler", "decoder", "measure", "ship"), required=True
    )
    parser.add_argument("--work", type=Path, default=Path("runs/longer"))
    parser.add_argument("--data", type=Path, default=DATASETS, help="a folder with signs/*.mp4")
    parser.add_argument("--signs", action="store_true", help="train the upsampler on signs too")
    parser.add_argument("--vae", type=Path, default=SHIPPED / "video-vae")
    parser.add_argument("--guide", choices=tuple(GUIDES.classes), default="enlarged")
    parser.add_argument("--clips", type=int, default=6200, help="scenes of the first model")
    parser.add_argument("--scenes", type=int, default=1000, help="of the upsampler, twice as many")
    parser.add_argument("--video-steps", type=int, default=12000)
    parser.add_argument("--again-steps", type=int, default=6000)
    parser.add_argument("--upsampler-again-steps", type=int, default=6000)
    parser.add_argument("--upsampler-steps", type=int, default=3000)
    parser.add_argument("--upsampler-calls", type=int, default=1)
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--level", type=float, default=0.0)
    parser.add_argument("--n", type=int, default=216, help="clips that are measured")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.guide = GUIDES[args.guide]()
    return args


def main():
    args = parse_arguments()
    torch.set_num_threads(1)
    if args.part == "video":
        train_video(args)
    elif args.part == "upsampler":
        train_upsampler(args)
    elif args.part == "decoder":
        tune_decoder(args)
    elif args.part == "measure":
        made, minutes = pipeline(args)
        tiles = Tiles(args.scenes, args.data if args.signs else "")
        trained_on = dict(
            video_clips=args.clips,
            upsampler_pairs=len(tiles),
            signs=len({file for file, _ in tiles.signs}),
        )
        record = dict(
            machine=machine(),
            train_cpu_minutes=minutes,
            trained_on=trained_on,
            **measure(args, made),
        )
        write_json(RECORDS / "longer.json", record)
        print(json.dumps(record, indent=1))
    else:
        ship(args)


if __name__ == "__main__":
    main()
