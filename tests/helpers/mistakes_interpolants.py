"""Wrong answers to the exercises of lesson 05 that a learner may well give, and words of the hint
that each must meet."""

import torch


def slopes(path, t):
    "(alpha, sigma) and their derivatives, each (B,)."
    return torch.func.jvp(path, (t,), (torch.ones_like(t),))


def wide(c, x):
    return c.view(-1, *[1] * (x.ndim - 1))


def loss(
    mix=lambda a, s, d, e, t: a * d + s * e,
    target=lambda a, s, da, ds, d, e: da * d + ds * e,
    compare=lambda out, v: ((out - v) ** 2).flatten(1).mean(1),
    ask=lambda model, x, t: model(x, t),
    clock=lambda t: t,
):
    "A flow loss, right unless one of its parts is replaced."

    def answer(model, data, noise, t, path):
        (a, s), (da, ds) = slopes(path, clock(t))
        a, s, da, ds = (wide(c, data) for c in (a, s, da, ds))
        x = mix(a, s, data, noise, wide(t, data))
        return compare(ask(model, x, t), target(a, s, da, ds, data, noise))

    return answer


def without_gradient(model, data, noise, t, path):
    with torch.no_grad():
        return loss()(model, data, noise, t, path)


def unbroadcast(model, data, noise, t, path):
    (a, s), (da, ds) = slopes(path, t)
    return ((model(a * data + s * noise, t) - (da * data + ds * noise)) ** 2).flatten(1).mean(1)


FLOW = [
    (loss(mix=lambda a, s, d, e, t: a * e + s * d), "data and noise are swapped"),
    (loss(mix=lambda a, s, d, e, t: t * d + (1 - t) * e), "that is the straight line;"),
    (loss(mix=lambda a, s, d, e, t: (1 - t) * d + t * e), "straight line backwards"),
    (loss(mix=lambda a, s, d, e, t: a * d + (1 - a) * e), "σ is not 1 − α"),
    (loss(mix=lambda a, s, d, e, t: a * d - s * e), "the minus"),
    (loss(mix=lambda a, s, d, e, t: a[:1] * d + s[:1] * e), "its own t"),
    (loss(mix=lambda a, s, d, e, t: d), "without noise"),
    (loss(mix=lambda a, s, d, e, t: a * a * d + s * e), "must be given x = α(t) data"),
    (loss(clock=lambda t: 1 - t), "give it t, not 1 − t"),
    (loss(target=lambda a, s, da, ds, d, e: d - e), "the velocity of the straight line"),
    (loss(target=lambda a, s, da, ds, d, e: e - d), "straight line backwards"),
    (loss(target=lambda a, s, da, ds, d, e: -da * d - ds * e), "from data to noise"),
    (loss(target=lambda a, s, da, ds, d, e: da * d - ds * e), "its own sign"),
    (loss(target=lambda a, s, da, ds, d, e: ds * d + da * e), "derivatives are swapped"),
    (loss(target=lambda a, s, da, ds, d, e: da * d), "term of the noise is missing"),
    (loss(target=lambda a, s, da, ds, d, e: a * d + s * e), "x itself"),
    (loss(target=lambda a, s, da, ds, d, e: e), "the target is the noise"),
    (loss(target=lambda a, s, da, ds, d, e: d), "the target is the data"),
    (loss(target=lambda a, s, da, ds, d, e: 2 * (da * d + ds * e)), "x is right, the loss is not"),
    (loss(compare=lambda o, v: ((o - v) ** 2).flatten(1).sum(1)), "yours is the sum"),
    (loss(compare=lambda o, v: ((o - v) ** 2).mean()), "one loss per sample"),
    (loss(compare=lambda o, v: ((o - v) ** 2).mean().expand(len(o))), "mixed the samples"),
    (loss(compare=lambda o, v: (o - v).abs().flatten(1).mean(1)), "absolute value"),
    (loss(compare=lambda o, v: ((o + v) ** 2).flatten(1).mean(1)), "the sign"),
    (loss(compare=lambda o, v: ((o - v) ** 2).flatten(1).mean(1) ** 0.5), "no root"),
    (loss(ask=lambda m, x, t: m(x, 1 - t)), "counts backwards"),
    (loss(ask=lambda m, x, t: m(x, 1000 * t)), "multiplied by 1000"),
    (loss(ask=lambda m, x, t: m(x, wide(t, x))), "t of shape (4,)"),
    (loss(ask=lambda m, x, t: m(x)), "called as model(x, t)"),
    (loss(ask=lambda m, x, t: m(x, t).detach()), "reach the weights"),
    (loss(ask=lambda m, x, t: 0 * x), "never asked"),
    (without_gradient, "reach the weights"),
    (unbroadcast, "broadcast"),
]


