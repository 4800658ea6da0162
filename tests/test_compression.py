"""The second stage: nothing lost with all channels, the best with fewer, and a refiner for what is
left."""

import importlib
import json
import warnings

import pytest
import torch
from helpers.autoencoder import awake, inner_vae, wide_clips

from minisora import single_gpu
from minisora.core.renames import OLD_NAMES
from minisora.latents.compression import (
    PCACompressedVAE,
    channel_sensitivity,
    channels_to_space,
    space_to_channels,
    train_refiner,
)
from minisora.latents.tiling import tiled_decode


@pytest.fixture(scope="module")
def inner():
    return inner_vae()


def test_squares_of_positions_go_into_channels():
    z = torch.arange(2 * 3 * 2 * 4 * 6.0).view(2, 3, 2, 4, 6)
    assert space_to_channels(z, 2).shape == (2, 12, 2, 2, 3)
    assert torch.equal(channels_to_space(space_to_channels(z, 2), 2), z)
    assert (
        space_to_channels(z, 2)[0, :4, 1, 1, 2].tolist() == z[0, 0, 1, 2:4, 4:6].flatten().tolist()
    )


def test_a_whole_second_stage_loses_nothing(inner):
    ae = PCACompressedVAE.from_autoencoder(inner, fold=2, channels=24)
    x = wide_clips()
    with torch.no_grad():
        ae.init_pca([inner.encode(x).mode])
        z = ae.encode(x).mode
        assert z.shape == (4, *ae.spec.latent_shape(9, 32, 64)) == (4, 24, 3, 2, 4)
        assert torch.allclose(ae.decode(z), inner(x), atol=1e-4)
    assert abs(z.std() - 1) < 0.05 and abs(z.mean()) < 0.05, (
        "all channels share one scale, of mean variance 1"
    )


def test_more_channels_lose_less_and_pca_is_best(inner):
    x = wide_clips()
    with torch.no_grad():
        latents, errors = inner.encode(x).mode, []
        for k in (4, 12, 20):
            ae = PCACompressedVAE.from_autoencoder(inner, 2, k)
            ae.init_pca(latents.split(3))
            z = ae.encode(x).mode.movedim(1, -1)
            back = channels_to_space((z @ ae.basis.T * ae.scale + ae.centre).movedim(-1, 1), 2)
            errors.append((back - latents).square().mean().item())
            rows = space_to_channels(latents, 2).movedim(1, -1).flatten(0, -2)
            left = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0))[:-k].sum() / 24
            assert errors[-1] == pytest.approx(left.item(), rel=1e-3)
    assert errors[0] > errors[1] > errors[2]


def test_second_stage_is_saved_and_loaded_strictly(inner, tmp_path):
    ae = PCACompressedVAE.from_autoencoder(inner, 2, 8)
    x = wide_clips(2)
    with torch.no_grad():
        ae.init_pca([inner.encode(x).mode])
        ae.save_pretrained(tmp_path)
        again = PCACompressedVAE.from_pretrained(tmp_path)
        assert torch.equal(again(x), ae(x)) and again.spec == ae.spec
    (tmp_path / "config.json").write_text(
        json.dumps(dict(inner=dict(channels=6, width=8, depth=1), fold=2, channels=9))
    )
    with pytest.raises(ValueError, match="basis"):
        PCACompressedVAE.from_pretrained(tmp_path)


def test_second_stage_names_what_does_not_fit(inner):
    with pytest.raises(ValueError, match="channels must be a whole number from 1 to 24"):
        PCACompressedVAE.from_autoencoder(inner, 2, 25)
    with pytest.raises(ValueError, match="multiples of 32"):
        PCACompressedVAE.from_autoencoder(inner, 4, 8).encode(wide_clips()[..., :48])


# ---------------------------------------------------------------- the refiner


@pytest.fixture
def refined(inner):
    """A second stage that keeps 4 of 24 numbers, with a refiner; and the inner latents it was made
    from."""
    ae = PCACompressedVAE.from_autoencoder(inner, 2, 4, refine=32)
    with torch.no_grad():
        latents = inner.encode(wide_clips(1)).mode
        ae.init_pca([latents])
    return ae, latents


