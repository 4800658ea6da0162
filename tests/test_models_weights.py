"""Weights of a DiT in all files there are: the official one's, SiT's, and diffusers', tensors
and whole folders."""

import dataclasses
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers.models import TINY, Bomb, awake, batch, close, edit, rewrite, same
from safetensors.torch import save_file

from minisora.core import files
from minisora.core.hub import load_strict
from minisora.dit import DIT_PRESETS, DiT, DiTConfig, load_diffusers_dit, resize
from minisora.models import weights as W

DDPM = TINY  # what diffusers can hold: square, DDPM, with a null
SIT = dataclasses.replace(TINY, time_convention="flow", time_scale=1.0)
DIFFUSERS = "diffusion_pytorch_model.safetensors"
LABELS = {0: "tench, Tinca tinca", 3: "a disc", 4: "Ring, großer"}


def theirs_tied(seed=3, **changes):
    """A random diffusers model whose blocks share one embedder, as in weights that come from the
    original."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        **dict(
            dict(
                num_attention_heads=2,
                attention_head_dim=16,
                in_channels=4,
                out_channels=8,
                num_layers=2,
                sample_size=8,
                patch_size=2,
                num_embeds_ada_norm=5,
            ),
            **changes,
        )
    ).eval()
    awake(model, seed=seed)
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


def as_the_original(theirs):
    """Patch what diffusers computes otherwise than DiT: the time's frequencies, and (in its
    config) eps."""
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return theirs


def tiny_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8
    )


# ---------------------------------------------------------------- official and SiT


def test_sit_is_the_official_layout():
    assert DIT_PRESETS["SiT-XL/2"] == dataclasses.replace(
        DIT_PRESETS["DiT-XL/2"], time_convention="flow", time_scale=1.0
    )
    with torch.device("meta"):
        a, b = [DiT(DIT_PRESETS[k]).state_dict() for k in ("DiT-XL/2", "SiT-XL/2")]
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    assert len(b) == 292


@pytest.mark.parametrize(
    "config",
    [
        DDPM,
        SIT,
        dataclasses.replace(SIT, learn_sigma=False),
        dataclasses.replace(DDPM, null_class=False),
    ],
)
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_official_round_trip(tmp_path, config, kind):
    model = awake(DiT(config))
    W.save_official_state(model, tmp_path / f"w.{kind}")
    assert [p.name for p in tmp_path.iterdir()] == [f"w.{kind}"]
    other = W.load_official_state(DiT(config), tmp_path / f"w.{kind}")
    assert same(other.state_dict(), model.state_dict())
    assert not same(DiT(config).state_dict(), model.state_dict())
    out = other(*batch())
    assert torch.equal(out, model(*batch())) and out.shape[1] == 4 * (1 + config.learn_sigma)


def test_sit_embeds_the_time_itself():
    model = awake(DiT(SIT))
    _, t, y = batch()
    waves = t[:, None] * torch.exp(-torch.log(torch.tensor(1e4)) * torch.arange(128) / 128)
    time = model.t_embedder.mlp(torch.cat([waves.cos(), waves.sin()], 1))
    close(model.condition(t, y), time + model.y_embedder.embedding_table(y))


def test_official_files(tmp_path):
    model = awake(DiT(TINY))
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    torch.save({"model": {}, "ema": model.state_dict()}, tmp_path / "training.pt")
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    for name in ("plain.pt", "training.pt", "plain.safetensors"):
        other = W.load_official_state(DiT(TINY), tmp_path / name)
        assert same(other.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match=r"plain\.pt: .*shape"):
        W.load_official_state(DiT(dataclasses.replace(TINY, width=64)), tmp_path / "plain.pt")


def test_a_training_checkpoint_with_its_arguments(tmp_path):
    """DiT's and SiT's train.py keep an argparse.Namespace beside the weights: no tensor, but
    harmless."""
    model = awake(DiT(SIT))
    torch.save(
        dict(model={}, ema=model.state_dict(), opt={"step": 3}, args=Namespace(lr=1e-4)),
        tmp_path / "c.pt",
    )
    assert same(W.load_official_state(DiT(SIT), tmp_path / "c.pt").state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        dict(qk_norm=True),
        dict(norm="rms"),
        dict(mlp="swiglu"),
        dict(positions="rope"),
        dict(positions="none"),
        dict(relative_bias=True),
        dict(precondition="x", time_convention="flow", learn_sigma=False),
        dict(num_classes=0),
        dict(size=(4, 8)),
    ],
)
def test_the_original_has_no_options(tmp_path, change):
    model = DiT(dataclasses.replace(TINY, **change))
    field = next(iter(change))
    with pytest.raises(ValueError, match=rf"DiTConfig\.{field}"):
        W.save_official_state(model, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"DiTConfig\.{field}"):
        W.save_diffusers_dit(model, tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_unpickled(tmp_path):
    torch.save({"pos_embed": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb\.pt"):
        W.load_official_state(DiT(TINY), tmp_path / "bomb.pt")


@pytest.mark.parametrize(
    "content, message",
    [
        ({"pos_embed": Bomb()}, "holds no plain tensors"),
        ([torch.ones(2)], "holds a list"),
        ({"pos_embed": 3}, "missing key 'x_embedder"),
        ({"ema": {}}, "missing key 'pos_embed'"),
    ],
)
def test_bad_pickles(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt: .*{message}") as info:
        W.load_official_state(DiT(TINY), tmp_path / "w.pt")
    assert "\n" not in str(info.value)
    with pytest.raises(FileNotFoundError, match="none.pt"):
        W.load_official_state(DiT(TINY), tmp_path / "none.pt")


def test_a_tensor_that_is_none_is_named():
    state = dict(DiT(TINY).state_dict(), pos_embed=None)
    with pytest.raises(ValueError, match="pos_embed"):
        load_strict(DiT(TINY), state)


# ---------------------------------------------------------------- the diffusers layout, tensors


def test_layout_names_are_those_of_diffusers():
    theirs = theirs_tied()
    assert set(W.diffusers_key_map(2)) == set(theirs.state_dict())
    ours = DiT(DDPM).state_dict()
    for name, (official, third) in W.diffusers_key_map(2).items():
        shape = ours[official].shape
        if third is not None:
            shape = (shape[0] // 3, *shape[1:])
        assert theirs.state_dict()[name].shape == shape


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_layout_round_trips_are_bit_equal(learn_sigma):
    config = dataclasses.replace(DDPM, learn_sigma=learn_sigma)
    state = awake(DiT(config)).state_dict()
    assert same(W.state_from_diffusers(W.state_to_diffusers(state), (4, 4)), state)
    other = theirs_tied(out_channels=4 * (1 + learn_sigma)).state_dict()
    assert same(W.state_to_diffusers(W.state_from_diffusers(other, (4, 4))), other)


@pytest.mark.parametrize("k", [0, 1, 500, 999])
def test_ours_in_diffusers_and_back_are_the_same_function(tmp_path, k):
    from diffusers import DiTTransformer2DModel

    ours = awake(DiT(DDPM)).eval()
    W.save_diffusers_dit(ours, tmp_path / "d")
    theirs = as_the_original(DiTTransformer2DModel.from_pretrained(tmp_path / "d")).eval()
    assert theirs.config.norm_eps == 1e-6
    x, _, y = batch()
    y[0] = ours.null_id
    with torch.no_grad():
        want = theirs(x[:, :, 0], timestep=torch.full((3,), k), class_labels=y).sample
        close(ours(x[:, :, 0], torch.full((3,), 1 - k / 1000), y), want)
    again = load_diffusers_dit(tmp_path / "d")
    assert same(again.state_dict(), ours.state_dict())
    assert again.config == ours.config and not again.training


@pytest.mark.parametrize(
    "key",
    [
        "transformer_blocks.1.attn1.to_k.bias",
        "proj_out_1.weight",
        "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.weight",
    ],
)
def test_keys_of_diffusers_are_strict(key):
    state = W.state_to_diffusers(DiT(DDPM).state_dict())
    with pytest.raises(ValueError, match=rf"missing key '{key}'"):
        W.state_from_diffusers({k: v for k, v in state.items() if k != key}, (4, 4))
    with pytest.raises(ValueError, match=r"unexpected key 'surplus' \(not a tensor of a DiT\)"):
        W.state_from_diffusers(state | {"surplus": state[key]}, (4, 4))


@pytest.mark.parametrize(
    "key",
    [
        "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias",
        "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight",
    ],
)
def test_blocks_with_embedders_of_their_own_are_refused(key):
    state = W.state_to_diffusers(awake(DiT(DDPM)).state_dict())
    state[key] = state[key] + 1
    with pytest.raises(ValueError, match=rf"{key} differs"):
        W.state_from_diffusers(state, (4, 4))


def test_keys_of_ours_are_strict():
    state = DiT(DDPM).state_dict()
    with pytest.raises(ValueError, match=r"missing key 'blocks\.1\.mlp\.fc1\.bias'"):
        W.state_to_diffusers({k: v for k, v in state.items() if k != "blocks.1.mlp.fc1.bias"})
    with pytest.raises(
        ValueError, match=r"unexpected key 'surplus' \(diffusers has no place for it\)"
    ):
        W.state_to_diffusers(state | {"surplus": torch.ones(1)})
    for pos in (
        state["pos_embed"] + 0.01,
        state["pos_embed"][:, :12],
        resize(DiT(DDPM), (16, 16)).pos_embed,
    ):
        with pytest.raises(ValueError, match="pos_embed"):
            W.state_to_diffusers(state | {"pos_embed": pos})


# ---------------------------------------------------------------- diffusers' folders


def save_bin(folder, state):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, folder / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_pipeline_of_diffusers_loads_here(tmp_path, kind):
    from diffusers import DDIMScheduler, DiTPipeline

    theirs = theirs_tied()
    DiTPipeline(theirs, tiny_vae(), DDIMScheduler()).save_pretrained(tmp_path / "p")
    if kind == "bin":
        save_bin(tmp_path / "p/transformer", theirs.state_dict())
    model = load_diffusers_dit(tmp_path / "p")
    assert same(W.state_to_diffusers(model.state_dict()), theirs.state_dict())
    assert model.config == DDPM
    for block in as_the_original(theirs).transformer_blocks:
        block.norm3.eps = 1e-6
    x, _, y = batch()
    with torch.no_grad():
        want = theirs(x[:, :, 0], timestep=torch.full((3,), 321), class_labels=y).sample
        close(model(x[:, :, 0], torch.full((3,), 1 - 0.321), y), want)
    assert W.class_labels(tmp_path / "p") == {}


def test_a_pipeline_of_ours_loads_in_diffusers(tmp_path):
    from diffusers import DiTPipeline

    ours = awake(DiT(DDPM), std=0.05).eval()
    W.save_dit_pipeline(ours, tmp_path / "p", tiny_vae(), id2label=LABELS)
    assert {p.name for p in tmp_path.iterdir()} == {"p"}
    pipe = DiTPipeline.from_pretrained(tmp_path / "p")
    wanted = {"a disc": 3, "Tinca tinca": 0, "großer": 4}
    assert {k: pipe.labels[k] for k in wanted} == wanted
    assert same(dict(pipe.transformer.state_dict()), W.state_to_diffusers(ours.state_dict()))
    assert pipe.scheduler.config.beta_end == 0.02 and pipe.scheduler.config.clip_sample is False
    pipe.set_progress_bar_config(disable=True)
    # with guidance it asks for id 1000
    drawn = pipe([1], num_inference_steps=2, output_type="np", guidance_scale=1)
    assert drawn.images.shape == (1, 8, 8, 3)


def test_a_whole_pipeline_there_and_back(tmp_path):
    """Read a pipeline, write it with its own parts: tensors, labels, autoencoder and scheduler
    are the same."""
    W.save_dit_pipeline(awake(DiT(DDPM)), tmp_path / "a", tiny_vae(), id2label=LABELS)
    a = tmp_path / "a"
    b = tmp_path / "b"
    W.save_dit_pipeline(load_diffusers_dit(a), b, a / "vae", a / "scheduler", W.class_labels(a))
    assert W.class_labels(b) == LABELS
    contents = [
        {str(p.relative_to(k)): p.read_bytes() for p in k.rglob("*") if p.is_file()} for k in (a, b)
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 6


@pytest.mark.parametrize(
    "spoil, error, message",
    [
        (
            lambda f: rewrite(f, activation_fn="geglu"),
            ValueError,
            r"config\.json: activation_fn is 'geglu'",
        ),
        (lambda f: rewrite(f, attention_bias=False), ValueError, r"config\.json: attention_bias"),
        (
            lambda f: rewrite(f, num_embeds_ada_norm=None),
            ValueError,
            r"config\.json: num_embeds_ada_norm",
        ),
        (lambda f: rewrite(f, drop="num_layers"), ValueError, r"config\.json: num_layers"),
        (lambda f: rewrite(f, out_channels=6), ValueError, r"config\.json: out_channels is 6"),
        (lambda f: rewrite(f, norm_eps=1e-3), ValueError, r"config\.json: norm_eps is 0\.001"),
        (
            lambda f: rewrite(f, cross_attention_dim=768),
            ValueError,
            r"config\.json: cross_attention_dim is 768",
        ),
        (lambda f: rewrite(f, patch_size=3), ValueError, r"config\.json: DiTConfig\.patch"),
        (lambda f: rewrite(f, num_layers=3), ValueError, r"missing key 'blocks\.2\."),
        (
            lambda f: rewrite(f, num_embeds_ada_norm=7),
            ValueError,
            r"key 'y_embedder\.embedding_table\.weight' has shape \(6, 32\), not \(8, 32\)",
        ),
        (
            lambda f: edit(f, lambda s: s.pop("proj_out_1.bias"), DIFFUSERS),
            ValueError,
            r"model\.safetensors: missing key 'proj_out_1\.bias'",
        ),
        (lambda f: (f / "config.json").write_text("{"), ValueError, r"config\.json: is no JSON"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, r"config\.json"),
        (
            lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(),
            FileNotFoundError,
            r"diffusion_pytorch_model\.safetensors",
        ),
        (
            lambda f: save_bin(f, {"proj_out_1.bias": Bomb()}),
            ValueError,
            r"diffusion_pytorch_model\.bin: holds no plain tensors",
        ),
    ],
)
def test_spoilt_folders_are_refused(tmp_path, spoil, error, message):
    W.save_diffusers_dit(awake(DiT(DDPM)), tmp_path / "d")
    spoil(tmp_path / "d")
    with pytest.raises(error, match=message) as info:
        load_diffusers_dit(tmp_path / "d")
    assert "\n" not in str(info.value)


def test_old_configs_are_read():
    """Published folders were written by an older class with more fields, empty ones, and with
    eps 1e-5."""
    old = dict(
        _class_name="Transformer2DModel",
        cross_attention_dim=None,
        use_linear_projection=False,
        norm_eps=1e-5,
        num_vector_embeds=None,
        only_cross_attention=False,
    )
    values = W.diffusers_config(DIT_PRESETS["DiT-XL/2"]) | old
    assert DiTConfig(**W.fields_from_diffusers(values)) == DIT_PRESETS["DiT-XL/2"] == DiTConfig()
    plain = W.diffusers_config(dataclasses.replace(DDPM, learn_sigma=False))
    for values in (plain, plain | {"out_channels": None}):
        assert not W.fields_from_diffusers(values)["learn_sigma"]


@pytest.mark.parametrize(
    "change",
    [
        dict(time_convention="flow"),
        dict(time_scale=500.0),
        dict(null_class=False),
        dict(mlp_ratio=2.0),
    ],
)
def test_what_diffusers_cannot_hold(tmp_path, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        W.save_diffusers_dit(DiT(dataclasses.replace(DDPM, **change)), tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_pipeline_leaves_the_old_one(tmp_path):
    W.save_dit_pipeline(awake(DiT(DDPM)), tmp_path / "p", tiny_vae())
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(FileNotFoundError):
        W.save_dit_pipeline(awake(DiT(DDPM), seed=9), tmp_path / "p", tmp_path / "no vae")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_names_of_the_hub(tmp_path, monkeypatch):
    W.save_dit_pipeline(awake(DiT(DDPM)), tmp_path / "p", tiny_vae(), id2label=LABELS)
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(tmp_path / "p")

    monkeypatch.setattr(W, "snapshot_download", download)
    assert load_diffusers_dit("someone/DiT").config == DDPM
    assert W.class_labels("someone/DiT") == LABELS
    name, options = asked[0]
    assert name == "someone/DiT" and not any("vae" in p for p in options["allow_patterns"])
    for name in ("a/b/c", "nothing", str(tmp_path / "x")):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            load_diffusers_dit(name)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_failed_official_save_leaves_the_old_one(tmp_path, monkeypatch, kind):
    W.save_official_state(awake(DiT(TINY)), tmp_path / f"w.{kind}")
    before = (tmp_path / f"w.{kind}").read_bytes()

    def full(state, file, *_):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        W.save_official_state(awake(DiT(TINY), seed=9), tmp_path / f"w.{kind}")
    assert (tmp_path / f"w.{kind}").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