def pair(x=lambda d, e, t: t * d + (1 - t) * e, v=lambda d, e, t: d - e):
    def answer(data, noise, t):
        t = wide(t, data)
        return x(data, noise, t), v(data, noise, t)

    return answer


def as_shown(data, noise, t):
    t = t.view(-1, 1, 1, 1, 1)
    x = noise.mul_(1 - t).add_(t * data)
    return x, data - noise


def half_mended(data, noise, t):
    "x is out of place now, but the noise is still scaled where it lies."
    t = t.view(-1, 1, 1, 1, 1)
    x = noise.mul_(1 - t) + t * data
    return x, data - noise


def scaled_first(data, noise, t):
    "The velocity first, then a noise that was scaled twice."
    t = t.view(-1, 1, 1, 1, 1)
    velocity = data - noise
    noise.mul_(1 - t)
    return t * data + (1 - t) * noise, velocity


PAIR = [
    (as_shown, "as in the broken run"),
    (half_mended, "the noise in it has been scaled"),
    (scaled_first, "mixed twice"),
    (pair(v=lambda d, e, t: e - d), "its sign"),
    (pair(v=lambda d, e, t: (d - e) / (1 - t)), "divided by 1 − t"),
    (pair(v=lambda d, e, t: t * (d - e)), "only the way so far"),
    (pair(v=lambda d, e, t: d), "that is the data"),
    (pair(v=lambda d, e, t: t * d + (1 - t) * e), "that is x"),
    (pair(v=lambda d, e, t: 2 * (d - e)), "must be data − noise"),
    (pair(x=lambda d, e, t: (1 - t) * d + t * e), "t = 0 is noise"),
    (pair(x=lambda d, e, t: t * d), "the share of the noise is missing"),
    (pair(x=lambda d, e, t: t[:1] * d + (1 - t[:1]) * e), "time of the first"),
    (pair(x=lambda d, e, t: t * d + (1 - t) * e.roll(1, 0)), "each sample at its own t"),
    (lambda d, e, t: pair()(d, e, t)[::-1], "swapped"),
    (lambda d, e, t: pair()(d, e, t)[0], "2 things, (x, velocity)"),
    (lambda d, e, t: (t * d + (1 - t) * e, d - e), "x must have the shape (4, 2, 1, 1, 1)"),
]

SHIFT = [
    (1 / 3, "moves the times to the data"),
    (2.0, "66.67% of the times below 1/2, not 75 %"),
    (-3, "above 0"),
    (1.5, "60.00% of the times below 1/2"),
    (0.75, "moves the times to the data"),
    (0, "above 0"),
    (4.0, "80.00% of the times below 1/2"),
]

MISTAKES = {
    "interpolants_flow_loss": FLOW,
    "interpolants_training_pair": PAIR,
    "interpolants_timestep_shift": SHIFT,
}


def by_differences(model, data, noise, t, path):
    "The derivatives by a small step of the clock, in float64."
    a, s = path(t.double())
    ahead, back = path(t.double() + 1e-5), path(t.double() - 1e-5)
    da, ds = ((p - q) / 2e-5 for p, q in zip(ahead, back))
    a, s, da, ds = (wide(c, data).to(data) for c in (a, s, da, ds))
    return (model(a * data + s * noise, t) - da * data - ds * noise).square().flatten(1).mean(1)


def by_autograd(model, data, noise, t, path):
    t = t.detach().requires_grad_()
    with torch.enable_grad():
        a, s = path(t)
        da = torch.autograd.grad(a.sum(), t, retain_graph=True)[0]
        ds = torch.autograd.grad(s.sum(), t)[0]
    a, s, da, ds = (wide(c.detach(), data) for c in (a, s, da, ds))
    axes = tuple(range(1, data.ndim))
    return (model(a * data + s * noise, t.detach()) - (da * data + ds * noise)).pow(2).mean(axes)


def in_place_but_late(data, noise, t):
    "The velocity is taken before the noise is overwritten."
    t = t.view(-1, 1, 1, 1, 1)
    velocity = data - noise
    return noise.mul_(1 - t).add_(t * data), velocity


RIGHT = [
    ("interpolants_flow_loss", by_differences),
    ("interpolants_flow_loss", by_autograd),
    ("interpolants_training_pair", in_place_but_late),
    ("interpolants_training_pair", lambda d, e, t: (torch.lerp(e, d, wide(t, d)), d - e)),
]
