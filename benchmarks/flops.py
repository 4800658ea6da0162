"""Predicted, not measured: what a training step and a film cost on a GPU, from operations alone:
benchmarks/flops.json.

    python benchmarks/flops.py [--cases NAME …]   # a minute or two; no weights are allocated
    python benchmarks/flops.py --cases            # no training step anew: the bars and the film

Every case runs forward and backward of a model on fake tensors (shapes without contents) at two
batch sizes, and writes down each operation that would be a kernel: its FLOPs, the bytes it reads
and writes, and how long what it writes lives. All of these are straight lines in the batch size.
From them follow, for a card whose peak rates are published (CARDS),

- memory: weights, AdamW's moments and the average (16 bytes per weight), and the most bytes alive
  at any moment of the step (gradients included);
- the largest batch that fits, and the time of a step there: every kernel takes as long as the
  larger of its arithmetic and its traffic, at the shares of the peak in ASSUMED; the step takes at
  least LAUNCH per kernel; and AdamW and the average pass over their bytes.

A compiled step is modeled by fusion: all operations between two matrix products or attentions
become one kernel that reads what came from before and writes what is needed later. The baselines
are our model run as the originals are: float32 storage with TF32 products, kernel by kernel, AdamW
without a fused kernel; Latte's attention written out ('math', the default of its `Attention`),
DiT's by the fused kernel. A row's `bound` is the same with all shares at 1. Rows that are not
computed anew stay in the file.

`bars` holds the speeds that the project set itself beside what is predicted on the first card.
`sampling` is a film of ten seconds at 480p (FILM) by the sampler, the autoencoder and the tiles of
the final lesson: every call of the network, bf16 by autocast; every tile with its overlap, and the
last frame's way back through the encoder, float32 with TF32 products; kernel by kernel as the
lesson runs it, and fused. Its memory: the weights of both networks, the most bytes alive in any
part, and the film so far, which stays on the card."""

import json
import sys
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from machine import machine, make_parser
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from minisora.core.files import read_json, write_json
from minisora.core.protocols import AutoencoderSpec
from minisora.dit import DIT_PRESETS, DiT
from minisora.frames import FrameConditionedModel
from minisora.latents.compression import PCACompressedVAE
from minisora.models.conditions import LabelEmbedder, WordCondition
from minisora.models.layouts import Checkpointed, Joint, Routed, wrap
from minisora.models.preconditioning import DirectOutput
from minisora.recipe import MODERN_BLOCK
from minisora.sampling import time_grid
from minisora.temporal import VIDEO_PRESETS, VideoDiT, VideoDiTConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "recipes"))

from single_gpu_presets import PRESETS as RUNS  # noqa: E402

CARDS = {  # peak rates of dense products (no sparsity), bytes a second, bytes of memory
    "H100 SXM": dict(
        bf16=989.4e12,
        tf32=494.7e12,
        bandwidth=3.35e12,
        memory=80e9,
        source="NVIDIA H100 Tensor Core GPU datasheet (half of the figures with sparsity)",
    ),
    "RTX 4090": dict(
        bf16=165.2e12,
        tf32=82.6e12,
        bandwidth=1.008e12,
        memory=24e9,
        source="NVIDIA Ada GPU Architecture whitepaper, appendix A (float32 accumulation)",
    ),
}
# shares of the peak that are reached
ASSUMED = dict(product=0.65, attention=0.4, bandwidth=0.85, memory=0.95)
LAUNCH = 5e-6  # seconds per kernel, at least
# bytes per weight: AdamW in single passes and EMA, or each in one kernel
OPTIMIZER_BYTES = dict(foreach=92, fused=40)
# what others found to fit, to hold against the prediction
KNOWN = {
    "Latte-XL/2 as in its train.py": dict(
        batch=5,
        source="local_batch_size of configs/*/*_train.yaml in Vchitect/Latte (b27c24a), "
        "which do not name the card",
    )
}
BARS = {
    "DiT-XL/2": dict(times_faster=2.5, memory_share=0.5, mfu_percent=45),
    "Latte-XL/2": dict(times_faster=4, memory_share=0.4),
}
RUN = RUNS["signs"]["gpu"]
# the final lesson's model; guided half of the way, which clips learned by heart do not need
FILM = dict(
    size=RUN.size,
    frames=RUN.frames,
    fold=RUN.fold,
    channels=RUN.channels,
    refine=RUN.refine,
    width=RUN.width,
    depth=RUN.depth,
    heads=RUN.heads,
    seconds=10,
    fps=19.2,
    shift=3.0,
    guide_until=0.5,
    tile=64,
    overlap=10,
    margin=4,
    steps=(24, 8, 4),
)
FILM_BARS = dict(seconds=60, peak_gb=24)
Op = namedtuple("Op", "name flops kind reads writes")  # reads, writes: {storage: bytes}


