"""What a lesson must have, as functions from a notebook to a list of problems.

Each problem is one line that names the file, the cell and what is wrong. `test_lessons.py` runs the
rules on every lesson, and on small notebooks broken on purpose, so that no rule can pass by looking
at nothing."""

import ast
import io
import json
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import house  # noqa: E402

MAX_BYTES = 300_000
VISIBLE = re.compile(r"<(img|video|svg|table|iframe|div|figure)\b|^\s*\|", re.I | re.M)
PICTURE = re.compile(r"<(img|video|svg)\b", re.I)


@dataclass
class Cell:
    """One cell: its number in the notebook (from 1), kind, source, directives such as `export`, and
    outputs."""

    n: int
    kind: str
    src: str
    outputs: list = field(default_factory=list)

    @property
    def flags(self):
        return {m.split(":")[0].strip(): m for m in re.findall(r"^#\s*\|\s*(.+)$", self.src, re.M)}

    @property
    def skipped(self):
        "Does `make test` leave this cell out? (`#| eval: false`, or behind the flags slow and gpu)"
        return "false" in self.flags.get("eval", "") or {"slow", "gpu"} & self.flags.keys()


@dataclass
class Lesson:
    path: Path
    cells: list

    def say(self, cell, text):
        where = f", cell {cell.n}" if cell else ""
        return f"{self.path.name}{where}: {text}"

    @property
    def markdown(self):
        return [c for c in self.cells if c.kind == "markdown"]

    @property
    def code(self):
        return [c for c in self.cells if c.kind == "code"]

    @property
    def number(self):
        return int(self.path.name[:2])

    def section(self, title):
        """The cells under the heading `## title`, its own cell first (cut to what stands below the
        heading)."""
        out, inside = [], False
        for c in self.cells:
            if c.kind != "markdown":
                if inside:
                    out.append(c)
                continue
            parts = re.split(r"^(##? .*)$", outside_fences(c.src), flags=re.M)
            if inside and parts[0].strip():
                out.append(Cell(c.n, c.kind, parts[0]))
            for head, body in zip(parts[1::2], parts[2::2]):
                inside = head.lstrip("# ").strip().lower().startswith(title.lower())
                if inside:
                    out.append(Cell(c.n, c.kind, body))
        return out


def outside_fences(text):
    "The text with the lines of fenced code blocks blanked where they could be taken for headings."
    out, fenced = [], False
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        out.append(line.replace("#", "·") if fenced else line)
    return "\n".join(out)


def load(path):
    nb = json.loads(Path(path).read_text(encoding="utf-8"))
    return Lesson(
        Path(path),
        [
            Cell(i, c["cell_type"], "".join(c["source"]), c.get("outputs", []))
            for i, c in enumerate(nb["cells"], 1)
        ],
    )


def has_rich(cell, pattern=VISIBLE):
    "Does the cell show something to look at: a picture, or HTML or Markdown that `pattern` finds?"
    for o in cell.outputs:
        data = o.get("data", {})
        if any(k.startswith("image/") for k in data):
            return True
        if any(pattern.search("".join(data.get(k, ""))) for k in ("text/html", "text/markdown")):
            return True
    return False


# ---------------------------------------------------------------- the template


def title(lesson):
    """Cell 1 holds the title and the subtitle and nothing else: nbdev turns it into the page's
    header."""
    c = lesson.cells[0]
    lines = [s for s in c.src.split("\n") if s.strip()]
    if c.kind != "markdown" or not re.match(r"# \S", c.src):
        yield lesson.say(c, "must begin with '# Title'")
    elif len(lines) < 2 or not lines[1].startswith("> "):
        yield lesson.say(c, "needs a '> subtitle' below the title")
    elif len(lines) > 2:
        yield lesson.say(
            c, "must hold only '# Title' and one line of '> subtitle': the page loses the rest"
        )


