"""Scripts as people write them: sentences, Markdown, storyboards; what cannot be is a sentence."""

import json
from pathlib import Path

import pytest
from PIL import Image

from minisora.film.script import (
    count_words,
    key_phrase,
    language_of,
    open_script,
    read_script,
    scene_texts,
    split_long,
    split_sentences,
    steps_in,
    storyboard_of,
)
from minisora.film.shots import Card, Diagram, Picture, shot_of
from minisora.film.storyboard import Scene, Storyboard, load_storyboard


@pytest.mark.parametrize(
    "text, count",
    [
        ("One. Two! Three?", 3),
        ("Mr. Fox met Dr. No at 5 p.m. on Main St. with Mrs. Hen.", 1),
        ("Pi is 3.14159. Not 3.", 2),
        ("He said “Stop!” and left. She stayed.", 2),
        ('"Really?" she asked. "Yes."', 2),
        ("Wait... What? No…", 3),
        ("J. R. R. Tolkien wrote it.", 1),
        ("See https://example.org/a.b?c=d.e for more. Or not.", 2),
        ("It costs 5 p.m. Then it ends.", 2),
        ("你好。今天天气很好！你呢？", 3),
        ("第一句。Second one. 第三句", 3),
        ("no end at all", 1),
        ("", 0),
        ("!!! ??? ...", 3),
    ],
)
def test_sentences(text, count):
    found = split_sentences(text)
    assert len(found) == count, found
    assert "".join("".join(found).split()) == "".join(text.split())  # nothing is lost


def test_long_sentences_are_cut_at_clauses():
    text = "word " * 30 + "end, " + "word " * 30 + "end"
    pieces = split_long(text, 200)
    assert max(map(len, pieces)) <= 200 and pieces[0].endswith(",")
    assert " ".join(pieces).split() == text.split()
    assert split_long("x" * 450, 200) == ["x" * 200, "x" * 200, "x" * 50]


def test_scenes_hold_what_is_said():
    text = (
        "A b. " * 12 + "A sentence of its own, long enough to stand alone in a scene of the film."
    )
    assert " ".join(scene_texts(text)).split() == text.split()


def test_markdown(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    file = tmp_path / "my-story.md"
    file.write_text(
        "# Title *here*\n\nSome `code` and [a link](http://x.y).\n\n```\nx = 1\n```\n\n"
        "| a | b |\n|---|---|\n\n---\n\n## Part\n\n- one\n- two!\n\n![alt](a.png)\n\nEnd.\n"
    )
    script = read_script(file)
    assert script.title == "Title here"
    kinds = [(p.kind, p.text) for p in script.parts]
    assert kinds == [
        ("text", "Some code and a link."),
        ("heading", "Part"),
        ("text", "one. two!"),
        ("picture", "alt"),
        ("text", "End."),
    ]
    board = storyboard_of(script)
    assert isinstance(board.scenes[-1].shot, Picture) and board.scenes[-1].text == "End."
    assert board.scenes[0].shot == Card("Title here")
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="file: there is no file .*a.png"):
        storyboard_of(script)


AWKWARD = {
    "one word": "Rain",
    "emoji": "🌧️ Rain 🌈 falls 😀!",
    "chinese": "水是生命之源。没有水，就没有生命！",
    "mixed": "Water means 水 in Chinese.",
    "arabic": "الماء هو الحياة. كل شيء يحتاج إليه.",
    "hebrew": "מים הם חיים.",
    "russian": "Вода — это жизнь.",
    "japanese": "水は命です。雨が降る。",
    "url": "Go to https://example.org/?q=1&r=2 now.",
    "quotes": "\"It's 'fine'\", she said; “really”.",
    "html": "<script>alert('x')</script> <b>bold</b> &amp; more",
    "numbers": "1,234.56 + 7.8e9 = 50% of $3",
    "shell": "$(rm -rf /) `ls` ; echo hi && exit | cat > x",
    "template": "{{ config }} ${HOME} %s %(x)s {0}",
    "tabs": "a\tb\r\nc\r\n\r\nd",
    "zero width": "a\u200bb \ufeffc\u202ed",
    "long word": "x" * 3000,
    "long sentence": "and so " * 400,
    "no marks": "one two three\n\nfour five\n\nsix",
    "only title": "# Title",
    "title twice": "# A\n\n# A\n\ntext",
    "code": "# A\n\n```\n1\n```\n\nb",
    "list": "# A\n\n1. x\n2. y\n\n* z",
    "path like": "the file is called notes.md and that is all",
    "backslash": "C:\\temp\\x and \\n",
    "upper": "ALL IS LOUD. VERY LOUD!",
    "abbreviation": "e.g. this. i.e. that. etc.",
    "dots": "... a ... b ...",
    "combining": "e\u0301a\u0308 Z\u0351\u036b\u0343a\u0321lgo",
    "control": "a\x07b\x1b[31mc",
}


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_awkward_scripts_become_storyboards(text, tmp_path):
    board = open_script(text)
    board.save(tmp_path / "x.json")
    assert load_storyboard(tmp_path / "x.json") == board
    assert all(0 < len(s.text) <= 2000 and s.note for s in board.scenes)


