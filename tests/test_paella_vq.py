"""Stage A of StableCascade: as diffusers has it, with layers along time, trained and kept."""

import numpy as np
import pytest
import torch
from torch import nn

from minisora.autoencoder import load_autoencoder
from minisora.latents.paella_training import paella_loss, standardize_latents, train_paella
from minisora.latents.paella_vq import PAELLA_PRESETS, PaellaVQ
from minisora.latents.paella_weights import (
    from_diffusers_paella,
    from_original_paella,
    to_diffusers_paella,
    to_original_paella,
)

SMALL = dict(width=16, blocks=2, codebook=24)
THEIRS = dict(embed_dim=16, bottleneck_blocks=2, num_vq_embeddings=24, scale_factor=0.37)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def redraw(model, seed=0):
    "Random numbers for all weights and for what the batch norm remembers, none of them zero."
    g = generator(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=g)
            if name.endswith("running_var"):
                noise = noise.abs() + 0.5
            elif tensor.ndim > 1 and "vquantizer" not in name:
                noise = noise / tensor[0].numel() ** 0.5
            tensor.copy_(noise)
    return model.eval()


def theirs(**fields):
    module = pytest.importorskip(
        "diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model"
    )
    model = redraw(module.PaellaVQModel(**THEIRS | fields))
    with torch.no_grad():  # codes among the latents, so that many of them are somewhere the nearest
        raw = model.encode(as_frames(clips() / 2 + 0.5)).latents.movedim(1, -1).flatten(0, -2)
        codes = model.vquantizer.embedding.weight
        codes.copy_(raw[: len(codes)] + 0.3 * raw.std(0) * codes)
    return model


def clips(frames=3, batch=2, height=16, width=24, seed=1):
    return torch.rand(batch, 3, frames, height, width, generator=generator(seed)) * 2 - 1


def as_frames(x):
    return x.transpose(1, 2).flatten(0, 1)


def near(a, b, relative=1e-5):
    return ((a - b).abs().max() / b.abs().max()).item() < relative


def small(**options):
    return redraw(PaellaVQ(**SMALL | options))


def moving_scenes(count=3, frames=4, side=32):
    return torch.randint(0, 256, (count, 3, frames, side, side), generator=generator()).to(
        torch.uint8
    )


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_parity_with_diffusers(levels):
    oracle = theirs(levels=levels)
    ours = from_diffusers_paella(oracle.state_dict(), dict(oracle.config))
    x = clips()
    with torch.no_grad():
        raw = oracle.encode(as_frames(x) / 2 + 0.5).latents
        posterior = ours.encode(x)
        assert near(as_frames(posterior.mode) * 0.37, raw)
        assert posterior.logvar.max() == -20
        assert near(as_frames(ours.decode(posterior.mode)), oracle.decode(raw).sample * 2 - 1)
        _, loss, (_, _, index) = oracle.vquantizer(raw)
        assert near(ours.vq_loss(posterior.mode), loss)
        assert len(index.unique()) > 3
        ours.quantize = True
        wanted = oracle.decode(raw, force_not_quantize=False).sample * 2 - 1
        assert near(as_frames(ours.decode(posterior.mode)), wanted)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_those_of_diffusers(training):
    oracle = theirs().train(training)
    ours = from_diffusers_paella(oracle.state_dict(), dict(oracle.config), quantize=True)
    ours.train(training)
    x = clips()
    z = ours.encode(x).mode
    (ours.decode(z).square().mean() + ours.vq_loss(z)).backward()
    raw = oracle.encode(as_frames(x) / 2 + 0.5).latents
    codes, loss, _ = oracle.vquantizer(raw)
    frames = oracle.decode(codes).sample * 2 - 1
    (frames.square().mean() + loss).backward()
    wanted = dict(oracle.named_parameters())
    for name, p in ours.named_parameters():
        scale = wanted[name].grad.abs().max().clamp(min=1e-2)
        assert ((p.grad - wanted[name].grad).abs().max() / scale).item() < 1e-5, name
    for name, value in oracle.named_buffers():
        assert torch.allclose(dict(ours.named_buffers())[name], value, rtol=1e-5, atol=1e-6), name


