"""Figures, tables and moving pictures: what they show, and what they leave alone."""

import base64
import html
import io
import os
import re

import numpy as np
import pytest
import torch
from nbconvert.filters import markdown2html
from PIL import Image

from minisora import viz
from minisora.clips import SceneClips


def test_clips_are_shown_as_small_moving_pictures(tmp_path):
    x = SceneClips(2)
    page = viz.show_clips([x[0], x[1]]).data
    assert x[0].caption in page and len(page) < 25_000
    got = [
        Image.open(io.BytesIO(base64.b64decode(b))) for b in re.findall(r"base64,([^\"]+)\"", page)
    ]
    assert [g.n_frames for g in got] == [16, 16] and got[0].size == (64, 64)
    got[0].seek(8)
    shown = np.asarray(got[0].convert("RGB")).astype(int)
    assert np.abs(shown - x[0].frames[:, 8].permute(1, 2, 0).numpy()).mean() < 2
    viz.save_gif(tmp_path / "x.gif", x[0].frames, scale=2)
    assert Image.open(tmp_path / "x.gif").size == (128, 128) and os.listdir(tmp_path) == ["x.gif"]
    sheet = viz.contact_sheet(torch.stack([x[0].frames] * 2), ["a", "b"], frames=4)
    assert sheet.size == (4 * 66 + 2, 2 * 80 + 2)
    assert "&lt;b&gt;" in viz.show_clips(x[0].frames, ["<b>"]).data
    with pytest.raises(ValueError, match=r"\(B, C, T, H, W\)"):
        viz.show_clips(torch.zeros(3, 4))


def test_a_gif_that_cannot_be_written_is_named_and_leaves_the_old_one(tmp_path, monkeypatch):
    "Stopped in the middle of writing, and where there is no folder."
    clip = torch.zeros(3, 2, 4, 4)
    viz.save_gif(tmp_path / "x.gif", clip)
    old = (tmp_path / "x.gif").read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"cannot write .*x\.gif: No space left"):
        viz.save_gif(tmp_path / "x.gif", clip + 1)
    assert (tmp_path / "x.gif").read_bytes() == old and os.listdir(tmp_path) == ["x.gif"]
    with pytest.raises(OSError, match=r"cannot write .*none/x\.gif"):
        viz.save_gif(tmp_path / "none" / "x.gif", clip)


def test_figures_leave_the_settings_alone():
    import matplotlib.pyplot as plt

    before = dict(plt.rcParams)
    fig = viz.curves({"a": [1, 2], "b": ([0, 5], [2, 1])}, log=True, size=(3, 2))
    assert [line.get_label() for line in fig.axes[0].lines] == ["a", "b"]
    assert fig.axes[0].get_yscale() == "log"
    assert (
        fig.get_size_inches().tolist() == [3, 2]
        and dict(plt.rcParams) == before
        and not plt.get_fignums()
    )
    bars = viz.hist({"a": np.zeros(10), "b": np.arange(10)}).axes[0].patches
    assert all(p.get_data().values.sum() == pytest.approx(1) for p in bars)
    with pytest.raises(ValueError, match="needs a matrix"):
        viz.heatmap([1, 2])
    assert dict(plt.rcParams) == before and not plt.get_fignums()


def test_curves_do_not_take_a_tuple_of_numbers_for_a_pair():
    "`zip` hands out tuples: three numbers would be drawn as something else, without a word."
    with pytest.raises(ValueError, match=r"'a' is a tuple of 3; it must be y as a list, or the pa"):
        viz.curves({"a": (1, 2, 3)})


def test_what_a_backend_turns_on_while_a_figure_is_made_stays_on(monkeypatch):
    """A notebook's backend is loaded by its first figure and makes plotting interactive: not
    ours to undo."""
    import matplotlib.pyplot as plt

    subplots = plt.subplots

    def loading(*args, **options):
        plt.rcParams["interactive"] = True
        return subplots(*args, **options)

    monkeypatch.setattr(plt, "subplots", loading)
    monkeypatch.setitem(plt.rcParams, "interactive", False)
    viz.curves({"a": [1, 2]})
    assert plt.isinteractive()


