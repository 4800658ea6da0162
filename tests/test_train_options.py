"""What `fit` can do beyond its defaults: schedules, averages, Muon, spikes, memory, trackers, old checkpoints."""

import inspect
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import types
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_train import Config, Data, Greedy, Net, go, interruptible, log_of, same, timeless  # noqa: F401

from minisora import train
from minisora.interpolants import Interpolant
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import (
    choose_ema,
    estimate,
    fit,
    latest_checkpoint,
    learning_rate,
    load_checkpoint,
    on_track,
    overlay,
    validate,
)

HERE = Path(__file__).parent


def weights(module):
    return torch.cat([v.flatten().double() for v in module.state_dict().values()])


# ------------------------------------------------------------------------------------- old checkpoints


@pytest.fixture
def old(tmp_path):
    "A copy of a run that version 0.1.0 stopped at step 14 of 40."
    shutil.copytree(HERE / "data" / "run-0.1.0", tmp_path / "old")
    return tmp_path / "old"


def test_the_old_run_is_small_and_was_kept():
    files = [p for p in (HERE / "data" / "run-0.1.0").rglob("*") if p.is_file()]
    assert len(files) == 5 and sum(p.stat().st_size for p in files) < 50_000


def test_an_old_checkpoint_loads(old):
    c = load_checkpoint(old)
    assert c.step == 14 and c.state["format"] == 1 and c.emas == {}
    net = c.into(Net())
    assert torch.equal(net.last.weight, c.ema["last.weight"])
    c.into(Net(), "model")


def test_an_old_run_goes_on_as_a_new_one(old, tmp_path):
    "To rounding only: the old part was computed on another machine."
    go(old, stop_at=20)
    go(tmp_path / "new", stop_at=20)
    a, b = load_checkpoint(old), load_checkpoint(tmp_path / "new")
    for part in ("model", "ema", "optimizer"):
        p, q = getattr(a, part), getattr(b, part)
        assert p.keys() == q.keys() and all(
            torch.allclose(p[k], q[k], rtol=1e-3, atol=1e-4) for k in p
        )
    assert [r["step"] for r in log_of(old)] == [r["step"] for r in log_of(tmp_path / "new")]


@pytest.mark.parametrize(
    "change", [dict(optimizer="muon"), dict(more_ema=(0.9,)), dict(spikes="skip")], ids=str
)
def test_an_old_run_is_refused_with_a_new_option(old, change):
    with pytest.raises(ValueError, match=f"recipe.{next(iter(change))} is .* here and not there"):
        go(old, **change)


def video(**change):
    "A small `VideoDiT` for the latents of `Data`."
    return VideoDiT(
        VideoDiTConfig(
            **{
                **dict(
                    size=(4, 2, 2), channels=1, patch=(1, 2, 2), width=16, depth=4, heads=2, vocab=5
                ),
                **change,
            }
        )
    )


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    "A run of a VideoDiT, without four fields that were added since, as a checkpoint from before them is."
    out = tmp_path_factory.mktemp("older")
    go(out, net=video(), steps=3, valid=None)
    file = latest_checkpoint(out) / "state.json"
    state = json.loads(file.read_text())
    del state["seal"]
    for part, name in (
        ("model", "route"),
        ("model", "route_blocks"),
        ("model", "smaller"),
        ("objective", "steady"),
    ):
        del state["config"][part][name]
    file.write_text(json.dumps(dict(state, seal=train._seal(state))))
    return out


@pytest.mark.parametrize(
    "field, change",
    {
        "model.smaller": dict(net=dict(smaller=True)),
        "model.route": dict(net=dict(route=0.5)),
        "model.route_blocks": dict(net=dict(route_blocks=(1, 3))),
        "objective.steady": dict(objective=Interpolant(steady=0.1)),
    }.items(),
)
def test_a_field_newer_than_the_checkpoint_is_compared_with_its_default(older, field, change):
    options = dict(change, net=video(**change.get("net", {})), steps=5, valid=None)
    with pytest.raises(ValueError, match=rf"{field} is .* here and .* in the checkpoint"):
        go(older, **options)


