"""Render the lessons as a web site in _docs/: `python tools/docs.py` (or `make docs`).

With Quarto on the machine this is `nbdev_docs`. Without it, nbdev still processes the notebooks
into _proc/ (hidden cells out, signatures and links in), and smalldocs, pure Python, renders the
same _quarto.yml. tools/alts.py describes the figures, and tools/pages.py finishes the pages."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import alts
import pages
from nbdev.config import get_config
from nbdev.serve import proc_nbs

import playground

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def with_quarto():
    # made by tools/readme.py; newer than the index, nbdev_docs leaves it alone
    (ROOT / "README.md").touch()
    return subprocess.run([BIN / "nbdev_docs"], cwd=ROOT).returncode


def module_of(path):
    "The module that a notebook exports, as in `#| default_exp core.files`, or its own name."
    found = re.search(r"#\|\s*default_exp\s+([\w.]+)", path.read_text(encoding="utf-8"))
    return found.group(1) if found else path.stem


def to_pages(text, pages, hosted, folder):
    """Links to the hosted page of a module, `core/files.html#name`, as links to the notebook here.

    `pages`: {module: notebook}, relative to nbs/; `folder`: where the page with these links lies
    in there."""

    def here(m):
        page = pages.get(m.group(1).replace("/", "."))
        return os.path.relpath(page, folder) + (m.group(2) or "") if page else m.group(0)

    return re.sub(re.escape(hosted) + r"([\w/]+)\.html(#[\w.]+)?", here, text)


def without_nested(text):
    "Markdown whose links hold no other link: nbdev links names inside the texts of links, too."
    name = r"\[(`[^`\]]*`)\]\([^)\s]*\)"
    link = re.compile(rf"(?<!\\)\[((?:[^\[\]]|{name})*{name}(?:[^\[\]]|{name})*)\](?=\()")
    return link.sub(lambda m: "[" + re.sub(name, r"\1", m[1]) + "]", text)


def relink(text, folder, pages):
    "nbdev links a name to the hosted page of its module: make it a link to the page here."
    cfg = get_config()
    text = to_pages(text, pages, f"{cfg.doc_host}{cfg.doc_baseurl}/", folder)
    outside = "](" + "../" * (1 if folder == "." else 2)
    return text.replace(outside, f"]({cfg.git_url}/blob/{cfg.branch}/")


def with_smalldocs():
    shutil.rmtree(ROOT / "_proc", ignore_errors=True)
    proc = proc_nbs(force=True, n_workers=0)
    nbs = get_config().nbs_path
    homes = {module_of(p): p.relative_to(nbs).as_posix() for p in nbs.rglob("*.ipynb")}
    for page in proc.rglob("*.ipynb"):
        folder = page.parent.relative_to(proc).as_posix()
        notebook = json.loads(relink(page.read_text(encoding="utf-8"), folder, homes))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = without_nested("".join(cell["source"]))
        alts.describe(notebook)
        page.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")
    done = subprocess.run(
        [BIN / "smalldocs", "render", str(proc), "--quiet"], capture_output=True, text=True
    )
    said = [s for s in done.stderr.splitlines() if not re.search(r"output-file is not read", s)]
    if said:
        print("\n".join(said), file=sys.stderr)
    if done.returncode:
        return done.returncode
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(proc / "_docs", ROOT / "_docs")
    return 0


def main():
    os.chdir(ROOT)
    quarto = shutil.which("quarto")
    renderer = "Quarto" if quarto else "smalldocs (Quarto is not installed)"
    print(f"Rendering nbs/ with {renderer} ...", flush=True)
    code = with_quarto() if quarto else with_smalldocs()
    if code == 0:
        pages.finish(ROOT / "_docs")
        print(f"The site is in _docs/: open {ROOT / '_docs' / 'index.html'}")
        playground.build(ROOT / "_docs" / "playground")
    return code


if __name__ == "__main__":
    sys.exit(main())
