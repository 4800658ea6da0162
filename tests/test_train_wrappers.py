"""`fit(…, wrappers=[…])`: around the layout while it trains, of the run's description where they
change the result."""

import json

import pytest
import torch

from minisora.interpolants import Interpolant
from minisora.models.layouts import Checkpointed, Joint, Routed
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import estimate_cost, fit

CONFIG = VideoDiTConfig(size=(4, 4, 4), channels=2, patch=(2, 2, 2), width=16, depth=4, heads=2)
DATA = torch.randn(8, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
ROUTED = Routed(0.5, blocks=(1, 3))


def run(*wrappers, steps=3, model=None, **options):
    options = dict(batch_size=4, lr=1e-2, warmup=0, condition_dropout=0, progress=False) | options
    return fit(
        model or VideoDiT(CONFIG), DATA, Interpolant(), steps=steps, wrappers=wrappers, **options
    )


def weights(done):
    return torch.cat([p.detach().flatten() for p in done.model.parameters()])


def test_checkpointing_finds_the_same_weights_and_routing_others():
    plain = weights(run())
    torch.testing.assert_close(weights(run(Checkpointed())), plain)
    assert not torch.allclose(weights(run(ROUTED)), plain)


def test_what_comes_back_has_none():
    done = run(Checkpointed(), ROUTED, more_ema=(0.5,))
    for model in (done.model, done.ema, *done.emas.values()):
        assert model.layout == Joint()


def test_an_interrupted_run_gives_the_model_back_without():
    class Broken(Interpolant):
        def loss(self, *args):
            raise RuntimeError("stop here")

    model = VideoDiT(CONFIG)
    with pytest.raises(RuntimeError, match="stop here"):
        fit(model, DATA, Broken(), steps=1, wrappers=[ROUTED], condition_dropout=0, progress=False)
    assert model.layout == Joint()


def test_a_run_with_other_routing_is_refused(tmp_path):
    run(ROUTED, out=tmp_path)
    for other in ([], [Routed(0.25, blocks=(1, 3))]):
        with pytest.raises(ValueError, match=r"recipe\.wrappers"):
            run(*other, steps=6, out=tmp_path)
    config = json.loads(next(tmp_path.rglob("state.json")).read_text())["config"]
    assert config["recipe"]["wrappers"] == [dict(kind="routed", fraction=0.5, blocks=[1, 3])]


def test_a_run_resumes_with_or_without_checkpointing(tmp_path):
    run(ROUTED, out=tmp_path)
    resumed = run(Checkpointed(), ROUTED, steps=6, out=tmp_path)
    assert resumed.step == 6
    torch.testing.assert_close(weights(resumed), weights(run(ROUTED, steps=6)))


@pytest.mark.parametrize("wrapper", ["routed", Routed, 0.5, dict(kind="routed")])
def test_what_is_no_wrapper_is_refused(tmp_path, wrapper):
    with pytest.raises(ValueError, match=r"wrappers must be objects such as Routed\(0.5\)"):
        run(wrapper, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_wrapper_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="2, 9 of 4 blocks"):
        run(Routed(0.5, blocks=(2, 9)), out=tmp_path / "run")
    with pytest.raises(ValueError, match="a Linear has no layout to wrap"):
        run(ROUTED, model=torch.nn.Linear(2, 2), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_estimate_knows_them():
    plain = estimate_cost(VideoDiT(CONFIG), DATA, Interpolant(), condition_dropout=0, batch_size=8)
    kept = estimate_cost(
        VideoDiT(CONFIG),
        DATA,
        Interpolant(),
        condition_dropout=0,
        batch_size=8,
        wrappers=[Checkpointed()],
    )
    assert kept.activations < plain.activations / 2
