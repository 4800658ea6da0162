"""Predicted, not measured: what video models need on one to eight devices, beside what others have
published: cluster.json.

    python benchmarks/cluster.py

`table`: VideoDiT-XL/2 at 480 × 848 pixels, 24 frames a second, causal latents of 4 × 8 × 8; joint
and factorized; a training step of one clip in 16 bits, each block checkpointed, with the smallest
sharing of tokens that fits.

`published`: how many times faster eight devices are than one. VideoSys names for 80 frames of
512 × 512 pixels on H800: 106 s on one, 45 s on eight by Ulysses, 22 s by DSP. Its model is
predicted as a factorized one of depth 28 and width 1152 on latents of 80 × 64 × 64 (its
autoencoder compresses no time), by the operations of its blocks and the bytes that attention
sends, at the shares of ASSUMED, over the H800's link of 200 GB/s in one direction. What sampling
does beside the blocks, latency, and text are not in it: so the prediction is an upper bound of what
more devices can save, and the difference is what it leaves out."""

import argparse
from dataclasses import replace
from pathlib import Path

from machine import machine

from minisora.cluster import (
    ASSUMED,
    DEVICES,
    clip_config,
    crossing_layers,
    fitting_parallel,
    forward_flops,
    sequence_traffic,
)
from minisora.core.files import write_json
from minisora.temporal import VIDEO_PRESETS

PUBLISHED = dict(one=106, ulysses=45, dsp=22)  # seconds
SOURCE = "VideoSys on DSP: 80 frames of 512 × 512 pixels on H800"


def row(layout, seconds, device, devices):
    config = replace(clip_config("VideoDiT-XL/2", seconds, 480, 848), layout=layout)
    parallel, cost = fitting_parallel(config, devices, device)
    found = dict(layout=layout, seconds=seconds, device=device, devices=devices)
    found |= dict(tokens=cost.tokens, fits=parallel is not None)
    shown = cost.parallel
    return found | dict(
        shard=shown.shard,
        sequence=shown.sequence,
        method=shown.method,
        state_gb=round(cost.state / 1e9, 2),
        activations_gb=round(cost.activations / 1e9, 2),
        sent_gb=round(cost.sent / 1e9, 2),
        compute_seconds=round(cost.compute, 2),
        link_seconds=round(cost.link, 2),
    )


def seconds_a_step(method, n, link=200e9):
    "Of sampling's model call on n H800: computing, and sending that does not overlap."
    config = replace(VIDEO_PRESETS["VideoDiT-XL/2"], size=(80, 64, 64))
    compute = forward_flops(config) / (ASSUMED["flops"] * DEVICES["H100"].flops) / n
    size = config.width * 2 * 80 * 32 * 32
    forward, _ = sequence_traffic(method, size, n)
    return compute + forward * crossing_layers(config) / (ASSUMED["link"] * link)


def published():
    alone = seconds_a_step("ulysses", 1)
    return [
        dict(
            method=method,
            source=SOURCE,
            published_times_faster=round(PUBLISHED["one"] / PUBLISHED[method], 2),
            predicted_times_faster=round(alone / seconds_a_step(method, 8), 2),
        )
        for method in ("ulysses", "dsp")
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path(__file__).with_name("cluster.json")
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    table = [
        row(layout, seconds, device, devices)
        for layout in ("factorized", "joint")
        for seconds in (3, 5, 10)
        for device in ("RTX 4090", "H100")
        for devices in (1, 2, 4, 8)
    ]
    record = dict(machine=machine(), assumed=ASSUMED, table=table, published=published())
    print(record["published"])
    write_json(args.out, record)


if __name__ == "__main__":
    main()
