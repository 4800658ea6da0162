"""Small pictures in notebooks: `python tools/shrink.py [--quality 30] nbs/03_dit.ipynb …`.

A PNG gets a palette of 64 colours (a figure of lines looks the same at a quarter of the size), a
clip WebP at that quality. A notebook may hold 300 kB."""

import argparse
import base64
import io
import json
import re
from pathlib import Path

from PIL import Image, ImageSequence

EMBEDDED = re.compile(r"data:image/(png|webp);base64,([A-Za-z0-9+/=]+)")


def small(text, kind, quality):
    "A picture, base64 text -> the same in fewer bytes, or itself where that does not help."
    raw, out = base64.b64decode("".join(text)), io.BytesIO()
    picture = Image.open(io.BytesIO(raw))
    if kind == "png":
        picture = picture.convert("RGB").quantize(64, dither=Image.Dither.NONE)
        picture.save(out, "PNG", optimize=True)
    else:
        first, *rest = [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]
        first.save(
            out,
            "WEBP",
            save_all=True,
            append_images=rest,
            loop=0,
            quality=quality,
            method=6,
            duration=picture.info.get("duration", 125),
        )
    return base64.b64encode(out.getvalue()).decode() if out.tell() < len(raw) else text


def shrink(path, quality=30):
    "Rewrite one notebook."

    def embedded(match):
        return f"data:image/{match[1]};base64,{small(match[2], match[1], quality)}"

    notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = small(data["image/png"], "png", quality)
            if "text/html" in data:
                html = EMBEDDED.sub(embedded, "".join(data["text/html"]))
                data["text/html"] = html.splitlines(keepends=True)
    Path(path).write_text(
        json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("notebooks", nargs="+")
    p.add_argument("--quality", type=int, default=30, help="of clips, 0 to 100")
    args = p.parse_args()
    for path in args.notebooks:
        shrink(path, args.quality)