@pytest.mark.parametrize(
    "slider, start", [((0, 10, 1), 5), ((0.0, 1.0, 0.25, 0.75), 0.75), (["x", "y"], "x")]
)
def test_sliders_start_in_the_middle(slider, start):
    assert viz._slider_start(slider) == start


def test_interactive_figures_have_a_still_picture(capsys):
    seen = []
    viz.interactive(lambda k: seen.append(k), k=(0, 4, 1))
    assert seen[0] == 2


# ---------------------------------------------------------------- tables


def rendered(rows, columns):
    "The HTML of a table, and the text of its cells, row by row, as a reader sees them."
    page = markdown2html(viz.table(rows, columns).data)
    found = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
        for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)
    ]
    return page, [
        [html.unescape(c.replace("<br>", "\n").replace("<br />", "\n")) for c in row]
        for row in found
    ]


def test_a_table_shows_numbers_short_and_lists_with_commas():
    rows = [
        dict(name="a b", share=2 / 3, n=12, seams=[1, 2]),
        dict(name="all_right", share=np.float64(0.1)),
    ]
    assert rendered(rows, ["name", "share", "n", "seams"])[1] == [
        ["name", "share", "n", "seams"],
        ["a b", "0.667", "12", "1, 2"],
        ["all_right", "0.1", "", ""],
    ]
    assert viz.table(rows[1:], ["name", "n"]).data == "| name | n |\n| ---|--- |\n| all_right |  |"


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)>",
        "<script>alert(1)</script>",
        "&lt;b&gt;",
        "a | b",
        "a \\| b",
        "`a | b`",
        "`<b>`",
        "a\nb",
        "a\n| c | d |\n\n# e",
        "a\r\nb",
        "**bold** and _slanted_ and ~~gone~~",
        "[a](javascript:alert(1)) ![b](x.png)",
        "it costs $5, then $6",
        "\\",
    ],
)
def test_a_table_shows_text_as_it_is(text):
    "In a cell, in a list and as the name of a column: one cell, and no tag but those of a table."
    page, cells = rendered([{"x": text, text: [text, 1]}], ["x", text])
    seen = text.replace("\r\n", "\n")
    if "\n\n" not in text:
        assert cells == [["x", seen], [seen, f"{seen}, 1"]]
    assert len(cells) == 2 and all(len(row) == 2 for row in cells)
    tags = set(re.findall(r"<(\w+)", page))
    assert tags <= {"table", "thead", "tbody", "tr", "th", "td", "br"}, tags


def test_the_names_of_version_01_still_work():
    for old, new in (
        ("pictures", viz.to_uint8_frames),
        ("animated", viz.animation_bytes),
        ("in_rows", viz.html_grid),
        ("show_matrix", viz.heatmap),
    ):
        with pytest.warns(DeprecationWarning, match=f"viz.{old} is now minisora.viz"):
            assert getattr(viz, old) is new


# ---------------------------------------------------------------- text of strangers

PAYLOADS = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    "<svg/onload=alert(1)>",
    "[x](javascript:alert(1))",
    "&lt;b&gt; &#60;img src=x onerror=alert(1)&#62;",
    "a\n\n<iframe src=javascript:alert(1)>",
    '![x](x" onerror="alert(1))',
]


def tags_of(text):
    from html.parser import HTMLParser

    class Tags(HTMLParser):
        found = []

        def handle_starttag(self, tag, attributes):
            self.found.append((tag, dict(attributes)))

    parser = Tags()
    parser.found = []
    parser.feed(text)
    return parser.found


