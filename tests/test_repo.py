"""The repository itself: modules import alone, notebooks match modules, links lead somewhere."""

import ast
import configparser
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from minisora.core.rename_tables import OLD_NAMES

sys.path.insert(0, str(ROOT / "tools"))
import docs  # noqa: E402
import house  # noqa: E402
import readme  # noqa: E402

BIN = Path(sys.executable).parent
NOTEBOOKS = [p for p, _ in house.notebooks(ROOT)]
MODULES = house.rooms(ROOT)


def page(path):
    return path.relative_to(ROOT / "nbs").with_suffix("").as_posix()


CFG = configparser.ConfigParser()
CFG.read(ROOT / "settings.ini")

ALONE = """
import io, os, sys, traceback
import torch, numpy, PIL.Image, huggingface_hub, fastcore.basics, einops
def offline(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        raise OSError(f"{event} while importing")
sys.addaudithook(offline)
for name in sys.argv[1:]:
    read, write = os.pipe()
    child = os.fork()
    if not child:                 # a process that has imported nothing of ours yet
        said = ""
        try:
            __import__(f"minisora.{name}")
            strays = [m for m in sys.modules if m.split(".")[0] in ("nbdev", "execnb", "pytest")]
            assert not strays, f"imports development tools: {strays[:3]}"
        except BaseException:
            said = traceback.format_exc()[-1500:]
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as file:
        said = file.read()
    status = os.waitpid(child, 0)[1]
    print(f"{name}\\t{said or status or ''!r}", flush=True)
"""


def import_alone(modules, cwd, path):
    """What goes wrong as each module is imported into a process that has imported torch and the
    like but nothing of ours, with no network, no cache and no GPU: {module: text or ''}."""
    env = {
        **os.environ,
        "PYTHONPATH": str(path),
        "HOME": str(cwd),
        "HF_HOME": str(cwd),
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = subprocess.run(
        [sys.executable, "-c", ALONE, *modules], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-1500:]
    return dict(line.split("\t") for line in run.stdout.splitlines())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return import_alone(MODULES, tmp_path_factory.mktemp("alone"), ROOT)


def tracked(*ends):
    "Files that git knows or would take up, as paths; a copy without git gives every file."
    run = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    skip = {".venv", "node_modules", "_proc", "_docs", "runs", "data", ".git"}
    names = (
        run.stdout.splitlines()
        if run.returncode == 0
        else [
            str(p.relative_to(ROOT))
            for p in ROOT.rglob("*")
            if not skip & set(p.relative_to(ROOT).parts)
        ]
    )
    return [ROOT / n for n in names if n.endswith(ends) and (ROOT / n).is_file()]


def test_style_and_notebooks_passed():
    """`make test` runs the linter and the notebooks before pytest and hands over which of them
    failed."""
    failed = os.environ.get("FAILED_BEFORE", "").split()
    assert not failed, f"failed before pytest, see above: {' and '.join(failed)}"


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_alone(module, alone):
    "With no other module of ours imported first, with no network, no cache to lean on and no GPU."
    assert alone[module] == "''", f"minisora.{module} does not import alone:\n{alone[module]}"


def test_an_import_that_needs_the_network_is_found(tmp_path):
    (tmp_path / "minisora").mkdir()
    (tmp_path / "minisora" / "good.py").touch()
    (tmp_path / "minisora" / "greedy.py").write_text(
        "import socket\nsocket.getaddrinfo('example.org', 80)"
    )
    found = import_alone(["greedy", "good"], tmp_path, tmp_path)
    assert "socket.getaddrinfo while importing" in found["greedy"] and found["good"] == "''"


def export(folder):
    "Export all notebooks of `folder` (with its settings.ini) and give its modules' texts by name."
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    run = subprocess.run(
        [BIN / "nbdev_export"], cwd=folder, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-1500:]
    return modules(folder)


def modules(folder):
    "The text of every Python file of the package, by its path in there."
    package = folder / "minisora"
    return {
        p.relative_to(package).as_posix(): p.read_text(encoding="utf-8")
        for p in package.rglob("*.py")
    }


def differences(want, have):
    "Lines on which exported and committed modules disagree."
    for name in sorted(want.keys() | have.keys()):
        if name not in want:
            yield f"minisora/{name} comes from no notebook"
        elif name not in have:
            yield f"minisora/{name} is missing: run make export"
        elif want[name] != have[name]:
            pairs = zip(want[name].splitlines() + [""], have[name].splitlines() + [""])
            line = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), "last")
            yield f"minisora/{name}, line {line}: differs from its notebook: run make export"


