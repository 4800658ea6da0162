"""`fit(…, parallel=Parallel(…))`: however four processes share the work, the numbers are those of
one."""

from dataclasses import replace

import accelerate  # noqa: F401 - before the forks, as below: FSDP imports the next ones
import pytest
from helpers.train import (  # noqa: F401
    DIT_OPTIONS,
    TINY,
    awake,
    clips,
    equal,
    interruptible,
    log_of,
    together,
    train_dit,
)

from minisora.models.layouts import Checkpointed, Factorized, Routed
from minisora.models.windows import Windows
from minisora.parallel import Parallel
from minisora.train import _Trainer
from minisora.training.distributed import Distributed

OPTIONS = DIT_OPTIONS | dict(steps=20, valid_every=10)
LAYOUTS = dict(joint=TINY.layout, factorized=Factorized(), windows=Windows(((1, 0, 0), (0, 1, 2))))


def run(out, layout="joint", **change):
    model = awake(replace(TINY, layout=LAYOUTS[layout]))
    valid = tuple(x[:17] for x in clips())
    return train_dit(out, model, **(OPTIONS | dict(valid=valid) | change))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "Runs of 20 steps in one process, by layout."
    found = {}
    for layout in LAYOUTS:
        found[layout] = tmp_path_factory.mktemp(layout)
        run(found[layout], layout)
    assert min(r["grad_norm"] for r in log_of(found["joint"])) > 0.05  # clipping acts
    return found


TWO = [
    ("joint", Parallel(replicate=2)),
    ("joint", Parallel(shard=2)),
    ("joint", Parallel(sequence=2, method="ulysses")),
    ("joint", Parallel(sequence=2, method="ring")),
    ("factorized", Parallel(sequence=2, method="dsp")),
    ("windows", Parallel(sequence=2, method="allgather")),
    ("joint", Parallel(tensor=2)),
    ("windows", Parallel(tensor=2)),
]
FOUR = [
    ("joint", Parallel(shard=2)),
    ("joint", Parallel(sequence=4, method="ring")),
    ("joint", Parallel(sequence=2, method="allgather")),
    ("factorized", Parallel(shard=2, sequence=2, method="ulysses")),
    ("windows", Parallel(shard=2, sequence=2, method="dsp")),
    ("factorized", Parallel(shard=2, tensor=2)),
    ("joint", Parallel(replicate=2, tensor=2)),
    ("windows", Parallel(sequence=2, tensor=2, method="dsp")),
]
ROUTES = dict(wrappers=(Routed(0.5, (0, 2)), Checkpointed()))


@pytest.mark.parametrize("world, cases", [(2, TWO), (4, FOUR)])
def test_the_numbers_of_one_process(alone, world, cases, tmp_path):
    "Weights, averages, moments, losses, gradient norms and validation of 20 steps."

    def job(rank):
        for k, (layout, parallel) in enumerate(cases):
            trained = run(tmp_path / str(k), layout, parallel=parallel)
            assert trained.ema.blocks[0].attn.heads == TINY.heads
            assert trained.ema.blocks[0].attn.qkv.weight.shape[0] == 3 * TINY.width

    assert together(job, tmp_path, world) == [""] * world
    for k, (layout, _) in enumerate(cases):
        equal(alone[layout], tmp_path / str(k))


@pytest.mark.slow
def test_eight_processes(alone, tmp_path):
    def job(rank):
        run(tmp_path / "8", "windows", parallel=Parallel(2, 2, 2, method="ulysses"))

    assert together(job, tmp_path, 8) == [""] * 8
    equal(alone["windows"], tmp_path / "8")


def test_routing_and_checkpointing_go_along(tmp_path):
    run(tmp_path / "alone", **ROUTES)

    def job(rank):
        run(tmp_path / "two", **ROUTES, parallel=Parallel(sequence=2, method="ring"))

    assert together(job, tmp_path) == [""] * 2
    equal(tmp_path / "alone", tmp_path / "two")


def test_resumes_under_any_other_mesh(alone, tmp_path):
    "By two that share weights, then four that share tokens, four with cut weights, and one."
    out = tmp_path / "out"

    def first(rank):
        run(out, parallel=Parallel(shard=2), stop_at=6)

    def then(rank):
        run(out, parallel=Parallel(sequence=2, shard=2), stop_at=11)

    def further(rank):
        run(out, parallel=Parallel(tensor=2, shard=2), stop_at=16)

    assert together(first, tmp_path) == [""] * 2
    assert together(then, tmp_path, 4) == [""] * 4
    assert together(further, tmp_path, 4) == [""] * 4
    run(out)
    equal(alone["joint"], out)


def test_parts_are_parts(tmp_path):
    "Weights, averages and moments are cut by `shard`, within 5 %; processes share samples."

    def job(rank):
        seen = {}
        real = _Trainer.update

        def watch(r, batch):
            real(r, batch)
            weights = list(r.parameters.values())
            (o,) = r.optimizers
            moments = [o.state[p]["exp_avg"] for p in weights]
            for name, tensors in dict(weights=weights, ema=r.ema.parameters(), m=moments).items():
                mine, whole = 0, 0
                for t in tensors:
                    mine += t.to_local().numel()
                    whole += t.numel()
                seen[name] = mine / whole
            seen["samples"] = r.step_indices()[r.processes.data_rank :: r.processes.data_world]

        _Trainer.update = watch
        run(None, steps=1, parallel=Parallel(shard=2, sequence=2))
        assert len(seen.pop("samples")) == 8 and len(seen) == 3
        for name, share in seen.items():
            assert abs(share - 0.5) < 0.025, (name, share)

    assert together(job, tmp_path, 4) == [""] * 4


def test_ranks_and_samples():
    "Neighbors share a clip; those of one group have one number."
    found = [Distributed("cpu", rank, 8, parallel=None) for rank in range(8)]
    assert [p.data_rank for p in found] == list(range(8))
    parallel = Parallel(2, 2, 1, method="ring")
    found = [Distributed("cpu", rank, 4, parallel=parallel) for rank in range(4)]
    assert [p.data_rank for p in found] == [0, 1, 2, 3] and all(p.sharded for p in found)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(parallel=Parallel(shard=2)), "is for 2 processes or a multiple, not 1"),
        (dict(parallel=2), "parallel must be a Parallel, such as"),
        (dict(parallel=Parallel(), shard=True), "shard=True and parallel"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(sequence=0), "Parallel.sequence"),
        (dict(method="star"), "Parallel.method"),
        (dict(replicate=True), "Parallel.replicate"),
    ],
)
def test_sizes_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Parallel(**options)


def test_a_batch_is_split_over_samples_not_processes(tmp_path):
    "Two processes that share a clip may train with a batch of one."

    def job(rank):
        run(None, steps=1, batch_size=1, accumulate=1, parallel=Parallel(sequence=2))
        with pytest.raises(ValueError, match="batch_size=3 cannot be split evenly over 2"):
            run(None, batch_size=3, accumulate=1, parallel=Parallel(replicate=2))

    assert together(job, tmp_path) == [""] * 2
