"""Layers that came after the DiT paper: norms, gated MLPs, attention with a bias."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from helpers.models import awake
from torch import nn

from minisora import dit as D
from minisora.dit import DIT_PRESETS, DiT
from minisora.models.layers import (
    BlockConfig,
    SwiGLU,
    biased_attention,
    make_norm,
    swiglu_hidden,
)


def test_rms_norm_does_not_center():
    def rms(h):
        return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    x = torch.randn(4, 7, 32) * 3 + 2
    torch.testing.assert_close(make_norm(32, "rms")(x), rms(x))
    torch.testing.assert_close(make_norm(32)(x), rms(x - x.mean(-1, keepdim=True)))
    small = torch.randn(1, 32) * 1e-3  # here eps is as large as the tokens: 1e-5 would show
    torch.testing.assert_close(make_norm(32, "rms")(small), rms(small))
    block = D.DiTBlock(32, 2, norm="rms")
    final = D.FinalLayer(32, 4, "rms")
    norms = block.norm1, block.norm2, final.norm_final
    assert all(isinstance(m, nn.RMSNorm) and m.weight is None for m in norms)


def test_swiglu_is_gated_and_as_large_as_the_mlp():
    layer = awake(SwiGLU(32, 128))
    x = torch.randn(5, 32)
    a, b = F.linear(x, layer.fc1.weight, layer.fc1.bias).chunk(2, -1)
    torch.testing.assert_close(layer(x), layer.fc2(F.silu(a) * b))
    for name in ("S/2", "B/2", "L/2", "XL/2"):
        c = DIT_PRESETS[f"DiT-{name}"]
        with torch.device("meta"):
            n, m = [
                D.count_parameters(DiT(dataclasses.replace(c, mlp=k))) for k in ("gelu", "swiglu")
            ]
        assert abs(m / n - 1) < 0.001 and swiglu_hidden(4 * c.width) % 8 == 0
    assert swiglu_hidden(1) == 8  # never nothing


def test_attention_with_a_bias_is_pytorchs():
    shapes = [(2, 3, 9, 8)] * 3 + [(3, 9, 9)]
    q, k, v, bias = (torch.randn(*s, requires_grad=True) for s in shapes)

    def reference(q, k, v, bias):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    ends = []
    for attention in (biased_attention, reference):
        out = attention(q, k, v, bias)
        ends.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v, bias))])
    for a, b in zip(*ends):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_attention_without_a_bias_is_pytorchs_own():
    q, k, v = torch.randn(3, 2, 3, 9, 8)
    assert torch.equal(biased_attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_a_mask_of_keys_keeps_no_matrix_for_the_way_back():
    q, k, v = (torch.randn(2, 3, 64, 8, requires_grad=True) for _ in range(3))
    mask = torch.zeros(2, 1, 1, 64)
    mask[1, ..., 50:] = -torch.inf
    kept = []

    def note(x):
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        out = biased_attention(q, k, v, mask)
    assert max(kept) < 2 * 3 * 64 * 64
    got = [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]
    out = biased_attention(q, k, v, mask.expand(2, 1, 64, 64))
    want = [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- what a block is made of


def test_a_block_is_that_of_the_paper_unless_told():
    assert BlockConfig() == BlockConfig(4.0, "layer", "gelu", False)
    assert BlockConfig(mlp_ratio=3).mlp_ratio == 3.0  # an int from JSON
    assert type(BlockConfig(mlp_ratio=3).mlp_ratio) is float


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(norm="batch"), r"BlockConfig\.norm must be one of 'layer', 'rms', not 'batch'"),
        (dict(mlp="relu"), r"BlockConfig\.mlp must be one of 'gelu', 'swiglu', not 'relu'"),
        (dict(mlp_ratio="4"), r"BlockConfig\.mlp_ratio must be float, not '4'"),
        (dict(qk_norm=1), r"BlockConfig\.qk_norm must be bool, not 1"),
    ],
    ids=str,
)
def test_bad_blocks(fields, message):
    with pytest.raises(ValueError, match=message):
        BlockConfig(**fields)
