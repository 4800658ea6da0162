"""Autoencoders of diffusers with random weights, small enough for a test."""

import torch

from minisora.core.noise import fork_seed


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


def tiny(kind, **options):
    "A randomly initialised autoencoder of a family, small enough for a test, with statistics that are not trivial."
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


# frames and side of a clip that each family of videos takes
SIZES = dict(
    AutoencoderKLWan=(9, 16),
    AutoencoderKLCogVideoX=(9, 16),
    AutoencoderKLLTXVideo=(9, 32),
    AutoencoderKLHunyuanVideo=(9, 16),
)
