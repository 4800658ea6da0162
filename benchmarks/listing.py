"""What it costs to ask whether a data set changed: the listing of ImageNet's 1,281,167 files, all of them empty.

`python benchmarks/listing.py FOLDER` makes the files in FOLDER, unless they are there, and writes
benchmarks/listing.json."""

import json
import sys
import time
from pathlib import Path

from machine import machine

from minisora.clips import ImageNetClips
from minisora.latent_cache import listing_of

CLASSES, FILES = 1000, 1_281_167


def measured(f):
    "What f() gives, and its seconds by the wall and of the CPU."
    wall, cpu = time.perf_counter(), time.process_time()
    out = f()
    return out, dict(
        wall_s=round(time.perf_counter() - wall, 2), cpu_s=round(time.process_time() - cpu, 2)
    )


def main(home):
    for k in range(CLASSES):
        folder = Path(home) / "train" / f"n{k:08}"
        if (folder / f"{range(k, FILES, CLASSES)[-1]}.JPEG").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(k, FILES, CLASSES):
            open(f"{folder}/{i}.JPEG", "wb").close()
    data, found = measured(lambda: ImageNetClips(home))
    _, listed = measured(lambda: listing_of(data))
    results = dict(files=len(data), find=found, listing=listed, machine=machine())
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    print(results)


if __name__ == "__main__":
    main(sys.argv[1])
