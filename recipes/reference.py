"""A reference curve for `minisora.train.on_track` and `overlay`: writes minisora/reference/NAME.json.

    python benchmarks/reference.py first-video runs/first-video/training first_video.json
    python benchmarks/reference.py signs-cpu WORK/signs-cpu/signs single_gpu.json signs-cpu

The curve and the recipe come from a run's folder (what `fit` got as `out`), the machine from the record of that run in
benchmarks/, a file and the keys in it. At most 200 points are kept."""

import json
import sys
from pathlib import Path

from minisora.latent_cache import write_json
from minisora.train import latest_checkpoint

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "minisora" / "reference"


def reference(name, run, record, *keys):
    "Write the reference `name` from the folder of a run and its record; returns the file."
    kept = json.loads((HERE / record).read_text())
    for k in keys:
        kept = kept[k]
    log = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
    few = log[:: -(-len(log) // 200)]
    few += log[-1:] if few[-1] != log[-1] else []
    config = json.loads((latest_checkpoint(run) / "state.json").read_text())["config"]
    FOLDER.mkdir(exist_ok=True)
    write_json(
        FOLDER / f"{name}.json",
        dict(
            preset=name,
            source="/".join((f"benchmarks/{record}", *keys)),
            machine=kept["machine"],
            config=config,
            loss=[(r["step"], round(r["loss"], 5)) for r in few],
        ),
    )
    return FOLDER / f"{name}.json"


if __name__ == "__main__":
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    print(reference(*sys.argv[1:]))