def test_a_run_from_before_a_field_goes_on(older, tmp_path):
    shutil.copytree(older, tmp_path / "run")
    assert go(tmp_path / "run", net=video(), steps=5, valid=None).step == 5


def test_a_new_field_without_a_default_is_refused():
    then = dict(model={"class": "A"}, data=dict(length=3), recipe=dict(lr=1.0))
    for part, new in (("objective", dict(twist=2)), ("data", dict(buckets=dict(wide=[3])))):
        now = {**then, part: {**then.get(part, {}), **new}}
        with pytest.raises(ValueError, match=rf"{part}\..* here and not there in the checkpoint"):
            train._same(now, then, "run")
    train._same(then, then, "run")


def test_the_class_is_named_before_its_fields(older):
    with pytest.raises(ValueError, match="model.class is 'Net' here and 'VideoDiT'"):
        go(older, steps=5, valid=None)


# ------------------------------------------------------------------------------------- schedules and averages


def test_wsd():
    rates = [learning_rate(s, 100, 2.0, 10, "wsd", 0.8) for s in range(100)]
    assert rates[0] == 0.2 and rates[10:81] == [2.0] * 71
    assert rates[85] == pytest.approx(1.0) and rates[99] == pytest.approx(2 * (1 - 0.95**0.5))
    assert rates[80:] == sorted(rates[80:], reverse=True)


def test_wsd_resumes(tmp_path):
    options = dict(schedule="wsd", decay_from=0.5)
    go(tmp_path / "a", **options)
    go(tmp_path / "b", stop_at=29, **options)
    go(tmp_path / "b", **options)
    same(tmp_path / "a", tmp_path / "b")


def test_several_averages(tmp_path):
    "Each is what a run with that decay alone has; they are saved, resumed and loaded by their decay."
    a = go(tmp_path / "a", more_ema=(0.5, 0.9), stop_at=23)
    a = go(tmp_path / "a", more_ema=(0.5, 0.9))
    assert list(a.emas) == [0.999, 0.5, 0.9] and a.emas[0.999] is a.ema
    for decay in (0.5, 0.9):
        alone = go(tmp_path / f"{decay}", ema=decay)
        assert torch.equal(weights(alone.ema), weights(a.emas[decay]))
        assert torch.equal(
            weights(load_checkpoint(tmp_path / "a").into(Net(), decay)), weights(alone.ema)
        )
    assert not torch.equal(weights(a.emas[0.5]), weights(a.emas[0.9]))


def test_the_best_average_is_chosen_by_validation():
    done = go(None, more_ema=(0.5, 1.0), ema_warmup=False)  # 1: never moves
    best, losses = choose_ema(done.emas, Data(20), Interpolant(), bins=4)
    assert list(losses) == [0.999, 0.5, 1.0] and best == min(losses, key=losses.get) == 0.5
    assert losses[0.5] == validate(done.emas[0.5], Data(20), Interpolant(), bins=4)[0] < losses[1.0]


# ------------------------------------------------------------------------------------- Muon


def test_muon_takes_the_matrices():
    net = Net()
    named = dict(net.named_parameters())
    a = SimpleNamespace(optimizer="muon", lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    muon, adamw = train._optimizers(net, named, a)
    names = lambda o: {
        k for k, p in named.items() if any(p is q for g in o.param_groups for q in g["params"])
    }
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    assert names(muon) == {"first.weight", "last.weight"}
    assert names(adamw) == {"first.bias", "last.bias", "condition.weight"}


def test_muon_steps_are_orthogonal_and_as_long_as_adamw_s():
    net = Net(Config(64), dropout=0)
    before = net.last.weight.detach().clone()
    go(None, net=net, optimizer="muon", steps=1, lr=1e-2, warmup=0, valid=None, batch_size=50)
    step = (net.last.weight.detach() - before) / 1e-2  # (16, 64)
    values = torch.linalg.svdvals(step)
    assert step.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)  # Liu et al.: RMS 0.2
    assert values.median() > 0.5 * values.max()  # all directions alike


