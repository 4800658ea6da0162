"""Measure how the code is built: `python tools/house.py` (`--json` for numbers only, `PATH` for
another checkout).

Lines, ideas and public names of each module; lengths of export cells and functions; statements
that pack several into one line; helpers that stand twice; and the arrows between rooms that may
not be. `tests/test_house.py` holds the arrows and the sizes."""

import argparse
import ast
import io
import json
import re
import statistics
import tokenize
from collections import defaultdict
from pathlib import Path

# What a folder of the package may import. The modules at the top are lessons, in the order of
# their notebooks, or what puts all of them together. `checkers` is above the lessons: it may import
# each of them, and only what comes after them may import it.
FOLDERS = {
    "core": set(),
    "data": {"core"},
    "latents": {"core", "data"},
    "models": {"core"},
    "processes": {"core"},
    "training": {"core"},
    "evaluation": {"core", "data", "latents"},
    "film": {"core", "data"},
}
FOLDERS["checkers"] = set(FOLDERS)
LESSONS = [
    "clips",
    "autoencoder",
    "latent_cache",
    "dit",
    "diffusion",
    "interpolants",
    "sampling",
    "temporal",
    "train",
    "metrics",
    "text",
    "walt",
    "frames",
    "cascade",
    "few_steps",
    "parallel",
    "story",
]
TOP = [
    "viz",
    "svg",
    "recipe",
    "drawings",
    "pipeline_output",
    "pipeline_checks",
    "upsampling",
    "cascade_objective",
    "upsampling_pipeline",
    "pipeline_folders",
    "cascade_folders",
    "pipeline",
    "cascade_decoding",
    "cascade_parts",
    "cascade_pipeline",
    "parallel_sampling",
    "export",
    "single_gpu",
    "run_state",
    "run_report",
    "run_budget",
    "experiment",
    "image_video",
    "story_shots",
    "cluster",
    "cache_run",
    "check",
    "cli_arguments",
    "cli",
    "__main__",
]
ABOVE_CHECKERS = ["check", "cli"]
BELOW_VIZ = {"core", "data"}
MAX_LINES = 450
MAX_CELL, MAX_RUN, MAX_CELLS, MAX_EXPORTED = 40, 60, 70, 450

# How many ideas a module holds, by our own count: what a reader has to learn before it makes sense;
# one where nothing is said here.
IDEAS = {
    "autoencoder": 2,
    "clips": 2,
    "core.files": 3,
    "core.hub": 3,
    "core.protocols": 3,
    "data.hub": 2,
    "data.video": 2,
    "dit": 2,
    "evaluation.frechet": 2,
    "evaluation.samples": 2,
    "experiment": 2,
    "latents.cache_plan": 2,
    "latents.cache_writer": 2,
    "latents.compression": 2,
    "latents.paella_training": 3,
    "latents.paella_vq": 3,
    "latents.paella_weights": 2,
    "latents.video_vae": 2,
    "latents.video_vae_training": 3,
    "models.layouts": 2,
    "models.positions": 2,
    "models.weights": 2,
    "processes.schedules": 2,
    "sampling": 2,
    "temporal": 2,
    "training.batches": 2,
    "training.distributed": 2,
    "training.optimizers": 2,
    "training.run_config": 2,
}


