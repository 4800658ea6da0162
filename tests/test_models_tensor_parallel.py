"""Tensor parallelism: several processes that share out heads and channels compute what one does."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from helpers.train import DIT_OPTIONS, randomized, together, train_dit
from test_models_sequence import CONFIGS, MODERN, WRAPPERS, batch, compare

from minisora.cascade import CASCADE_PRESETS, CascadeUNet
from minisora.core.protocols import wrapped
from minisora.dit import DiT, DiTConfig
from minisora.models.collectives import Traffic
from minisora.models.layouts import Checkpointed
from minisora.models.sequence import SequenceParallel
from minisora.models.tensor_parallel import Part, deal, rows_of, tensor_parallel
from minisora.parallel import Parallel
from minisora.temporal import VideoDiT
from minisora.training.distributed import join_processes
from minisora.training.precision import keep_fp32

FIVE = dict(heads=5, width=40)


def learn(config, group=None, wrappers=(), dtype=None, compiled=False):
    "{name: tensor} of the answer and all gradients, whole ones."
    model = randomized(VideoDiT(config)).train()
    parts = {} if group is None else tensor_parallel(model, group)
    for block in model.blocks if compiled else ():
        block.compile()
    x, t, y, target = batch(config)
    x.requires_grad_(True)
    low = torch.autocast("cpu", dtype, enabled=dtype is not None)
    with wrapped(model, *wrappers), keep_fp32([model], "bf16" if dtype else "fp32"), low:
        out = model(x, t, y)
    (out.float() - target).square().mean().backward()
    found = dict(out=out.detach(), x=x.grad)
    for name, p in model.named_parameters():
        cut = name in parts and p.grad is not None
        found[name] = parts[name].whole(p.grad) if cut else p.grad
    return found


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_as_one_process(name, world, tmp_path):
    "Answers and all gradients; three heads on two processes, five on three; no shared average."
    config = CONFIGS[name] if world == 2 else replace(CONFIGS[name], **FIVE)
    around = [w for w in WRAPPERS if w != "routed" or not name.startswith("windows")]
    alone = {w: learn(config, wrappers=WRAPPERS[w]) for w in around}

    def job(rank):
        join_processes("cpu")
        for w in around:
            compare(learn(config, dist.group.WORLD, WRAPPERS[w]), alone[w], f"{name} {w}")

    assert together(job, tmp_path, world) == [""] * world


@pytest.mark.parametrize("method", ["ulysses", "ring", "dsp"])
def test_beside_shared_tokens(method, tmp_path):
    "Two share tokens, two share heads, of which the second pair has one of three."
    name = "windows" if method == "dsp" else "joint"
    alone = learn(CONFIGS[name])

    def job(rank):
        processes = join_processes("cpu", parallel=Parallel(sequence=2, tensor=2))
        wrapper = SequenceParallel(method, processes.sequence_group)
        mine = learn(CONFIGS[name], processes.tensor_group, (wrapper,))
        for key, value in mine.items():
            if key not in ("out", "x") and value is not None:
                dist.all_reduce(value, group=processes.sequence_group)
                value /= 2
        compare(mine, alone, method)

    assert together(job, tmp_path, 4) == [""] * 4


def test_compiled_and_in_sixteen_bits(tmp_path):
    config = replace(CONFIGS["joint_plain"], depth=2)
    alone = learn(config)
    low = learn(config, dtype=torch.bfloat16)
    far = {k: (low[k] - v).norm() / v.norm() for k, v in alone.items() if v is not None}

    def job(rank):
        join_processes("cpu")
        compare(learn(config, dist.group.WORLD, compiled=True), alone, "compiled", 2e-5)
        mine = learn(config, dist.group.WORLD, dtype=torch.bfloat16)
        assert mine["out"].dtype == low["out"].dtype
        for name, error in far.items():
            ours = (mine[name] - alone[name]).norm() / alone[name].norm()
            assert ours <= 1.5 * error + 1e-2, (name, ours, error)

    assert together(job, tmp_path) == [""] * 2


@pytest.mark.parametrize("again", [False, True])
def test_two_sums_a_block(again, tmp_path):
    "Of all tokens, there and back; when a block is checkpointed, once more."
    config = replace(CONFIGS["joint_plain"], width=48, heads=4)
    tokens = 2 * 5 * 3 * 3 * 48 * 4
    norms = 2 * (48 // 4) * 4  # of queries and keys: their gradients are added up

    def job(rank):
        join_processes("cpu")
        with Traffic() as sent:
            learn(config, dist.group.WORLD, (Checkpointed(),) if again else ())
        found = sent.bytes_of["all_reduce"]
        factor = 2 * (world - 1) / world
        assert found == config.depth * factor * ((6 if again else 4) * tokens + norms)
        assert sent.calls["all_reduce"] == config.depth * ((6 if again else 4) + 2)

    for world in (2, 4):
        assert together(job, tmp_path, world) == [""] * world


def test_images_too(tmp_path):
    config = DiTConfig(size=(8, 8), width=24, depth=2, heads=3, num_classes=4)
    model = randomized(DiT(config))
    x, t = torch.randn(2, 4, 8, 8), torch.rand(2)
    y = torch.tensor([1, 3])
    expected = model(x, t, y).detach()

    def job(rank):
        join_processes("cpu")
        tensor_parallel(model, dist.group.WORLD)
        compare(dict(out=model(x, t, y).detach()), dict(out=expected), "image")

    assert together(job, tmp_path, 3) == [""] * 3


def test_parts_of_weights(tmp_path):
    "Each process holds its share of what is cut, and the whole comes back exactly."
    config = replace(CONFIGS["windows"], **FIVE, block=MODERN)
    whole = randomized(VideoDiT(config)).state_dict()

    def job(rank):
        join_processes("cpu")
        model = randomized(VideoDiT(config))
        parts = tensor_parallel(model, dist.group.WORLD)
        mine = model.state_dict()
        heads = (2, 2, 1)[rank]
        assert mine["blocks.0.attn.qkv.weight"].shape == (3 * heads * 8, 40)
        assert mine["blocks.0.attn.proj.weight"].shape == (40, heads * 8)
        assert {name.split(".", 2)[-1] for name in parts if "bias." not in name[:5]} == {
            "attn.qkv.weight",
            "attn.qkv.bias",
            "attn.proj.weight",
            "mlp.fc1.weight",
            "mlp.fc1.bias",
            "mlp.fc2.weight",
        }
        for name, part in parts.items():
            assert torch.equal(part.of(whole[name]), mine[name])
            assert torch.equal(part.whole(mine[name]), whole[name])
            assert part.whole(torch.tensor(3.0)) == 3 == part.of(torch.tensor(3.0))

    assert together(job, tmp_path, 3) == [""] * 3


def test_what_cannot_be_cut(tmp_path):
    unet = CascadeUNet(CASCADE_PRESETS["c-tiny"])

    def job(rank):
        join_processes("cpu")
        model = VideoDiT(CONFIGS["joint"])
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(ValueError, match="tensor=4 processes share out heads, and .* has 3"):
            tensor_parallel(model, dist.group.WORLD)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        with pytest.raises(ValueError, match="in CascadeUNet there is no attention that it knows"):
            tensor_parallel(unet, dist.group.WORLD)

    assert together(job, tmp_path, 4) == [""] * 4


def test_muon_wants_whole_matrices(tmp_path):
    def job(rank):
        with pytest.raises(ValueError, match="optimizer='muon' needs whole matrices"):
            options = DIT_OPTIONS | dict(optimizer="muon", parallel=Parallel(tensor=2))
            train_dit(tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    assert together(job, tmp_path) == [""] * 2


def test_rows_of_heads():
    dealt = torch.arange(3).tensor_split(2)
    rows = rows_of(dealt, blocks=2, each=2)
    assert [r.tolist() for r in rows] == [[0, 1, 2, 3, 6, 7, 8, 9], [4, 5, 10, 11]]
    assert [d.tolist() for d in deal(3, None)] == [[0, 1, 2]]
    part = Part(0, rows_of(deal(3, None)), None)
    assert part.of(torch.arange(3)).tolist() == [0, 1, 2]