def goals(lesson):
    "What the learner will be able to do, in at least two bullets, and what to have read before."
    sec = lesson.section("What you will be able to do")
    text = "\n".join(c.src for c in sec if c.kind == "markdown")
    if not sec:
        yield lesson.say(None, "has no section '## What you will be able to do'")
    elif len(re.findall(r"^\s*[-*] \S", text, re.M)) < 2:
        yield lesson.say(sec[0], "'What you will be able to do' needs at least two bullets")
    if not any(re.search(r"what you need to have read", c.src, re.I) for c in lesson.markdown):
        yield lesson.say(None, "does not say 'What you need to have read'")


def cost(lesson):
    "Time and memory, measured: a number of seconds or minutes, and one of MB or GB."
    text = "\n\n".join(c.src for c in lesson.markdown)
    m = re.search(r"time and memory", text, re.I)
    if not m:
        yield lesson.say(None, "does not say 'Time and memory'")
        return
    near = text[m.start() : m.start() + 900]
    if not re.search(r"\d\s*(s|sec|seconds?|min|minutes?|h|hours?)\b", near):
        yield lesson.say(None, "'Time and memory' names no time in s or min")
    if not re.search(r"\d\s*(MB|GB|MiB|GiB)\b", near):
        yield lesson.say(None, "'Time and memory' names no memory in MB or GB")


INSTALL = """#| hide
# Only on a hosted notebook (Colab, Kaggle) does this do anything: it installs the course there.
import importlib.util
import os

if importlib.util.find_spec('minisora') is None:
    get_ipython().run_line_magic('pip', 'install -q git+https://github.com/minisora/minisora')
    get_ipython().system('git clone -q --depth 1 https://github.com/minisora/minisora')
    os.chdir('minisora/nbs')"""
COLAB = "https://colab.research.google.com/github/minisora/minisora/blob/main/nbs/"


def hosted(lesson):
    "A link opens the lesson on a hosted notebook, whose first cell that runs installs the course."
    if not any(f"({COLAB}{lesson.path.name})" in c.src for c in lesson.markdown):
        yield lesson.say(None, f"has no link to itself on Colab, {COLAB}{lesson.path.name}")
    runs = [c for c in lesson.code if not re.fullmatch(r"#\s*\|\s*default_exp .*", c.src.strip())]
    if not runs or runs[0].src != INSTALL:
        yield lesson.say(None, "must install the course in its first code cell: rules.INSTALL")


def whole_thing(lesson):
    """The idea whole and small, in a cell of plain code, stands before the first exported function
    or class."""
    section = lesson.section("The whole thing, small")
    small = [c for c in section if c.kind == "code"]
    if not small:
        yield lesson.say(None, "has no section '## The whole thing, small' with a cell of code")
        return
    for c in lesson.code:
        exports = {"export", "exports", "exporti"} & c.flags.keys()
        if exports and re.search(r"^(def|class) ", c.src, re.M) and c.n < small[0].n:
            yield lesson.say(c, "exports code before '## The whole thing, small'")
            return


def result_first(lesson):
    "Something to look at stands before the first exported function or class."
    for c in lesson.code:
        if has_rich(c):
            return
        if {"export", "exports", "exporti"} & c.flags.keys() and re.search(
            r"^(def|class) ", c.src, re.M
        ):
            yield lesson.say(
                c, "exports code before the lesson has shown its result (figure, clip, table)"
            )
            return
    yield lesson.say(None, "shows no figure, clip or table at all")


def imports_check(lesson):
    "What the exercises are checked with is at hand."
    if not any(re.search(r"^from minisora import .*\bcheck\b", c.src, re.M) for c in lesson.code):
        yield lesson.say(None, "imports no check, which its exercises call")


def failure(lesson):
    "A failure made on purpose, with its picture."
    sec = lesson.section("What goes wrong")
    if not sec:
        yield lesson.say(None, "has no section '## What goes wrong'")
    elif not any(has_rich(c, PICTURE) for c in sec if c.kind == "code"):
        yield lesson.say(sec[0], "'What goes wrong' shows no picture of the failure")


