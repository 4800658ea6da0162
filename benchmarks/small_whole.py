"""One change of lesson 10's small whole, with two seeds: benchmarks/small_whole.json.

    python benchmarks/small_whole.py [--seeds 0 1]

The code is the lesson's own, read from the notebook: its clips, `train`, and `error_at` on clips
that were not trained on. The solution of the lesson's open experiment reports the record."""

import ast
import json
import time
from pathlib import Path

from machine import machine, make_parser

from minisora.core.files import write_json

ROOT = Path(__file__).resolve().parents[1]
LESSON = ROOT / "nbs" / "10_first_video.ipynb"
CELLS = ("words = [", "class SmallDiT", "def example", "def broken")
RECIPES = {"as it is": dict(shift=6.0), "shift 2": dict(shift=2.0)}


def lesson():
    "The names that the lesson's cells define, without those that train or show."
    cells = json.loads(LESSON.read_text())["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    names = {}
    for source in sources:
        body = ast.parse("" if source.startswith("#| hide") else source).body
        keep = [s for s in body if isinstance(s, (ast.Import, ast.ImportFrom))]
        if source.startswith(CELLS):
            trains = [i for i, s in enumerate(body) if "train(" in ast.unparse(s)[:40]]
            keep = body[: trains[-1]] if source.startswith("def broken") else body
        exec(compile(ast.Module(keep, []), str(LESSON), "exec"), names)
    return names


def main():
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    names = lesson()
    rows = []
    for recipe, settings in RECIPES.items():
        for seed in args.seeds:
            start = time.process_time()
            net, losses = names["train"](seed, **settings)
            cpu = time.process_time() - start
            errors = {f"error_{t}": round(names["error_at"](net, t), 4) for t in (0.02, 0.1, 0.5)}
            rows.append(dict(recipe=recipe, **settings, seed=seed, steps=len(losses),
                             cpu_seconds=round(cpu, 1), **errors))  # fmt: skip
            print(rows[-1], flush=True)
    write_json(args.out, dict(machine=machine(), rows=rows))


if __name__ == "__main__":
    main()
