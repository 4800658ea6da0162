"""Wrong answers to the exercises of lesson 04 that a learner may well give, and words of the hint
that each must meet."""

import torch


def bars(betas, k):
    "alpha-bar at k and before it (1 before step 0), and beta at k."
    bar = (1 - betas).cumprod(0)
    return bar[k], bar[k - 1] if k > 0 else torch.ones(()), betas[k]


def loss(
    mix=lambda bar, d, e: bar.sqrt() * d + (1 - bar).sqrt() * e,
    compare=lambda out, d, e: ((out - e) ** 2).flatten(1).mean(1),
    ask=lambda model, x, k: model(x, k),
    bar=lambda betas, k: (1 - betas).cumprod(0)[k],
):
    "A DDPM loss, right unless one of its parts is replaced."

    def answer(model, data, noise, k, betas):
        product = bar(betas, k).view(-1, *[1] * (data.ndim - 1))
        return compare(ask(model, mix(product, data, noise), k), data, noise)

    return answer


def shifted(betas, k):
    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)])[k]


def usual(betas, k):
    return (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)[k]


def without_gradient(model, data, noise, k, betas):
    with torch.no_grad():
        return loss()(model, data, noise, k, betas)


def as_numbers(model, data, noise, k, betas):
    return torch.tensor(loss()(model, data, noise, k, betas).tolist())


def unbroadcast(model, data, noise, k, betas):
    bar = (1 - betas).cumprod(0)[k]
    x = bar.sqrt() * data + (1 - bar).sqrt() * noise
    return ((model(x, k) - noise) ** 2).flatten(1).mean(1)


def two_axes(model, data, noise, k, betas):
    bar = (1 - betas).cumprod(0)[k][:, None]
    x = bar.sqrt() * data + (1 - bar).sqrt() * noise
    return ((model(x, k) - noise) ** 2).mean(1)


LOSS = [
    (loss(mix=lambda b, d, e: b * d + (1 - b) * e), "yours takes no roots"),
    (loss(mix=lambda b, d, e: b.sqrt() * d + (1 - b) * e), "sigma is the root"),
    (loss(mix=lambda b, d, e: b * d + (1 - b).sqrt() * e), "alpha is the root"),
    (loss(mix=lambda b, d, e: b.sqrt() * e + (1 - b).sqrt() * d), "data and noise are swapped"),
    (loss(mix=lambda b, d, e: d), "without noise"),
    (loss(bar=lambda betas, k: (1 - betas)[k]), "running *product* of 1 - beta"),
    (loss(bar=lambda betas, k: betas.cumprod(0)[k]), "not of beta"),
    (loss(bar=shifted), "ends one step before"),
    (loss(bar=usual), "take the betas that the function is given"),
    (loss(bar=lambda betas, k: (1 - betas).cumprod(0)[k[0]].expand(len(k))), "its own k"),
    (loss(bar=lambda betas, k: (1 - betas.cumsum(0)).clamp(min=0)[k]), "given the wrong x"),
    (loss(compare=lambda o, d, e: ((o - d) ** 2).flatten(1).mean(1)), "not the data"),
    (loss(compare=lambda o, d, e: ((o + e) ** 2).flatten(1).mean(1)), "the sign"),
    (loss(compare=lambda o, d, e: ((o - e) ** 2).flatten(1).sum(1)), "yours is the sum"),
    (loss(compare=lambda o, d, e: (o - e).abs().flatten(1).mean(1)), "absolute value"),
    (loss(compare=lambda o, d, e: ((o - e) ** 2).flatten(1).mean(1).sqrt()), "no root"),
    (loss(compare=lambda o, d, e: (o - e).flatten(1).mean(1) ** 2), "square first"),
    (loss(compare=lambda o, d, e: ((o - e) ** 2).mean()), "one loss per sample"),
    (loss(compare=lambda o, d, e: ((o - e) ** 2).mean().expand(len(o))), "mixed the samples"),
    (loss(compare=lambda o, d, e: ((o - e) ** 2).flatten(1).mean(0)), "shape (4,)"),
    (loss(compare=lambda o, d, e: (e**2).flatten(1).mean(1)), "x is right; the loss is"),
    (loss(ask=lambda model, x, k: model(x, k + 1)), "counts from 1"),
    (loss(ask=lambda model, x, k: model(x, k / 1000)), "divided by the number of steps"),
    (loss(ask=lambda model, x, k: model(x, 1 - k / 1000)), "turned into a time"),
    (loss(ask=lambda model, x, k: model(x, k[0])), "k of shape (4,)"),
    (loss(ask=lambda model, x, k: model(x)), "called as model(x, k)"),
    (loss(ask=lambda model, x, k: 0 * x), "never asked"),
    (without_gradient, "reach the weights"),
    (lambda *a: loss()(*a).detach().requires_grad_(), "reach the weights"),
    (as_numbers, "reach the weights"),
    (loss(ask=lambda model, x, k: model(x, k).detach()), "reach the weights"),
    (unbroadcast, "broadcast"),
    (two_axes, "broadcast"),
    (
        lambda m, d, e, k, b: loss()(m, d, torch.randn_like(e), k, b),
        "draw no random numbers",
    ),
    (
        loss(
            compare=lambda o, d, e: torch.nn.functional.huber_loss(o, e, reduction="none").mean(1)
        ),
        "shape (4,)",
    ),
    (loss(ask=lambda model, x, k: model(x.clamp(-1, 1), k)), "given the wrong x"),
]


