"""`fit` in several processes gives the numbers of one: two gloo processes on the CPU against one.
`fit` in several processes gives the numbers of one: two gloo processes on the CPU against one."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import accelerate  # before the forks, so that each need not import it: DDP imports the next two
import pytest
import torch
import torch._dynamo
import torch.distributed.tensor
from helpers.train import (  # noqa: F401
    FULL,
    TINY,
    Data,
    Net,
    clips,
    equal,
    free_port,
    go,
    interruptible,
    log_of,
    randomized,
    start,
    together,
    wait_until,
)

from minisora import train
from minisora.interpolants import Interpolant
from minisora.models.layouts import Checkpointed, Factorized, Routed
from minisora.temporal import VideoDiT
from minisora.train import fit, validation_loss
from minisora.training import run_folder
from minisora.training.batches import BucketDataset, batch_indices
from minisora.training.checkpoint import latest_checkpoint, load_checkpoint
from minisora.training.distributed import join_processes


def launched(launcher, out, **options):
    "Run `go(out, **options)` in a script of its own under a launcher."
    script = Path(out).with_name("script.py")
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import torch; torch.set_num_threads(1)\n"
        "from helpers.train import Net, go\n"
        f"go({str(out)!r}, net=Net(dropout=0), **{options!r})\n"
    )
    command = {
        "torchrun": [
            "-m",
            "torch.distributed.run",
            "--nproc-per-node=2",
            "--master-addr=127.0.0.1",
        ],
        "accelerate": [
            "-m",
            "accelerate.commands.launch",
            "--cpu",
            "--num_processes=2",
            "--num_machines=1",
            "--mixed_precision=no",
            "--dynamo_backend=no",
            "--main_process_ip=127.0.0.1",
        ],
    }[launcher]
    port = {"torchrun": "--master-port", "accelerate": "--main_process_port"}[launcher]
    paths = os.pathsep.join(
        [str(Path(train.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    for _ in range(
        3
    ):  # under load, gloo's threads sometimes abort a process that has done its work
        done = subprocess.run(
            [sys.executable, *command, f"{port}={free_port()}", str(script)],
            text=True,
            capture_output=True,
            env=dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS="1"),
            timeout=300,
        )
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "A run of 40 steps in one process."
    out = tmp_path_factory.mktemp("alone")
    go(out, net=Net(dropout=0), **FULL)
    return out


def test_torchrun_equals_one_process(alone, tmp_path):
    launched("torchrun", tmp_path / "run", **FULL)
    equal(alone, tmp_path / "run")


def test_accelerate_launch_goes_on_from_one_process_and_back(alone, tmp_path):
    "One process to step 13, two to 27, one to the end."
    out = tmp_path / "run"
    go(out, net=Net(dropout=0), stop_at=13, **FULL)
    launched("accelerate", out, stop_at=27, **FULL)
    assert load_checkpoint(out).step == 27
    go(out, net=Net(dropout=0), **FULL)
    equal(alone, out)


def test_four_processes_with_worker_processes(alone, tmp_path):
    "Different initial weights on the other ranks do not matter: all start from those of rank 0."

    def job(rank):
        net = Net(dropout=0)
        if rank:
            net.last.weight.data += rank
        go(tmp_path / "run", net=net, workers=rank % 2, **FULL)

    assert together(job, tmp_path, world=4) == [""] * 4
    equal(alone, tmp_path / "run")


def test_each_process_takes_its_own_samples(tmp_path):
    def job(rank):
        data = Data()
        go(None, data=data, net=Net(), steps=6, valid=None)
        (tmp_path / f"seen{rank}").write_text(
            json.dumps(data.seen[-6:])
        )  # the first looks are for shapes and one loss

    assert together(job, tmp_path) == ["", ""]
    seen = [json.loads((tmp_path / f"seen{rank}").read_text()) for rank in range(2)]
    for s in range(6):
        want = batch_indices(0, s, 8, 50).tolist()
        assert [seen[0][s], seen[1][s]] == [want[0::2], want[1::2]]


def test_only_rank_0_writes_and_draws(tmp_path):
    calls = tmp_path / "calls"
    calls.mkdir()

    def job(rank):
        real = run_folder.save_checkpoint

        def write(path, *rest):
            (calls / f"write{rank}").touch()
            return real(path, *rest)

        run_folder.save_checkpoint = write
        done = go(
            tmp_path / "run", steps=5, on_sample=lambda step, ema: (calls / f"sample{rank}").touch()
        )
        assert done.path == latest_checkpoint(tmp_path / "run") and done.log[-1]["step"] == 5

    assert together(job, tmp_path) == ["", ""]
    assert sorted(p.name for p in calls.iterdir()) == ["sample0", "write0"]
    assert [r["step"] for r in log_of(tmp_path / "run")] == [1, 5]


def test_processes_return_the_same_model(tmp_path):
    def job(rank):
        done = go(tmp_path / "run", steps=8)
        weights = torch.cat(
            [v.flatten().double() for m in (done.model, done.ema) for v in m.state_dict().values()]
        )
        (tmp_path / f"sum{rank}").write_text(repr(weights.sum().item()))

    assert together(job, tmp_path) == ["", ""]
    assert (tmp_path / "sum0").read_text() == (tmp_path / "sum1").read_text()


def test_a_signal_to_one_process_stops_all_at_one_step(alone, tmp_path):
    out = tmp_path / "run"
    pids = start(
        lambda rank: go(out, net=Net(dropout=0), data=Data(slow=0.05), **FULL), tmp_path / "says"
    )
    wait_until(lambda: (out / "log.jsonl").exists() and (out / "log.jsonl").read_text())
    os.kill(pids[1], signal.SIGTERM)
    for pid in pids:
        os.waitpid(pid, 0)
    said = [(tmp_path / f"says{r}").read_text() for r in range(2)]
    step = load_checkpoint(out).step
    assert 1 <= step < 40 and all(
        s.startswith(f"Interrupted: SIGTERM at step {step} of 40; saved") for s in said
    )
    go(out, net=Net(dropout=0), **FULL)
    equal(alone, out)


def test_nonfinite_loss_of_one_process_stops_all(tmp_path):
    """The second sample of the first batch is broken: all refuse the step; the losses stand in the
    batch's order."""
    first = batch_indices(0, 0, 8, 50).tolist()
    said = together(
        lambda rank: go(tmp_path / "run", data=Data(bad=first[1]), net=Net(dropout=0)), tmp_path
    )
    assert all(s.startswith("NonFiniteLoss: the loss is not finite at step 0") for s in said)
    saved = load_checkpoint(tmp_path / "run" / "checkpoints" / "nonfinite-00000000").state
    assert saved["indices"] == first and [loss == "nan" for loss in saved["losses"]] == [
        i == 1 for i in range(8)
    ]


