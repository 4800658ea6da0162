"""Reading video files against bare PyAV, and a folder of 480p films into a latent cache.

    python benchmarks/decode.py [--data ../shared/data] [--files 4] [--rounds 3] [--films 32]

Writes benchmarks/decode.json. Speed: each file is read in turn by MiniSora and by loops of bare PyAV,
interleaved,
in one process and one run; a row says frames decoded a CPU second (of all threads together, so that other
work on the
machine does not count). Bare PyAV is asked for the same clip (all frames decoded, those that it needs turned
into
RGB arrays and shrunk by Pillow), and for every frame as an RGB array.
Folder: films of 480×640 are read through `FolderClips` and written as a cache with `write_cache`. The
autoencoder
only averages blocks of 8×8, so that reading is measured. Resident memory is sampled ten times a second."""

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np
import torch
from machine import machine
from PIL import Image

from minisora.clips import FolderClips, probe, read_video
from minisora.latent_cache import write_cache, write_json

PAGE = os.sysconf("SC_PAGE_SIZE")


def decode_all(path, chosen):
    "Bare PyAV: decode every frame, and turn frame k into an RGB array where `chosen(k)`."
    out = []
    with av.open(str(path)) as f:
        f.streams.video[0].thread_type = "AUTO"
        for k, frame in enumerate(f.decode(video=0)):
            if chosen(k):
                out.append(frame.to_ndarray(format="rgb24"))
    return out


def shrunk(picture, size=128):
    "The centre square of an RGB array, resized: the one line of Pillow that a plain loop would have."
    (h, w), side = picture.shape[:2], min(picture.shape[:2])
    box = ((w - side) / 2, (h - side) / 2, (w + side) / 2, (h + side) / 2)
    return np.array(Image.fromarray(picture).resize((size, size), Image.BICUBIC, box=box))


def readers(path):
    "Name → a function that reads this file; each decodes all its frames."
    info = probe(path)
    n = round(info.seconds * info.fps)
    wanted = {int((k + 0.5) / 16 * n) for k in range(16)}
    whole = (info.height, info.width)
    return n, {
        "bare: decode, no picture": lambda: decode_all(path, lambda k: False),
        "bare: decode, 16 pictures": lambda: decode_all(path, wanted.__contains__),
        "bare: 16 of 128×128 by Pillow": lambda: [
            shrunk(p) for p in decode_all(path, wanted.__contains__)
        ],
        "minisora: 16 frames of 128×128": lambda: read_video(path, 16, 128),
        "bare: every picture": lambda: decode_all(path, lambda k: True),
        "minisora: every frame, full size": lambda: read_video(path, n, whole),
    }


def speeds(files, rounds):
    """Frames a CPU second of each reader over all files: the best of `rounds` for each file, readers
    interleaved."""
    frames, seconds = 0, {}
    for path in files:
        n, ways = readers(path)
        best = dict.fromkeys(ways, float("inf"))
        for k in range(rounds):
            for name in list(ways)[:: 1 if k % 2 else -1]:
                start = time.process_time()
                ways[name]()
                best[name] = min(best[name], time.process_time() - start)
        frames += n
        for name, s in best.items():
            seconds[name] = seconds.get(name, 0) + s
    return {name: round(frames / s, 1) for name, s in seconds.items()}


class Blocks:
    """An 'autoencoder' that averages blocks of 8×8 pixels: next to no work, so that reading is what is
    measured."""

    spec = None

    def encode(self, x):
        b, c, t, h, w = x.shape
        z = x.view(b, c, t, h // 8, 8, w // 8, 8).mean((4, 6))
        return z, torch.zeros_like(z)


class Watched:
    "A dataset that notes after how many CPU seconds of the process each clip was read."

    def __init__(self, clips):
        self.clips, self.times = clips, []

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        clip = self.clips[i]
        self.times.append(time.process_time())
        return clip


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


def folder_to_cache(films, count, batch_size=2):
    "`count` films of 480×640 in a folder (links to `films`), read and written as a cache."
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "films"
        folder.mkdir()
        for k in range(count):
            (folder / f"{k:04d} {films[k % len(films)].name}").symlink_to(films[k % len(films)])
        clips = Watched(FolderClips(folder, (480, 640), 16, 8.0, check="open", keep=0))
        memory, done, begin, start = [], threading.Event(), resident(), time.process_time()

        def watch():
            while not done.wait(0.1):
                memory.append((len(clips.times), resident()))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            write_cache(
                Path(home) / "cache", clips, Blocks(), batch_size=batch_size, progress=False
            )
        finally:
            done.set()
            thread.join()
    t, half = [x - start for x in clips.times], count // 2
    tenth = lambda k: [m for n, m in memory if k * count <= 10 * n <= (k + 1) * count]
    at = [round(max(tenth(k), default=begin) - begin) for k in range(10)]
    return dict(
        films=count,
        frames=16,
        height=480,
        width=640,
        batch_size=batch_size,
        clips_per_cpu_second=round(count / t[-1], 2),
        first_half=round(half / t[half - 1], 2),
        second_half=round((count - half) / (t[-1] - t[half - 1]), 2),
        memory_before_mib=round(begin),
        growth_by_tenth_mib=at,
        growth_mib=max(at),
        all_frames_mib=round(count * 3 * 16 * 480 * 640 / 2**20),
    )


def main():
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--data", type=Path, default=Path("../shared/data"))
    args.add_argument("--files", type=int, default=4)
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--films", type=int, default=32)
    args.add_argument("--out", type=Path, default=Path(__file__).with_name("decode.json"))
    a = args.parse_args()
    torch.set_num_threads(1)
    av.logging.set_level(None)
    report = dict(machine=machine(), cores_used=len(os.sched_getaffinity(0)), speed={})
    for name, ext in (("signs", "mp4"), ("asl", "mkv")):
        found = sorted((a.data / name).glob(f"*.{ext}"))
        if not found:
            raise SystemExit(f"no *.{ext} in {a.data / name}")
        used = found[:: max(1, len(found) // a.files)][: a.files]
        got = speeds(used, a.rounds)
        clip, every = got["minisora: 16 frames of 128×128"], got["minisora: every frame, full size"]
        report["speed"][name] = dict(
            files=len(used),
            frames_per_cpu_second=got,
            ratio=dict(
                same_clip=round(clip / got["bare: 16 of 128×128 by Pillow"], 3),
                clip_against_every_picture=round(clip / got["bare: every picture"], 3),
                every_frame=round(every / got["bare: every picture"], 3),
            ),
        )
        print(name, json.dumps(report["speed"][name], ensure_ascii=False, indent=1), flush=True)
    films = [f.resolve() for f in sorted((a.data / "asl").glob("*.mkv"))]
    report["folder_to_cache"] = folder_to_cache(films, a.films)
    print(json.dumps(report["folder_to_cache"], indent=1))
    write_json(a.out, report)


if __name__ == "__main__":
    main()