def recap(lesson):
    "The lesson in four lines."
    sec = [c for c in lesson.section("Recap") if c.kind == "markdown"]
    if not sec:
        yield lesson.say(None, "has no section '## Recap'")
        return
    text = re.split(r"^#+ |^\*\*(?:Further reading|Next lesson)", sec[0].src, flags=re.M)[0]
    bullets = re.findall(r"^(?:[-*]|\d+\.) +\S", text, re.M)
    n = len(bullets) or len([s for s in text.split("\n") if s.strip()])
    if n != 4:
        yield lesson.say(sec[0], f"'Recap' has {n} lines, not four")


def reading(lesson):
    "Further reading with a link, and the way to the next lesson."
    text = "\n\n".join(c.src for c in lesson.markdown)
    _, found, rest = text.partition("Further reading")
    if not found:
        yield lesson.say(None, "has no 'Further reading'")
    elif not re.search(r"\]\(https?://", rest):
        yield lesson.say(None, "'Further reading' has no link")
    m = re.search(r".*next lesson(.*)", text, re.I | re.S)  # the last time it is said
    links = re.findall(r"\]\(([\w./-]+\.ipynb)\)", m.group(1) if m else "")
    later = sorted(p.name for p in lesson.path.parent.glob(f"{lesson.number + 1:02d}_*.ipynb"))
    if not m:
        yield lesson.say(None, "has no 'Next lesson'")
    elif later and later[0] not in links:
        yield lesson.say(None, f"'Next lesson' does not link to {later[0]}")
    elif not links:
        yield lesson.say(None, "'Next lesson' links to no notebook")
    for link in links:
        if not (lesson.path.parent / link).exists():
            yield lesson.say(None, f"'Next lesson' links to {link}, which is not there")


# ---------------------------------------------------------------- outputs and size


def size(lesson):
    n = lesson.path.stat().st_size
    if n > MAX_BYTES:
        yield lesson.say(None, f"is {n / 1000:.0f} kB, over the budget of {MAX_BYTES // 1000} kB")


def is_aside(cell):
    """A diagram whose code is hidden, the hidden cell that installs the course, or the Chinese
    beside an English text: no more to read."""
    if cell.kind == "code":
        return cell.src == INSTALL or ("echo" in cell.flags and "drawings." in cell.src)
    return "<summary>中文" in cell.src


def length(lesson):
    """A lesson is read in an hour: at most 70 cells and 450 exported lines, in cells of at most 40.
    Exercises are done, not read, and are counted apart."""
    practice = {c.n for c in practice_cells(lesson)}
    read = [c for c in lesson.cells if not is_aside(c) and c.n not in practice]
    if len(read) > house.MAX_CELLS:
        yield lesson.say(None, f"has {len(read)} cells, more than {house.MAX_CELLS}")
    lines = run = 0
    for c in lesson.cells:
        code = house.exported_code(dict(cell_type=c.kind, source=c.src))
        here = len(code.split("\n")) if code else 0
        lines += here
        run = run + here if here else 0
        if here > house.MAX_CELL:
            yield lesson.say(c, f"exports {here} lines, more than {house.MAX_CELL}")
        if run > house.MAX_RUN >= run - here:
            yield lesson.say(
                c, f"ends {run} exported lines without a word or an example between them"
            )
    if lines > house.MAX_EXPORTED:
        yield lesson.say(None, f"exports {lines} lines, more than {house.MAX_EXPORTED}")


def outputs(lesson):
    "Outputs are kept, none is an error, and none is of a kind that the rendered page drops."
    for c in lesson.code:
        if expects_output(c) and not c.outputs:
            yield lesson.say(c, "should show something and has no output: run it and save")
        for o in c.outputs:
            if o.get("output_type") == "error":
                yield lesson.say(c, f"ends in {o.get('ename')}: {o.get('evalue')}")
            data = o.get("data", {})
            if "image/gif" in data and "text/html" not in data:
                yield lesson.say(
                    c, "has a bare image/gif output, which the page drops: use viz.show_clips"
                )
            if o.get("name") == "stderr" and "Traceback (most recent" in "".join(o.get("text", "")):
                yield lesson.say(c, "has a traceback in its output")


