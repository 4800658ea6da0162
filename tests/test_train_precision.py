"""Sixteen bits with what must stay in float32, the gradient scaler and its state, and compiling by
block."""

import functools
import json
import math

import pytest
import torch
from helpers.train import (  # noqa: F401
    TINY,
    Data,
    Net,
    awake,
    clips,
    go,
    interruptible,
    log_of,
    same,
    train_dit,
)
from torch import nn

from minisora.interpolants import Interpolant
from minisora.temporal import VideoDiT
from minisora.train import NonFiniteLoss, _Trainer, estimate_cost, fit
from minisora.training.checkpoint import load_checkpoint
from minisora.training.distributed import Distributed
from minisora.training.precision import repeated_blocks
from minisora.training.run_config import config_dict


class Scaled(Net):
    "Its gradients overflow float16 where the loss is scaled by more than about `room`."

    def __init__(self, room):
        super().__init__(dropout=0)
        self.room = room

    def forward(self, x, t, y=None):
        out = super().forward(x, t, y)
        if self.training and out.requires_grad:
            out.register_hook(self.watch)
        return out

    def watch(self, grad):
        """The gradient of the mean squared error of 8 × 16 numbers, as it is where float16 would
        overflow."""
        return torch.where(grad.abs().max() * 64 > self.room, torch.inf, grad)


# ------------------------------------------------------------ what stays in float32


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_norms_time_and_loss_compute_in_float32(precision, dtype):
    """Matrix products of the blocks run in 16 bits; norms, the time embedding, the loss, all
    weights and averages do not."""
    kinds = {}
    model = awake()

    def watch(name):
        return lambda m, args, out: kinds.setdefault(name, set()).add(out.dtype)

    for name, m in model.named_modules():
        if not list(m.children()) or name == "t_embedder":
            m.register_forward_hook(watch(name))

    class Watch(Interpolant):
        def loss(self, model, *args):
            terms = super().loss(model, *args)
            kinds.setdefault("loss", set()).add(terms["loss"].dtype)
            return terms

    done = train_dit(model=model, steps=2, precision=precision, objective=Watch())
    kept = {n for n in kinds if "norm" in n or n.startswith("t_embedder") or n == "loss"}
    assert len(kept) > 12 and all(kinds[n] == {torch.float32} for n in kept), {
        n: kinds[n] for n in kept
    }
    assert all(
        kinds[n] == {dtype}
        for n in kinds
        if n.endswith(("qkv", "proj", "fc1", "fc2", "final_layer.linear"))
    )
    assert {p.dtype for m in (done.model, done.ema) for p in m.parameters()} == {torch.float32}


def test_what_stays_in_float32_is_as_it_was_afterwards_and_each_copy_has_its_own():
    model = awake()
    done = train_dit(model=model, steps=3, precision="fp16", ema=0.5)
    for m in (*done.model.modules(), *done.ema.modules()):
        assert "forward" not in vars(m)
    x = torch.randn(2, 2, 4, 4, 4)
    t = torch.rand(2)
    assert not torch.equal(done.model(x, t), done.ema(x, t))
    run = _Trainer(
        awake(), clips(), Interpolant(), _arguments(precision="fp16"), Distributed("cpu")
    )
    with torch.no_grad():
        run.model.t_embedder.mlp[0].bias.fill_(9.0)
    with run.as_trained():
        assert not torch.equal(
            run.model.t_embedder(t), run.ema.t_embedder(t)
        )  # the average's own weights
        assert torch.equal(
            run.model.t_embedder(t), type(run.model.t_embedder).forward(run.model.t_embedder, t)
        )


def _arguments(**change):
    import inspect
    from types import SimpleNamespace

    defaults = {k: p.default for k, p in inspect.signature(fit).parameters.items()}
    return SimpleNamespace(**{**defaults, "steps": 10, **change})


