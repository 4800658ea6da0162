"""Predicted, not measured: what StableCascade's stages cost as a video model at 480p:
cascade_cost.json.

    python benchmarks/cascade_cost.py   # some minutes, resumes; no weights are allocated
    python benchmarks/cascade_cost.py --cases NAME …    # these anew

The published sizes of stage C (the code) and B (the latents), `lite` and `full`, with layers along
time. A clip has SIZE pixels: a code of 11 × 20 places a frame (42.67 : 1 per side) and latents of
120 × 212. As in flops.py, whose cards and assumed shares are taken, forward and backward run on
fake tensors; every operation that would be a kernel is written down with its FLOPs, its bytes and
how long what it writes lives. A depthwise convolution's backward pass is counted as twice its
forward pass: torch's own counter multiplies it by the channels.

`sampling`: weights in bfloat16, all three stages on the card; C takes C_STEPS steps on all frames
at once, B takes B_STEPS, in pieces of PIECE frames that share a quarter (the pipeline's own), both
guided, so two rows a call; `fits` says whether the weights and the most bytes alive at any moment
do. A decodes its tiles. `seconds`: kernel by kernel, and with all between two products fused.
`training`: one clip of PIECE frames, either all weights learn (16 bytes each: weights, AdamW's
moments, the average; gradients apart) or only the layers along time do, beside frozen weights in
bfloat16, 2 bytes each. `checkpointed`: every layer's inner results are made again in the backward
pass, which `fit` cannot ask a U-Net for; it is here to say what that would be worth. `crop`: B on
crops of 64 × 64 latents; else the whole picture."""

import functools
import json
import math
from collections import namedtuple
from dataclasses import replace

import torch
from flops import ASSUMED, CARDS, Pass, Trace, alive, fake_tensors, fuse, seconds
from machine import machine, make_parser
from torch.utils.checkpoint import checkpoint

from minisora.cascade import CASCADE_PRESETS, CascadeUNet
from minisora.core.files import read_json, write_json
from minisora.latents.paella_vq import PaellaVQ
from minisora.latents.tiling import tile_offsets, tiled_decode
from minisora.models.cascade_blocks import AttentionBlock, ResidualBlock, TemporalLayer

SIZE = (480, 848)
CODE = (11, 20)
LATENTS = (120, 212)
CROP = (64, 64)
PIECE = 17
FRAMES = (17, 81)
WORDS = 77  # tokens of a caption
C_STEPS = 20
B_STEPS = 10
NAMES = ("c-lite", "c-full", "b-lite", "b-full")
OPTIMIZER_BYTES = 40  # moved per weight that learns, AdamW and the average in one kernel


class ConvTrace(Trace):
    "A `Trace` that counts what a depthwise convolution costs to learn."

    @staticmethod
    def flops(func, args, kwargs, out):
        if "convolution_backward" not in str(func):
            return Trace.flops(func, args, kwargs, out)
        grad, x, weight = args[:3]
        transposed, mask = args[7], args[10]
        places = (x if transposed else grad).shape
        once = 2 * places[0] * math.prod(places[2:]) * weight.numel()
        return "product", once * (bool(mask[0]) + bool(mask[1]))


def config_of(name, frames, size):
    "The preset as a video model of `size` (rows, columns) of what it makes."
    unit = CASCADE_PRESETS[name].patch
    if any(n % unit for n in size):
        raise ValueError(f"{name}: {size} are no multiples of {unit}")
    return replace(CASCADE_PRESETS[name], size=(frames, *size), temporal="all")


@functools.cache
def weights(name):
    "How many weights a preset has: dict(all, temporal)."
    with torch.device("meta"):
        model = CascadeUNet(config_of(name, 2, (8, 8)))
    return dict(
        all=sum(p.numel() for p in model.parameters()),
        temporal=sum(p.numel() for p in model.temporal_parameters()),
    )


