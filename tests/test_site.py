"""The web site: figures are described, links hold no links, formulas are set without a network,
code wraps, and, where a site was rendered and a browser is there, the pages pass axe-core."""

import base64
import html
import io
import json
import re
import sys

import pytest
from conftest import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT / "tools"))
import alts  # noqa: E402
import check_site  # noqa: E402
import docs  # noqa: E402
import node  # noqa: E402
import pages  # noqa: E402

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in str(p))
LESSONS = sorted(p.stem[:2] for p in (ROOT / "nbs").glob("[01][0-9]_*.ipynb"))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def pictures(notebook):
    "The alternative text of each picture in a notebook's outputs and Markdown, None for no text."
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield from re.findall(r"!\[([^\]]*)\]\(", source)
            continue
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            page = "".join(data.get("text/html", ""))
            for image in re.findall(r"<img[^>]*>", page):
                found = re.search(r'\salt="([^"]*)"', image)
                yield found and found[1]
            if not page and any(kind in data for kind in alts.PICTURES):
                yield alts.own_alt(source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_no_picture_without_an_alternative_text(path):
    notebook = read(path)
    alts.describe(notebook)
    assert [alt for alt in pictures(notebook) if not (alt or "").strip()] == []


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_figures_of_a_lesson_are_described_by_hand(lesson):
    path = next((ROOT / "nbs").glob(f"{lesson}_*.ipynb"))
    assert alts.describe(read(path)) == [], 'write `#| fig-alt: "..."` into these cells'


def test_a_description_says_what_the_code_draws():
    source = (
        "viz.curves({'train': a, f'{n} steps': b}, xlabel='step', ylabel='loss',\n"
        "           title='two runs')\nprint('done', title)"
    )
    text = alts.description(source, "## Runs\nFirst *this*. [Then](x.ipynb) that $x$:")
    assert text == "Lines: two runs (loss against step), of train, … steps. Then that x"
    assert alts.description("plt.imshow(x); ax.set_title('a face')") == "Picture: a face."
    assert alts.description("%matplotlib inline\nshow(") == "Figure."


def test_a_description_below_a_comment_reaches_the_page():
    output = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}}
    source = '# with yours\n#| fig-alt: "Three arms."\nplt.plot(x)'
    cell = {"cell_type": "code", "id": "a1", "source": source, "outputs": [output]}
    assert alts.describe({"cells": [cell]}) == []
    assert cell["source"].startswith('#| fig-alt: "Three arms."\n# with yours')


def test_a_clip_is_described_by_row_and_column():
    clip = '<td><figure><img class="clip" alt="" src="x"/></figure></td>'
    one = "<tr><th>real</th>" + clip + clip + "</tr>"
    table = f"<table><tr><th></th><th>a &lt; b</th><th>up</th></tr>{one}</table>"
    found = re.findall(r'alt="([^"]*)"', alts.in_html(table))
    assert found == ["real: a &lt; b", "real: up"]
    assert re.findall(r'alt="([^"]*)"', alts.in_html(f"<table>{one}</table>")) == [
        "real: clip 1",
        "real: clip 2",
    ]
    loose = alts.in_html('<img src="x"><img alt="mine" src="y">', "Two of them.")
    assert re.findall(r'alt="([^"]*)"', loose) == ["picture 1 of 2: Two of them.", "mine"]


def test_a_cell_s_own_words_are_kept():
    cell = dict(
        cell_type="code",
        source='#| fig-alt: "A line"\nviz.curves(x)',
        outputs=[dict(data={"image/png": "x"})],
    )
    notebook = dict(cells=[cell])
    assert alts.describe(notebook) == [] and list(pictures(notebook)) == ["A line"]
    cell["source"] = "viz.curves(x)"
    cell["id"] = "a1"
    assert list(pictures(notebook)) == [None]
    assert alts.describe(notebook) == ["a1"] and list(pictures(notebook)) == ["Lines."]


def test_links_hold_no_links():
    assert docs.without_nested(
        "[[`fit`](08.ipynb#fit)](08.ipynb) [a [`b`](c) d [`e`](f)](g) [`h`](i) [[1, 2]] x[[`k`](l)]"
    ) == ("[`fit`](08.ipynb) [a `b` d `e`](g) [`h`](i) [[1, 2]] x[[`k`](l)]")


def code_page(code):
    return f'<pre class="sourceCode"><code class="sourceCode python">{code}</code></pre>'


def test_each_line_of_code_wraps_below_its_own_indentation():
    code = '<span class="st">"""two\n    lines"""</span>\n\n  x  <span class="co"># (B, 1)</span>'
    done = pages.in_lines(code)
    assert html.unescape(re.sub(r"<[^>]+>", "", done)) == '"""two\n    lines"""\n\n  x  # (B, 1)'
    first, second, empty, third = done.split("\n")
    assert first == '<span class="line"><span class="st">"""two</span></span>'
    assert second.startswith('<span class="line" style="--deep:4ch"><span class="st">')
    assert empty == "" and 'class="co after"' in third and "--deep:2ch" in third


def test_names_lead_to_the_lines_that_define_them():
    code = '<span class="kw">def</span> <span class="fu">Fit</span>(x):\n    pass\ndef fit():'
    page = pages.without_repeats(f'<h2 id="other"></h2>{code_page(pages.in_lines(code))}')
    assert page.count('id="fit"') == 1
    taken = pages.without_repeats(f'<h2 id="fit"></h2>{code_page(pages.in_lines(code))}')
    assert taken.count('id="fit"') == 1 and '<span class="line" id' not in taken


