"""The lessons' sliders, moved through a real Jupyter kernel as Jupyter Lab moves them: the
figure follows."""

import ast
import json
import os
from contextlib import contextmanager

import pytest
from conftest import ROOT
from jupyter_client.manager import start_new_kernel


def statements(lesson):
    "The top-level statements of a lesson, in order, and the place of the first that shows sliders."
    cells = json.loads((ROOT / "nbs" / f"{lesson}.ipynb").read_text(encoding="utf-8"))["cells"]
    body = [
        s for c in cells if c["cell_type"] == "code" for s in ast.parse("".join(c["source"])).body
    ]
    first = next(
        i
        for i, s in enumerate(body)
        if isinstance(s, ast.Expr) and ast.unparse(s).startswith("viz.interactive(")
    )
    return body, first


def gives(s):
    "The names that a statement defines."
    if isinstance(s, (ast.FunctionDef, ast.ClassDef)):
        return {s.name}
    if isinstance(s, (ast.Import, ast.ImportFrom)):
        return {(a.asname or a.name).split(".")[0] for a in s.names}
    return (
        {n.id for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        if isinstance(s, ast.Assign)
        else set()
    )


def needs(s):
    """The names that a statement takes from those before it (a name that it also binds, in a
    function or a loop, is its own)."""
    names = [n for n in ast.walk(s) if isinstance(n, ast.Name)]
    own = {n.id for n in names if isinstance(n.ctx, ast.Store)} | {
        a.arg for a in ast.walk(s) if isinstance(a, ast.arg)
    }
    return {n.id for n in names} - own


def program(lesson):
    """The sliders of a lesson and, before them, only what they need: a slice of the notebook
    that runs in a second or two."""
    body, first = statements(lesson)
    wanted = set()
    out = []
    for s in reversed(body[: first + 1]):
        if out and not gives(s) & wanted:
            continue
        wanted = (wanted - gives(s)) | needs(s)
        out.append(ast.unparse(s))
    return "\n".join(reversed(out))


@contextmanager
def fresh_kernel():
    "A client of a new kernel that draws as a notebook does."
    env = dict(
        os.environ,
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        PYTHONPATH=str(ROOT),
        OMP_NUM_THREADS="1",
    )
    manager, client = start_new_kernel(
        kernel_name="python3", env=env, cwd=str(ROOT / "nbs"), startup_timeout=300
    )
    try:
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel():
    with fresh_kernel() as client:
        yield client


def replies(client, sent):
    "What the kernel publishes in answer to message `sent`, until it is idle again."
    out = []
    while True:
        m = client.get_iopub_msg(timeout=300)
        if m["parent_header"].get("msg_id") != sent:
            continue
        assert m["msg_type"] != "error", "\n".join(m["content"]["traceback"])
        if m["msg_type"] == "status" and m["content"]["execution_state"] == "idle":
            return out
        out.append(m)


def pictures(messages):
    return [
        m["content"]["data"]["image/png"]
        for m in messages
        if m["msg_type"] == "display_data" and "image/png" in m["content"]["data"]
    ]


def control(messages, description):
    "The comm id and state of the slider or menu with that description."
    states = {}
    for m in messages:
        if m["msg_type"] in ("comm_open", "comm_msg"):
            states.setdefault(m["content"]["comm_id"], {}).update(
                m["content"]["data"].get("state", {})
            )
    return next((i, s) for i, s in states.items() if s.get("description") == description)


def move(client, comm_id, **state):
    "What a frontend sends when a slider is let go; returns the new pictures."
    data = dict(method="update", state=state, buffer_paths=[])
    message = client.session.msg("comm_msg", dict(comm_id=comm_id, data=data))
    client.shell_channel.send(message)
    return pictures(replies(client, message["header"]["msg_id"]))


@pytest.mark.parametrize(
    "lesson,name,field,there,back",
    [
        ("05_interpolants", "t", "value", 0.2, 0.6),  # a slider
        ("06_sampling", "strength", "index", 4, 0),  # a menu
    ],
)
def test_a_moved_slider_changes_the_figure(kernel, lesson, name, field, there, back):
    messages = replies(kernel, kernel.execute(program(lesson)))
    still, live = pictures(messages)  # the static picture, and the one that the sliders own
    comm, state = control(messages, name)
    assert still == live and state[field] == back
    moved = move(kernel, comm, **{field: there})
    assert len(moved) == 1 and moved[0] != still
    assert move(kernel, comm, **{field: back}) == [still]  # and back again, pixel by pixel


def test_a_plot_of_one_s_own_is_shown_after_a_figure_of_ours():
    """The first figure of a notebook, if it is ours, loads the backend; a plain plot in a later
    cell is still shown."""
    with fresh_kernel() as client:
        ours = replies(
            client, client.execute("from minisora import viz\nviz.curves({'a': [1, 2]})")
        )
        own = replies(client, client.execute("import matplotlib.pyplot as plt\nplt.plot([1, 2]);"))
    assert [m["msg_type"] for m in ours if "image/png" in m["content"].get("data", {})] == [
        "execute_result"
    ]
    assert len(pictures(own)) == 1


@pytest.mark.parametrize("lesson", ("05_interpolants", "06_sampling"))
def test_the_page_without_a_kernel_shows_a_picture_beside_each_slider(lesson):
    cells = json.loads((ROOT / "nbs" / f"{lesson}.ipynb").read_text(encoding="utf-8"))["cells"]
    live = [
        c
        for c in cells
        if c["cell_type"] == "code"
        and any(line.startswith("viz.interactive(") for line in c["source"])
    ]
    assert live
    for c in live:
        assert any("image/png" in o.get("data", {}) for o in c["outputs"]), "".join(c["source"])
