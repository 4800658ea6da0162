"""Tiles give what the whole picture gives."""

import pytest
import torch
from helpers.autoencoder import awake, close, generator, random_latents, small_vae

from minisora.autoencoder import ImageVAE
from minisora.latents.tiling import tile_offsets, tile_weights, tiled_decode


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
