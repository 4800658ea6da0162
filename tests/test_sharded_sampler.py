"""Orders, resuming in the middle of an epoch, and other people's engines: accelerate, mmengine."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.latent_cache import write

from minisora.latent_cache import LatentCache
from minisora.latents.sharded_sampler import ShardedSampler


def shares(n, world_size, epoch=0, start=0, seed=0, **options):
    out = [ShardedSampler(n, seed, r, world_size, **options) for r in range(world_size)]
    for s in out:
        s.set_epoch(epoch, start)
    assert [len(s) for s in out] == [len(list(s)) for s in out], "len must say what comes"
    return [list(s) for s in out]


@pytest.mark.parametrize("n, world_size", [(10, 1), (10, 3), (2, 5), (12, 4)])
def test_ranks_share_an_epoch(n, world_size):
    keep = shares(n, world_size, uneven="keep")
    assert sorted(sum(keep, [])) == list(range(n)), "each sample exactly once"
    wrap = shares(n, world_size)
    assert set(sum(wrap, [])) == set(range(n)) and {len(s) for s in wrap} == {-(-n // world_size)}
    (order,) = shares(n, 1)
    together = [i for step in zip(*wrap) for i in step]
    assert together == (order * 3)[: len(together)], (
        "one permutation, which begins again where it ends"
    )
    drop = sum(shares(n, world_size, uneven="drop"), [])
    assert len(set(drop)) == len(drop) == n // world_size * world_size


def test_order_is_a_function_of_seed_and_epoch():
    a = shares(50, 2)
    torch.randn(3)
    np.random.rand()
    assert a == shares(50, 2) and a != shares(50, 2, epoch=1) and a != shares(50, 2, seed=1)
    assert a[0] != sorted(a[0]) and shares(6, 2, shuffle=False) == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("uneven", ["wrap", "drop", "keep"])
def test_going_on_in_the_middle_of_an_epoch(uneven):
    whole = shares(23, 3, epoch=4, uneven=uneven)
    rest = shares(23, 3, epoch=4, start=12, uneven=uneven)
    assert rest == [s[4:] for s in whole]
    other = shares(23, 2, epoch=4, start=12, uneven="keep")  # with another number of ranks
    assert sorted(sum(other, []) + sum([s[:4] for s in whole], [])) == list(range(23))


@pytest.mark.parametrize(
    "given, message", [(dict(rank=3, world_size=3), "rank 3"), (dict(uneven="x"), "uneven")]
)
def test_bad_samplers(given, message):
    with pytest.raises(ValueError, match=message):
        ShardedSampler(5, **given)
    with pytest.raises(ValueError, match="start must be"):
        ShardedSampler(5).set_epoch(0, 9)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_loader_goes_on_in_the_middle_of_an_epoch(tmp_path, workers):
    cache = write(tmp_path / "c", moments=True)
    cache.set_epoch(3)
    sampler = ShardedSampler(cache, seed=7)
    load = lambda: list(
        torch.utils.data.DataLoader(
            cache, 4, sampler=sampler, num_workers=workers, collate_fn=LatentCache.collate
        )
    )
    sampler.set_epoch(3)
    whole = load()
    sampler.set_epoch(3, start=2 * 4)
    rest = load()
    assert len(whole) == 5 and len(rest) == 3
    for a, b in zip(whole[2:], rest):
        assert torch.equal(a["latents"], b["latents"]) and torch.equal(a["index"], b["index"])


# ---------------------------------------------------------------- other people's engines


ACCELERATE = """
import sys, torch
from accelerate import Accelerator
from minisora.latent_cache import LatentCache
from minisora.latents.sharded_sampler import ShardedSampler
acc, cache = Accelerator(cpu=True), LatentCache(sys.argv[1])
model = torch.nn.Linear(8, 8)
sampler = ShardedSampler(cache, seed=1)
loader = torch.utils.data.DataLoader(cache, 4, sampler=sampler, collate_fn=LatentCache.collate)
model, optimizer, loader = acc.prepare(model, torch.optim.SGD(model.parameters(), 0.1), loader)
seen = []
for batch in loader:
    loss = model(batch["latents"].flatten(2)).square().mean()
    acc.backward(loss); optimizer.step(); optimizer.zero_grad(); seen += batch['index'].tolist()
print(acc.process_index, acc.num_processes, seen)
"""


def test_accelerate_two_processes(tmp_path):
    "Two processes under accelerate: the same number of batches each, together every sample."
    write(tmp_path / "c")
    port = 20000 + os.getpid() % 20000
    env = os.environ | dict(
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        PYTHONPATH=str(ROOT),
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
    )
    run = lambda r: subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ACCELERATE, str(tmp_path / "c")],
        env=env | dict(RANK=str(r), LOCAL_RANK=str(r)),
        stdout=subprocess.PIPE,
        text=True,
    )
    said = [p.communicate()[0].split(None, 2) for p in [run(0), run(1)]]
    assert [s[:2] for s in said] == [["0", "2"], ["1", "2"]]
    a, b = (json.loads(s[2]) for s in said)
    assert len(a) == len(b) and set(a) | set(b) == set(range(20)) and set(a[:8]).isdisjoint(b[:8])


def test_mmengine_trains_two_steps(tmp_path):
    "The cache under the Runner of mmengine, an optional extra."
    pytest.importorskip("mmengine", reason="mmengine is an optional extra: pip install mmengine")
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(8, 8), []

        def forward(self, latents, index, condition=None, mode="loss"):
            self.seen.append((index.tolist(), condition.tolist()))
            return dict(loss=(self.layer(latents.flatten(2)) - latents.flatten(2)).square().mean())

    write(tmp_path / "c")
    cache, model = LatentCache(tmp_path / "c", "digit"), Model()
    before = model.layer.weight.clone()
    loader = torch.utils.data.DataLoader(
        cache, 4, sampler=ShardedSampler(cache, seed=1), collate_fn=LatentCache.collate
    )
    runner = Runner(
        model,
        str(tmp_path / "work"),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=2),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_scope="mmengine",
        default_hooks=dict(checkpoint=None),
        log_level="ERROR",
    )
    runner.train()
    order = list(ShardedSampler(cache, seed=1))
    assert [i for i, _ in model.seen] == [order[:4], order[4:8]] and runner.iter == 2
    assert [c for _, c in model.seen] == [[[i % 7] for i in o] for o in (order[:4], order[4:8])]
    assert not torch.equal(before, model.layer.weight), "the weights must move"
