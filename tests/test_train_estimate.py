"""What a run will cost, said before it starts, is what then happens."""

import itertools

import pytest
import torch
from helpers.train import Config, Data, Greedy, Net, go, interruptible, video, weights  # noqa: F401

from minisora.interpolants import Interpolant
from minisora.train import estimate_cost
from minisora.training import estimate


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
    said = estimate_cost(Wide(), Data(80), Interpolant(), **change)
    assert said.peak == pytest.approx(peak_of_fit(Wide(), **change), rel=0.15)
    assert (
        said.static < said.peak * 1.001 and said.fits and said.seconds > 0 and said.cpu_seconds > 0
    )


def peak_of_fit(net, **options):
    """The most bytes at once while `fit` runs, with the weights: by the profiler's record of
    PyTorch's own allocator."""
    data = Data(80)
    activity = [torch.profiler.ProfilerActivity.CPU]
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
    said = estimate_cost(net(), Data(80), Interpolant(), batch_size=48)
    assert said.peak == pytest.approx(peak_of_fit(net(), batch_size=48), rel=0.15)
    log = go(None, net=net(), batch_size=48, steps=21, log_every=10, valid=None).log
    took = (log[-1]["cpu_seconds"] - log[1]["cpu_seconds"]) / (log[-1]["step"] - log[1]["step"])
    assert 0.5 < said.cpu_seconds / took < 2
    twice = estimate_cost(net(), Data(80), Interpolant(), batch_size=24, accumulate=2)
    assert 0.4 < twice.cpu_seconds / said.cpu_seconds < 2.5


def test_the_pace_is_a_median_in_a_budget():
    "One update that something else holds up does not count; slow updates are not made often."
    now = [0.0]
    each = []

    def update():
        now[0] += each.pop(0)

    def pace(**options):
        clocks = lambda: (now[0], now[0] / 2)  # wall and CPU
        return estimate.median_seconds(update, torch.device("cpu"), clocks=clocks, **options)

    each[:] = [9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 99.0]
    assert pace(most=7, budget=50.0) == (1.0, 0.5) and each == [99.0]
    each[:] = [3.0, 3.0, 3.0]
    assert pace(budget=2.0) == (3.0, 1.5) and len(each) == 2


def test_estimate_agrees_with_an_independent_count():
    "The same bytes counted with a hook of our own, in a plain forward pass."
    net = Wide()
    batch = Data(64)
    kept = {}
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
    assert loss.isfinite() and estimate_cost(
        net, batch, Interpolant(), batch_size=64
    ).activations == pytest.approx(sum(kept.values()), rel=0.15)


def test_estimate_counts_weights_gradients_moments_and_averages():
    net = Wide()
    n = sum(p.numel() for p in net.parameters())
    e = estimate_cost(net, Data(), Interpolant(), batch_size=8)
    assert e.parameters == n and e.static == pytest.approx(
        4 * n * 5, rel=0.01
    )  # w, g, 2 moments, average
    assert estimate_cost(net, Data(), Interpolant(), more_ema=(0.9, 0.5)).static == pytest.approx(
        4 * n * 7, rel=0.01
    )
    assert estimate_cost(net, Data(), Interpolant(), optimizer="muon").static < 0.95 * e.static


def test_estimate_leaves_all_as_it_was(tmp_path):
    net = Net().eval()
    before = weights(net)
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    estimate_cost(net, Data(), Interpolant(), out=tmp_path / "run", valid=Data(9), batch_size=4)
    assert (
        torch.equal(weights(net), before) and torch.equal(torch.rand(2), want) and not net.training
    )
    assert not (tmp_path / "run").exists() and all(p.grad is None for p in net.parameters())


def test_estimate_says_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(estimate, "device_memory", lambda device: 2_000_000)
    e = estimate_cost(Wide(), Data(), Interpolant(), batch_size=4096)
    assert not e.fits and "does not fit" in str(e) and 0 < e.largest < 4096
    assert (
        estimate_cost(Wide(), Data(), Interpolant(), batch_size=e.largest).peak <= 2_000_000 * 1.05
    )


def test_estimate_when_half_the_batch_does_not_fit():
    assert estimate_cost(Greedy(), Data(), Interpolant(), batch_size=32).activations > 0


def test_estimate_when_three_samples_do_not_fit(monkeypatch):
    "Trials at one and two samples: a straight line needs two points."
    monkeypatch.setattr(Greedy, "most", 2)
    assert estimate_cost(Greedy(), Data(), Interpolant(), batch_size=6).activations > 0


def test_estimate_refuses_what_fit_has_not():
    with pytest.raises(
        ValueError,
        match="estimate_cost: fit has no argument 'batchsize'; did you mean 'batch_size'",
    ):
        estimate_cost(Net(), Data(), Interpolant(), batchsize=4)