def test_modules_are_what_the_notebooks_export(tmp_path):
    """Exported afresh in a copy and compared file by file, so a dirty tree is no excuse and is not
    touched."""
    (tmp_path / "nbs").mkdir()
    (tmp_path / "minisora").mkdir()
    for name in ("settings.ini", "pyproject.toml", "minisora/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for p in NOTEBOOKS:
        to = tmp_path / p.relative_to(ROOT)
        to.parent.mkdir(exist_ok=True)
        shutil.copy(p, to)
    problems = list(differences(export(tmp_path), modules(ROOT)))
    assert not problems, "\n" + "\n".join(problems)
    assert (tmp_path / "pyproject.toml").read_text() == (ROOT / "pyproject.toml").read_text()


def test_a_module_edited_by_hand_is_found():
    assert list(differences({"a.py": "x = 1\ny = 2"}, {"a.py": "x = 1\ny = 3"})) == [
        "minisora/a.py, line 2: differs from its notebook: run make export"
    ]
    assert list(differences({"a.py": ""}, {"b.py": ""})) == [
        "minisora/a.py is missing: run make export",
        "minisora/b.py comes from no notebook",
    ]
    assert len(list(differences({"a.py": "x"}, {"a.py": "x\n"}))) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=page)
def test_notebook_is_clean_and_small(path, tmp_path):
    """nbdev_clean changes nothing; no error is kept; 300 kB hold for the home page and the
    appendices too."""
    shutil.copy(ROOT / "settings.ini", tmp_path)
    copy = shutil.copy(path, tmp_path)
    run = [BIN / "nbdev_clean", "--fname", copy]
    assert subprocess.run(run, cwd=tmp_path, capture_output=True).returncode == 0
    have = json.loads(path.read_text(encoding="utf-8"))
    clean = json.loads((tmp_path / path.name).read_text(encoding="utf-8"))
    assert clean == have, f"{path.name}: run nbdev_clean"
    kinds = [
        (n, o["output_type"]) for n, c in enumerate(have["cells"], 1) for o in c.get("outputs", [])
    ]
    errors = [n for n, kind in kinds if kind == "error"]
    assert not errors, f"{path.name} keeps an error in cells {errors}"
    assert path.stat().st_size <= 300_000, (
        f"{path.name} is {path.stat().st_size / 1000:.0f} kB, over 300 kB"
    )


HOMES = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp/pip)/[\w.-]+/|file:///|[A-Z]:\\\\Users")


def test_no_path_of_somebody_s_machine():
    found = []
    kinds = ".py .ipynb .md .ini .toml .txt .yml .yaml .json .jsonl .csv Makefile run".split()
    for p in tracked(*kinds):
        if p.name == "test_repo.py":
            continue
        for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) < 20_000 and (m := HOMES.search(line)):
                found.append(f"{p.relative_to(ROOT)}:{i}: {m.group(0)}")
    assert not found, "\n" + "\n".join(found)


def test_a_path_of_somebody_s_machine_is_found():
    assert HOMES.search("see /home/ann/clips/x.mp4") and HOMES.search(
        "/" + "root/.cache/huggingface/"
    )
    assert not HOMES.search("https://example.org/home/ann/") and not HOMES.search(
        "(B, C, T/" + "work/h)"
    )


def links(path):
    "Relative links of a Markdown file or of a notebook's Markdown cells."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
        text = "\n\n".join("".join(c["source"]) for c in cells)
    text = re.sub(r"```.*?```|`[^`\n]*`|\$[^$\n]+\$", "", text, flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)|\b(?:src|href)=\"([^\"\s]+)\"", text):
        link = (link[0] or link[1]).split("#")[0]
        if link and not re.match(r"[a-z]+:|//", link):
            yield link