def ancestral(mean=None, fresh=lambda now, before, own: ((1 - before) / (1 - now) * own).sqrt()):
    "An ancestral step, right unless its mean or its fresh noise is replaced."

    def answer(x, noise, k, betas, new):
        now, before, own = bars(betas, k)
        data = (x - (1 - now).sqrt() * noise) / now.sqrt()
        middle = before.sqrt() * own / (1 - now) * data
        middle = middle + (1 - own).sqrt() * (1 - before) / (1 - now) * x
        if mean is not None:
            middle = mean(x, noise, data, now, before, own)
        return middle + fresh(now, before, own) * new

    return answer


def wrapped(x, noise, k, betas, new):
    bar = (1 - betas).cumprod(0)
    now, before, own = bar[k], bar[k - 1], betas[k]
    data = (x - (1 - now).sqrt() * noise) / now.sqrt()
    mean = before.sqrt() * own * data + (1 - own).sqrt() * (1 - before) * x
    variance = (1 - before) / (1 - now) * own
    return mean / (1 - now) + variance.clamp(min=0).sqrt() * new


def from_data(x, noise, data, now, before, own):
    "The network's noise is taken for data."
    of_x = (1 - own).sqrt() * (1 - before) / (1 - now)
    return before.sqrt() * own / (1 - now) * noise + of_x * x


STEP = [
    (ancestral(fresh=lambda now, before, own: 0), "the fresh noise: none is added"),
    (ancestral(fresh=lambda now, before, own: own.sqrt()), "√β, of the forward step"),
    (ancestral(fresh=lambda now, before, own: (1 - before) / (1 - now) * own), "root of β̃, not"),
    (ancestral(fresh=lambda now, before, own: own), "yours is β"),
    (ancestral(fresh=lambda now, before, own: 1), "without a factor"),
    (ancestral(fresh=lambda now, before, own: (1 - before).sqrt()), "σ of the step before"),
    (
        ancestral(fresh=lambda now, before, own: ((1 - now) / (1 - before) * own).sqrt()),
        "turned over",
    ),
    (ancestral(fresh=lambda now, before, own: 2 * own.sqrt()), "its factor must be √β̃"),
    (ancestral(lambda x, e, d, now, before, own: d), "guess of the data"),
    (
        ancestral(lambda x, e, d, now, before, own: before.sqrt() * d + (1 - before).sqrt() * e),
        "DDIM",
    ),
    (
        ancestral(lambda x, e, d, now, before, own: x - own / (1 - now).sqrt() * e),
        "scaled back up",
    ),
    (
        ancestral(lambda x, e, d, now, b, own: (x + own / (1 - now).sqrt() * e) / (1 - own).sqrt()),
        "your sign adds the noise",
    ),
    (
        ancestral(lambda x, e, d, now, b, own: (x - own / (1 - now) * e) / (1 - own).sqrt()),
        "a root of 1 − ᾱ is missing",
    ),
    (
        ancestral(lambda x, e, d, now, b, own: (x - own / (1 - now).sqrt() * e) / (1 - own)),
        "by its root",
    ),
    (
        ancestral(lambda x, e, d, now, b, own: x / (1 - own).sqrt() - own / (1 - now).sqrt() * e),
        "only x is scaled back up",
    ),
    (ancestral(lambda x, e, d, now, before, own: x / (1 - own).sqrt()), "no noise is taken out"),
    (ancestral(lambda x, e, d, now, before, own: x), "x comes back unchanged"),
    (
        ancestral(
            lambda x, e, d, now, b, own: (
                (b.sqrt() * own * x + (1 - own).sqrt() * (1 - b) * d) / (1 - now)
            )
        ),
        "of the data and of x are swapped",
    ),
    (ancestral(from_data), "the mean: yours is"),
    (wrapped, "the *last* one"),
    (lambda x, e, k, betas, new: ancestral()(x, new, k, betas, e), "are swapped"),
    (lambda x, e, k, betas, new: ancestral()(x, e, k, betas.flip(0), new), "the mean"),
    (
        lambda x, e, k, betas, new: ancestral()(x, e, k, torch.linspace(1e-4, 0.02, 1000), new),
        "the mean",
    ),
    (lambda x, e, k, betas, new: ancestral()(x, e, k - 1, betas, new), "the mean"),
    (lambda x, e, k, betas, new: ancestral()(x, e, k, betas, new) if k else x, "unchanged"),
    (
        lambda x, e, k, betas, new: ancestral()(x, e, k, betas, torch.randn_like(new)),
        "draw no random numbers",
    ),
    (lambda x, e, k, betas, new: ancestral()(x, e, k, betas, new.mean() + 0 * new), "a sum of"),
    (lambda x, e, k, betas, new: ancestral()(x, e, k, betas, new).clamp(-1, 1), "step k = 2 of 5"),
]

