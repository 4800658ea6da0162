"""The DiT: its numbers agree with the paper, its function with diffusers', and it refuses what it
cannot be."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.models import TINY, awake, batch, close, without_gradient
from torch import nn

from minisora import dit as D
from minisora.core.hub import load_strict
from minisora.dit import DIT_PRESETS, DiT, DiTConfig

# ---------------------------------------------------------------- the paper's numbers

PAPER = {  # Gflops of Peebles & Xie 2023, table 4
    "S/8": 0.36,
    "S/4": 1.41,
    "S/2": 6.06,
    "B/8": 1.42,
    "B/4": 5.56,
    "B/2": 23.01,
    "L/8": 5.01,
    "L/4": 19.70,
    "L/2": 80.71,
    "XL/8": 7.39,
    "XL/4": 29.05,
    "XL/2": 118.64,
}


@pytest.mark.parametrize(
    "name, millions", [("S/2", 32.9), ("B/2", 130.3), ("L/2", 457.8), ("XL/2", 674.8)]
)
def test_parameters_of_the_paper(name, millions):
    with torch.device("meta"):
        model = DiT(DIT_PRESETS[f"DiT-{name}"])
    assert round(D.count_parameters(model) / 1e6, 1) == millions


@pytest.mark.parametrize("name", PAPER)
def test_flops_of_the_paper(name):
    macs = D.dit_macs(DIT_PRESETS[f"DiT-{name}"])
    assert macs["total"] / 1e9 == pytest.approx(PAPER[name], rel=0.01)


def test_macs_agree_with_torch_counter():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        DiT(TINY)(*batch(n=1))
    assert counter.get_total_flops() == 2 * D.dit_macs(TINY)["total"]


def test_presets_and_official_names():
    assert set(DIT_PRESETS) == {
        f"{n}-{s}/{p}" for n in ("DiT", "SiT") for s in ("S", "B", "L", "XL") for p in (2, 4, 8)
    }
    with torch.device("meta"):
        state = DiT(DIT_PRESETS["DiT-XL/2"]).state_dict()
    want = {"pos_embed", "y_embedder.embedding_table.weight"}
    layers = [
        "x_embedder.proj",
        "t_embedder.mlp.0",
        "t_embedder.mlp.2",
        "final_layer.linear",
        "final_layer.adaLN_modulation.1",
    ]
    layers += [
        f"blocks.{i}.{k}"
        for i in range(28)
        for k in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    ]
    assert set(state) == want | {f"{k}.{p}" for k in layers for p in ("weight", "bias")}
    assert len(state) == 292
    assert state["x_embedder.proj.weight"].shape == (1152, 4, 2, 2)
    assert state["y_embedder.embedding_table.weight"].shape == (1001, 1152)
    assert state["final_layer.linear.weight"].shape == (32, 1152)
    assert state["pos_embed"].shape == (1, 256, 1152)


# ---------------------------------------------------------------- parity


def from_diffusers(state):
    "Weights of diffusers' DiTTransformer2DModel under official names, without the library."
    first = "transformer_blocks.0.norm1.emb."
    names = {
        "pos_embed.proj": "x_embedder.proj",
        "proj_out_1": "final_layer.adaLN_modulation.1",
        "proj_out_2": "final_layer.linear",
        first + "timestep_embedder.linear_1": "t_embedder.mlp.0",
        first + "timestep_embedder.linear_2": "t_embedder.mlp.2",
        first + "class_embedder.embedding_table": "y_embedder.embedding_table",
    }
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("transformer_blocks."))
    for i in range(depth):
        theirs = f"transformer_blocks.{i}."
        ours = f"blocks.{i}."
        names |= {
            theirs + "attn1.to_out.0": ours + "attn.proj",
            theirs + "ff.net.0.proj": ours + "mlp.fc1",
            theirs + "ff.net.2": ours + "mlp.fc2",
            theirs + "norm1.linear": ours + "adaLN_modulation.1",
        }
    out = {
        f"{names[k]}.{p}": v
        for key, v in state.items()
        for k, p in [key.rsplit(".", 1)]
        if k in names
    }
    for i in range(depth):
        for p in ("weight", "bias"):
            out[f"blocks.{i}.attn.qkv.{p}"] = torch.cat(
                [state[f"transformer_blocks.{i}.attn1.to_{c}.{p}"] for c in "qkv"]
            )
    return out


@pytest.mark.parametrize("k", [0, 1, 500, 999])
def test_parity_with_diffusers(k):
    from diffusers import DiTTransformer2DModel

    theirs = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    ).eval()
    awake(theirs)
    # the original's frequencies; every block of theirs embeds t anew
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    ours = DiT(TINY)
    load_strict(ours, from_diffusers(theirs.state_dict()) | {"pos_embed": ours.pos_embed})
    x, _, y = batch(n=4)
    y[0] = ours.null_id
    with torch.no_grad():
        want = theirs(x[:, :, 0], timestep=torch.full((4,), k), class_labels=y).sample
        close(ours(x[:, :, 0], torch.full((4,), 1 - k / 1000), y), want)


def test_ddpm_time_is_the_exact_step():
    embedder = D.TimestepEmbedder(8, "ddpm")
    k = torch.arange(1000)
    half = torch.exp(-np.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
    want = k.double()[:, None] * half
    got = embedder.sinusoid(1 - k.float() / 1000)
    assert (got - torch.cat([want.cos(), want.sin()], 1)).abs().max() < 1e-4


def test_flow_time_is_scaled():
    a = D.TimestepEmbedder(8, "flow", 1.0)
    b = D.TimestepEmbedder(8, "flow", 1000.0)
    t = torch.tensor([0.1, 0.7])
    assert torch.equal(a.sinusoid(t * 1000), b.sinusoid(t))
    assert not torch.equal(a.sinusoid(t), b.sinusoid(t))
    assert torch.allclose(a.sinusoid(t)[:, 0], t.cos())


def test_patches_there_and_back():
    x = torch.randn(2, 3, 4, 6, 8)
    tokens = D.patchify(x, (2, 3, 2))
    assert tokens.shape == (2, 2 * 2 * 4, 36)
    assert torch.equal(D.unpatchify(tokens, (2, 2, 4), (2, 3, 2)), x)
    assert torch.equal(tokens[0, 5].view(2, 3, 2, 3), x[0, :, :2, 3:6, 2:4].permute(1, 2, 3, 0))
    embed = D.PatchEmbed(3, 2, 8)
    image = torch.randn(2, 3, 6, 8)
    weight = embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
    rows = D.patchify(image[:, :, None], (1, 2, 2))
    close(nn.functional.linear(rows, weight, embed.proj.bias), embed(image))


# ---------------------------------------------------------------- behavior


def test_a_fresh_model_is_zero_and_its_blocks_do_nothing():
    model = DiT(TINY)
    assert model(*batch()).abs().max() == 0
    x = torch.randn(3, 16, 32)
    assert torch.equal(model.blocks[0](x, torch.randn(3, 32)), x)
    assert not torch.equal(awake(model).blocks[0](x, torch.randn(3, 32)), x)


def test_initial_weights():
    model = DiT(dataclasses.replace(TINY, width=128))

    def std(layer):
        return layer.weight.std().item()

    assert std(model.y_embedder.embedding_table) == pytest.approx(0.02, rel=0.1)
    assert std(model.t_embedder.mlp[2]) == pytest.approx(0.02, rel=0.05)
    assert std(model.blocks[0].attn.qkv) == pytest.approx((2 / (128 * 4)) ** 0.5, rel=0.05)
    assert std(model.x_embedder.proj) == pytest.approx((2 / (128 + 16)) ** 0.5, rel=0.1)
    assert all(not m.bias.any() for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))


def test_images_are_clips_of_one_frame():
    model = awake(DiT(TINY))
    x, t, y = batch()
    assert model(x, t, y).shape == (3, 8, 1, 8, 8)
    assert torch.equal(model(x, t, y)[:, :, 0], model(x[:, :, 0], t, y))
    assert torch.equal(model(x, t, y[:, None]), model(x, t, y))


def test_unconditional_and_nonsquare_and_fixed_variance():
    c = dataclasses.replace(TINY, size=(4, 12), num_classes=0, learn_sigma=False)
    model = awake(DiT(c))
    x, t, y = batch(c)
    assert not any(k.startswith("y_embedder") for k in model.state_dict())
    assert model.null_id is None
    assert model(x, t).shape == (3, 4, 1, 4, 12)
    assert torch.equal(model(x, t, y), model(x, t))
    swapped = awake(DiT(dataclasses.replace(c, size=(12, 4))))
    assert not torch.allclose(model(x, t), swapped(x.transpose(3, 4), t).transpose(3, 4))


def test_only_positions_tell_patches_apart():
    model = awake(DiT(TINY))
    x, t, y = batch()

    def roll(z):
        "Whole patches move."
        return torch.roll(z, (2, 4), (3, 4))

    with torch.no_grad():
        assert not torch.allclose(roll(model(x, t, y)), model(roll(x), t, y), atol=1e-3)
        model.pos_embed.zero_()
        close(roll(model(x, t, y)), model(roll(x), t, y))
        half = torch.roll(model(x, t, y), 1, 3), model(torch.roll(x, 1, 3), t, y)
        assert not torch.allclose(*half, atol=1e-3)


def test_samples_do_not_see_each_other():
    model = awake(DiT(TINY))
    x, t, y = batch()
    close(model(x, t, y)[1:2], model(x[1:2], t[1:2], y[1:2]))
    assert not torch.allclose(model(x, t, y), model(x, t.flip(0), y))
    assert not torch.allclose(model(x, t, y), model(x, t, (y + 1) % 5))


def test_ids_are_used_as_given():
    model = awake(DiT(TINY)).train()
    x, t, y = batch()
    before = torch.get_rng_state()
    assert torch.equal(model(x, t, y), model(x, t, y))
    assert torch.equal(model(x, t, y), model.eval()(x, t, y))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model(x, t), model(x, t, torch.full((3,), model.null_id)))
    assert model.null_id == 5
    assert not torch.equal(model(x, t), model(x, t, y))


def test_weights_come_from_the_seed_alone():
    before = torch.get_rng_state()
    a = DiT(TINY).state_dict()
    b = DiT(TINY, seed=0).state_dict()
    c = DiT(TINY, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["blocks.0.attn.qkv.weight"], c["blocks.0.attn.qkv.weight"])


def test_every_weight_learns():
    model = awake(DiT(dataclasses.replace(TINY, qk_norm=True)))
    model(*batch()).square().mean().backward()
    assert without_gradient(model) == []


def test_qk_norm_bounds_the_logits():
    x = torch.randn(2, 9, 32)
    grown = {}
    for norm in (False, True):
        layer = D.Attention(32, 2, qk_norm=norm)
        torch.manual_seed(0)
        nn.init.normal_(layer.qkv.weight, std=0.2)
        a = layer(x)
        with torch.no_grad():  # queries and keys explode
            layer.qkv.weight[:64] *= 100
            layer.qkv.bias[:64] *= 100
        grown[norm] = (layer(x) - a).abs().max().item()
    assert grown[True] < 1e-4 < grown[False]


# ---------------------------------------------------------------- errors

NO_NULL = dataclasses.replace(TINY, null_class=False)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda m, x, t, y: m(x[:, :3], t, y),
            r"x must be \(B, 4, 1, 8, 8\), not \(3, 3, 1, 8, 8\)",
        ),
        (lambda m, x, t, y: m(x.repeat(1, 1, 2, 1, 1), t, y), "x must be"),
        (lambda m, x, t, y: m(x, t, y + 7), "condition id .* is not in 0 … 5"),
        (lambda m, x, t, y: m(x, t, y[:2]), r"y must be \(3,\)"),
        (lambda m, x, t, y: DiT(NO_NULL)(x, t), "no null class"),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call(DiT(TINY), *batch())


@pytest.mark.parametrize(
    "field, value",
    [
        ("patch", 3),
        ("patch", 0),
        ("width", 34),
        ("heads", 3),
        ("depth", 0),
        ("time_convention", "sit"),
        ("size", 8),
        ("size", (8, 8, 8)),
        ("size", (8, 8.5)),
        ("num_classes", -1),
        ("learn_sigma", 1),
        ("mlp_ratio", "4"),
        ("depth", True),
    ],
)
def test_bad_config(field, value):
    with pytest.raises(ValueError, match=rf"DiTConfig\.{field}"):
        dataclasses.replace(TINY, **{field: value})


def test_checkpointing_is_no_field_of_a_model():
    with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match=r"fit\(…, wrappers="):
        DiTConfig(checkpoint=True)
    with pytest.warns(DeprecationWarning, match="DiTConfig.checkpoint=…. is now fit"):
        assert DiTConfig(checkpoint=False) == DiTConfig()
    assert DiTConfig.upgrade(dict(depth=2, checkpoint=True)) == dict(depth=2)
    assert not hasattr(TINY, "checkpoint")
