"""`fit` on clips of several shapes: one bucket a batch, an order that is a pure function of (seed,
step)."""

import json
from collections import Counter

import pytest
import torch
from helpers.train import (  # noqa: F401
    SHAPES,
    SIZES,
    AnySize,
    Part,
    equal,
    go,
    interruptible,
    log_of,
    parts,
    same,
    together,
)

from minisora.interpolants import Interpolant
from minisora.train import BatchTooLarge, NonFiniteLoss, estimate_cost, validation_loss
from minisora.training.batches import BucketBatchOrder, BucketDataset
from minisora.training.checkpoint import load_checkpoint


def run(out, data=None, net=None, **change):
    options = dict(batch_size=SIZES, valid=BucketDataset(parts((9, 7, 8)))) | change
    return go(out, data=data or BucketDataset(parts()), net=net or AnySize(), **options)


# ------------------------------------------------------------------------------------- the order


@pytest.mark.parametrize(
    "numbers, sizes",
    [
        ((30, 21, 50), (4, 8, 16)),
        ((3, 1, 100), (8, 8, 8)),
        ((7, 7, 7), (7, 7, 7)),
        ((2, 3, 5), (16, 4, 2)),
    ],
    ids=str,
)
def test_every_sample_comes_once_an_epoch(numbers, sizes):
    "Each bucket runs through epochs of its own, and the buckets keep pace with each other."
    names = list(SIZES)
    bucket_of = [n for n, k in zip(names, numbers) for _ in range(k)]
    order = BucketBatchOrder(bucket_of, dict(zip(names, sizes)), seed=3)
    epochs = 11
    seen = Counter()
    last = sum(order.batches_before(b, epochs) for b in names)
    for step in range(last):
        index = order.indices(step).tolist()
        assert {bucket_of[i] for i in index} == {order.locate(step)[0]}  # one bucket a batch
        assert len(index) == dict(zip(names, sizes))[order.locate(step)[0]]
        seen.update(index)
    for b, n, size in zip(names, numbers, sizes):
        counts = [seen[i] for i, k in enumerate(bucket_of) if k == b]
        assert min(counts) >= epochs and sum(counts) - epochs * n < size


def test_order_is_a_pure_function_of_seed_and_step():
    bucket_of = BucketDataset(parts()).bucket_of
    a, b = (BucketBatchOrder(bucket_of, SIZES, seed=1) for _ in range(2))
    want = [a.indices(s).tolist() for s in range(80)]
    assert [b.indices(s).tolist() for s in reversed(range(80))] == want[::-1]
    other = BucketBatchOrder(bucket_of, SIZES, seed=2)
    assert [other.locate(s)[0] for s in range(80)] != [a.locate(s)[0] for s in range(80)]
    turns = [a.locate(s)[0] for s in range(14)]
    assert len(set(turns[:7])) > 1 and turns != sorted(turns)  # shuffled, not one by one


