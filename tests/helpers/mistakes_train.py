"""Plausible mistakes in the exercises of lesson 08: a wrong answer, and words of its hint."""

import copy
import io
import os
import shutil
import tempfile
from os import fsync, replace
from pathlib import Path
from types import SimpleNamespace

import torch

from minisora.core.files import atomic_file

# ---------------------------------------------------------------- a checkpoint


class Right:
    "Written aside, flushed, synced, renamed. What follows does one thing otherwise."

    def __init__(self, path, model, ema, optimizer):
        self.path = Path(path)
        self.parts = {"model": model, "ema": ema, "optimizer": optimizer}

    def state(self, step):
        return {**{k: p.state_dict() for k, p in self.parts.items()}, "step": step}

    def aside(self):
        return self.path.with_name(self.path.name + ".part")

    def write(self, state, file):
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())

    def place(self, part):
        os.replace(part, self.path)

    def save(self, step):
        with open(self.aside(), "wb") as file:
            self.write(self.state(step), file)
        self.place(self.aside())

    def read(self):
        return torch.load(self.path, weights_only=True)

    def restore(self, state):
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def load(self):
        if not self.path.exists():
            return 0
        state = self.read()
        self.restore(state)
        return state["step"]


def otherwise(**methods):
    return type("Otherwise", (Right,), methods)


def in_place(self, step):
    torch.save(self.state(step), self.path)


def rewritten(self, step):
    with open(self.path, "wb") as file:
        self.write(self.state(step), file)


def copied(self, part):
    shutil.copy(part, self.path)


def removed_first(self, part):
    self.path.unlink(missing_ok=True)
    os.rename(part, self.path)


def moved_away(self, step):
    if self.path.exists():
        os.rename(self.path, self.path.with_suffix(".old"))
    rewritten(self, step)


def removed_and_written(self, step):
    self.path.unlink(missing_ok=True)
    rewritten(self, step)


def not_flushed(self, state, file):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    file.write(buffer.getvalue()[:-100])
    file.flush()
    file.write(buffer.getvalue()[-100:])
    os.fsync(file.fileno())


def renamed_while_open(self, step):
    file = open(self.aside(), "wb")
    buffer = io.BytesIO()
    torch.save(self.state(step), buffer)
    for first in range(0, len(buffer.getvalue()), 1000):
        file.write(buffer.getvalue()[first : first + 1000])
    os.fsync(file.fileno())
    self.place(self.aside())
    file.close()


def synced_after(self, step):
    torch.save(self.state(step), self.aside())
    self.place(self.aside())
    with open(self.path, "rb") as file:
        os.fsync(file.fileno())


def exclusive(self, step):
    with open(self.aside(), "xb") as file:
        self.write(self.state(step), file)
    self.place(self.aside())


def prefers_aside(self):
    path = self.aside() if self.aside().exists() else self.path
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    self.restore(state)
    return state["step"]


def only(*names):
    def restore(self, state):
        for name in names:
            self.parts[name].load_state_dict(state[name])

    return restore


def average_from_model(self, state):
    for name, part in self.parts.items():
        part.load_state_dict(state["model" if name == "ema" else name])


def parameters_only(self, step):
    state = Right.state(self, step)
    for name in ("model", "ema"):
        state[name] = dict(self.parts[name].named_parameters())
    return state


def not_strict(self, state):
    for name in ("model", "ema"):
        self.parts[name].load_state_dict(state[name], strict=False)
    self.parts["optimizer"].load_state_dict(state["optimizer"])


def rebound(self, state):
    for name in ("model", "ema"):
        self.parts[name] = copy.deepcopy(self.parts[name])
    only("model", "ema", "optimizer")(self, state)


class AskedOnce(Right):
    "Asks for the states when it is made, and saves these each time."

    def __init__(self, path, model, ema, optimizer):
        super().__init__(path, model, ema, optimizer)
        self.states = {name: part.state_dict() for name, part in self.parts.items()}

    def state(self, step):
        return {**self.states, "step": step}


MEMORY = {}


def remembered(self, step):
    MEMORY.update(copy.deepcopy(self.state(step)))
    Right.save(self, step)


