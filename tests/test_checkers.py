"""Every checker takes its lesson's solution, in float64 too, and meets every mistake with a hint of
one line."""

import copy
import importlib
import inspect
import io
import math
import warnings
from contextlib import redirect_stdout
from fractions import Fraction

import lesson_rules as rules
import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.mistakes import IN_PLACE, MISTAKES, RIGHT, WHOLE

from minisora import check
from minisora.checkers.base import (
    Answer,
    Hint,
    as_number,
    as_whole,
    compare,
    hint_of,
    near,
)

SHARED = ("base", "disk", "reports")  # no checkers of their own
ROOMS = sorted(p.stem for p in (ROOT / "nbs" / "checkers").glob("*.ipynb") if p.stem not in SHARED)
CHECKERS = {
    name: getattr(module, name)
    for module in (importlib.import_module(f"minisora.checkers.{room}") for room in ROOMS)
    for name in module.__all__
}
# The names of version 0.1, as lessons and notebooks of that time call them.
OLD = """mirrored moments never_seen diagonal kl_bits first_latent global_scale causal_average
    cache_bytes running_statistics resume_point dit_tokens dit_block_parameters dit_silence dit_step
    dit_unturn forward_jump unpack_v ddim_step learned_range gvp_velocity linear_score
    shift_for_noise heun_step heun_calls guided_data temporal_pairs temporal_best temporal_tubelet
    temporal_routed temporal_turn ema_half_life sqrt_schedule place_in_data frechet_1d jerk_of
    clips_needed mass_flicker extrapolated coverage_of video_tokens data_to_velocity
    memorised_share clip_tokens film_frames continuation_loss""".split()


class Recorder:
    """Stands in for `check` while a solution runs, and keeps what it hands over, by the checker's
    name of today."""

    def __init__(self):
        self.answers = {}

    def __getattr__(self, name):
        def record(answer):
            self.answers[getattr(check, name).__name__] = answer

        return record


def solutions():
    "{checker: answer}, out of the folded solutions of all lessons."
    recorder = Recorder()
    for path in sorted((ROOT / "nbs").glob("[01][0-9]_*.ipynb")):
        for cell in rules.exercise_cells(rules.load(path)):
            found = rules.parse_exercise(cell)
            ns = {"__name__": "__exercise__", "torch": torch, "check": recorder}
            exec(compile(found.solution, f"{path.name}, {found.name}", "exec"), ns)
    return recorder.answers


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # lessons may still say the old names
    SOLUTIONS = solutions()
FUNCTIONS = [name for name, answer in SOLUTIONS.items() if callable(answer)]


def test_each_checker_has_an_exercise_and_is_named_after_its_lesson():
    assert sorted(CHECKERS) == sorted(SOLUTIONS)
    for name, checker in CHECKERS.items():
        room = checker.__module__.rpartition(".")[2]
        assert name.startswith(f"{room}_") and getattr(check, name) is checker


def test_the_names_of_version_01_still_work():
    assert len(OLD) == 46
    found = set(OLD) & CHECKERS.keys()
    for name in OLD:
        if name in CHECKERS:
            continue
        with pytest.warns(
            DeprecationWarning, match=f"minisora.check.{name} is now minisora.check."
        ):
            found.add(getattr(check, name).__name__)
    assert len(found) == 46 and found <= set(CHECKERS)


# ---------------------------------------------------------------- right answers


def converted(value, dtype):
    """Tensors of floats, also those in tuples, lists and dicts, and copies of modules in that
    dtype; all else as it is."""
    if torch.is_tensor(value) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).to(dtype)
    if isinstance(value, dict):
        return {k: converted(v, dtype) for k, v in value.items()}
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(converted(v, dtype) for v in value)
    return value


def in_float64(answer):
    "The same answer, computed and returned in float64."
    return lambda *args: converted(answer(*converted(args, torch.float64)), torch.float64)


def as_arrays(answer):
    "The same answer, returned as numpy arrays."

    def to_numpy(value):
        if isinstance(value, (tuple, list)):
            return type(value)(map(to_numpy, value))
        return value.numpy() if torch.is_tensor(value) else value

    return lambda *args: to_numpy(answer(*args))


def writing_into_its_arguments(answer):
    "The same answer, which leaves zeros in every tensor that it was given."

    def wrapped(*args):
        got = answer(*(a.clone() if torch.is_tensor(a) else a for a in args))
        for a in args:
            if torch.is_tensor(a):
                a.zero_()
        return got

    return wrapped