@pytest.mark.parametrize("text", PAYLOADS)
def test_no_text_becomes_html(text):
    from minisora.pipeline_output import VideoPipelineOutput

    clip = torch.zeros(1, 3, 2, 8, 8)
    picture = np.zeros((8, 8), np.uint8)
    shown = [
        viz.show_clips(clip, [text]).data,
        viz.compare_clips({text: clip}, [text]).data,
        viz.show_images([picture], [text]).data,
        viz.table([{text: text, "b": [text]}], [text, "b"]).data,
        VideoPipelineOutput(clip, [text])._repr_html_(),
        viz.clip_html(clip[0], text),
    ]
    for page in shown:
        for tag, attributes in tags_of(page):
            assert tag in {"img", "figure", "figcaption", "div", "table", "tr", "td", "th", "br"}
            assert not any(name.startswith("on") for name in attributes)
            assert "data:image/" in attributes.get("src", "data:image/")
    assert "](" not in shown[3]


CAPTIONS = [
    "красный мяч",
    "μέτρο",
    "红色的球",
    "빨간 공",
    "🎈",
    "a\nb",
    "",
    "\x1b[31m",
    "a" * 500,
    7,
    None,
]


@pytest.mark.parametrize("caption", CAPTIONS, ids=repr)
def test_captions_in_any_script(caption):
    clips = torch.zeros(2, 3, 2, 16, 64)
    sheet = viz.contact_sheet(clips, [caption])
    assert sheet.size == viz.contact_sheet(clips, ["a", "b"]).size


def test_letters_are_drawn_by_a_font_that_has_them(monkeypatch):
    import matplotlib
    from pathlib import Path

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    named = [("cmr10", str(fonts / "cmr10.ttf")), ("DejaVu Sans", str(fonts / "DejaVuSans.ttf"))]
    monkeypatch.setattr(viz, "installed_fonts", lambda: named)
    viz.font_for.cache_clear()
    assert Path(viz.font_for("Ж").path).name == "DejaVuSans.ttf"
    clips = torch.full((1, 3, 2, 16, 64), -1.0)
    drawn = [np.asarray(viz.contact_sheet(clips, [c])) for c in ("ЖЖЖ", "ЯЯЯ")]
    assert not np.array_equal(*drawn)  # letters, not the same boxes
    monkeypatch.setattr(viz, "installed_fonts", lambda: [])
    viz.font_for.cache_clear()
    assert viz.font_for("Ж") is None
    viz.contact_sheet(clips, ["ЖЖЖ 红"])
    viz.font_for.cache_clear()


def test_a_pillow_without_freetype(monkeypatch):
    from PIL import ImageFont

    monkeypatch.setattr(viz, "font_for", lambda letters: ImageFont.load_default_imagefont())
    viz.contact_sheet(torch.zeros(1, 3, 2, 16, 64), ["红色的球"])


@pytest.mark.parametrize("name", ["costs $5", "$x$ and $", r"$\frac{", "a_b^c", "$"])
def test_names_in_figures_are_no_formulas(name):
    for fig in (
        viz.curves({name: [1, 2], "b": [2, 3]}, title=name, xlabel=name),
        viz.hist({name: [1, 2], "b": [2, 3]}, title=name),
        viz.heatmap([[1, 2]], rows=[name], columns=[name, "b"], title=name),
    ):
        fig.canvas.draw()
        assert fig.axes[0].get_title() == name


def test_a_clip_in_a_table_is_described_by_row_and_column():
    page = viz.compare_clips(
        {"a < b": torch.zeros(2, 3, 2, 4, 4), "c": torch.zeros(2, 3, 2, 4, 4)}, ["up"]
    ).data
    assert re.findall(r'alt="([^"]*)"', page) == [
        "a &lt; b: up",
        "a &lt; b: clip 2",
        "c: up",
        "c: clip 2",
    ]


def test_a_caption_may_be_zero_and_an_alternative_text_its_own():
    assert 'alt="0"' in viz.clip_html(torch.zeros(3, 2, 4, 4), 0)
    page = viz.clip_html(torch.zeros(3, 2, 4, 4), "seen", alt="what it shows")
    assert 'alt="what it shows"' in page and ">seen</figcaption>" in page
