"""Noise, times and dropped conditions of an update; objectives that call their methods as version
0.1 did."""

import pytest
import torch

from minisora.interpolants import Interpolant
from minisora.training.inputs import (
    check_loss_terms,
    draw_noise,
    sample_times,
    seed_torch,
    stratified_uniforms,
    time_range,
)

U = torch.tensor([0.25, 0.75])


class Old:
    "An objective of a user of version 0.1."

    interval = (0.1, 0.9)

    def times(self, u):
        return u + 1


class New:
    time_range = (0.2, 0.8)

    def sample_times(self, u):
        return u + 2


class Bridged(New):
    "A class of today that also answers to the old names, as ours do in this release."

    interval = (0.0, 0.0)

    def times(self, u):
        raise AssertionError("asked by its old name")

    def sample_times(self, u):
        return u + 3

    time_range = (0.3, 0.7)


class Overridden(Bridged):
    "A user's subclass of it, from before the names changed."

    interval = (0.4, 0.6)

    def times(self, u):
        return u + 4


class Wrapper:
    "Hands everything on to another objective."

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize(
    "objective, more, times",
    [
        (Old(), 1, (0.1, 0.9)),
        (New(), 2, (0.2, 0.8)),
        (Bridged(), 3, (0.3, 0.7)),
        (Overridden(), 4, (0.4, 0.6)),
        (Wrapper(Old()), 1, (0.1, 0.9)),
        (Wrapper(New()), 2, (0.2, 0.8)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_an_objective_is_asked_by_the_name_that_it_knows(objective, more, times):
    assert sample_times(objective, U).equal(U + more) and time_range(objective) == times


def test_an_objective_without_a_range_has_all_times():
    assert time_range(object()) == (0.0, 1.0)
    late = Interpolant(prediction="data")
    assert time_range(late) == (1e-3, 1 - 1e-3) and sample_times(late, U).shape == (2,)


def test_parts_of_several_processes_are_those_of_one():
    u = torch.rand(8, generator=torch.Generator().manual_seed(0))
    whole = stratified_uniforms(u)
    parts = [stratified_uniforms(u[rank::2], rank, 2) for rank in range(2)]
    assert torch.stack(parts, 1).flatten().equal(whole)
    assert (whole * 8).floor().tolist() == list(range(8))


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)], ids=str)
def test_a_condition_is_dropped_whole(shape):
    latents = torch.zeros(400, 1, 1, 2, 2)
    condition = torch.ones(400, *shape)
    noise, with_null, u = draw_noise(0, 5, range(400), latents, condition, 0.25, 7.0)
    dropped = (with_null == 7).flatten(1).float() if shape else (with_null == 7).float()[:, None]
    assert dropped.amin(1).equal(dropped.amax(1)) and dropped.mean().item() == pytest.approx(
        0.25, abs=0.06
    )
    assert noise.shape == latents.shape and u.shape == (400,)
    assert draw_noise(0, 5, range(400), latents, condition, 0, None)[1] is condition


def test_layers_draw_by_seed_step_and_rank():
    "The generator of a CPU reads 32 bits of a seed only: the rank must be among them."

    def drawn(*at):
        with torch.random.fork_rng():
            seed_torch(torch.device("cpu"), *at)
            return torch.rand(4).tolist()

    places = [(0, 7), (0, 8), (1, 7), (0, 7, 1), (0, 7, 2)]
    assert len({tuple(drawn(*at)) for at in places}) == len(places)
    assert drawn(0, 7, 1) == drawn(0, 7, 1)
    with torch.random.fork_rng():
        torch.manual_seed(3 * 1_000_003 + 7)  # as version 0.1 seeded the only process
        assert torch.rand(4).tolist() == drawn(3, 7)


@pytest.mark.parametrize(
    "terms", [torch.ones(4), dict(mse=torch.ones(4)), dict(loss=torch.tensor(1.0)), dict(loss=1.0)]
)
def test_a_loss_that_is_none_per_sample_is_refused(terms):
    with pytest.raises(ValueError, match="'loss' holds a value per sample"):
        check_loss_terms(terms, (4,))
