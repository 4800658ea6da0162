"""The DiT: its numbers agree with the paper, its function with diffusers', and its folders are whole or refused."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minisora import dit as D
from minisora.dit import PRESETS, DiT, DiTConfig

TINY = DiTConfig(size=(8, 8), width=32, depth=2, heads=2, num_classes=5)


def awake(model, std=0.2, seed=1):
    "Give every weight a random value: a fresh DiT outputs zero, whatever is wrong inside."
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=g) * std
    return model


def batch(config=TINY, n=3, seed=2):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, config.channels, 1, *config.size, generator=g),
        torch.rand(n, generator=g),
        torch.randint(0, max(config.num_classes, 1), (n,), generator=g),
    )


def close(a, b, rel=1e-5):
    assert a.shape == b.shape
    error = (a - b).abs().max() / b.abs().max()
    assert b.abs().max() > 1e-3 and error <= rel, f"relative error {error:.1e}"


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
        model = DiT(PRESETS[f"DiT-{name}"])
    assert round(D.count_parameters(model) / 1e6, 1) == millions


@pytest.mark.parametrize("name", PAPER)
def test_flops_of_the_paper(name):
    assert D.dit_macs(PRESETS[f"DiT-{name}"])["total"] / 1e9 == pytest.approx(PAPER[name], rel=0.01)


def test_macs_agree_with_torch_counter():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        DiT(TINY)(*batch(n=1))
    assert counter.get_total_flops() == 2 * D.dit_macs(TINY)["total"]


def test_presets_and_official_names():
    assert set(PRESETS) == {
        f"{n}-{s}/{p}" for n in ("DiT", "SiT") for s in ("S", "B", "L", "XL") for p in (2, 4, 8)
    }
    with torch.device("meta"):
        state = DiT(PRESETS["DiT-XL/2"]).state_dict()
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
    assert (
        set(state) == want | {f"{k}.{p}" for k in layers for p in ("weight", "bias")}
        and len(state) == 292
    )
    assert state["x_embedder.proj.weight"].shape == (1152, 4, 2, 2)
    assert state["y_embedder.embedding_table.weight"].shape == (1001, 1152)
    assert state["final_layer.linear.weight"].shape == (32, 1152) and state["pos_embed"].shape == (
        1,
        256,
        1152,
    )


# ---------------------------------------------------------------- parity


def from_diffusers(state):
    "Weights of diffusers' DiTTransformer2DModel under official names."
    names = {
        "pos_embed.proj": "x_embedder.proj",
        "proj_out_1": "final_layer.adaLN_modulation.1",
        "proj_out_2": "final_layer.linear",
        "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "transformer_blocks.0.norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
    }
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("transformer_blocks."))
    for i in range(depth):
        a, b = f"transformer_blocks.{i}.", f"blocks.{i}."
        names |= {
            a + "attn1.to_out.0": b + "attn.proj",
            a + "ff.net.0.proj": b + "mlp.fc1",
            a + "ff.net.2": b + "mlp.fc2",
            a + "norm1.linear": b + "adaLN_modulation.1",
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
    for block in (
        theirs.transformer_blocks
    ):  # the original's frequencies; every block of theirs embeds t anew
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    ours = DiT(TINY)
    D.load_state(ours, from_diffusers(theirs.state_dict()) | {"pos_embed": ours.pos_embed})
    x, _, y = batch(n=4)
    y[0] = ours.null_id
    with torch.no_grad():
        want = theirs(x[:, :, 0], timestep=torch.full((4,), k), class_labels=y).sample
        close(ours(x[:, :, 0], torch.full((4,), 1 - k / 1000), y), want)


def test_ddpm_time_is_the_exact_step():
    e = D.TimestepEmbedder(8, "ddpm")
    k = torch.arange(1000)
    half = torch.exp(-np.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
    want = k.double()[:, None] * half
    got = e.sinusoid(1 - k.float() / 1000)
    assert (got - torch.cat([want.cos(), want.sin()], 1)).abs().max() < 1e-4


def test_flow_time_is_scaled():
    a, b = D.TimestepEmbedder(8, "flow", 1.0), D.TimestepEmbedder(8, "flow", 1000.0)
    t = torch.tensor([0.1, 0.7])
    assert torch.equal(a.sinusoid(t * 1000), b.sinusoid(t)) and not torch.equal(
        a.sinusoid(t), b.sinusoid(t)
    )
    assert torch.allclose(a.sinusoid(t)[:, 0], t.cos())


def test_positions_are_w_first():
    got = D.sincos_2d(16, (2, 3))
    w = 1 / 10000 ** (np.arange(4) / 4)
    for row in range(2):
        for column in range(3):
            want = np.concatenate(
                [np.sin(column * w), np.cos(column * w), np.sin(row * w), np.cos(row * w)]
            )
            np.testing.assert_allclose(got[row * 3 + column], want, atol=1e-6)


def test_patches_there_and_back():
    x = torch.randn(2, 3, 4, 6, 8)
    tokens = D.patchify(x, (2, 3, 2))
    assert tokens.shape == (2, 2 * 2 * 4, 36) and torch.equal(
        D.unpatchify(tokens, (2, 2, 4), (2, 3, 2)), x
    )
    assert torch.equal(tokens[0, 5].view(2, 3, 2, 3), x[0, :, :2, 3:6, 2:4].permute(1, 2, 3, 0))
    embed = D.PatchEmbed(3, 2, 8)
    image = torch.randn(2, 3, 6, 8)
    weight = embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
    close(
        nn.functional.linear(D.patchify(image[:, :, None], (1, 2, 2)), weight, embed.proj.bias),
        embed(image),
    )


# ---------------------------------------------------------------- behaviour


def test_a_fresh_model_is_zero_and_its_blocks_do_nothing():
    model = DiT(TINY)
    assert model(*batch()).abs().max() == 0
    x = torch.randn(3, 16, 32)
    assert torch.equal(model.blocks[0](x, torch.randn(3, 32)), x)
    assert not torch.equal(awake(model).blocks[0](x, torch.randn(3, 32)), x)


def test_initial_weights():
    model = DiT(dataclasses.replace(TINY, width=128))
    assert model.y_embedder.embedding_table.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.t_embedder.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[0].attn.qkv.weight.std().item() == pytest.approx(
        (2 / (128 * 4)) ** 0.5, rel=0.05
    )
    assert model.x_embedder.proj.weight.std().item() == pytest.approx(
        (2 / (128 + 16)) ** 0.5, rel=0.1
    )
    assert all(not m.bias.any() for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))


def test_images_are_clips_of_one_frame():
    model, (x, t, y) = awake(DiT(TINY)), batch()
    assert model(x, t, y).shape == (3, 8, 1, 8, 8) and torch.equal(
        model(x, t, y)[:, :, 0], model(x[:, :, 0], t, y)
    )
    assert torch.equal(model(x, t, y[:, None]), model(x, t, y))


def test_unconditional_and_nonsquare_and_fixed_variance():
    c = dataclasses.replace(TINY, size=(4, 12), num_classes=0, learn_sigma=False)
    model, (x, t, y) = awake(DiT(c)), batch(c)
    assert not any(k.startswith("y_embedder") for k in model.state_dict()) and model.null_id is None
    assert model(x, t).shape == (3, 4, 1, 4, 12) and torch.equal(model(x, t, y), model(x, t))
    swapped = awake(DiT(dataclasses.replace(c, size=(12, 4))))
    assert not torch.allclose(model(x, t), swapped(x.transpose(3, 4), t).transpose(3, 4))


def test_only_positions_tell_patches_apart():
    model, (x, t, y) = awake(DiT(TINY)), batch()
    roll = lambda z: torch.roll(z, (2, 4), (3, 4))  # whole patches move
    with torch.no_grad():
        assert not torch.allclose(roll(model(x, t, y)), model(roll(x), t, y), atol=1e-3)
        model.pos_embed.zero_()
        close(roll(model(x, t, y)), model(roll(x), t, y))
        assert not torch.allclose(
            torch.roll(model(x, t, y), 1, 3), model(torch.roll(x, 1, 3), t, y), atol=1e-3
        )


def test_samples_do_not_see_each_other():
    model, (x, t, y) = awake(DiT(TINY)), batch()
    close(model(x, t, y)[1:2], model(x[1:2], t[1:2], y[1:2]))
    assert not torch.allclose(model(x, t, y), model(x, t.flip(0), y)) and not torch.allclose(
        model(x, t, y), model(x, t, (y + 1) % 5)
    )


def test_ids_are_used_as_given():
    model, (x, t, y) = awake(DiT(TINY)).train(), batch()
    before = torch.get_rng_state()
    assert torch.equal(model(x, t, y), model(x, t, y)) and torch.equal(
        model(x, t, y), model.eval()(x, t, y)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert (
        torch.equal(model(x, t), model(x, t, torch.full((3,), model.null_id)))
        and model.null_id == 5
    )
    assert not torch.equal(model(x, t), model(x, t, y))


def test_weights_come_from_the_seed_alone():
    before = torch.get_rng_state()
    a, b, c = DiT(TINY).state_dict(), DiT(TINY, seed=0).state_dict(), DiT(TINY, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(
        a["blocks.0.attn.qkv.weight"], c["blocks.0.attn.qkv.weight"]
    )


def test_every_weight_learns():
    model = awake(DiT(dataclasses.replace(TINY, qk_norm=True)))
    model(*batch()).square().mean().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_attention_with_a_bias_is_pytorchs():
    q, k, v, bias = (torch.randn(*s, requires_grad=True) for s in [(2, 3, 9, 8)] * 3 + [(3, 9, 9)])
    ends = []
    for f in (
        D.attend,
        lambda q, k, v, b: nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=b),
    ):
        out = f(q, k, v, bias)
        ends.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v, bias))])
    for a, b in zip(*ends):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_qk_norm_bounds_the_logits():
    x, grown = torch.randn(2, 9, 32), {}
    for norm in (False, True):
        layer = D.Attention(32, 2, qk_norm=norm)
        torch.manual_seed(0)
        nn.init.normal_(layer.qkv.weight, std=0.2)
        a = layer(x)
        with torch.no_grad():
            layer.qkv.weight[:64] *= 100
            layer.qkv.bias[:64] *= 100  # queries and keys explode
        grown[norm] = (layer(x) - a).abs().max().item()
    assert grown[True] < 1e-4 < grown[False]


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
        (
            lambda m, x, t, y: DiT(dataclasses.replace(TINY, null_class=False))(x, t),
            "no null class",
        ),
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
        ("time", "sit"),
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
    with pytest.raises(
        ValueError, match=rf"DiTConfig\.({field}|{'patch' if field == 'size' else field})"
    ):
        dataclasses.replace(TINY, **{field: value})


# ---------------------------------------------------------------- folders


def test_round_trip_in_a_new_process(tmp_path):
    model, (x, t, y) = awake(DiT(TINY)).eval(), batch()
    model.save_pretrained(tmp_path / "model")
    assert {p.name for p in tmp_path.iterdir()} == {"model"}
    assert json.loads((tmp_path / "model/config.json").read_text()) == dataclasses.asdict(TINY) | {
        "size": [8, 8]
    }
    torch.save((x, t, y), tmp_path / "in.pt")
    code = (
        'import sys, torch; from minisora.dit import DiT; m = DiT.from_pretrained("model"); assert not m.training;'
        'torch.save(m(*torch.load("in.pt")), "out.pt")'
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        check=True,
        env=dict(
            __import__("os").environ,
            PYTHONPATH=str(D.Path(D.__file__).parents[1]),
            OMP_NUM_THREADS=str(torch.get_num_threads()),
        ),
    )
    assert torch.equal(torch.load(tmp_path / "out.pt"), model(x, t, y))
    assert DiT.from_pretrained(tmp_path / "model").config == TINY


def edit(folder, change):
    "Apply `change` to the tensors of a saved model."
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def rewrite(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "spoil, error, message",
    [
        (
            lambda f: edit(f, lambda s: s.pop("blocks.1.mlp.fc1.bias")),
            ValueError,
            r"model\.safetensors: blocks\.1\.mlp\.fc1\.bias is missing",
        ),
        (
            lambda f: edit(f, lambda s: s.update(extra=torch.ones(1))),
            ValueError,
            r"model\.safetensors: extra is not a tensor",
        ),
        (
            lambda f: edit(f, lambda s: s.update(pos_embed=torch.ones(1, 4, 32))),
            ValueError,
            r"pos_embed has shape \(1, 4, 32\)",
        ),
        (lambda f: rewrite(f, width=64), ValueError, r"model\.safetensors: .* has shape"),
        (
            lambda f: rewrite(f, window=3),
            ValueError,
            r"config\.json: DiTConfig has no field 'window'",
        ),
        (
            lambda f: rewrite(f, depth="two"),
            ValueError,
            r"config\.json: DiTConfig\.depth must be int",
        ),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, r"config\.json"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, r"config\.json"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, r"model\.safetensors"),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-9]
            ),
            ValueError,
            r"model\.safetensors",
        ),
    ],
)
def test_spoilt_folders_are_refused(tmp_path, spoil, error, message):
    awake(DiT(TINY)).save_pretrained(tmp_path / "m")
    spoil(tmp_path / "m")
    with pytest.raises(error, match=message) as info:
        DiT.from_pretrained(tmp_path / "m")
    assert "\n" not in str(info.value)


def test_no_such_folder(tmp_path):
    for name in (tmp_path / "nothing", "a/b/c", "nothing"):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            DiT.from_pretrained(name)


def test_a_failed_save_leaves_the_old_one(tmp_path, monkeypatch):
    old = awake(DiT(TINY))
    old.save_pretrained(tmp_path / "m")
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}

    def full(self, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(D.PyTorchModelHubMixin, "_save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        awake(DiT(TINY), seed=9).save_pretrained(tmp_path / "m")
    assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == before and len(
        list(tmp_path.iterdir())
    ) == 1


def test_official_files(tmp_path):
    model = awake(DiT(TINY))
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    torch.save({"model": {}, "ema": model.state_dict()}, tmp_path / "training.pt")
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    for name in ("plain.pt", "training.pt", "plain.safetensors"):
        other = D.load_official_state(DiT(TINY), tmp_path / name)
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match=r"plain\.pt: .*shape"):
        D.load_official_state(DiT(dataclasses.replace(TINY, width=64)), tmp_path / "plain.pt")


class Bomb:
    def __reduce__(self):
        return exec, ('raise SystemExit("unpickled")',)


def test_nothing_is_unpickled(tmp_path):
    torch.save({"pos_embed": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb\.pt"):
        D.load_official_state(DiT(TINY), tmp_path / "bomb.pt")
