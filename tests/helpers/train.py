"""What the tests of training share: the smallest models and data, runs, and processes."""

import json
import math
import os
import signal
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from minisora.interpolants import Interpolant
from minisora.models.conditions import WordCondition
from minisora.models.layers import BlockConfig
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import fit
from minisora.training.checkpoint import load_checkpoint


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C works in these tests, even where they run in the background and the shell has switched
    it off."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@dataclass(frozen=True)
class Config:
    width: int = 16
    vocab: int = 5


class Net(nn.Module):
    """The smallest model with the call protocol of a DiT; dropout and a counting buffer make
    resuming harder."""

    def __init__(self, config=Config(), dropout=0.1):
        super().__init__()
        self.config = config
        self.null_id = config.vocab
        self.condition = nn.Embedding(config.vocab + 1, config.width)
        self.first = nn.Linear(16 + 1, config.width)
        self.last = nn.Linear(config.width, 16)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("scale", torch.ones(()))
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=g) * 0.2)

    def forward(self, x, t, y=None):
        if self.training:
            self.calls += 1
            self.scale.mul_(1.001)
        y = torch.full((len(x), 1), self.null_id) if y is None else y
        h = self.first(torch.cat([x.flatten(1), t[:, None]], 1)) + self.condition(y).mean(1)
        return self.last(self.dropout(h.relu())).view_as(x) * self.scale


class Data:
    """A map-style dataset of ready batches, as the latent cache is; `slow` seconds each; sample
    `bad` is NaN."""

    def __init__(self, n=50, slow=0, bad=None):
        g = torch.Generator().manual_seed(1)
        self.x = torch.randn(n, 1, 4, 2, 2, generator=g)
        self.y = torch.randint(0, 5, (n, 1), generator=g)
        if bad is not None:
            self.x[bad] = math.nan
        self.slow = slow
        self.seen = []

    def __len__(self):
        return len(self.x)

    def __getitems__(self, index):
        time.sleep(self.slow)
        self.seen.append(list(index))
        return dict(latents=self.x[index], condition=self.y[index], index=torch.tensor(index))


RECIPE = dict(
    steps=40,
    batch_size=8,
    lr=1e-2,
    warmup=5,
    log_every=7,
    save_every=9,
    valid_every=10,
    progress=False,
)


def go(out, data=None, net=None, **change):
    options = RECIPE | dict(valid=Data(20)) | change
    if options["valid"] is None:
        options.pop("valid_every")
    net = Net() if net is None else net
    data = Data() if data is None else data
    return fit(net, data, options.pop("objective", Interpolant()), out=out, **options)


def log_of(out):
    return [json.loads(s) for s in (Path(out) / "log.jsonl").read_text().splitlines()]


def timeless(log):
    return [{k: v for k, v in r.items() if "second" not in k} for r in log]


def same(a, b):
    "All tensors, the running sums and the log of two runs are equal, bit for bit."
    assert timeless(log_of(a)) == timeless(log_of(b)) and len(log_of(a)) > 5
    a = load_checkpoint(a)
    b = load_checkpoint(b)
    for part in ("model", "ema", "optimizer"):
        p = getattr(a, part)
        q = getattr(b, part)
        assert p.keys() == q.keys() and len(p) > 5
        for k in p:
            assert torch.equal(p[k], q[k]), (part, k)
    assert (a.step, a.state["sums"], a.state["count"]) == (
        b.step,
        b.state["sums"],
        b.state["count"],
    )


def forked(job, says=os.devnull):
    """Run `job` in a process of its own, its error's message into the file `says`; returns the pid
    at once."""
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        job()
    except BaseException as e:
        Path(says).write_text(f"{type(e).__name__}: {e}")
    finally:
        os._exit(0)


def wait_until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the other process does nothing"
        time.sleep(0.002)


class Greedy(Net):
    "Runs out of memory with more than `most` samples in training."

    most = 5

    def forward(self, x, t, y=None):
        if self.training and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x, t, y)


def weights(module):
    return torch.cat([v.flatten().double() for v in module.state_dict().values()])


SMALL = VideoDiTConfig(
    size=(4, 2, 2),
    channels=1,
    patch=(1, 2, 2),
    width=16,
    depth=4,
    heads=2,
    condition=WordCondition(5),
)


def video(**change):
    "A small `VideoDiT` for the latents of `Data`."
    return VideoDiT(replace(SMALL, **change))


class Pure(Greedy):
    "Without the buffer that each forward pass changes: the parts of a batch then are the batch."

    def forward(self, x, t, y=None):
        self.scale.fill_(1 / 1.001)
        return super().forward(x, t, y)


TINY = VideoDiTConfig(
    size=(4, 4, 4),
    channels=2,
    patch=(2, 2, 2),
    width=16,
    depth=3,
    heads=2,
    block=BlockConfig(qk_norm=True),
    condition=WordCondition(5),
)