class Trace(TorchDispatchMode):
    "Writes down every operation that would be a kernel."

    def __init__(self):
        super().__init__()
        self.ops = []
        self.keep = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        reads = self.sizes((args, kwargs))
        writes = self.sizes(out)
        if writes and (not set(writes) <= set(reads) or func._schema.is_mutable):
            what, flops = self.flops(func, args, kwargs or {}, out)
            first = next(t for t in tree_leaves((args, out)) if isinstance(t, torch.Tensor))
            rate = "bf16" if first.dtype == torch.bfloat16 else "tf32"
            self.ops.append(Op(str(func), flops, f"{what} {rate}" if flops else "", reads, writes))
        return out

    @staticmethod
    def flops(func, args, kwargs, out):
        "('attention' or 'product', FLOPs): 0 where an operation is neither."
        if "scaled_dot_product" not in str(func):
            count = flop_registry.get(func._overloadpacket)
            return "product", count(*args, **kwargs, out_val=out) if count else 0
        shapes = [a.shape for a in args if isinstance(a, torch.Tensor)]
        if "backward" in str(func):
            return "attention", sdpa_backward_flop_count(*shapes[:4])
        return "attention", sdpa_flop_count(*shapes[:3])

    def sizes(self, values):
        "Bytes of each storage among the values, {storage: bytes}."
        found = {}
        for t in tree_leaves(values):
            if not isinstance(t, torch.Tensor):
                continue
            storage = t.untyped_storage()
            self.keep.append(storage)  # so that no two storages share an address
            size = min(t.numel() * t.itemsize, storage.nbytes())
            found[storage._cdata] = max(found.get(storage._cdata, 0), size)
        return found


def blind(*_):
    "In the place of a check: fake ids and pixels have no values."


def written_out(q, k, v, attn_mask=None):
    "Attention as Latte's 'math' branch computes it: the N × N weights exist."
    return ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1) @ v


@contextmanager
def fake_tensors(math=False):
    """Tensors are shapes only, nothing looks at their values, and with `math` attention is written
    out; afterwards all is as before."""
    attention = written_out if math else F.scaled_dot_product_attention
    with (
        patch.object(LabelEmbedder, "check_ids", blind),
        patch.multiple(AutoencoderSpec, check_clips=blind, check_latents=blind),
        patch.object(F, "scaled_dot_product_attention", attention),
        FakeTensorMode(),
    ):
        yield


def trace(config, batch, precision, math, wrappers=()):
    "Operations of forward and backward, storages of weights and of gradients, number of weights."
    with fake_tensors(math):
        model = (DiT if hasattr(config, "num_classes") else VideoDiT)(config).train()
        wrap(model, *wrappers)
        frames = config.size if len(config.size) == 3 else (1, *config.size)
        x = torch.empty(batch, config.channels, *frames)
        t = torch.empty(batch)
        with Trace() as seen:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                out = model(x, t)
            out.float().square().mean().backward()
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        grads = {p.grad.untyped_storage()._cdata for p in model.parameters() if p.grad is not None}
        return seen, weights, grads, sum(p.numel() for p in model.parameters())