def test_float16_is_near_float32():
    a = train_dit(precision="fp16", steps=12)
    b = train_dit(steps=12)
    assert (
        a.log[-1]["loss"] == pytest.approx(b.log[-1]["loss"], rel=0.02)
        and a.log[-1]["loss"] != b.log[-1]["loss"]
    )
    assert b.log[-1].keys().isdisjoint({"scale", "overflowed"})
    assert a.log[-1]["scale"] > 0 and a.log[0]["grad_norm"] == pytest.approx(
        b.log[0]["grad_norm"], rel=0.05
    )


def test_estimate_knows_float16():
    e = estimate_cost(awake(), clips(), Interpolant(), batch_size=8, precision="fp16")
    assert (
        e.fits
        and e.activations < estimate_cost(awake(), clips(), Interpolant(), batch_size=8).activations
    )
    tight = estimate_cost(
        Scaled(room=2.0**13), Data(), Interpolant(), precision="fp16"
    )  # no update is left out
    assert tight.static == estimate_cost(Net(dropout=0), Data(), Interpolant()).static


# ------------------------------------------------------------------------------------- the scaler


def test_scaler_backs_off_and_the_steps_are_logged(tmp_path):
    "Updates whose scaled gradients overflow are left out, and halve the scale, until they fit."
    net = Scaled(room=2.0**13)
    seen = []
    before = {k: p.clone() for k, p in net.named_parameters()}

    def look(step, ema):
        seen.append(all(torch.equal(p, before[k]) for k, p in net.named_parameters()))

    done = go(
        tmp_path,
        net=net,
        precision="fp16",
        steps=9,
        log_every=1,
        sample_every=1,
        on_sample=look,
        valid=None,
    )
    lost = [s for r in log_of(tmp_path) for s in r["overflowed"]]
    first = next(s for s in range(1, 10) if s not in lost)  # the first update that fits
    assert lost[0] == 1 and 1 < len(lost) < 9
    assert seen == [s < first for s in range(1, 10)]  # the weights stay until then
    assert [r["scale"] for r in done.log] == [
        2.0**16 / 2 ** sum(n <= s for n in lost) for s in range(1, 10)
    ]
    assert ["grad_norm" in r for r in done.log] == [s not in lost for s in range(1, 10)]
    assert all(math.isfinite(v) for r in done.log for v in r.values() if isinstance(v, float))
    norms = [
        r["grad_norm"] for r in done.log if "grad_norm" in r
    ]  # a line's mean is over the updates made
    line = go(
        None, net=Scaled(room=2.0**13), precision="fp16", steps=9, log_every=100, valid=None
    ).log[-1]
    assert line["overflowed"] == lost[1:] and line["grad_norm"] == pytest.approx(
        sum(norms) / len(norms), rel=1e-6
    )


@pytest.mark.parametrize("stops", [(1,), (2, 5), (17, 30)], ids=str)
def test_fp16_resumes_bit_equal(tmp_path, stops):
    "Stopped while the scale is still falling, and later; the scale and its counter go on."
    options = dict(precision="fp16", more_ema=(0.5,), accumulate=2, spikes="skip")
    go(tmp_path / "a", net=Scaled(2.0**13), **options)
    for stop in (*stops, None):
        go(tmp_path / "b", net=Scaled(2.0**13), stop_at=stop, **options)
    same(tmp_path / "a", tmp_path / "b")
    a, b = (load_checkpoint(tmp_path / n).state["scaler"] for n in "ab")
    assert a == b and a["_growth_tracker"] > 20 and a["scale"] < 2**16
    assert sum(len(r["overflowed"]) for r in log_of(tmp_path / "b")) > 2


def test_gradients_that_are_not_finite_at_any_scale_are_refused(tmp_path):
    class Steep(Interpolant):
        def loss(self, model, *args):
            terms = super().loss(model, *args)
            return {"loss": terms["loss"] + (0 * model.last.weight.sum()).sqrt()}

    net = Net(dropout=0)
    before = {k: p.clone() for k, p in net.named_parameters()}
    with pytest.raises(NonFiniteLoss, match="gradient is not finite at step 16") as e:
        go(tmp_path, net=net, precision="fp16", objective=Steep())
    assert (
        all(torch.equal(p, before[k]) for k, p in net.named_parameters()) and e.value.path.exists()
    )