def test_muon_resumes_and_learns(tmp_path):
    go(tmp_path / "a", optimizer="muon")
    go(tmp_path / "b", optimizer="muon", stop_at=13)
    go(tmp_path / "b", optimizer="muon")
    same(tmp_path / "a", tmp_path / "b")
    assert {k for k in load_checkpoint(tmp_path / "a").optimizer if "momentum" in k} == {
        "first.weight/momentum_buffer",
        "last.weight/momentum_buffer",
    }
    with pytest.raises(ValueError, match="recipe.optimizer is 'adamw'|recipe.optimizer"):
        go(tmp_path / "a")


def test_muon_needs_a_matrix():
    class Bare(Net):
        def __init__(self):
            super().__init__()
            self.first.weight.requires_grad_(False)
            self.last.weight.requires_grad_(False)

    with pytest.raises(ValueError, match="optimizer='muon': the model has no nn.Linear"):
        go(None, net=Bare(), optimizer="muon")


# ------------------------------------------------------------------------------------- spikes


def spiky(bad=17, size=1e3):
    data = Data()
    data.x[bad] *= size
    return data


def test_spikes_are_skipped_and_logged(tmp_path):
    "Batches with the broken sample change nothing but the step; the log names them."
    net, data = Net(dropout=0), spiky()
    done = go(tmp_path, net=net, data=data, spikes="skip", steps=60, valid=None, log_every=10)
    steps = [s + 1 for s in range(60) if 17 in train.batch_indices(0, s, 8, 50).tolist()]
    skipped = [s for r in log_of(tmp_path) for s in r["skipped"]]
    assert skipped == [s for s in steps if s > 20] and len(skipped) > 3 and done.step == 60


def test_a_skipped_step_changes_no_weight():
    seen = []
    run = lambda **o: go(
        None,
        net=Net(dropout=0),
        data=spiky(),
        valid=None,
        sample_every=1,
        on_sample=lambda s, ema: seen.append(weights(ema)),
        steps=40,
        **o,
    )
    log = run(spikes="skip", log_every=1).log
    skipped = [r["step"] for r in log if r["skipped"]]
    assert skipped and all(torch.equal(seen[s - 1], seen[s - 2]) for s in skipped)
    assert not torch.equal(seen[skipped[0]], seen[skipped[0] - 1])  # and the next one does


def test_without_the_policy_nothing_is_skipped_or_logged():
    log = go(None, data=spiky(), valid=None, steps=40).log
    assert not any("skipped" in r or "parts" in r for r in log)


def test_spikes_resume(tmp_path):
    options = dict(data=spiky(), spikes="skip", steps=60)
    go(tmp_path / "a", **options)
    for stop in (26, 33):
        go(tmp_path / "b", stop_at=stop, **options)
    go(tmp_path / "b", **options)
    same(tmp_path / "a", tmp_path / "b")


def test_median_of_the_last_hundred():
    run = SimpleNamespace(a=SimpleNamespace(spikes="skip", spike_factor=3.0), norms=[])
    assert not any(train._is_spike(run, 1.0) for _ in range(19)) and not train._is_spike(
        run, 99.0
    )  # too early
    assert train._is_spike(run, 3.1) and not train._is_spike(run, 2.9)
    for _ in range(51):
        train._is_spike(run, 50.0)
    assert statistics.median(run.norms) == 50 and not train._is_spike(
        run, 60.0
    )  # a lasting level is accepted
    for _ in range(200):
        train._is_spike(run, 1.0)
    assert len(run.norms) == 100


# ------------------------------------------------------------------------------------- memory


class Pure(Greedy):
    "Without the buffer that each forward pass changes: the parts of a batch then are the batch."

    def forward(self, x, t, y=None):
        self.scale.fill_(1 / 1.001)
        return super().forward(x, t, y)


class Roomy(Pure):
    most = 10_000


