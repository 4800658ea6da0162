"""The pipeline data/longer: a picture or a caption in, a clip out, larger and longer where asked.

    python recipes/longer.py --part video       # W.A.L.T's windows, frame prediction: 64×64 pixels
    python recipes/longer.py --part upsampler   # 64 -> 128 -> 256 pixels, and a sharper decoder
    python recipes/longer.py --part measure     # figures into benchmarks/longer.json
    python recipes/longer.py --part ship        # weights in half precision into data/longer

Everything is kept in --work; a part that is finished there is taken as it is, an unfinished one
goes on. One thread is enough: about 30 CPU-minutes for each of the first two."""

import copy
import json
from pathlib import Path

import torch
from common import DATASETS, RECORDS, SHIPPED, halve, machine, make_parser
from longer_data import FRAMES, Tiles
from longer_measures import measure
from single_gpu_training import load_or_make

from minisora.autoencoder import load_autoencoder
from minisora.clips import MOTIONS, SceneClips, scene_caption, scene_combinations
from minisora.core.files import read_json, write_json
from minisora.core.optim import lr_factor, optimizer_step, set_lr, training_steps
from minisora.data.vocabulary import Vocabulary
from minisora.frames import FramePrediction
from minisora.latent_cache import LatentCache, write_cache
from minisora.models.conditions import WordCondition
from minisora.models.modulation import AdaLNLoRA
from minisora.models.windows import Windows
from minisora.pipeline import VideoPipeline
from minisora.recipe import DROPPED_WORDS, MODERN_BLOCK
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