def awake(config=TINY):
    "A VideoDiT that does not answer zero: fresh adaLN and output layers do."
    model = VideoDiT(config)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.copy_(torch.randn(p.shape, generator=g) * 0.1)
    return model


def clips(n=30):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, 4, 4, 4, generator=g), torch.randint(0, 5, (n, 1), generator=g)


def train_dit(out=None, model=None, **change):
    options = (
        dict(steps=12, batch_size=4, lr=1e-2, warmup=2, log_every=4, save_every=5, progress=False)
        | change
    )
    return fit(
        model or awake(), clips(), options.pop("objective", Interpolant()), out=out, **options
    )


SIZES = {"long": 4, "wide": 8, "still": 16}


SHAPES = {"long": (1, 6, 2, 2), "wide": (1, 4, 2, 4), "still": (1, 1, 3, 2)}


class AnySize(nn.Module):
    "A model for clips of any shape, with dropout and a buffer, as `Net` has."

    def __init__(self, dropout=0.1):
        super().__init__()
        self.null_id = 5
        self.condition = nn.Embedding(6, 8)
        self.first = nn.Conv3d(2, 8, 3, padding=1)
        self.last = nn.Conv3d(8, 1, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("scale", torch.ones(()))
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=g) * 0.2)

    def forward(self, x, t, y=None):
        if self.training:
            self.scale.mul_(1.001)
        y = torch.full((len(x), 1), 5) if y is None else y
        h = self.first(torch.cat([x, t.view(-1, 1, 1, 1, 1).expand_as(x)], 1))
        return (
            self.last(self.dropout((h + self.condition(y).mean(1).view(-1, 8, 1, 1, 1)).relu()))
            * self.scale
        )


class Part(torch.utils.data.Dataset):
    "A bucket's data, as the latent cache is; remembers what it was asked for, in which epoch."

    def __init__(self, shape, n, seed, bad=None):
        g = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, *shape, generator=g)
        self.y = torch.randint(0, 5, (n, 1), generator=g)
        if bad is not None:
            self.x[bad] = torch.nan
        self.seen = []
        self.epoch = 0

    def __len__(self):
        return len(self.x)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitems__(self, index):
        self.seen.append((self.epoch, [int(i) for i in index]))
        return dict(
            latents=self.x[index] + self.epoch,
            condition=self.y[index],
            index=torch.as_tensor(index),
        )


def parts(numbers=(30, 21, 50), **bad):
    return {
        name: Part(shape, n, k, bad.get(name))
        for k, ((name, shape), n) in enumerate(zip(SHAPES.items(), numbers))
    }


FULL = dict(accumulate=2, clip=0.5, schedule="linear", weight_decay=0.1)


# a run of `train_dit` in which everything acts
DIT_OPTIONS = dict(
    batch_size=8,
    clip=0.05,
    weight_decay=0.1,
    accumulate=2,
    more_ema=(0.2,),
    log_every=2,
    schedule="linear",
    lr=2e-3,
)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(job, says, world=2):
    """Run `job(rank)` in `world` forked processes, with the environment that torchrun would give
    them."""
    port = free_port()
    pids = []

    def work(rank):
        os.environ.update(
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            WORLD_SIZE=str(world),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(world),
            OMP_NUM_THREADS="1",
        )
        job(rank)

    for rank in range(world):
        pids.append(forked(lambda rank=rank: work(rank), says.with_name(f"{says.name}{rank}")))
    return pids


def together(job, tmp_path, world=2):
    """As `start`, until all have ended; returns what they said, one text a rank ('' where all went
    well)."""
    says = tmp_path / "says"
    for pid in start(job, says, world):
        os.waitpid(pid, 0)
    files = [says.with_name(f"says{rank}") for rank in range(world)]
    return [f.read_text() if f.exists() else "" for f in files]


def equal(a, b, tolerance=1e-5):
    "All tensors and all numbers of the log agree to `tolerance`."
    timeless = [
        [{k: v for k, v in r.items() if "second" not in k} for r in log_of(out)] for out in (a, b)
    ]
    assert [r.keys() for r in timeless[0]] == [r.keys() for r in timeless[1]] and len(
        timeless[0]
    ) > 5
    for p, q in zip(*timeless):
        for k in p:
            assert p[k] == pytest.approx(q[k], rel=tolerance, abs=tolerance), (p["step"], k)
    a = load_checkpoint(a)
    b = load_checkpoint(b)
    assert a.step == b.step and a.state["config"] == b.state["config"]
    for part in ("model", "ema", "optimizer"):
        p = getattr(a, part)
        q = getattr(b, part)
        assert p.keys() == q.keys() and len(p) > 5
        for k in p:
            assert torch.allclose(p[k], q[k], rtol=tolerance, atol=tolerance), (part, k)


def randomized(model, std=0.2, seed=1):
    "Give every weight a random value: a fresh DiT outputs zero, whatever is wrong inside."
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=g) * std
    return model
