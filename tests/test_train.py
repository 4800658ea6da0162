"""`fit` keeps its promises: exact resume, whole checkpoints, errors that say what and where."""

import copy
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from minisora import train
from minisora.interpolants import Interpolant
from minisora.train import (
    CheckpointError,
    Interrupted,
    NonFiniteLoss,
    OutOfMemory,
    batch_indices,
    fit,
    latest_checkpoint,
    learning_rate,
    load_checkpoint,
    validate,
)


@pytest.fixture(autouse=True)
def interruptible():
    "Ctrl-C works in these tests, even where they run in the background and the shell has switched it off."
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@dataclass(frozen=True)
class Config:
    width: int = 16
    vocab: int = 5


class Net(nn.Module):
    "The smallest model with the call protocol of a DiT; dropout and a counting buffer make resuming harder."

    def __init__(self, config=Config(), dropout=0.1):
        super().__init__()
        self.config, self.null_id = config, config.vocab
        self.condition = nn.Embedding(config.vocab + 1, config.width)
        self.first, self.last = nn.Linear(16 + 1, config.width), nn.Linear(config.width, 16)
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
    "A map-style dataset of ready batches, as the latent cache is; `slow` seconds each; sample `bad` is NaN."

    def __init__(self, n=50, slow=0, bad=None):
        g = torch.Generator().manual_seed(1)
        self.x, self.y = (
            torch.randn(n, 1, 4, 2, 2, generator=g),
            torch.randint(0, 5, (n, 1), generator=g),
        )
        if bad is not None:
            self.x[bad] = math.nan
        self.slow, self.seen = slow, []

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
    net, data = Net() if net is None else net, Data() if data is None else data
    return fit(net, data, options.pop("objective", Interpolant()), out=out, **options)


def log_of(out):
    return [json.loads(s) for s in (Path(out) / "log.jsonl").read_text().splitlines()]


def timeless(log):
    return [{k: v for k, v in r.items() if "second" not in k} for r in log]