def told(config, rows, code_size):
    "A condition (B, numbers) and a code or None, as the stage is told."
    prompt = config.prompt
    numbers = prompt.pooled + WORDS * prompt.text + prompt.image
    y = torch.empty(rows, numbers)
    if not config.code_channels:
        return y, {}
    code = torch.empty(rows, config.code_channels, config.size[0], *code_size)
    return y, dict(code=code)


def remake_layers(model):
    "Each layer's inner results are made again in the backward pass."
    for module in model.modules():
        if isinstance(module, (ResidualBlock, AttentionBlock, TemporalLayer)):
            module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)
    return model


Traced = namedtuple("Traced", "ops weights grads bytes learn")


def traced(config, rows, code_size, learn=None, checkpointed=False):
    """Operations of one call of `rows` clips, without a backward pass or with one of what learns,
    'all' or 'temporal'; bytes of the weights."""
    with fake_tensors():
        model = CascadeUNet(config).train(learn is not None)
        if learn == "temporal":
            model.freeze_pictures()
        for p in model.parameters():
            if learn is None or not p.requires_grad:
                p.data = p.data.bfloat16()
        if checkpointed:
            remake_layers(model)
        x = torch.empty(rows, config.channels, *config.size)
        y, code = told(config, rows, code_size)
        with ConvTrace() as seen, torch.set_grad_enabled(learn is not None):
            with torch.autocast("cpu", torch.bfloat16):
                out = model(x, torch.empty(rows), y, **code)
            if learn:
                out.float().square().mean().backward()
        own = [*model.parameters()]
        grads = {p.grad.untyped_storage()._cdata for p in own if p.grad is not None}
        learning = sum(p.numel() for p in own if p.requires_grad) if learn else 0
        held = 16 * learning + sum(2 * p.numel() for p in own if not (learn and p.requires_grad))
        return Traced(seen.ops, {p.untyped_storage()._cdata for p in own}, grads, held, learning)


def costs(found):
    "TFLOP, bytes alive, and seconds on each card, kernel by kernel and fused, of a trace."
    plain = Pass(found.ops, found.weights)
    joined = fuse(found.ops, found.grads)
    out = dict(
        kernels=len(found.ops),
        tflop=round(plain.flops / 1e12, 3),
        alive_gb=round(alive(found.ops, found.weights, found.grads).max().item() / 1e9, 2),
        alive_fused_gb=round(alive(joined, found.weights, found.grads).max().item() / 1e9, 2),
        held_gb=round(found.bytes / 1e9, 2),
    )
    for name, card in CARDS.items():
        update = found.learn * OPTIMIZER_BYTES / (card["bandwidth"] * ASSUMED["bandwidth"])
        took = [
            seconds(part, 1, card, ASSUMED) + update
            for part in (plain, Pass(joined, found.weights))
        ]
        out[name] = dict(seconds=round(took[0], 4), seconds_fused=round(took[1], 4))
    return out


def stage_a(frames):
    "What it costs to decode the latents of a clip, in the pipeline's tiles."
    with fake_tensors(), torch.no_grad():
        model = PaellaVQ().eval()
        own = [*model.parameters(), *model.buffers()]
        for p in own:
            p.data = p.data.bfloat16() if p.is_floating_point() else p.data
        z = torch.empty(1, 4, frames, *LATENTS)
        with ConvTrace() as seen, torch.autocast("cpu", torch.bfloat16):
            tiled_decode(model, z, tile=32, overlap=12, margin=4)
        held = sum(p.nbytes for p in own)
        return Traced(seen.ops, {p.untyped_storage()._cdata for p in own}, set(), held, 0)


def cases():
    "{name: what makes its trace}: calls of the samplers, and training steps."
    found = {}
    for name in NAMES:
        is_c = name.startswith("c")
        size = CODE if is_c else LATENTS
        for frames in FRAMES if is_c else (PIECE,):
            config = config_of(name, frames, size)
            found[f"{name}, a call, {frames} frames"] = functools.partial(traced, config, 2, CODE)
        for learn in ("all", "temporal"):
            train = functools.partial(traced, config_of(name, PIECE, size), 1, CODE, learn)
            if is_c:
                found[f"{name}, {learn} learn"] = train
            else:
                crop = config_of(name, PIECE, CROP)
                code = [round(4 * n / 42.67) for n in CROP]
                found[f"{name}, {learn} learn, crop"] = functools.partial(
                    traced, crop, 1, code, learn
                )
        found[f"{name}, temporal learn, checkpointed"] = functools.partial(train, checkpointed=True)
    found[f"a, {PIECE} frames"] = functools.partial(stage_a, PIECE)
    return found


