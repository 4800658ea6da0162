"""Latte in the plainest way, and small models of its layout."""

import dataclasses

import torch
import torch.nn.functional as F

from minisora.models.conditions import CaptionCondition, Unconditional, WordCondition
from minisora.models.layouts import Factorized
from minisora.models.positions import LattePositions
from minisora.models.preconditioning import DirectOutput
from minisora.temporal import VideoDiT, VideoDiTConfig

from .models import awake

LATTE = VideoDiTConfig(
    size=(3, 8, 8),
    patch=(1, 2, 2),
    width=32,
    depth=4,
    heads=2,
    condition=WordCondition(5),
    layout=Factorized(),
    positions=LattePositions(),
    output=DirectOutput(learn_sigma=True),
    time_convention="ddpm",
)
TEXT = dataclasses.replace(LATTE, condition=CaptionCondition(77 * 768))
SHORT = dataclasses.replace(LATTE, condition=CaptionCondition(6))
PLAIN = dataclasses.replace(LATTE, condition=Unconditional())


def with_images(config, n=2):
    "The same, with room for n single images behind the frames of a clip."
    return dataclasses.replace(config, layout=Factorized(n))


def awake_latte(config=LATTE, seed=1):
    model = awake(VideoDiT(config), seed=seed)
    if config.condition.kind == "caption":  # a sum of very many
        model.text_embedding_projection[1].weight.data *= 3 / config.condition.dim**0.5
    return model


def latte_batch(frames=3, n=2, seed=0, classes=5, ids=1):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 4, frames, 8, 8, generator=g),
        torch.tensor([0.137, 0.9])[:n],
        torch.randint(0, classes, (n, ids), generator=g),
    )


def captions(n=2, parts=1, numbers=(77, 768)):
    return torch.randn(n, parts, *numbers, generator=torch.Generator().manual_seed(3))


def plain_latte(w, x, step, y, heads, y_images=()):
    """Latte from a state dict of its names: one sample x (F, C, H, W), its step index, its
    class, one class for each image behind the frames -> (F, 2 C, H, W). Attention is written
    out, frame by frame. Where the weights have a text projection, captions (77, 768) stand in
    place of classes."""

    def linear(name, h):
        return h @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(h):
        variance = h.var(-1, unbiased=False, keepdim=True)
        return (h - h.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt()

    half = torch.exp(-torch.arange(128) / 128 * torch.log(torch.tensor(10000.0)))
    wave = torch.cat([(step * half).cos(), (step * half).sin()])
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", wave)))
    text = "text_embedding_projection.1.weight" in w

    def steering(y):
        if text:
            return time + linear("text_embedding_projection.1", F.silu(y.flatten()))
        return time + w["y_embedder.embedding_table.weight"][y]

    def block(i, h, c):  # (N, D)
        s1, m1, g1, s2, m2, g2 = linear(f"blocks.{i}.adaLN_modulation.1", F.silu(c)).chunk(6)
        parts = linear(f"blocks.{i}.attn.qkv", norm(h) * (1 + m1) + s1).chunk(3, -1)
        q, k, v = [p.view(len(h), heads, -1).transpose(0, 1) for p in parts]
        seen = ((q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5).softmax(-1) @ v
        h = h + g1 * linear(f"blocks.{i}.attn.proj", seen.transpose(0, 1).reshape(len(h), -1))
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(h) * (1 + m2) + s2), approximate="tanh")
        return h + g2 * linear(f"blocks.{i}.mlp.fc2", hidden)

    patches = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2)
    h = patches.flatten(2).transpose(1, 2) + w["pos_embed"]  # (F, S, D)
    T = len(x) - len(y_images)
    conditions = [steering(y)] * T + [steering(k) for k in y_images]
    for i in range(0, len({k.split(".")[1] for k in w if k.startswith("blocks.")}), 2):
        h = torch.stack([block(i, f, c) for f, c in zip(h, conditions)])
        clip = h[:T] + w["temp_embed"][0][:, None] if i == 0 else h[:T]
        clip = torch.stack([block(i + 1, clip[:, s], steering(y)) for s in range(h.shape[1])], 1)
        h = torch.cat([clip, h[T:]])
    return torch.stack([_head(linear, norm(f), time if text else c) for f, c in zip(h, conditions)])


def _head(linear, f, c):
    """Tokens (S, D) of a frame -> (2 C, 8, 8); with captions the last layer hears the time alone
    (sic)."""
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2)
    patch = linear("final_layer.linear", f * (1 + scale) + shift)
    patch = patch.view(4, 4, 2, 2, -1)  # (h, w, p, q, 2 C)
    return patch.permute(4, 0, 2, 1, 3).reshape(-1, 8, 8)