def same(a, b):
    "All tensors, the running sums and the log of two runs are equal, bit for bit."
    assert timeless(log_of(a)) == timeless(log_of(b)) and len(log_of(a)) > 5
    a, b = load_checkpoint(a), load_checkpoint(b)
    for part in ("model", "ema", "optimizer"):
        p, q = getattr(a, part), getattr(b, part)
        assert p.keys() == q.keys() and len(p) > 5
        for k in p:
            assert torch.equal(p[k], q[k]), (part, k)
    assert (a.step, a.state["sums"], a.state["count"]) == (
        b.step,
        b.state["sums"],
        b.state["count"],
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "A run of 40 steps without a break."
    out = tmp_path_factory.mktemp("straight")
    go(out)
    return out


# ------------------------------------------------------------------------------------- 1: exact resume


@pytest.mark.parametrize("stops", [(1,), (13, 27), (7, 8, 39)], ids=str)
def test_resumed_equals_straight(straight, tmp_path, stops):
    for stop in stops:
        assert go(tmp_path, stop_at=stop).step == stop
    done = go(tmp_path)
    assert done.step == 40 and same(straight, tmp_path) is None
    assert timeless(done.log) == timeless(log_of(tmp_path))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_resume(tmp_path, schedule):
    go(tmp_path / "a", schedule=schedule, accumulate=2, clip=0.1)
    go(tmp_path / "b", schedule=schedule, accumulate=2, clip=0.1, stop_at=17)
    go(tmp_path / "b", schedule=schedule, accumulate=2, clip=0.1)
    same(tmp_path / "a", tmp_path / "b")


def test_more_steps_equal_a_longer_run(straight, tmp_path):
    "With a constant rate a finished run can be made longer; its extra last log line goes away."
    assert go(tmp_path, steps=24).log[-1]["step"] == 24
    go(tmp_path)
    same(straight, tmp_path)


def test_workers_do_not_change_the_result(straight, tmp_path):
    go(tmp_path, workers=2, stop_at=16)
    go(tmp_path, workers=1)
    same(straight, tmp_path)


def test_finished_run_is_not_trained_again(straight):
    before = latest_checkpoint(straight).stat().st_mtime_ns
    again = go(straight)
    assert again.step == 40 and latest_checkpoint(straight).stat().st_mtime_ns == before
    assert all(
        torch.equal(v, load_checkpoint(straight).ema[k]) for k, v in again.ema.state_dict().items()
    )


def test_cpu_minutes_add_up(tmp_path):
    first = go(tmp_path, stop_at=20)
    second = go(tmp_path)
    saved = (
        load_checkpoint(first.path if first.path.exists() else tmp_path).state["cpu_seconds"] / 60
    )
    assert second.cpu_minutes > saved > 0 and second.cpu_minutes > first.cpu_minutes * 1.2
    seconds = [r["cpu_seconds"] for r in second.log]
    assert seconds == sorted(seconds)


def test_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(5)
    want = torch.rand(3)
    net = Net()
    torch.manual_seed(5)
    go(None, net=net, steps=3)
    assert torch.equal(torch.rand(3), want)


def test_global_generator_does_not_matter(straight, tmp_path):
    torch.manual_seed(99)
    go(tmp_path, stop_at=11)
    torch.manual_seed(7)
    go(tmp_path)
    same(straight, tmp_path)


def test_batches_cover_every_epoch():
    for n, b in ((10, 4), (7, 16), (16, 4)):
        seen = torch.cat([batch_indices(0, s, b, n) for s in range(3 * n)])
        assert all(
            seen[e * n : (e + 1) * n].sort().values.tolist() == list(range(n)) for e in range(3 * b)
        )
    first = batch_indices(0, 0, 50, 50)
    assert not first.equal(batch_indices(0, 1, 50, 50)) and not first.equal(
        batch_indices(1, 0, 50, 50)
    )


def test_every_epoch_is_told_to_the_data():
    class Epochs(Data):
        def set_epoch(self, epoch):
            self.seen.append(epoch)

    data = Epochs(16)
    go(None, data=data, steps=5, valid=None)
    assert [s for s in data.seen if isinstance(s, int)] == [0, 0, 1, 1, 2]


# ------------------------------------------------------------------------------------- 2, 3: checkpoints


def forked(job, says=os.devnull):
    "Run `job` in a process of its own, its error's message into the file `says`; returns the pid at once."
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


def test_kill_9_at_any_moment(straight, tmp_path):
    """Killed at 25 random moments, saving at every step: what is on the disk always loads and never goes back,
    and the end is the end of a straight run."""
    chance, newest, killed, busy = random.Random(0), 0, 0, 0
    while killed < 25:
        before = latest_checkpoint(tmp_path)
        pid = forked(lambda: go(tmp_path, save_every=1))
        wait_until(lambda old=before: latest_checkpoint(tmp_path) != old)  # until it is at work
        time.sleep(0.03 * chance.random())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
        busy += any((tmp_path / "checkpoints").glob(".*.part"))
        step = load_checkpoint(tmp_path).step
        assert step >= newest
        newest = step
        if step >= 38:
            shutil.rmtree(tmp_path)
            newest = 0
    assert busy, "no kill fell into a write: the test does not test"
    go(tmp_path)
    same(straight, tmp_path)


def test_kill_9_at_every_file_operation_of_a_write(tmp_path):
    "Die before each file operation of a save (over 50) in turn: the newest checkpoint is the old or the new one."
    options = dict(keep=1, more_ema=[k / 10 for k in range(1, 10)], valid=None)
    go(tmp_path / "run", stop_at=10, **options)
    steps, survived = [], False
    while not survived:
        out = tmp_path / "copy"
        shutil.copytree(tmp_path / "run", out)
        pid = forked(lambda out=out: (die_in_save(len(steps)), go(out, stop_at=12, **options)))
        survived = not os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        steps.append(load_checkpoint(out).step)
        shutil.rmtree(out)
    assert (
        steps == sorted(steps)
        and set(steps) == {10, 12}
        and len(steps) > 50
        and steps.count(10) > 25
    ), steps


def die_in_save(number):
    "Kill this process at the file operation `number` (from 0) of the next save."
    count, real = [], train._save

    def hook(event, args):
        if count and (event == "open" or event.startswith(("os.", "shutil."))):
            if len(count) > number:
                count.clear()
                os.kill(os.getpid(), signal.SIGKILL)
            count.append(event)

    def save(run):
        count.append("begin")
        real(run)
        count.clear()

    train._save = save
    sys.addaudithook(hook)


@pytest.mark.parametrize(
    "file", [f"{n}.safetensors" for n in ("model", "ema", "optimizer")] + ["state.json"]
)
@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing"])
def test_damage_is_named(straight, tmp_path, file, harm):
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    newest = latest_checkpoint(out)
    path = newest / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(data if harm == "flipped" else path.read_bytes()[:-3])
    for attempt in (lambda: load_checkpoint(out), lambda: go(out)):
        with pytest.raises(CheckpointError) as e:
            attempt()
        assert (
            str(path) in str(e.value)
            and "step-00000036" in str(e.value)
            and "\n" not in str(e.value)
        )
    shutil.rmtree(newest)  # what the message asks for
    go(out)
    same(straight, out)


def test_retention(tmp_path):
    go(tmp_path, keep=3)
    names = [p.name for p in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-00000027", "step-00000036", "step-00000040"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_retention_keeps_a_good_one(tmp_path, monkeypatch, file):
    "If a byte of what was just written is flipped, no older checkpoint is deleted, however often that happens."
    go(tmp_path, keep=1, stop_at=10)
    real = train.write_checkpoint

    def broken(path, *rest):
        real(path, *rest)
        data = bytearray((path / file).read_bytes())
        data[len(data) // 2] ^= 4
        (path / file).write_bytes(data)
        return path

    monkeypatch.setattr(train, "write_checkpoint", broken)
    with pytest.warns(
        UserWarning, match=f"{file}: the checksum differs; no older checkpoint is deleted"
    ):
        go(tmp_path, keep=1, save_every=1, stop_at=12)
    monkeypatch.undo()
    names = [p.name for p in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-00000010", "step-00000011", "step-00000012"]
    for name in names[1:]:
        shutil.rmtree(tmp_path / "checkpoints" / name)
    assert load_checkpoint(tmp_path).step == 10


def test_retention_keeps_a_good_one_of_a_torn_write(tmp_path, monkeypatch):
    go(tmp_path, keep=1, stop_at=10)
    real = train.write_checkpoint

    def broken(path, *rest):
        real(path, *rest)
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        return path

    monkeypatch.setattr(train, "write_checkpoint", broken)
    go(tmp_path, keep=1, stop_at=12)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000010",
        "step-00000012",
    ]


def test_full_disk(tmp_path):
    "A limit on file sizes stands in for a full disk: one line, the old checkpoint loads, no half file stays."
    run, says = tmp_path / "run", tmp_path / "says"
    go(run, stop_at=10, net=Net(Config(2000)))

    def job():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        go(run, net=Net(Config(2000)))

    os.waitpid(forked(job, says), 0)
    text = says.read_text()
    assert text.startswith("CheckpointError: cannot write") and "\n" not in text
    assert "File too large" in text and "step-00000010 is safe" in text
    assert load_checkpoint(run).step == 10 and not list((run / "checkpoints").glob(".*"))


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write .*file") as e:
        go(tmp_path / "file" / "run")
    assert "\n" not in str(e.value)


def as_nobody(job, says):
    "Run `job` in a process that may not write where it must not: root gives up its rights."

    def work():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        job()

    os.waitpid(forked(work, says), 0)
    return says.read_text() if says.exists() else ""


def test_read_only_folder():
    "One that is so from the start, and one that becomes so on the way: one line, and what is safe."
    with tempfile.TemporaryDirectory() as top:  # not tmp_path, which only its owner may enter
        top = Path(top)
        says = top / "says"
        free, shut = top / "free", top / "shut"
        for folder, mode in ((top, 0o777), (free, 0o777), (shut, 0o555)):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)
        text = as_nobody(lambda: go(shut / "run"), says)
        assert (
            text.startswith("CheckpointError: cannot write")
            and str(shut) in text
            and "\n" not in text
        )
        assert "Permission denied; there is no checkpoint yet" in text and not any(shut.iterdir())
        says.unlink()
        close = lambda step, ema: (free / "run" / "checkpoints").chmod(0o555)
        text = as_nobody(lambda: go(free / "run", sample_every=11, on_sample=close), says)
        assert text.startswith("CheckpointError: cannot write") and "step-00000009 is safe" in text
        assert load_checkpoint(free / "run").step == 9
        (free / "run" / "checkpoints").chmod(0o777)
        says.unlink()
        assert as_nobody(lambda: go(free / "run", steps=12), says) == ""  # the same call goes on
        assert load_checkpoint(free / "run").step == 12


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path) is None


def test_nothing_is_pickled(straight):
    files = {p.name for p in latest_checkpoint(straight).iterdir()}
    assert files == {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"}


def test_torn_last_line_of_the_log(straight, tmp_path):
    go(tmp_path, stop_at=20)
    with open(tmp_path / "log.jsonl", "a") as f:
        f.write('{"step": 21, "lo')
    go(tmp_path)
    same(straight, tmp_path)


# ------------------------------------------------------------------------------- 4: a loss that is not finite


def test_nonfinite_loss(tmp_path):
    net, data = Net(), Data(bad=33)
    clean = next(s for s in range(10) if 33 in batch_indices(0, s, 8, 50).tolist())
    if clean:
        go(tmp_path / "want", data=data, net=Net(), stop_at=clean)
    with pytest.raises(NonFiniteLoss, match=f"loss is not finite at step {clean}") as e:
        go(tmp_path / "run", data=data, net=net)
    want = load_checkpoint(tmp_path / "want").model if clean else Net().state_dict()
    parameters = dict(net.named_parameters())
    assert all(torch.equal(p, want[k]) for k, p in parameters.items())
    saved = load_checkpoint(e.value.path)
    assert (
        saved.state["step"] == clean and saved.state["seed"] == 0 and 33 in saved.state["indices"]
    )
    again = Net()
    saved.into(again, "model")  # reproduce: the same weights, samples and noise
    index = torch.tensor(saved.state["indices"])
    noise, u = train.draw(0, clean, index, (1, 4, 2, 2))
    t = Interpolant().times(train.spread(u[:, 0]))
    loss = Interpolant().loss(again, data.x[index], data.y[index], noise, t)["loss"]
    assert loss.isnan().tolist() == [i == 33 for i in index.tolist()]


def test_nonfinite_gradient_changes_nothing(tmp_path):
    class Steep(Interpolant):
        def loss(self, model, *args):
            terms = super().loss(model, *args)
            return {"loss": terms["loss"] + (0 * model.last.weight.sum()).sqrt()}

    net = Net()
    before = {k: p.clone() for k, p in net.named_parameters()}
    with pytest.raises(NonFiniteLoss, match="gradient is not finite at step 0"):
        go(None, net=net, objective=Steep())
    assert all(torch.equal(p, before[k]) for k, p in net.named_parameters())


# ------------------------------------------------------------------------------------- 5: memory and signals


class Greedy(Net):
    "Runs out of memory with more than `most` samples in training."

    most = 5

    def forward(self, x, t, y=None):
        if self.training and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x, t, y)


def test_out_of_memory_says_what_fits():
    with pytest.raises(
        OutOfMemory, match="batch_size=32 does not fit; 4 fits, and with accumulate=8"
    ) as e:
        go(None, net=Greedy(), batch_size=32)
    assert (
        e.value.fits == 4 and go(None, net=Greedy(), batch_size=4, accumulate=8, steps=2).step == 2
    )


def test_out_of_memory_even_with_one(monkeypatch):
    monkeypatch.setattr(Greedy, "most", 0)
    with pytest.raises(OutOfMemory, match="nor does 1"):
        go(None, net=Greedy())


def test_accumulation_is_the_same_update():
    a = go(None, steps=5, batch_size=8, net=Net(dropout=0), valid=None)
    b = go(None, steps=5, batch_size=2, accumulate=4, net=Net(dropout=0), valid=None)
    pairs = [(p, q) for p, q in zip(a.model.parameters(), b.model.parameters())]
    assert all(torch.allclose(p, q, atol=0.05, rtol=0) for p, q in pairs)
    for k in ("loss", "grad_norm"):
        assert a.log[0][k] == pytest.approx(b.log[0][k], rel=1e-2)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_to_a_process(straight, tmp_path, name):
    "The step is finished and saved, the message says where, and the run goes on to the same end."
    run, says = tmp_path / "run", tmp_path / "says"
    pid = forked(lambda: go(run, data=Data(slow=0.05)), says)
    wait_until(lambda: (run / "log.jsonl").exists() and (run / "log.jsonl").read_text())
    os.kill(pid, getattr(signal, name))
    status, step = os.waitpid(pid, 0)[1], load_checkpoint(run).step
    assert status == 0 and 1 <= step < 40
    assert says.read_text().startswith(
        f"Interrupted: {name} at step {step} of 40; saved {latest_checkpoint(run)}"
    )
    go(run)
    same(straight, run)


def test_signal_handlers_come_back(tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as e:
        go(
            tmp_path,
            sample_every=11,
            on_sample=lambda step, ema: signal.raise_signal(signal.SIGTERM),
        )
    assert e.value.trained.step == 11 and isinstance(e.value, KeyboardInterrupt)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert load_checkpoint(tmp_path).step == 11


def test_second_ctrl_c_acts_at_once():
    def twice(step, ema):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt) as e:
        go(None, sample_every=3, on_sample=twice)
    assert not isinstance(e.value, Interrupted)


def test_ignored_ctrl_c_stays_ignored():
    "As in `python train.py &`: a Ctrl-C for another program must not stop the run."
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert (
        go(
            None, sample_every=11, on_sample=lambda step, ema: signal.raise_signal(signal.SIGINT)
        ).step
        == 40
    )


def test_in_another_thread(straight, tmp_path):
    t = threading.Thread(target=go, args=(tmp_path,))
    t.start()
    t.join()
    same(straight, tmp_path)


# ------------------------------------------------------------------------------------- 6: strictness


@pytest.mark.parametrize(
    "field, change",
    {
        "recipe.lr": dict(lr=2e-2),
        "recipe.batch_size": dict(batch_size=4),
        "recipe.seed": dict(seed=1),
        "recipe.schedule": dict(schedule="linear"),
        "recipe.condition_dropout": dict(condition_dropout=0.2),
        "data.length": dict(data=Data(49)),
        "model.width": dict(net=Net(Config(17))),
        "objective.path": dict(objective=Interpolant(path="gvp")),
    }.items(),
)
def test_another_run_is_refused_by_field(straight, field, change):
    before = (straight / "log.jsonl").read_text()
    with pytest.raises(ValueError, match=rf"{field} is .* in the checkpoint") as e:
        go(straight, **change)
    assert "\n" not in str(e.value) and (straight / "log.jsonl").read_text() == before


def test_fewer_steps_than_trained(straight):
    with pytest.raises(ValueError, match="past steps=30"):
        go(straight, steps=30)


def test_resume_false_refuses(straight):
    with pytest.raises(FileExistsError, match="holds a run"):
        go(straight, resume=False)


def test_wrong_weights_are_named(straight):
    c = load_checkpoint(straight)
    with pytest.raises(ValueError, match="'condition.weight' has shape"):
        c.into(Net(Config(17)))
    del c.ema["last.bias"]
    with pytest.raises(ValueError, match="has no 'last.bias'"):
        c.into(Net())


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(steps=0), "steps"),
        (dict(batch_size=1.5), "batch_size"),
        (dict(schedule="step"), "schedule"),
        (dict(precision="fp8"), "precision"),
        (dict(ema=1.1), "ema"),
        (dict(keep=0), "keep"),
        (dict(data=(torch.zeros(3, 1, 1, 1, 1), torch.zeros(2, 1))), "3 latents but 2"),
        (dict(data=torch.zeros(0, 1, 1, 1, 1)), "data is empty"),
        (dict(data=7), "map-style"),
        (dict(valid=[torch.zeros(0, 1)]), "valid is empty"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        go(None, **change)


def test_model_without_null_class():
    net = Net()
    net.null_id = None
    with pytest.raises(ValueError, match="condition_dropout: the model has no null_id"):
        go(None, net=net)
    assert go(None, net=net, condition_dropout=0, steps=2).step == 2


def test_averages_of_a_run_are_trained_again_once_they_have_gradients():
    ema = go(None, steps=3).ema
    with pytest.raises(ValueError, match="no weight of the model has requires_grad"):
        go(None, net=ema)
    assert go(None, net=copy.deepcopy(ema).requires_grad_(True), steps=3).step == 3


# ------------------------------------------------------------------------------------- what is trained


def test_it_learns():
    data = torch.ones(40, 1, 4, 2, 2), torch.zeros(40, 1, dtype=torch.long)
    log = go(None, steps=150, net=Net(dropout=0), data=data, log_every=30).log
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]


