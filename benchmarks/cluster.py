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
more devices can save, and the difference is what it leaves out.

`fastseq`: OpenDiT says that its FastSeq, two collectives a layer, saves up to 48 % of the traffic
of sequence parallelism within a machine. Counted here for the forward pass of a layer: keys and
values gathered, against Megatron-LM's sequence parallelism (Korthikanti et al. 2022), which gathers
tokens before attention and MLP and scatters sums behind both, and against Ulysses, on eight
devices.

`opendit`: the setting that OpenDiT gives to reproduce its ImageNet run, DiT-XL/2 at 256 pixels,
a batch of 180 in 16 bits without checkpointing, on eight devices. It publishes no seconds for it,
only "up to 80 % faster, 50 % less memory" than the code it began from, by fused kernels that are in
PyTorch today; nor whether the 180 are of one device or of all, so both are here."""

import argparse
from dataclasses import replace
from pathlib import Path

from machine import machine

from minisora.cluster import (
    ASSUMED,
    DEVICES,
    clip_config,
    cluster_cost,
    crossing_layers,
    fitting_parallel,
    forward_flops,
    sequence_traffic,
)
from minisora.core.files import write_json
from minisora.parallel import Parallel
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


def fastseq(n=8):
    "Shares of the traffic that are saved, and what is published."
    gathered, _ = sequence_traffic("allgather", 1.0, n)
    ulysses, _ = sequence_traffic("ulysses", 1.0, n)
    megatron = 4 * (n - 1) / n
    return dict(
        published_saved=0.48,
        predicted_saved_of_megatron=round(1 - gathered / megatron, 2),
        times_the_traffic_of_ulysses=round(gathered / ulysses, 2),
    )


def opendit(device, batch, shard):
    config = replace(VIDEO_PRESETS["VideoDiT-XL/2"], size=(1, 32, 32), layout="joint")
    cost = cluster_cost(config, Parallel(shard=shard), 8, device, batch, checkpointed=False)
    return dict(
        device=device,
        shard=shard,
        images_a_device=batch,
        fits=cost.fits,
        state_gb=round(cost.state / 1e9, 1),
        activations_gb=round(cost.activations / 1e9, 1),
        compute_seconds=round(cost.compute, 2),
        link_seconds=round(cost.link, 2),
        images_a_second=round(cost.batch / (cost.compute + cost.link)),
    )


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
    settings = [
        opendit(device, batch, shard)
        for device in ("RTX 4090", "H100")
        for batch in (180 // 8, 180)
        for shard in (1, 8)
    ]
    record = dict(machine=machine(), assumed=ASSUMED, table=table, published=published())
    record |= dict(fastseq=fastseq(), opendit=settings)
    print(record["published"], record["fastseq"], *settings, sep="\n")
    write_json(args.out, record)


if __name__ == "__main__":
    main()
