"""Sequence parallelism: several processes that share out a clip's tokens compute what one does."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from helpers.train import randomized, together
from torch.nn.attention import SDPBackend, sdpa_kernel

from minisora.cluster import sequence_traffic
from minisora.core.protocols import wrapped
from minisora.models.collectives import Traffic
from minisora.models.conditions import WordCondition
from minisora.models.layers import BlockConfig
from minisora.models.layouts import Checkpointed, Factorized, Joint, Routed
from minisora.models.modulation import AdaLNLoRA
from minisora.models.sequence import METHODS as METHODS_OF
from minisora.models.sequence import SequenceParallel, even_span
from minisora.models.windows import Windows
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.training.distributed import join_processes
from minisora.training.memory import SavedForBackward

BASE = VideoDiTConfig(
    size=(5, 6, 6),
    patch=(1, 2, 2),
    channels=2,
    width=24,
    depth=4,
    heads=3,
    relative_bias=True,
    condition=WordCondition(vocab=5, slots=2, in_context=True),
)
MODERN = BlockConfig(norm="rms", mlp="swiglu", qk_norm=True)
PLAIN = dict(relative_bias=False, condition=WordCondition(vocab=5), positions="rope")
CONFIGS = dict(
    joint=BASE,
    joint_plain=replace(BASE, **PLAIN, block=MODERN),
    factorized=replace(BASE, layout=Factorized(), modulation=AdaLNLoRA(2)),
    factorized_rope=replace(BASE, layout=Factorized(), positions="rope"),
    latte=replace(BASE, layout=Factorized(), positions="latte", relative_bias=False),
    windows=replace(BASE, layout=Windows(((1, 0, 0), (0, 2, 2)))),
    windows_rope=replace(BASE, layout=Windows(((1, 2, 0), (0, 2, 3))), positions="rope"),
    windows_short=replace(BASE, layout=Windows(((2, 2, 2), (1, 0, 0), (3, 0, 2)))),
    windows_short_plain=replace(BASE, layout=Windows(((2, 2, 2), (0, 0, 2))), **PLAIN),
)
WRAPPERS = dict(none=(), routed=(Routed(0.5, (0, 2)),), checkpointed=(Checkpointed(),))
METHODS = ("ulysses", "ring", "allgather", "dsp")


def goes(name, method, around="none"):
    "Are there such a layout, method and wrapper together?"
    if name.startswith("joint") and method == "dsp":
        return False
    return around != "routed" or not name.startswith("windows")


def batch(config, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, config.channels, *config.size, generator=g)
    t = torch.rand(2, generator=g)
    y = torch.randint(0, 6, (2, config.condition.slots), generator=g)
    return x, t, y, torch.randn(x.shape, generator=g)


def run(config, *wrappers, train=True):
    "{name: tensor} of the answer and, with `train`, of all gradients, unaveraged."
    model = randomized(VideoDiT(config)).train(train)
    x, t, y, target = batch(config)
    x.requires_grad_(True)
    with wrapped(model, *wrappers), torch.set_grad_enabled(train):
        out = model(x, t, y)
        if train:
            (out - target).square().mean().backward()
    found = dict(out=out.detach())
    if train:
        found |= {"x": x.grad} | {k: p.grad for k, p in model.named_parameters()}
    return found


def compare(mine, alone, label, tolerance=1e-5):
    assert mine.keys() == alone.keys()
    for name, expected in alone.items():
        got = mine[name]
        if expected is None:
            assert got is None, (label, name)
            continue
        error = (got - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        assert error <= tolerance, f"{label}: {name} differs by {error:.1e}"


def mean_of(found, names):
    "Gradients averaged over the processes, as a training does."
    for name in names:
        if name not in ("out", "x") and found[name] is not None:
            dist.all_reduce(found[name])
            found[name] /= dist.get_world_size()
    return found


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_as_one_process(name, world, tmp_path):
    "Answers and all gradients, each method, with tokens and heads that do not divide."
    config = CONFIGS[name]
    cases = [(m, a) for m in METHODS for a in WRAPPERS if goes(name, m, a)]
    cases = [(m, a) for m, a in cases if world == 2 or a == "none"]
    alone = {a: run(config, *WRAPPERS[a]) for a in {a for _, a in cases}}
    still = run(config, train=False)

    def job(rank):
        join_processes("cpu")
        for method, around in cases:
            parallel = SequenceParallel(method, dist.group.WORLD)
            label = f"{name} {method} {around}"
            for wrappers in ((*WRAPPERS[around], parallel), (parallel, *WRAPPERS[around])):
                mine = run(config, *wrappers)
                compare(mean_of(mine, mine), alone[around], label)
            compare(run(config, parallel, train=False), still, label)

    assert together(job, tmp_path, world) == [""] * world


LONG = VideoDiTConfig(size=(8, 16, 16), patch=(1, 2, 2), channels=2, width=48, depth=8, heads=4)
IMAGES = replace(CONFIGS["latte"], layout=Factorized(2), condition=WordCondition(5))
LAYOUTS = dict(joint=Joint(), factorized=Factorized(), windows=Windows(((1, 0, 0), (0, 4, 4))))
SHARE = 2 * 8 * 8 * 8 * 48 * 4  # bytes of all tokens of the batch


def forward_bytes(method, layout, n):
    "What one process sends in the blocks of LONG, by the formulas; and in its backward pass."
    part = SHARE / n
    crossing = LONG.depth if layout == "joint" else LONG.depth // 2
    if method == "ulysses":
        both = [4 * part * (n - 1) / n] * 2
    elif method == "ring":
        both = [2 * part * (n - 1), 2 * part * (2 * n - 1)]
    elif method == "allgather":
        both = [2 * part * (n - 1), 2 * part * (n - 1) + 2 * SHARE * (n - 1) / n]
    else:  # to the places and back; the last way back is the join's
        both = [(2 - 1 / crossing) * part * (n - 1) / n] * 2
    return [each * crossing for each in both]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_formulas_are_those_of_the_predictions(n):
    crossing = LONG.depth // 2
    for method in METHODS:
        both = [each * crossing for each in sequence_traffic(method, SHARE, n)]
        if method == "dsp":
            both = [each * (1 - 1 / (2 * crossing)) for each in both]
        assert both == pytest.approx(forward_bytes(method, "factorized", n)), method


def traffic(layout, method):
    "Bytes that this process sends in the forward and in the backward pass of the blocks."
    config = replace(LONG, layout=LAYOUTS[layout])
    model = randomized(VideoDiT(config))
    x, t, y, target = batch(replace(config, condition=WordCondition(5)))
    with wrapped(model, SequenceParallel(method, dist.group.WORLD)):
        with Traffic() as there:
            out = model(x, t)
        with Traffic() as back:
            (out - target).square().mean().backward()
    there.bytes_of["all_gather"] -= SHARE // dist.get_world_size() * (dist.get_world_size() - 1)
    back.bytes_of["all_gather"] -= SHARE // dist.get_world_size() * (dist.get_world_size() - 1)
    del back.bytes_of["all_reduce"]  # of the steering
    return there, back


@pytest.mark.parametrize("world", [2, 4])
def test_bytes_are_those_of_the_formulas(world, tmp_path):
    "Tokens, heads, frames and windows divide; the way in and the way out are not counted."

    def job(rank):
        join_processes("cpu")
        for layout in LAYOUTS:
            sent = {}
            for method in METHODS:
                if goes(layout, method):
                    there, back = traffic(layout, method)
                    assert [there.bytes, back.bytes] == pytest.approx(
                        forward_bytes(method, layout, world)
                    ), (layout, method)
                    sent[method] = there
            if layout != "joint":
                assert sent["dsp"].bytes <= sent["ulysses"].bytes / 2
            crossing = LONG.depth // (1 if layout == "joint" else 2)
            assert sent["allgather"].calls["all_gather"] == 2 * crossing + 1

    assert together(job, tmp_path, world) == [""] * world


def kept_bytes(layout, *wrappers):
    "Bytes that the forward pass keeps for the backward pass."
    config = replace(LONG, layout=LAYOUTS[layout])
    model = randomized(VideoDiT(config))
    x, t, y, target = batch(replace(config, condition=WordCondition(5)))
    saved = SavedForBackward(model.parameters())
    with wrapped(model, *wrappers), saved:
        model(x, t)
    return saved.bytes()


@pytest.mark.parametrize("world", [2, 4])
def test_activations_fall_with_the_processes(world, tmp_path):
    "Each keeps at most 15 % more than its share."
    whole = {layout: kept_bytes(layout) for layout in LAYOUTS}

    def job(rank):
        join_processes("cpu")
        for layout in LAYOUTS:
            for method in METHODS:
                if goes(layout, method):
                    parallel = SequenceParallel(method, dist.group.WORLD)
                    ratio = kept_bytes(layout, parallel) * world / whole[layout]
                    print(layout, method, round(ratio, 3), flush=True)
                    assert ratio <= 1.15, (layout, method, ratio)

    assert together(job, tmp_path, world) == [""] * world


@pytest.mark.parametrize(
    "config, method, message",
    [
        (BASE, "dsp", "layout='joint' every block sees all"),
        (IMAGES, "ring", "images"),
        (BASE, "star", "must be one of 'ulysses'"),
    ],
)
def test_what_does_not_go_is_said(config, method, message):
    with pytest.raises(ValueError, match=message):
        with wrapped(VideoDiT(config), SequenceParallel(method)):
            pass


def test_a_layout_is_shared_out_once():
    model = VideoDiT(BASE)
    with pytest.raises(ValueError, match="does not go around"):
        with wrapped(model, SequenceParallel("ring"), SequenceParallel("ring")):
            pass


def run_in_bf16(config, *wrappers):
    "As `run`, with autocast to bfloat16 around the model."
    with torch.autocast("cpu", torch.bfloat16):
        return run(config, *wrappers)


def test_sixteen_bits_round_no_more_than_alone(tmp_path):
    "Against float32: an error at most twice that of one process in bfloat16."
    config = CONFIGS["joint"]
    exact = run(config)

    def largest(found):
        return max(float((found[k] - v).abs().max() / v.abs().max()) for k, v in exact.items())

    bound = 2 * largest(run_in_bf16(config))
    assert 1e-4 < bound < 0.2

    def job(rank):
        join_processes("cpu")
        for method in METHODS[:3]:
            mine = run_in_bf16(config, SequenceParallel(method, dist.group.WORLD))
            assert largest(mean_of(mine, mine)) < bound, method

    assert together(job, tmp_path, 2) == [""] * 2


@pytest.mark.parametrize("name", ["joint", "factorized_rope", "latte", "windows_short"])
def test_smaller_clips_on_three_processes(name, tmp_path):
    "Of a model with variable_size, down to fewer frames than there are processes."
    config = replace(CONFIGS[name], variable_size=True)
    small = {shape: run_shape(config, shape) for shape in ((3, 4, 6), (1, 2, 2))}

    def job(rank):
        join_processes("cpu")
        for method in METHODS:
            if goes(name, method):
                for shape, alone in small.items():
                    mine = run_shape(config, shape, SequenceParallel(method, dist.group.WORLD))
                    compare(mean_of(mine, mine), alone, f"{name} {method} {shape}")

    assert together(job, tmp_path, 3) == [""] * 3


def run_shape(config, shape, *wrappers):
    "As `run`, on clips of another size."
    model = randomized(VideoDiT(config)).train()
    x, t, y, _ = batch(replace(config, size=shape))
    with wrapped(model, *wrappers):
        out = model(x, t, y)
        out.square().mean().backward()
    return dict(out=out.detach()) | {k: p.grad for k, p in model.named_parameters()}


def test_the_ring_of_torch(tmp_path):
    "PyTorch's `context_parallel`, a prototype, computes what `ring` does, and its gradients."
    engine = pytest.importorskip("torch.distributed.tensor.experimental._attention")
    options = getattr(engine, "_cp_options", None)
    if options is None or not hasattr(engine, "context_parallel"):
        pytest.skip("this version of PyTorch has another interface")
    q, k, v, weight = torch.randn(4, 2, 3, 16, 8, generator=torch.Generator().manual_seed(0))

    def job(rank):
        join_processes("cpu")
        n = dist.get_world_size()
        options.enable_load_balance = False  # head and tail together: for causal attention
        theirs = [x.clone() for x in (q, k, v)]
        split = dict(buffers=theirs, buffer_seq_dims=[2] * 3, no_restore_buffers=set(theirs))
        mesh = dist.init_device_mesh("cpu", (n,))
        mine = weight.chunk(n, 2)[rank]
        with sdpa_kernel(SDPBackend.MATH), engine.context_parallel(mesh, **split):
            for x in theirs:
                x.requires_grad_()
            expected = torch.nn.functional.scaled_dot_product_attention(*theirs)
            (expected * mine).sum().backward()
        ours = [x.chunk(n, 2)[rank].clone().requires_grad_() for x in (q, k, v)]
        seen = METHODS_OF["ring"](*ours, None, even_span(16, dist.group.WORLD))
        (seen * mine).sum().backward()
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)
        for x, y in zip(ours, theirs):
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)

    for world in (2, 4):
        assert together(job, tmp_path, world) == [""] * world
