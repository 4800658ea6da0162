"""Put the playground's page, its model and its runtime into a folder: `python tools/playground.py
OUT`. `make docs` does it for the site.

The page is nbs/playground/. The model is exported from data/first-video, which needs the packages
onnx and onnxscript (`pip install '.[export]'`), and kept in build/playground/; the runtime,
onnxruntime-web, comes from npm, which needs Node.js."""

import json
import re
import shutil
import sys
from pathlib import Path

import node

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "nbs" / "playground"
KEPT = ROOT / "build" / "playground"
RUNTIME = "onnxruntime-web"
RUNTIME_FILES = ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"]


def is_newer(file, sources):
    "Is `file` there, and none of `sources` was changed after it?"
    return file.is_file() and all(s.stat().st_mtime <= file.stat().st_mtime for s in sources)


def export_model(folder):
    "The exported model in `folder`, made if it is missing or old. ImportError: see `export_onnx`."
    run = ROOT / "data" / "first-video"
    sources = [*run.rglob("*.*"), ROOT / "minisora" / "export.py"]
    if is_newer(folder / "export.json", sources):
        return
    print("Exporting the model for the playground ...", flush=True)
    sys.path.insert(0, str(ROOT))
    from minisora.export import export_onnx
    from minisora.pipeline import VideoPipeline

    export_onnx(VideoPipeline.from_pretrained(run), folder)


def relink(page):
    "Links to ../10_first_video.html as ../first_video.html, where Quarto named the site's pages."

    def here(found):
        number, name = found.groups()
        numbered = (page.parent / f"../{number}{name}").exists()
        plain = (page.parent / f"../{name}").exists()
        return f'"../{name}"' if plain and not numbered else found.group(0)

    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r'"\.\./(\d+_)([\w]+\.html)"', here, text), encoding="utf-8")


def build(out):
    """Fill the folder `out`. Returns what is missing, a list of sentences: without the model or
    the runtime the page is there and says so."""
    shutil.copytree(PAGE, out, dirs_exist_ok=True)
    relink(out / "index.html")
    missing = []
    try:
        export_model(KEPT / "model")
        shutil.copytree(KEPT / "model", out / "model", dirs_exist_ok=True)
    except ImportError as e:
        missing.append(str(e))
    try:
        files = node.packages(RUNTIME) / RUNTIME / "dist"
        (out / "ort").mkdir(exist_ok=True)
        for name in RUNTIME_FILES:
            shutil.copy(files / name, out / "ort" / name)
    except (RuntimeError, OSError) as e:
        missing.append(f"{RUNTIME}: {e}")
    if not missing:
        loaded = [out / "ort" / RUNTIME_FILES[1], *sorted((out / "model").iterdir())]
        sizes = {p.relative_to(out).as_posix(): p.stat().st_size for p in loaded}
        (out / "files.json").write_text(json.dumps(sizes, indent=1))
    for problem in missing:
        print(f"The playground has no model to play: {problem}", file=sys.stderr)
    return missing


if __name__ == "__main__":
    sys.exit(bool(build(Path(sys.argv[1]))))
