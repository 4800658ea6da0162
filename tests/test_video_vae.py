"""The causal video autoencoder: no latent sees the future; a stream gives what the whole gives."""

import pytest
import torch
from helpers.autoencoder import (
    awake,
    close,
    generator,
    noise_clips,
    random_latents,
    scenes,
    small_vae,
)

from minisora.autoencoder import ImageVAE
from minisora.data.video import to_float
from minisora.latents.video_vae import (
    CausalCache,
    CausalConv3d,
    CausalVideoVAE,
    decode_stream,
    encode_stream,
)
from minisora.metrics import foreground_psnr

# ---------------------------------------------------------------- causality


@pytest.mark.parametrize("first_alone", [True, False])
@pytest.mark.parametrize("frame", [0, 1, 4, 5, 8])
def test_a_latent_sees_no_later_frame(first_alone, frame):
    ae = awake(CausalVideoVAE(width=4, first_alone=first_alone))
    x = noise_clips(1, 13 if first_alone else 12)
    y = x.clone()
    y[:, :, frame] += 1
    with torch.no_grad():
        a, b = ae.encode(x), ae.encode(y)
    first = (frame + 3) // 4 if first_alone else frame // 4
    for p, q in zip(a, b):
        assert torch.allclose(p[:, :, :first], q[:, :, :first], atol=1e-6), (
            "an earlier latent knows of the frame"
        )
        assert (p[:, :, first] - q[:, :, first]).abs().max() > 1e-3, (
            "the frame's own latent does not know of it"
        )


@pytest.mark.parametrize("first_alone", [True, False])
def test_a_frame_sees_no_later_latent(first_alone):
    ae = awake(CausalVideoVAE(width=4, first_alone=first_alone))
    z = torch.randn(1, 16, 4, 2, 2, generator=generator())
    w = z.clone()
    w[:, :, 2] += 1
    with torch.no_grad():
        a, b = ae.decode(z), ae.decode(w)
    first = 5 if first_alone else 8
    assert torch.allclose(a[:, :, :first], b[:, :, :first], atol=1e-6)
    assert (a[:, :, first : first + 4] - b[:, :, first : first + 4]).abs().amax(
        (0, 1, 3, 4)
    ).min() > 1e-3


def test_the_causality_test_can_fail():
    """A decoder that looks at neighbours is not causal, says so, and is caught by the same
    comparison."""
    ae = awake(ImageVAE(width=4, enc_width=4, smooth=8))
    assert not ae.spec.causal and ImageVAE(width=4).spec.causal
    z = torch.randn(1, 4, 4, 2, 2, generator=generator())
    w = z.clone()
    w[:, :, 2] += 1
    with torch.no_grad():
        a, b = ae.decode(z), ae.decode(w)
    assert not torch.allclose(a[:, :, 1], b[:, :, 1], atol=1e-4)


def test_an_image_is_a_clip_of_one_frame():
    ae = awake(CausalVideoVAE(width=4))
    x = noise_clips(1, 9)
    with torch.no_grad():
        clip, image = ae.encode(x), ae.encode(x[:, :, :1])
    assert torch.allclose(clip.mean[:, :, :1], image.mean, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(
            ae.decode(clip.mean)[:, :, :1], ae.decode(image.mean), atol=1e-3
        )  # values of ±50


def test_video_pca_start_reconstructs():
    x = to_float(scenes(12))
    ae = CausalVideoVAE(width=4, first_alone=False)
    ae.init_pca(x)
    with torch.no_grad():
        assert foreground_psnr(ae(x), x) > foreground_psnr(torch.full_like(x, -1), x) + 5


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("first_alone", [True, False])
@pytest.mark.parametrize("later", [4, 8])
def test_a_clip_encoded_in_chunks_is_the_clip_encoded_whole(first_alone, later):
    ae = small_vae(first_alone)
    first = 5 if first_alone else 4
    x = noise_clips(2, first + 16)
    chunks = [x[:, :, :first], *x[:, :, first:].split(later, 2)]
    with torch.no_grad():
        whole, parts = ae.encode(x), list(encode_stream(ae, iter(chunks)))
        alone = [ae.encode(chunks[0]).mean] + [
            ae._encode(p, continued=True).mean for p in chunks[1:]
        ]
    assert close(torch.cat([p.mean for p in parts], 2), whole.mean)
    assert close(torch.cat([p.logvar for p in parts], 2), whole.logvar)
    assert not close(torch.cat(alone, 2), whole.mean, 1e-3), (
        "without memory the chunks would not fit"
    )


@pytest.mark.parametrize("first_alone", [True, False])
@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_latents_decoded_in_chunks_are_the_latents_decoded_whole(first_alone, step):
    ae = small_vae(first_alone)
    z = random_latents(ae, 5)
    with torch.no_grad():
        whole, parts = ae.decode(z), list(decode_stream(ae, z, step))
    assert len(parts) == -(-5 // step) and close(torch.cat(parts, 2), whole)


def test_streams_leave_no_memory_and_may_be_interleaved():
    "A reader who encodes or decodes something else between two chunks must not disturb them."
    ae = small_vae()
    z, x = random_latents(ae, 6), noise_clips(1, 5)
    with torch.no_grad():
        want, plain = ae.decode(z), ae.encode(x).mean
        parts = []
        for chunk in decode_stream(ae, z, 2):
            parts.append(chunk)
            assert torch.equal(ae.encode(x).mean, plain)
            ae.decode(z.flip(2))
        next(decode_stream(ae, z, 2))  # left in the middle
    assert close(torch.cat(parts, 2), want)
    assert all(m.cache is None for m in ae.modules() if isinstance(m, CausalConv3d))


def test_memory_of_the_past_is_small():
    """Two frames a layer with a past, whatever the length of the chunks, and nothing that holds on
    to a chunk."""
    ae = small_vae()
    cache = CausalCache(ae.dec)
    with torch.no_grad(), cache:
        ae._decode(random_latents(ae, 9))
    held = [f for f in cache.frames.values() if len(f)]
    assert held and all(
        f.shape[2] == 2 and f.untyped_storage().nbytes() == f.numel() * 4 for f in held
    )


def test_streams_refuse_by_name():
    ae = small_vae()
    with pytest.raises(ValueError, match="number of frames must be a multiple of 4, not 5"):
        list(encode_stream(ae, noise_clips(1, 10).split(5, 2)))
    with pytest.raises(ValueError, match=r"number of frames must be 1 \+ a multiple of 4, not 4"):
        list(encode_stream(ae, noise_clips(1, 8).split(4, 2)))
    with pytest.raises(ValueError, match="latents must be a whole number from 1, not 0"):
        list(decode_stream(ae, random_latents(ae, 2), 0))
    for call in (encode_stream, decode_stream):
        with pytest.raises(ValueError, match="ImageVAE: only a CausalVideoVAE can stream"):
            list(call(ImageVAE(width=4, enc_width=4), []))
