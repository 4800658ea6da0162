"""Write README.md from nbs/index.ipynb: `python tools/readme.py` (or `make readme`).

Markdown cells go over as they are, with their links made relative to the repository's root; code
cells become fenced blocks, followed by what they printed. Cells marked `#| hide` are left out.
nbdev_readme does the same through Quarto; this needs nothing but Python."""

import json
import os
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: edit it there. -->"
LINK = re.compile(r"(\]\(|\b(?:src|href|poster)=\")(?![a-z]+:|//|#|/)([^)\"\s]+)")


def relink(text, folder="nbs"):
    """Links relative to `folder` made relative to the root; code and links to other sites stay
    as they are."""

    def fix(m):
        return m.group(1) + posixpath.normpath(posixpath.join(folder, m.group(2)))

    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", text, flags=re.S | re.M)
    return "".join(p if i % 2 else LINK.sub(fix, p) for i, p in enumerate(parts))


def printed(cell, where):
    "What a cell printed: (text, is it Markdown?). Pictures belong into files beside the notebook."
    for o in cell["outputs"]:
        if "text" in o:
            yield "".join(o["text"]), False
        elif "text/markdown" in o.get("data", {}):
            yield "".join(o["data"]["text/markdown"]), True
        elif {"text/html", "image/png", "image/gif", "image/jpeg"} & o.get("data", {}).keys():
            raise ValueError(
                f"{where}: a README cannot hold this output; save it as a file and link it"
            )
        elif "text/plain" in o.get("data", {}):
            yield "".join(o["data"]["text/plain"]), False


def convert(path):
    "The text of README.md for the notebook at `path`."
    out = [NOTE]
    for n, cell in enumerate(json.loads(Path(path).read_text(encoding="utf-8"))["cells"], 1):
        src = "".join(cell["source"]).strip()
        flags = re.findall(r"^#\s*\|\s*(\w+)(?::\s*(\w+))?", src, re.M)
        code = re.sub(r"^#\s*\|.*\n?", "", src, flags=re.M).strip()
        if not src or ("hide", "") in flags or ("include", "false") in flags:
            continue
        if cell["cell_type"] == "markdown":
            out.append(relink(src))
        elif cell["cell_type"] == "code":
            if code and ("echo", "false") not in flags:
                out.append(f"```python\n{code}\n```")
            for text, markdown in printed(cell, f"{path}, cell {n}"):
                lines = text.strip("\n").split("\n")
                out.append(
                    "\n".join(lines if markdown else ["    " + s if s else "" for s in lines])
                )
    return "\n\n".join(out) + "\n"


def main():
    readme, text = ROOT / "README.md", convert(ROOT / "nbs" / "index.ipynb")
    if readme.exists() and readme.read_text(encoding="utf-8") == text:
        return print("README.md is up to date")
    part = readme.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, readme)
    print(f"README.md written from nbs/index.ipynb, {len(text.splitlines())} lines")


if __name__ == "__main__":
    sys.exit(main())