def test_out_of_memory_falls_back_to_accumulation(tmp_path):
    "Five samples fit: 32 go through in 8 parts of 4, the same update as in one."
    options = dict(batch_size=32, steps=6, log_every=2, clip=0.5, valid=None)
    a = go(tmp_path / "a", net=Pure(dropout=0), on_oom="accumulate", **options)
    b = go(tmp_path / "b", net=Roomy(dropout=0), **options)
    for p, q in zip(a.model.parameters(), b.model.parameters()):
        assert torch.allclose(p, q, atol=1e-5)
    for p, q in zip(a.log, b.log):
        for k in ("loss", "grad_norm"):
            assert p[k] == pytest.approx(q[k], rel=1e-5)
    assert [r["parts"] for r in a.log] == [8] * len(a.log) and load_checkpoint(
        tmp_path / "a"
    ).state["parts"] == 8


def test_parts_need_not_divide_the_batch(monkeypatch):
    monkeypatch.setattr(Greedy, "most", 4)
    options = dict(batch_size=7, accumulate=1, steps=4, valid=None, log_every=1)
    a, b = (
        go(None, net=n, on_oom="accumulate", **options) for n in (Pure(dropout=0), Roomy(dropout=0))
    )
    for p, q in zip(a.model.parameters(), b.model.parameters()):
        assert torch.allclose(p, q, atol=1e-5)
    for p, q in zip(a.log, b.log):
        assert p["loss"] == pytest.approx(q["loss"], rel=1e-5)


def test_fallback_resumes(tmp_path):
    class Later(Greedy):
        "Has room for all in the first ten steps."

        @property
        def most(self):
            return 99 if self.calls < 10 else 5

    options = dict(batch_size=16, on_oom="accumulate")
    go(tmp_path / "a", net=Later(), **options)
    for stop in (14, 25, None):
        go(tmp_path / "b", net=Later(), stop_at=stop, **options)
    same(tmp_path / "a", tmp_path / "b")


def test_fallback_ends_at_one_sample(monkeypatch):
    monkeypatch.setattr(Greedy, "most", 0)
    with pytest.raises(train.OutOfMemory, match="nor does 1"):
        go(None, net=Greedy(), on_oom="accumulate")


# ------------------------------------------------------------------------------------- estimate


class Wide(Net):
    def __init__(self):
        super().__init__(Config(256), dropout=0)


@pytest.mark.parametrize(
    "change",
    [
        dict(batch_size=64),
        dict(batch_size=1),
        dict(batch_size=48, optimizer="muon"),
        dict(batch_size=48, more_ema=(0.9, 0.99)),
    ],
    ids=str,
)
def test_estimate_is_what_then_happens(change):
    "The most bytes that a real `fit` holds at once are within 15 % of what was said."
    said = estimate(Wide(), Data(80), Interpolant(), **change)
    assert said.peak == pytest.approx(peak_of_fit(Wide(), **change), rel=0.15)
    assert (
        said.static < said.peak * 1.001 and said.fits and said.seconds > 0 and said.cpu_seconds > 0
    )


