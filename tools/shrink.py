"""Small pictures in notebooks: `python tools/shrink.py nbs/03_dit.ipynb …`.

A PNG gets a palette of 64 colours (a figure of lines looks the same at a quarter of the size), a clip
WebP at quality 30. A notebook may hold 300 kB."""
import base64
import io
import json
import re
import sys
from pathlib import Path

from PIL import Image, ImageSequence

EMBEDDED = re.compile(r"data:image/(png|webp);base64,([A-Za-z0-9+/=]+)")


def small(text, kind):
    "A picture, base64 text -> the same in fewer bytes, or itself where that does not help."
    raw, out = base64.b64decode("".join(text)), io.BytesIO()
    picture = Image.open(io.BytesIO(raw))
    if kind == "png":
        picture = picture.convert("RGB").quantize(64, dither=Image.Dither.NONE)
        picture.save(out, "PNG", optimize=True)
    else:
        first, *rest = [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]
        first.save(out, "WEBP", save_all=True, append_images=rest, loop=0, quality=30, method=6,
                   duration=picture.info.get("duration", 125))
    return base64.b64encode(out.getvalue()).decode() if out.tell() < len(raw) else text


def embedded(match):
    "The same for a picture inside HTML."
    return f"data:image/{match[1]};base64,{small(match[2], match[1])}"


def shrink(path):
    "Rewrite one notebook."
    notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data: data["image/png"] = small(data["image/png"], "png")
            if "text/html" in data:
                html = EMBEDDED.sub(embedded, "".join(data["text/html"]))
                data["text/html"] = html.splitlines(keepends=True)
    Path(path).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for path in sys.argv[1:]: shrink(path)