def test_weights_go_there_and_back():
    oracle = theirs()
    ours = from_diffusers_paella(oracle.state_dict(), dict(oracle.config))
    state, config = to_diffusers_paella(ours)
    assert set(state) == set(oracle.state_dict())
    assert all(torch.equal(state[k], v) for k, v in oracle.state_dict().items())
    assert {k: v for k, v in oracle.config.items() if k[0] != "_"} == {
        k: v for k, v in config.items() if k[0] != "_"
    }
    original = to_original_paella(ours)
    assert set(original) - set(state) == {"vquantizer.codebook.weight"}
    again = from_original_paella(original, scale=0.37)
    assert again._hub_mixin_config == ours._hub_mixin_config
    x = clips()
    assert torch.equal(again(x), ours(x))


def test_a_file_of_the_original_gets_layers_along_time(tmp_path):
    from safetensors.torch import save_file

    ours = small()
    save_file(to_original_paella(ours), tmp_path / "stage_a.safetensors")
    moving = from_original_paella(tmp_path / "stage_a.safetensors", temporal=True, quantize=True)
    assert moving.temporal_parameters() and moving.quantize and moving.scale == 0.43
    moving.quantize = False
    x = clips()
    assert torch.equal(moving(x), ours(x))
    with pytest.raises(ValueError, match="PaellaVQModel has no layers along time"):
        to_original_paella(moving)


def test_wrong_weights_are_named():
    state, config = to_diffusers_paella(small())
    missing = {k: v for k, v in state.items() if k != "up_blocks.1.gammas"}
    with pytest.raises(ValueError, match=r"missing key 'up_blocks.1.gammas'"):
        from_diffusers_paella(missing, config)
    with pytest.raises(ValueError, match=r"unexpected key 'more'"):
        from_diffusers_paella(state | dict(more=torch.zeros(2)), config)
    with pytest.raises(ValueError, match=r"has shape \(24, 4\), not \(25, 4\)"):
        from_diffusers_paella(state, config | dict(num_vq_embeddings=25))
    with pytest.raises(ValueError, match="config.json: in_channels must be 3, not 4"):
        from_diffusers_paella(state, config | dict(in_channels=4))
    with pytest.raises(ValueError, match="config.json: field .* not 'embed_dims'"):
        from_diffusers_paella(state, config | dict(embed_dims=4))
    with pytest.raises(ValueError, match="levels"):
        from_diffusers_paella(state, config | dict(levels="two"))
    with pytest.raises(ValueError, match=r"missing key 'vquantizer.codebook.weight'"):
        from_original_paella(state)
    original = to_original_paella(small())
    original["down_blocks.0.gammas"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"'down_blocks.0.gammas' has shape \(5,\), not \(6,\)"):
        from_original_paella(original)


def test_sizes_channels_and_numbers_are_checked():
    ae = small()
    with pytest.raises(ValueError, match="multiples of 4 and 4, not 18 and 24"):
        ae.encode(clips(height=18))
    with pytest.raises(ValueError, match="3 color channels, these have 4"):
        ae.encode(torch.zeros(1, 4, 1, 8, 8))
    with pytest.raises(ValueError, match=r"\(B, 3, T, H, W\)"):
        ae.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="NaN"):
        ae.encode(clips() * torch.nan)
    with pytest.raises(ValueError, match="latents have 4 channels, these have 3"):
        ae.decode(torch.zeros(1, 3, 1, 2, 2))
    with pytest.raises(ValueError, match="NaN"):
        ae.vq_loss(torch.full((1, 4, 1, 2, 2), torch.nan))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(width=15), "width=15 cannot be halved"),
        (dict(width=0), "width"),
        (dict(levels=0), "levels"),
        (dict(blocks=-1), "blocks"),
        (dict(codebook=0), "codebook"),
        (dict(scale=0.0), "scale must be a number above 0"),
        (dict(quantize=2), "quantize"),
        (dict(temporal="yes"), "temporal"),
        (dict(causal=None), "causal"),
    ],
)
def test_wrong_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=f"PaellaVQ: {words}"):
        PaellaVQ(**SMALL | options)