def test_a_new_refiner_changes_nothing(refined):
    ae, latents = refined
    z = ae.compress(latents)
    with torch.no_grad():
        assert torch.equal(ae.decompress(z), ae.decompress_linear(z))


def test_a_tuned_refiner_errs_less_and_stays_causal(refined):
    ae, latents = refined
    z = ae.compress(latents)
    log = train_refiner(ae, latents, 60, window=3)
    with torch.no_grad():
        off = [
            (k - latents).square().mean().item()
            for k in (ae.decompress_linear(z), ae.decompress(z))
        ]
        assert len(log) == 60 and off[1] < 0.8 * off[0], off
        later = z.clone()
        later[:, :, 2] += 1
        change = (ae.decompress(later) - ae.decompress(z)).abs()
        assert change[:, :, :2].max() < 1e-5 and change[:, :, 2].max() > 1e-3
        wide = ae.decompress_linear(z) + channels_to_space(ae.refiner.wide(z), 2)
        fine = ae.refiner.fine(wide)
        assert (
            torch.equal(ae.decompress(z), wide + fine)
            and not torch.equal(wide, ae.decompress_linear(z))
            and fine.abs().max() > 0
        )


def test_tuning_a_refiner_leaves_the_rest_and_repeats_itself(inner, refined):
    ae, latents = refined
    before = {k: v.clone() for k, v in ae.state_dict().items() if not k.startswith("refiner")}
    again = PCACompressedVAE.from_autoencoder(inner, 2, 4, refine=32)
    assert all(
        torch.equal(v, again.state_dict()[k])
        for k, v in ae.state_dict().items()
        if k.startswith("refiner")
    )
    again.load_state_dict(ae.state_dict())
    assert train_refiner(ae, latents, 3, seed=1) == train_refiner(again, latents, 3, seed=1)
    assert all(torch.equal(v, ae.state_dict()[k]) for k, v in before.items())
    with pytest.raises(ValueError, match="has no refiner"):
        train_refiner(PCACompressedVAE.from_autoencoder(inner, 2, 4), latents, 1)


def test_a_channel_weighs_what_it_shows():
    class Louder:
        def decode(self, z):
            return z * torch.tensor([1.0, 3.0, 0.0])[:, None, None, None]

    w = channel_sensitivity(Louder(), torch.randn(1, 3, 2, 16, 16))
    assert w.tolist() == pytest.approx([0.3, 2.7, 0], abs=0.2) and w.mean() == pytest.approx(1)


def test_a_refined_stage_is_saved_decoded_in_tiles_and_loaded(refined, tmp_path):
    ae, latents = refined
    train_refiner(ae, latents, 2)
    ae.save_pretrained(tmp_path)
    again = PCACompressedVAE.from_pretrained(tmp_path)
    with torch.no_grad():
        x = wide_clips(2)
        assert torch.equal(again(x), ae(x))
        z = ae.encode(x).mode
        whole, tiles = ae.decode(z), ae.decode_tiled(z, 6, 5, 2)
        assert torch.equal(ae.decode_tiled(z), whole) and not torch.equal(tiles, whole)
        assert torch.equal(tiles, tiled_decode(ae.inner, ae.decompress(z), 6, 5, 2))


def test_names_of_version_0_1_still_work(inner):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for old, new in OLD_NAMES["minisora.single_gpu"].items():
            home, _, name = new.partition(":")
            assert getattr(single_gpu, old) is getattr(importlib.import_module(home), name)
        ae = PCACompressedVAE.around(inner, 2, 4, refine=8)
        awake(ae.refiner)  # a new one changes nothing
        z = inner.encode(wide_clips(1)).mode
        assert torch.equal(ae.codes(z), ae.compress(z))
        assert torch.equal(ae.linear(ae.compress(z)), ae.decompress_linear(ae.compress(z)))
        assert torch.equal(ae.latents(ae.compress(z)), ae.decompress(ae.compress(z)))
    assert len(said) >= 4 and all("the old name goes" in str(w.message) for w in said)
