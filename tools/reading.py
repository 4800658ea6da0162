"""How long a lesson takes to read: `python tools/reading.py` prints it for all lessons.

Words of prose at 200 a minute, and half a minute for each cell of code that is shown. Folded
solutions, Chinese and hidden cells are not counted. Exercises are counted apart, EXERCISE minutes
each; running the cells is not in it, each lesson says how long that takes."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = 200
CELL = 0.5
EXERCISE = 6
HIDDEN = re.compile(r"^#\s*\|\s*(echo:\s*false|hide\b|include:\s*false)", re.M)


def prose(text):
    "The words of a Markdown cell that are read: without folded parts, comments, links and markup."
    text = re.sub(r"<details.*?</details>|<!--.*?-->", " ", text, flags=re.S)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.findall(r"[^\W\d_][\w’'-]*", text)


def minutes(path, until=None):
    """(minutes to read, exercises) of a lesson; `until`: only up to this heading, '## …'.

    ValueError if there is no such heading."""
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    words = shown = exercises = 0
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            shown += not HIDDEN.search(text) and not text.startswith("# your turn")
            continue
        if until and re.search(rf"^{re.escape(until)}\s*$", text, re.M):
            return words / WORDS + CELL * shown, exercises
        words += len(prose(text))
        exercises += len(re.findall(r"^### Exercise \d", text, re.M))
    if until:
        raise ValueError(f"{Path(path).name} has no heading {until!r}")
    return words / WORDS + CELL * shown, exercises


def lessons(root=ROOT):
    "The notebooks of the lessons, in order."
    return sorted((root / "nbs").glob("[01][0-9]_*.ipynb"))


def main():
    total = 0
    for path in lessons():
        read, exercises = minutes(path)
        total += read + EXERCISE * exercises
        print(f"{path.stem:20} {read:4.0f} min to read, {exercises} exercises")
    print(f"{'together':20} {total / 60:4.1f} h with exercises")


if __name__ == "__main__":
    sys.exit(main())