def test_starts_without_blocks_and_with_a_seed():
    a = PaellaVQ(**SMALL, seed=1)
    assert all(
        torch.equal(p, q) for p, q in zip(a.parameters(), PaellaVQ(**SMALL, seed=1).parameters())
    )
    assert not torch.equal(a.in_block[1].weight, PaellaVQ(**SMALL).in_block[1].weight)
    gammas = [p for name, p in a.named_parameters() if name.endswith("gammas")]
    assert len(gammas) == 2 + 3 and not any(p.any() for p in gammas)
    assert sum(p.numel() for p in PaellaVQ(**PAELLA_PRESETS["tiny"]).parameters()) <= 350_000
    with torch.device("meta"):
        assert sum(p.numel() for p in PaellaVQ().parameters()) == sum(
            p.numel() for p in PaellaVQ(**PAELLA_PRESETS["full"]).parameters()
        )


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("temporal, causal", [(False, False), (True, False), (True, True)])
def test_save_and_load(tmp_path, quantize, temporal, causal):
    ae = small(quantize=quantize, temporal=temporal, causal=causal, scale=0.5)
    ae.save_pretrained(tmp_path)
    for again in (PaellaVQ.from_pretrained(tmp_path), load_autoencoder(tmp_path)):
        again.eval()
        assert again.spec == ae.spec and type(again) is PaellaVQ
        z = ae.encode(clips()).mode
        assert torch.equal(again.encode(clips()).mode, z)
        assert torch.equal(again.decode(z), ae.decode(z))


def with_time(ae, **options):
    "The same weights, and new layers along time."
    moving = PaellaVQ(**SMALL, temporal=True, **options)
    missing, unexpected = moving.load_state_dict(ae.state_dict(), strict=False)
    assert not unexpected and all(k.startswith("temporal_blocks.") for k in missing)
    return moving.eval()


@pytest.mark.parametrize("causal", [False, True])
def test_layers_along_time_change_nothing_at_first(causal):
    ae = small()
    moving = with_time(ae, causal=causal)
    z = ae.encode(clips()).mode
    assert torch.equal(moving.decode(z), ae.decode(z))
    for p in moving.temporal_parameters():
        nn.init.normal_(p, generator=generator())
    assert not near(moving.decode(z), ae.decode(z), 0.01)
    assert torch.equal(moving.decode(z[:, :, :1]), ae.decode(z[:, :, :1]))


@pytest.mark.parametrize("causal", [False, True])
def test_what_a_decoded_frame_depends_on(causal):
    ae = small(temporal=True, causal=causal)
    assert ae.spec.causal is causal
    assert small().spec.causal and small(causal=True).spec.causal
    z = ae.encode(clips(frames=6)).mode
    later = z.clone()
    later[0, :, 4] += 1
    change = (ae.decode(z) - ae.decode(later)).abs().amax((1, 3, 4))
    assert not change[1].any()
    assert change[0, 4] > 1e-3 and change[0, 5] > 1e-3
    assert (change[0, :4] > 0).all().item() is not causal
    assert change[0, :4].any().item() is not causal


def test_latents_never_see_another_frame():
    ae = small(temporal=True)
    x = clips()
    assert near(ae.encode(x[:, :, 1:2]).mode, ae.encode(x).mode[:, :, 1:2])


def test_training_is_repeatable_and_leaves_latents_fixed():
    scenes = moving_scenes()
    runs = []
    for _ in range(2):
        ae = PaellaVQ(**SMALL)
        report = train_paella(ae, scenes, steps=6, batch=4, crop=16)
        assert report["steps"] == 6 and not ae.training
        runs.append(ae)
    assert all(torch.equal(p, q) for p, q in zip(*(r.state_dict().values() for r in runs)))
    assert all(p.requires_grad for p in runs[0].parameters())
    x = scenes.float() / 127.5 - 1
    z = ae.encode(x).mode
    assert near(ae.encode(x[:1]).mode, z[:1], 1e-4)
    assert z.mean((0, 2, 3, 4)).abs().max() < 0.1 and 0.9 < z.std() < 1.1
    other = PaellaVQ(**SMALL)
    train_paella(other, scenes, steps=6, batch=4, crop=16, seed=1)
    assert not torch.equal(other.in_block[1].weight, ae.in_block[1].weight)


