"""What the parts of W.A.L.T are worth: how rows are compared, and that the record is whole."""

import json
from types import SimpleNamespace

import pytest
from conftest import benchmark

from minisora.evaluation.intervals import binomial_interval
from minisora.experiment import Experiment

SHARES = ("all_right", "object_right", "colour_right", "motion_right")


@pytest.fixture(scope="module")
def script():
    return benchmark("walt")


@pytest.fixture(scope="module")
def record(root):
    return json.loads((root / "benchmarks" / "walt.json").read_text())


def made_up(name, base, right, n):
    share = dict(all_right=right / n, all_right_interval=binomial_interval(right, n))
    return dict(name=name, base=base, **share)


def test_the_interval_of_a_difference_is_newcombes(script):
    "56 of 70 beside 48 of 80: the example of Newcombe (1998), table II, method 10."
    found, interval = script.difference(made_up("a", None, 56, 70), made_up("b", None, 48, 80))
    assert found == pytest.approx(0.2)
    assert interval == pytest.approx((0.0524, 0.3339), abs=2e-4)


def test_a_difference_counts_beyond_its_interval_and_beyond_two_seeds(script):
    def found(*seeds):
        rows = [made_up("joint", None, 100, 200), made_up("windows", "joint", 140, 200)]
        rows += [made_up(f"joint, seed {k}", None, right, 200) for k, right in enumerate(seeds, 1)]
        return script.compare(rows)

    assert found()["compared"][0]["counts"] and found()["seed_noise"] is None
    assert found(110)["compared"][0]["counts"]
    assert found(110)["seed_noise"] == pytest.approx(0.05)
    assert not found(110, 55)["compared"][0]["counts"]
    assert "within the noise" in script.says(found(110, 55))[0]
    close = [made_up("joint", None, 100, 200), made_up("windows", "joint", 105, 200)]
    assert not script.compare(close)["compared"][0]["counts"]


def test_every_row_is_there_or_named_as_missing(script, record):
    made = [row["name"] for row in record["rows"]]
    assert sorted(made + record["missing"]) == sorted(script.ROWS)
    assert [name for name in script.ROWS if name in made] == made
    seeds = record["comparisons"][0]["seeds"]
    assert any(len(shares) > 1 for shares in seeds.values()), "no noise of a seed"
    assert all(row["base"] in (None, *made) for row in record["rows"])


def test_intervals_and_comparison_follow_from_the_rows(script, record):
    for row in record["rows"]:
        assert row["n"] == record["n"]
        for name in SHARES:
            right = round(row[name] * row["n"])
            assert row[name] == pytest.approx(right / row["n"])
            wanted = binomial_interval(right, row["n"])
            assert row[f"{name}_interval"] == pytest.approx(wanted)
    found = [script.compare(record["rows"], measure) for measure in script.MEASURES]
    assert json.loads(json.dumps(found)) == record["comparisons"]
    assert record["says"] == {f["measure"]: script.says(f) for f in found}


def test_every_row_had_the_same_minutes(script, record):
    for row in record["rows"]:
        seconds = record["seconds_per_step"][row["name"].partition(", seed")[0]]
        assert row["steps"] == round(60 * record["minutes"] / seconds)
        assert row["train_cpu_minutes"] == pytest.approx(record["minutes"], rel=0.25)


def test_the_rows_are_the_models_of_today(script, record, tmp_path):
    "Layout, modulation and channels of each, by the number of its weights."
    run = Experiment(tmp_path / "run", device="cpu", progress=False, **script.SHARED)
    run.cache = SimpleNamespace(shape=(8, 16, 8, 8))
    for row in record["rows"]:
        model, _ = script.model_and_objective(run, row["name"])
        assert sum(p.numel() for p in model.parameters()) == row["parameters"]