def rooms(root):
    "The modules of the package, {dotted name without 'minisora.': file}."
    package = root / "minisora"
    files = sorted(p for p in package.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
    return {".".join(p.relative_to(package).with_suffix("").parts): p for p in files}


def imports(file, name):
    "The dotted names, inside the package, that a module imports, wherever in it."
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
            yield from (n.removeprefix("minisora.") for n in names if n.startswith("minisora."))
        if not isinstance(node, ast.ImportFrom):
            continue
        base = (node.module or "").split(".") if node.module else []
        if node.level:
            base = package[: len(package) + 1 - node.level] + base
        elif base[:1] == ["minisora"]:
            base = base[1:]
        else:
            continue
        yield ".".join(base) if base else ""
        yield from (".".join([*base, a.name]) for a in node.names)


def arrows(root):
    "Which module imports which: {name: set of names}."
    modules = rooms(root)
    return {
        name: {m for m in imports(file, name) if m in modules and m != name}
        for name, file in modules.items()
    }


def may_import(a, b):
    "May module `a` import module `b`?"
    (up, _, rest), (down, _, inner) = a.partition("."), b.partition(".")
    if rest and inner:
        return up == down or down in FOLDERS[up]
    if rest:
        return up == "checkers" and b in LESSONS
    if inner and down == "checkers":
        return a in ABOVE_CHECKERS
    if inner:
        return a != "viz" or down in BELOW_VIZ
    if a in LESSONS:
        return b == "viz" or b in LESSONS and LESSONS.index(b) < LESSONS.index(a)
    if a == "viz":
        return False
    return b in LESSONS or b not in TOP or TOP.index(b) < TOP.index(a)


def upward(root):
    "Arrows that may not be, as lines."
    return [
        f"{a} imports {b}"
        for a, found in arrows(root).items()
        for b in sorted(found)
        if not may_import(a, b)
    ]


def circles(root):
    "A module on a circle of imports, and the way round, as lines."
    graph, found = arrows(root), []
    for start in graph:
        todo, seen = [(start, [start])], set()
        while todo:
            at, way = todo.pop()
            for to in graph[at]:
                if to == start:
                    found.append(" -> ".join([*way, start]))
                elif to not in seen:
                    seen.add(to)
                    todo.append((to, [*way, to]))
    return found


def public_names(file):
    "What `__all__` of a module lists."
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def notebooks(root):
    "All notebooks below nbs/, as (path, cells)."
    found = sorted(
        p for p in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
    )
    return [(p, json.loads(p.read_text(encoding="utf-8"))["cells"]) for p in found]


def is_export(cell):
    "Does a cell go into the library?"
    return cell["cell_type"] == "code" and re.search(
        r"^#\s*\|\s*exporti?s?\b", "".join(cell["source"]), re.M
    )


def exported_code(cell):
    "What a cell exports, without directives: '' for one that exports nothing."
    if not is_export(cell):
        return ""
    lines = "".join(cell["source"]).split("\n")
    return "\n".join(s for s in lines if not re.match(r"#\s*\|", s)).strip()


def cell_lines(cell):
    "Exported lines of a cell, without its directives and the blank lines around them."
    return len(exported_code(cell).split("\n"))


def longest_run(cells):
    "Exported lines that follow each other with neither a word nor an example between them."
    best = now = 0
    for c in cells:
        now = now + cell_lines(c) if is_export(c) else 0
        best = max(best, now)
    return best


def too_long(root):
    "Modules, export cells and runs of exported lines that are longer than they may be, as lines."
    for name, file in rooms(root).items():
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            yield f"{name} has {lines} lines, more than {MAX_LINES}"
    for path, cells in notebooks(root):
        where = path.relative_to(root / "nbs").as_posix()
        for i, cell in enumerate(cells, 1):
            if is_export(cell) and cell_lines(cell) > MAX_CELL:
                yield f"{where}, cell {i} exports {cell_lines(cell)} lines, more than {MAX_CELL}"
        run = longest_run(cells)
        if run > MAX_RUN:
            yield f"{where} exports {run} lines without a word or an example, more than {MAX_RUN}"


def functions(root):
    "(module, name, lines) of every function and method."
    for name, file in rooms(root).items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield name, node.name, node.end_lineno - node.lineno + 1


def packed(tree):
    """Assignments of several values to several names: how many, and how many with a condition
    among the values."""
    found = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Assign)
        and isinstance(n.value, ast.Tuple)
        and any(isinstance(t, ast.Tuple) for t in n.targets)
    ]
    return len(found), sum(any(isinstance(k, ast.IfExp) for k in ast.walk(n.value)) for n in found)