def peak_of_fit(net, **options):
    "The most bytes at once while `fit` runs, with the weights: by the profiler's record of PyTorch's own allocator."
    data, activity = Data(80), [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as seen:
        go(None, net=net, data=data, steps=4, valid=None, **options)
    events = [
        (e.start_ns(), e.nbytes())
        for e in seen.profiler.kineto_results.events()
        if e.name() == "[memory]"
    ]
    held = itertools.accumulate(n for _, n in sorted(events, key=lambda e: e[0]))
    return max(held) + sum(t.nbytes for t in net.state_dict().values())


def test_estimate_of_a_video_transformer():
    "Bytes within 15 % of a real `fit`; CPU seconds too, as far as a busy machine allows."
    net = lambda: video(width=64, patch=(1, 1, 1), depth=3)
    said = estimate(net(), Data(80), Interpolant(), batch_size=48)
    assert said.peak == pytest.approx(peak_of_fit(net(), batch_size=48), rel=0.15)
    log = go(None, net=net(), batch_size=48, steps=21, log_every=10, valid=None).log
    took = (log[-1]["cpu_seconds"] - log[1]["cpu_seconds"]) / (log[-1]["step"] - log[1]["step"])
    assert 0.5 < said.cpu_seconds / took < 2
    twice = estimate(net(), Data(80), Interpolant(), batch_size=24, accumulate=2)
    assert 0.4 < twice.cpu_seconds / said.cpu_seconds < 2.5


def test_the_pace_is_a_median_in_a_budget():
    "One update that something else holds up does not count; slow updates are not made often."
    now, each = [0.0], []
    run = SimpleNamespace(
        device=torch.device("cpu"), clock=lambda: dict(cpu=now[0] / 2, wall=now[0])
    )

    def update():
        now[0] += each.pop(0)

    each[:] = [9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 99.0]
    assert train._pace(run, update, most=7, budget=50.0) == [1.0, 0.5] and each == [99.0]
    each[:] = [3.0, 3.0, 3.0]
    assert train._pace(run, update, budget=2.0) == [3.0, 1.5] and len(each) == 2


def test_memory_is_that_of_the_container(tmp_path, monkeypatch):
    "The smallest limit above the process counts, of cgroup v2 or v1; 'max' and missing files do not."
    root, own = tmp_path / "cgroup", tmp_path / "own"
    for file, text in {
        "a/memory.max": "max",
        "a/b/memory.max": "3000",
        "a/b/c/memory.max": "5000",
        "memory/job/memory.limit_in_bytes": "4000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text + "\n")
    for text, want in {
        "0::/a/b/c\n": {3000, 5000},
        "4:memory:/job\n1:cpu:/a/b\n": {4000, 9223372036854771712},
        "0::/../elsewhere\n": set(),
        "": set(),
    }.items():
        own.write_text(text)
        assert set(train._limits(root, own)) == want
    assert train._limits(root, tmp_path / "nowhere") == []
    monkeypatch.setattr(train, "_limits", lambda: [12345])
    assert train._memory(torch.device("cpu")) == 12345
    monkeypatch.setattr(train, "_limits", lambda: [])
    assert train._memory(torch.device("cpu")) > 12345


def test_estimate_agrees_with_an_independent_count():
    "The same bytes counted with a hook of our own, in a plain forward pass."
    net, batch, kept = Wide(), Data(64), {}
    own = {p.data_ptr() for p in net.parameters()}

    def keep(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = (
            Interpolant()
            .loss(net, batch.x, batch.y, torch.randn_like(batch.x), torch.rand(64))["loss"]
            .mean()
        )
    assert loss.isfinite() and estimate(
        net, batch, Interpolant(), batch_size=64
    ).activations == pytest.approx(sum(kept.values()), rel=0.15)


def test_estimate_counts_weights_gradients_moments_and_averages():
    net = Wide()
    n = sum(p.numel() for p in net.parameters())
    e = estimate(net, Data(), Interpolant(), batch_size=8)
    assert e.parameters == n and e.static == pytest.approx(
        4 * n * 5, rel=0.01
    )  # w, g, 2 moments, average
    assert estimate(net, Data(), Interpolant(), more_ema=(0.9, 0.5)).static == pytest.approx(
        4 * n * 7, rel=0.01
    )
    assert estimate(net, Data(), Interpolant(), optimizer="muon").static < 0.95 * e.static


def test_estimate_leaves_all_as_it_was(tmp_path):
    net = Net().eval()
    before = weights(net)
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    estimate(net, Data(), Interpolant(), out=tmp_path / "run", valid=Data(9), batch_size=4)
    assert (
        torch.equal(weights(net), before) and torch.equal(torch.rand(2), want) and not net.training
    )
    assert not (tmp_path / "run").exists() and all(p.grad is None for p in net.parameters())


def test_estimate_says_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(train, "_memory", lambda device: 2_000_000)
    e = estimate(Wide(), Data(), Interpolant(), batch_size=4096)
    assert not e.fits and "does not fit" in str(e) and 0 < e.largest < 4096
    assert estimate(Wide(), Data(), Interpolant(), batch_size=e.largest).peak <= 2_000_000 * 1.05


def test_estimate_when_half_the_batch_does_not_fit():
    assert estimate(Greedy(), Data(), Interpolant(), batch_size=32).activations > 0


def test_estimate_refuses_what_fit_has_not():
    with pytest.raises(ValueError, match="estimate: fit has no argument 'batchsize'"):
        estimate(Net(), Data(), Interpolant(), batchsize=4)


# ------------------------------------------------------------------------------------- trackers


class Recorder:
    "A tracker with accelerate's interface that only remembers."

    made = []

    def __init__(self, run_name, **options):
        self.run_name, self.options, self.lines = run_name, options, []
        self.made.append(self)

    def start(self):
        self.lines.append("started")

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step):
        self.lines.append((step, values))

    def finish(self):
        self.lines.append("finished")


@pytest.fixture
def recorder(monkeypatch):
    from accelerate import tracking

    Recorder.made = []
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    sys.modules["wandb"].__spec__ = types.SimpleNamespace()
    return Recorder


def test_tracker_gets_the_lines_of_the_log(recorder, tmp_path):
    done = go(tmp_path, track="wandb")
    (t,) = recorder.made
    assert t.lines[0] == "started" and t.lines[-1] == "finished" and t.config["recipe.lr"] == 1e-2
    lines = dict(t.lines[1:-1])
    assert list(lines) == [r["step"] for r in done.log] == [r["step"] for r in log_of(tmp_path)]
    assert all(lines[r["step"]]["loss"] == r["loss"] for r in done.log)
    assert lines[40]["valid_bins/3"] == done.log[-1]["valid_bins"][3]
    assert all(isinstance(v, (int, float)) for v in lines[40].values())


def test_tracker_is_closed_after_an_error(recorder):
    with pytest.raises(train.NonFiniteLoss):
        go(None, data=Data(bad=33), track=["wandb"])
    assert recorder.made[0].lines[-1] == "finished"


def failing(recorder, what, at=0):
    "A `Recorder` whose method `what` raises, from step `at` on."

    def broken(self, *args, step=at, **_):
        if step >= at:
            raise ConnectionError("the server is away\nand stays away")
        self.lines.append((step, args[0]))

    return type("Failing", (recorder,), {what: broken})


@pytest.mark.parametrize("what", ["log", "finish"])
def test_a_tracker_that_fails_is_let_go(recorder, monkeypatch, tmp_path, what):
    "One warning names it; the run, its log, its checkpoints and the other tracker do not notice."
    from accelerate import tracking

    monkeypatch.setitem(
        tracking.LOGGER_TYPE_TO_CLASS,
        "trackio",
        failing(recorder, what, at=14 if what == "log" else 0),
    )
    monkeypatch.setitem(sys.modules, "trackio", sys.modules["wandb"])
    with pytest.warns(UserWarning) as told:
        done = go(tmp_path, track=["trackio", "wandb"])
    said = [str(w.message) for w in told if "track" in str(w.message)]
    step = 14 if what == "log" else 40
    assert said == [
        f"track='trackio' failed at step {step}, the run goes on without it: ConnectionError: the server is away"
    ]
    bad, good = recorder.made
    assert (
        done.step == 40
        and load_checkpoint(tmp_path).step == 40
        and len(log_of(tmp_path)) == len(done.log)
    )
    assert [s for s, _ in good.lines[1:-1]] == [r["step"] for r in done.log] and good.lines[
        -1
    ] == "finished"
    if what == "log":
        assert [s for s, _ in bad.lines[1:]] == [1, 7, 10]


def test_a_tracker_that_cannot_start_stops_the_run_and_closes_the_others(
    recorder, monkeypatch, tmp_path
):
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", failing(recorder, "start"))
    monkeypatch.setitem(sys.modules, "trackio", sys.modules["wandb"])
    with pytest.raises(ConnectionError):
        go(tmp_path, track=["wandb", "trackio"])
    assert recorder.made[0].lines == ["started", "finished"]


def test_a_resumed_run_goes_on_in_its_tracker(recorder, tmp_path):
    "The same id and name after a stop; another folder, even of the same name later, is another run."
    go(tmp_path / "run", track="wandb", stop_at=5)
    go(tmp_path / "run", track="wandb", stop_at=9)
    shutil.rmtree(tmp_path / "run")
    go(tmp_path / "run", track="wandb", stop_at=5)
    go(None, track="wandb", steps=1)
    first, again, other, none = [t.options for t in recorder.made]
    assert (
        first == again
        and first["resume"] == "allow"
        and first["name"] == f"run-{first['id']}"
        and len(first["id"]) == 8
    )
    assert other["id"] != first["id"] and none == {}


def test_trackers_get_what_they_understand(tmp_path):
    run = SimpleNamespace(out=tmp_path, step=0)
    assert train._tracker_options(run, "tensorboard") == dict(logging_dir=tmp_path, purge_step=None)
    run.step = 9
    assert train._tracker_options(run, "tensorboard")["purge_step"] == 10
    assert train._tracker_options(run, "trackio").keys() == {"name", "resume"}


def test_missing_tracker_is_one_line_and_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as e:
        go(tmp_path / "run", track="trackio")
    assert str(e.value) == "track='trackio': the package is not there; pip install trackio"
    assert not (tmp_path / "run").exists()


def test_unknown_tracker():
    with pytest.raises(
        ValueError, match="track must be 'tensorboard', 'trackio' or 'wandb', not 'telegraph'"
    ):
        go(None, track=["telegraph"])


def test_tensorboard_itself(tmp_path):
    pytest.importorskip("tensorboard")
    go(tmp_path, track="tensorboard", steps=40, stop_at=12, save_every=9)
    shutil.rmtree(latest_checkpoint(tmp_path))  # killed after step 9
    go(tmp_path, track="tensorboard", steps=20)  # its lines 10 … 12 come again
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(s.step, pytest.approx(s.value)) for s in events.Scalars("loss")] == [
        (r["step"], r["loss"]) for r in log_of(tmp_path)
    ]


# ------------------------------------------------------------------------------------- am I on track?


def test_on_track():
    log = [dict(step=s, loss=1 / s) for s in range(1, 41)]
    assert on_track(log, log) == 1
    assert on_track([dict(r, loss=3 * r["loss"]) for r in log], log) == pytest.approx(3)
    late = [
        dict(r, loss=r["loss"] * (1 if r["step"] <= 30 else 2)) for r in log
    ]  # only the last quarter counts
    assert on_track(late, log) == pytest.approx(2)
    coarse = [dict(step=s, loss=2.0 * s) for s in (10, 20)]  # in between: a straight line
    assert on_track([dict(step=13, loss=52.0)], coarse) == pytest.approx(2)
    with pytest.raises(ValueError, match="no step from 10 to 20"):
        on_track([dict(step=30, loss=1.0)], coarse)


def test_reference_of_the_preset(root):
    known = json.loads((root / "benchmarks" / "first_video.json").read_text())
    kept = json.loads((root / "minisora" / "reference" / "first-video.json").read_text())
    assert [s for s, _ in kept["loss"]] == [s for s, _ in known["loss"]] and kept[
        "machine"
    ] == known["machine"]
    assert all(
        a == pytest.approx(b, abs=1e-5) for (_, a), (_, b) in zip(kept["loss"], known["loss"])
    )
    for part, k in dict(
        steps="recipe", lr="recipe", delta="objective", steady="objective", width="model"
    ).items():
        assert kept["config"][k][part] == known["recipe"][part]
    assert on_track("first-video", root / "minisora" / "reference" / "first-video.json") == 1


def test_what_is_no_reference_is_told_which_there_are():
    for name in ("second-video", "nowhere/run", "nowhere.json"):
        with pytest.raises(
            FileNotFoundError,
            match=f"'{name}' is no folder of a run, no file, and none of 'first-video'",
        ):
            on_track(name, "first-video")


def test_references_are_part_of_the_package(root, tmp_path):
    pytest.importorskip("setuptools")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path],
        cwd=root,
        check=True,
    )
    names = lambda folder: {p.name for p in (folder / "minisora" / "reference").glob("*.json")}
    assert names(tmp_path) == names(root) >= {"first-video.json"}


