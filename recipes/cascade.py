"""The pipeline data/cascade: StableCascade, small, with layers along time.

    python recipes/cascade.py --part autoencoder   # stage A: pictures <-> latents
    python recipes/cascade.py --part compressor    # pictures -> codes of 3 × 3 places
    python recipes/cascade.py --part pictures      # stage C: captions -> codes of pictures
    python recipes/cascade.py --part motion        # its layers along time; all else stays frozen
    python recipes/cascade.py --part zero          # for comparison: all of it on clips, from zero
    python recipes/cascade.py --part decoder       # stage B: codes -> latents, picture by picture
    python recipes/cascade.py --part steady        # its layers along time, against flicker
    python recipes/cascade.py --part measure       # figures into benchmarks/cascade.json
    python recipes/cascade.py --part ship          # weights in half precision into data/cascade

Everything is kept in --work; a part that is finished there is taken as it is, an unfinished one
goes on. One thread is enough."""

from dataclasses import replace
from pathlib import Path

import torch
from cascade_measures import FRAMES, SIDE, clips, large, pictures, reconstructions
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
from longer_measures import scene_judge
from single_gpu_training import DATA_PREDICTION

from minisora.autoencoder import load_autoencoder
from minisora.cascade import CASCADE_PRESETS, PREVIEW, CascadeUNet, add_time
from minisora.cascade_objective import CodeConditionedInterpolant, PairedCodes
from minisora.cascade_pipeline import CascadePipeline
from minisora.clips import MOTIONS, SceneClips
from minisora.core.files import write_json, write_tensors
from minisora.core.protocols import Clip
from minisora.core.tensors import load_tensors
from minisora.interpolants import Interpolant
from minisora.latents.paella_training import train_paella
from minisora.latents.paella_vq import PAELLA_PRESETS, PaellaVQ
from minisora.latents.semantic import PlainDecoder, SemanticCompressor, train_compressor
from minisora.models.prompts import PromptWords
from minisora.train import fit

CARD = """---
license: apache-2.0
library_name: minisora
---
# A small StableCascade that moves

Captions of procedural scenes (six objects, six colors, nine motions) to clips of 16 frames of
128×128 pixels, by way of a code of 3×3 places a frame: stage C makes the codes, stage B latents
of them, stage A pictures. After StableCascade (Pernias et al. 2024), of its published blocks; C
was trained on pictures, then only its layers along time on clips. Trained from zero by
`python recipes/cascade.py` on one core; data: procedural scenes that the library renders, nothing
else. Half precision. Object and color are right nearly always; the motion is right in fewer than
half of the clips, and objects jump (measured: `benchmarks/cascade.json`).

```python
from minisora.cascade_pipeline import CascadePipeline
pipe = CascadePipeline.from_pretrained("data/cascade")
clip = pipe("a red ring orbits")
clip.save("ring.mp4")
```
"""


