"""What it costs to ask whether a data set changed: the listing of ImageNet's 1,281,167 files, all of them empty.

`python benchmarks/listing.py` makes the files in a temporary folder, and writes benchmarks/listing.json."""

import json
import tempfile
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
    return out, dict(wall_s=round(time.perf_counter() - wall, 2), cpu_s=round(time.process_time() - cpu, 2))


def main():
    with tempfile.TemporaryDirectory() as tmp:
        for k in range(CLASSES):
            folder = Path(tmp) / "train" / f"n{k:08}"
            folder.mkdir(parents=True)
            for i in range(k, FILES, CLASSES): open(f"{folder}/{i}.JPEG", "wb").close()
        data, found = measured(lambda: ImageNetClips(tmp))
        _, listed = measured(lambda: listing_of(data))
        results = dict(files=len(data), find=found, listing=listed, machine=machine())
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    print(results)


if __name__ == "__main__": main()
