"""The same model and objective under mmengine's Runner: the losses and weights of `fit`."""

import importlib.util

import pytest
import torch
from helpers.train import TINY, awake, clips

from minisora.interpolants import Interpolant
from minisora.temporal import VideoDiT
from minisora.train import as_mmengine, fit
from minisora.training.batches import batch_indices, make_loader

OPTIONS = dict(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)


def needs_mmengine():
    pytest.importorskip("mmengine", reason="mmengine is an optional extra: pip install mmengine")


def runner(folder, steps, model=None, end=None, **change):
    "What a user of mmengine writes, to train as `fit(…, steps=steps, warmup=4, clip=.05)` does."
    from mmengine.runner import Runner

    model = as_mmengine(model or awake(), Interpolant())
    warmup = dict(type="LinearLR", start_factor=1 / 4, begin=0, end=4, by_epoch=False)
    config = (
        dict(
            model=model,
            work_dir=str(folder),
            train_dataloader=make_loader(clips(), steps=steps, batch_size=8),
            train_cfg=dict(by_epoch=False, max_iters=end or steps),
            param_scheduler=[warmup],
            optim_wrapper=dict(
                optimizer=dict(type="AdamW", **OPTIONS), clip_grad=dict(max_norm=0.05)
            ),
            default_hooks=dict(
                logger=dict(type="LoggerHook", interval=1),
                checkpoint=dict(type="CheckpointHook", interval=3, by_epoch=False),
            ),
            default_scope="mmengine",
            log_level="ERROR",
            experiment_name=f"steps-{end or steps}",
        )
        | change
    )
    made = Runner(**config)
    losses = []
    step = model.train_step

    def watch(data, optim_wrapper):
        log = step(data, optim_wrapper)
        losses.append(log["loss"].item())
        return log

    model.train_step = watch
    made.train()
    return made, losses


def test_runner_equals_fit(tmp_path):
    """Losses of twelve steps and the weights after them: the same data, noise, times, nulls,
    clipping and warm-up."""
    needs_mmengine()
    want = fit(
        awake(),
        clips(),
        Interpolant(),
        steps=12,
        batch_size=8,
        warmup=4,
        clip=0.05,
        log_every=1,
        progress=False,
        **OPTIONS,
    )
    made, losses = runner(tmp_path, 12)
    assert losses == pytest.approx([r["loss"] for r in want.log], rel=1e-5) and len(losses) == 12
    for k, v in want.model.state_dict().items():
        assert torch.allclose(v, made.model.model.state_dict()[k], atol=1e-6), k
    assert max(r["grad_norm"] for r in want.log) > 0.05


def test_runner_resumes(tmp_path, monkeypatch):
    """mmengine's own checkpoint holds the step, and with it noise and times. (Its reader needs the
    variable from torch 2.6 on.)"""
    needs_mmengine()
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    _, straight = runner(tmp_path / "a", 9)
    runner(tmp_path / "b", 9, end=6)
    made, rest = runner(tmp_path / "b", 9, resume=True)
    assert rest == pytest.approx(straight[6:], rel=1e-5) and int(made.model.step) == 9
    saved = torch.load(tmp_path / "b" / "iter_9.pth", weights_only=False)["state_dict"]
    VideoDiT(TINY).load_state_dict({k[6:]: v for k, v in saved.items() if k.startswith("model.")})
    assert int(saved["step"]) == 9 and len(saved) == len(awake().state_dict()) + 1


def test_modes():
    needs_mmengine()
    denoiser = as_mmengine(awake(), Interpolant(), sample_steps=3)
    batch = next(iter(make_loader(clips(), 1, 4)))
    terms = denoiser(**batch)
    assert (
        terms.keys() == {"loss", "mse"} and terms["loss"].requires_grad and int(denoiser.step) == 1
    )
    assert (
        denoiser(**batch)["loss"] != terms["loss"] and int(denoiser.step) == 2
    )  # another step, other noise
    denoiser.eval()
    denoiser(**batch)
    assert int(denoiser.step) == 2  # validation does not count
    made = denoiser.val_step(batch)
    assert [m["index"] for m in made] == batch["index"].tolist() and made[0]["latents"].shape == (
        2,
        4,
        4,
        4,
    )
    assert denoiser(**batch, mode="tensor").shape == batch["latents"].shape


def test_batches_are_those_of_fit():
    found = [
        b["index"] for b in make_loader(clips(), range(3, 6), batch_size=8, seed=2, rank=1, world=2)
    ]
    assert all(
        i.equal(batch_indices(2, s, 8, 30)[1::2]) for s, i in zip(range(3, 6), found, strict=True)
    )


def test_without_mmengine_it_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match="as_mmengine: the package is not there; pip install mmengine"
    ):
        as_mmengine(awake(), Interpolant())
