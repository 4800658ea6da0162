"""Muon for the matrices, and updates that are left out as spikes."""

import statistics
from types import SimpleNamespace

import pytest
import torch
from helpers.train import Config, Data, Net, go, interruptible, log_of, same, weights  # noqa: F401

from minisora.training.batches import batch_indices
from minisora.training.checkpoint import load_checkpoint
from minisora.training.optimizers import SpikeFilter, make_optimizers


# ------------------------------------------------------------------------------------- Muon


def test_muon_takes_the_matrices():
    net = Net()
    named = dict(net.named_parameters())
    a = SimpleNamespace(optimizer="muon", lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    muon, adamw = make_optimizers(net, named, a)
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
    net = Net(dropout=0)
    data = spiky()
    done = go(tmp_path, net=net, data=data, spikes="skip", steps=60, valid=None, log_every=10)
    steps = [s + 1 for s in range(60) if 17 in batch_indices(0, s, 8, 50).tolist()]
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
    spikes = SpikeFilter(3.0)
    assert not any(spikes.is_spike(1.0) for _ in range(19)) and not spikes.is_spike(
        99.0
    )  # too early
    assert spikes.is_spike(3.1) and not spikes.is_spike(2.9)
    for _ in range(51):
        spikes.is_spike(50.0)
    assert statistics.median(spikes.norms) == 50
    assert not spikes.is_spike(60.0)  # a lasting level is accepted
    for _ in range(200):
        spikes.is_spike(1.0)
    assert len(spikes.norms) == 100
