"""What the tests of cascades share: small stages that are awake, and pipelines of them."""

from dataclasses import replace

import torch
from helpers.autoencoder import generator

from minisora.cascade import CASCADE_PRESETS, CascadeUNet
from minisora.models.prompts import NoPrompt, PromptWords
from minisora.cascade_objective import CodeConditionedInterpolant
from minisora.cascade_pipeline import CascadePipeline
from minisora.data.vocabulary import Vocabulary
from minisora.interpolants import Interpolant
from minisora.latents.paella_vq import PaellaVQ
from minisora.latents.semantic import SemanticCompressor

WORDS = Vocabulary.from_captions(["a red ring", "a blue star"])
TOLD = PromptWords(len(WORDS), WORDS.slots)
OBJECTIVE = CodeConditionedInterpolant(code_channels=4, code_height=2, code_width=2)
SMALL = dict(widths=(16, 32), heads=(2, 2), condition_width=16, prompt=TOLD)


def shake(model, seed=0, size=0.1):
    "All weights anew: those that start at zero would hide any fault."
    g = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=g))
    return model.eval()


def stage_c(frames=4, seed=0, **changes):
    "Codes of 4 channels, 2 × 2 places."
    config = replace(CASCADE_PRESETS["c-tiny"], size=(frames, 2, 2), channels=4, **SMALL)
    return shake(
        CascadeUNet(replace(config, **dict(temporal="all" if frames > 1 else "none") | changes)),
        seed,
    )


def stage_b(frames=4, seed=1, **changes):
    "Latents of 4 channels, 16 × 16, told a code of 4 channels; the head is awake."
    config = replace(
        CASCADE_PRESETS["b-tiny"],
        size=(frames, 16, 16),
        code_channels=4,
        **SMALL | dict(heads=(0, 2), prompt=replace(TOLD, each=False)),
    )
    return shake(
        CascadeUNet(replace(config, **dict(temporal="all" if frames > 1 else "none") | changes)),
        seed,
    )


def cascade(**changes):
    "Clips of 4 frames of 64 × 64 pixels, in few steps."
    parts = dict(
        prior=stage_c(),
        objective=Interpolant(),
        decoder=stage_b(),
        decoder_objective=OBJECTIVE,
        autoencoder=shake(PaellaVQ(width=16, blocks=1, codebook=16)),
        compressor=shake(SemanticCompressor(4, width=8)),
        vocabulary=WORDS,
        code_mean=0.1,
        code_std=[1.0, 2.0, 0.5, 1.5],
        mean=-0.1,
        std=2.0,
        fps=9.6,
        sampling=dict(num_inference_steps=3, guidance_scale=2.0),
        decoder_sampling=dict(num_inference_steps=2),
    )
    return CascadePipeline(**parts | changes)


def pictures(**changes):
    "The same of pictures."
    return cascade(**dict(prior=stage_c(1), decoder=stage_b(1)) | changes)


def wordless(**changes):
    silent = dict(prompt=NoPrompt())
    return cascade(
        **dict(prior=stage_c(**silent), decoder=stage_b(**silent), vocabulary=None) | changes
    )