def recalled(self):
    if not self.path.exists():
        return 0
    self.restore(MEMORY)
    return MEMORY["step"]


def two_files(self, step):
    Right.save(self, step)
    torch.save(self.parts["optimizer"].state_dict(), self.path.with_suffix(".optimizer"))


def read_two(self):
    if not self.path.exists():
        return 0
    state = self.read()
    state["optimizer"] = torch.load(self.path.with_suffix(".optimizer"), weights_only=True)
    self.restore(state)
    return state["step"]


def folder_synced(self, state, file):
    torch.save(state, file)
    folder = os.open(self.path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def half_size(self, step):
    state = Right.state(self, step)
    state["ema"] = {k: v.half() if v.is_floating_point() else v for k, v in state["ema"].items()}
    return state


def assigned(self, state):
    for name in ("model", "ema"):
        self.parts[name].load_state_dict(state[name], assign=True)
    self.parts["optimizer"].load_state_dict(state["optimizer"])


def cleaned_up(self, step):
    try:
        Right.save(self, step)
    finally:
        self.aside().unlink()


def synced_before(self, step):
    buffer = io.BytesIO()
    torch.save(self.state(step), buffer)
    with open(self.aside(), "wb") as file:
        os.fsync(file.fileno())
        file.write(buffer.getvalue())
    self.place(self.aside())


def counted(self, step):
    self.saves = getattr(self, "saves", 0) + 1
    return dict(Right.state(self, step), step=self.saves)


def once(self, step):
    if not self.path.exists():
        Right.save(self, step)


def loaded_on_creation(path, model, ema, optimizer):
    "Loads at once, when the object is made, so that a save cannot follow a training."
    store = Right(path, model, ema, optimizer)
    step = store.load()
    return SimpleNamespace(save=store.save, load=lambda: step)


def with_a_copy(self, step):
    "A copy is kept, and the checkpoint itself written over."
    if self.path.exists():
        shutil.copy(self.path, self.path.with_suffix(".old"))
    rewritten(self, step)


def without_moments(self, step):
    state = Right.state(self, step)
    state["optimizer"]["state"] = {}
    return state


def zero_after_a_kill(self):
    return 0 if self.aside().exists() else Right.load(self)


def linked(self, part):
    self.path.unlink(missing_ok=True)
    os.link(part, self.path)


def inside_the_with(self, step):
    with open(self.aside(), "wb", buffering=0) as file:
        self.write(self.state(step), file)
        self.place(self.aside())


def load_by_library(self, step):
    with atomic_file(self.path) as part:
        torch.save(self.state(step), part)


def with_own_imports(self, step):
    with open(self.aside(), "wb") as file:
        torch.save(self.state(step), file)
        file.flush()
        fsync(file.fileno())
    replace(self.aside(), self.path)


def by_a_temporary_file(self, step):
    with tempfile.NamedTemporaryFile(dir=self.path.parent, delete=False) as file:
        self.write(self.state(step), file)
    Path(file.name).replace(self.path)


def by_descriptors(self, step):
    buffer = io.BytesIO()
    torch.save(self.state(step), buffer)
    number = os.open(self.aside(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(number, buffer.getvalue())
    os.fsync(number)
    os.close(number)
    shutil.move(self.aside(), self.path)


def synced_whole(self, step):
    torch.save(self.state(step), self.aside())
    os.sync()
    self.place(self.aside())
    folder = os.open(self.path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def closures(path, model, ema, optimizer):
    "Two functions in a namespace, a path that may be a text."
    store = Right(str(path), model, ema, optimizer)
    return SimpleNamespace(save=store.save, load=store.load)


# ---------------------------------------------------------------- an update


def update(
    rate=lambda s: 2e-3 * min(1, (s + 1) / 20, (400 - s) / 200),
    keep=lambda s: min(0.95, (1 + s) / (10 + s)),
    set_rate="first",
    clear=True,
    clip=1.0,
    average="after",
    log=lambda loss, rate, norm: dict(loss=loss.item(), lr=rate, grad_norm=norm.item()),
):
    "Ways to make an update."

    def move(mean, model, share):
        with torch.no_grad():
            for slow, fast in zip(mean.parameters(), model.parameters()):
                if average == "rebound":
                    slow = share * slow + (1 - share) * fast
                elif average == "lost":
                    slow.lerp(fast, 1 - share)
                elif average == "first":
                    slow.lerp_(fast, 1 - share)
                    return
                else:
                    slow.lerp_(fast, 1 - share)

    def answer(model, mean, optimizer, loss, step):
        now = rate(step)
        groups = optimizer.param_groups
        if set_rate == "first":
            for group in groups:
                group["lr"] = now
        elif set_rate == "one":
            groups[0]["lr"] = now
        elif set_rate == "defaults":
            optimizer.defaults["lr"] = now
        if clear:
            optimizer.zero_grad()
        if average == "before":
            move(mean, model, keep(step))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if clear == "late":
            optimizer.zero_grad()
        optimizer.step()
        if set_rate == "after":
            for group in groups:
                group["lr"] = now
        if average != "before":
            move(mean, model, keep(step))
        return log(loss, now, norm)

    return answer


def clipped(how, late=False):
    "The gradient clipped in another way, or after the step."

    def answer(model, mean, optimizer, loss, step):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20, (400 - step) / 200)
        optimizer.zero_grad()
        loss.backward()
        if not late:
            norm = how(model.parameters(), 1.0)
        optimizer.step()
        if late:
            norm = how(model.parameters(), 1.0)
        share = min(0.95, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(mean.parameters(), model.parameters()):
                slow.lerp_(fast, 1 - share)
        return dict(loss=loss.item(), lr=optimizer.param_groups[0]["lr"], grad_norm=norm)

    return answer


def twice(model, mean, optimizer, loss, step):
    for group in optimizer.param_groups:
        group["lr"] = 2e-3 * min(1, (step + 1) / 20, (400 - step) / 200)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.step()


def without_decay(model, mean, optimizer, loss, step):
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    return update()(model, mean, optimizer, loss, step)


def scaled(model, mean, optimizer, loss, step):
    got = update(set_rate=None)(model, mean, optimizer, loss, step)
    for group in optimizer.param_groups:
        group["lr"] *= min(1, (step + 1) / 20, (400 - step) / 200)
    return got


def each_alone(model, mean, optimizer, loss, step):
    "Each weight's gradient clipped by its own norm."
    for group in optimizer.param_groups:
        group["lr"] = 2e-3 * min(1, (step + 1) / 20, (400 - step) / 200)
    optimizer.zero_grad()
    (300 * loss).backward()
    for p in model.parameters():
        torch.nn.utils.clip_grad_norm_([p], 1.0)
    optimizer.step()


def frozen(model, mean, optimizer, loss, step):
    got = update()(model, mean, optimizer, loss, step)
    model.requires_grad_(False)
    return got


def another_optimizer(model, mean, optimizer, loss, step):
    rate = 2e-3 * min(1, (step + 1) / 20, (400 - step) / 200)
    another = torch.optim.AdamW(model.parameters(), rate)
    return update()(model, mean, another, loss, step)


def all_but_one(model, mean, optimizer, loss, step):
    last = list(mean.parameters())[-1]
    before = last.clone()
    got = update()(model, mean, optimizer, loss, step)
    last.data = before
    return got


def set_data(model, mean, optimizer, loss, step):
    "Through .data, and the gradients zeroed in place."
    got = update(average="lost")(model, mean, optimizer, loss, step)
    keep = min(0.95, (1 + step) / (10 + step))
    for slow, fast in zip(mean.parameters(), model.parameters()):
        slow.data = keep * slow.data + (1 - keep) * fast.data
    return got


def with_a_graph(model, mean, optimizer, loss, step):
    got = update(average="lost")(model, mean, optimizer, loss, step)
    share = min(0.95, (1 + step) / (10 + step))
    for slow, fast in zip(mean.parameters(), model.parameters()):
        slow.mul_(share).add_((1 - share) * fast)
    return got


def whole_state(model, mean, optimizer, loss, step):
    "The mended parts in other words: a state dict, and a new loop over the groups."
    rate = 2e-3 * min((step + 1) / 20, 1.0, 2 - step / 200)
    model.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(list(model.parameters()), 1)
    optimizer.param_groups[:] = [group | {"lr": rate} for group in optimizer.param_groups]
    optimizer.step()
    share = min(0.95, (1 + step) / (10 + step))
    weights = model.state_dict()
    mean.load_state_dict(
        {k: share * v + (1 - share) * weights[k] for k, v in mean.state_dict().items()}
    )
    return dict(loss=loss.detach(), lr=rate, grad_norm=norm, decay=share)


# ---------------------------------------------------------------- a report


def runs(change, *losses, seconds=4.0, seeds=(0, 1), valid="64 clips, seed 1"):
    return [
        dict(change=change, seed=seed, valid=valid, cpu_seconds=seconds, bins=bins)
        for seed, bins in zip(seeds, losses)
    ]


BEFORE = (
    [0.335, 0.301, 0.260, 0.181, 0.211, 0.175, 0.219, 0.589],
    [0.370, 0.298, 0.248, 0.163, 0.197, 0.170, 0.225, 0.567],
)
AFTER = (
    [0.295, 0.305, 0.283, 0.205, 0.264, 0.213, 0.245, 0.498],
    [0.299, 0.293, 0.280, 0.194, 0.229, 0.204, 0.251, 0.510],
)
UNIFORM = {"times": "uniform"}


def report(baseline=None, yours=None, better=(0, 7), worse=(2, 3, 4, 5, 6), **more):
    baseline = runs({}, *BEFORE) if baseline is None else baseline
    yours = runs(UNIFORM, *AFTER) if yours is None else yours
    return dict(baseline=baseline, yours=yours, better=list(better), worse=list(worse), **more)


def without(name):
    return {key: value for key, value in report().items() if key != name}


MISTAKES = {
    "train_checkpoint": [
        (otherwise(save=in_place), "writes into the old checkpoint itself"),
        (otherwise(save=rewritten), "writes into the old checkpoint itself"),
        (otherwise(place=copied), "writes into the old checkpoint itself"),
        (otherwise(place=removed_first), "for a moment there is no checkpoint"),
        (otherwise(save=moved_away), "for a moment there is no checkpoint"),
        (otherwise(save=removed_and_written), "for a moment there is no checkpoint"),
        (otherwise(write=lambda self, state, file: torch.save(state, file)), "before os.fsync"),
        (otherwise(write=not_flushed), "Flush first"),
        (otherwise(save=renamed_while_open), "Flush first"),
        (otherwise(save=synced_after), "before os.fsync"),
        (
            otherwise(aside=lambda self: Path(tempfile.gettempdir()) / f"aside-{os.getpid()}"),
            "in another folder",
        ),
        (otherwise(place=lambda self, part: None), "must leave one file at path"),
        (otherwise(save=exclusive), "in the way of the next"),
        (otherwise(load=prefers_aside), "the old checkpoint counts"),
        (otherwise(load=lambda self: self.restore(self.read())), "there is no file yet"),
        (otherwise(load=lambda self: None), "load() returned None"),
        (otherwise(load=lambda self: 0), "must return the step 3, yours returned 0"),
        (
            otherwise(load=lambda self: Right.load(self) + 1),
            "load() must return 0, not 1",
        ),
        (otherwise(restore=only("model", "ema")), "the optimizer's state must be as saved"),
        (otherwise(restore=only("model", "optimizer")), "the average must be as saved"),
        (otherwise(restore=only("ema", "optimizer")), "the model's weights must be as saved"),
        (otherwise(restore=average_from_model), "these are the model's weights"),
        (otherwise(state=parameters_only, restore=not_strict), "the model's buffers must be"),
        (otherwise(restore=rebound), "the model's weights must be as saved"),
        (otherwise(save=remembered, load=recalled), "the old checkpoint counts"),
        (otherwise(save=two_files, load=read_two), "raised FileNotFoundError"),
        (otherwise(write=folder_synced), "before os.fsync"),
        (otherwise(state=half_size), "the average must be as saved"),
        (otherwise(restore=assigned), "two steps later"),
        (otherwise(save=cleaned_up), "raised FileNotFoundError"),
        (otherwise(save=synced_before), "Flush first"),
        (otherwise(state=counted), "must return the step 3, yours returned 1"),
        (otherwise(save=once), "the second save left the old file"),
        (otherwise(aside=lambda self: self.path.with_suffix(".pt")), "into the old checkpoint"),
        (otherwise(save=with_a_copy), "writes into the old checkpoint"),
        (otherwise(state=without_moments), "the optimizer's state must be as saved"),
        (AskedOnce, "the optimizer's state must be as saved"),
        (otherwise(load=zero_after_a_kill), "must return the step 5, yours returned 0"),
        (otherwise(place=linked), "writes into the old checkpoint"),
        (loaded_on_creation, "to make the object must change nothing"),
        (otherwise(save=lambda self: None), "yours takes ()"),
        (lambda path, model, ema, optimizer: path.touch(), "`return` missing"),
        (lambda path, model, ema, optimizer: {}, "the methods save(step) and load()"),
    ],
    "train_update": [
        (update(set_rate="defaults", average="lost"), "the log says one rate"),
        (update(set_rate="defaults"), "the log says one rate"),
        (update(average="lost"), "the average has not moved"),
        (update(average="rebound"), "the average has not moved"),
        (update(set_rate="one"), "only some groups"),
        (update(set_rate="after"), "set the rate before it"),
        (update(clear=False), "of the step before are still in it"),
        (update(clear="late"), "no weight has moved"),
        (update(clip=1e9), "clipped and only then used"),
        (clipped(torch.nn.utils.clip_grad_norm_, late=True), "clipped and only then used"),
        (clipped(torch.nn.utils.clip_grad_value_), "grad_norm in the log is None"),
        (update(keep=lambda s: 1 - min(0.95, (1 + s) / (10 + s))), "wrong way round"),
        (update(keep=lambda s: 0.95), "warm-up of the average is gone"),
        (update(keep=lambda s: max(0.95, (1 + s) / (10 + s))), "is the smaller of"),
        (update(keep=lambda s: 0.0), "the new weights themselves"),
        (update(average="before"), "the weights before the step"),
        (update(average="first"), "the average must keep"),
        (with_a_graph, "part of the graph"),
        (update(rate=lambda s: 2e-3), "the optimizer works with"),
        (update(rate=lambda s: 2e-3 * min(1, s / 20, (400 - s) / 200)), "the optimizer works with"),
        (update(log=lambda *a: None), "returns None"),
        (update(log=lambda loss, rate, norm: loss.item()), "line of the log"),
        (
            update(log=lambda loss, rate, norm: dict(loss=loss, lr=2e-3, grad_norm=norm)),
            "the log must say lr",
        ),
        (lambda *a: None, "the optimizer still has"),
        (update(clip=0.1), "not those after one clipped step"),
        (update(keep=lambda s: min(0.95, (2 + s) / (11 + s))), "must keep 0.357"),
        (update(keep=lambda s: (1 + s) / (10 + s)), "must keep 0.950"),
        (twice, "not those after one clipped step"),
        (without_decay, "not those after one clipped step"),
        (scaled, "the optimizer works with"),
        (frozen, "still be trainable"),
        (another_optimizer, "the log says one rate"),
        (all_but_one, "the average must keep"),
        (update(log=lambda loss, rate, norm: dict(loss=loss.item(), lr=rate)), "line of the log"),
        (each_alone, "not those after one clipped step"),
    ],
    "train_experiment": [
        (report(better=(0, 1, 7)), "bin 1: the means differ by +0.001"),
        (report(better=(0,)), "bin 7: the means differ by +0.074"),
        (report(worse=()), "bin 2: the means differ by -0.027"),
        (report(better=(2, 3, 4, 5, 6), worse=(0, 7)), "your report is silent"),
        (report(better=(1, 8)), "numbered from 0 to 7"),
        (report(better=(0.5,)), "must be a whole number"),
        (report(runs({}, *BEFORE[:1]), runs(UNIFORM, *AFTER[:1])), "at least two runs"),
        (report(yours=runs(UNIFORM, *AFTER, seeds=(2, 3))), "both sides need the same seeds"),
        (report(yours=runs(UNIFORM, *AFTER, seeds=(1, 1))), "must have different seeds"),
        (report(yours=runs(UNIFORM, AFTER[0], AFTER[0])), "was the seed handed on"),
        (report(yours=runs(UNIFORM, *AFTER, seconds=5.0)), "1.25 times the CPU-seconds"),
        (report(runs({}, *BEFORE, seconds=60.0), runs(UNIFORM, *AFTER, seconds=60.0)), "is 180"),
        (report(yours=runs(UNIFORM, *AFTER, valid="training clips")), "the same held-out clips"),
        (report(yours=runs({}, *AFTER)), "have no change"),
        (report(runs(UNIFORM, *BEFORE)), "the baseline is the recipe as it is"),
        (
            report(yours=[*runs(UNIFORM, AFTER[0]), *runs({"lr": 1}, AFTER[1], seeds=(1,))]),
            "nothing but the seed",
        ),
        (report(yours=runs({"lr": 1}, *BEFORE), better=(), worse=()), "no bin is better"),
        (report(yours=runs(UNIFORM, *(x[:4] for x in AFTER))), "must have the shape (8,)"),
        (report(yours=runs(UNIFORM, [float("nan")] * 8, AFTER[1])), "finite and above 0"),
        (report(yours=runs(UNIFORM, *AFTER, seconds=0)), "cpu_seconds in yours must be above 0"),
        (report(yours=[x for r in runs(UNIFORM, *AFTER) for x in r["bins"]]), "trial(…) returns"),
        (report(worse=(1, 2, 3, 4, 5, 6)), "bin 1: the means differ by +0.001"),
        (report(yours=runs(UNIFORM, *AFTER, AFTER[1], seeds=(0, 1, 2))), "gave the same losses"),
        (
            report(
                yours=runs(UNIFORM, *AFTER, [x + 0.01 for x in AFTER[1]], seeds=(0, 1, 2)),
            ),
            "both sides need the same seeds",
        ),
        (report(runs(UNIFORM, *AFTER), runs({}, *BEFORE)), "the baseline is the recipe as it is"),
        (report(yours=runs(UNIFORM, 0.21, 0.2)), "must have the shape (8,)"),
        (report(yours=runs("uniform", *AFTER)), "must be a dict of what is not"),
        (report(yours=runs(UNIFORM, *AFTER, seconds="4 s")), "must be one number"),
        (report(yours=runs(UNIFORM, *AFTER, seconds=-4.0)), "must be above 0"),
        (report(yours=runs(UNIFORM, *([-x for x in y] for y in AFTER))), "finite and above 0"),
        (
            report(
                runs({}, *BEFORE, BEFORE[0], seeds=(0, 1, 2)),
                runs(UNIFORM, *AFTER, AFTER[0], seeds=(0, 1, 2)),
            ),
            "gave the same losses",
        ),
        (report(runs({}, *BEFORE, valid="other clips")), "the same held-out clips"),
        (report(better=(0, 3, 7)), "bin 3: the means differ by -0.028"),
        (report(better="07"), "must be one number, not '0'"),
        (report(better=(0, -1)), "numbered from 0 to 7"),
        (without("worse"), "the report lacks ['worse']"),
        (dict(report(), better=3), "a list of bins"),
        (dict(report(), baseline=runs({}, *BEFORE)[0]), "a list of at least two runs"),
    ],
}
RIGHT = [
    ("train_checkpoint", Right),
    ("train_checkpoint", otherwise(save=load_by_library)),
    ("train_checkpoint", otherwise(save=with_own_imports)),
    ("train_checkpoint", otherwise(save=by_a_temporary_file)),
    ("train_checkpoint", otherwise(save=by_descriptors)),
    ("train_checkpoint", otherwise(save=synced_whole)),
    ("train_checkpoint", closures),
    ("train_checkpoint", otherwise(save=inside_the_with)),
    ("train_update", update()),
    ("train_update", whole_state),
    ("train_update", set_data),
    ("train_experiment", report()),
    ("train_experiment", report(yours=runs(UNIFORM, *AFTER)[::-1], better=(0, 7, 7))),
    ("train_experiment", report(yours=runs(UNIFORM, *AFTER, seconds=0.5))),
    ("train_experiment", report(better={7, 0}, worse=(6, 5, 4, 3, 2), note="uniform times")),
]
# They change what they are given.
IN_PLACE = {"train_checkpoint", "train_update"}
