"""Start page, field guide and glossary: every link leads to a heading that is there, and every
picture is a lesson's own."""

import json
import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import reading  # noqa: E402

NBS = ROOT / "nbs"
PAGES = ["start", "field_guide", "glossary"]


def cells(path, kind):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in found if c["cell_type"] == kind]


def slug(heading):
    "The address that Quarto, as Pandoc, gives a heading."
    text = re.sub(r"[`*$]|\]\([^)]*\)|\[", "", heading).lower()
    text = re.sub(r"[^\w\s.-]", "", text).strip()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", text))


def headings(path):
    text = "\n".join(cells(path, "markdown"))
    return {slug(h) for h in re.findall(r"^#{1,4} (.+)$", text, re.M)}


def dead_links(path):
    "Links of a page to a notebook, or to a heading in one, that is not there."
    for link in re.findall(
        r"\]\(([\w./-]+\.ipynb(?:#[^)]*)?)\)", "\n".join(cells(path, "markdown"))
    ):
        page, _, heading = link.partition("#")
        to = path.parent / page
        if not to.exists() or heading and heading not in headings(to):
            yield link


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_heading(page):
    assert len(re.findall(r"\.ipynb", "".join(cells(NBS / f"{page}.ipynb", "markdown")))) > 12
    assert list(dead_links(NBS / f"{page}.ipynb")) == []


def test_a_dead_link_is_found(tmp_path):
    def page(name, text):
        cell = dict(cell_type="markdown", source=text)
        (tmp_path / name).write_text(json.dumps(dict(cells=[cell])))

    page("a.ipynb", "# A page\n## What `fit` does, and when")
    page(
        "b.ipynb", "[x](a.ipynb#what-fit-does-and-when) [y](a.ipynb#what) [z](c.ipynb) [w](a.ipynb)"
    )
    assert list(dead_links(tmp_path / "b.ipynb")) == ["a.ipynb#what", "c.ipynb"]


def glossary():
    text = "\n".join(cells(NBS / "glossary.ipynb", "markdown"))
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", text, re.M)
    return [row for row in rows if row[0] != "term"]


def test_the_glossary_has_what_learners_missed():
    terms = ", ".join(term for term, *_ in glossary())
    for term in (
        "PSNR SNR score probability-flow SDE MFU v-prediction adaLN-Zero tubelet CFG EMA f8".split()
    ):
        assert term in terms, term


def test_a_term_is_a_sentence_or_two_with_a_link():
    for term, meaning, where in glossary():
        assert 20 < len(meaning) < 260 and meaning.endswith("."), term
        assert ".ipynb" in where, term


def test_terms_are_in_order():
    text = "\n".join(cells(NBS / "glossary.ipynb", "markdown"))
    for section in text.split("\n## ")[1:]:
        terms = [
            t.lower() for t in re.findall(r"^\| (.+?) \| .+ \|$", section, re.M) if t != "term"
        ]
        assert terms == sorted(terms), section.split("\n")[0]


def namespace():
    "What the field guide's hidden cell defines."
    first = cells(NBS / "field_guide.ipynb", "code")[0]
    scope = {}
    exec(compile(first, "field_guide.ipynb", "exec"), scope)
    return scope


@pytest.mark.parametrize("source", cells(NBS / "field_guide.ipynb", "code")[1:])
def test_the_field_guide_s_pictures_are_in_the_lessons(source, monkeypatch):
    "A lesson whose figure was renamed or lost is named here, by a KeyError."
    monkeypatch.chdir(NBS)
    scope = namespace()
    exec(source, scope)
    page = scope["show"](*re.search(r"show\('(\w+)'", source).groups()).data
    assert "<div" in page


def test_the_field_guide_knows_every_lesson_that_fails_on_purpose():
    text = "\n".join(cells(NBS / "field_guide.ipynb", "markdown"))
    missing = [p.name for p in reading.lessons() if f"({p.name}#what-goes-wrong)" not in text]
    assert missing == []


def test_reading_time_counts_what_is_read(tmp_path):
    def cell(kind, text):
        return dict(cell_type=kind, source=text)

    found = [
        cell("markdown", "# Title\n" + "word " * 399),
        cell("code", "x = 1"),
        cell("code", "#| hide\nx = 1"),
        cell("code", "# your turn: answer = ..."),
        cell("markdown", "<details><summary>Solution</summary>\n" + "word " * 900 + "</details>"),
        cell("markdown", "### Exercise 1: x\n<!-- " + "word " * 900 + "-->"),
        cell("markdown", "## Later\n" + "word " * 198 + "[a](http://x.y/z)"),
    ]
    path = tmp_path / "00_x.ipynb"
    path.write_text(json.dumps(dict(cells=found)))
    whole, exercises = reading.minutes(path)
    assert abs(whole - (2 + 0.5 + 1)) < 0.05 and exercises == 1
    assert abs(reading.minutes(path, "## Later")[0] - 2.5) < 0.05
    with pytest.raises(ValueError, match="no heading '## Never'"):
        reading.minutes(path, "## Never")


def test_the_start_page_has_the_reading_times():
    "Each lesson is in its table, with minutes that are not far from today's."
    found = json.loads((NBS / "start.ipynb").read_text(encoding="utf-8"))["cells"]
    tables = [
        "".join(o["data"].get("text/markdown", ""))
        for c in found
        for o in c.get("outputs", [])
        if "data" in o
    ]
    rows = dict(re.findall(r"^\| (\d\d) [^|]+\| (\d+) min", "\n".join(tables), re.M))
    for path in reading.lessons():
        read = reading.minutes(path)[0]
        assert abs(int(rows[path.stem[:2]]) - read) <= 3 + 0.25 * read, (
            f"{path.stem}: run start.ipynb again"
        )
