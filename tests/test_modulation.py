"""AdaLN-LoRA: one modulation for all blocks and a low-rank correction for each."""

import pytest
import torch
from diffusers.models.transformers.transformer_cosmos import CosmosAdaLayerNormZero
from helpers.models import awake

from minisora.core.noise import fork_seed
from minisora.models.conditions import WordCondition
from minisora.models.layouts import Factorized
from minisora.models.modulation import AdaLN, AdaLNLoRA, LowRankModulation
from minisora.temporal import VideoDiT, VideoDiTConfig

SIZES = dict(size=(2, 4, 4), patch=(1, 2, 2), width=24, heads=3, depth=3)


def test_it_is_the_papers_equation():
    "A_i = A_1 + W_b W_a silu(c), with A_1 of one layer that all blocks share."
    model = awake(VideoDiT(VideoDiTConfig(**SIZES, modulation=AdaLNLoRA(4))))
    c = torch.randn(5, 24)
    shared = model.adaLN_shared[1].weight @ torch.nn.functional.silu(c).T
    shared = shared.T + model.adaLN_shared[1].bias
    steering = model.config.modulation.steer(model, c)
    assert steering.shape == (5, 7 * 24)
    answers = []
    for block in model.blocks:
        a, b = block.adaLN_modulation.down.weight, block.adaLN_modulation.up.weight
        assert a.shape == (4, 24) and b.shape == (6 * 24, 4)
        want = shared + torch.nn.functional.silu(c) @ (b @ a).T
        answers.append(block.adaLN_modulation(steering))
        torch.testing.assert_close(answers[-1], want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(answers[0], answers[1])


def test_equal_to_cosmos_on_equal_weights():
    """diffusers' Cosmos has the same correction, for three of the six vectors in one layer and with
    the shared part computed outside."""
    width, rank = 24, 8
    with fork_seed(0):
        ours = awake(LowRankModulation(width, rank), std=0.3)
        theirs = CosmosAdaLayerNormZero(in_features=width, hidden_features=rank)
        c = torch.randn(2, width)
        shared = torch.randn(2, 6 * width)
        x = torch.randn(2, 10, width)
    theirs.linear_1.weight.data = ours.down.weight.data.clone()
    theirs.linear_2.weight.data = ours.up.weight.data[: 3 * width].clone()
    normed, gate = theirs(x, c, shared[:, : 3 * width])
    shift, scale, our_gate = ours(torch.cat([c, shared], 1))[:, : 3 * width].chunk(3, 1)
    mine = theirs.norm(x) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(normed, mine, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gate.flatten(), our_gate.flatten(), rtol=1e-5, atol=1e-5)


def test_full_rank_can_be_any_adaln():
    "A model with layers of its own is one of low rank D with the shared layer at zero."
    own = awake(VideoDiT(VideoDiTConfig(**SIZES, layout=Factorized(), condition=WordCondition(5))))
    low = VideoDiT(
        VideoDiTConfig(
            **SIZES, layout=Factorized(), condition=WordCondition(5), modulation=AdaLNLoRA(24)
        )
    )
    state = {k: v for k, v in own.state_dict().items() if "blocks." not in k or "adaLN" not in k}
    for i in range(3):
        own.blocks[i].adaLN_modulation[1].bias.data = own.blocks[0].adaLN_modulation[1].bias.data
        state[f"blocks.{i}.adaLN_modulation.down.weight"] = torch.eye(24)
        weight = own.blocks[i].adaLN_modulation[1].weight
        state[f"blocks.{i}.adaLN_modulation.up.weight"] = weight
    state["adaLN_shared.1.weight"] = torch.zeros(6 * 24, 24)
    state["adaLN_shared.1.bias"] = own.blocks[0].adaLN_modulation[1].bias
    low.load_state_dict(state)
    x, t, y = torch.randn(2, 4, 2, 4, 4), torch.tensor([0.1, 0.8]), torch.tensor([1, 5])
    torch.testing.assert_close(low(x, t, y), own(x, t, y), rtol=1e-5, atol=1e-5)


def test_a_fresh_model_is_silent_and_every_weight_learns():
    model = VideoDiT(VideoDiTConfig(**SIZES, modulation=AdaLNLoRA(2)), seed=3)
    x, t = torch.randn(2, 4, 2, 4, 4), torch.tensor([0.1, 0.8])
    assert (model(x, t) == 0).all()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(4):
        optimizer.zero_grad()
        (model(x, t) - x).square().mean().backward()
        optimizer.step()
    still = [k for k, v in model.named_parameters() if torch.equal(v, before[k])]
    assert still == []


def test_the_seed_fixes_the_weights_and_no_generator_is_consumed():
    state = torch.get_rng_state()
    first, second = (
        VideoDiT(VideoDiTConfig(**SIZES, modulation="adaln-lora"), seed=s) for s in (3, 3)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_a_rank_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="AdaLNLoRA.rank"):
        AdaLNLoRA(value)


def test_a_modulation_that_is_none_is_refused():
    with pytest.raises(ValueError, match="modulation must be one of 'adaln', 'adaln-lora'"):
        VideoDiTConfig(**SIZES, modulation="film")
    assert VideoDiTConfig(**SIZES).modulation == AdaLN()
