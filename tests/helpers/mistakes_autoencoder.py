"Plausible mistakes in the exercises of lesson 01: the causal convolution and the mended loss."

import torch
import torch.nn.functional as F


def repeat(x, k):
    return x[:, :, :1].expand(-1, -1, k - 1, -1, -1)


def newest(both, k):
    return both[:, :, both.shape[2] - (k - 1) :]


def conv(
    start=repeat, keep=newest, kernel=lambda w: w, join=lambda past, x: torch.cat([past, x], 2)
):
    "A causal convolution; each option is a place to go wrong."

    def answer(x, weight, past):
        k, h, w = weight.shape[2:]
        both = join(start(x, k) if past is None else past, x)
        y = F.conv3d(both, kernel(weight), padding=(0, h // 2, w // 2))
        return y, keep(both, k)

    return answer


def padded(first, last, mode="constant", space="constant"):
    "A convolution without memory, padded in time by so many times k − 1."

    def answer(x, weight, past):
        k, h, w = weight.shape[2:]
        x = F.pad(x, (w // 2, w // 2, h // 2, h // 2, 0, 0), space)
        x = F.pad(x, (0, 0, 0, 0, round(first * (k - 1)), round(last * (k - 1))), mode)
        return F.conv3d(x, weight), x

    return answer


def frame_by_frame(x, weight, past):
    "Each frame from a window of its own."
    k, h, w = weight.shape[2:]
    frames = [x[:, :, 0]] * (k - 1) if past is None else list(past.unbind(2))
    out = []
    for now in x.unbind(2):
        frames.append(now)
        window = torch.stack(frames[len(frames) - k :], 2)
        out.append(F.conv3d(window, weight, padding=(0, h // 2, w // 2))[:, :, 0])
    kept = frames[len(frames) - k + 1 :]
    return torch.stack(out, 2), torch.stack(kept, 2) if kept else x[:, :, :0]


def forgetful(x, weight, past):
    return conv()(x, weight, None)


def only_of_x(x, weight, past):
    y, _ = conv()(x, weight, past)
    return y, x[:, :, -(weight.shape[2] - 1) :]


def deviation(v):
    return (v / 2).exp()


def per_frame(v):
    return v.flatten(1).sum(1).mean()


def rate(m, v):
    return 0.5 * (m**2 + v.exp() - 1 - v)


def loss(
    spread=deviation,
    error=lambda d, s: per_frame(d.square()) / (2 * s**2),
    cost=lambda m, v: per_frame(rate(m, v)),
    z=lambda mean, noise: mean + noise,
):
    "Minus the ELBO; each option is a place to go wrong."

    def answer(x, encode, decode, noise, sigma):
        mean, logvar = encode(x)
        y = decode(z(mean, spread(logvar) * noise))
        return error(x - y, sigma) + cost(mean, logvar)

    return answer


def by_distributions(x, encode, decode, noise, sigma):
    "The same with torch.distributions, in their constants too, taken off again."
    mean, logvar = encode(x)
    q = torch.distributions.Normal(mean, logvar.exp().sqrt())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    y = decode(q.loc + q.scale * noise)
    likelihood = torch.distributions.Normal(y, torch.full_like(y, sigma))
    constant = likelihood.log_prob(y)
    nats = (constant - likelihood.log_prob(x)).sum((1, 2, 3))
    return (nats + torch.distributions.kl_divergence(q, prior).sum((1, 2, 3))).mean()


MISTAKES = {
    "autoencoder_causal_conv": [
        (conv(start=lambda x, k: 0 * repeat(x, k)), "padded with zeros; its first frame"),
        (padded(0.5, 0.5), "what PyTorch does by itself"),
        (padded(0.5, 0.5, "replicate"), "half of the padding stands after"),
        (padded(0, 1, "replicate"), "sees the future instead"),
        (padded(0, 1), "sees the future instead of the past, padded with zeros"),
        (padded(1, 0, "replicate", "replicate"), "repeat the edge"),
        (padded(1, 0), "padded with zeros"),
        (padded(0, 0), "must have the shape"),
        (padded(1, 1), "must have the shape"),
        (conv(kernel=lambda w: w.flip(2)), "runs backwards: its last slice"),
        (conv(kernel=lambda w: w.transpose(3, 4)), "y is not the convolution"),
        (forgetful, "each piece starts anew"),
        (only_of_x, "must have the shape"),
        (conv(keep=lambda both, k: both[:, :, : k - 1]), "is what came in"),
        (conv(keep=lambda both, k: both[:, :, -k:-1]), "lacks the newest frame"),
        (conv(keep=lambda both, k: newest(both, k).flip(2)), "handed on runs backwards"),
        (conv(keep=lambda both, k: both), "past must have the shape"),
        (conv(keep=lambda both, k: newest(both, k + 1)), "past must have the shape"),
        (conv(join=lambda past, x: torch.cat([x, past], 2)), "reached an earlier one"),
        (conv(join=lambda past, x: torch.cat([past.flip(2), x], 2)), "past that is given runs"),
        (
            conv(keep=lambda both, k: both[:, :, -(k - 1) :]),
            "past must have the shape (3, 3, 0, 5, 7)",
        ),
        (lambda x, w, past: (conv()(x, w, past)[0], None), "past is None"),
        (lambda x, w, past: (conv()(x, w, past)[0] + 0.1, past), "y is not the convolution"),
        (
            lambda x, w, past: conv()(x, w, past if past is None else past[:1].expand_as(past)),
            "continue",
        ),
        (lambda x, w, past: conv()(x, w, past)[0], "2 things, (y, past)"),
        (lambda x, w, past: conv()(x, w, past)[::-1], "y must have the shape"),
    ],
    "autoencoder_elbo": [
        (loss(torch.exp, lambda d, s: d.square().mean() / (2 * s**2)), "not by the deviation; and"),
        (loss(error=lambda d, s: d.square().mean() / (2 * s**2)), "far too little"),
        (loss(torch.exp), "scaled by the variance"),
        (loss(lambda v: v), "by the logarithm of the variance"),
        (loss(lambda v: 1 + 0 * v), "not scaled"),
        (loss(lambda v: 0 * v), "there is no noise"),
        (loss(lambda v: v.exp() ** 2), "square of the variance"),
        (loss(error=lambda d, s: d.square().sum() / (2 * s**2)), "over the batch too"),
        (loss(error=lambda d, s: per_frame(d.square()) / s**2), "the 2 of 2σ² is missing"),
        (loss(error=lambda d, s: per_frame(d.square()) / (2 * s)), "divided by 2σ, not"),
        (loss(error=lambda d, s: per_frame(d.square())), "not divided by 2σ²"),
        (loss(error=lambda d, s: per_frame(d.abs()) / (2 * s**2)), "not squared"),
        (loss(error=lambda d, s: -per_frame(d.square()) / (2 * s**2)), "error is subtracted"),
        (loss(cost=lambda m, v: -per_frame(rate(m, v))), "must cost more"),
        (loss(cost=lambda m, v: rate(m, v).mean()), "averaged over the latents"),
        (loss(cost=lambda m, v: rate(m, v).sum()), "rate is summed over the batch"),
        (loss(cost=lambda m, v: 2 * per_frame(rate(m, v))), "lacks its ½"),
        (loss(cost=lambda m, v: 0), "there is no rate"),
        (loss(cost=lambda m, v: per_frame(rate(m, 2 * v))), "not the error over 2σ²"),
        (loss(z=lambda m, n: (m + n).detach()), "encoder"),
        (loss(z=lambda m, n: m.detach() + n), "only a part of the gradient reaches the encoder"),
        (lambda *a: loss()(*a).detach(), "no gradient reaches the networks"),
        (lambda x, e, d, n, s: loss()(x, e, d, torch.randn_like(n), s), "two calls"),
        (lambda x, e, d, n, s: loss()(x, e, d, n, s) * 2 * s**2, "the rate is multiplied by 2σ²"),
        (lambda x, e, d, n, s: loss()(x, e, lambda z: d(0 * z + z.mean(0)), n, s), "not the error"),
        (loss(cost=lambda m, v: per_frame(rate(m, v) + v / 4)), "log σ for log σ²"),
        (loss(cost=lambda m, v: per_frame(rate(m, v)).detach()), "only a part of the gradient"),
        (lambda x, e, d, n, s: loss()(x, e, lambda z: d(z).detach(), n, s), "reaches the decoder"),
        (lambda *a: loss()(*a).item(), "as a tensor, from which gradients flow"),
        (lambda *a: -loss()(*a), "error is subtracted"),
        (loss(error=lambda d, s: d.square().flatten(1).sum(1) / (2 * s**2)), "have the shape ()"),
    ],
}
RIGHT = [
    ("autoencoder_causal_conv", frame_by_frame),
    ("autoencoder_elbo", by_distributions),
]