DDIM = [
    (lambda x, e, a, s, b, r: b * x + r * e, "not with x"),
    (lambda x, e, a, s, b, r: b * (x - s * e) + r * e, "division is missing"),
    (lambda x, e, a, s, b, r: (x - s * e) / a, "mix it with the noise again"),
    (lambda x, e, a, s, b, r: b * (x - s * e) / a, "without its noise"),
    (lambda x, e, a, s, b, r: r * (x - s * e) / a + b * e, "swapped"),
    (lambda x, e, a, s, b, r: b * (x + s * e) / a + r * e, "it must be 2.143 · x + -1.257 · noise"),
    (lambda x, e, a, s, b, r: b * (x - s * e) / s + r * e, "it must be 2.143 · x"),
    (lambda x, e, a, s, b, r: x + (r - s) * e, "yours only changes the noise"),
    (lambda x, e, a, s, b, r: x * b / a + (r - s) * e, "it must be 2.143 · x"),
    (lambda x, e, a, s, b, r: b * (x - s * e) / a + s * e, "it must be 2.143 · x"),
    (lambda x, e, a, s, b, r: b * (x - r * e) / a + r * e, "has the factor σ, that of x itself"),
    (lambda x, e, a, s, b, r: x - r * e + r * e, "x has not moved"),
    (lambda x, e, a, s, b, r: b * ((x - s * e) / a).clamp(-1, 1) + r * e, "it must be"),
    (lambda x, e, a, s, b, r: b * (x - s * e) / a + r * r * e, "no square, no root"),
]

MISTAKES = {
    "diffusion_ddpm_loss": LOSS,
    "diffusion_ancestral_step": STEP,
    "diffusion_ddim_step": DDIM,
}


def other_mean(x, noise, k, betas, fresh):
    "Algorithm 2 as the paper writes it, with a condition for the last step."
    now, before, own = bars(betas.double(), k)
    x = (x - own / (1 - now).sqrt() * noise) / (1 - own).sqrt()
    return x + (own * (1 - before) / (1 - now)).sqrt() * fresh if k else x


def by_precisions(x, noise, k, betas, fresh):
    now, before, own = bars(betas, k)
    if k == 0:
        return (x - own.sqrt() * noise) / (1 - own).sqrt()
    variance = 1 / ((1 - own) / own + 1 / (1 - before))
    data = (x - (1 - now).sqrt() * noise) / now.sqrt()
    mean = variance * (x * (1 - own).sqrt() / own + before.sqrt() * data / (1 - before))
    return mean + variance.sqrt() * fresh


def by_logarithms(model, data, noise, k, betas):
    "In float64, the sum of squares divided by their number."
    bar = (1 - betas.double()).log().cumsum(0).exp()[k].reshape(-1, *[1] * (data.dim() - 1))
    out = model(bar.sqrt() * data + noise * torch.sqrt(1 - bar), k)
    return (
        torch.nn.functional.mse_loss(out, noise.to(out), reduction="none")
        .reshape(len(data), -1)
        .sum(1)
        / data[0].numel()
    )


def in_a_loop(model, data, noise, k, betas):
    "Mixed sample by sample, asked once."
    rows = []
    for d, e, step in zip(data, noise, k):
        bar = torch.prod(1 - betas[: int(step) + 1])
        rows.append(bar**0.5 * d + (1 - bar) ** 0.5 * e)
    out = model(torch.stack(rows), k)
    return torch.stack([(o - e).square().mean() for o, e in zip(out, noise)])


RIGHT = [
    ("diffusion_ancestral_step", other_mean),
    ("diffusion_ancestral_step", by_precisions),
    ("diffusion_ddpm_loss", by_logarithms),
    ("diffusion_ddpm_loss", in_a_loop),
]
