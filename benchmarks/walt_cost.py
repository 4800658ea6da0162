"""Predicted, not measured: what W.A.L.T's models cost to train and to sample: walt_cost.json.

    python benchmarks/walt_cost.py    # two minutes; no weights are allocated

FLOPs of a forward pass and of a training step are counted on the device 'meta', per clip of
17 × 128 × 128 pixels (5 × 16 × 16 tokens); of a single image too, which passes only the windows of
one frame, every second block. Seconds are FLOPs divided by UTILIZATION of a card's peak rate in
bfloat16 (CARDS of flops.py): a training step of BATCH clips on one card, as often as that needs
the passes, and a sample of STEPS calls with guidance, two forward passes each. Self-conditioning,
text and the autoencoder are not in it.

Memory is that of flops.py: 16 bytes per weight for weights, AdamW's moments and the average, and
the most bytes alive in a step in bfloat16 by autocast, each block checkpointed and what lies
between two products fused. The relative bias is written out there for all pairs, so it is an upper
bound."""

from dataclasses import replace

import torch
from flops import ASSUMED, CARDS, Case
from machine import machine, make_parser

from minisora.core.files import write_json
from minisora.models.cost import training_flops
from minisora.models.layouts import Checkpointed
from minisora.models.windows import Windows
from minisora.temporal import VideoDiT
from minisora.walt import WALT_PRESETS

UTILIZATION = 0.4  # of the peak; assumed
BATCH = 256
STEPS = 50  # of DDIM
NAMES = ("WALT-L", "WALT-XL", "WALT-3B")


def image_config(config):
    "What a single image passes: the windows of one frame."
    blocks = config.depth // config.layout.period
    still = (1, *config.size[1:])
    return replace(config, size=still, depth=blocks, layout=Windows(((1, 0, 0),)))


def count(config):
    "Weights of a model, and FLOPs of a forward pass and of a training step for one sample."
    with torch.device("meta"):
        model = VideoDiT(config)
    forward = training_flops(model, backward=False)
    return sum(p.numel() for p in model.parameters()), forward, training_flops(model)


def seconds(flops, card):
    "How long that many FLOPs take at the assumed share of the card's peak."
    return flops / (UTILIZATION * CARDS[card]["bf16"])


def memory(config):
    "Gigabytes that are always held and of each clip in a step, and the largest batch of a card."
    case = Case(config, "bf16", True, False, "fused", [Checkpointed()])
    held = dict(
        always_gb=round(case.always / 1e9, 2),
        one_clip_gb=round(case.memory(1) / 1e9, 2),
        more_per_clip_gb=round((case.memory(64) - case.memory(32)) / 32e9, 3),
    )
    return held | {
        name: dict(largest_batch=case.fits(card["memory"] * ASSUMED["memory"]))
        for name, card in CARDS.items()
    }


def row(name):
    "What one model costs."
    config = WALT_PRESETS[name]
    weights, forward, training = count(config)
    _, image, image_training = count(image_config(config))
    found = dict(
        name=name,
        depth=config.depth,
        width=config.width,
        weights=weights,
        forward_gflop=round(forward / 1e9, 1),
        training_gflop=round(training / 1e9, 1),
        image_forward_gflop=round(image / 1e9, 1),
        image_training_gflop=round(image_training / 1e9, 1),
    )
    found |= memory(config)
    for card in CARDS:
        found[card] |= dict(
            step_seconds=round(seconds(BATCH * training, card), 2),
            clip_seconds=round(seconds(2 * STEPS * forward, card), 3),
            image_seconds=round(seconds(2 * STEPS * image, card), 4),
        )
    return found


def main():
    args = make_parser(__doc__, __file__).parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in NAMES:
        rows.append(row(name))
        print(rows[-1], flush=True)
    record = dict(
        note="PREDICTED from counted operations, published peak rates and an assumed share of "
        "them, not measured on any GPU. See benchmarks/walt_cost.py.",
        cards={name: dict(card) for name, card in CARDS.items()},
        utilization=UTILIZATION,
        batch=BATCH,
        steps=STEPS,
        machine=machine(),
        rows=rows,
    )
    write_json(args.out, record)


if __name__ == "__main__":
    main()