DATA_PREDICTION = dict(prediction="data", loss_weighting="velocity", max_weight=25.0, std=1.4)
TRAINING = dict(
    schedule="linear",
    weight_decay=0.01,
    betas=(0.9, 0.95),
    log_every=100,
    save_every=500,
    progress=False,
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
scenes that the library renders, and, for upsampler and decoder, clips of an animated avatar
([MIT](https://github.com/jigargajjar55/Audio-Speech-To-Sign-Language-Converter)). Half precision.
The autoencoder is data/video-vae, its decoder tuned on what the upsampler makes. What it can and
cannot do is measured in `benchmarks/longer.json`.

```python
from minisora.pipeline import VideoPipeline
pipe = VideoPipeline.from_pretrained("data/longer")
clip = pipe("a red ring orbits", size=256)                  # or frames=<a PIL image>
clip.save("ring.mp4")
```
"""


def vocabulary():
    "The words of all captions of scenes."
    captions = [
        scene_caption(*combination) for combination in scene_combinations("all", motions=MOTIONS)
    ]
    return Vocabulary.from_captions(captions, drop=DROPPED_WORDS)


def condition(words):
    return WordCondition(len(words), words.slots, in_context=True, init_std=0.5)


def latents(args, name, clips, words):
    "A cache of latents of clips of 64×64 pixels, made where it is missing."
    path = args.work / name
    if not path.is_dir():
        write_cache(path, clips, load_autoencoder(args.vae), progress=False)
    return LatentCache(path, vocabulary=words)


def train_video(args):
    """The first model: what happens, at 64×64 pixels, from a caption, a picture, or two latent
    frames; half of its training clips begin with a picture."""
    words = vocabulary()
    options = dict(motions=MOTIONS, frames=FRAMES)
    cache = latents(args, "latents64", SceneClips(args.clips, seed=0, **options), words)
    held = latents(args, "held64", SceneClips(256, "heldout", seed=1, **options), words)
    channels, *size = cache.shape
    config = VideoDiTConfig(
        channels=channels + 1,
        size=tuple(size),
        patch=(1, 2, 2),
        width=144,
        depth=6,
        heads=6,
        block=MODERN_BLOCK,
        layout=Windows(((1, 0, 0), (0, 2, 2))),
        modulation=AdaLNLoRA(16),
        relative_bias=True,
        condition=condition(words),
    )
    objective = FramePrediction(**DATA_PREDICTION, shift=5.0, known_frames=(0, 1, 1, 2))
    return fit(
        VideoDiT(config),
        cache,
        objective,
        steps=args.video_steps,
        out=args.work / "video",
        batch_size=8,
        lr=4.5e-3,
        warmup=150,
        ema=0.998,
        valid=held.normalize_as(cache),
        valid_every=1000,
        **TRAINING,
    )


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
    words = vocabulary()
    tiles = Tiles(args.scenes, args.data)
    data = paired_latents(args, tiles, words)
    pairs = data["pairs"].float()
    C = pairs.shape[1] // 2
    mean = pairs[:, :C].mean()
    std = pairs[:, :C].std()
    pairs = (pairs - mean) / std
    config = UpsamplerConfig(
        channels=2 * C + 1,
        size=tuple(pairs.shape[2:]),
        patch=(1, 2, 2),
        width=144,
        depth=4,
        heads=6,
        block=MODERN_BLOCK,
        layout=Windows(((1, 0, 0), (0, 4, 4))),
        modulation=AdaLNLoRA(16),
        relative_bias=True,
        condition=condition(words),
        guide=args.guide,
    )
    model = UpsamplerDiT(config).fit_features(pairs[::3, C:], pairs[::3, :C])
    objective = Upsampling(**DATA_PREDICTION, shift=4.0, max_level=0.2)
    result = fit(
        model,
        (pairs, data["ids"]),
        objective,
        steps=args.upsampler_steps,
        out=args.work / f"upsampler-{args.guide.kind}",
        batch_size=4,
        lr=3e-3,
        warmup=100,
        ema=0.995,
        **TRAINING,
    )
    write_json(args.work / "statistics.json", dict(mean=mean.item(), std=std.item()))
    return result, tiles, pairs


def predicted(model, objective, rows, mean, std, generator):
    "Latents as the trained model sees them in noisy ones, at times from 0 to .9, unnormalized."
    large, told = rows.chunk(2, 1)
    t = 0.9 * torch.rand(len(rows), generator=generator)
    level = objective.max_level * torch.rand(len(rows), generator=generator)
    noise = torch.randn(rows.shape, generator=generator)
    told = add_level(told, noise[:, large.shape[1] :], level)
    x = objective.add_noise(large, noise[:, : large.shape[1]], t)
    return call_upsampler(model, x, told, level, t) * std + mean


def tune_decoder(args, result, tiles, pairs, batch=2):
    """The video autoencoder, its decoder trained on for edges: on latents of clips, and on those
    that the upsampler sees; the encoder stays as it is."""
    path = args.work / "autoencoder"
    if path.is_dir():
        return
    ae = copy.deepcopy(load_autoencoder(args.vae)).train()
    decoder = [p for name, p in ae.named_parameters() if name.startswith(("dec", "skip_out"))]
    optimizer = torch.optim.AdamW(decoder, 1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    statistics = read_json(args.work / "statistics.json")
    mean, std = statistics["mean"], statistics["std"]
    for step, done in training_steps(args.decoder_steps, None, False, "decoder"):
        set_lr(optimizer, 1e-3 * lr_factor(step, done))
        index = torch.randint(len(tiles), (batch,), generator=generator)
        clips = [tiles[int(i)] for i in index]
        if step % 4 == 3:  # small clips too: it decodes the first model's latents
            x = torch.stack([small for _, small, _ in clips])
            with torch.no_grad():
                z = ae.encode(x).mode
        else:
            x = torch.stack([large for large, _, _ in clips])
            rows = pairs[index]
            z = rows[:, : rows.shape[1] // 2] * std + mean
            if step % 2:
                with torch.no_grad():
                    z = predicted(result.ema, result.objective, rows, mean, std, generator)
        difference = (ae.decode(z) - x).abs()
        shown = (x - x[:, :, :1, :1, :1]).abs().amax(1, keepdim=True) > 0.1  # the object
        loss = (difference * (1 + 4 * shown)).mean() + 4 * difference.square().mean()
        optimizer_step(loss, optimizer, decoder)
        if step % 100 == 0:
            print(f"decoder, step {step}: loss {loss.item():.4f}", flush=True)
    ae.eval().save_pretrained(path)


def pipeline(args):
    "The whole, from what lies in --work."
    words = vocabulary()
    ae = load_autoencoder(args.work / "autoencoder")
    video = train_video(args)
    result, _, _ = train_upsampler(args)
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
    return made, dict(video=video.cpu_minutes, upsampler=result.cpu_minutes)


def ship(args):
    "Write data/longer, in half precision, with its card."
    made, minutes = pipeline(args)
    folder = SHIPPED / "longer"
    made.save_pretrained(folder)
    halve(folder)
    for notes in folder.rglob("trained_with.json"):
        notes.unlink()
    for card in (folder / "model", folder / "autoencoder", folder / "upsampler" / "model"):
        (card / "README.md").unlink(missing_ok=True)
    text = CARD.format(**minutes, machine=machine()["cpu"])
    (folder / "README.md").write_text(text)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB")


def parse_arguments():
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--part", choices=("video", "upsampler", "measure", "ship"), required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/longer"))
    parser.add_argument("--data", type=Path, default=DATASETS, help="a folder with signs/*.mp4")
    parser.add_argument("--vae", type=Path, default=SHIPPED / "video-vae")
    parser.add_argument("--guide", choices=tuple(GUIDES.classes), default="enlarged")
    parser.add_argument("--clips", type=int, default=6200, help="scenes of the first model")
    parser.add_argument("--scenes", type=int, default=1000, help="of the upsampler, twice as many")
    parser.add_argument("--video-steps", type=int, default=12000)
    parser.add_argument("--upsampler-steps", type=int, default=3000)
    parser.add_argument("--upsampler-calls", type=int, default=2)
    parser.add_argument("--decoder-steps", type=int, default=600)
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
        tune_decoder(args, *train_upsampler(args))
    elif args.part == "measure":
        made, minutes = pipeline(args)
        record = dict(machine=machine(), train_cpu_minutes=minutes, **measure(args, made))
        write_json(RECORDS / "longer.json", record)
        print(json.dumps(record, indent=1))
    else:
        ship(args)


if __name__ == "__main__":
    main()