def animation(frames):
    out = io.BytesIO()
    images = [Image.new("RGB", (8, 8), (40 * k, 0, 0)) for k in range(frames)]
    images[0].save(out, "WEBP", save_all=True, append_images=images[1:], lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def test_a_moving_picture_has_a_frame_for_readers_who_want_less_motion(tmp_path):
    moving = f'<p><img alt="a" src="{animation(3)}"></p>'
    page = pages.that_can_stand(moving, tmp_path)
    assert 'media="(prefers-reduced-motion: reduce)"' in page and "</picture></p>" in page
    still = f'<p><img alt="a" src="{animation(1)}"></p>'
    assert pages.that_can_stand(still, tmp_path) == still


FORMULA_PAGE = (
    '<html><head><link rel="stylesheet" href="https://cdn.x/katex.min.css">'
    '<script src="https://cdn.x/katex.min.js" defer></script><link href="styles.css"></head>'
    r'<p><span class="math inline">\(x \lt 1 &amp; y\)</span>.'
    r' <span class="math display">\[\sqrt{2}\]</span></p></html>'
)


def test_a_finished_page_asks_no_other_host(tmp_path):
    formulas = pages.formulas_of(FORMULA_PAGE)
    assert formulas == {(r"x \lt 1 & y", False), (r"\sqrt{2}", True)}
    rendered = {f: f"<math>{f[0][:3]}</math>" for f in formulas}
    page = pages.finished(FORMULA_PAGE, tmp_path, rendered, "../site_libs/katex/katex.min.css")
    assert "https:" not in page and page.index("site_libs/katex") < page.index("styles.css")
    assert re.findall(r"<math>[^<]*</math></span>(?:\.</span>)?", page) == [
        "<math>x \\</math></span>.</span>",
        "<math>\\sq</math></span>",
    ]


def all_formulas():
    "The formulas of all notebooks, as far as dollars tell."
    for path in NOTEBOOKS:
        for cell in read(path)["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] != "markdown":
                continue
            text = re.sub(r"```.*?```|`[^`]*`|<!--.*?-->|\\\$", "", text, flags=re.S)
            yield from ((tex, True) for tex in re.findall(r"\$\$(.+?)\$\$", text, re.S))
            text = re.sub(r"\$\$.+?\$\$", "", text, flags=re.S)
            yield from ((tex, False) for tex in re.findall(r"\$(\S(?:[^$\n]*\S)?)\$(?!\d)", text))


def test_every_formula_can_be_set_without_node():
    formulas = sorted(set(all_formulas()))
    assert len(formulas) > 200
    for (tex, _), done in zip(formulas, pages.by_python(formulas)):
        assert done.startswith("<math") and "\\" not in done, tex


def test_without_node_the_formulas_are_set_in_plainer_type(monkeypatch, capsys):
    def refuse(*names):
        raise RuntimeError("node and npm not installed")

    monkeypatch.setattr(node, "packages", refuse)
    rendered, folder = pages.set_formulas({("x^2", True)})
    assert folder is None and 'display="block"' in rendered["x^2", True]
    assert "plainer type (MathML): node and npm not installed" in capsys.readouterr().err


@pytest.mark.skipif(node.version("katex") is None, reason="KaTeX is not here (make docs gets it)")
def test_every_formula_is_set_by_katex(tmp_path):
    formulas = sorted(set(all_formulas()))
    rendered, folder = pages.by_katex(formulas)
    assert len(rendered) == len(formulas) and all("katex-html" in done for done in rendered)
    pages.ship_katex(folder, tmp_path)
    css = (tmp_path / "site_libs/katex/katex.min.css").read_text(encoding="utf-8")
    fonts = set(re.findall(r"url\((fonts/[^)]*)\)", css))
    assert fonts and all((tmp_path / "site_libs/katex" / font).exists() for font in fonts)


SITE = ROOT / "_docs"
RENDERED = pytest.mark.skipif(
    not (SITE / "search.js").exists(), reason="no site was rendered as of today (make docs)"
)


@RENDERED
def test_the_rendered_pages_ask_no_other_host():
    asks = r'<(?:script|img|source|iframe|video)\b[^>]*\ssrc="(?:https?:)?//|<link\b[^>]*="https?:'
    for path in SITE.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert not re.search(asks, page), path
        assert '<html lang="en">' in page and 'class="skip-link"' in page, path
        assert not re.search(r'<img(?![^>]*\salt="[^"]*[^"\s])[^>]*>', page), path
    for path in SITE.rglob("*.css"):
        assert not re.search(r"@import[^;]*https?:", path.read_text(encoding="utf-8")), path


@RENDERED
def test_links_in_the_rendered_pages_lead_somewhere():
    ids = {
        path: set(re.findall(r'\sid="([^"]+)"', path.read_text(encoding="utf-8")))
        for path in SITE.rglob("*.html")
    }
    dead = []
    for path in ids:
        page = path.read_text(encoding="utf-8")
        main = page[page.index("<main") :]
        for link in re.findall(r'<a\b[^>]*\shref="([^"#:]*)(?:#[^"]*)?"', main):
            to = (path.parent / html.unescape(link)).resolve() if link else path
            if not to.exists():
                dead.append(f"{path.relative_to(SITE)}: {link}")
    assert dead == []


@RENDERED
@pytest.mark.skipif(
    not (check_site.chromium() and node.version("axe-core") and node.version("playwright-core")),
    reason="needs Chromium, and the packages that make site-check gets",
)
def test_pages_pass_in_a_browser():
    "One lesson and one workshop here; `make site-check` opens all."
    for found in check_site.browse(["start.html", "core/files.html"]):
        assert list(check_site.faults(found)) == [], (found["page"], found["view"])