def test_a_loss_that_is_not_finite_is_refused_at_once():
    with pytest.raises(NonFiniteLoss, match="loss is not finite"):
        go(None, data=Data(bad=33), precision="fp16")


def test_other_precisions_have_no_scaler(tmp_path):
    go(tmp_path, precision="bf16", steps=3)
    assert "scaler" not in load_checkpoint(tmp_path).state
    with pytest.raises(ValueError, match="recipe.precision is 'fp16'"):
        go(tmp_path, precision="fp16")
    with pytest.raises(
        ValueError, match="precision must be one of 'fp32', 'bf16', 'fp16', not 'half'"
    ):
        go(None, precision="half")


def test_clipping_acts_on_every_norm_above(monkeypatch):
    "It is left out where it would do nothing; never above."
    norms = []
    real = torch.nn.utils.clip_grads_with_norm_
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grads_with_norm_",
        lambda p, most, norm: (norms.append(norm.item()), real(p, most, norm)),
    )
    found = [
        r["grad_norm"] for r in go(None, net=Net(dropout=0), clip=1e9, log_every=1, valid=None).log
    ]
    assert not norms
    clip = sorted(found)[20]
    now = [
        r["grad_norm"] for r in go(None, net=Net(dropout=0), clip=clip, log_every=1, valid=None).log
    ]
    assert (
        5 < len(norms) < 39
        and {n for n in now if n > clip} <= set(norms)
        and min(norms) > 0.98 * clip
    )


# ------------------------------------------------------------------------------------- compile


@pytest.fixture
def graphs(monkeypatch):
    "torch.compile with a backend that only counts the graphs and runs them as they are."
    found = []
    real = torch.compile

    def backend(graph, inputs):
        found.append(graph)
        return graph

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(real, backend=backend))
    yield found
    torch._dynamo.reset()


def test_blocks_share_one_graph_and_names_stay(graphs, tmp_path):
    a = train_dit(tmp_path / "a", compile="blocks", steps=3, condition_dropout=0)
    assert len(graphs) == 1  # three blocks, one graph
    b = train_dit(tmp_path / "b", steps=3, condition_dropout=0)
    for part in ("model", "ema", "optimizer"):
        p, q = (getattr(load_checkpoint(tmp_path / n), part) for n in "ab")
        assert p.keys() == q.keys() and all(torch.allclose(p[k], q[k], atol=1e-6) for k in p)
    assert a.log[-1]["loss"] == pytest.approx(b.log[-1]["loss"], rel=1e-5)
    load_checkpoint(tmp_path / "a").load_into(VideoDiT(TINY))


def test_the_whole_model_compiles_into_other_graphs(graphs):
    train_dit(compile=True, steps=1)
    nodes = max(len(g.graph.nodes) for g in graphs)
    torch._dynamo.reset()
    graphs.clear()
    train_dit(compile="blocks", steps=1)
    assert nodes > 2 * max(len(g.graph.nodes) for g in graphs)


def test_a_compiled_run_goes_on_uncompiled(graphs, tmp_path):
    train_dit(tmp_path, compile="blocks", stop_at=4, precision="bf16")
    assert train_dit(tmp_path, precision="bf16").step == 12


def test_blocks_need_blocks():
    with pytest.raises(ValueError, match="Net has no nn.ModuleList of blocks"):
        go(None, compile="blocks")
    with pytest.raises(
        ValueError, match="compile must be one of False, True, 'blocks', not 'block'"
    ):
        go(None, compile="block")
    net = nn.Module()
    net.few = nn.ModuleList([nn.Linear(2, 2)])
    net.many = nn.ModuleList([nn.Linear(9, 9), nn.Linear(9, 9)])
    assert repeated_blocks(net) == list(net.many) and repeated_blocks(VideoDiT(TINY))[0].mlp
    assert json.dumps(config_dict(awake())) == json.dumps(config_dict(VideoDiT(TINY)))