class Pictures(torch.utils.data.Dataset):
    "Single frames of scenes: item i is a frame of clip i, and after the last clip they go round."

    def __init__(self, clips, count):
        self.clips = clips
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        clip = self.clips[i % len(self.clips)]
        frame = (7 * i + i // len(self.clips)) % clip.frames.shape[1]
        source = f"{clip.source}:{frame}"
        return Clip(clip.frames[:, [frame]], clip.caption, clip.fps, source, clip.attributes)


def scenes(count, split="train", seed=0):
    "Clips of all nine motions."
    return SceneClips(count, split, seed=seed, motions=MOTIONS, frames=FRAMES, size=SIDE)


def autoencoder(args):
    "Stage A."
    path = args.work / "autoencoder"
    if not path.is_dir():
        ae = PaellaVQ(**PAELLA_PRESETS["tiny"])
        said = train_paella(ae, scenes(512), steps=args.autoencoder_steps)
        print(said, flush=True)
        ae.save_pretrained(path)
    return load_autoencoder(path)


def compressor(args):
    "What makes codes of pictures."
    path = args.work / "compressor"
    if not path.is_dir():
        made = SemanticCompressor(width=40)
        decoder = PlainDecoder(width=32)
        for steps, straight in ((args.compressor_steps, 0.0), (args.straight_steps, 0.3)):
            said = train_compressor(made, decoder, scenes(6200), steps, straight=straight)
            print(f"compressor: loss {said:.4f}", flush=True)
        write_tensors(args.work / "plain.safetensors", decoder.state_dict())
        made.save_pretrained(path)
    return load_autoencoder(path)


def cache(args, name, clips, encoder):
    "A cache of codes or latents, made where it is missing."
    return kept_cache(args.work / name, clips, lambda: encoder(args), scene_vocabulary())


def codes(args, pictures=True):
    """Codes to learn from, of single pictures or of clips, and held-out ones; all normalized by the
    statistics of the pictures' codes."""
    train = scenes(args.clips)
    held = scenes(256, "heldout", 1)
    if pictures:
        held = cache(args, "codes-held-pictures", Pictures(held, 1024), compressor)
        train = cache(args, "codes-pictures", Pictures(train, args.pictures), compressor)
        return train, held.normalize_as(train)
    usual, _ = codes(args)
    held = cache(args, "codes-held-clips", held, compressor)
    train = cache(args, "codes-clips", scenes(args.code_clips), compressor)
    return train.normalize_as(usual), held.normalize_as(usual)


def latents(args, pictures=True):
    "Latents that stage B learns to make, as `codes`."
    if pictures:
        train = Pictures(scenes(args.clips), args.pair_pictures)
        held = Pictures(scenes(32, "heldout", 1), 256)
        held = cache(args, "pairs-held-pictures-latents", held, autoencoder)
        train = cache(args, "pairs-pictures-latents", train, autoencoder)
        return train, held.normalize_as(train)
    usual, _ = latents(args)
    held = cache(args, "pairs-held-clips-latents", scenes(32, "heldout", 1), autoencoder)
    train = cache(args, "pairs-clips-latents", scenes(args.pair_clips), autoencoder)
    return train.normalize_as(usual), held.normalize_as(usual)


def pairs(args, pictures=True):
    "Latents and codes of the same pictures or clips to learn stage B from, and held-out ones."
    usual, _ = codes(args)
    kind = "pictures" if pictures else "clips"
    train = scenes(args.clips if pictures else args.pair_clips)
    held = scenes(32, "heldout", 1)
    if pictures:
        train, held = Pictures(train, args.pair_pictures), Pictures(held, 256)
    told = [
        cache(args, f"pairs-{part}{kind}-codes", data, compressor).normalize_as(usual)
        for part, data in (("", train), ("held-", held))
    ]
    return [PairedCodes(*both) for both in zip(told, latents(args, pictures))]


def prompt(**options):
    words = scene_vocabulary()
    return PromptWords(vocab=len(words), slots=words.slots, **options)


def learn(args, name, model, caches, objective, **options):
    "Train a stage on (caches to learn from, held-out ones); what lies in --work goes on."
    data, held = caches
    options = dict(valid=held, valid_every=500, **TRAINING) | options
    return fit(model, data, objective, out=args.work / name, **options)


def picture_objective():
    return Interpolant(**DATA_PREDICTION, shift=1.5)


def motion_objective():
    """Sixteen frames say the same: what moves where is decided while there is little but noise,
    but without weights for the rest the layers along time spoil what the pictures had."""
    return Interpolant(**DATA_PREDICTION, shift=8.0)


def train_pictures(args):
    "Stage C on pictures: what is there."
    model = CascadeUNet(replace(CASCADE_PRESETS["c-tiny"], prompt=prompt()))
    options = dict(steps=args.picture_steps, batch_size=64, lr=2e-3, warmup=200, ema=0.998)
    return learn(args, "pictures", model, codes(args), picture_objective(), **options)


def train_motion(args):
    "Stage C's layers along time; the picture model in it stays as it is."
    model = add_time(fresh(train_pictures(args).ema), FRAMES).freeze_pictures()
    options = dict(steps=args.motion_steps, batch_size=8, lr=3e-3, warmup=100, ema=0.998)
    data = codes(args, pictures=False)
    return learn(args, "motion", model, data, motion_objective(), **options)


def train_zero(args):
    "For comparison: stage C with its layers along time on clips, all of it from zero."
    config = replace(CASCADE_PRESETS["c-tiny"], prompt=prompt(), temporal="all")
    model = CascadeUNet(replace(config, size=(FRAMES, *config.size[1:])))
    options = dict(steps=args.zero_steps, batch_size=8, lr=2e-3, warmup=100, ema=0.998)
    data = codes(args, pictures=False)
    return learn(args, "zero", model, data, motion_objective(), **options)


def decoder_objective():
    return CodeConditionedInterpolant(**DATA_PREDICTION, shift=3.0, max_level=0.1)


def train_decoder(args):
    "Stage B on pictures: how it looks. It hears half of the captions, and looks at the code."
    seen = dict(preview=32, pixel_channels=3 * PREVIEW**2)
    model = CascadeUNet(replace(CASCADE_PRESETS["b-tiny"], prompt=prompt(each=False), **seen))
    told, _ = codes(args)
    model.preview.load_state_dict(load_tensors(args.work / "plain.safetensors"))
    model.preview.follow(told.mean, told.std)
    options = dict(steps=args.decoder_steps, batch_size=24, lr=2e-3, warmup=100, ema=0.998)
    options["condition_dropout"] = 0.5
    return learn(args, "decoder", model, pairs(args), decoder_objective(), **options)


def train_steady(args):
    "Stage B's layers along time: against flicker."
    model = add_time(fresh(train_decoder(args).ema), FRAMES, "up").freeze_pictures()
    options = dict(steps=args.steady_steps, batch_size=2, lr=2e-3, warmup=100, ema=0.995)
    objective = replace(decoder_objective(), temporal_diff_weight=2.0)
    return learn(args, "steady", model, pairs(args, pictures=False), objective, **options)


def pipeline(args, prior=train_motion):
    "The whole, from what lies in --work; `prior`: what trains its stage C."
    made = prior(args)
    decoder = (train_decoder if prior is train_pictures else train_steady)(args)
    told, _ = codes(args)
    data, _ = latents(args)
    pipe = CascadePipeline(
        made.ema,
        made.objective,
        decoder.ema,
        decoder.objective,
        autoencoder(args),
        compressor(args),
        scene_vocabulary(),
        code_mean=told.mean,
        code_std=told.std,
        mean=data.mean,
        std=data.std,
        sampling=dict(
            num_inference_steps=args.calls,
            guidance_scale=args.guidance,
            solver="ddim",
            shift=made.objective.shift,
        ),
        decoder_sampling=dict(
            num_inference_steps=args.decoder_calls, solver="ddim", shift=decoder.objective.shift
        ),
    )
    return pipe, made.cpu_minutes


def measure(args):
    "Figures into benchmarks/cascade.json."
    whole, minutes = pipeline(args)
    still, picture_minutes = pipeline(args, train_pictures)
    judge = scene_judge(args, load_autoencoder(SHIPPED / "video-vae"))
    folder = args.work / "pipeline"
    whole.save_pretrained(folder)
    record = dict(
        machine=machine(),
        train_cpu_minutes=dict(
            pictures=picture_minutes,
            motion=minutes,
            decoder=train_decoder(args).cpu_minutes,
            steady=train_steady(args).cpu_minutes,
        ),
        weights={
            name: sum(p.numel() for p in getattr(whole, name).parameters())
            for name in ("prior", "decoder", "autoencoder", "compressor")
        },
    )
    parts = dict(
        reconstructions=lambda: reconstructions(whole),
        pictures=lambda: pictures(still, judge, args.n),
        clips=lambda: clips(whole, judge, args.n),
        from_zero=lambda: from_zero(args, judge),
        large=lambda: large(args, folder),
    )
    for name, part in parts.items():
        record[name] = part()
        print(name, record[name], flush=True)
        write_json(args.work / "measured.json", record)
    write_json(RECORDS / "cascade.json", record)


def from_zero(args, judge):
    "The same with a stage C that was trained from zero on clips."
    pipe, minutes = pipeline(args, train_zero)
    return dict(train_cpu_minutes=minutes, **clips(pipe, judge, args.n))


def ship(args):
    "Write data/cascade, in half precision, with its card."
    made, _ = pipeline(args)
    ship_pipeline(made, SHIPPED / "cascade", CARD)


PARTS = dict(
    autoencoder=autoencoder,
    compressor=compressor,
    pictures=train_pictures,
    motion=train_motion,
    zero=train_zero,
    decoder=train_decoder,
    steady=train_steady,
    measure=measure,
    ship=ship,
)


def parse_arguments():
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--part", choices=(*PARTS,), required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/cascade"))
    parser.add_argument("--data", type=Path, default=DATASETS, help="a folder with film/")
    parser.add_argument("--n", type=int, default=216, help="clips that are measured")
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--decoder-calls", type=int, default=6)
    parser.add_argument("--clips", type=int, default=6200)
    parser.add_argument("--code-clips", type=int, default=4000)
    parser.add_argument("--pictures", type=int, default=31000)
    parser.add_argument("--pair-pictures", type=int, default=12400)
    parser.add_argument("--pair-clips", type=int, default=930)
    parser.add_argument("--autoencoder-steps", type=int, default=3000)
    parser.add_argument("--compressor-steps", type=int, default=8000)
    parser.add_argument("--straight-steps", type=int, default=2500)
    parser.add_argument("--picture-steps", type=int, default=3000)
    parser.add_argument("--motion-steps", type=int, default=2700)
    parser.add_argument("--zero-steps", type=int, default=2130)
    parser.add_argument("--decoder-steps", type=int, default=2000)
    parser.add_argument("--steady-steps", type=int, default=1500)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    return args


def main():
    args = parse_arguments()
    torch.set_num_threads(1)
    PARTS[args.part](args)


if __name__ == "__main__":
    main()
