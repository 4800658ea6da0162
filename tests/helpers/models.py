"""Models small enough for a test, what goes into them, and how to look at what comes out."""

import dataclasses
import json

import torch
from safetensors.torch import load_file, save_file

from minisora.dit import DiTConfig
from minisora.models.conditions import WordCondition
from minisora.models.layouts import wrap
from minisora.temporal import VideoDiT, VideoDiTConfig

# an image model, and two video models: tubelets of two frames, and patches of one
TINY = DiTConfig(size=(8, 8), width=32, depth=2, heads=2, num_classes=5)
VIDEO = VideoDiTConfig(
    size=(4, 4, 6),
    patch=(2, 2, 2),
    width=48,
    depth=2,
    heads=2,
    condition=WordCondition(7, slots=2),
)
FRAMES = dataclasses.replace(VIDEO, patch=(1, 2, 2), depth=4)
IN_CONTEXT = WordCondition(7, slots=2, in_context=True)


def awake(model, std=0.2, seed=1):
    "Give every weight a random value: a fresh DiT outputs zero, whatever is wrong inside."
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=g) * std
    return model


def batch(config=TINY, n=3, seed=2):
    "Latents, times and ids for an image model."
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, config.channels, 1, *config.size, generator=g),
        torch.rand(n, generator=g),
        torch.randint(0, max(config.num_classes, 1), (n,), generator=g),
    )


def video_batch(config=VIDEO, n=3, seed=2, size=None):
    "Latents, times and ids for a video model; `size`: clips smaller than the model's."
    g = torch.Generator().manual_seed(seed)
    words = getattr(config.condition, "vocab", 1)
    slots = getattr(config.condition, "slots", 1)
    return (
        torch.randn(n, config.channels, *(size or config.size), generator=g),
        torch.rand(n, generator=g),
        torch.randint(0, words, (n, slots), generator=g),
    )


def video(config=VIDEO, *wrappers, **changes):
    "An awake video model of a config with changes, with wrappers around its layout."
    return wrap(awake(VideoDiT(dataclasses.replace(config, **changes))), *wrappers)


def close(a, b, rel=1e-5):
    assert a.shape == b.shape
    error = (a - b).abs().max() / b.abs().max()
    assert b.abs().max() > 1e-3 and error <= rel, f"relative error {error:.1e}"


def same(a, b):
    "Two state dicts are bit-equal."
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )


def without_gradient(model):
    "The names of the weights that got no gradient."
    return [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def edit(folder, change, file="model.safetensors"):
    "Apply `change` to the tensors of a saved model."
    state = load_file(folder / file)
    change(state)
    save_file(state, folder / file)


def rewrite(folder, drop=None, **fields):
    "Change fields of a saved config.json, or drop one."
    values = json.loads((folder / "config.json").read_text()) | fields
    values.pop(drop, None)
    (folder / "config.json").write_text(json.dumps(values))


class Bomb:
    "What must never be unpickled."

    def __reduce__(self):
        return exec, ('raise SystemExit("unpickled")',)


def label(options):
    "A short name of a dict of options for pytest's list: 'layout=factorized, relative_bias=True'."
    if not isinstance(options, dict):
        return None  # pytest's own name
    return ", ".join(f"{k}={_short(v)}" for k, v in options.items()) or "plain"


def _short(value):
    if isinstance(value, (tuple, list)):
        return "(" + " ".join(map(_short, value)) + ")"
    if not dataclasses.is_dataclass(value):
        return str(value)
    changed = {
        f.name: getattr(value, f.name)
        for f in dataclasses.fields(value)
        if getattr(value, f.name) != f.default
    }
    inner = " ".join(f"{k}:{v}" for k, v in changed.items())
    return getattr(value, "kind", "block") + (f"({inner})" if inner else "")