@pytest.mark.parametrize("name", CHECKERS)
def test_the_solution_is_taken(name):
    out = io.StringIO()
    with redirect_stdout(out):
        CHECKERS[name](SOLUTIONS[name])
    assert out.getvalue().startswith("✓ ") and out.getvalue().count("\n") == 1


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("wrapped", [in_float64, as_arrays, writing_into_its_arguments])
def test_the_solution_is_taken_in_float64_as_arrays_and_in_place(name, wrapped):
    if name in IN_PLACE:
        return  # it changes a block and returns nothing
    assert hint_of(CHECKERS[name], wrapped(SOLUTIONS[name])) == ""


@pytest.mark.parametrize("name, answer", RIGHT)
def test_a_right_answer_of_another_kind_is_taken(name, answer):
    assert hint_of(CHECKERS[name], answer) == ""


# ---------------------------------------------------------------- answers that are none


def said(checker, answer):
    """The hint for an answer that must be refused: one line, an AssertionError of ours and of no
    other kind."""
    with redirect_stdout(io.StringIO()), pytest.raises(Hint) as caught:
        checker(answer)
    hint = str(caught.value)
    assert hint and "\n" not in hint and len(hint) < 450
    return hint


def one_argument_more(answer):
    "A function that needs one argument more than the answer does."
    names = [f"a{i}" for i in range(len(inspect.signature(answer).parameters) + 1)]
    return eval(f"lambda {', '.join(names)}: None")


def boom(*args):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 3x4)\nat ATen/native")


NONSENSE = [
    *(
        float("nan"),
        float("inf"),
        10**400,
        1e300,
        -1,
        3j,
        "three",
        b"",
        [],
        {},
        set(),
        object(),
        len,
    ),
    *([None], [[1], [2, 3]], (1, "a"), np.array(["a"]), np.zeros((2, 2)), (x for x in "abc")),
    *(
        torch.ones(7, 7),
        torch.ones(3, dtype=torch.bool),
        torch.empty(2, device="meta"),
        torch.ones(0),
    ),
    *(torch.tensor(math.nan), [torch.ones(2), torch.ones(3)], torch.full((5,), math.inf)),
]


@pytest.mark.parametrize("name", CHECKERS)
def test_what_is_no_answer_gets_a_hint(name):
    """None, nothing returned, a wrong number of arguments, an exception, text, and all kinds of
    wrong values."""
    checker = CHECKERS[name]
    answer = SOLUTIONS[name]
    said(checker, None)
    said(checker, "three")
    if isinstance(answer, dict):  # the report of an experiment
        for value in (*NONSENSE, lambda *a: None, True, 3.5):
            said(checker, value)
        return
    if not callable(answer):
        assert "not a function" in said(checker, lambda *a: None)
        assert "one number" in said(checker, torch.ones(2)) and "one number" in said(checker, True)
        said(checker, float("nan"))
        return
    assert "itself" in said(checker, 3.5)
    nothing = said(checker, lambda *a: None)
    assert "return" in nothing or name in IN_PLACE
    assert "yours takes ()" in said(checker, lambda: 0)
    assert "yours takes (a0" in said(checker, one_argument_more(answer))
    raised = said(checker, boom)
    assert (
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied" in raised and "ATen" not in raised
    )
    for value in NONSENSE:
        said(checker, lambda *a, value=value: value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tensor_of_another_shape_or_kind_gets_a_hint(name):
    "The right numbers with an axis more, as whole numbers, as bfloat16 and as complex numbers."
    if name in IN_PLACE:
        return
    answer = SOLUTIONS[name]
    results = []

    def noting(*args):
        results.append(answer(*args))
        return results[-1]

    assert hint_of(CHECKERS[name], noting) == ""
    if not torch.is_tensor(results[0]) or results[0].ndim == 0:
        return
    assert "must have the shape" in said(CHECKERS[name], lambda *a: answer(*a)[None])
    if name in WHOLE:
        assert "whole numbers" in said(CHECKERS[name], lambda *a: answer(*a).float())
        return
    assert "must hold floats" in said(CHECKERS[name], lambda *a: answer(*a).int())
    assert "must hold floats" in said(CHECKERS[name], lambda *a: answer(*a) + 0j)
    assert "too coarse" in said(CHECKERS[name], lambda *a: answer(*a).bfloat16())


# ---------------------------------------- plausible mistakes, and what is said to them


def test_each_checker_is_tried_with_four_mistakes():
    assert sorted(MISTAKES) == sorted(CHECKERS)
    assert {name: len(found) for name, found in MISTAKES.items() if len(found) < 4} == {}


@pytest.mark.parametrize(
    "name, answer, words",
    [(name, *found) for name, all_found in MISTAKES.items() for found in all_found],
    ids=[f"{name}-{i}" for name, found in MISTAKES.items() for i in range(len(found))],
)
def test_a_mistake_is_refused_with_its_own_hint(name, answer, words):
    assert words in said(CHECKERS[name], answer)


# ---------------------------------------- what checkers hold true of the library


def test_the_steps_of_the_linear_schedule_are_the_library_s():
    from minisora.processes.schedules import beta_schedule

    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert torch.allclose(beta_schedule(), beta, rtol=1e-12)


def test_the_next_sample_is_the_training_loop_s():
    from minisora.core.noise import epoch_permutation
    from minisora.training.batches import batch_indices

    for step, batch_size, n in ((0, 4, 10), (5, 4, 10), (7, 16, 10), (499, 16, 2000)):
        epoch, position = divmod(step * batch_size, n)
        assert epoch_permutation(0, epoch, n)[position] == batch_indices(0, step, batch_size, n)[0]


def test_the_best_linear_velocity_is_that_of_least_squares():
    noise, unit = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0))
    best = SOLUTIONS["temporal_linear_velocity"]
    for t, sigma in ((0.1, 0.5), (0.5, 1.0), (0.9, 2.0)):
        x = t * sigma * unit + (1 - t) * noise
        v = sigma * unit - noise
        assert best(t, sigma) == pytest.approx(float((v * x).mean() / (x * x).mean()), abs=0.03)