def test_condition_dropout_uses_the_null_id():
    asked = []

    class Watch(Net):
        def forward(self, x, t, y=None):
            if self.training:
                asked.append(y.clone())
            return super().forward(x, t, y)

    go(None, net=Watch(), steps=200, condition_dropout=0.25, valid=None)
    assert (torch.cat(asked) == 5).float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_unconditional():
    class Free(Net):
        def forward(self, x, t, y=None):
            assert y is None
            return super().forward(x, t, torch.zeros(len(x), 1, dtype=torch.long))

    net = Free()
    net.null_id = None
    assert go(None, net=net, data=Data().x, valid=None, steps=3).step == 3


def test_ema_and_its_buffers():
    net = Net(dropout=0)
    start = [p.clone() for p in net.parameters()]
    done = go(None, net=net, steps=1, ema=0.5, ema_warmup=False, valid=None)
    for s, p, e in zip(start, net.parameters(), done.ema.parameters()):
        assert torch.allclose(e, (s + p) / 2, atol=1e-7)
    assert done.ema.calls == net.calls and done.ema.scale == pytest.approx(
        0.5 + 0.5 * net.scale.item()
    )
    assert not any(p.requires_grad for p in done.ema.parameters()) and not done.ema.training


def test_validation_repeats_and_covers_time():
    net, times = Net(), []

    class Watch(Interpolant):
        def loss(self, model, x, y, noise, t):
            times.append(t)
            return super().loss(model, x, y, noise, t)

    a, b = (validate(net, Data(100), Watch(), bins=5, batch_size=7) for _ in range(2))
    t = torch.cat(times[: len(times) // 2])
    assert a == b and net.training and torch.histc(t, 5, 0, 1).tolist() == [20] * 5
    assert a != validate(net, Data(100), Watch(), bins=5, batch_size=7, seed=1)
    assert a == validate(net, Data(100), Watch(), bins=5, batch_size=100) or a[0] == pytest.approx(
        validate(net, Data(100), Watch(), bins=5, batch_size=100)[0], rel=1e-5
    )
    assert len(validate(net, Data(3), Watch())[1]) == 8


def test_log_fields(straight):
    log = log_of(straight)
    fields = {"loss", "lr", "grad_norm", "cpu_seconds", "wall_seconds", "samples_per_second"}
    assert [r["step"] for r in log] == [1, 7, 10, 14, 20, 21, 28, 30, 35, 40]
    assert all(fields <= r.keys() for r in log)
    assert [r["step"] for r in log if "valid_loss" in r] == [10, 20, 30, 40]


def test_schedules():
    assert [learning_rate(s, 10, 1.0, 4) for s in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert learning_rate(2, 10, 1.0, 0, "linear") == 1
    assert learning_rate(9, 10, 1.0, 0, "linear", 0.5) == pytest.approx(0.2)
    assert learning_rate(5, 10, 1.0, 0, "cosine") == pytest.approx(0.5)


def test_bf16_keeps_the_loss_in_float32():
    kinds = []

    class Watch(Interpolant):
        def loss(self, model, x, y, noise, t):
            kinds.append(model(x, t, y).dtype)
            return super().loss(model, x, y, noise, t)

    done = go(None, steps=2, precision="bf16", objective=Watch())
    assert set(kinds) == {torch.float32} and done.model.first.weight.dtype == torch.float32


def test_retention_and_log_survive_a_changed_cadence(straight, tmp_path):
    "log_every, save_every, keep and valid_every may change between calls: the weights do not."
    go(tmp_path, stop_at=15, log_every=3, save_every=4)
    go(tmp_path, log_every=5, valid_every=None, valid=None)
    a, b = load_checkpoint(straight), load_checkpoint(tmp_path)
    assert all(torch.equal(a.model[k], b.model[k]) for k in a.model)
