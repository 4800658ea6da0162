"""What the tests of frames, pipelines and runs share: awake models, an autoencoder of means, a
pipeline."""

import dataclasses

import pytest
import torch
from helpers.autoencoder import inner_vae, wide_clips
from torch import nn

from minisora.autoencoder import ImageVAE
from minisora.core.protocols import DiagonalGaussian
from minisora.data.vocabulary import Vocabulary
from minisora.frames import FramePrediction
from minisora.interpolants import Interpolant
from minisora.latents.base import AutoencoderBase
from minisora.latents.compression import PCACompressedVAE
from minisora.latents.video_vae import CausalVideoVAE
from minisora.models.conditions import Unconditional, WordCondition
from minisora.pipeline import VideoPipeline
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import fit

# the smallest video model, for latents of four frames
SIZE = dict(size=(4, 2, 2), patch=(1, 1, 1), width=32, depth=2, heads=2)


def awake(config, seed=0, kind=VideoDiT):
    """A model whose zero-initialized layers are redrawn: a fresh one answers 0, which would hide
    any fault."""
    model = kind(config, seed=seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.abs().max() == 0:
                p.copy_(0.2 * torch.randn(p.shape, generator=g))
    return model.eval()


class Blocks(AutoencoderBase):
    "An autoencoder of means: 4×8×8 pixels per latent, frame 0 alone, 3 channels, no weights."

    def __init__(self):
        super().__init__()
        self.spec = CausalVideoVAE(channels=3, width=8).spec

    def _encode(self, x):
        lead = torch.cat([x[:, :, :1].expand(-1, -1, 3, -1, -1), x], 2)
        z = nn.functional.avg_pool3d(lead, (4, 8, 8))
        return DiagonalGaussian(z, torch.full_like(z, -20.0))

    def _decode(self, z):
        return z.repeat_interleave(4, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)[:, :, 3:]


WORDS = Vocabulary.from_captions(["hello", "you", "rest"])


def speaking_parts():
    """The parts of a pipeline that continues clips of 9 frames of 32×64 pixels: a model, a
    compressed autoencoder, words."""
    inner = inner_vae()
    ae = PCACompressedVAE.from_autoencoder(inner, 2, 3)
    with torch.no_grad():
        ae.init_pca([inner.encode(wide_clips()).mode])
    shape = dict(size=(3, 2, 4), patch=(1, 1, 1), width=32, depth=2, heads=2)
    model = awake(VideoDiTConfig(channels=4, condition=WordCondition(len(WORDS)), **shape))
    return dict(
        model=model,
        autoencoder=ae,
        vocabulary=WORDS,
        objective=FramePrediction(prediction="data", known_frames=(0, 1)),
        mean=0.1,
        std=2.0,
        fps=9.6,
    )


def picturing_parts():
    "The parts of a pipeline of 4 frames of 32×32 pixels, whose latents are those of single frames."
    ae = ImageVAE(channels=4, width=8, smooth=4)
    ae.init_pca(wide_clips())
    config = VideoDiTConfig(channels=4, condition=WordCondition(len(WORDS)), **SIZE)
    return dict(
        model=awake(dataclasses.replace(config, size=(4, 4, 4))),
        autoencoder=ae.eval(),
        vocabulary=WORDS,
        objective=Interpolant(prediction="data"),
    )


def picturing_pipeline(**changes):
    return VideoPipeline(**dict(picturing_parts(), sampling=SAMPLING) | changes)


SAMPLING = dict(num_inference_steps=3, guidance_scale=2.0, guidance_interval=(0.0, 0.5))


def speaking_pipeline(**changes):
    return VideoPipeline(**dict(speaking_parts(), sampling=SAMPLING) | changes)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def never(*args, **options):
    pytest.fail("sampled before it was refused")


def refuse_to_sample(monkeypatch):
    "Whatever a pipeline samples with fails the test."
    for name in ("sample", "sample_continuation", "generate_long"):
        monkeypatch.setattr(f"minisora.pipeline.{name}", never)


def wordless_parts(**changes):
    model = awake(VideoDiTConfig(channels=4, **dict(SIZE, size=(4, 4, 4))))
    return dict(picturing_parts(), model=model, vocabulary=None) | changes


def video_config(**changes):
    return VideoDiTConfig(**dict(SIZE, size=(4, 4, 4), channels=4) | changes)


def train_little(data, words=None, channels=4, objective=Interpolant(prediction="data")):
    condition = Unconditional() if words is None else WordCondition(len(words), slots=words.slots)
    config = VideoDiTConfig(channels=channels, condition=condition, **dict(SIZE, size=(4, 4, 4)))
    return fit(VideoDiT(config), data, objective, steps=2, progress=False)


@pytest.fixture(scope="module")
def pipe():
    "Continues clips of 9 frames of 32×64 pixels."
    return speaking_pipeline()


@pytest.fixture(scope="module")
def plain():
    "Makes clips of 4 frames of 32×32 pixels, and continues none."
    return picturing_pipeline()
