"""Moving averages, several at once, the choice among them; and the schedule that ends in a square
root."""

import pytest
import torch
from helpers.train import Data, Net, go, interruptible, same, weights  # noqa: F401

from minisora.core.optim import learning_rate
from minisora.interpolants import Interpolant
from minisora.train import select_ema, validation_loss
from minisora.training.checkpoint import load_checkpoint


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
    """Each is what a run with that decay alone has; they are saved, resumed and loaded by their
    decay."""
    a = go(tmp_path / "a", more_ema=(0.5, 0.9), stop_at=23)
    a = go(tmp_path / "a", more_ema=(0.5, 0.9))
    assert list(a.emas) == [0.999, 0.5, 0.9] and a.emas[0.999] is a.ema
    for decay in (0.5, 0.9):
        alone = go(tmp_path / f"{decay}", ema=decay)
        assert torch.equal(weights(alone.ema), weights(a.emas[decay]))
        assert torch.equal(
            weights(load_checkpoint(tmp_path / "a").load_into(Net(), decay)), weights(alone.ema)
        )
    assert not torch.equal(weights(a.emas[0.5]), weights(a.emas[0.9]))


def test_the_best_average_is_chosen_by_validation():
    done = go(None, more_ema=(0.5, 0.99999), ema_warmup=False)  # hardly moves
    best, losses = select_ema(done.emas, Data(20), Interpolant(), bins=4)
    assert list(losses) == [0.999, 0.5, 0.99999] and best == min(losses, key=losses.get) == 0.5
    assert (
        losses[0.5]
        == validation_loss(done.emas[0.5], Data(20), Interpolant(), bins=4)[0]
        < losses[0.99999]
    )
