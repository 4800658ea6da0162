"""What the tests of upsampling share: small models that are awake, and pipelines of them."""

import torch
from helpers.autoencoder import generator, small_vae
from helpers.pipeline import WORDS, awake, speaking_parts

from minisora.models.conditions import WordCondition
from minisora.pipeline import VideoPipeline
from minisora.upsampling import DepthToSpaceGuide, EnlargedGuide, UpsamplerConfig, UpsamplerDiT
from minisora.upsampling import Upsampling
from minisora.upsampling_pipeline import UpsamplingPipeline

GUIDES = [EnlargedGuide(), DepthToSpaceGuide()]
WORDY = WordCondition(len(WORDS))
OBJECTIVE = Upsampling(prediction="data")


def upsampler_config(**changes):
    "Latents of 4 channels, 3 × 4 × 4."
    small = dict(channels=9, size=(3, 4, 4), patch=(1, 2, 2), width=32, depth=2, heads=2)
    return UpsamplerConfig(**small | changes)


def upsampler(seed=0, **changes):
    return awake(upsampler_config(**changes), seed, UpsamplerDiT)


def enlarging(**changes):
    "Doubles clips in pieces of 9 frames; told prompts."
    parts = dict(
        model=upsampler(condition=WORDY),
        autoencoder=small_vae(),
        objective=OBJECTIVE,
        vocabulary=WORDS,
        mean=0.1,
        std=2.0,
        level=0.1,
        sampling=dict(num_inference_steps=2),
    )
    return UpsamplingPipeline(**parts | changes)


def with_upsampler(own=False, **changes):
    "Makes clips of 9 frames of 32×64 pixels, and larger ones; `own`: by another autoencoder."
    parts = speaking_parts() | dict(sampling=dict(num_inference_steps=2))
    other = speaking_parts()["autoencoder"]
    up = enlarging(
        model=upsampler(channels=7, condition=WORDY),
        autoencoder=other if own else parts["autoencoder"],
        sampling=dict(num_inference_steps=1),
    )
    return VideoPipeline(**parts | dict(upsampler=up) | changes)


def noise_like(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def clips_of(n, frames, height=16, width=16, seed=0):
    return torch.rand(n, 3, frames, height, width, generator=generator(seed)) * 2 - 1
