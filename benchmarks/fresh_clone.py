"""What a newcomer waits for, in a fresh clone: benchmarks/fresh_clone.json.

    python benchmarks/fresh_clone.py [--video]

Clones the last commit of this repository into a temporary folder and times `make .venv/.ready` (the
set-up) and `make test`; with --video also `make video`, whose figures recipes/first_video.py
records in detail."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, make_parser

from minisora.core.files import write_json

ROOT = Path(__file__).resolve().parents[1]


def minutes(target, folder):
    "Wall minutes of `make TARGET` in `folder`; ends the script if it fails."
    start = time.time()
    status = subprocess.run(["make", target], cwd=folder).returncode
    if status:
        sys.exit(f"make {target} failed with status {status}")
    return round((time.time() - start) / 60, 2)


def main():
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--video", action="store_true", help="time `make video` too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "minisora"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        result = dict(machine=machine(), setup_minutes=minutes(".venv/.ready", clone))
        if args.video:
            result["video_minutes"] = minutes("video", clone)
        result["test_minutes"] = minutes("test", clone)
    write_json(args.out, result)
    print(result)


if __name__ == "__main__":
    main()
