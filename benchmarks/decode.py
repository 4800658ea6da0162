"""Reading video files beside bare PyAV, and a folder of 480p films into a cache:
benchmarks/decode.json.

    python benchmarks/decode.py [--data ../shared/data] [--files 4] [--rounds 3] [--films 32]

Speed: each file is read in turn by MiniSora and by loops of bare PyAV, interleaved, in one process
and one run; a row says frames decoded per CPU second (of all threads together, so that other work
on the machine does not count). Bare PyAV is asked for the same clip (all frames decoded, those that
it needs turned into RGB arrays and shrunk by Pillow), and for every frame as an RGB array.
Folder: films of 480×640 are read through `FolderClips` and written as a cache with `write_cache`.
The autoencoder only averages blocks of 8×8, so that reading is measured. Resident memory is sampled
ten times a second."""

import json
import os
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np
import torch
from einops import reduce
from machine import machine, make_parser
from PIL import Image

from minisora.core.files import write_json
from minisora.data.folders import FolderClips
from minisora.data.video import probe, read_video
from minisora.latent_cache import write_cache

PAGE = os.sysconf("SC_PAGE_SIZE")
SMALL = "minisora: 16 frames of 128×128"
BARE_SMALL = "bare: 16 of 128×128 by Pillow"
EVERY = "minisora: every frame, full size"
BARE_EVERY = "bare: every picture"


def decode_all(path, chosen):
    "Bare PyAV: decode every frame, and turn frame k into an RGB array where `chosen(k)`."
    pictures = []
    with av.open(str(path)) as file:
        file.streams.video[0].thread_type = "AUTO"
        for k, frame in enumerate(file.decode(video=0)):
            if chosen(k):
                pictures.append(frame.to_ndarray(format="rgb24"))
    return pictures


