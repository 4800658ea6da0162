"""What tests of the autoencoders share: small models, clips, diffusers' families in miniature."""

import torch

from minisora.core.noise import fork_seed
from minisora.latents.video_vae import CausalVideoVAE


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def awake(ae):
    "The same net with random weights everywhere: layers that start at zero would hide a leak."
    with torch.no_grad():
        for p in ae.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator()))
    return ae.eval()


def noise_clips(b, frames, h=16, w=24):
    return torch.rand(b, 3, frames, h, w, generator=generator(1)) * 2 - 1


def scenes(n=24, size=32, frames=8):
    "Bright squares on black that move: uint8 (n, 3, frames, size, size)."
    x = torch.zeros(n, 3, frames, size, size, dtype=torch.uint8)
    for i in range(n):
        top, left = (int(v) for v in torch.randint(2, size - 20, (2,), generator=generator(i)))
        for t in range(frames):
            x[i, i % 3, t, top : top + 8, left + t : left + t + 8] = 230
    return x


def tiny_kl(**options):
    from diffusers import AutoencoderKL

    with fork_seed(0):
        return AutoencoderKL(
            block_out_channels=(8, 8, 8),
            layers_per_block=1,
            latent_channels=3,
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            **options,
        ).eval()


FOUR = (8, 8, 8, 8)
SIZES = dict(
    AutoencoderKLWan=(9, 16),
    AutoencoderKLCogVideoX=(9, 16),
    AutoencoderKLLTXVideo=(9, 32),
    AutoencoderKLHunyuanVideo=(9, 16),
)


def tiny(kind, **options):
    """A randomly initialised autoencoder of a family, small enough for a test, with statistics that
    are not trivial."""
    import diffusers

    make = getattr(diffusers, kind)
    config = (
        dict(
            AutoencoderTiny=dict(
                encoder_block_out_channels=(8, 8, 8),
                decoder_block_out_channels=(8, 8, 8),
                num_encoder_blocks=(1, 1, 1),
                num_decoder_blocks=(1, 1, 1),
                latent_channels=3,
                scaling_factor=0.7,
            ),
            AutoencoderKLWan=dict(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 2, 2, 2],
                num_res_blocks=1,
                temperal_downsample=[False, True, True],
                latents_mean=[0.1, -0.2, 0.3, 0.4],
                latents_std=[2.0, 0.5, 1.5, 3.0],
            ),
            AutoencoderKLCogVideoX=dict(
                block_out_channels=FOUR,
                down_block_types=("CogVideoXDownBlock3D",) * 4,
                layers_per_block=1,
                up_block_types=("CogVideoXUpBlock3D",) * 4,
                latent_channels=4,
                norm_num_groups=2,
            ),
            AutoencoderKLLTXVideo=dict(
                latent_channels=8,
                block_out_channels=FOUR,
                decoder_block_out_channels=FOUR,
                layers_per_block=(1,) * 5,
                decoder_layers_per_block=(1,) * 5,
                patch_size=2,
                scaling_factor=0.9,
            ),
            AutoencoderKLHunyuanVideo=dict(
                block_out_channels=FOUR, layers_per_block=1, latent_channels=4, norm_num_groups=2
            ),
        )[kind]
        | options
    )
    with fork_seed(0):
        vae = make(**config).eval()
    if kind == "AutoencoderKLLTXVideo":
        vae.latents_mean.copy_(torch.linspace(-1, 1, 8))
        vae.latents_std.copy_(torch.linspace(0.5, 2, 8))
    return vae


def small_vae(first_alone=True, **options):
    "A causal video autoencoder of a few weights, all of them random."
    options = dict(channels=4, width=8, depth=1, first_alone=first_alone) | options
    return awake(CausalVideoVAE(**options))


def random_latents(ae, t, h=2, w=3):
    return torch.randn(1, ae.spec.channels, t, h, w, generator=generator())


def close(a, b, relative=1e-5):
    return a.shape == b.shape and (a - b).abs().max() < relative * b.abs().max()


def inner_vae():
    "What a second stage is put on: a video autoencoder whose layers that start at zero are random."
    ae = CausalVideoVAE(channels=6, width=8, depth=1)
    g = generator()
    with torch.no_grad():
        for p in ae.parameters():
            if p.abs().max() == 0:
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return ae.eval()


def wide_clips(n=4, seed=0):
    return torch.rand(n, 3, 9, 32, 64, generator=generator(seed)) * 2 - 1