def statements(root):
    """Counts over the package: assignments, packed ones, semicolons, and bodies on the line of
    their `if` or `for`."""
    count = dict(
        assignments=0,
        tuple_assignments=0,
        tuple_assignments_with_a_condition=0,
        semicolons=0,
        one_line_bodies=0,
    )
    for file in rooms(root).values():
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        tuples, conditions = packed(tree)
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        blocks = [
            n
            for n in ast.walk(tree)
            if isinstance(getattr(n, "body", None), list) and hasattr(n, "lineno")
        ]
        count["assignments"] += sum(isinstance(n, ast.Assign) for n in ast.walk(tree))
        count["tuple_assignments"] += tuples
        count["tuple_assignments_with_a_condition"] += conditions
        count["semicolons"] += sum(t.type == tokenize.OP and t.string == ";" for t in tokens)
        count["one_line_bodies"] += sum(n.body and n.body[0].lineno == n.lineno for n in blocks)
    return count


def is_patch(node):
    "Is it a method that `@patch` puts into a class?"
    names = [ast.unparse(d).partition("(")[0] for d in node.decorator_list]
    return "patch" in names


def twice(root):
    "Helpers that are in two modules or more: of one name, or of one body, as lines."
    by_name, by_body = defaultdict(set), defaultdict(set)
    for name, file in rooms(root).items():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or is_patch(node):
                continue
            by_name[node.name].add(name)
            body = [
                n
                for n in node.body
                if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
            ]
            if body:  # the class of an error may have a docstring only
                by_body[ast.dump(ast.Module(body, []))].add(f"{name}.{node.name}")
    lines = [f"{k}: {', '.join(sorted(v))}" for k, v in sorted(by_name.items()) if len(v) > 1]
    return lines + [f"one body: {', '.join(sorted(v))}" for v in by_body.values() if len(v) > 1]


def quantile(values, q):
    "A quantile of whole numbers, as one of them."
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else 0


def measure(root):
    "All figures, as a dict that JSON can hold."
    modules = rooms(root)
    cells = [cell_lines(c) for _, found in notebooks(root) for c in found if is_export(c)]
    lengths = [n for *_, n in functions(root)]
    return dict(
        modules={
            name: dict(
                lines=len(file.read_text(encoding="utf-8").split("\n")),
                ideas=IDEAS.get(name, 1),
                public=len(public_names(file)),
            )
            for name, file in modules.items()
        },
        public_names=sum(len(public_names(file)) for file in modules.values()),
        export_cells=dict(
            count=len(cells),
            median=statistics.median(cells),
            p90=quantile(cells, 0.9),
            longest=max(cells),
            over_25=sum(n > 25 for n in cells),
            over_40=sum(n > MAX_CELL for n in cells),
        ),
        functions=dict(
            count=len(lengths),
            over_25=sum(n > 25 for n in lengths),
            over_50=sum(n > 50 for n in lengths),
        ),
        statements=statements(root),
        twice=twice(root),
        upward=upward(root),
        circles=circles(root),
    )


def report(found):
    "The figures as text."
    out = [f"{'module':28}{'lines':>6}{'ideas':>6}{'public':>7}"]
    for name, m in found["modules"].items():
        out.append(f"{name:28}{m['lines']:6}{m['ideas']:6}{m['public']:7}")
    lines = sum(m["lines"] for m in found["modules"].values())
    out.append(f"{'together':28}{lines:6}{'':6}{found['public_names']:7}")
    for key in ("export_cells", "functions", "statements"):
        out.append(
            f"{key.replace('_', ' ')}: "
            + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in found[key].items())
        )
    for key, what in dict(
        twice="stand twice", upward="arrows that may not be", circles="circles"
    ).items():
        out += [f"{what}: {len(found[key])}", *(f"  {line}" for line in found[key])]
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", nargs="?", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    found = measure(args.path)
    print(json.dumps(found, indent=1) if args.json else report(found))


if __name__ == "__main__":
    main()
