"""What the scripts in recipes/ share: places, half precision, and the helpers of benchmarks/."""

import copy
import sys
from pathlib import Path

from minisora.clips import MOTIONS, scene_caption, scene_combinations
from minisora.core.files import sha256_file, write_tensors
from minisora.core.tensors import load_tensors
from minisora.data.vocabulary import Vocabulary
from minisora.latent_cache import LatentCache, write_cache
from minisora.recipe import DROPPED_WORDS

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks"  # where what was measured is written down
IMAGES = ROOT / "nbs" / "images"
SHIPPED = ROOT / "data"
DATASETS = ROOT.parent / "shared" / "data"  # folders of clips, by default

sys.path.append(str(RECORDS))

from compression import moving_psnr, read_clip  # noqa: E402
from machine import machine, make_parser  # noqa: E402
from pictures import save_small, stack_pictures  # noqa: E402

__all__ = [
    "DATASETS",
    "IMAGES",
    "RECORDS",
    "ROOT",
    "SHIPPED",
    "TRAINING",
    "fresh",
    "halve",
    "kept_cache",
    "machine",
    "make_parser",
    "moving_psnr",
    "read_clip",
    "save_half",
    "save_small",
    "scene_vocabulary",
    "ship_pipeline",
    "stack_pictures",
]


def save_half(model, folder):
    "What has a `save_pretrained`, in `folder`, with its weights in half precision."
    model.save_pretrained(folder)
    halve(folder)


def halve(folder):
    "Weights of the safetensors files in a folder in half precision."
    for file in sorted(Path(folder).rglob("*.safetensors")):
        weights = load_tensors(file)
        half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        write_tensors(file, half)
        file.chmod(0o644)


TRAINING = dict(  # options of `fit` for pipelines of scenes
    schedule="linear",
    weight_decay=0.01,
    betas=(0.9, 0.95),
    log_every=100,
    save_every=500,
    progress=False,
)


def scene_vocabulary():
    "The words of all captions of scenes."
    combinations = scene_combinations("all", motions=MOTIONS)
    captions = [scene_caption(*combination) for combination in combinations]
    return Vocabulary.from_captions(captions, drop=DROPPED_WORDS)


def kept_cache(path, clips, load, words):
    "A cache of what the encoder that `load` gives makes of clips, made where it is missing."
    if not path.is_dir():
        write_cache(path, clips, load(), progress=False)
    return LatentCache(path, vocabulary=words)


def fresh(average):
    "A moving average as a model that can be trained on."
    return copy.deepcopy(average).requires_grad_(True)


def ship_pipeline(made, folder, card):
    "Write a pipeline in half precision, with its sums, and one card for the whole."
    for sums in folder.rglob("*.sha256"):  # of what shipped before
        sums.unlink()
    made.save_pretrained(folder)
    halve(folder)
    for part in ("trained_with.json", "README.md"):
        for notes in folder.rglob(part):
            notes.unlink()
    for file in folder.rglob("*.safetensors"):
        file.with_name(f"{file.name}.sha256").write_text(f"{sha256_file(file)}  {file.name}\n")
    (folder / "README.md").write_text(card)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB")
