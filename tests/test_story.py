"""A text in, a film out: what is kept, what is made again, what is replaced and named."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

from minisora import cli, story
from minisora.film.script import open_script
from minisora.film.shots import Card
from minisora.film.speech import SPEAKERS, SpeechError, speak
from minisora.film.storyboard import Scene, Storyboard
from minisora.film.subtitles import read_subtitles
from minisora.story import make_film, plan_film, save_storyboard
from minisora.story_shots import Avatar, AvatarShow, SceneModel, ScenesShow, StockShow, shows_for

SMALL = dict(size=(128, 72), fps=8, speaker="silent", music=None)
TEXT = "# Rain\n\nRain falls on the hills of the land. A red ring moves left.\n\nIt is wet.\n"


def frames_of(path):
    with av.open(str(path)) as film:
        return np.stack([f.to_ndarray(format="rgb24") for f in film.decode(video=0)])


def test_a_film(tmp_path):
    board = open_script(TEXT, shows_for(), **SMALL)
    assert [s.shot.kind for s in board.scenes] == ["card", "card", "card"]
    result = make_film(board, tmp_path / "rain.mp4")
    assert result.problems == () and result.speakers == ("silent",)
    beside = {p.name for p in tmp_path.iterdir()}
    assert beside == {"rain.mp4", "rain.srt", "rain.vtt", "rain.jpg", "rain.items"}
    found = read_subtitles((tmp_path / "rain.srt").read_text())
    said = " ".join(text for *_, text in found).split()
    assert said == " ".join(s.text for s in board.scenes).split()
    assert found[-1][1] <= result.seconds + 0.5
    frames = frames_of(result.path)
    assert len(frames) == round(result.seconds * 8) and frames.shape[1:] == (72, 128, 3)
    planned = plan_film(board)
    assert 0.5 < planned.seconds / result.seconds < 2 and "3 scenes" in str(planned)


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    asked = []
    real = story.speak
    monkeypatch.setattr(story, "speak", lambda text, *a: asked.append(text) or real(text, *a))
    board = open_script("One sentence stands here alone, as it is long enough.\n\nTwo.", **SMALL)
    first = make_film(board, tmp_path / "a.mp4")
    assert len(asked) == 2
    before = frames_of(first.path)
    make_film(board, tmp_path / "a.mp4")
    assert len(asked) == 2 and (frames_of(first.path) == before).all()
    other = open_script("One sentence stands here alone, as it is long enough.\n\nTwo!", **SMALL)
    make_film(other, tmp_path / "a.mp4")
    assert asked[2:] == ["Two!"]


def test_what_is_kept_is_named_by_all_that_it_depends_on():
    board = Storyboard("T", (Scene("A.", Card("a")),))
    scene = board.scenes[0]
    key = story.speech_key(scene, board)
    changes = dict(speaker="espeak", voice="x", rate=1.5, language="zh")
    keys = {story.speech_key(scene, replace(board, **{k: v})) for k, v in changes.items()}
    keys |= {key, story.speech_key(replace(scene, text="B."), board)}
    assert len(keys) == 6
    other = replace(board, size=(64, 64), music=None, title="U")
    assert story.speech_key(replace(scene, pause=2.0, shot=Card("b")), other) == key


class Broken:
    kind = "broken"
    licence = ""

    def frames(self, seconds, size, fps):
        raise RuntimeError("no power")
        yield


def test_what_fails_is_named_and_replaced(tmp_path, monkeypatch):
    board = Storyboard("T", (Scene("A big cat.", Broken()), Scene("B.", Card("b"))), **SMALL)
    result = make_film(board, tmp_path / "a.mp4")
    (problem,) = result.problems
    assert problem.startswith("scenes[0]: the shot 'broken' failed (RuntimeError: no power)")
    with pytest.raises(RuntimeError, match=r"scenes\[0\]: the shot 'broken' failed"):
        make_film(board, tmp_path / "b.mp4", strict=True)
    assert not (tmp_path / "b.mp4").exists()

    class Mute:
        def say(self, *_):
            raise SpeechError("hoarse")

    monkeypatch.setitem(SPEAKERS, "piper", Mute())
    monkeypatch.setitem(SPEAKERS, "espeak", Mute())
    board = Storyboard("T", (Scene("A cat.", Card("a")),), **SMALL | dict(speaker="piper"))
    result = make_film(board, tmp_path / "c.mp4")
    assert "piper: hoarse; espeak: hoarse; silent speaks instead" in result.problems[0]
    assert not list((tmp_path / "c.items").glob("speech-*"))  # asked again next time


def test_letters_without_a_font_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(story, "missing_letters", lambda text: "水" if "水" in text else "☂")
    board = Storyboard("T", (Scene("A.", Card("a")), Scene("水。", Card("b"))), **SMALL)
    (problem,) = make_film(board, tmp_path / "a.mp4").problems
    assert problem.startswith("scenes[1]: no font here has '水'") and "Noto Sans CJK" in problem
    with pytest.raises(RuntimeError, match="no font here has"):
        make_film(board, tmp_path / "b.mp4", strict=True)


def test_only_what_a_speaker_says_is_a_problem(tmp_path, monkeypatch):
    def noisy(*_):
        warnings.warn("an open file", ResourceWarning, stacklevel=1)
        warnings.warn("piper: no; silent speaks instead", stacklevel=1)
        return speak("A.", "silent")

    monkeypatch.setattr(story, "speak", noisy)
    board = Storyboard("T", (Scene("A.", Card("a")),), **SMALL)
    problems = make_film(board, tmp_path / "a.mp4").problems
    assert problems == ("scenes[0]: piper: no; silent speaks instead",)


@pytest.mark.parametrize(
    "path, error, message",
    [
        ("a.avi", ValueError, "a film must be an .mp4 file, not 'a.avi'"),
        ("none/a.mp4", FileNotFoundError, "there is no folder"),
    ],
)
def test_where_a_film_cannot_be(path, error, message, tmp_path):
    board = open_script("A.", **SMALL)
    with pytest.raises(error, match=message):
        make_film(board, tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_models_show_only_what_they_know():
    scenes, avatar = ScenesShow(), AvatarShow()
    assert scenes.match("A red ring moves left.")[1] == SceneModel("red ring left")
    assert scenes.match("The white star moves up!")[1] == SceneModel("white star up")
    for text in (
        "A red ring moves.",
        "A red and blue ring moves left.",
        "The red ring of the old king was sold left and right.",
        "The ring was given to the red king who left the hall at dawn.",
        "Rain.",
        "",
    ):
        assert scenes.match(text) is None, text
    assert avatar.match("Thank you!")[1] == Avatar("thank you")
    assert avatar.match("Thank you all.") is None
    with pytest.raises(ValueError, match="prompt: unknown word 'dragon'"):
        SceneModel("red dragon").check()


def test_a_clip_of_a_model_is_made_once(tmp_path):
    shot = SceneModel("blue ball down").prepare(tmp_path)
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    assert SceneModel("blue ball down").prepare(tmp_path) == shot
    assert file.stat().st_mtime_ns == stamp
    frames = list(shot.frames(1, (128, 72), 8))
    assert len(frames) == 8 and (frames[0] != frames[5]).any()
    assert max(f[..., 2].max() for f in frames) > 150  # something blue
    SceneModel("blue ball down", seed=1).prepare(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_stock_is_matched_by_names(tmp_path):
    for name in ("river in autumn.png", "two_dogs.png", "Cloud.png"):
        Image.new("RGB", (20, 10), "red").save(tmp_path / name)
    show = StockShow(tmp_path)
    assert show.match("In autumn the river is wild.")[1].file.endswith("river in autumn.png")
    assert show.match("Two dogs play.")[0] == 1
    assert show.match("A cloud.")[1].file.endswith("Cloud.png")
    assert show.match("The river is long.") is None and show.match("Dogs play.") is None
    with pytest.raises(FileNotFoundError, match="no folder"):
        StockShow(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no pictures and no clips"):
        StockShow(tmp_path / "empty")


def test_an_edited_storyboard_is_not_lost(tmp_path):
    film = tmp_path / "a.mp4"
    first, other = open_script("One.", **SMALL), open_script("Two.", **SMALL)
    save_storyboard(first, film)
    save_storyboard(other, film)  # nobody has edited the first one
    file = tmp_path / "a.json"
    file.write_text(file.read_text().replace("Two", "Three"))
    with pytest.raises(ValueError, match="a.json was edited, and is not of this script"):
        save_storyboard(first, film)
    assert "Three" in file.read_text()


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--size", "128", "72", "--fps", "8", "--speaker", "silent", "--music", "none"]
    assert cli.main(["story", "It rains.", "--dry-run", *small]) == 0
    assert "1 scenes" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert cli.main(["story", "It rains.", "--out", "r.mp4", *small]) == 0
    said = capsys.readouterr().out
    assert "watch r.mp4" in said and "spoken by silent" in said
    assert cli.main(["story", "r.json", "--out", "r.mp4", "--no-captions"]) == 0
    assert cli.main(["story", "r.json", "--out", "wide.mp4", "--size", "96", "64"]) == 0
    assert frames_of("wide.mp4").shape[1:3] == (64, 96)
    for call, words in (
        (["story", ""], "has no words"),
        (["story", "none.md"], "there is no file none.md"),
        (["story", "x", "--size", "99", "64"], "size must be an even"),
        (["story", "x", "--speaker", "bob"], "speaker must be one of"),
        (["story", "x", "--music", "none.mp3"], "none.mp3"),
        (["story", "x", "--stock", "none"], "there is no folder"),
        (["story", "x", "--out", "x.gif"], "a film must be an .mp4 file"),
    ):
        assert cli.main(call) != 0, call
        shown = capsys.readouterr().err
        assert words in shown and "Traceback" not in shown, (call, shown)
    assert not (tmp_path / "film.mp4").exists()


def test_a_storyboard_finds_its_files_from_anywhere(tmp_path, capsys, monkeypatch):
    "Made in one folder with material of another, told again from a third."
    (tmp_path / "stock").mkdir()
    (tmp_path / "out").mkdir()
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "stock" / "big cat.png")
    monkeypatch.chdir(tmp_path)
    small = ["--size", "96", "64", "--fps", "5", "--speaker", "silent", "--music", "none"]
    more = ["--stock", "stock", "--out", "out/a.mp4"]
    assert cli.main(["story", "A big cat.", *more, *small]) == 0
    monkeypatch.chdir("/")
    again = ["story", str(tmp_path / "out" / "a.json"), "--out", str(tmp_path / "out" / "a.mp4")]
    assert cli.main(again) == 0, capsys.readouterr().err
    assert frames_of(tmp_path / "out" / "a.mp4")[3][32, 48, 2] > 150  # the blue picture


def test_no_socket_is_opened(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    board = open_script("Go to https://example.org. A red ring moves left.", shows_for(), **SMALL)
    assert make_film(board, tmp_path / "a.mp4").problems == ()


def test_two_at_a_time_are_refused(tmp_path):
    board = open_script("A.", **SMALL)

    def again(*_):
        make_film(board, tmp_path / "a.mp4")

    with pytest.raises((ValueError, OSError), match="film"):
        make_film(board, tmp_path / "a.mp4", progress=again)


KILLED = """
import sys
from minisora.film.script import open_script
from minisora.story import make_film
board = open_script(sys.argv[1], size=(320, 180), fps=25, speaker="silent", music="bed")
make_film(board, sys.argv[2])
"""


def test_a_killed_film_is_gone_on_with(tmp_path):
    text = "\n\n".join(f"This is sentence number {i}, of which there are some." for i in range(6))
    command = [sys.executable, "-c", KILLED, text]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    begin = time.monotonic()
    subprocess.run([*command, tmp_path / "whole.mp4"], env=env, check=True)
    whole = time.monotonic() - begin
    for share in (0.6, 0.8, 0.95):
        process = subprocess.Popen([*command, tmp_path / "killed.mp4"], env=env)
        time.sleep(share * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, tmp_path / "killed.mp4"], env=env, check=True)
    assert (frames_of(tmp_path / "killed.mp4") == frames_of(tmp_path / "whole.mp4")).all()
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))
