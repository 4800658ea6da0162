"""Mistakes in the exercises of lesson 12, by checker: see `mistakes.py`."""

import math
from itertools import product

import torch
from einops import rearrange
from torch.nn.functional import pad


def sized(grid, window):
    return [min(w or n, n) for n, w in zip(grid, window)]


def counts(grid, window):
    return math.prod(-(-n // w) for n, w in zip(grid, sized(grid, window)))


def lora(shared=True, biases=True, up=True, down=True, once=False):
    def weights(depth, width, rank):
        first = shared * (6 * width**2 + biases * 6 * width)
        own = down * rank * width + up * 6 * rank * width
        return first + (1 if once else depth) * own

    return weights


def windowed(
    before=False, order="t h w", crop=True, mask=True, first="b nt ny nx", swap=False, fill=0.0
):
    "The solution, with what may go wrong."

    def in_windows(x, window, attend):
        B, *grid, _ = x.shape
        missing = [-n % w for n, w in zip(grid, window)]
        ends = [(m, 0) if before else (0, m) for m in reversed(missing)]
        ends = tuple(n for pair in ends for n in pair)
        there = pad(torch.ones(grid, dtype=torch.bool), ends)
        if not mask:
            there = torch.ones_like(there)
        x = pad(x, (0, 0, *ends), value=fill)
        nt, ny, nx = ((n + m) // w for n, m, w in zip(grid, missing, window))
        sizes = dict(t=window[0], h=window[1], w=window[2])
        into = f"b (nt t) (ny h) (nx w) d -> ({first}) ({order}) d"
        rows = rearrange(x, into, **sizes)
        seen = rearrange(
            there.expand(B, *there.shape),
            f"b (nt t) (ny h) (nx w) -> ({first}) ({order})",
            **sizes,
        )
        rows = attend(rows, seen)
        back = "b (nt t) (ny h) (nx w) d"
        if swap:
            back = "b (t nt) (h ny) (w nx) d"
        x = rearrange(rows, f"({first}) ({order}) d -> {back}", b=B, nt=nt, ny=ny, **sizes)
        if not crop:
            return x
        return x[:, : grid[0], : grid[1], : grid[2]]

    return in_windows


def no_window(x, window, attend):
    there = torch.ones(len(x), x[0, ..., 0].numel(), dtype=torch.bool)
    return attend(x.flatten(1, 3), there).view(x.shape)


def seeing(first="model", who=lambda c: c, grad=False, last="model"):
    def predict(model, x, t, chosen):
        zeros = torch.zeros_like(x)
        with torch.set_grad_enabled(grad):
            estimate = {"model": lambda: model(x, zeros, t), "x": lambda: x}[first]()
        told = torch.where(who(chosen).view(-1, 1, 1, 1, 1), estimate, zeros)
        return model(x, told, t) if last == "model" else told

    return predict


def only_the_chosen(model, x, t, chosen):
    "Right in its numbers, but only the chosen samples are learnt from."
    first = model(x, torch.zeros_like(x), t).detach()
    return torch.where(chosen.view(-1, 1, 1, 1, 1), model(x, first, t), first)


def thrice(model, x, t, chosen):
    "Right in its numbers, but all are answered for three times."
    zeros = torch.zeros_like(x)
    with torch.no_grad():
        first = model(x, zeros, t)
    return torch.where(chosen.view(-1, 1, 1, 1, 1), model(x, first, t), model(x, zeros, t))


def in_two_parts(model, x, t, chosen):
    "Right: the chosen samples and the others are asked apart."
    out = torch.zeros_like(x)
    for who, told in ((chosen, True), (~chosen, False)):
        if who.any():
            estimate = torch.zeros_like(x[who])
            if told:
                estimate = model(x[who], estimate, t[who]).detach()
            out[who] = model(x[who], estimate, t[who])
    return out


def one_by_one(x, window, attend):
    "Right: corner by corner, in loops."
    B, *grid, D = x.shape
    corners = list(product(*(range(0, n, w) for n, w in zip(grid, window))))
    rows = x.new_zeros(B, len(corners), *window, D)
    there = torch.zeros(B, len(corners), *window, dtype=torch.bool)
    for k, (t, y, c) in enumerate(corners):
        part = x[:, t : t + window[0], y : y + window[1], c : c + window[2]]
        a, b, d = part.shape[1:4]
        rows[:, k, :a, :b, :d] = part
        there[:, k, :a, :b, :d] = True
    rows = attend(rows.flatten(2, 4).flatten(0, 1), there.flatten(2).flatten(0, 1)).view_as(rows)
    out = torch.zeros_like(x)
    for k, (t, y, c) in enumerate(corners):
        part = out[:, t : t + window[0], y : y + window[1], c : c + window[2]]
        a, b, d = part.shape[1:4]
        part.copy_(rows[:, k, :a, :b, :d])
    return out


def without_gradient(model, x, t, chosen):
    with torch.no_grad():
        return seeing()(model, x, t, chosen)


MISTAKES = {
    "walt_pairs": [
        (lambda g, w: math.prod(g) ** 2, "all with all"),
        (lambda g, w: math.prod(g), "tokens, not pairs"),
        (lambda g, w: math.prod(g) * math.prod(w), "0 stands for the whole axis"),
        (lambda g, w: counts(g, w) * math.prod(sized(g, w)) ** 2, "padding is counted"),
        (lambda g, w: math.prod(sized(g, w)) ** 2, "there are more windows"),
        (lambda g, w: math.prod(g) * math.prod(sized(g, w)), "may be smaller"),
        (lambda g, w: sum(n * n for n in sized(g, w)), "tokens squared"),
    ],
    "walt_modulation_weights": [
        (lora(shared=False), "the shared layer is missing"),
        (lora(up=False, down=False), "corrections of the blocks are missing"),
        (lora(biases=False), "has biases"),
        (lora(once=True), "yours counts one"),
        (lora(down=False), "one of the two matrices is missing"),
        (lora(up=False), "from rank to 6 D is missing"),
        (lambda n, d, r: n * (6 * d * d + 6 * d), "full layer for each block"),
        (lambda n, d, r: lora()(n, d, r) + n * (r + 6 * d), "have no biases"),
        (lambda n, d, r: 6 * d * d + 6 * d + 2 * n * r * d, "6 D, not to D"),
    ],
    "walt_in_windows": [
        (no_window, "with n = 6"),
        (windowed(before=True), "padded at the end"),
        (windowed(order="h w t"), "in the order (t, h, w)"),
        (windowed(order="t w h"), "in the order (t, h, w)"),
        (windowed(crop=False), "must have the shape"),
        (windowed(mask=False), "are not padding"),
        (windowed(swap=True), "put back as they were taken"),
        (windowed(fill=1.0), "the padding must be zeros"),
        (
            lambda x, window, attend: windowed()(x, window, lambda r, m: attend(r, r.any(-1))),
            "one of zeros is a token too",
        ),
        (lambda x, window, attend: windowed()(x.detach(), window, attend), "no gradient"),
        (lambda x, window, attend: x, "attend was called 0 times"),
        (lambda x, window, attend: windowed()(x, window[::-1], attend), "rows; there are"),
        (
            lambda x, window, attend: windowed()(x, window, lambda r, m: attend(r, m.float())),
            "bool",
        ),
        (
            lambda x, window, attend: windowed()(x, window, lambda r, m: attend(r, ~m)),
            "are not padding",
        ),
    ],
    "walt_see_itself": [
        (lambda model, x, t, chosen: model(x, torch.zeros_like(x), t), "nobody sees"),
        (seeing(who=torch.ones_like), "only the chosen ones"),
        (seeing(who=torch.logical_not), "the other way round"),
        (seeing(grad=True), "gradients flow into the estimate"),
        (seeing(first="x"), "the estimate is the noisy x"),
        (seeing(last="told"), "not the answer of the model"),
        (without_gradient, "has no gradient"),
        (only_the_chosen, "for all samples, chosen or not"),
        (thrice, "twice for each is enough"),
        (lambda model, x, t, chosen: model(x, None, t), "shaped as x"),
    ],
}
RIGHT = [
    ("walt_in_windows", windowed(first="b ny nx nt")),
    ("walt_in_windows", one_by_one),
    ("walt_see_itself", in_two_parts),
    (
        "walt_see_itself",
        lambda model, x, t, c: model(
            x, (model(x, 0 * x, t) * c.float().view(-1, 1, 1, 1, 1)).detach(), t
        ),
    ),
]