def test_another_recipe_is_told(tmp_path):
    "By a `Trained` or a folder; the seed may differ; a log alone has no recipe."
    a, b = go(tmp_path / "a", steps=8), go(None, steps=8, lr=5e-3, net=Net(Config(20)), seed=3)
    for run in (b, a):
        assert on_track(run, run) == 1
    for run, other in ((b, a), (b, tmp_path / "a")):
        with pytest.warns(UserWarning, match="recipe.lr is 0.005, not 0.01") as told:
            on_track(run, other)
        said = str(told[0].message)
        assert "model.width is 20, not 16" in said and "seed" not in said and "\n" not in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_track(go(None, steps=8, seed=4), a)
        on_track(b.log, a)
        on_track(tmp_path / "a", a)
    with pytest.warns(UserWarning, match="fields more"):
        on_track(a, "first-video")


def test_the_script_that_makes_references(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import reference

    monkeypatch.setattr(reference, "FOLDER", tmp_path / "made")
    done = go(tmp_path / "run", log_every=1, steps=23)
    kept = json.loads(
        reference.reference("signs", tmp_path / "run", "single_gpu.json", "signs-cpu").read_text()
    )
    assert kept["source"] == "benchmarks/single_gpu.json/signs-cpu" and kept["machine"]["cores"]
    assert (
        kept["loss"] == [[r["step"], round(r["loss"], 5)] for r in done.log]
        and kept["config"] == done.config
    )


def test_overlay_takes_a_run_in_each_form(tmp_path):
    done = go(tmp_path)
    reference = [dict(r, loss=r["loss"] * 2) for r in done.log]
    for run in (done, done.log, tmp_path, str(tmp_path)):
        ax = overlay(run, reference, name="mine").axes[0]
        assert ax.get_title() == "loss: 0.50 × that of mine"
        lines = {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()}
        assert lines["this run"] == [r["loss"] for r in done.log] and lines["mine"] == [
            r["loss"] for r in reference
        ]


# ------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(optimizer="sgd"), "optimizer must be 'adamw' or 'muon', not 'sgd'"),
        (dict(more_ema=(2,)), "more_ema"),
        (dict(spikes="stop"), "spikes must be"),
        (dict(spike_factor=1), "spike_factor must be above 1"),
        (dict(on_oom="retry"), "on_oom must be"),
        (dict(track="tensorboard"), "track='tensorboard'"),
        (dict(warmup=-4), "warmup must be 0 or more, not -4"),
        (dict(clip=-1.0), "clip must be 0 or more"),
        (dict(lr=-1.0), "lr must be 0 or more"),
        (dict(valid_every=0), "valid_every must be a whole number from 1, not 0"),
        (dict(stop_at=-1), "stop_at must be"),
        (dict(sample_every=0.5, on_sample=print), "sample_every must be"),
        (dict(sample_every=5), "sample_every=5 says how often, and on_sample is not given"),
        (dict(data=torch.zeros(9, 1, 4, 2, 2)), "data: no condition, and the model takes one"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises((ValueError, ModuleNotFoundError), match=message):
        go(None, **change)


def test_valid_every_without_valid():
    with pytest.raises(ValueError, match="valid_every=5 says how often, and valid is not given"):
        fit(Net(), Data(), Interpolant(), steps=9, valid_every=5, progress=False)


def test_a_folder_of_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = go("~/run", steps=2, valid=None)
    assert [p.name for p in tmp_path.iterdir()] == ["run"] and done.path.is_relative_to(
        tmp_path / "run"
    )
    assert load_checkpoint("~/run").step == 2 and on_track("~/run", done) == 1


def test_new_arguments_are_off():
    p = inspect.signature(fit).parameters
    off = {**train.LATER, "on_oom": "raise", "track": ()}
    assert {k: p[k].default for k in off} == off
