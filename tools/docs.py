"""Render the lessons as a web site in _docs/: `python tools/docs.py` (or `make docs`).

With Quarto on the machine this is `nbdev_docs`. Without it, nbdev still processes the notebooks into _proc/
(hidden cells out, signatures and links in), and smalldocs, pure Python, renders the same _quarto.yml."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def with_quarto():
    (ROOT / "README.md").touch()  # made by tools/readme.py; newer than the index, nbdev_docs leaves it alone
    return subprocess.run([BIN / "nbdev_docs"], cwd=ROOT).returncode


def relink(text):
    "nbdev links a name to the hosted page of its module, `clips.html#name`: make it a link to the page here."
    cfg = get_config()
    pages = {re.sub(r"^\d+_", "", p.stem): p.name for p in cfg.nbs_path.glob("*.ipynb")}
    hosted = re.escape(f"{cfg.doc_host}{cfg.doc_baseurl}/")
    text = re.sub(hosted + r"(\w+)\.html(#[\w.]+)?", lambda m: pages.get(m.group(1), m.group(0)), text)
    return re.sub(r"\]\(\.\./", f"]({cfg.git_url}/blob/{cfg.branch}/", text)  # files outside the site


def with_smalldocs():
    shutil.rmtree(ROOT / "_proc", ignore_errors=True)
    proc = proc_nbs(force=True, n_workers=0)
    for page in proc.glob("*.ipynb"):
        page.write_text(relink(page.read_text(encoding="utf-8")), encoding="utf-8")
    done = subprocess.run([BIN / "smalldocs", "render", str(proc), "--quiet"], capture_output=True, text=True)
    said = [s for s in done.stderr.splitlines() if not re.search(r"output-file is not read", s)]
    if said: print("\n".join(said), file=sys.stderr)
    if done.returncode: return done.returncode
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(proc / "_docs", ROOT / "_docs")
    return 0


def main():
    os.chdir(ROOT)
    quarto = shutil.which("quarto")
    renderer = "Quarto" if quarto else "smalldocs (Quarto is not installed)"
    print(f"Rendering nbs/ with {renderer} ...", flush=True)
    code = with_quarto() if quarto else with_smalldocs()
    if code == 0: print(f"The site is in _docs/: open {ROOT / '_docs' / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