def fuse(ops, kept):
    "Runs of operations without FLOPs become one each, whose inner results are never written."
    last = {s: i for i, op in enumerate(ops) for s in op.reads}
    last |= {s: len(ops) for s in kept}
    out = []
    group = []
    for i, op in enumerate(ops + [Op("end", 1, "", {}, {})]):
        if not op.flops:
            group.append(op)
            continue
        if group:
            made = {s: b for o in group for s, b in o.writes.items()}
            reads = {s: b for o in group for s, b in o.reads.items() if s not in made}
            writes = {s: b for s, b in made.items() if last.get(s, -1) >= i}
            out.append(Op("fused", 0, "", reads, writes))
            group = []
        out.append(op)
    return out[:-1]


def alive(ops, weights, grads):
    """Bytes alive before each operation that are not weights: (len(ops) + 1,). What is written
    lives until last read."""
    size = {}
    birth = {}
    death = {}
    for i, op in enumerate(ops):
        for s, b in op.writes.items():
            birth.setdefault(s, i)
            size[s] = max(size.get(s, 0), b)
        for s in (*op.reads, *op.writes):
            death[s] = i
    change = [0] * (len(ops) + 1)
    for s in birth.keys() - weights:
        change[birth[s]] += size[s]
        if s not in grads:
            change[death[s] + 1] -= size[s]
    return torch.tensor(change, dtype=torch.float64).cumsum(0)


def moved(op):
    "Bytes that an operation reads and writes."
    return sum(op.reads.values()) + sum(op.writes.values())


class Case:
    """What the traces of a case at two batch sizes say about any batch: all of it lies on straight
    lines."""

    def __init__(self, config, precision, compiled, math, optimizer, wrappers=(), batches=(4, 8)):
        found = []
        for b in batches:
            seen, weights, grads, self.weights = trace(config, b, precision, math, wrappers)
            ops = fuse(seen.ops, grads) if compiled else seen.ops
            found.append((ops, alive(ops, weights, grads)))
        (low, self.least), (high, self.most) = found
        if [o.name for o in low] != [o.name for o in high]:
            raise ValueError("the operations depend on the batch size")
        self.table = [(o.kind, o.flops, p.flops, moved(o), moved(p)) for o, p in zip(low, high)]
        self.batches = batches
        self.update = self.weights * OPTIMIZER_BYTES[optimizer]
        self.always = self.weights * 16

    def line(self, a, b, n):
        return a + (b - a) * (n - self.batches[0]) / (self.batches[1] - self.batches[0])

    def kernels(self, n):
        return [(k, self.line(f, g, n), self.line(a, b, n)) for k, f, g, a, b in self.table]

    def flops(self, n):
        return sum(f for _, f, _ in self.kernels(n))

    def moved(self, n):
        return sum(b for *_, b in self.kernels(n))

    def memory(self, n):
        return self.always + self.line(self.least, self.most, n).max().item()

    def fits(self, memory, most=512):
        "The largest batch whose step fits: memory grows with the batch, so halve the interval."
        low = 0
        high = most + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.memory(middle) <= memory:
                low = middle
            else:
                high = middle
        return low


def seconds(case, n, card, shares):
    """Time of a step: kernel by kernel the larger of arithmetic and traffic; never less than its
    launches."""
    bandwidth = card["bandwidth"] * shares["bandwidth"]
    time = 0.0
    for kind, flops, traffic in case.kernels(n):
        arithmetic = 0.0
        if kind:
            what, rate = kind.split()
            arithmetic = flops / (card[rate] * shares[what])
        time += max(arithmetic, traffic / bandwidth)
    return max(time, len(case.table) * LAUNCH) + case.update / bandwidth


def seconds_and_bound(case, n, card):
    "Time of a step at the shares in ASSUMED, and at the peak."
    return [seconds(case, n, card, shares) for shares in (ASSUMED, dict.fromkeys(ASSUMED, 1.0))]


