"""The lessons keep to their template, and every exercise's checker knows right from wrong."""

import copy
import json

import lesson_rules as rules
import matplotlib.pyplot as plt
import pytest
from conftest import ROOT

PATHS = sorted(p for p in (ROOT / "nbs").glob("[01][0-9]_*.ipynb") if int(p.name[:2]) < 90)
EXERCISES = [
    (p, rules.parse_exercise(c)) for p in PATHS for c in rules.exercise_cells(rules.load(p))
]


def test_the_lessons_are_there():
    "00 to 10, 12 to 14, 16 to 18: a test over no notebooks would pass without looking."
    numbers = [int(p.name[:2]) for p in PATHS]
    found = [p.name for p in PATHS]
    assert numbers == [*range(11), 12, 13, 14, 16, 17, 18], f"lessons found in nbs/: {found}"


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_template(path):
    problems = rules.check_template(path)
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    "path, exercise", EXERCISES, ids=lambda x: getattr(x, "stem", None) or str(x.number)
)
def test_exercise(path, exercise, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problems = list(rules.run_exercise(rules.load(path), exercise))
    assert not problems, "\n" + "\n".join(problems)


USED = [(p, e) for p, e in EXERCISES if rules.used_cell(rules.load(p), e.cell)]


@pytest.mark.parametrize(
    "path, exercise", USED, ids=lambda x: getattr(x, "stem", None) or str(x.number)
)
def test_what_is_built_is_used(path, exercise, tmp_path, monkeypatch):
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    problems = list(rules.run_used(rules.load(path), exercise))
    plt.close("all")
    assert not problems, "\n" + "\n".join(problems)


# ------------------------------------------------- the rules themselves, on notebooks broken on
# purpose

FIGURE = [{"output_type": "display_data", "metadata": {}, "data": {"image/png": "iVBORw0KGgo="}}]
PRINTED = [{"output_type": "stream", "name": "stdout", "text": "2\n"}]


def md(*lines):
    return {"cell_type": "markdown", "metadata": {}, "source": "\n".join(lines)}


def code(*lines, outputs=()):
    return {
        "cell_type": "code",
        "metadata": {},
        "execution_count": None,
        "source": "\n".join(lines),
        "outputs": list(outputs),
    }


def exported(lines):
    return code("#| export", *["x = 1"] * lines)


def exercise(i, kind=""):
    return md(
        f"### Exercise {i}: {kind}double it",
        "Write a function that doubles its argument, whatever number it is given here.",
        "Check yourself with `check.double(answer)`.",
        "<details><summary>Solution</summary>",
        "",
        "```python",
        "answer = lambda x: 2 * x",
        "check.double(answer)",
        "```",
        "Twice is what double means.",
        "</details>",
        "<!-- wrong: lambda x: x -->",
    )


GOOD = [
    md("# A lesson", "> about doubling"),
    md(
        "## What you will be able to do",
        "- double",
        "- double again",
        "",
        "**What you need to have read:** nothing.",
        "",
        f"**Run it:** [on Colab]({rules.COLAB}00_lesson.ipynb)",
        "",
        "**Time and memory:** 3 s and 200 MB on 2 CPU cores.",
    ),
    code("#| default_exp lesson"),
    code(*rules.INSTALL.split("\n")),
    code("from minisora import check, viz", "viz.show(x)", outputs=FIGURE),
    md("## The whole thing, small", "Doubling is adding."),
    code("y = 1 + 1"),
    code("#| export", "def double(x): return 2 * x"),
    code("y = double(1)", "print(y)", outputs=PRINTED),
    md("## What goes wrong", "Halving instead."),
    code("viz.show(y)", outputs=FIGURE),
    md("## Exercises"),
    exercise(1),
    code("# your turn: answer = ..."),
    exercise(2),
    code("# your turn: answer = ..."),
    exercise(3, "write the block: "),
    code("# your turn: answer = ..."),
    code("# with yours"),
    exercise(4, "find the bug: "),
    code("# your turn: answer = ..."),
    md(
        "## Recap",
        "- one",
        "- two",
        "- three",
        "- four",
        "",
        "## Further reading",
        "- [A paper](https://arxiv.org/abs/2212.09748)",
        "",
        "## Next lesson",
        "[Next](01_next.ipynb)",
    ),
]


def lesson_with(tmp_path, cells):
    path = tmp_path / "00_lesson.ipynb"
    path.write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    (tmp_path / "01_next.ipynb").write_text("{}")
    return path


def replaced(i, old, new):
    cells = copy.deepcopy(GOOD)
    assert old in cells[i]["source"], f"{old!r} is not in cell {i}"
    cells[i]["source"] = cells[i]["source"].replace(old, new)
    return cells


def with_outputs(i, outputs):
    cells = copy.deepcopy(GOOD)
    cells[i]["outputs"] = outputs
    return cells


GIF = [{"output_type": "display_data", "metadata": {}, "data": {"image/gif": "R0lGOD=="}}]
ERROR = [{"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}]
BROKEN = {
    "no title": (replaced(0, "# A lesson", "A lesson"), "must begin with '# Title'"),
    "no subtitle": (replaced(0, "> about", "about"), "needs a '> subtitle'"),
    "more below the title": (
        replaced(0, "doubling", "doubling\n\nand prose"),
        "the page loses the rest",
    ),
    "no goals": (
        replaced(1, "## What you will be able to do", "## Hello"),
        "no section '## What you will be able to do'",
    ),
    "one goal": (replaced(1, "- double again", ""), "at least two bullets"),
    "nothing to have read": (replaced(1, "have read", "own"), "What you need to have read"),
    "no cost": (replaced(1, "Time and memory", "Costs"), "does not say 'Time and memory'"),
    "no time": (replaced(1, "3 s and ", ""), "names no time"),
    "no memory": (replaced(1, "200 MB", "little"), "names no memory"),
    "not on Colab": (replaced(1, rules.COLAB, "https://"), "has no link to itself on Colab"),
    "not installed": (GOOD[:3] + GOOD[4:], "must install the course in its first code cell"),
    "nothing small": (GOOD[:5] + GOOD[7:], "no section '## The whole thing, small'"),
    "small too late": (
        [*GOOD[:5], exported(1), code("#| export", "def double(x): return 2 * x"), *GOOD[5:]],
        "exports code before '## The whole thing, small'",
    ),
    "no block": (replaced(16, "write the block", "write"), "n: write the block: …'"),
    "block not used": (GOOD[:18] + GOOD[19:], "must be used"),
    "no bug": (replaced(19, "find the bug", "find"), "n: find the bug: …'"),
    "code before result": (with_outputs(4, PRINTED), "before the lesson has shown its result"),
    "no failure": (replaced(9, "## What goes wrong", "## More"), "no section '## What goes wrong'"),
    "no picture of the failure": (with_outputs(10, PRINTED), "no picture of the failure"),
    "no exercises": (replaced(11, "## Exercises", "## Games"), "no section '## Exercises'"),
    "three exercises": (GOOD[:14] + GOOD[16:], "has 3 exercises"),
    "wrong number": (replaced(12, "Exercise 1", "Exercise 2"), "where 1 was due"),
    "no task": (
        replaced(12, "Write a function that doubles its argument, whatever number it is given", ""),
        "too little",
    ),
    "no checker": (
        replaced(
            12, "Check yourself with `check.double(answer)`.", "Check your answer yourself then."
        ),
        "does not name",
    ),
    "no solution": (replaced(12, "<summary>Solution</summary>", ""), "no folded solution"),
    "solution unchecked": (
        replaced(12, "check.double(answer)\n```", "```"),
        "solution does not call",
    ),
    "no wrong answer": (replaced(12, "<!-- wrong:", "<!-- "), "no wrong answer"),
    "no cell to work in": (GOOD[:13] + GOOD[14:], "not followed by a code cell"),
    "cell of something else": (
        replaced(13, "# your turn", "# mine"),
        "should begin with '# your turn'",
    ),
    "recap of three": (replaced(21, "- four", ""), "'Recap' has 3 lines"),
    "no recap": (replaced(21, "## Recap", "## End"), "no section '## Recap'"),
    "no reading": (replaced(21, "Further reading", "Links"), "no 'Further reading'"),
    "reading without link": (
        replaced(21, "(https://arxiv.org/abs/2212.09748)", ""),
        "'Further reading' has no link",
    ),
    "no next lesson": (replaced(21, "Next lesson", "Bye"), "no 'Next lesson'"),
    "next lesson skipped": (replaced(21, "01_next", "00_lesson"), "does not link to 01_next.ipynb"),
    "next lesson not there": (
        replaced(21, "[Next](01_next.ipynb)", "[Next](01_next.ipynb) [x](02_x.ipynb)"),
        "02_x.ipynb, which is not there",
    ),
    "too many cells": ([*GOOD, *[md("more")] * 70], "cells, more than 70"),
    "a long cell": ([*GOOD[:7], exported(41), *GOOD[7:]], "exports 41 lines, more than 40"),
    "a long run": (
        [*GOOD[:7], exported(40), exported(21), *GOOD[7:]],
        "ends 61 exported lines without a word",
    ),
    "too much code": (
        [*GOOD[:7], *[exported(40), md("why")] * 12, *GOOD[7:]],
        "exports 48",
    ),
    "too big": (replaced(9, "Halving", "x" * 300_001), "over the budget"),
    "no checkers": (replaced(4, "import check, viz", "import viz"), "imports no check"),
    "no output": (with_outputs(8, []), "has no output"),
    "error kept": (with_outputs(8, ERROR), "ends in ValueError: no"),
    "bare gif": (with_outputs(10, GIF), "bare image/gif"),
}


def test_a_good_lesson_passes(tmp_path):
    assert rules.check_template(lesson_with(tmp_path, GOOD)) == []


@pytest.mark.parametrize("cells, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_lesson_is_found(tmp_path, cells, message):
    problems = rules.check_template(lesson_with(tmp_path, cells))
    assert any(message in p for p in problems), problems
    assert all(p.startswith("00_lesson.ipynb") for p in problems)


def test_diagrams_and_chinese_are_no_more_cells_to_read(tmp_path):
    more = 70 - (len(GOOD) - 10)  # an installing cell and nine of exercises
    diagram = code("#| echo: false", "drawings.vae()", outputs=FIGURE)
    chinese = md("<details><summary>中文：课</summary>", "", "- 会翻倍", "", "</details>")
    asides = [diagram, chinese] * 9
    assert rules.check_template(lesson_with(tmp_path, [*GOOD, *asides, *[md("more")] * more])) == []
    shown = [code("drawings.vae()", outputs=FIGURE)]
    cells = [*GOOD, *asides, *[md("more")] * more, *shown]
    assert "has 71 cells, more than 70" in rules.check_template(lesson_with(tmp_path, cells))[0]


class Checker:
    "A stand-in for minisora.check, with one checker that is right and some that are not."

    def double(self, answer):
        assert answer(3) == 6, "three doubled is six"
        print("✓ doubled")

    def silent(self, answer):
        if answer(3) != 6:
            raise AssertionError
        print("✓")

    def mute(self, answer):
        assert answer(3) == 6, "three doubled is six"

    def blind(self, answer):
        print("✓ anything goes")

    def crash(self, answer):
        return print("✓") if answer(3) == 6 else answer.missing


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("", "", None),
        ("2 * x", "3 * x", "the solution fails: AssertionError: three doubled is six"),
        ("2 * x", "undefined(x)", "the solution fails: NameError"),
        ("check.double", "check.mute", "prints no '✓ ...'"),
        ("check.double", "check.blind", "accepts the wrong answer"),
        ("check.double", "check.silent", "without a hint"),
        ("check.double", "check.crash", "not an AssertionError"),
        ("wrong: lambda x: x", "wrong: nothing", "does not even run"),
        ("wrong: lambda x: x", "wrong: def answer(x):\n    return x\n", None),
    ],
)
def test_checkers_are_checked(tmp_path, monkeypatch, old, new, message):
    monkeypatch.setattr(rules, "namespace", lambda: {"check": Checker()})
    cells = replaced(12, old, new) if old else GOOD
    lesson = rules.load(lesson_with(tmp_path, cells))
    problems = list(
        rules.run_exercise(lesson, rules.parse_exercise(rules.exercise_cells(lesson)[0]))
    )
    assert (
        (problems == []) if message is None else (len(problems) == 1 and message in problems[0])
    ), problems
    assert all(p.startswith("00_lesson.ipynb, cell 13, exercise 1 (double it)") for p in problems)