# ---------------------------------------------------------------- the hints themselves


def test_numbers_are_read_from_what_plainly_is_one():
    for value in (
        3,
        3.0,
        np.float32(3),
        np.int64(3),
        torch.tensor([3]),
        np.array(3.0),
        Fraction(3),
    ):
        assert as_number(value) == 3 and as_whole(value) == 3
    for value in (None, True, "3", [1, 2], 3j, torch.ones(2), torch.tensor(True), {}, object()):
        with pytest.raises(Hint, match="must be one number|is None"):
            as_number(value)
    for value in (3.5, float("nan"), torch.tensor(math.nan)):
        with pytest.raises(Hint, match="must be a whole number, not"):
            as_whole(value)
    for value in (float("inf"), -(10**400), torch.tensor(1e30)):
        with pytest.raises(Hint, match="much too large"):
            as_whole(value)


def test_what_is_near_is_so_in_float64_and_nan_is_near_nothing():
    assert near(torch.tensor(1.0), 1 + 1e-5) and not near(1.0, 1.001)
    assert near(2**40, 2**40 + 1) and not near(2**40, 2**40 + 1, 0)
    assert near([1, 2.0], (1.0, 2)) and not near([1], [1, 1])
    assert not near(float("nan"), float("nan")) and not near(1.0, float("inf"))


def test_a_mistake_is_named_only_where_the_answer_is_what_it_gives():
    mistakes = {"doubled": 6, "added": 6, "not a number": float("nan")}
    compare(9, 9, "no", mistakes)
    for got, want in ((6, "case: doubled"), (7, "case: no"), (float("nan"), "case: no")):
        with pytest.raises(Hint) as caught:
            compare(got, 9, "no", mistakes, case="case")
        assert str(caught.value) == want


def test_an_exception_is_told_with_its_line_and_what_the_function_was_given():
    def answer(x, k):
        y = x + 1
        return y[k]

    with pytest.raises(Hint) as caught:
        Answer(answer, "pick(x, k)")(torch.ones(2), 5)
    line = inspect.getsourcelines(answer)[1] + 2
    assert str(caught.value) == (
        "pick(x, k) raised IndexError: index 5 is out of bounds for dimension 0 with size 2 "
        f"(line {line}), given x = float32 (2,), k = 5"
    )


def test_functions_of_every_kind_are_called():
    "A built-in function, a module of weights, a method and a function with defaults."
    x = torch.ones(1, 2)
    assert Answer(torch.sin, "f(x)")(x).equal(x.sin())
    assert Answer(torch.nn.Linear(2, 3), "f(x)")(x).shape == (1, 3)
    assert Answer(x.mul, "f(x)")(x).equal(x)
    assert Answer(lambda x, k=2: k * x, "f(x)")(x).equal(2 * x)
    assert Answer(lambda *args: args[0], "f(x)")(x) is not x
