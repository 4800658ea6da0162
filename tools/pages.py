"""What is done to the rendered pages of the web site, so that they need neither the network nor
scripts to be read: formulas are set, code gets lines that wrap, clips a frame that stands still,
and the marks that a screen reader needs are put in."""

import base64
import functools
import html
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import node
from PIL import Image

FORMULA = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
CODE = re.compile(r'(<code class="sourceCode[^>]*>)(.*?)(</code>)', re.S)
CLIP = re.compile(r"<img\b[^>]*>")
OUTSIDE = re.compile(
    r'<link [^>]*href="https?:[^>]*(?:katex|mathjax)[^>]*>'
    r'|<script [^>]*src="https?:[^>]*(?:katex|mathjax|polyfill)[^>]*></script>'
)
HERE = Path(__file__).resolve().parent


def formulas_of(page):
    "The formulas of a page: a set of (TeX, whether it stands on its own)."
    return {(html.unescape(tex), kind == "display") for kind, tex in FORMULA.findall(page)}


def by_katex(formulas):
    "The formulas in KaTeX's HTML, and the folder of KaTeX's style sheet and fonts."
    folder = node.packages("katex") / "katex" / "dist"
    done = subprocess.run(
        ["node", str(HERE / "formulas.mjs")],
        input=json.dumps(formulas),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"KaTeX: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout), folder


def by_python(formulas):
    "The formulas in MathML alone, which browsers set in plainer type."
    from latex2mathml.converter import convert

    rendered = [convert(tex, display="block" if own else "inline") for tex, own in formulas]
    # bars of two lines, which latex2mathml leaves as they are behind \big
    return [re.sub(r"\\(?:\||[lr]?Vert)", "‖", done) for done in rendered]


def set_formulas(formulas):
    "({(TeX, own line): HTML}, the folder with KaTeX's files or None)."
    formulas = sorted(formulas)
    try:
        rendered, folder = by_katex(formulas)
    except (RuntimeError, subprocess.TimeoutExpired) as why:
        print(f"Formulas are set in plainer type (MathML): {why}", file=sys.stderr)
        rendered, folder = by_python(formulas), None
    return dict(zip(formulas, rendered)), folder


def with_formulas(page, rendered):
    "The page with its formulas set; the TeX stays in their MathML, to be copied."

    def put(m):
        tex = html.unescape(m[2])
        formula = f'<span class="math {m[1]}">{rendered[tex, m[1] == "display"]}</span>'
        if m[3] and m[1] == "inline" and len(tex) <= 60:
            # no new line between a formula and the full stop behind it
            return f'<span class="together">{formula}{m[3]}</span>'
        return formula + m[3]

    return re.sub(FORMULA.pattern + r"([.,;:!?)]*)", put, page, flags=re.S)


def in_lines(code):
    """Highlighted code, one span for each line, which wraps below its own indentation.

    The line that defines a name bears the name, in small letters, so that links lead to it."""
    done = []
    open_tags = []

    def closed(tag):
        return "</" + re.match(r"<(\w+)", tag)[1] + ">"

    for line in code.split("\n"):
        before = "".join(open_tags)
        for tag in re.findall(r"<[^>]+>", line):
            if tag.startswith("</"):
                open_tags.pop()
            else:
                open_tags.append(tag)
        after = "".join(map(closed, reversed(open_tags)))
        text = html.unescape(re.sub(r"<[^>]+>", "", line))
        if not text.strip():
            done.append(before + line + after)
            continue
        indent = len(text) - len(text.lstrip(" "))
        style = f' style="--deep:{indent}ch"' if indent else ""
        defined = re.match(r"(?:def|class) (\w+)", text)
        name = f' id="{defined[1].lower()}"' if defined else ""
        line = re.sub(r'(?<=\S)( +)<span class="co">', r'\1<span class="co after">', line)
        line = re.sub(r"^((?:<[^>]+>)*)( +)", r'\1<span class="indent">\2</span>', line, count=1)
        done.append(f'<span class="line"{name}{style}>{before}{line}{after}</span>')
    return "\n".join(done)


def without_repeats(page):
    "The page whose lines of code lose an id that a heading or an earlier line bears."
    taken = set(re.findall(r'<(?!span class="line")[^>]*\sid="([^"]+)"', page))

    def first(m):
        if m[1] in taken:
            return '<span class="line"'
        taken.add(m[1])
        return m[0]

    return re.sub(r'<span class="line" id="([^"]+)"', first, page)


@functools.lru_cache(maxsize=1024)
def still_frame(data):
    "The first frame of an animation (bytes) as a data address, or None if it does not move."
    with Image.open(io.BytesIO(data)) as image:
        if getattr(image, "n_frames", 1) < 2:
            return None
        out = io.BytesIO()
        image.convert("RGB").save(out, "WEBP", quality=80, method=4)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def that_can_stand(page, folder):
    "The page whose moving pictures stand still for a reader who asks for less motion."

    def still(m):
        source = re.search(r'src="([^"]+)"', m[0])
        embedded = re.match(r"data:image/(?:webp|gif);base64,(.+)", source[1]) if source else None
        if embedded:
            data = base64.b64decode(embedded[1])
        elif source and re.search(r"\.(gif|webp)$", source[1]) and (folder / source[1]).exists():
            data = (folder / source[1]).read_bytes()
        else:
            return m[0]
        frame = still_frame(data)
        if not frame:
            return m[0]
        reduced = f'<source media="(prefers-reduced-motion: reduce)" srcset="{frame}">'
        return f"<picture>{reduced}{m[0]}</picture>"

    return CLIP.sub(still, page)


def marked(page):
    "The page with names for its parts, and sections of the sidebar that the keyboard can fold."
    page = page.replace('<nav class="navbar ', '<nav aria-label="Site" class="navbar ')
    page = page.replace(
        '<nav class="quarto-secondary-nav">', '<div class="quarto-secondary-nav">'
    ).replace("</ol></nav></div></nav></header>", "</ol></nav></div></div></header>")
    page = page.replace('<nav id="quarto-sidebar"', '<nav aria-label="Pages" id="quarto-sidebar"')
    page = page.replace('<nav id="TOC"', '<nav aria-label="On this page" id="TOC"')
    page = page.replace(
        '<nav class="page-navigation"', '<nav aria-label="Neighbors" class="page-navigation"'
    )
    page = re.sub(
        r'<a (class="sidebar-item-text sidebar-link text-start" data-bs-toggle="collapse"[^>]*?)'
        r' role="navigation"([^>]*)>(.*?)</a>',
        r'<button type="button" \1\2>\3</button>',
        page,
    )
    page = re.sub(
        r'<a (class="sidebar-item-toggle[^>]*?) role="navigation"[^>]*>(.*?)</a>',
        r'<span \1 aria-hidden="true">\2</span>',
        page,
    )
    page = re.sub(r"<th\b([^>]*)>\s*</th>", r"<td\1></td>", page)  # a corner heads nothing
    return re.sub(r"(<a\b[^>]*)>([^<]*[\u4e00-\u9fff][^<]*)</a>", r'\1 lang="zh-CN">\2</a>', page)


def finished(page, folder, rendered, katex):
    """The HTML of a page as it is published. `folder`: where the page lies; `katex`: the address
    of KaTeX's style sheet from there, or None."""
    has_formulas = bool(FORMULA.search(page))
    page = OUTSIDE.sub("", page)
    page = with_formulas(page, rendered)
    page = CODE.sub(lambda m: m[1] + in_lines(m[2]) + m[3], page)
    page = without_repeats(page)
    page = marked(that_can_stand(page, folder))
    if katex and has_formulas:
        link = f'<link rel="stylesheet" href="{katex}">'
        page = page.replace("<link", f"{link}<link", 1)  # first, so that ours may overrule it
    return page


def ship_katex(folder, site):
    "Copy KaTeX's style sheet and its fonts (woff2, which every browser reads) into the site."
    to = site / "site_libs" / "katex"
    (to / "fonts").mkdir(parents=True, exist_ok=True)
    css = (folder / "katex.min.css").read_text(encoding="utf-8")
    css = re.sub(r",url\(fonts/[^)]*\.(?:woff|ttf)\) format\([^)]*\)", "", css)
    (to / "katex.min.css").write_text(css, encoding="utf-8")
    for font in (folder / "fonts").glob("*.woff2"):
        shutil.copy(font, to / "fonts")
    shutil.copy(folder.parent / "LICENSE", to)


def finish(site):
    "Finish every page of a rendered site, in place."
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(site.rglob("*.html"))}
    rendered, folder = set_formulas(set().union(*map(formulas_of, pages.values())))
    if folder:
        ship_katex(folder, site)
    for path, page in pages.items():
        up = "../" * len(path.relative_to(site).parent.parts)
        katex = f"{up}site_libs/katex/katex.min.css" if folder else None
        path.write_text(finished(page, path.parent, rendered, katex), encoding="utf-8")
    for css in site.rglob("*.css"):
        text = css.read_text(encoding="utf-8")
        # the themes ask a server for their fonts
        kept = re.sub(r"@import url\(['\"]?https?:[^)]*\)[^;]*;", "", text)
        if kept != text:
            css.write_text(kept, encoding="utf-8")
    found = site / "search.json"
    if found.exists():
        text = re.sub(r"\\\\[()\[\]]", "", found.read_text(encoding="utf-8"))
        found.write_text(text, encoding="utf-8")
        # for pages opened from a disk: see nbs/site_keys.html
        script = f"window.searchIndex = {text};"
        found.with_suffix(".js").write_text(script, encoding="utf-8")