def predict(case, useful):
    "One row of the file: the case itself, what a sample adds, and what follows for each card."
    out = dict(
        weights=case.weights,
        kernels=len(case.table),
        gflop=round((case.flops(2) - case.flops(1)) / 1e9, 1),
        gigabytes_moved=round((case.moved(2) - case.moved(1)) / 1e9, 3),
        activations_mb=round((case.memory(512) - case.memory(256)) / 256e6, 1),
    )
    for name, card in CARDS.items():
        batch = case.fits(card["memory"] * ASSUMED["memory"])
        if batch < 1:
            out[name] = None
            continue
        time, bound = seconds_and_bound(case, batch, card)
        out[name] = dict(
            batch=batch,
            samples_per_second=round(batch / time, 2),
            bound=round(batch / bound, 2),
            mfu_percent=round(100 * useful * batch / time / card["bf16"], 1),
            memory_gb=round(case.memory(batch) / 1e9, 1),
        )
    return out


def cases():
    """{name: (group, config, precision, compiled, attention written out, optimizer, wrappers)}, the
    last one where there are any; the first of a group is its baseline."""
    dit = DIT_PRESETS["DiT-XL/2"]
    latte = VIDEO_PRESETS["Latte-XL/2"]
    image = VideoDiTConfig(
        size=(1, 32, 32),
        patch=(1, 2, 2),
        width=1152,
        depth=28,
        heads=16,
        condition=WordCondition(1000),
        output=DirectOutput(learn_sigma=True),
        time_convention="ddpm",
    )
    joint = replace(latte, layout=Joint(), positions="rope", patch=(4, 2, 2))
    routed = Routed(0.5, blocks=(2, 24))
    checkpointed = Checkpointed()
    ours = ("bf16", True, False, "fused")
    theirs = ("tf32", False, False, "foreach")
    return {
        "DiT-XL/2 as in its train.py": ("DiT-XL/2", dit, *theirs),
        "DiT-XL/2, bf16, not compiled": ("DiT-XL/2", dit, "bf16", False, False, "fused"),
        "DiT-XL/2, bf16, compiled": ("DiT-XL/2", dit, *ours),
        "DiT-XL/2, and checkpointed": ("DiT-XL/2", dit, *ours, [checkpointed]),
        "DiT-XL/2, and half of the tokens routed": ("DiT-XL/2", image, *ours, [routed]),
        "DiT-XL/2, routed and checkpointed": ("DiT-XL/2", image, *ours, [routed, checkpointed]),
        "Latte-XL/2 as in its train.py": ("Latte-XL/2", latte, "tf32", False, True, "foreach"),
        "Latte-XL/2, bf16, compiled": ("Latte-XL/2", latte, *ours),
        "Latte-XL/2, and checkpointed": ("Latte-XL/2", latte, *ours, [checkpointed]),
        "Latte-XL/2, and half of the tokens routed": ("Latte-XL/2", latte, *ours, [routed]),
        "Latte-XL/2, routed, every third block checkpointed": (
            "Latte-XL/2",
            latte,
            *ours,
            [routed, Checkpointed(every=3)],
        ),
        "Latte-XL/2, routed and checkpointed": (
            "Latte-XL/2",
            latte,
            *ours,
            [routed, checkpointed],
        ),
        "joint, tubelets of 4 frames": ("Latte-XL/2", joint, *ours),
        "joint, tubelets, routed and checkpointed": (
            "Latte-XL/2",
            joint,
            *ours,
            [routed, checkpointed],
        ),
    }


class Pass:
    "Operations that were traced once, on storages of `weights`: what `seconds` needs of a Case."

    update = 0

    def __init__(self, ops, weights):
        self.table = [(op.kind, op.flops, moved(op)) for op in ops]
        self.peak = alive(ops, weights, set()).max().item()
        self.flops = sum(flops for _, flops, _ in self.table)
        self.moved = sum(traffic for _, _, traffic in self.table)

    def kernels(self, n):
        return self.table


