"""The prediction of benchmarks/flops.py: what it counts, against numbers known another way."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import benchmark

from minisora.dit import DiTConfig, dit_macs
from minisora.models.conditions import LabelEmbedder
from minisora.models.layouts import Checkpointed, Routed
from minisora.temporal import VideoDiT, VideoDiTConfig

TINY = VideoDiTConfig(
    size=(4, 8, 8), patch=(1, 2, 2), width=64, depth=4, heads=2, layout="factorized"
)

SMALL = dict(
    seconds=3,
    size=(64, 96),
    frames=9,
    fps=5,
    fold=2,
    channels=8,
    refine=0,
    width=64,
    depth=2,
    heads=2,
    shift=3.0,
    guide_until=0.5,
    tile=4,
    overlap=3,
    margin=1,
    steps=(8, 2),
)
INNER = dict(channels=4, width=8, depth=1)


@pytest.fixture(scope="module")
def flops():
    return benchmark("flops")


def test_flops_are_six_times_the_multiply_adds(flops):
    "2 FLOPs each, once forward and twice back; the fused attention computes its weights again."
    config = DiTConfig(size=(8, 8), width=64, depth=3, heads=2, num_classes=5)
    macs = dit_macs(config)
    for math in (False, True):
        case = flops.Case(config, "tf32", False, math, "fused", batches=(2, 3))
        assert case.flops(2) - case.flops(1) == pytest.approx(
            6 * macs["total"] + (not math) * 2 * macs["attention"] / 2, rel=0.01
        )
    assert case.weights == sum(p.numel() for p in flops.DiT(config).parameters())


def test_memory_is_what_autograd_keeps(flops):
    """The most bytes alive, without gradients, are those kept for the backward pass, and little
    more."""
    case = flops.Case(TINY, "tf32", False, False, "fused", batches=(32, 64))
    model = VideoDiT(TINY)
    kept = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(torch.randn(64, 4, 4, 8, 8), torch.rand(64)).square().mean()
    want = sum(s.nbytes() for s in kept.values())
    assert want < case.memory(64) - 16 * case.weights < 1.3 * want
    assert case.memory(case.fits(1e8)) <= 1e8 < case.memory(case.fits(1e8) + 1)


def test_wrappers_are_around_the_model_that_is_counted(flops):
    def case(*wrappers):
        return flops.Case(TINY, "tf32", False, False, "fused", wrappers, batches=(32, 64))

    plain = case()
    again = case(Checkpointed())
    assert again.memory(64) < 0.6 * plain.memory(64) and again.flops(1) > 1.2 * plain.flops(1)
    half = case(Checkpointed(every=2))
    assert again.memory(64) < half.memory(64) < plain.memory(64)
    assert plain.flops(1) < half.flops(1) < again.flops(1)
    routed = case(Routed(0.5, blocks=(2, 4)))
    assert routed.flops(1) < 0.8 * plain.flops(1) and routed.memory(64) < plain.memory(64)


def test_counting_leaves_the_library_as_it_was(flops):
    """Fake tensors have no ids to check; afterwards ids are checked again, and attention is
    PyTorch's."""
    before = LabelEmbedder.check_ids, F.scaled_dot_product_attention
    flops.trace(DiTConfig(size=(4, 4), width=16, depth=1, heads=2), 1, "tf32", True)
    flops.film_parts(SMALL, INNER)
    assert (LabelEmbedder.check_ids, F.scaled_dot_product_attention) == before


def test_a_case_names_its_wrappers_last(flops):
    "Every row of the file is a case; the first of a group is not wrapped: the baseline."
    first = {}
    for name, (group, config, *how) in flops.cases().items():
        wrappers = how[4] if len(how) > 4 else []
        kinds = {w.kind for w in wrappers}
        assert ("checkpointed" in name) == ("checkpointed" in kinds), name
        assert ("routed" in name) == ("routed" in kinds), name
        first.setdefault(group, kinds)
    assert set(first) == {"DiT-XL/2", "Latte-XL/2"} and not any(first.values())


def test_fusion_and_life(flops):
    """a product, then two pointwise operations of which the second alone is needed, then a
    product: the middle is never written."""
    Op = flops.Op
    ops = [
        Op("mm", 8, "product tf32", {1: 4}, {2: 4}),
        Op("mul", 0, "", {2: 4}, {3: 4}),
        Op("add", 0, "", {3: 4, 9: 4}, {4: 4}),
        Op("mm", 8, "product tf32", {4: 4}, {5: 4}),
    ]
    fused = flops.fuse(ops, {5})
    assert [(o.name, o.reads, o.writes) for o in fused] == [
        ("mm", {1: 4}, {2: 4}),
        ("fused", {2: 4, 9: 4}, {4: 4}),
        ("mm", {4: 4}, {5: 4}),
    ]
    assert flops.alive(ops, {1}, {5}).tolist() == [4, 8, 8, 8, 4] and flops.alive(
        fused, {1}, {5}
    ).tolist() == [4, 8, 8, 4]


