"""`fit(…, shard=True)`: each process keeps a part of weights, averages and moments; the numbers
stay."""

import json

import accelerate  # noqa: F401 - before the forks, as below: FSDP imports the next ones
import pytest
import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor
from helpers.train import (  # noqa: F401
    DIT_OPTIONS,
    SIZES,
    TINY,
    AnySize,
    awake,
    clips,
    equal,
    go,
    interruptible,
    log_of,
    parts,
    together,
    train_dit,
)

from minisora.interpolants import Interpolant
from minisora.temporal import VideoDiT
from minisora.train import NonFiniteLoss, _Trainer, fit
from minisora.training.batches import BucketDataset
from minisora.training.checkpoint import load_checkpoint

FULL = DIT_OPTIONS | dict(valid_every=6)


def run(out, model=None, **change):
    return train_dit(
        out, model or awake(), **(FULL | dict(valid=tuple(x[:17] for x in clips())) | change)
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "A run of 12 steps in one process; clipping acts on every step."
    out = tmp_path_factory.mktemp("alone")
    run(out)
    assert min(r["grad_norm"] for r in log_of(out)) > 0.05
    return out


def test_two_processes_equal_one(alone, tmp_path):
    """Weights, averages, moments, losses, validation and gradient norms; each process really holds
    half of each matrix."""

    def job(rank):
        seen = {}
        real = _Trainer.update

        def watch(r, batch):
            real(r, batch)
            for k, p in r.parameters.items():
                seen[k] = p.to_local().numel() / p.numel()
            seen["ema"] = r.ema.blocks[0].mlp.fc1.weight.to_local().shape[0]
            (o,) = r.optimizers
            seen["moment"] = (
                o.state[r.model.blocks[0].mlp.fc1.weight]["exp_avg"].to_local().shape[0]
            )

        _Trainer.update = watch
        model = awake()
        if rank:
            model.final_layer.linear.weight.data += rank  # all start from the weights of rank 0
        run(tmp_path / "run", model, shard=True)
        (tmp_path / f"seen{rank}").write_text(json.dumps(seen))

    assert together(job, tmp_path) == ["", ""]
    equal(alone, tmp_path / "run")
    a = load_checkpoint(alone)
    b = load_checkpoint(tmp_path / "run")
    assert all(torch.allclose(a.emas[0.2][k], v, atol=1e-5) for k, v in b.emas[0.2].items())
    seen = json.loads((tmp_path / "seen1").read_text())
    shares = {k: v for k, v in seen.items() if k not in ("ema", "moment")}
    assert len(shares) > 40 and all(v <= 0.55 for v in shares.values()), shares
    assert seen["ema"] == seen["moment"] == 32  # of 64 rows


def test_checkpoint_is_the_same_whole_one(alone, tmp_path):
    """Written by shards, read without: same files, keys, shapes; and it samples as the average that
    came back."""

    def job(rank):
        done = run(tmp_path / "run", shard=True, stop_at=5)
        assert type(done.ema) is VideoDiT and not any(
            hasattr(p, "full_tensor") for p in done.ema.parameters()
        )
        x = clips(2)[0]
        t = torch.tensor([0.3, 0.6])
        (tmp_path / f"says{rank}x").write_text(
            repr(
                [
                    done.model(x, t).double().sum().item(),
                    done.ema(x, t).double().sum().item(),
                    done.emas[0.2](x, t).double().sum().item(),
                ]
            )
        )

    assert together(job, tmp_path) == ["", ""]
    a = load_checkpoint(alone)
    b = load_checkpoint(tmp_path / "run")
    for part in ("model", "ema", "optimizer"):
        p = getattr(a, part)
        q = getattr(b, part)
        assert {k: v.shape for k, v in p.items()} == {k: v.shape for k, v in q.items()}
    assert a.state["config"] == b.state["config"]
    x = clips(2)[0]
    t = torch.tensor([0.3, 0.6])
    want = [
        b.load_into(VideoDiT(TINY).eval(), w)(x, t).double().sum().item()
        for w in ("model", "ema", 0.2)
    ]
    said = [json.loads((tmp_path / f"says{r}x").read_text()) for r in range(2)]
    assert said[0] == said[1] == pytest.approx(want, rel=1e-6) and len(set(want)) == 3


def test_from_one_to_shards_to_copies_and_back(alone, tmp_path):
    "One process to step 3, two with shards to 7, two with whole copies to 9, one to the end."
    out = tmp_path / "run"
    run(out, stop_at=3)
    for k, options in enumerate((dict(stop_at=7, shard=True), dict(stop_at=9))):
        (tmp_path / f"{k}").mkdir()
        assert together(lambda rank, options=options: run(out, **options), tmp_path / f"{k}") == [
            "",
            "",
        ]
    run(out, shard=True)  # alone there is nothing to share
    equal(alone, out)


def test_given_model_is_trained_in_place_and_samples_are_drawn_from_whole_ones(tmp_path):
    def job(rank):
        model = awake()
        drawn = []
        before = model.blocks[0].mlp.fc1.weight.clone()
        done = run(
            None,
            model,
            shard=True,
            valid=None,
            valid_every=None,
            sample_every=4,
            steps=8,
            on_sample=lambda step, ema: drawn.append((step, ema(clips(2)[0], torch.rand(2)).shape)),
        )
        assert done.model is model and not torch.equal(model.blocks[0].mlp.fc1.weight, before)
        assert [s for s, _ in drawn] == ([4, 8] if rank == 0 else [])
        assert not any(p.requires_grad for p in done.ema.parameters()) and all(
            p.requires_grad for p in model.parameters()
        )

    assert together(job, tmp_path) == ["", ""]


@pytest.mark.parametrize(
    "options",
    [dict(precision="fp16"), dict(precision="bf16"), dict(spikes="skip", accumulate=1)],
    ids=str,
)
def test_with_other_options(tmp_path, options):
    "In 16 bits the order of sums shows more."
    run(tmp_path / "one", **options)
    assert together(lambda rank: run(tmp_path / "two", shard=True, **options), tmp_path) == ["", ""]
    equal(tmp_path / "one", tmp_path / "two", 3e-2 if "precision" in options else 1e-5)


def test_muon_sees_whole_matrices(tmp_path):
    """It orthogonalizes in bfloat16, which blows up what a sum's order leaves in directions without
    a gradient: so not each weight is compared, but the way that all of them have gone.
    Orthogonalized by halves they go elsewhere."""
    run(tmp_path / "one", optimizer="muon")
    assert together(lambda rank: run(tmp_path / "two", shard=True, optimizer="muon"), tmp_path) == [
        "",
        "",
    ]
    start = awake().state_dict()
    one, two = (load_checkpoint(tmp_path / k).model for k in ("one", "two"))
    gone = sum((one[k] - start[k]).square().sum() for k in start).sqrt()
    apart = sum((one[k] - two[k]).square().sum() for k in start).sqrt()
    assert apart < 0.1 * gone, f"{apart:.4f} apart after {gone:.4f}"


def test_buckets_and_uneven_validation(tmp_path):
    """Three parts of validation data for two processes: both do as many forward passes, and count
    each sample once."""
    options = dict(batch_size=SIZES, valid=BucketDataset(parts((9, 7, 8))), steps=20, log_every=4)

    class Blocks(AnySize):
        def __init__(self):
            super().__init__(dropout=0)
            self.blocks = torch.nn.ModuleList([self.first, self.last])

    go(tmp_path / "one", data=BucketDataset(parts()), net=Blocks(), **options)
    said = together(
        lambda rank: go(
            tmp_path / "two", data=BucketDataset(parts()), net=Blocks(), shard=True, **options
        ),
        tmp_path,
    )
    assert said == ["", ""]
    equal(tmp_path / "one", tmp_path / "two")


def test_nonfinite_loss_is_saved_whole(tmp_path):
    x, y = clips()
    x[3] = torch.nan

    def job(rank):
        with pytest.raises(NonFiniteLoss, match="loss is not finite"):
            fit(
                awake(),
                (x, y),
                Interpolant(),
                steps=20,
                batch_size=8,
                out=tmp_path / "run",
                shard=True,
                progress=False,
            )

    assert together(job, tmp_path) == ["", ""]
    (path,) = (tmp_path / "run" / "checkpoints").glob("nonfinite-*")
    saved = load_checkpoint(path)
    assert saved.load_into(VideoDiT(TINY), "model") and 3 in saved.state["indices"]


def test_a_model_without_blocks(tmp_path):
    said = together(lambda rank: go(None, shard=True), tmp_path)
    assert said == ["ValueError: Net has no nn.ModuleList of blocks"] * 2
