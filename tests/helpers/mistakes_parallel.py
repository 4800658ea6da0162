"""Mistakes in the exercises of lesson 16, by checker: see `mistakes.py`."""

import torch


def sent(copies=4, keys=2, ulysses=None, passed=None, scale=1.0):
    def sent_bytes(method, tokens, width, bits, n):
        mine = tokens * width * bits / 8 / n
        if method == "ulysses":
            return scale * copies * (ulysses or (lambda m, n: m * (n - 1) / n))(mine, n)
        return scale * keys * (passed or (lambda m, n: m * (n - 1)))(mine, n)

    return sent_bytes


def in_all(method, tokens, width, bits, n):
    return n * sent()(method, tokens, width, bits, n)


def numbers(method, tokens, width, bits, n):
    return sent()(method, tokens, width, 8, n)


def merged(weigh=None, level=torch.logaddexp):
    def merge(o1, l1, o2, l2):
        both = torch.logaddexp(l1, l2)
        a, b = ((v - both).exp()[..., None] for v in (l1, l2))
        out = (weigh or (lambda a, b, o1, o2: a * o1 + b * o2))(a, b, o1, o2)
        return out, level(l1, l2)

    return merge


def plain(o1, l1, o2, l2):
    a, b = l1.exp()[..., None], l2.exp()[..., None]
    return (a * o1 + b * o2) / (a + b), (l1.exp() + l2.exp()).log()


def of_largest(o1, l1, o2, l2):
    top = torch.maximum(l1, l2).amax()
    a, b = (l1 - top).exp()[..., None], (l2 - top).exp()[..., None]
    return (a * o1 + b * o2) / (a + b), top + (a + b)[..., 0].log()


def by_doubling(state, activations, memory, n):
    sequence = 1
    while sequence <= n:
        fits = state / (n // sequence) + activations / sequence <= memory
        if n % sequence == 0 and fits:
            return n // sequence, sequence
        sequence *= 2


def by_lambda(o1, l1, o2, l2):
    a, b = l1[..., None], l2[..., None]
    return (a * o1 + b * o2) / (a + b), torch.logaddexp(l1, l2)


def by_sigmoid(o1, l1, o2, l2):
    share = torch.sigmoid(l1 - l2)[..., None]
    return share * o1 + (1 - share) * o2, torch.stack([l1, l2]).logsumexp(0)


def moved(order=lambda pieces: torch.cat(pieces), own=lambda j: j):
    def move_cut(parts):
        n = len(parts)
        return [order([part.chunk(n, 1)[own(j)] for part in parts]) for j in range(n)]

    return move_cut


def dealt(parts):
    whole = torch.cat(parts)
    return [whole[:, j :: len(parts)] for j in range(len(parts))]


def loss(of=lambda losses: torch.cat(losses).mean()):
    return of


def chosen(first="sequence", compare=lambda need, memory: need <= memory, swap=False, both=True):
    def choose(state, activations, memory, n):
        sizes = [s for s in range(1, n + 1) if n % s == 0]
        for s in sizes if first == "sequence" else sizes[::-1]:
            shard = n // s
            need = (state / shard if both else state) + activations / s
            if compare(need, memory):
                return (s, shard) if swap else (shard, s)

    return choose


def any_split(state, activations, memory, n):
    for s in range(1, n + 1):
        if state / (n // s) + activations / s <= memory:
            return n // s, s


MISTAKES = {
    "parallel_sent_bytes": [
        (sent(scale=8), "a byte has eight"),
        (numbers, "counts numbers"),
        (in_all, "all processes send together"),
        (sent(ulysses=lambda m, n: m), "stays in this process"),
        (sent(passed=lambda m, n: m * n), "not among the n − 1"),
        (sent(ulysses=lambda m, n: m * (n - 1)), "one piece of n"),
        (sent(copies=3), "four tensors"),
        (sent(keys=1), "two"),
        (sent(keys=3), "queries stay"),
    ],
    "parallel_merge": [
        (merged(lambda a, b, o1, o2: (o1 + o2) / 2), "do not count alike"),
        (merged(lambda a, b, o1, o2: o1 + o2), "means, not sums"),
        (merged(lambda a, b, o1, o2: b * o1 + a * o2), "share of the other"),
        (merged(level=lambda a, b: a + b), "exponentials are added"),
        (merged(level=torch.maximum), "larger λ alone"),
        (merged(level=lambda a, b: a.exp() + b.exp()), "logarithm is asked for"),
        (plain, "NaN or infinity"),
        (by_lambda, "not of λ"),
        (of_largest, "NaN or infinity"),
        (lambda o1, l1, o2, l2: merged()(o1, l1, o2, l2)[0], "returns two things"),
    ],
    "parallel_move_cut": [
        (moved(lambda pieces: torch.cat(pieces[::-1])), "from last to first"),
        (moved(lambda pieces: torch.stack(pieces, 1).flatten(0, 1)), "interleaved"),
        (moved(own=lambda j: 0), "first places"),
        (dealt, "dealt out in turn"),
        (lambda parts: parts, "shape"),
        (lambda parts: torch.cat(parts), "list of"),
        (lambda parts: [part.transpose(0, 1) for part in parts], "shape"),
    ],
    "parallel_clip_loss": [
        (lambda x: sum(p.mean() for p in x if len(p)) / sum(len(p) > 0 for p in x), "weighs"),
        (lambda x: sum(p.mean() for p in x) / len(x), "weighs a token more"),
        (lambda x: torch.cat(x).sum(), "that is the sum"),
        (lambda x: torch.cat(x).sum() / len(x), "not of processes"),
        (lambda x: x[0].mean(), "first process alone"),
        (lambda x: torch.cat(x).sum() / (len(x) * len(x[0])), "its own number"),
        (lambda x: sum(p.sum() for p in x) / sum(len(p) for p in x if len(p)) / len(x), "sum of"),
    ],
    "parallel_choose": [
        (chosen(first="shard"), "a smaller sequence does too"),
        (chosen(swap=True), "in this order"),
        (chosen(compare=lambda need, memory: True), "needs"),
        (chosen(both=False), "fits"),
        (any_split, "must be"),
        (by_doubling, "fits"),
        (lambda state, activations, memory, n: (1, n), "a smaller sequence does too"),
        (chosen(compare=lambda need, memory: need < memory - 2), "fits"),
    ],
}

RIGHT = [
    ("parallel_sent_bytes", lambda m, t, w, b, n: torch.tensor(sent()(m, t, w, b, n)).item()),
    ("parallel_merge", by_sigmoid),
    ("parallel_move_cut", lambda parts: list(torch.cat(parts).chunk(len(parts), 1))),
    ("parallel_clip_loss", lambda x: sum(p.sum() for p in x) / sum(map(len, x))),
    ("parallel_choose", lambda *case: list(c) if (c := chosen()(*case)) else None),
]