def test_a_batch_that_cannot_be_split(tmp_path):
    said = together(lambda rank: go(tmp_path / "run", batch_size=7), tmp_path)
    assert said == ["ValueError: batch_size=7 cannot be split evenly over 2 processes"] * 2
    assert not (tmp_path / "run").exists()


def test_another_run_is_refused_on_every_process(alone, tmp_path):
    said = together(lambda rank: go(alone, net=Net(dropout=0), **{**FULL, "lr": 0.5}), tmp_path)
    assert all(s.startswith("ValueError: cannot resume from") and "recipe.lr" in s for s in said)


def test_validation_is_shared(tmp_path):
    want = validation_loss(Net(), Data(37), Interpolant(), bins=5, batch_size=4)

    def job(rank):
        data = Data(37)
        got = validation_loss(
            Net(), data, Interpolant(), bins=5, batch_size=4, processes=join_processes("cpu")
        )
        (tmp_path / f"got{rank}").write_text(json.dumps([got, sum(len(s) for s in data.seen)]))

    join_processes("cpu")

    def joined(rank):
        accelerate.PartialState(cpu=True)
        job(rank)

    assert together(joined, tmp_path) == ["", ""]
    (a, n), (b, m) = (json.loads((tmp_path / f"got{rank}").read_text()) for rank in range(2))
    assert (
        a == b
        and a[0] == pytest.approx(want[0], rel=1e-5)
        and a[1] == pytest.approx(want[1], rel=1e-5)
    )
    assert n + m == 37 and min(n, m) > 12


ROUTED = Routed(0.5, blocks=(2, 4))


@pytest.mark.parametrize(
    "shard, wrappers, options",
    [
        (False, [ROUTED], dict(relative_bias=True)),
        (True, [ROUTED], dict(relative_bias=True)),
        (False, [Checkpointed(), ROUTED], dict(layout=Factorized(), variable_size=True)),
    ],
    ids=str,
)
def test_routed_tokens_belong_to_the_sample(shard, wrappers, options, tmp_path):
    """In two processes the tokens of a sample skip the blocks that they would have skipped in one.

    `variable_size`: clips in buckets."""
    config = replace(TINY, depth=4, **options)

    def run(out, wrappers=()):
        x, y = clips()
        data = x, y
        if config.variable_size:
            data = BucketDataset(dict(long=(x[:18], y[:18]), short=(x[18:, :, :2], y[18:])))
        fit(
            randomized(VideoDiT(config)),
            data,
            Interpolant(),
            out=out,
            steps=6,
            batch_size=8,
            lr=1e-3,
            log_every=1,
            progress=False,
            shard=shard,
            wrappers=wrappers,
        )

    run(tmp_path / "alone", wrappers)
    assert together(lambda rank: run(tmp_path / "two", wrappers), tmp_path) == ["", ""]
    equal(tmp_path / "alone", tmp_path / "two")
    run(tmp_path / "plain")
    assert abs(log_of(tmp_path / "plain")[-1]["loss"] - log_of(tmp_path / "two")[-1]["loss"]) > 1e-3
