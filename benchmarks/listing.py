"""What it costs to ask whether a data set changed: benchmarks/listing.json.

    python benchmarks/listing.py FOLDER [--files 1281167]

Makes as many empty files as ImageNet has in FOLDER/train, unless they are there, and times finding
and listing them."""

import json
import time
from pathlib import Path

from machine import machine, make_parser

from minisora.core.files import write_json
from minisora.data.imagenet import ImageNetClips
from minisora.latents.cache_plan import dataset_fingerprint

CLASSES = 1000
FILES = 1_281_167


def timed(function):
    "What function() returns, and its seconds: on the wall's clock and of the CPU."
    wall = time.perf_counter()
    cpu = time.process_time()
    result = function()
    wall = time.perf_counter() - wall
    cpu = time.process_time() - cpu
    return result, dict(wall_s=round(wall, 2), cpu_s=round(cpu, 2))


def make_files(folder, count):
    "Empty files, `count` of them in a thousand folders; a folder that has its last file is kept."
    for k in range(CLASSES):
        numbers = range(k, count, CLASSES)
        home = folder / "train" / f"n{k:08}"
        if not numbers or (home / f"{numbers[-1]}.JPEG").exists():
            continue
        home.mkdir(parents=True, exist_ok=True)
        for i in numbers:
            (home / f"{i}.JPEG").touch()


def main():
    parser = make_parser(__doc__, __file__)
    parser.add_argument("folder", type=Path, help="the empty files are made in FOLDER/train")
    parser.add_argument("--files", type=int, default=FILES, help="how many (default: %(default)s)")
    args = parser.parse_args()
    make_files(args.folder, args.files)
    data, find = timed(lambda: ImageNetClips(args.folder))
    _, listing = timed(lambda: dataset_fingerprint(data))
    result = dict(files=len(data), find=find, listing=listing, machine=machine())
    write_json(args.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