def film_models(f, inner):
    "Autoencoder and model of a film."
    ae = PCACompressedVAE(inner, f["fold"], f["channels"], f["refine"]).eval()
    channels, *size = ae.spec.latent_shape(f["frames"], *f["size"])
    config = VideoDiTConfig(
        channels=channels + 1,
        size=tuple(size),
        patch=(1, 1, 1),
        width=f["width"],
        depth=f["depth"],
        heads=f["heads"],
        condition=WordCondition(150, slots=2, in_context=True),
        block=MODERN_BLOCK,
    )
    return ae, VideoDiT(config).eval()


def film_parts(f, inner):
    """Traces of a film's parts, {name: (operations, storages of the result)}; storages of the
    weights, and their bytes."""
    with fake_tensors(), torch.no_grad():
        ae, model = film_models(f, inner)
        channels, *size = ae.spec.latent_shape(f["frames"], *f["size"])
        x = torch.empty(1, channels, *size)
        t = torch.empty(1)
        y = torch.empty(1, 2).long()
        last = torch.empty(1, 3, 1, *f["size"])
        conditioned = FrameConditionedModel(model, torch.empty(1, channels, 1, *size[1:]))

        def call(rows):
            "A solver's step on as many rows: two where it is guided."
            with torch.autocast("cpu", torch.bfloat16):
                out = conditioned(*(torch.cat([k] * rows) for k in (x, t, y))).float()
            if rows == 2:
                out = out[1:] + 2.0 * (out[:1] - out[1:])
            return x + 0.1 * out

        parts = dict(
            guided=lambda: call(2),
            free=lambda: call(1),
            encode=lambda: ae.encode(last).mode,
            decode=lambda: ae.decode_tiled(x, f["tile"], f["overlap"], f["margin"]).clamp(-1, 1),
        )
        traced = {}
        for name, part in parts.items():
            with Trace() as seen:
                out = part()
            traced[name] = (seen.ops, set(seen.sizes(out)))
        own = [k for m in (model, ae) for k in (*m.parameters(), *m.buffers())]
        return traced, {k.untyped_storage()._cdata for k in own}, sum(k.nbytes for k in own)


