"""Time and memory of our DiT beside diffusers' DiTTransformer2DModel: benchmarks/dit_speed.json.

    python benchmarks/dit_speed.py [--sizes S/2 B/2] [--tasks forward train] [--rounds 7]
    python benchmarks/dit_speed.py --bf16 [--sizes S/2]               on the CPU, bf16 by autocast
    python benchmarks/dit_speed.py --gpu [--sizes XL/2] [--batch 16]  bf16, with and without compile

Each library runs each task in a process of its own, so that the peak of resident memory is its own
too; both import both libraries. The two processes stay alive and take turns, one round each and the
other first in the next round; the figures are medians of the rounds, and the ratio of times is the
median of the rounds' own ratios, ours / diffusers'. `forward` is one call without gradients,
`train` is forward, backward and an AdamW step. On the CPU a row's `clock` says what was read: the
process's own seconds, which a busy machine stretches little, or (older rows) the wall's.
`resident_mib` is the peak of the process, `memory_mib` the part of it that came after the imports
(on a GPU: the peak of what torch allocated there). Each row goes into the record when it is done;
rows that are not measured anew stay, and so does `originals`: our DiT and Latte beside their
authors' code, which this script does not run."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel
from machine import machine, make_parser

from minisora.core.files import write_json
from minisora.dit import DIT_PRESETS, DiT

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("minisora", "diffusers")
SIZES = ("S/2", "B/2", "L/2", "XL/2")
TASKS = ("forward", "train")


@dataclass(frozen=True)
class Job:
    "What both libraries do in turn."

    size: str
    task: str
    batch: int
    rounds: int
    device: str = "cpu"
    compiled: bool = False
    half: bool = False  # bf16 by autocast


def build_diffusers(config):
    "Their DiT with the sizes of ours."
    return DiTTransformer2DModel(
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


def build(library, size):
    "A DiT for 32 × 32 × 4 latents and 1000 classes: the module, and it as a function of (x, t, y)."
    config = DIT_PRESETS[f"DiT-{size}"]
    if library == "minisora":
        model = DiT(config)
        return model, model
    model = build_diffusers(config)

    def call(x, t, y):
        return model(x, timestep=(1000 * (1 - t)).round().long(), class_labels=y).sample

    return model, call


def prepare(library, job):
    "(One round as a function without arguments, number of trained parameters.)"
    training = job.task == "train"
    model, call = build(library, job.size)
    model.to(job.device).train(training)
    generator = torch.Generator().manual_seed(0)
    x, target = (
        torch.randn(job.batch, channels, 32, 32, generator=generator).to(job.device)
        for channels in (4, 8)
    )
    t = torch.rand(job.batch, generator=generator).to(job.device)
    y = torch.arange(job.batch, device=job.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4) if training else None
    run = torch.compile(call) if job.compiled else call
    autocast = torch.autocast(job.device, torch.bfloat16, enabled=job.half)

    def step():
        with torch.set_grad_enabled(training), autocast:
            out = run(x, t, y)
            if not training:
                return
            loss = ((out.float() - target) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step, sum(p.numel() for p in model.parameters() if p.requires_grad)


def peak_mib():
    "The most memory that this process had, in MiB."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(library, job):
    "One round for every line on stdin; its time as a line on stdout. Then what memory it took."
    cuda = job.device == "cuda"
    start = peak_mib()
    step, parameters = prepare(library, job)
    synchronize = torch.cuda.synchronize if cuda else lambda: None
    clock = time.perf_counter if cuda else time.process_time
    for _ in range(3 if job.compiled else 1):
        step()
    synchronize()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = clock()
        step()
        synchronize()
        print(clock() - began, flush=True)
    used = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_mib() - start
    found = dict(
        parameters=parameters,
        resident_mib=round(peak_mib(), 1),
        memory_mib=round(used, 1),
        threads=torch.get_num_threads(),
    )
    print(json.dumps(found), flush=True)


def start(library, job):
    "A process that runs `child`."
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--child", library, json.dumps(asdict(job))]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def wait_until_ready(process, job):
    "Read lines until the process is ready; ends the script if it fails."
    line = ""
    while line != "ready":
        line = process.stdout.readline().strip()
        if not line and process.poll() is not None:
            raise SystemExit(f"dit_speed: {job.size} {job.task} failed, see above")


def one_round(process):
    "Seconds of one round in a process."
    process.stdin.write("go\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def compare(job):
    "One row of the table: both libraries, taking turns."
    processes = {name: start(name, job) for name in LIBRARIES}
    for process in processes.values():
        wait_until_ready(process, job)
    times = {name: [] for name in LIBRARIES}
    for i in range(job.rounds):
        for name in LIBRARIES[:: 1 if i % 2 else -1]:
            times[name].append(one_round(processes[name]))
    row = dict(
        size=job.size,
        task=job.task,
        batch=job.batch,
        rounds=job.rounds,
        compiled=job.compiled,
        clock="wall" if job.device == "cuda" else "process",
    )
    for name, process in processes.items():
        row[name] = dict(
            ms=round(1000 * statistics.median(times[name]), 2),
            ms_all=[round(1000 * t, 2) for t in times[name]],
            **json.loads(process.communicate()[0]),
        )
    row["ratios"] = ratios(*(row[name] for name in LIBRARIES))
    return row


def ratios(ours, theirs):
    "Ours / theirs; of times round by round, since a busy machine slows both alike."
    names = ("resident_mib", "memory_mib", "parameters")
    found = {name: round(ours[name] / theirs[name], 3) for name in names}
    pairs = zip(ours["ms_all"], theirs["ms_all"])
    return dict(found, ms=round(statistics.median(a / b for a, b in pairs), 3))


def save(file, row, device, half):
    "Put a row into the record, in the place of one for the same size and task."
    record = json.loads(file.read_text()) if file.exists() else {}
    part = "cpu, bf16" if half and device == "cpu" else device
    same = ("size", "task", "compiled")
    rows = record.get(part, {}).get("rows", [])
    rows = [r for r in rows if any(r[k] != row[k] for k in same)] + [row]
    rows.sort(key=lambda r: (SIZES.index(r["size"]), r["task"], r["compiled"]))
    precision = "bf16 autocast" if half else "float32"
    record[part] = dict(machine=machine(), precision=precision, rows=rows)
    write_json(file, record)
    print({k: v for k, v in row.items() if not isinstance(v, dict)}, row["ratios"], flush=True)


def parse_arguments():
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--gpu", action="store_true", help="on the GPU, in bf16")
    parser.add_argument("--bf16", action="store_true", help="on the CPU, in bf16 by autocast")
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, help="default: S/2 B/2; --bf16: S/2; --gpu: XL/2"
    )
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each library")
    parser.add_argument("--batch", type=int, help="default: 1; --gpu: 16")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch sees no CUDA device here")
    return args


def main():
    args = parse_arguments()
    if args.child:
        library, job = args.child
        child(library, Job(**json.loads(job)))
        return
    device = "cuda" if args.gpu else "cpu"
    half = args.gpu or args.bf16
    batch = args.batch or (16 if args.gpu else 1)
    sizes = ["XL/2"] if args.gpu else ["S/2"] if args.bf16 else ["S/2", "B/2"]
    for size in args.sizes or sizes:
        for task in args.tasks:
            for compiled in (False, True) if args.gpu else (False,):
                job = Job(size, task, batch, args.rounds, device, compiled, half)
                save(args.out, compare(job), device, half)


if __name__ == "__main__":
    main()
