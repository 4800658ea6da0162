"""`fit` keeps its promises: exact resume, errors that say what and where, whole checkpoints."""

import copy
import os
import signal
import threading

import pytest
import torch
from helpers.train import (  # noqa: F401
    Config,
    Data,
    Greedy,
    Net,
    forked,
    go,
    interruptible,
    log_of,
    same,
    timeless,
    wait_until,
)

from minisora.core.optim import learning_rate
from minisora.interpolants import Interpolant
from minisora.train import BatchTooLarge, Interrupted, NonFiniteLoss, validation_loss
from minisora.training.batches import batch_indices
from minisora.training.checkpoint import latest_checkpoint, load_checkpoint
from minisora.training.inputs import draw_noise, sample_times, stratified_uniforms


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "A run of 40 steps without a break."
    out = tmp_path_factory.mktemp("straight")
    go(out)
    return out


# ------------------------------------------------------------ 1: exact resume


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


# ------------------------------------------------------------ 4: a loss that is not finite


def test_nonfinite_loss(tmp_path):
    net = Net()
    data = Data(bad=33)
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
    saved.load_into(again, "model")  # reproduce: the same weights, samples and noise
    index = torch.tensor(saved.state["indices"])
    noise, _, u = draw_noise(0, clean, index, data.x[index], None, dropout=0, null_id=None)
    t = sample_times(Interpolant(), stratified_uniforms(u))
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


# ------------------------------------------------------------ 5: memory and signals


def test_out_of_memory_says_what_fits():
    with pytest.raises(
        BatchTooLarge, match="batch_size=32 does not fit; 4 fits, with accumulate=8"
    ) as e:
        go(None, net=Greedy(), batch_size=32)
    assert (
        e.value.fits == 4 and go(None, net=Greedy(), batch_size=4, accumulate=8, steps=2).step == 2
    )


def test_out_of_memory_even_with_one(monkeypatch):
    monkeypatch.setattr(Greedy, "most", 0)
    with pytest.raises(BatchTooLarge, match="even batch_size=1 does not fit"):
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
    run = tmp_path / "run"
    says = tmp_path / "says"
    pid = forked(lambda: go(run, data=Data(slow=0.05)), says)
    wait_until(lambda: (run / "log.jsonl").exists() and (run / "log.jsonl").read_text())
    os.kill(pid, getattr(signal, name))
    status = os.waitpid(pid, 0)[1]
    step = load_checkpoint(run).step
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


# ------------------------------------------------------------ 6: strictness


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
        c.load_into(Net(Config(17)))
    del c.ema["last.bias"]
    with pytest.raises(ValueError, match="missing key 'last.bias'"):
        c.load_into(Net())


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


# ------------------------------------------------------------ what is trained


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
    net = Net()
    times = []

    class Watch(Interpolant):
        def loss(self, model, x, y, noise, t):
            times.append(t)
            return super().loss(model, x, y, noise, t)

    a, b = (validation_loss(net, Data(100), Watch(), bins=5, batch_size=7) for _ in range(2))
    t = torch.cat(times[: len(times) // 2])
    assert a == b and net.training and torch.histc(t, 5, 0, 1).tolist() == [20] * 5
    assert a != validation_loss(net, Data(100), Watch(), bins=5, batch_size=7, seed=1)
    assert a == validation_loss(net, Data(100), Watch(), bins=5, batch_size=100) or a[
        0
    ] == pytest.approx(
        validation_loss(net, Data(100), Watch(), bins=5, batch_size=100)[0], rel=1e-5
    )
    assert len(validation_loss(net, Data(3), Watch())[1]) == 8


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
    a = load_checkpoint(straight)
    b = load_checkpoint(tmp_path)
    assert all(torch.equal(a.model[k], b.model[k]) for k in a.model)