def pieces(frames):
    "How often B is asked in a step."
    return len(tile_offsets(frames, PIECE, PIECE // 4))


def sampling_row(kind, frames, calls):
    "A film of `frames` frames by lite or full stages, from their calls."
    parts = {  # stage A works frame by frame
        "c": (C_STEPS, calls[f"c-{kind}, a call, {frames} frames"]),
        "b": (B_STEPS * pieces(frames), calls[f"b-{kind}, a call, {PIECE} frames"]),
        "a": (frames / PIECE, calls[f"a, {PIECE} frames"]),
    }
    held = sum(part["held_gb"] for _, part in parts.values())
    out = dict(
        kind=kind,
        frames=frames,
        tflop=round(sum(n * part["tflop"] for n, part in parts.values()), 1),
        held_gb=round(held, 2),
        peak_gb=round(held + max(part["alive_gb"] for _, part in parts.values()), 2),
        peak_fused_gb=round(held + max(part["alive_fused_gb"] for _, part in parts.values()), 2),
    )
    for card in CARDS:
        out[card] = {
            what: {name: round(n * part[card][what], 2) for name, (n, part) in parts.items()}
            for what in ("seconds", "seconds_fused")
        }
        out[card] |= dict(
            total=round(sum(out[card]["seconds"].values()), 1),
            total_fused=round(sum(out[card]["seconds_fused"].values()), 1),
            fits=out["peak_gb"] <= CARDS[card]["memory"] * ASSUMED["memory"] / 1e9,
        )
    return out


def training_row(name, found):
    "A training step on one clip: what is held and alive, and whether a card has it."
    out = dict(found, peak_gb=round(found["held_gb"] + found["alive_gb"], 2))
    out["peak_fused_gb"] = round(found["held_gb"] + found["alive_fused_gb"], 2)
    for card in CARDS:
        room = CARDS[card]["memory"] * ASSUMED["memory"] / 1e9
        out[card] = found[card] | dict(
            fits=out["peak_gb"] <= room, fits_fused=out["peak_fused_gb"] <= room
        )
    return dict(name=name, **out)


def record_of(calls, known):
    "The record; films and training steps when all calls are there."
    calls = {name: calls[name] for name in known if name in calls}
    record = dict(
        note="PREDICTED from counted operations and published peak rates, not measured on any GPU. "
        "See benchmarks/cascade_cost.py.",
        cards=CARDS,
        assumed=ASSUMED,
        size=SIZE,
        code=CODE,
        latents=LATENTS,
        piece=PIECE,
        steps=dict(c=C_STEPS, b=B_STEPS),
        machine=machine(),
        weights={name: weights(name) for name in NAMES},
        calls=calls,
    )
    if len(calls) == len(known):
        kinds = ("lite", "full")
        record["sampling"] = [sampling_row(kind, n, calls) for kind in kinds for n in FRAMES]
        learned = {name: found for name, found in calls.items() if " learn" in name}
        record["training"] = [training_row(name, found) for name, found in learned.items()]
    return record


def main():
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--cases", nargs="*", metavar="NAME", help="names, or their beginnings")
    args = parser.parse_args()
    torch.set_num_threads(1)
    calls = read_json(args.out)["calls"] if args.out.exists() else {}
    known = cases()
    for name, make in known.items():
        wanted = args.cases is None and name not in calls
        if wanted or any(name.startswith(start) for start in args.cases or ()):
            calls[name] = costs(make())
            print(name, json.dumps(calls[name]), flush=True)
            write_json(args.out, record_of(calls, known))
    write_json(args.out, record_of(calls, known))


if __name__ == "__main__":
    main()
