"""What the parts of single_gpu.py share: stages that are timed, training in slices, small clips."""

import json
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file

from minisora.core.files import read_json, write_json
from minisora.data.video import to_float
from minisora.train import estimate_cost, fit

# how both parts train on clips: the network predicts the data
DATA_PREDICTION = dict(prediction="data", loss_weighting="velocity", max_weight=25.0, std=1.4)


class Stages:
    "Seconds and peak memory of the parts of a run, kept in times.json."

    def __init__(self, folder, device):
        self.path = Path(folder) / "times.json"
        self.device = device
        self.seen = read_json(self.path) if self.path.is_file() else {}

    @contextmanager
    def __call__(self, name):
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        wall = time.perf_counter()
        cpu = time.process_time()
        yield
        if cuda:
            torch.cuda.synchronize()
        old = self.seen.get(name, dict(seconds=0, cpu_seconds=0, peak_gb=0))
        took = dict(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)
        new = {k: round(old[k] + v, 2) for k, v in took.items()}
        if cuda:
            peak = torch.cuda.max_memory_allocated() / 2**30
            new["peak_gb"] = round(max(old["peak_gb"], peak), 2)
        self.seen[name] = dict(old, **new)
        write_json(self.path, self.seen)
        print(f"{name}: {self.seen[name]}", flush=True)


def load_or_make(path, make):
    "A dict of tensors from a file, made and written first where it is missing."
    if not path.is_file():
        save_file(make(), path)
    return load_file(path)


class SlicedTraining:
    """`fit` for as many steps as the minutes allow, in slices. The plan, and what was found at each
    look at the model, stay in NAME-plan.json, so that a run can be left and resumed.

    `look(step, ema, minutes)` returns a dict, at 1/2^(looks-1), …, 1/2 and all of the steps:
    evenly in the log."""

    def __init__(self, args, preset, name, model, data, objective, look=None, looks=1, **options):
        self.args = args
        self.preset = preset
        self.name = name
        self.job = (model, data, objective)
        self.look = look
        self.looks = looks
        self.options = self.fit_options() | options
        self.path = args.work / f"{name}-plan.json"
        if not self.path.is_file():
            write_json(self.path, self.make_plan())
        self.plan = read_json(self.path)

    def fit_options(self):
        "What `fit` is told where the part does not say otherwise."
        return dict(
            batch_size=self.preset.batch,
            warmup=100,
            betas=(0.9, 0.95),
            weight_decay=0.01,
            precision="bf16" if self.args.device.type == "cuda" else "fp32",
            device=str(self.args.device),
            progress=False,
            save_every=10**9,
            log_every=20,
            keep=1,
        )

    def make_plan(self):
        "How many steps, by what one of them costs."
        cost = estimate_cost(*self.job, **self.options)
        print(cost, flush=True)
        steps = self.preset.steps or max(50, int(60 * self.preset.minutes / cost.seconds))
        return dict(
            steps=steps,
            estimated_seconds_a_step=cost.seconds,
            estimated_peak_gb=cost.peak / 2**30,
            looks=[],
        )

    def next_look(self):
        "The step of the next look; all steps where no more are to come."
        steps = self.plan["steps"]
        done = len(self.plan["looks"])
        if not self.look or done >= self.looks:
            return steps
        return round(steps / 2 ** (self.looks - 1 - done))

    def add_look(self, result, minutes):
        "Look at the model, unless it was looked at after this very step, and keep what was found."
        if result.step in [row["step"] for row in self.plan["looks"]]:
            return
        row = dict(
            step=result.step,
            minutes=round(minutes, 3),
            cpu_minutes=round(result.cpu_minutes, 3),
            **self.look(result.step, result.ema, minutes),
        )
        self.plan["looks"].append(row)
        print(row, flush=True)
        write_json(self.path, self.plan)

    def slice(self, result):
        "The next slice of the training: (result, minutes so far, was the step of a look reached)."
        steps = self.plan["steps"]
        step = 0 if result is None else result.step
        goal = self.next_look()
        result = fit(
            *self.job,
            steps=steps,
            stop_at=min(goal, step + max(10, steps // 12)),
            out=self.args.work / self.name,
            **self.options,
        )
        minutes = result.log[-1]["wall_seconds"] / 60
        loss = result.log[-1]["loss"]
        said = f"step {result.step} of {steps}, {minutes:.2f} min, loss {loss:.4f}"
        print(f"{self.name}: {said}", flush=True)
        return result, minutes, result.step >= goal

    def run(self):
        "Train; returns (FitResult, what is recorded of it). SystemExit when --chunk is over."
        start = time.perf_counter()
        steps = self.plan["steps"]
        result = None
        while result is None or result.step < steps:
            result, minutes, reached = self.slice(result)
            late = minutes > 1.2 * self.preset.minutes and not self.preset.steps
            if self.look and (reached or late):
                self.add_look(result, minutes)
            # at once where --chunk is left out
            over = time.perf_counter() - start > 60 * self.args.chunk
            if self.args.as_is and over:
                break
            where = f"{self.name}: {result.step} of {steps} steps"
            if self.args.chunk and over and result.step < steps:
                raise SystemExit(f"{where}; call again to resume")
            if late and result.step < steps:
                print(f"{where}: out of time", flush=True)
                break
        return result, dict(self.plan, **self.took(result))

    def took(self, result):
        "What is recorded of a training: steps, minutes, and the loss at sixty points."
        rows = result.log[:: max(1, len(result.log) // 60)]
        return dict(
            steps=result.step,
            of=self.plan["steps"],
            minutes=round(result.log[-1]["wall_seconds"] / 60, 2),
            cpu_minutes=round(result.cpu_minutes, 2),
            loss=result.log[-1]["loss"],
            curve=[[r["step"], round(r["loss"], 5)] for r in rows],
        )


class Autocast:
    "A model as `fit` trains it on CUDA: bfloat16 inside, float32 outside."

    def __init__(self, model, device):
        self.model = model
        self.device = device

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, x, t, y=None):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.model(x, t, y).float()


@torch.no_grad()
def encode(ae, clips, device):
    "Clips (B, 3, T, H, W), uint8 -> latents (B, C, t, h, w), the modes."
    return ae.encode(to_float(clips).to(device)).mode


def shrink(clips, height, width):
    "Clips (B, 3, T, H, W) -> (B, 3, T, height, width): a pixel is the mean of what it stands for."
    frames = rearrange(clips, "b c t h w -> (b t) c h w")
    frames = F.interpolate(frames, (height, width), mode="area")
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(clips))


def count_weights(model):
    "How many numbers a model has to learn."
    return sum(p.numel() for p in model.parameters())


def print_json(values):
    "A record, without what is long, as JSON on the screen."
    long = ("training", "recipe", "machine", "recipes")
    print(json.dumps({k: v for k, v in values.items() if k not in long}, indent=1))