def test_time_is_the_larger_of_arithmetic_and_traffic(flops):
    case = flops.Case(TINY, "bf16", True, False, "fused", batches=(2, 4))
    card = dict(bf16=1e12, tf32=1e12, bandwidth=1e30)
    ones = dict.fromkeys(flops.ASSUMED, 1.0)
    assert flops.seconds(case, 10_000, card, ones) == pytest.approx(
        case.flops(10_000) / 1e12, rel=1e-6
    )
    card = dict(bf16=1e30, tf32=1e30, bandwidth=1e12)
    assert flops.seconds(case, 10_000, card, ones) == pytest.approx(
        (case.moved(10_000) + case.update) / 1e12, rel=1e-6
    )
    assert flops.seconds(
        case, 1, dict(bf16=1e30, tf32=1e30, bandwidth=1e30), ones
    ) == pytest.approx(5e-6 * len(case.table))


def test_the_file_says_that_it_predicts(root):
    said = json.loads((root / "benchmarks" / "flops.json").read_text())
    assert said["note"].startswith("PREDICTED") and all(
        "source" in c for c in said["cards"].values()
    )
    assert {r["group"] for r in said["rows"].values()} == {"DiT-XL/2", "Latte-XL/2"} and len(
        said["rows"]
    ) == 14


def test_a_film_is_so_many_calls_and_tiles(flops):
    """FLOPs of a call and of the tiles, by PyTorch's own counter; 15 frames are two clips of 9
    that share one."""
    from torch.utils.flop_counter import FlopCounterMode
    from minisora.latents.compression import PCACompressedVAE

    traced, weights, held = flops.film_parts(SMALL, INNER)
    once = {k: flops.Pass(ops, weights) for k, (ops, _) in traced.items()}
    ae = PCACompressedVAE(INNER, 2, 8)
    with FlopCounterMode(display=False) as counter:
        ae.decode_tiled(torch.randn(1, 8, 3, 4, 6), 4, 3, 1)
    assert once["decode"].flops == counter.get_total_flops()
    tokens = 3 * 4 * 6 + 2  # two of them the words
    D = 64
    assert once["free"].flops == pytest.approx(
        2 * 2 * tokens * (12 * D * D + 2 * tokens * D), rel=0.1
    )
    assert (
        once["guided"].flops == pytest.approx(2 * once["free"].flops, rel=0.01)
        and once["encode"].flops > 0
    )
    rows = flops.film(SMALL, INNER)
    assert [(r["steps"], r["fused"], r["clips"]) for r in rows] == [
        (8, False, 2),
        (2, False, 2),
        (8, True, 2),
        (2, True, 2),
    ]
    assert rows[0]["network_rows"] == 2 * (8 + 7) and rows[1]["network_rows"] == 2 * (
        2 + 2
    )  # t ≤ 1/2 where 1 − k/n ≥ 1/4
    assert (
        rows[2]["kernels"] < rows[0]["kernels"]
        and rows[2]["gigabytes_moved"] <= rows[0]["gigabytes_moved"]
    )
    assert rows[0]["H100 SXM"]["seconds"] >= max(
        rows[0]["H100 SXM"]["bound"], rows[0]["kernels"] * flops.LAUNCH - 0.01
    )


def test_a_films_memory_is_what_decoding_keeps(flops):
    """A whole picture through the decoder needs more than its tiles, and no less than the
    picture itself."""
    big = dict(SMALL, size=(128, 192), depth=1)
    peak = {
        t: flops.Pass(*[flops.film_parts(dict(big, tile=t), INNER)[0]["decode"][0], set()]).peak
        for t in (4, 12)
    }
    assert peak[12] > peak[4] > 4 * 3 * 9 * 128 * 192


def test_bars_count_what_meets_them(flops, root):
    said = json.loads((root / "benchmarks" / "flops.json").read_text())
    assert said["bars"] == flops.bars(said["rows"])
    latte = said["bars"]["Latte-XL/2"]
    assert not any("joint" in k or "as in its" in k for k in latte["times_faster"]["predicted"])
    for what, right in (
        ("times_faster", lambda v, bar: v >= bar),
        ("memory_share", lambda v, bar: v <= bar),
    ):
        b = latte[what]
        assert b["met_by"] == [k for k, v in b["predicted"].items() if right(v, b["bar"])]
    assert set(latte["all_met_by"]) == set(latte["times_faster"]["met_by"]) & set(
        latte["memory_share"]["met_by"]
    )
    film = said["sampling"]
    assert all(
        r[card]["seconds"] < film["bars"]["seconds"] and r["peak_gb"] < film["bars"]["peak_gb"]
        for r in film["rows"]
        for card in ("H100 SXM", "RTX 4090")
    )
