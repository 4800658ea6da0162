"""Plausible mistakes in the exercises of lesson 06 that build a sampler and mend one."""

import torch


def pair(model, x, t, y, null, order="yn", times=None):
    "Both answers of a model, in one call: with the class ids, and with the nulls."
    free = torch.full_like(y, null)
    rows = torch.cat([y, free] if order == "yn" else [free, y])
    t = torch.full((len(rows),), float(t)) if times is None else times
    return model(torch.cat([x, x]), t, rows).chunk(2)


def right(a, free, g):
    return free + g * (a - free)


def heun(
    mix=right,
    grid=lambda n: [i / n for i in range(n + 1)],
    landing=1.0,
    at=1.0,
    share=0.5,
    late=False,
    order="yn",
    calls=1,
    second=None,
):
    "A guided Heun walk, with one thing done otherwise."

    def draw(model, x, y, null, steps, g):
        def v(x, t):
            if calls == 2:
                now = torch.full((len(x),), float(t))
                return mix(model(x, now, y), model(x, now, torch.full_like(y, null)), g)
            return mix(*pair(model, x, t, y, null, order), g)

        times = grid(steps)
        for i, (a, b) in enumerate(zip(times[:-1], times[1:])):
            first = v(x, a)
            if i == len(times) - 2 and not late:
                x = x + (b - a) * first
                continue
            there = x + landing * (b - a) * first
            last = (second or (lambda m, x, t, y, n, v: v(x, t)))(
                model, there, a + at * (b - a), y, null, v
            )
            x = x + (b - a) * ((1 - share) * first + share * last)
        return x

    return draw


def only_with_class(model, x, t, y, null, v):
    return model(x, torch.full((len(x),), t), y)


def euler(mix=right, grid=lambda n: torch.linspace(0, 1, n + 1), order="yn", end=0, swap=False):
    "A guided Euler walk, with one thing done otherwise."

    def mended(model, x, y, null, steps, g):
        times = grid(steps)
        for a, b in zip(times[:-1], times[1:]):
            v, free = pair(model, x, b if end else a, y, null, order)
            if swap:
                v, free = free, v
            x = x + (b - a) * mix(v, free, g)
        return x

    return mended


def growing(model, x, y, null, steps, g):
    "Takes t = 0.9999… for a time before the end, and so makes a Heun step there."
    h, t = 1 / steps, 0.0
    while t < 1:
        v = right(*pair(model, x, t, y, null), g)
        if t + h < 1:
            w = right(*pair(model, x + h * v, t + h, y, null), g)
            v = (v + w) / 2
        x = x + h * v
        t = t + h
    return x


def half_batch(model, x, y, null, steps, g):
    both = pair(model, x, 0.0, y, null, times=torch.zeros(len(x)))
    return right(*both, g)


def stacked(model, x, y, null, steps, g):
    "Every state, not only the last."
    return torch.stack([x, heun()(model, x, y, null, steps, g)])


def early(n):
    return torch.arange(n) / n


def minus(mix):
    return lambda a, free, g: -mix(a, free, g)


DRAW = [
    (heun(lambda a, free, g: a), "that is the answer with the class alone"),
    (heun(lambda a, free, g: free), "that is the free answer alone"),
    (heun(order="ny"), "the two answers are swapped"),
    (heun(lambda a, free, g: a + g * (a - free)), "start from the free answer"),
    (heun(lambda a, free, g: g * (a - free)), "add it to the free one"),
    (euler(), "those are Euler steps"),
    (heun(landing=0.5, at=0.5, share=1.0), "midpoint"),
    (heun(at=0.0), "at time b, not at a"),
    (heun(landing=0.0), "not at x"),
    (heun(share=1.0), "takes the second slope alone"),
    (heun(second=only_with_class), "the second slope must be guided too"),
    (heun(late=True), "the last step must be an Euler step"),
    (heun(grid=early), "one step before t = 1"),
    (heun(grid=lambda n: torch.linspace(0, 1, n)), "one step less"),
    (heun(grid=lambda n: [1 - i / n for i in range(n + 1)]), "runs the other way"),
    (heun(grid=lambda n: range(n + 1)), "yours asks at t = 2"),
    (heun(minus(right)), "add it"),
    (heun(calls=2), "in one call, of 2 B rows"),
    (growing, "a single step is right"),
    (half_batch, "one value for each of its 6 rows"),
    (stacked, "must have the shape"),
    (lambda model, x, y, null, steps, g: x, "no step was taken"),
    (lambda m, x, y, null, n, g: heun()(m, x, y, 3, n, g), "asked for the class ids [3]"),
    (lambda m, x, y, null, n, g: heun()(m, x, y, null, 4, g), "from 0 to 1, is wrong too"),
    (lambda m, x, y, null, n, g: heun()(m, x, y, null, n, 2.5), "10 steps, guidance 0.5"),
    (lambda m, x, y, null, n, g: heun()(m, x, y.float(), null, n, g), "whole numbers"),
    (lambda m, x, y, null, n, g: heun()(m, x[:, :, 0], y, null, n, g), "the model wants x as"),
]
MENDED = [
    (euler(lambda a, free, g: free + (g - 1) * (a - free)), "at g = 2"),
    (euler(lambda a, free, g: free + g * (free - a)), "the wrong sign"),
    (euler(grid=lambda n: torch.arange(1, n + 1) / n), "leaves out the first step"),
    (euler(grid=lambda n: torch.arange(n + 1) / (n + 1)), "a single step"),
    (euler(grid=early, order="ny"), "both faults are still there"),
    (euler(order="ny"), "which rows of the batch"),
    (euler(grid=early), "still stops one step before"),
    (euler(grid=lambda n: torch.linspace(0, 1, n)), "one step less"),
    (euler(end=1), "not at its end"),
    (euler(lambda a, free, g: a), "with the class alone"),
    (euler(lambda a, free, g: a + g * (a - free)), "start from the free answer"),
    (euler(grid=lambda n: torch.linspace(1, 0, n + 1)), "runs the other way"),
    (heun(late=True), "is wrong too"),
    (heun(), "those are Heun steps"),
    (euler(minus(right)), "add it"),
    (lambda m, x, y, null, n, g: euler()(m, x, y, 3, n, g), "asked for the class ids [3]"),
    (lambda m, x, y, null, n, g: x, "from 0 to 1, is wrong too"),
]
MISTAKES = {"sampling_guided_heun": DRAW, "sampling_mended": MENDED}


def by_loop(model, x, y, null, steps, g):
    "The nulls first, the weights 1 − g and g, in place, times by index."
    x = x.clone()
    for i in range(steps):
        free, v = pair(model, x, i / steps, y, null, "ny")
        v = (1 - g) * free + g * v
        if i < steps - 1:
            free, w = pair(model, x + v / steps, (i + 1) / steps, y, null, "ny")
            v = 0.5 * v + 0.5 * ((1 - g) * free + g * w)
        x += v / steps
    return x


RIGHT = [
    ("sampling_guided_heun", by_loop),
    ("sampling_mended", euler(order="ny", swap=True)),
    ("sampling_mended", euler(lambda a, free, g: g * a + (1 - g) * free)),
    ("sampling_mended", euler(grid=lambda n: torch.arange(n + 1) / n)),
]
