"""A run beside one that is known to be good."""

import json
import subprocess
import sys
import warnings

import pytest
from helpers.train import Config, Net, go, interruptible  # noqa: F401

from minisora.train import compare_to_reference, plot_against_reference


def test_on_track():
    log = [dict(step=s, loss=1 / s) for s in range(1, 41)]
    assert compare_to_reference(log, log) == 1
    assert compare_to_reference([dict(r, loss=3 * r["loss"]) for r in log], log) == pytest.approx(3)
    late = [
        dict(r, loss=r["loss"] * (1 if r["step"] <= 30 else 2)) for r in log
    ]  # only the last quarter counts
    assert compare_to_reference(late, log) == pytest.approx(2)
    coarse = [dict(step=s, loss=2.0 * s) for s in (10, 20)]  # in between: a straight line
    assert compare_to_reference([dict(step=13, loss=52.0)], coarse) == pytest.approx(2)
    with pytest.raises(ValueError, match="no step from 10 to 20"):
        compare_to_reference([dict(step=30, loss=1.0)], coarse)


def test_reference_of_the_preset(root):
    known = json.loads((root / "benchmarks" / "first_video.json").read_text())
    kept = json.loads((root / "minisora" / "reference" / "first-video.json").read_text())
    assert [s for s, _ in kept["loss"]] == [s for s, _ in known["loss"]] and kept[
        "machine"
    ] == known["machine"]
    assert all(
        a == pytest.approx(b, abs=1e-5) for (_, a), (_, b) in zip(kept["loss"], known["loss"])
    )
    for part, k in dict(
        steps="recipe", lr="recipe", delta="objective", steady="objective", width="model"
    ).items():
        assert kept["config"][k][part] == known["recipe"][part]
    assert (
        compare_to_reference("first-video", root / "minisora" / "reference" / "first-video.json")
        == 1
    )


def test_what_is_no_reference_is_told_which_there_are():
    for name in ("second-video", "nowhere/run", "nowhere.json"):
        with pytest.raises(
            FileNotFoundError,
            match=f"'{name}' is no folder of a run, no file, and none of 'first-video'",
        ):
            compare_to_reference(name, "first-video")


def test_references_are_part_of_the_package(root, tmp_path):
    pytest.importorskip("setuptools")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path],
        cwd=root,
        check=True,
    )
    names = lambda folder: {p.name for p in (folder / "minisora" / "reference").glob("*.json")}
    assert names(tmp_path) == names(root) >= {"first-video.json"}


def test_another_recipe_is_told(tmp_path):
    "By a `Trained` or a folder; the seed may differ; a log alone has no recipe."
    a = go(tmp_path / "a", steps=8)
    b = go(None, steps=8, lr=5e-3, net=Net(Config(20)), seed=3)
    for run in (b, a):
        assert compare_to_reference(run, run) == 1
    for run, other in ((b, a), (b, tmp_path / "a")):
        with pytest.warns(UserWarning, match="recipe.lr is 0.005, not 0.01") as told:
            compare_to_reference(run, other)
        said = str(told[0].message)
        assert "model.width is 20, not 16" in said and "seed" not in said and "\n" not in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare_to_reference(go(None, steps=8, seed=4), a)
        compare_to_reference(b.log, a)
        compare_to_reference(tmp_path / "a", a)
    with pytest.warns(UserWarning, match="fields more"):
        compare_to_reference(a, "first-video")


def test_the_script_that_makes_references(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "recipes"))
    import reference

    monkeypatch.setattr(reference, "FOLDER", tmp_path / "made")
    done = go(tmp_path / "run", log_every=1, steps=23)
    kept = json.loads(
        reference.reference("signs", tmp_path / "run", "single_gpu.json", "signs-cpu").read_text()
    )
    assert kept["source"] == "benchmarks/single_gpu.json/signs-cpu" and kept["machine"]["cores"]
    assert (
        kept["loss"] == [[r["step"], round(r["loss"], 5)] for r in done.log]
        and kept["config"] == done.config
    )


def test_overlay_takes_a_run_in_each_form(tmp_path):
    done = go(tmp_path)
    reference = [dict(r, loss=r["loss"] * 2) for r in done.log]
    for run in (done, done.log, tmp_path, str(tmp_path)):
        ax = plot_against_reference(run, reference, name="mine").axes[0]
        assert ax.get_title() == "loss: 0.50 × that of mine"
        lines = {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()}
        assert lines["this run"] == [r["loss"] for r in done.log] and lines["mine"] == [
            r["loss"] for r in reference
        ]
