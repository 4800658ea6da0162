"""`run_processes`: answers in rank order, and what goes wrong is told with its rank."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from minisora.parallel import Parallel, run_processes


def test_answers_come_in_order():
    def job(rank):
        time.sleep(0.2 * (2 - rank))
        whole = torch.tensor(float(rank))
        dist.all_reduce(whole)
        return rank, whole.item(), dist.get_world_size()

    assert run_processes(job, 3) == [(0, 3.0, 3), (1, 3.0, 3), (2, 3.0, 3)]


def fails(rank):
    if rank == 1:
        raise KeyError("frames\nand more")
    dist.barrier()


def dies(rank):
    if rank == 1:
        os._exit(3)
    dist.barrier()


def cannot_be_sent(rank):
    return (lambda: rank) if rank == 1 else None


@pytest.mark.parametrize(
    "job, words",
    [(fails, "rank 1: KeyError"), (dies, "rank 1 died"), (cannot_be_sent, "rank 1: ")],
)
def test_what_goes_wrong_names_the_rank(job, words):
    with pytest.raises(RuntimeError) as caught:
        run_processes(job, 2, seconds=60)
    said = str(caught.value)
    assert said.startswith(words) and "\n" not in said


def test_one_that_hangs_is_ended():
    with pytest.raises(RuntimeError, match="rank"):
        run_processes(lambda rank: time.sleep(600) if rank else dist.barrier(), 2, seconds=2)


def test_the_number_of_processes_is_checked():
    with pytest.raises(ValueError, match="world"):
        run_processes(fails, 0)


@pytest.mark.parametrize(
    "sizes, world, found",
    [
        (dict(), 6, (6, 1, 1, 1)),
        (dict(shard=2, sequence=3), 6, (1, 2, 3, 1)),
        (dict(replicate=2, sequence=2), 4, (2, 1, 2, 1)),
    ],
)
def test_sizes_fill_the_world(sizes, world, found):
    assert Parallel(**sizes).sizes(world) == found


@pytest.mark.parametrize(
    "sizes, world", [(dict(replicate=2), 3), (dict(shard=4), 2), (dict(shard=2), 3)]
)
def test_sizes_that_do_not_fill_it(sizes, world):
    with pytest.raises(ValueError, match=f"not {world}"):
        Parallel(**sizes).sizes(world)
