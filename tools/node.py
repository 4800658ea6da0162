"""Packages of npm for the tools of the web site: KaTeX for its formulas, a browser's driver and
axe-core for its checks, and what runs the playground's model. They are fetched once into
node_modules/ (which git ignores)."""

import json
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "node_modules"
VERSIONS = {
    "katex": "0.16.22",
    "playwright-core": "1.65.1",
    "axe-core": "4.14.1",
    "onnxruntime-web": "1.30.0",
}


def missing():
    "Why no package can be used here, as a sentence, or None."
    absent = [name for name in ("node", "npm") if not shutil.which(name)]
    return f"{' and '.join(absent)} not installed: install Node.js (nodejs.org)" if absent else None


def version(name):
    "The version of a package that is there, or None."
    found = FOLDER / name / "package.json"
    return json.loads(found.read_text(encoding="utf-8"))["version"] if found.exists() else None


def packages(*names):
    "The folder with these packages, fetched by npm where they are not there yet."
    if all(version(name) == VERSIONS[name] for name in names):
        return FOLDER
    if said := missing():
        raise RuntimeError(said)
    # npm removes what a command without package.json does not name: so name what is there too
    wanted = [name for name in VERSIONS if name in names or version(name)]
    done = subprocess.run(
        ["npm", "install", "--prefix", str(ROOT), "--no-save", "--no-package-lock", "--no-audit",
         "--no-fund", "--ignore-scripts", *(f"{name}@{VERSIONS[name]}" for name in wanted)],
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    if done.returncode:
        said = next((s for s in done.stderr.splitlines() if "npm error" in s), done.stderr)
        raise RuntimeError(f"npm could not fetch {', '.join(names)}: {said}")
    return FOLDER
