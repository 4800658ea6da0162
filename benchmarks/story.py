"""A narrated film of about a minute, offline, on this machine: what it takes, whether picture,
sound and words agree, and whether a killed run ends in the same film: story.json.

    python benchmarks/story.py

Needs the voices: pip install "minisora[story]". data/stories/rain.md at 854 × 480, spoken by Piper.
`made`: everything from nothing; `again`: one sentence changed. Each in a process of its own, with
one thread; by turns, `runs` times. `words`: how far the times of subtitles are from those that the
synthesizer names for the same words, and from an aligner (pocketsphinx, where it is installed)
that hears the sound of the film. `kills`: a run that is killed at a random moment, again and again,
and then left alone: are its frames those of an undisturbed film?"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from machine import machine, spread

from minisora.core.files import write_json
from minisora.film.script import open_script
from minisora.film.sound import loudness, read_sound, resample
from minisora.film.subtitles import read_subtitles
from minisora.story import spoken_scene, timed_scenes

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "data" / "stories" / "rain.md"


def command(source, out, *more):
    return [sys.executable, "-m", "minisora", "story", str(source), "--out", str(out), *more]


def timed(source, out):
    "Seconds, CPU-seconds and the memory of the largest process of a run."
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    code += "u = resource.getrusage(resource.RUSAGE_CHILDREN); "
    code += "print(u.ru_utime + u.ru_stime, u.ru_maxrss, file=sys.stderr)"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *command(source, out)],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    cpu, memory = map(float, done.stderr.strip().split("\n")[-1].split())
    return dict(seconds=time.monotonic() - start, cpu=cpu, memory_gb=memory * 1024 / 1e9)


def ends(path):
    "Seconds of picture and of sound."
    with av.open(str(path)) as film:
        streams = film.streams.video[0], film.streams.audio[0]
        return [float(s.duration * s.time_base) for s in streams]


def frames_of(path):
    "A checksum of each frame."
    with av.open(str(path)) as film:
        return [hash(f.to_ndarray(format="rgb24").tobytes()) for f in film.decode(video=0)]


def words_of(board, folder):
    "The words of a film with the times that the synthesizer names."
    said = [spoken_scene(s, board, folder) if s.text.strip() else None for s in board.scenes]
    return [
        (word.strip(), t.speaks_at + a, t.speaks_at + b)
        for t in timed_scenes(board, said)
        if t.speech
        for word, a, b in t.speech.words
    ]


def heard(sound, words):
    "Starts of the same words as an aligner hears them, or None without one."
    try:
        from pocketsphinx import Decoder
    except ImportError:
        return None
    pcm = (np.asarray(sound) * 32767).clip(-32768, 32767).astype("<i2").tobytes()
    text = [w.strip(".,:;!?").lower() for w, _, _ in words]
    decoder = Decoder(lm=None, samprate=16000, bestpath=False)
    known = [w for w in text if decoder.lookup_word(w)]
    decoder.set_align_text(" ".join(known))
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
    spoken = [s for s in decoder.seg() if not s.word.startswith(("<", "["))]
    starts = [s.start_frame / 100 for s in spoken]
    ours = [a for w, (_, a, _) in zip(text, words) if w in set(known)]
    return [abs(a - b) for a, b in zip(starts, ours)] if len(starts) == len(ours) else None


def measure_words(board, film):
    words = words_of(board, film.with_suffix(".items"))
    cues = read_subtitles(film.with_suffix(".srt").read_text(encoding="utf-8"))
    begins, count = {}, 0
    for start, _, text in cues:
        begins[count] = start
        count += len(text.split())
    assert count == len(words)
    errors = [abs(start - words[n][1]) for n, start in begins.items()]
    found = dict(cues=len(cues), words=len(words), cue_start_error_ms=1000 * max(errors))
    board_sound = resample(read_sound(film), 48000, 16000)
    off = heard(board_sound, words)
    if off is not None:
        off = np.array(off) * 1000
        share = float((off <= 100).mean())
        found |= dict(aligned=len(off), aligner_median_ms=float(np.median(off)),
                      aligner_within_100_ms=share)  # fmt: skip
    return found


def kill_runs(count, folder, whole, seconds, seed):
    "Kill a run at random moments until `count` kills are done; are the frames the same at the end?"
    chance = random.Random(seed)
    film = Path(folder, "killed.mp4")
    env = dict(os.environ, OMP_NUM_THREADS="1")
    for _ in range(count):
        process = subprocess.Popen(
            command(SCRIPT, film), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.1, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(SCRIPT, film), env=env, check=True, stdout=subprocess.DEVNULL)
    same = frames_of(film) == frames_of(whole)
    left = [p.name for p in Path(folder).iterdir() if p.name.startswith(".")]
    return dict(count=count, seed=seed, frames_equal=same, files_left_over=len(left))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path(__file__).with_name("story.json")
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder, "changed.md")
        text = SCRIPT.read_text()
        assert "tiny drops" in text
        made, again = [], []
        for i in range(args.runs):
            film = Path(folder, f"film{i}.mp4")
            made.append(timed(SCRIPT, film))
            changed.write_text(text.replace("tiny drops", f"very small drops, {i} times"))
            again.append(timed(changed, film))
        film = Path(folder, "whole.mp4")
        subprocess.run(command(SCRIPT, film), check=True, stdout=subprocess.DEVNULL)
        board = open_script(film.with_suffix(".json"))
        picture, sound = ends(film)
        rows = {
            name: {key: spread([row[key] for row in rows]) for key in rows[0]}
            for name, rows in dict(made=made, again=again).items()
        }
        record = dict(
            machine=machine(),
            script=str(SCRIPT.relative_to(ROOT)),
            size=list(board.size),
            scenes=len(board.scenes),
            runs=args.runs,
            film_seconds=picture,
            ends_apart_ms=1000 * abs(picture - sound),
            lufs=loudness(read_sound(film)),
            **rows,
            words=measure_words(board, film),
            kills=kill_runs(args.kills, folder, film, rows["made"]["seconds"]["median"], 0),
        )
    print(json.dumps(record, indent=1))
    write_json(args.out, record)


if __name__ == "__main__":
    main()