@pytest.mark.parametrize("path", [*NOTEBOOKS, *tracked(".md")], ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    dead = [x for x in links(path) if not (path.parent / x).exists()]
    assert not dead, f"{path.relative_to(ROOT)} links to what is not there: {dead}"


def test_readme_is_made_from_the_index():
    want = readme.convert(ROOT / "nbs" / "index.ipynb")
    have = (ROOT / "README.md").read_text(encoding="utf-8")
    assert have == want, "README.md is out of date: run make readme"


def test_readme_links_are_moved_to_the_root():
    text = (
        '[a](00_clips.ipynb#x) ![b](i/b.png) <img src="i/c.gif"> '
        "[d](../LICENSE) [e](https://f.org) `](g)`"
    )
    want = (
        '[a](nbs/00_clips.ipynb#x) ![b](nbs/i/b.png) <img src="nbs/i/c.gif"> '
        "[d](LICENSE) [e](https://f.org) `](g)`"
    )
    assert readme.relink(text) == want


def test_site_lists_every_notebook():
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    text = json.dumps(site["website"]["sidebar"]["contents"])
    listed = re.findall(r"[\w/]+\.ipynb", text)
    assert sorted(listed) == sorted(f"{page(p)}.ipynb" for p in NOTEBOOKS), (
        "the sidebar in _quarto.yml and nbs/ disagree"
    )
    assert site["project"]["output-dir"] == CFG["DEFAULT"]["doc_path"]
    assert os.readlink(ROOT / "nbs" / "_quarto.yml") == "../_quarto.yml"


def test_names_lead_to_the_pages_of_this_site(monkeypatch):
    """From a page of the top and from one in a folder, to both kinds; what has no page keeps its
    address."""
    pages = {"clips": "00_clips.ipynb", "core.files": "core/files.ipynb"}
    text = (
        "[a](https://h.org/m/clips.html#Clip) [b](https://h.org/m/core/files.html) "
        "[c](https://h.org/m/x.html)"
    )
    assert docs.to_pages(text, pages, "https://h.org/m/", ".") == (
        "[a](00_clips.ipynb#Clip) [b](core/files.ipynb) [c](https://h.org/m/x.html)"
    )
    assert docs.to_pages(text, pages, "https://h.org/m/", "core") == (
        "[a](../00_clips.ipynb#Clip) [b](files.ipynb) [c](https://h.org/m/x.html)"
    )


def test_every_requirement_is_pinned():
    """constraints.txt fixes one version of each package that settings.ini asks for, within its
    range."""
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(s.split("==") for s in lines if s and s[0] != "#")
    pins = {k.lower().replace("_", "-"): v for k, v in pins.items()}
    asked = CFG["DEFAULT"]["requirements"].split() + CFG["DEFAULT"]["dev_requirements"].split()
    for r in map(Requirement, asked):
        pin = pins.get(r.name.lower().replace("_", "-"))
        assert pin, f"constraints.txt does not pin {r.name}"
        assert r.specifier.contains(pin), (
            f"{r.name}=={pin} in constraints.txt is outside {r.specifier}"
        )


def test_modules_import_only_what_is_required():
    "A package that happens to be installed beside ours is no dependency."
    pip = {"PIL": "pillow", "IPython": "ipython", "cycler": "matplotlib", "piper": "piper_tts"}
    extras = [k for k in CFG["DEFAULT"] if k.endswith("requirements") and k != "dev_requirements"]
    said = " ".join(CFG["DEFAULT"][k] for k in extras)
    asked = {re.match(r"[\w-]+", r).group(0).lower().replace("-", "_") for r in said.split()}
    for name, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for top in (
                {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - {"minisora"}
            ):
                known = pip.get(top, top).lower() in asked
                assert known, f"minisora.{name} imports {top}, which settings.ini does not require"


def scripts(path):
    "The code of a script, or of each cell of a notebook, without magics."
    if path.suffix == ".py":
        return [path.read_text(encoding="utf-8")]
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return [re.sub(r"^(\s*)[%!].*", r"\1pass", text, flags=re.M) for text in texts]


def is_old(module, name):
    "Does `minisora.module.name` only answer by the table of old names?"
    table = OLD_NAMES.get(module, {})
    return name in table and name not in vars(importlib.import_module(module))


def imported_modules(trees):
    "What names stand for modules of the package in these trees, {name: 'minisora.x'}."
    found = {}
    for node in (n for tree in trees for n in ast.walk(tree)):
        if isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return {name: module for name, module in found.items() if module in OLD_NAMES}


def old_names_used(texts):
    "Lines that say which old names of the package these texts import or use as attributes."
    trees = [ast.parse(text) for text in texts]
    modules = imported_modules(trees)
    for node in (n for tree in trees for n in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield from (
                f"{node.module}.{a.name}" for a in node.names if is_old(node.module, a.name)
            )
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            module = modules.get(owner, owner)
            if is_old(module, node.attr):
                yield f"{module}.{node.attr}"


# where the old names themselves are the subject
ABOUT_OLD_NAMES = {"core/renames.ipynb", "core/rename_tables.ipynb", "98_single_gpu_names.ipynb"}
IN_USE = [p for p in NOTEBOOKS if p.relative_to(ROOT / "nbs").as_posix() not in ABOUT_OLD_NAMES]
IN_USE += sorted([*ROOT.glob("recipes/*.py"), *ROOT.glob("benchmarks/*.py")])


@pytest.mark.parametrize("path", IN_USE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_old_names_are_used(path):
    "What version 0.1 called otherwise is for users' code only: it goes with the next release."
    assert sorted(set(old_names_used(scripts(path)))) == []


@pytest.mark.parametrize(
    "text, found",
    [
        ("from minisora.metrics import Judge, psnr", ["minisora.metrics.Judge"]),
        ("from minisora import sampling\nsampling.settle", ["minisora.sampling.settle"]),
        ("import minisora.sampling as s\ns.settle(s.sample)", ["minisora.sampling.settle"]),
        ("import minisora.viz\nminisora.viz.animated", ["minisora.viz.animated"]),
        ("def f():\n    from minisora.pipeline import Run", ["minisora.pipeline.Run"]),
        ("from minisora.sampling import sample\nsample.settle", []),
        ("from minisora.evaluation.frechet import frechet_distance", []),
    ],
)
def test_an_old_name_is_found(text, found):
    assert list(old_names_used([text])) == found


def test_version_stands_once():
    import minisora

    assert minisora.__version__ == CFG["DEFAULT"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = text.split("\n## ")[1]  # its heading says the version, or [Unreleased] and a sentence
    version = re.escape(minisora.__version__)
    assert re.match(rf"\[{version}\]|\[Unreleased\]\s+Version {version}\.\s", newest), newest[:80]


def test_make_help_names_the_commands():
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    for target in ("video", "test", "lab", "docs", "readme", "clean"):
        assert f"make {target}" in text