def film_calls(f, steps):
    "How often each part of a film runs: the last frame of a clip begins the next."
    clips = -(-round(f["seconds"] * f["fps"] - 1) // (f["frames"] - 1))
    guided = sum(t <= f["guide_until"] for t in time_grid(steps, f["shift"])[:-1])
    return dict(
        guided=clips * guided, free=clips * (steps - guided), encode=clips - 1, decode=clips
    )


def film_seconds(parts, calls, card):
    "Seconds of a film on a card, also of its parts, and where all shares are 1."
    took = {}
    bound = 0.0
    for name, n in calls.items():
        time, least = seconds_and_bound(parts[name], 1, card)
        took[name] = n * time
        bound += n * least
    return dict(
        seconds=round(sum(took.values()), 2),
        bound=round(bound, 2),
        network=round(took["guided"] + took["free"], 2),
        encode=round(took["encode"], 2),
        decode=round(took["decode"], 2),
    )


def film_row(f, steps, parts, held):
    "One row of `sampling`: how often each part runs, and what follows."
    calls = film_calls(f, steps)
    clips = calls["decode"]
    film_bytes = 12 * f["size"][0] * f["size"][1] * (1 + clips * (f["frames"] - 1))
    most = max(part.peak for part in parts.values())
    peak = held + max(2 * film_bytes, film_bytes + most)  # two films while one is joined

    def total(what):
        return sum(n * what(parts[name]) for name, n in calls.items())

    row = dict(
        steps=steps,
        clips=clips,
        network_rows=2 * calls["guided"] + calls["free"],
        kernels=total(lambda part: len(part.table)),
        tflop=round(total(lambda part: part.flops) / 1e12, 2),
        gigabytes_moved=round(total(lambda part: part.moved) / 1e9, 1),
        peak_gb=round(peak / 1e9, 2),
        alive_gb={name: round(part.peak / 1e9, 2) for name, part in parts.items()},
    )
    for name, card in CARDS.items():
        row[name] = film_seconds(parts, calls, card)
    return row


def film(f, inner):
    "Rows of `sampling`: one for each number of steps, kernel by kernel and fused."
    traced, weights, held = film_parts(f, inner)
    rows = []
    for fused in (False, True):
        parts = {}
        for name, (ops, out) in traced.items():
            parts[name] = Pass(fuse(ops, out) if fused else ops, weights)
        rows += [dict(fused=fused, **film_row(f, steps, parts, held)) for steps in f["steps"]]
    return rows


def bars(rows, card="H100 SXM"):
    """For each bar, what every row of the same model predicts, and which meet it; and which rows
    meet all bars of their group. Rows of another model, as joint attention on tubelets beside
    Latte's own layout, do not count."""

    def meets(row, what, bar):
        return row[what] <= bar if what == "memory_share" else row[what] >= bar

    found = {}
    for group, wanted in BARS.items():
        names = [k for k in rows if rows[k]["group"] == group and k.startswith(group)]
        mine = {k: rows[k] | rows[k][card] for k in names[1:]}  # without the baseline
        found[group] = {
            what: dict(
                bar=bar,
                predicted={k: r[what] for k, r in mine.items()},
                met_by=[k for k, r in mine.items() if meets(r, what, bar)],
            )
            for what, bar in wanted.items()
        }
        found[group]["all_met_by"] = [
            k for k, r in mine.items() if all(meets(r, what, bar) for what, bar in wanted.items())
        ]
    return found


def predicted_row(rows, name, group, config, *how):
    "A row computed anew; `rows` holds the baseline of the group, unless this is it."
    wrappers = how[4] if len(how) > 4 else []
    case = Case(config, *how)
    # useful: what the model costs without computing anything twice
    once = [wrapper for wrapper in wrappers if not isinstance(wrapper, Checkpointed)]
    useful = case if once == wrappers else Case(config, *how[:4], once)
    row = dict(group=group, **predict(case, useful.flops(1)))
    baseline = next((r for r in rows.values() if r["group"] == group), row)
    baseline = row if rows.get(name) is baseline else baseline
    held = baseline["H100 SXM"]
    memory = case.memory(held["batch"]) / 1e9
    row["memory_share"] = round(memory / held["memory_gb"], 2)  # of the baseline's, at its batch
    return row


def add_times_faster(rows):
    "Write into each row how much faster it is than the first of its group."
    baseline = {}
    for row in rows.values():
        first = baseline.setdefault(row["group"], row)
        for card in CARDS:
            if row[card] and first[card]:
                times = row[card]["samples_per_second"] / first[card]["samples_per_second"]
                row[card]["times_faster"] = round(times, 2)


def main():
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--cases", nargs="*", metavar="NAME", help="names, or their beginnings")
    args = parser.parse_args()
    rows = read_json(args.out)["rows"] if args.out.exists() else {}
    known = cases()
    for name, case in known.items():
        if args.cases is None or any(name.startswith(wanted) for wanted in args.cases):
            rows[name] = predicted_row(rows, name, *case)
            print(name, json.dumps(rows[name]), flush=True)
    rows = {name: rows[name] for name in known if name in rows}
    add_times_faster(rows)
    inner = read_json(ROOT / "data" / "video-vae" / "config.json")
    inner.pop("kind")
    found = dict(
        note="PREDICTED from counted operations and published peak rates, not measured on any GPU. "
        "See benchmarks/flops.py.",
        cards=CARDS,
        known=KNOWN,
        assumed=dict(ASSUMED, launch_seconds=LAUNCH, optimiser_bytes=OPTIMIZER_BYTES),
        machine=machine(),
        rows=rows,
        bars=bars(rows),
        sampling=dict(film=FILM, bars=FILM_BARS, rows=film(FILM, inner)),
    )
    write_json(args.out, found)


if __name__ == "__main__":
    main()
