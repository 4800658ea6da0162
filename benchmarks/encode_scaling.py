"""How the time of `minisora encode` falls with the number of processes: encode_scaling.json.

    python benchmarks/encode_scaling.py

A folder of scenes as video files is encoded with the course's video VAE by one process and by two
under torchrun, one thread each, by turns; seconds are wall time from start to end, with what
starting takes, which an encoding of nothing (one clip) measures. Needs two idle cores.

Processes share out shards. A shard has 64 MiB of latents, so that of fewer the second process has
none, and nothing is gained (`one_shard`); with shards of 16 clips the work is shared."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, spread

from minisora.clips import MOTIONS, SceneClips
from minisora.core.files import write_json
from minisora.data.video import write_video

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import sys
from minisora.autoencoder import load_autoencoder
from minisora.data.folders import FolderClips
from minisora.latent_cache import write_cache
source, cache, vae, side, frames, shard = sys.argv[1:]
clips = FolderClips(source, frames=int(frames), size=int(side))
write_cache(cache, clips, load_autoencoder(vae), batch_size=4, shard_size=int(shard) or None,
            progress=False)
"""


def write_clips(folder, count, frames, side):
    clips = SceneClips(count, motions=MOTIONS, frames=frames, size=side)
    folder.mkdir()
    for i in range(count):
        write_video(folder / f"{i:04} {clips[i].caption}.mp4", clips[i].frames)


def seconds(args, folder, processes, shard=16):
    "Wall seconds of one encoding."
    launch = ["-m", "torch.distributed.run", "--no-python", "--standalone"]
    launch += [f"--nproc-per-node={processes}", sys.executable]
    with tempfile.TemporaryDirectory() as cache:
        call = [folder, f"{cache}/c", ROOT / "data/video-vae", args.side, args.frames, shard]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, *launch, "-c", CODE, *map(str, call)],
            env=dict(os.environ, OMP_NUM_THREADS="1"),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        return time.monotonic() - began


def measure(args):
    with tempfile.TemporaryDirectory() as work:
        few, many = Path(work, "few"), Path(work, "many")
        write_clips(few, 1, args.frames, args.side)
        write_clips(many, args.clips, args.frames, args.side)
        start, one, two, alone, idle = [], [], [], [], []
        for _ in range(args.repeats):
            start.append(seconds(args, few, 1))
            one.append(seconds(args, many, 1))
            two.append(seconds(args, many, 2))
            alone.append(seconds(args, many, 1, shard=0))
            idle.append(seconds(args, many, 2, shard=0))
    times_faster = [(a - s) / (b - s) for s, a, b in zip(start, one, two)]
    one_shard = [(a - s) / (b - s) for s, a, b in zip(start, alone, idle)]
    return dict(
        machine=machine(),
        clips=args.clips,
        frames=args.frames,
        side=args.side,
        repeats=args.repeats,
        start_seconds=spread(start),
        one_process_seconds=spread(one),
        two_processes_seconds=spread(two),
        times_faster_without_the_start=spread(times_faster),
        one_shard_times_faster=spread(one_shard),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("encode_scaling.json"))
    parser.add_argument("--clips", type=int, default=192)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    record = measure(args)
    print(record)
    write_json(args.out, record)


if __name__ == "__main__":
    main()
