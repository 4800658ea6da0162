"""What a run on many devices needs: formulas that agree with what is counted, lines that run."""

import re
import shlex
import subprocess
from dataclasses import replace

import pytest

from minisora import cli
from minisora.cluster import (
    ASSUMED,
    DEVICES,
    clip_config,
    cluster_cost,
    crossing_layers,
    fitting_parallel,
    forward_flops,
    links,
    sequence_traffic,
    slurm_script,
    torchrun_line,
)
from minisora.models.cost import training_flops
from minisora.models.windows import Windows
from minisora.parallel import Parallel
from minisora.temporal import VIDEO_PRESETS, VideoDiT

SMALL = replace(VIDEO_PRESETS["VideoDiT-S/2"], size=(8, 16, 16))


def test_state_falls_by_shard_and_activations_by_sequence():
    alone = cluster_cost(SMALL, Parallel(), 1)
    four = cluster_cost(SMALL, Parallel(shard=2, sequence=2), 4)
    assert four.state * 2 == alone.state and four.activations * 2 == alone.activations
    assert four.compute * 2 == pytest.approx(alone.compute)
    assert alone.sent == 0 < four.sent and four.batch == 2
    assert alone.state == 20 * alone.weights


def test_tensor_cuts_attention_and_mlps():
    "As counted and measured on two and four processes; the modulation stays whole."
    alone = cluster_cost(SMALL, Parallel(), 1, checkpointed=False)
    for n, kept in ((2, 39.41), (4, 32.60)):  # of 53.04 bytes per token and channel, on width 64
        cost = cluster_cost(SMALL, Parallel(tensor=n), n, checkpointed=False)
        assert cost.activations / alone.activations == pytest.approx(kept / 53.04, rel=0.02)
        assert cost.state / alone.state == pytest.approx((6 + 12 / n) / 18, rel=0.02)
        assert cost.compute == alone.compute / n and cost.batch == 1
    size = 8 * 8 * 8 * SMALL.width
    two = cluster_cost(SMALL, Parallel(tensor=2), 2, checkpointed=False)
    assert two.sent == SMALL.depth * (2 * 2 + 2 * 4) * size


def test_between_machines_the_network_counts():
    kind = DEVICES["H100"]
    near, far = kind.link, kind.network
    assert links(Parallel(shard=8), 16) == (far, near, near, near)
    assert links(Parallel(shard=16), 16) == (far, far, near, near)
    assert links(Parallel(sequence=4, tensor=4), 16) == (far, far, far, near)
    one = cluster_cost(SMALL, Parallel(sequence=8), 8)
    apart = cluster_cost(SMALL, Parallel(sequence=8), 8, per_machine=4)
    assert apart.link > 5 * one.link and apart.sent == one.sent


def test_what_fits_is_taken_with_as_little_sharing_of_tokens_as_it_can(monkeypatch):
    long = clip_config("VideoDiT-XL/2", 10, 480, 848)
    parallel, cost = fitting_parallel(long, 8, "RTX 4090")
    assert parallel.method == "dsp" and cost.fits
    smaller = [n for n in (1, 2, 4) if n < parallel.sequence]
    for n in smaller:
        other = Parallel(shard=8 // n, sequence=n, method="dsp")
        assert not cluster_cost(long, other, 8, "RTX 4090").fits
    monkeypatch.setitem(ASSUMED, "memory", 1e-6)
    parallel, cost = fitting_parallel(SMALL, 2)
    assert parallel is None and not cost.fits


def test_heads_that_do_not_divide_go_round_a_ring(monkeypatch):
    joint = replace(SMALL, layout="joint")  # 6 heads
    monkeypatch.setitem(ASSUMED, "memory", 1e-6)
    _, cost = fitting_parallel(joint, 4)
    assert cost.parallel.method == "ring"


def test_methods_rank_as_counted():
    forward = {m: sequence_traffic(m, 1 << 20, 8)[0] for m in ("ulysses", "ring", "dsp")}
    assert forward["dsp"] * 2 == forward["ulysses"] < forward["ring"]
    assert sequence_traffic("ring", 1 << 20, 1)[0] == 0


@pytest.mark.parametrize("layout", ["joint", "factorized", Windows(((1, 0, 0), (0, 4, 4)))])
def test_operations_are_those_that_are_counted(layout):
    config = replace(SMALL, layout=layout)
    counted = training_flops(VideoDiT(config), backward=False)
    assert forward_flops(config) == pytest.approx(counted, rel=0.05)


def test_blocks_that_cross():
    assert crossing_layers(SMALL) == SMALL.depth // 2
    assert crossing_layers(replace(SMALL, layout="joint")) == SMALL.depth
    windows = replace(SMALL, layout=Windows(((1, 0, 0), (0, 4, 4), (2, 2, 2))))
    assert crossing_layers(windows) == SMALL.depth * 2 // 3


@pytest.mark.parametrize("script", ["train.py", "my runs/it's.py", "a;rm -rf b.py", "$HOME.py"])
def test_lines_quote_what_the_user_says(script, tmp_path):
    assert shlex.split(torchrun_line(script, 2, 4, "first"))[-1] == script
    file = tmp_path / "run.sh"
    file.write_text(slurm_script(script, 2, 4))
    assert subprocess.run(["bash", "-n", file]).returncode == 0
    (line,) = [row for row in file.read_text().splitlines() if row.startswith("srun")]
    inner = shlex.split(line)[-1]
    assert shlex.split(inner)[-1] == script and "--nnodes=2" in inner


def test_the_command(capsys):
    assert cli.main(["launch", "train.py", "--model", "VideoDiT-S/2", "--seconds", "1"]) == 0
    said = capsys.readouterr().out
    assert "fits" in said and "parallel=Parallel(shard=8)" in said and "#SBATCH --nodes=1" in said
    assert re.search(r"torchrun .*localhost:29500 train.py", said)
    assert cli.main(
        ["launch", "train.py", "--seconds", "30", "--device", "RTX 4090", "--devices", "1"]
    )
    assert "does not fit on 1 × RTX 4090" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call, words",
    [
        (["--model", "VideoDiT-XL"], "model must be one of"),
        (["--device", "H10"], "device must be one of"),
        (["--size", "480", "850"], "multiples of 16 and 16"),
        (["--seconds", "0"], "seconds"),
    ],
)
def test_what_cannot_be_is_named(call, words, capsys):
    assert cli.main(["launch", "train.py", *call]) != 0
    assert words in capsys.readouterr().err


def test_devices_have_figures():
    assert all(d.memory > 1e10 and d.flops > 1e14 and d.link > 1e10 for d in DEVICES.values())
