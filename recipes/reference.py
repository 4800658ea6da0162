"""A reference curve for `minisora.train`: writes minisora/reference/NAME.json.

    python recipes/reference.py first-video runs/first-video/training first_video.json
    python recipes/reference.py signs-cpu WORK/signs-cpu/signs single_gpu.json signs-cpu

`compare_to_reference` and `plot_against_reference` read it. The curve and the recipe come from a
run's folder (what `fit` got as `out`), the machine from the record of that run in benchmarks/, a
file and the keys in it. At most 200 points are kept."""

import json
import sys
from pathlib import Path

from common import RECORDS, ROOT

from minisora.core.files import read_json, write_json
from minisora.training.checkpoint import latest_checkpoint

FOLDER = ROOT / "minisora" / "reference"
POINTS = 200


def thinned(log):
    "At most so many lines of a log, the last one among them."
    few = log[:: -(-len(log) // POINTS)]
    return few if few[-1] == log[-1] else [*few, log[-1]]


def reference(name, run, record, *keys):
    "Write the reference `name` from the folder of a run and its record; returns the file."
    kept = read_json(RECORDS / record)
    for key in keys:
        kept = kept[key]
    log = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
    config = read_json(latest_checkpoint(run) / "state.json")["config"]
    FOLDER.mkdir(exist_ok=True)
    made = dict(
        preset=name,
        source="/".join((f"benchmarks/{record}", *keys)),
        machine=kept["machine"],
        config=config,
        loss=[(row["step"], round(row["loss"], 5)) for row in thinned(log)],
    )
    write_json(FOLDER / f"{name}.json", made)
    return FOLDER / f"{name}.json"


if __name__ == "__main__":
    if "-h" in sys.argv or "--help" in sys.argv:
        print(__doc__)
    elif len(sys.argv) < 4:
        raise SystemExit(__doc__)
    else:
        print(reference(*sys.argv[1:]))