def expects_output(cell):
    "Must this code print or show something when it runs? Only where that is sure from its text."
    if cell.skipped:
        return False
    src = re.sub(r"^\s*[%!].*$", "pass", cell.src, flags=re.M)
    try:
        body = ast.parse(src).body
    except SyntaxError:
        return False
    for s in body:
        call = s.value if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call) else None
        name = ast.unparse(call.func) if call else ""
        if name == "print" or re.match(r"(viz\.show|display|plt\.show)", name):
            return True
    last = body[-1] if body else None
    shown = isinstance(last, ast.Expr) and not isinstance(last.value, (ast.Call, ast.Await))
    docstring = isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant)
    return shown and not docstring and not cell.src.rstrip().endswith(";")


# ---------------------------------------------------------------- exercises


@dataclass
class Exercise:
    cell: Cell
    number: int
    title: str
    checker: str
    solution: str
    wrong: str

    @property
    def name(self):
        return f"exercise {self.number} ({self.title})"


HEADING = re.compile(r"^### Exercise (\d+): *(.+)$", re.M)
SOLUTION = re.compile(
    r"<details>\s*<summary>Solution</summary>\s*\n```python\n(.*?)\n```\s*\n.*?</details>", re.S
)
WRONG = re.compile(r"<!--\s*wrong:(.*?)-->", re.S)


def exercise_cells(lesson):
    return [c for c in lesson.markdown if re.match(r"### Exercise\b", c.src.lstrip())]


def parse_exercise(cell):
    head, sol, wrong = HEADING.search(cell.src), SOLUTION.search(cell.src), WRONG.search(cell.src)
    prose = cell.src.split("<details>")[0]
    name = re.search(r"check\.(\w+)\(", prose)
    return Exercise(
        cell,
        int(head.group(1)) if head else 0,
        head.group(2).strip() if head else "",
        name.group(1) if name else "",
        sol.group(1) if sol else "",
        wrong.group(1).strip() if wrong else "",
    )


def practice_cells(lesson):
    "The cells of all exercises: each from its heading to the next exercise or section."
    out, inside = [], False
    for c in lesson.cells:
        if c.kind == "markdown":
            head = c.src.lstrip().split("\n")[0]
            if re.match(r"### Exercise\b", head):
                inside = True
            elif re.match(r"##? ", head):
                inside = False
        if inside:
            out.append(c)
    return out


def exercises(lesson):
    """At least four, one that writes the block and one that finds a bug; each with a task, a
    checker, a folded solution, a wrong answer and a cell to work in."""
    found = exercise_cells(lesson)
    if not lesson.section("Exercises"):
        yield lesson.say(None, "has no section '## Exercises'")
    if len(found) < 4:
        yield lesson.say(None, f"has {len(found)} exercises; at least four are needed")
    for kind in ("write the block", "find the bug"):
        if not any(f": {kind}" in c.src.split("\n")[0] for c in found):
            yield lesson.say(None, f"has no exercise '### Exercise n: {kind}: …'")
    for i, c in enumerate(found, 1):
        e = parse_exercise(c)
        if not HEADING.search(c.src):
            yield lesson.say(c, f"must begin with '### Exercise {i}: title'")
        elif e.number != i:
            yield lesson.say(c, f"is exercise {e.number} where {i} was due")
        if len(c.src.split("<details>")[0].split()) < 15:
            yield lesson.say(c, "says too little of what to do")
        if not e.checker:
            yield lesson.say(c, "does not name its checker, check.<name>(answer), in the text")
        if not e.solution:
            yield lesson.say(
                c, "has no folded solution (<details><summary>Solution, then ```python)"
            )
        elif f"check.{e.checker}(" not in e.solution:
            yield lesson.say(c, f"solution does not call check.{e.checker}")
        if not e.wrong:
            yield lesson.say(c, "has no wrong answer (<!-- wrong: ... -->)")
        after = lesson.cells[c.n] if c.n < len(lesson.cells) else None
        if after is None or after.kind != "code":
            yield lesson.say(c, "is not followed by a code cell for the learner")
        elif "your turn" not in after.src.lower():
            yield lesson.say(after, "should begin with '# your turn'")
        if ": write the block" in c.src.split("\n")[0] and used_cell(lesson, c) is None:
            yield lesson.say(c, f"must be used: the cell after '# your turn' begins with '{USED}'")