def test_epoch_is_that_of_the_bucket():
    data = BucketDataset(parts())
    run(None, data=data, steps=30, valid=None)
    for name, d in data.datasets.items():
        asked = d.seen[
            -Counter(BucketBatchOrder(data.bucket_of, SIZES).locate(s)[0] for s in range(30))[
                name
            ] :
        ]
        assert [e for e, _ in asked] == [k * SIZES[name] // len(d) for k in range(len(asked))]


def test_one_bucket_is_plain_data(tmp_path):
    "And the same bits as without buckets."
    part = dict(long=(torch.randn(30, 1, 4, 2, 2), torch.zeros(30, 1, dtype=torch.long)))
    go(tmp_path / "a", data=part["long"], valid=None)
    go(tmp_path / "b", data=BucketDataset(part), valid=None)
    same(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="a dict is for data in several buckets"):
        go(None, data=BucketDataset(part), batch_size={"long": 4})


# ------------------------------------------------------------------------------------- training


def test_batches_have_the_shapes_of_their_buckets():
    shapes = []

    class Watch(AnySize):
        def forward(self, x, t, y=None):
            if self.training:
                shapes.append(tuple(x.shape))
            return super().forward(x, t, y)

    data = BucketDataset(parts())
    done = run(None, data=data, net=Watch(), steps=20, accumulate=2, valid=None)
    order = BucketBatchOrder(data.bucket_of, {b: 2 * n for b, n in SIZES.items()})
    want = [
        (SIZES[b], *SHAPES[b]) for b in (order.locate(s)[0] for s in range(20)) for _ in range(2)
    ]
    assert shapes == want and len(set(shapes)) == 3 and done.step == 20


@pytest.mark.parametrize(
    "options, stops",
    [
        ({}, (1,)),
        ({}, (13, 27)),
        (dict(workers=2), (16,)),
        (dict(accumulate=2, optimizer="adamw", more_ema=(0.5,)), (7, 8, 39)),
    ],
    ids=str,
)
def test_resumed_equals_straight(tmp_path, options, stops):
    "In the middle of an epoch, with and without worker processes, bit for bit."
    run(tmp_path / "a", **{**options, "workers": 0})
    for stop in (*stops, None):
        run(tmp_path / "b", stop_at=stop, **options)
    same(tmp_path / "a", tmp_path / "b")


def test_two_processes_equal_one(tmp_path):
    run(tmp_path / "one", net=AnySize(dropout=0), clip=0.5)

    def job(rank):
        data = BucketDataset(parts())
        run(tmp_path / "two", data=data, net=AnySize(dropout=0), clip=0.5)
        seen = {
            name: [s for s in d.seen if len(s[1]) > 1] for name, d in data.datasets.items()
        }  # not the looks at a shape
        (tmp_path / f"seen{rank}").write_text(json.dumps(seen))

    assert together(job, tmp_path) == ["", ""]
    equal(tmp_path / "one", tmp_path / "two")
    a, b = (json.loads((tmp_path / f"seen{r}").read_text()) for r in range(2))
    assert all(
        len(a[n]) == len(b[n]) > 3
        and all(len(p[1]) == len(q[1]) == SIZES[n] / 2 for p, q in zip(a[n], b[n]))
        for n in SIZES
    )


def test_validation_over_buckets():
    "Every held-out sample, in batches of one bucket; the grouping does not change the loss."
    net = AnySize()
    data = BucketDataset(parts((9, 7, 8)))
    a, b = (validation_loss(net, data, Interpolant(), bins=4, batch_size=n) for n in (2, 24))
    assert a[0] == pytest.approx(b[0], rel=1e-5) and a[1] == pytest.approx(b[1], rel=1e-5)
    seen = Counter(i for d in data.datasets.values() for _, index in d.seen for i in index)
    assert sum(seen.values()) == 2 * 24 and {len(d.seen) > 1 for d in data.datasets.values()} == {
        True
    }


def test_estimate_takes_the_dearest_bucket():
    e = estimate_cost(AnySize(), BucketDataset(parts()), Interpolant(), batch_size=SIZES)
    wide = parts()["wide"]  # 8 × 32 values, long 4 × 24, still 16 × 6
    assert (
        e.batch_size == 8
        and e.activations == estimate_cost(AnySize(), wide, Interpolant(), batch_size=8).activations
    )


# ------------------------------------------------------------ what goes wrong


def test_out_of_memory_in_one_bucket(tmp_path):
    class Tight(AnySize):
        def forward(self, x, t, y=None):
            if self.training and x.numel() > 150:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(x, t, y)

    with pytest.raises(BatchTooLarge, match="batch_size=8 does not fit; 4 fits, with accumulate=2"):
        run(None, net=Tight())
    done = run(None, net=Tight(), on_oom="accumulate")
    assert done.step == 40 and done.log[-1]["parts"] == 2


def test_a_broken_sample_is_named(tmp_path):
    with pytest.raises(NonFiniteLoss) as e:
        run(tmp_path, data=BucketDataset(parts(wide=5)))
    losses = load_checkpoint(e.value.path).state["losses"]
    assert [i for i, loss in zip(e.value.indices, losses) if loss == "nan"] == [
        30 + 5
    ]  # after the 30 long ones


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(batch_size={"long": 4, "wide": 8}), "batch_size: no number for bucket 'still'"),
        (dict(batch_size=SIZES | {"tall": 4}), "batch_size: the data have no bucket 'tall'"),
        (dict(batch_size=SIZES | {"wide": 0}), "batch_size must be a whole number from 1, not 0"),
        (
            dict(batch_size=SIZES | {"wide": 2.5}),
            "batch_size must be a whole number from 1, not 2.5",
        ),
    ],
)
def test_bad_batch_sizes(change, message):
    with pytest.raises(ValueError, match=message):
        run(None, **change)


def test_bad_parts():
    with pytest.raises(ValueError, match="bucket 'long' is empty"):
        BucketDataset(dict(long=torch.zeros(0, 1, 1, 1, 1)))
    with pytest.raises(ValueError, match="bucket 'long' must be a map-style dataset"):
        BucketDataset(dict(long=7))


@pytest.mark.parametrize(
    "field, change",
    [
        ("recipe.batch_size.wide", dict(batch_size=SIZES | {"wide": 4})),
        (
            "data.buckets.still",
            dict(data=BucketDataset(parts((30, 21, 50)) | {"still": Part((1, 1, 2, 3), 50, 2)})),
        ),
        ("data.length", dict(data=BucketDataset(parts((30, 22, 50))))),
    ],
    ids=str,
)
def test_another_run_is_refused_by_field(tmp_path, field, change):
    run(tmp_path, steps=3)
    with pytest.raises(ValueError, match=rf"{field} is .* in the checkpoint"):
        run(tmp_path, steps=3, **change)


def test_an_odd_bucket_cannot_be_split(tmp_path):
    said = together(lambda rank: run(tmp_path / "run", batch_size=SIZES | {"wide": 7}), tmp_path)
    assert (
        "ValueError: batch_size=7 cannot be split evenly over 2 processes" in said
    )  # the other may miss it then
    assert all(said) and not (tmp_path / "run").exists()
