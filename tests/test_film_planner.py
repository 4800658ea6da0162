"""Pictures and shots by models of others, against a local endpoint: good answers and bad ones."""

import base64
import io
import json

import pytest
from PIL import Image
from test_film_endpoints import KEY, server  # noqa: F401

from minisora.film.planner import EndpointPicture, plan_by_chat
from minisora.film.script import open_script
from minisora.film.shots import Bars, Card, Diagram
from minisora.film.storyboard import Scene, Storyboard
from minisora.story import make_film, plan_film

TEXT = "Rain falls on the hills and then it runs into the sea, as everybody knows.\n\nIt is wet."


def picture(color="red"):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(file, "PNG")
    return json.dumps(dict(data=[dict(b64_json=base64.b64encode(file.getvalue()).decode())]))


def chat(text):
    return json.dumps(dict(choices=[dict(message=dict(content=text))])).encode()


def test_a_picture_is_asked_for_once(server, tmp_path):  # noqa: F811
    answers, asked = server
    answers.append((200, picture().encode(), {}))
    shot = EndpointPicture("a red field")
    ready = shot.prepare(tmp_path)
    assert shot.prepare(tmp_path) == ready and len(asked) == 1
    assert json.loads(asked[0][2])["prompt"] == "a red field"
    frame = next(ready.frames(0.2, (64, 64), 10))
    assert frame[32, 32].tolist() == [255, 0, 0]
    board = Storyboard("T", (Scene("A.", shot),), speaker="openai")
    assert plan_film(board).calls == 2 and "may cost money" in str(plan_film(board))


@pytest.mark.parametrize(
    "data", [b"{}", b"no", b'{"data": [{"b64_json": "AAAA"}]}', b'{"data": 1}']
)
def test_a_picture_that_is_none_is_a_card(server, data, tmp_path):  # noqa: F811
    answers, _ = server
    answers.append((200, data, {}))
    board = Storyboard("T", (Scene("A cat.", EndpointPicture("x")),), size=(64, 64), fps=4,
                       speaker="silent", music=None)  # fmt: skip
    result = make_film(board, tmp_path / "a.mp4")
    assert "the shot 'endpoint' failed (EndpointError: the answer" in result.problems[0]
    assert KEY not in str(result) and not list((tmp_path / "a.items").glob("picture-*"))


def test_shots_are_proposed_and_checked(server):  # noqa: F811
    answers, asked = server
    shots = [dict(kind="diagram", steps=["hills", "sea"]), dict(kind="card", title="Wet")]
    answers.extend(
        [
            (200, chat("Certainly!"), {}),
            (200, chat(json.dumps(dict(shots=[dict(kind="clip", file="/etc/passwd")] * 2))), {}),
            (200, chat("Here: " + json.dumps(dict(shots=shots)) + " Enjoy."), {}),
        ]
    )
    board, problem = plan_by_chat(open_script(TEXT))
    assert problem == "" and len(asked) == 3
    assert [s.shot for s in board.scenes] == [Diagram(["hills", "sea"]), Card("Wet")]
    last = json.loads(asked[2][2])["messages"]
    assert "must be one of card, diagram, bars. Answer again." in last[-1]["content"]
    assert board.scenes[0].note == "proposed by a chat model"


BAD = {
    "nonsense": (200, chat("no"), "that is no JSON object"),
    "too few": (200, chat('{"shots": []}'), "a list of 2 objects"),
    "no card": (200, chat('{"shots": [{"kind": "card"}, {"kind": "card"}]}'), "missing"),
    "key": (401, b"", "answered 401"),
    "empty": (200, b"", "no JSON object"),
}


@pytest.mark.parametrize("status, data, message", BAD.values(), ids=BAD)
def test_the_rules_stay_where_nothing_better_comes(server, status, data, message):  # noqa: F811
    answers, _ = server
    answers.append((status, data, {}))
    board = open_script(TEXT)
    planned, problem = plan_by_chat(board)
    assert planned == board and message in problem and "cards stay" in problem
    assert KEY not in problem


def test_only_cards_for_want_of_better_are_asked_about(server):  # noqa: F811
    _, asked = server
    board = Storyboard("T", (Scene("A.", Bars({"a": 1})), Scene("B.", Card("b"), note="mine")))
    assert plan_by_chat(board) == (board, "") and not asked