@pytest.mark.parametrize(
    "source, message",
    [
        ("", "has no words"),
        ("  \n\n ", "has no words"),
        ("😀 !!! …", "has no words"),
        ("word " * 50_000, r"has 50,000 words, and a film at most 5,000"),
        ("none.txt", "there is no file none.txt"),
        (Path("/"), "is a folder"),
        (7, "must be a text or a path"),
    ],
)
def test_what_cannot_be_told_is_said(source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as e:
        open_script(source)
    assert "\n" not in str(e.value)


def test_files_that_are_no_text(tmp_path):
    binary = tmp_path / "a.txt"
    binary.write_bytes(b"\x00\x01\x02")
    with pytest.raises(ValueError, match="a.txt is no text file"):
        read_script(binary)
    binary.write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="a.txt is not UTF-8"):
        read_script(str(binary))


def test_words_and_languages():
    assert count_words("one two — three") == 3 and count_words("水是生命") == 2
    assert [language_of(t) for t in ("water", "水 is water? 水是生命", "вода")] == [
        "en",
        "zh",
        "other",
    ]
    assert storyboard_of(read_script("水是生命。")).speaker == "espeak"
    assert key_phrase("Marie Curie was born in Warsaw.") == "Marie Curie"
    assert steps_in("First a, then b.") is None  # too short to be steps
    assert steps_in("First mix the flour, then bake it.") == ["mix the flour", "bake it"]
    assert shot_of(Diagram(["a", "b"]).to_dict()) == Diagram(["a", "b"])


class Knows:
    kind = "known"

    def __init__(self, word, score):
        self.word, self.score = word, score

    def match(self, text):
        return (self.score, Card(self.word)) if self.word in text else None


def test_whoever_knows_best_shows():
    board = storyboard_of(read_script("A cat sat."), [Knows("cat", 0.5), Knows("sat", 0.9)])
    assert board.scenes[0].shot == Card("sat") and board.scenes[0].note.startswith("known fits")


BOARD = Storyboard("T", (Scene("Hello.", Card("Hi")), Scene("", Card("End"), 2.0)))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(titel="x"), "no field 'titel'; did you mean 'title'"),
        (dict(size=[100, 101]), "size must be an even width and height"),
        (dict(size=[4000, 200]), "at most 1920 × 1080"),
        (dict(size="big"), "size must be an even"),
        (dict(fps=0), "fps"),
        (dict(rate=9), "rate"),
        (dict(crossfade=-1), "crossfade"),
        (dict(captions="yes"), "captions must be true or false"),
        (dict(music="none.mp3"), "music: there is no file .*none.mp3"),
        (dict(scenes=[]), "scenes must be 1 to"),
        (dict(scenes={}), "scenes must be a list"),
        (dict(scenes=["x"]), r"scenes\[0\] must be an object"),
        (dict(scenes=[dict(text="a")]), r"scenes\[0\].shot is missing"),
        (dict(scenes=[dict(text="a", shot=dict(kind="cart"))]), r"scenes\[0\].shot.kind must be"),
        (dict(scenes=[dict(text="a", shot=dict(kind="card"))]), r"scenes\[0\].shot: missing"),
        (dict(scenes=[dict(text="a" * 3000, shot=dict(kind="card", title="x"))]), "3000 letters"),
        (dict(scenes=[dict(text="", pause=0, shot=dict(kind="card", title="x"))]), "neither text"),
        (
            dict(scenes=[dict(text="a", pause=float("nan"), shot=dict(kind="card", title="x"))]),
            "pause",
        ),
        (
            dict(scenes=[dict(text="a", shot=dict(kind="picture", file="no.png"))]),
            r"scenes\[0\].shot.file: there is no file",
        ),
        (
            dict(scenes=[dict(text="a", shot=dict(kind="bars", values=dict(a="x")))]),
            r"scenes\[0\].shot.values\['a'\]",
        ),
        (dict(version=2), "version"),
    ],
)
def test_storyboards_are_checked_to_the_last_field(change, message, tmp_path):
    file = tmp_path / "b.json"
    file.write_text(json.dumps(BOARD.to_dict() | change))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as e:
        load_storyboard(file)
    assert str(file) in str(e.value) and "\n" not in str(e.value)


def test_storyboards_that_are_no_json(tmp_path):
    file = tmp_path / "b.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="b.json"):
        open_script(file)
    with pytest.raises(FileNotFoundError, match="c.json"):
        open_script(tmp_path / "c.json")