def test_training_learns_also_through_the_codebook():
    scenes = torch.from_numpy(np.kron(moving_scenes(4, 2, 8).numpy(), np.ones((4, 4)))).to(
        torch.uint8
    )
    for quantize in (False, True):
        ae = PaellaVQ(width=16, blocks=1, codebook=64, quantize=quantize)
        first = train_paella(ae, scenes, steps=10, batch=4, crop=16)["loss"]
        later = train_paella(ae, scenes, steps=60, batch=4, crop=16)["loss"]
        assert later < 0.7 * first
    used = ae.vquantizer(ae.raw_latents(scenes.float() / 127.5 - 1))[2].unique()
    assert len(used) > 8


@pytest.mark.parametrize("quantize", [False, True])
def test_standardized_latents_decode_to_the_same(quantize):
    ae = small(quantize=quantize)
    scenes = moving_scenes()
    x = scenes.float() / 127.5 - 1
    before = ae(x)
    standardize_latents(ae, scenes)
    assert near(ae(x), before, 1e-4)
    z = ae.encode(x).mode
    assert z.mean((0, 2, 3, 4)).abs().max() < 1e-4
    assert abs(z.square().mean() - 1) < 1e-3


def test_training_layers_along_time_leaves_single_frames_as_they_are():
    ae = small()
    moving = with_time(ae)
    before = {k: v.clone() for k, v in moving.state_dict().items()}
    train_paella(moving, moving_scenes(), steps=4, part="temporal", frames=3, crop=16, flicker=1.0)
    for name, value in moving.state_dict().items():
        assert torch.equal(value, before[name]) is not name.startswith("temporal_blocks."), name
    assert all(p.requires_grad for p in moving.parameters())
    z = ae.encode(clips()).mode
    assert torch.equal(moving.encode(clips()).mode, z)
    assert not torch.equal(moving.decode(z), ae.decode(z))
    for i in range(z.shape[2]):
        assert torch.equal(moving.decode(z[:, :, i : i + 1]), ae.decode(z[:, :, i : i + 1]))


def test_mistakes_in_training_are_named():
    scenes = moving_scenes()
    with pytest.raises(ValueError, match="part='temporal': this PaellaVQ has no layers"):
        train_paella(small(), scenes, steps=1, part="temporal")
    with pytest.raises(ValueError, match="part must be one of"):
        train_paella(small(), scenes, steps=1, part="decoder")
    for name in ("batch", "frames"):
        with pytest.raises(ValueError, match=name):
            train_paella(small(), scenes, steps=1, **{name: 0})
    with pytest.raises(ValueError, match="uint8"):
        train_paella(small(), scenes.float(), steps=1)


def test_loss_weighs_what_it_says():
    ae = small()
    x = clips()
    parts = dict(noise=0.0, foreground=0.0)
    squared = paella_loss(ae, x, generator(), **parts, absolute=0.0)
    difference = ae(x) - x
    assert near(squared, difference.square().mean())
    both = paella_loss(ae, x, generator(), **parts, absolute=2.0)
    assert near(both - squared, 2 * difference.abs().mean())
    change = paella_loss(ae, x, generator(), **parts, absolute=0.0, flicker=3.0) - squared
    assert near(change, 3 * difference.diff(dim=2).square().mean())
    ae.quantize = True
    ae.vquantizer.embedding.weight.data += 5
    plain = ae(x) - x
    whole = paella_loss(ae, x, generator(), **parts, absolute=0.0)
    assert near(whole - plain.square().mean(), ae.vq_loss(ae.encode(x).mode), 1e-4)
