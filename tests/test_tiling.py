"""Tiles give what the whole picture gives."""

import pytest
import torch
from helpers.autoencoder import awake, close, generator, random_latents, small_vae

from minisora.autoencoder import ImageVAE
from minisora.latents.tiling import tile_offsets, tile_weights, tiled_decode, tiled_encode


def test_tiles_with_a_wide_margin_are_the_whole():
    """The decoder of depth 1 sees less than 6 latents to each side: with that margin no tile lacks
    anything."""
    ae = small_vae()
    z = random_latents(ae, 2, 22, 19)
    with torch.no_grad():
        whole = ae.decode(z)
    assert close(tiled_decode(ae, z, tile=15, overlap=13, margin=6), whole)
    narrow = tiled_decode(ae, z, tile=14, overlap=2, margin=0)
    assert not close(narrow, whole, 1e-3) and narrow.shape == whole.shape


def test_a_picture_smaller_than_a_tile_is_decoded_whole():
    ae = small_vae()
    z = random_latents(ae, 2, 5, 20)
    with torch.no_grad():
        whole = ae.decode(z)
    assert torch.equal(tiled_decode(ae, z, tile=24, overlap=8), whole)


@pytest.mark.parametrize(
    "size, tile, overlap",
    [(60, 24, 8), (106, 24, 8), (24, 24, 8), (25, 24, 8), (7, 24, 8), (100, 10, 9)],
)
def test_tiles_cover_everything_and_overlap_enough(size, tile, overlap):
    starts = tile_offsets(size, tile, overlap)
    assert starts[0] == 0 and starts[-1] == max(0, size - tile)
    assert all(0 < b - a <= tile - overlap for a, b in zip(starts, starts[1:]))
    side, total = min(tile, size), torch.zeros(size)
    for s in starts:
        w = tile_weights(s, side, size, overlap, overlap // 3)
        assert 0 <= w.min() and w.max() <= 1 and (w.max() == 1 or overlap > tile // 2)
        total[s : s + side] += w
    assert total.min() > 0.4, "somewhere no tile has its say"


def test_tiles_work_for_any_autoencoder():
    ae = awake(ImageVAE(width=4, enc_width=4))
    z = torch.randn(1, 4, 2, 20, 20, generator=generator())
    with torch.no_grad():
        whole = ae.decode(z)
    assert close(tiled_decode(ae, z, tile=14, overlap=11, margin=5), whole)


@pytest.mark.parametrize("tile, overlap, margin", [(8, 8, 0), (8, 4, 2), (8, 4, -1)])
def test_tiles_refuse_by_name(tile, overlap, margin):
    ae = small_vae()
    with pytest.raises(
        ValueError, match=f"overlap < tile, not margin={margin}, overlap={overlap}, tile={tile}"
    ):
        tiled_decode(ae, random_latents(ae, 1), tile, overlap, margin)


def test_encoded_in_tiles_with_a_wide_margin_is_the_whole():
    "The encoder sees less than 6 latents to each side."
    ae = small_vae()
    x = torch.rand(2, 3, 5, 22 * 8, 19 * 8, generator=generator()) * 2 - 1
    with torch.no_grad():
        whole = ae.encode(x).mode
    assert close(tiled_encode(ae, x, tile=15, overlap=13, margin=6), whole)
    narrow = tiled_encode(ae, x, tile=14, overlap=2, margin=0)
    assert not close(narrow, whole, 1e-3) and narrow.shape == whole.shape


def test_a_clip_smaller_than_a_tile_is_encoded_whole():
    ae = small_vae()
    x = torch.rand(1, 3, 5, 40, 160, generator=generator()) * 2 - 1
    with torch.no_grad():
        assert torch.equal(tiled_encode(ae, x, tile=24, overlap=8), ae.encode(x).mode)


def test_clips_that_cannot_be_encoded_in_tiles_are_named():
    ae = small_vae()
    x = torch.zeros(1, 3, 5, 40, 40)
    for wrong, message in (
        (x[:, :2], "3 color channels, these have 2"),
        (x[0], r"must be \(B, 3, T, H, W\), not \(3, 5, 40, 40\)"),
        (x[..., :39], "multiples of 8"),
        (x[:, :, :3], "number of frames"),
        (x.to(torch.uint8), "must be float"),
        (x / 0, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            tiled_encode(ae, wrong)
    with pytest.raises(ValueError, match="overlap < tile, not margin=2, overlap=4, tile=8"):
        tiled_encode(ae, x, 8, 4, 2)
