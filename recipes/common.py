"""What the scripts in recipes/ share: places, half precision, and the helpers of benchmarks/."""

import sys
from pathlib import Path

from minisora.core.files import write_tensors
from minisora.core.tensors import load_tensors

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
    "halve",
    "machine",
    "make_parser",
    "moving_psnr",
    "read_clip",
    "save_half",
    "save_small",
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
