"""Floating-point operations of a training step, counted without a card."""

import dataclasses

import pytest
import torch
from helpers.models import FRAMES, video
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minisora.models.cost import training_flops
from minisora.models.layouts import Checkpointed, Routed, wrapped
from minisora.temporal import VideoDiT, VideoDiTConfig


def test_a_forward_pass_counts_as_torch_counts_it():
    model = video(FRAMES)
    x = torch.randn(2, 4, *FRAMES.size)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(x, torch.rand(2))
    assert training_flops(model, batch=2, backward=False) == counter.get_total_flops()


def test_samples_cost_alike_and_learning_three_times_as_much():
    model = video(FRAMES)
    one = training_flops(model)
    assert training_flops(model, batch=3) == pytest.approx(3 * one, rel=1e-3)
    assert one == pytest.approx(3 * training_flops(model, backward=False), rel=0.05)


def test_the_model_stays_as_it_is():
    model = video(FRAMES)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    training_flops(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())


def test_wrappers_count():
    model = video(FRAMES)
    plain = training_flops(model)
    forward = training_flops(model, backward=False)
    with wrapped(model, Checkpointed()):
        again = training_flops(model)
        assert training_flops(model, backward=False) == forward
    assert plain + 0.9 * forward < again < plain + forward  # all blocks once more
    with wrapped(model, Routed(0.5, blocks=(0, 4))):
        assert training_flops(model) < 0.6 * plain
        assert training_flops(model.eval()) == plain


def test_any_size_will_do():
    "A copy without memory: a model that no machine here could run."
    with torch.device("meta"):
        model = VideoDiT(dataclasses.replace(FRAMES, size=(16, 256, 256), layout="factorized"))
    assert training_flops(model) > 1e12


def test_flops_are_those_of_the_matrices():
    config = VideoDiTConfig(channels=3, size=(2, 4, 4), patch=(1, 2, 2), width=32, depth=2, heads=2)
    model = VideoDiT(config)
    width = 32
    tokens = 8
    numbers = 12  # of a patch
    # qkv, projection, MLP; attention; adaLN
    block = tokens * 12 * width**2 + 2 * tokens**2 * width + 6 * width**2
    # in and out; final adaLN; time
    ends = tokens * 2 * numbers * width + 2 * width**2 + 256 * width + width**2
    forward = training_flops(model, backward=False)
    assert forward == 2 * (2 * block + ends)
    assert training_flops(model, batch=3, backward=False) == 3 * forward
    assert 2.8 < training_flops(model) / forward <= 3
