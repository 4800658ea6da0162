"""Small pictures in notebooks: `python tools/shrink.py nbs/03_dit.ipynb …` writes each PNG with 64 colours.

A figure of lines and axes looks the same and takes a quarter of the space; a notebook may hold 300 kB."""
import base64
import io
import json
import sys
from pathlib import Path

from PIL import Image


def small(png, colours=64):
    "A PNG, base64 text -> the same picture with a palette, or itself where that is no smaller."
    raw, out = base64.b64decode("".join(png)), io.BytesIO()
    picture = Image.open(io.BytesIO(raw)).convert("RGB")
    picture.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode() if out.tell() < len(raw) else png


def shrink(path):
    "Rewrite one notebook."
    notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data: data["image/png"] = small(data["image/png"])
    Path(path).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for path in sys.argv[1:]: shrink(path)
