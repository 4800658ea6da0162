"""The table of fewer steps: what it counts, and that its last row is the recipe's own."""

import json

import pytest
import torch
from conftest import benchmark

from minisora.interpolants import Interpolant
from minisora.recipe import Recipe
from minisora.sampling import CallCounter, renoise_average, sample

# until the benchmark has come to today's names
pytestmark = pytest.mark.filterwarnings("ignore:.*goes with the next release")


@pytest.fixture(scope="module")
def few():
    return benchmark("few_steps")


class Zero:
    null_id = 7

    def __call__(self, x, t, y=None):
        return 0 * x


@pytest.mark.parametrize("steps", (1, 2, 5, 24))
def test_rows_are_those_that_a_sampler_asks_for(few, steps):
    r = Recipe(renoise_times=3, guidance_until=0.5, shift=6.0)
    net = CallCounter(Zero())
    y = torch.tensor([1])
    z = sample(
        net,
        Interpolant(prediction="data"),
        y,
        shape=(1, 2, 2, 2),
        steps=steps,
        solver="ddim",
        guidance=2.5,
        guidance_interval=(0.0, r.guidance_until),
        shift=r.shift,
    )
    renoise_average(net, Interpolant(prediction="data"), z, y, times=r.renoise_times)
    assert few.rows_asked(r, steps) == net.rows


def test_the_last_row_is_the_recipe_as_it_was_recorded(root):
    said, first = (
        json.loads((root / "benchmarks" / f"{k}.json").read_text())
        for k in ("few_steps", "first_video")
    )
    last = said["rows"][-1]
    assert (
        last["steps"] == first["recipe"]["sample_steps"]
        and last["n"] == first["metrics"]["n"] >= 110
    )
    for k in ("all_right", "shape_right"):
        assert last[k] == pytest.approx(first["metrics"][k], abs=2 / last["n"])
    for k in ("shape_overlap", "jerk_px"):
        assert last[k] == pytest.approx(first["metrics"][k], rel=0.02)
    assert [r["steps"] for r in said["rows"]] == [2, 4, 8, 16, 24]
