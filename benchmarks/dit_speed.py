"""Time and memory of our DiT beside diffusers' DiTTransformer2DModel: benchmarks/dit_speed.json.

    python benchmarks/dit_speed.py [--sizes S/2 B/2] [--tasks forward train] [--rounds 7] [--batch 1]    on the CPU
    python benchmarks/dit_speed.py --bf16 [--sizes S/2]                              on the CPU, bf16 by autocast
    python benchmarks/dit_speed.py --gpu [--sizes XL/2] [--batch 16]                bf16, with and without compile

Each library runs each task in a process of its own, so that the peak of resident memory is its own too. The two
processes stay alive and take turns, one round each and the other first in the next round; the figures are medians of
the rounds, and the ratio of times is the median of the rounds' own ratios, ours / diffusers'. `forward` is one call without gradients, `train` is
forward, backward and an AdamW step. On the CPU a row's `clock` says what was read: the process's own seconds, which a busy machine
stretches little, or (older rows) the wall's. `resident_mib` is the peak of the process, `memory_mib` the part of it that came
after the imports (on a GPU: the peak of what torch allocated there). Each row goes into the file when it is done;
rows that are not measured anew stay, and so does `originals`: our DiT and Latte beside their authors' code, which this script does
not run."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
LIBRARIES = ("minisora", "diffusers")


def build(library, size):
    "A DiT for 32 × 32 × 4 latents and 1000 classes, as a function of (x, t, y), and the module."
    from minisora.dit import DIT_PRESETS, DiT

    config = DIT_PRESETS[f"DiT-{size}"]
    if library == "minisora":
        model = DiT(config)
        return model, model
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.channels,
        out_channels=2 * config.channels,
        num_layers=config.depth,
        sample_size=config.size[0],
        patch_size=config.patch,
        num_embeds_ada_norm=config.num_classes,
        norm_eps=1e-6,
    )
    return (
        model,
        lambda x, t, y: model(x, timestep=(1000 * (1 - t)).round().long(), class_labels=y).sample,
    )


def prepare(library, size, task, batch, device, compiled, half):
    "(One round as a function without arguments, number of trained parameters.)"
    import torch

    model, call = build(library, size)
    model.to(device).train(task == "train")
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(batch, c, 32, 32, generator=generator).to(device) for c in (4, 8))
    t, y = torch.rand(batch, generator=generator).to(device), torch.arange(batch, device=device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4) if task == "train" else None
    run = torch.compile(call) if compiled else call

    def step():
        with (
            torch.set_grad_enabled(task == "train"),
            torch.autocast(device, torch.bfloat16, enabled=half),
        ):
            out = run(x, t, y)
            if optimiser is None:
                return out
            loss = ((out.float() - target) ** 2).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step, sum(p.numel() for p in model.parameters() if p.requires_grad)


def child(library, size, task, batch, device, compiled, half):
    "One round for every line on stdin; its time as a line on stdout. Then what memory it took."
    import diffusers  # noqa: F401  (in both, so that the imports weigh the same)
    import torch

    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    step, parameters = prepare(library, size, task, batch, device, compiled, half)
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    clock = time.perf_counter if device == "cuda" else time.process_time
    for _ in range(3 if compiled else 1):
        step()
    sync()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = clock()
        step()
        sync()
        print(clock() - began, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    used = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak - start
    print(
        json.dumps(
            dict(
                parameters=parameters,
                resident_mib=round(peak, 1),
                memory_mib=round(used, 1),
                threads=torch.get_num_threads(),
            )
        ),
        flush=True,
    )


def compare(size, task, batch, rounds, device, compiled, half):
    "One row of the table: both libraries, taking turns."
    command = [
        sys.executable,
        __file__,
        "--child",
        size,
        task,
        str(batch),
        device,
        str(int(compiled)),
        str(int(half)),
    ]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(FILE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    runs = {name: subprocess.Popen([*command, name], **pipes) for name in LIBRARIES}
    for run in runs.values():
        while (line := run.stdout.readline().strip()) != "ready":
            if not line and run.poll() is not None:
                raise SystemExit(f"dit_speed: {size} {task} failed, see above")
    times = {name: [] for name in LIBRARIES}
    for i in range(rounds):
        for name in LIBRARIES[:: 1 if i % 2 else -1]:
            runs[name].stdin.write("go\n")
            runs[name].stdin.flush()
            times[name].append(float(runs[name].stdout.readline()))
    row = dict(
        size=size,
        task=task,
        batch=batch,
        rounds=rounds,
        compiled=compiled,
        clock="wall" if device == "cuda" else "process",
    )
    for name, run in runs.items():
        row[name] = dict(
            ms=round(1000 * statistics.median(times[name]), 2),
            ms_all=[round(1000 * t, 2) for t in times[name]],
            **json.loads(run.communicate()[0]),
        )
    ours, theirs = (row[name] for name in LIBRARIES)
    row["ratios"] = {
        k: round(ours[k] / theirs[k], 3) for k in ("resident_mib", "memory_mib", "parameters")
    }
    pairs = zip(ours["ms_all"], theirs["ms_all"])  # of one round: a busy machine slows both alike
    row["ratios"]["ms"] = round(statistics.median(a / b for a, b in pairs), 3)
    return row


def save(device, row, half):
    "Put a row into the file, in the place of one for the same size and task."
    from machine import machine
    from minisora.latent_cache import write_json

    results = json.loads(FILE.read_text()) if FILE.exists() else {}
    same, part = ("size", "task", "compiled"), "cpu, bf16" if half and device == "cpu" else device
    rows = [
        r for r in results.get(part, {}).get("rows", []) if any(r[k] != row[k] for k in same)
    ] + [row]
    rows.sort(
        key=lambda r: (["S/2", "B/2", "L/2", "XL/2"].index(r["size"]), r["task"], r["compiled"])
    )
    precision = "bf16 autocast" if half else "float32"
    results[part] = dict(machine=machine(), precision=precision, rows=rows)
    write_json(FILE, results)
    print({k: v for k, v in row.items() if not isinstance(v, dict)}, row["ratios"], flush=True)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--gpu", action="store_true")
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--sizes", nargs="+", choices=["S/2", "B/2", "L/2", "XL/2"])
    p.add_argument("--tasks", nargs="+", default=["forward", "train"], choices=["forward", "train"])
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--batch", type=int)
    p.add_argument("--child", nargs=7, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        size, task, batch, device, compiled, half, library = args.child
        return child(library, size, task, int(batch), device, compiled == "1", half == "1")
    if args.gpu:
        import torch

        if not torch.cuda.is_available():
            p.error("--gpu: torch sees no CUDA device here")
    device, sizes = (
        ("cuda", ["XL/2"]) if args.gpu else ("cpu", ["S/2"] if args.bf16 else ["S/2", "B/2"])
    )
    half = args.gpu or args.bf16
    for size in args.sizes or sizes:
        for task in args.tasks:
            for compiled in (False, True) if args.gpu else (False,):
                batch = args.batch or (16 if args.gpu else 1)
                save(device, compare(size, task, batch, args.rounds, device, compiled, half), half)


if __name__ == "__main__":
    main()