def shrink(picture, size=128):
    "The center square of an RGB array, resized: the line of Pillow that a plain loop would have."
    height, width = picture.shape[:2]
    side = min(height, width)
    left = (width - side) / 2
    top = (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.array(Image.fromarray(picture).resize((size, size), Image.BICUBIC, box=box))


def readers(path):
    "(Frames in a file, {name: a function that reads the file}); each decodes all frames."
    info = probe(path)
    n = round(info.seconds * info.fps)
    wanted = {int((k + 0.5) / 16 * n) for k in range(16)}
    whole = (info.height, info.width)
    return n, {
        "bare: decode, no picture": lambda: decode_all(path, lambda k: False),
        "bare: decode, 16 pictures": lambda: decode_all(path, wanted.__contains__),
        BARE_SMALL: lambda: [shrink(p) for p in decode_all(path, wanted.__contains__)],
        SMALL: lambda: read_video(path, 16, 128),
        BARE_EVERY: lambda: decode_all(path, lambda k: True),
        EVERY: lambda: read_video(path, n, whole),
    }


def best_seconds(ways, rounds):
    "CPU seconds of each function, the best of `rounds`, interleaved, in turn from either end."
    best = dict.fromkeys(ways, float("inf"))
    for k in range(rounds):
        for name in list(ways)[:: 1 if k % 2 else -1]:
            start = time.process_time()
            ways[name]()
            best[name] = min(best[name], time.process_time() - start)
    return best


def speeds(files, rounds):
    "Frames per CPU second of each reader, over all files."
    frames = 0
    seconds = {}
    for path in files:
        n, ways = readers(path)
        frames += n
        for name, best in best_seconds(ways, rounds).items():
            seconds[name] = seconds.get(name, 0) + best
    return {name: round(frames / s, 1) for name, s in seconds.items()}


def speed_report(folder, ext, count, rounds):
    "Speeds on `count` files of a folder, and the ratios that matter."
    found = sorted(folder.glob(f"*.{ext}"))
    if not found:
        raise SystemExit(f"no *.{ext} in {folder}")
    files = found[:: max(1, len(found) // count)][:count]
    pace = speeds(files, rounds)
    ratio = dict(
        same_clip=round(pace[SMALL] / pace[BARE_SMALL], 3),
        clip_against_every_picture=round(pace[SMALL] / pace[BARE_EVERY], 3),
        every_frame=round(pace[EVERY] / pace[BARE_EVERY], 3),
    )
    return dict(files=len(files), frames_per_cpu_second=pace, ratio=ratio)


class BlockMeans:
    "In an autoencoder's place: means of 8×8 pixels, next to no work, so that reading is measured."

    spec = None

    def encode(self, x):
        z = reduce(x, "b c t (h p) (w q) -> b c t h w", "mean", p=8, q=8)
        return z, torch.zeros_like(z)


class Watched:
    "A dataset that notes after how many CPU seconds of the process each clip was read."

    def __init__(self, clips):
        self.clips = clips
        self.times = []

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        clip = self.clips[i]
        self.times.append(time.process_time())
        return clip


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


class MemoryWatch:
    "While it is open: (clips read, resident MiB), ten times a second, in `seen`."

    def __init__(self, clips):
        self.clips = clips
        self.seen = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.done.wait(0.1):
            self.seen.append((len(self.clips.times), resident_mib()))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()


def write_films(films, count, batch_size):
    "Write `count` links to films as a cache; returns the dataset, and the memory of reading it."
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        folder = home / "films"
        folder.mkdir()
        for k in range(count):
            film = films[k % len(films)]
            (folder / f"{k:04d} {film.name}").symlink_to(film)
        clips = Watched(FolderClips(folder, (480, 640), 16, 8.0, check="open", keep=0))
        begin = resident_mib()
        start = time.process_time()
        with MemoryWatch(clips) as memory:
            write_cache(home / "cache", clips, BlockMeans(), batch_size=batch_size, progress=False)
    return [t - start for t in clips.times], begin, memory.seen


def folder_to_cache(films, count, batch_size=2):
    "`count` films of 480×640 in a folder, read and written as a cache: pace and memory."
    times, begin, memory = write_films(films, count, batch_size)
    half = count // 2

    def growth(k):
        "The most MiB above the start, in the k-th tenth of the films."
        tenth = [mib for n, mib in memory if k * count <= 10 * n <= (k + 1) * count]
        return round(max(tenth, default=begin) - begin)

    by_tenth = [growth(k) for k in range(10)]
    return dict(
        films=count,
        frames=16,
        height=480,
        width=640,
        batch_size=batch_size,
        clips_per_cpu_second=round(count / times[-1], 2),
        first_half=round(half / times[half - 1], 2),
        second_half=round((count - half) / (times[-1] - times[half - 1]), 2),
        memory_before_mib=round(begin),
        growth_by_tenth_mib=by_tenth,
        growth_mib=max(by_tenth),
        all_frames_mib=round(count * 3 * 16 * 480 * 640 / 2**20),
    )


def main():
    parser = make_parser(__doc__, __file__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/data"),
        help="the folder that holds the videos, in signs/ and asl/ (default: %(default)s)",
    )
    parser.add_argument("--files", type=int, default=4, help="files of each kind that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="readings of each, the best counts")
    parser.add_argument("--films", type=int, default=32, help="films in the folder, 2 or more")
    args = parser.parse_args()
    torch.set_num_threads(1)
    av.logging.set_level(None)
    report = dict(machine=machine(), cores_used=len(os.sched_getaffinity(0)), speed={})
    for name, ext in (("signs", "mp4"), ("asl", "mkv")):
        row = speed_report(args.data / name, ext, args.files, args.rounds)
        report["speed"][name] = row
        print(name, json.dumps(row, ensure_ascii=False, indent=1), flush=True)
    films = [file.resolve() for file in sorted((args.data / "asl").glob("*.mkv"))]
    report["folder_to_cache"] = folder_to_cache(films, args.films)
    print(json.dumps(report["folder_to_cache"], indent=1))
    write_json(args.out, report)


if __name__ == "__main__":
    main()
