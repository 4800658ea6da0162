"""How the code is built: who may import whom, and how long things may be. `python tools/house.py`
shows the figures."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import house  # noqa: E402


def test_arrows():
    """A folder imports what lies below it, a lesson imports folders and earlier lessons, and
    nothing runs in a circle."""
    assert house.upward(ROOT) == []
    assert house.circles(ROOT) == []


def test_nothing_is_too_long():
    assert list(house.too_long(ROOT)) == []


def test_what_is_too_long_is_found(tmp_path):
    package(tmp_path, clips="x = 1\n" * 451, dit="x = 1\n" * 450)

    def cell(lines, kind="code", first="#| export\n"):
        return dict(cell_type=kind, source=[first, *["x = 1\n"] * lines])

    talk = dict(cell_type="markdown", source=["why"])
    cells = [
        cell(41),
        talk,
        cell(40),
        talk,
        cell(30),
        cell(31, first="#| exporti\n"),
        cell(99, first=""),
    ]
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "00_x.ipynb").write_text(json.dumps(dict(cells=cells)))
    assert list(house.too_long(tmp_path)) == [
        "clips has 451 lines, more than 450",
        "00_x.ipynb, cell 1 exports 41 lines, more than 40",
        "00_x.ipynb exports 61 lines without a word or an example, more than 60",
    ]


def package(tmp_path, **files):
    "A package of that name with these modules, `core__files='import …'`."
    for name, text in files.items():
        path = tmp_path / "minisora" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "files, found",
    [
        (dict(core__files="from ..clips import x", clips=""), "core.files imports clips"),
        (
            dict(core__files="import minisora.data.video", data__video=""),
            "core.files imports data.video",
        ),
        (
            dict(models__layers="from ..training import ema", training__ema=""),
            "models.layers imports training.ema",
        ),
        (
            dict(
                data__video="from ..core.files import x\nfrom .buckets import y",
                core__files="",
                data__buckets="",
            ),
            None,
        ),
        (dict(clips="def f():\n    from minisora import dit", dit=""), "clips imports dit"),
        (
            dict(
                dit="from .clips import x\nfrom .models.layers import y\nfrom . import viz",
                clips="",
                models__layers="",
                viz="",
            ),
            None,
        ),
        (dict(viz="from .clips import x", clips=""), "viz imports clips"),
        (dict(pipeline="from .cli import x", cli=""), "pipeline imports cli"),
        (dict(cli="from . import pipeline, dit", pipeline="", dit=""), None),
        (dict(viz="from .core.files import x", core__files=""), None),
        (dict(viz="from .latents.codec import x", latents__codec=""), "viz imports latents.codec"),
        (
            dict(
                checkers__dit="from ..dit import x\nfrom ..metrics import y\nfrom .base import z\n"
                "from ..training.ema import u\nfrom ..evaluation.judge import v",
                dit="",
                metrics="",
                checkers__base="from ..core.files import x",
                core__files="",
                training__ema="",
                evaluation__judge="",
            ),
            None,
        ),
        (dict(checkers__dit="from .. import viz", viz=""), "checkers.dit imports viz"),
        (dict(checkers__dit="from ..check import x", check=""), "checkers.dit imports check"),
        (dict(dit="from .checkers.dit import x", checkers__dit=""), "dit imports checkers.dit"),
        (
            dict(story="from minisora.checkers import dit", checkers__dit=""),
            "story imports checkers.dit",
        ),
        (dict(viz="from .checkers.dit import x", checkers__dit=""), "viz imports checkers.dit"),
        (
            dict(pipeline="from .checkers import dit", checkers__dit=""),
            "pipeline imports checkers.dit",
        ),
        (
            dict(evaluation__judge="from ..checkers.base import x", checkers__base=""),
            "evaluation.judge imports checkers.base",
        ),
        (dict(check="from .checkers.dit import *", checkers__dit=""), None),
    ],
)
def test_an_arrow_that_may_not_be_is_found(tmp_path, files, found):
    assert house.upward(package(tmp_path, **files)) == ([found] if found else [])


def test_a_circle_is_found(tmp_path):
    package(
        tmp_path, data__a="from .b import x", data__b="from .c import x", data__c="from .a import x"
    )
    assert "data.a -> data.b -> data.c -> data.a" in house.circles(tmp_path)
