"""The log in TensorBoard, trackio and wandb; a tracker that fails is let go."""

import shutil
import sys
import types

import pytest
from helpers.train import Data, go, interruptible, log_of  # noqa: F401

from minisora.train import NonFiniteLoss
from minisora.training import trackers
from minisora.training.checkpoint import latest_checkpoint, load_checkpoint


class Recorder:
    "A tracker with accelerate's interface that only remembers."

    made = []

    def __init__(self, run_name, **options):
        self.run_name = run_name
        self.options = options
        self.lines = []
        self.made.append(self)

    def start(self):
        self.lines.append("started")

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step):
        self.lines.append((step, values))

    def finish(self):
        self.lines.append("finished")


@pytest.fixture
def recorder(monkeypatch):
    from accelerate import tracking

    Recorder.made = []
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    sys.modules["wandb"].__spec__ = types.SimpleNamespace()
    return Recorder


def test_tracker_gets_the_lines_of_the_log(recorder, tmp_path):
    done = go(tmp_path, track="wandb")
    (t,) = recorder.made
    assert t.lines[0] == "started" and t.lines[-1] == "finished" and t.config["recipe.lr"] == 1e-2
    lines = dict(t.lines[1:-1])
    assert list(lines) == [r["step"] for r in done.log] == [r["step"] for r in log_of(tmp_path)]
    assert all(lines[r["step"]]["loss"] == r["loss"] for r in done.log)
    assert lines[40]["valid_bins/3"] == done.log[-1]["valid_bins"][3]
    assert all(isinstance(v, (int, float)) for v in lines[40].values())


def test_tracker_is_closed_after_an_error(recorder):
    with pytest.raises(NonFiniteLoss):
        go(None, data=Data(bad=33), track=["wandb"])
    assert recorder.made[0].lines[-1] == "finished"


def failing(recorder, what, at=0):
    "A `Recorder` whose method `what` raises, from step `at` on."

    def broken(self, *args, step=at, **_):
        if step >= at:
            raise ConnectionError("the server is away\nand stays away")
        self.lines.append((step, args[0]))

    return type("Failing", (recorder,), {what: broken})


@pytest.mark.parametrize("what", ["log", "finish"])
def test_a_tracker_that_fails_is_let_go(recorder, monkeypatch, tmp_path, what):
    "One warning names it; the run, its log, its checkpoints and the other tracker do not notice."
    from accelerate import tracking

    monkeypatch.setitem(
        tracking.LOGGER_TYPE_TO_CLASS,
        "trackio",
        failing(recorder, what, at=14 if what == "log" else 0),
    )
    monkeypatch.setitem(sys.modules, "trackio", sys.modules["wandb"])
    with pytest.warns(UserWarning) as told:
        done = go(tmp_path, track=["trackio", "wandb"])
    said = [str(w.message) for w in told if "track" in str(w.message)]
    step = 14 if what == "log" else 40
    assert said == [
        f"track='trackio' failed at step {step}, the run continues without it: "
        "ConnectionError: the server is away"
    ]
    bad, good = recorder.made
    assert (
        done.step == 40
        and load_checkpoint(tmp_path).step == 40
        and len(log_of(tmp_path)) == len(done.log)
    )
    assert [s for s, _ in good.lines[1:-1]] == [r["step"] for r in done.log] and good.lines[
        -1
    ] == "finished"
    if what == "log":
        assert [s for s, _ in bad.lines[1:]] == [1, 7, 10]


def test_a_tracker_that_cannot_start_stops_the_run_and_closes_the_others(
    recorder, monkeypatch, tmp_path
):
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", failing(recorder, "start"))
    monkeypatch.setitem(sys.modules, "trackio", sys.modules["wandb"])
    with pytest.raises(ConnectionError):
        go(tmp_path, track=["wandb", "trackio"])
    assert recorder.made[0].lines == ["started", "finished"]


def test_a_resumed_run_goes_on_in_its_tracker(recorder, tmp_path):
    """The same id and name after a stop; another folder, even of the same name later, is another
    run."""
    go(tmp_path / "run", track="wandb", stop_at=5)
    go(tmp_path / "run", track="wandb", stop_at=9)
    shutil.rmtree(tmp_path / "run")
    go(tmp_path / "run", track="wandb", stop_at=5)
    go(None, track="wandb", steps=1)
    first, again, other, none = [t.options for t in recorder.made]
    assert (
        first == again
        and first["resume"] == "allow"
        and first["name"] == f"run-{first['id']}"
        and len(first["id"]) == 8
    )
    assert other["id"] != first["id"] and none == {}


def test_trackers_get_what_they_understand(tmp_path):
    options = trackers.tracker_options("tensorboard", tmp_path, 0)
    assert options == dict(logging_dir=tmp_path, purge_step=None)
    assert trackers.tracker_options("tensorboard", tmp_path, 9)["purge_step"] == 10
    assert trackers.tracker_options("trackio", tmp_path, 9).keys() == {"name", "resume"}


def test_missing_tracker_is_one_line_and_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as e:
        go(tmp_path / "run", track="trackio")
    assert str(e.value) == "track='trackio': the package is not there; pip install trackio"
    assert not (tmp_path / "run").exists()


def test_unknown_tracker():
    with pytest.raises(
        ValueError, match="track must be one of 'tensorboard', 'trackio', 'wandb', not 'telegraph'"
    ):
        go(None, track=["telegraph"])


def test_tensorboard_itself(tmp_path):
    pytest.importorskip("tensorboard")
    go(tmp_path, track="tensorboard", steps=40, stop_at=12, save_every=9)
    shutil.rmtree(latest_checkpoint(tmp_path))  # killed after step 9
    go(tmp_path, track="tensorboard", steps=20)  # its lines 10 … 12 come again
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(s.step, pytest.approx(s.value)) for s in events.Scalars("loss")] == [
        (r["step"], r["loss"]) for r in log_of(tmp_path)
    ]
