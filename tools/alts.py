"""Alternative texts for the pictures in the notebooks' outputs.

A cell says what its figure shows in a line `#| fig-alt: ...`. A figure without one is described by
what draws it (title, axes, names of the lines) and the sentence before it; a clip in a table by
its row and column."""

import ast
import html
import re

KINDS = {
    "curves": "Lines",
    "hist": "Histogram",
    "heatmap": "Heat map",
    "scatter2d": "Points in the plane",
    "trajectories": "Paths in the plane",
    "contact_sheet": "Frames of clips",
    "plot": "Lines",
    "imshow": "Picture",
    "scatter": "Points",
    "bar": "Bars",
}
LABELS = ("title", "set_title", "suptitle", "xlabel", "set_xlabel", "ylabel", "set_ylabel")
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")


def written(node):
    "The text of a string in the source, with … for what is filled in, or None."
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
    return None


def drawn(source):
    "What a cell's source says of its figure: `{'kind': …, 'title': […], 'names': […], …}`."
    code = "\n".join(s for s in source.splitlines() if not re.match(r"\s*[%!]|#\|", s))
    try:
        calls = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)]
    except SyntaxError:
        return {}
    found = {}
    for call in calls:
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        first = call.args[0] if call.args else None
        if name in KINDS:
            found.setdefault("kind", KINDS[name])
            keys = first.keys if isinstance(first, ast.Dict) else []
            found.setdefault("names", []).extend(filter(None, map(written, keys)))
        for label, value in [(name, first), *((k.arg, k.value) for k in call.keywords)]:
            text = written(value) if label in LABELS else None
            texts = found.setdefault(label.removeprefix("set_"), []) if text else []
            if text and text not in texts:
                texts.append(text)
    return found


def plain(markdown):
    "Markdown as running text: no links, marks, HTML or equations; short formulas stay."
    text = re.sub(
        r"<details.*?</details>|<!--.*?-->|```.*?```|\$\$.*?\$\$", "", markdown, flags=re.S
    )
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<[^>]+>|[*`$\\]|^[#>|-].*$", "", text, flags=re.M)
    return re.sub(r"\s+", " ", text).strip()


def last_sentence(markdown, most=200):
    "The last sentence of a piece of Markdown, or ''."
    sentences = re.split(r"(?<=[.!?:])\s+(?=[A-Z])", plain(markdown))
    last = sentences[-1].rstrip(":,") if sentences else ""
    return last if len(last) <= most else last[: most - 1].rsplit(" ", 1)[0] + " …"


def description(source, before=""):
    "An alternative text for the figure that a cell's source draws, after the Markdown `before`."
    found = drawn(source)
    parts = [found.get("kind", "Figure")]
    titles = [*found.get("suptitle", []), *found.get("title", [])]
    if titles:
        parts.append(f": {'; '.join(titles)}")
    axes = [" and ".join(found[a]) for a in ("ylabel", "xlabel") if found.get(a)]
    if axes:
        parts.append(f" ({' against '.join(axes)})")
    if found.get("names"):
        parts.append(f", of {', '.join(found['names'])}")
    sentence = last_sentence(before)
    return "".join(parts) + ("." + (f" {sentence}" if sentence else ""))


def with_alt(image, text):
    "The HTML of an image with an alternative text, where it has none."
    if re.search(r'\salt="[^"]*[^"\s][^"]*"', image):
        return image
    image = re.sub(r'\salt="\s*"', "", image)
    return image.replace("<img", f'<img alt="{html.escape(text)}"', 1)


def in_table(table):
    "The HTML of a table of clips, each described by its row and its column."
    rows = re.findall(r"<tr>.*?</tr>", table, re.S)
    heads = []
    for row in rows:
        names = [html.unescape(re.sub(r"<[^>]+>", "", th)) for th in re.findall(
            r"<th[^>]*>.*?</th>", row, re.S)]  # fmt: skip
        cells = [c for c in re.findall(r"<td>.*?</td>", row, re.S) if "<img" in c]
        if not cells:
            heads = names if names and names[0] else names[1:]
            continue
        new = row
        for i, cell in enumerate(cells):
            column = heads[i] if i < len(heads) else f"clip {i + 1}"
            text = f"{names[0] if names else ''}: {column}" if len(cells) > 1 else names[0]
            for image in re.findall("<img[^>]*>", cell):
                new = new.replace(image, with_alt(image, text), 1)
        table = table.replace(row, new, 1)
    return table


def in_html(output, before=""):
    "The HTML of an output whose pictures all have an alternative text."
    output = re.sub(r"<table>.*?</table>", lambda m: in_table(m[0]), output, flags=re.S)
    bare = len(re.findall(r"<img", output))
    number = 0

    def numbered(m):
        nonlocal number
        number += 1
        sentence = last_sentence(before)
        return with_alt(m[0], f"picture {number} of {bare}" + (f": {sentence}" if sentence else ""))

    return re.sub(r"<img[^>]*>", numbered, output)


def own_alt(source):
    "What a cell's `#| fig-alt:` says, or None."
    found = re.search(r"^#\|\s*fig-alt:\s*(.+)$", source, re.M)
    return found.group(1).strip().strip("'\"") if found else None


def describe(notebook):
    """Give each picture in a notebook's outputs an alternative text, in place.

    Returns the ids of the cells whose figure is described by its code alone."""
    before = ""
    derived = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            before = source
            continue
        outputs = [o["data"] for o in cell.get("outputs", []) if "data" in o]
        for data in outputs:
            if "text/html" in data:
                data["text/html"] = in_html("".join(data["text/html"]), before)
        figures = [d for d in outputs if "text/html" not in d and any(p in d for p in PICTURES)]
        if figures and not own_alt(source):
            # as a quoted YAML string
            text = description(source, before).replace("\\", "").replace('"', "'")
            cell["source"] = f'#| fig-alt: "{text}"\n{source}'
            derived.append(cell.get("id"))
        elif figures and not source.startswith("#|"):
            # a page reads what stands above the code, not what stands below a comment
            cell["source"] = f'#| fig-alt: "{own_alt(source)}"\n{source}'
    return derived