USED = "# with yours"


def used_cell(lesson, cell):
    "The cell after a learner's own that uses what was built there, or None."
    after = lesson.cells[cell.n + 1] if cell.n + 1 < len(lesson.cells) else None
    return after if after and after.kind == "code" and after.src.startswith(USED) else None


def imports(lesson):
    "The import statements of the lesson's code cells, those of hidden and skipped ones left out."
    out = []
    for c in lesson.code:
        if c.skipped or c.src == INSTALL:
            continue
        try:
            body = ast.parse(re.sub(r"^\s*[%!].*$", "pass", c.src, flags=re.M)).body
        except SyntaxError:
            continue
        found = [s for s in body if isinstance(s, (ast.Import, ast.ImportFrom))]
        out += [ast.unparse(s) for s in found if getattr(s, "module", "") != "__future__"]
    return "\n".join(dict.fromkeys(out))


def run_used(lesson, e):
    """What a learner builds is used by the next cell: it runs with the lesson's imports and the
    exercise's solution alone, and with the library's version in its place."""
    used = used_cell(lesson, e.cell)
    where = f"{lesson.path.name}, cell {used.n}, after {e.name}"
    for code in (e.solution, ""):
        ns = namespace()
        try:
            with redirect_stdout(io.StringIO()):
                for part in (imports(lesson), code, used.src):
                    exec(compile(part, where, "exec"), ns)
        except Exception as err:
            kind = "the solution" if code else "nothing written yet"
            yield f"{where}: with {kind} it fails: {type(err).__name__}: {err}"


def namespace():
    import torch

    from minisora import check

    return {"__name__": "__exercise__", "torch": torch, "check": check}


def run_exercise(lesson, e):
    "The checker takes the solution and refuses the wrong answer, with a hint. No other cell runs."
    ns, out = namespace(), io.StringIO()
    where = f"{lesson.path.name}, cell {e.cell.n}, {e.name}"
    try:
        with redirect_stdout(out):
            exec(compile(e.solution, where, "exec"), ns)
    except Exception as err:
        yield f"{where}: the solution fails: {type(err).__name__}: {err}"
        return
    if "✓" not in out.getvalue():
        yield f"{where}: check.{e.checker} prints no '✓ ...' for the solution"
    try:
        answer = evaluate(e.wrong, where, ns)
    except Exception as err:
        yield f"{where}: the wrong answer does not even run: {type(err).__name__}: {err}"
        return
    try:
        with redirect_stdout(out):
            getattr(ns["check"], e.checker)(answer)
    except AssertionError as err:
        if not str(err).strip():
            yield f"{where}: check.{e.checker} refuses the wrong answer without a hint"
    except Exception as err:
        got = f"{type(err).__name__}: {err}"
        yield f"{where}: check.{e.checker} meets the wrong answer with {got}, not an AssertionError"
    else:
        yield f"{where}: check.{e.checker} accepts the wrong answer"


def evaluate(code, where, ns):
    "The value of an expression, or what a small program calls `answer`."
    ns = dict(ns)
    ns.pop("answer", None)
    try:
        return eval(compile(code, where, "eval"), ns)
    except SyntaxError:
        exec(compile(code, where, "exec"), ns)
        return ns["answer"]


TEMPLATE = [
    title,
    goals,
    cost,
    hosted,
    whole_thing,
    result_first,
    imports_check,
    failure,
    exercises,
    recap,
    reading,
    size,
    length,
    outputs,
]


def check_template(path):
    lesson = load(path)
    return [p for rule in TEMPLATE for p in rule(lesson)]
