"""Models that know the answer, and what the tests of objectives and samplers share."""

import torch

from minisora.core.noise import indexed_noise
from minisora.interpolants import Interpolant


SHAPE = (4, 2, 6, 6)
PATHS = ("linear", "gvp", "vp")
PREDICTIONS = ("velocity", "score", "noise", "data")
CENTERS = torch.tensor([[1.5, 0.0], [-0.5, 1.0], [-0.5, -1.0]])
SPREAD = 0.3


def close(a, b, tol=1e-5):
    "Relative error of the whole tensor."
    error = ((a - b).norm() / b.norm()).item()
    assert error <= tol, f"relative error {error:.2e}"


def normal(seed, n=3, shape=SHAPE):
    return indexed_noise(seed, 0, range(n), shape)[0]


def ab(o, t):
    "alpha and sigma at t (B,), each (B, 1, 1, 1, 1), float32."
    return (c.float().view(-1, 1, 1, 1, 1) for c in o.coefficients(t)[:2])


def linear_model(channels=4, out=4):
    "A fixed 'network' that depends on x, t and y, with `out` channels."
    mix = indexed_noise(99, 0, [0], (out, channels))[0][0] / channels

    def model(x, t, y=None):
        h = torch.einsum("oc,bcthw->bothw", mix.to(x), x) * (1.5 - t.to(x).view(-1, 1, 1, 1, 1))
        return torch.tanh(h + (0 if y is None else 0.1 * y.view(-1, 1, 1, 1, 1)))

    return model


def last(states):
    for _, x, _ in states:
        pass
    return x


def mixture(objective):
    """The perfect model of three Gaussians in the plane, in the objective's prediction; x (B, 2,
    …): each place is a point."""

    def model(x, t, y=None):
        a, s = (c.to(x).view(-1, 1, 1) for c in objective.coefficients(t)[:2])
        z = x.flatten(2).transpose(1, 2)  # (B, n, 2)
        off = z[:, :, None] - a[..., None] * CENTERS  # (B, n, 3, 2)
        var = a**2 * SPREAD**2 + s**2
        w = (-(off**2).sum(-1) / (2 * var)).softmax(-1)[..., None]  # (B, n, 3, 1)
        data = (
            (w * (CENTERS + (a * SPREAD**2 / var)[..., None] * off))
            .sum(2)
            .transpose(1, 2)
            .reshape(x.shape)
        )
        noise = (w * (s / var)[..., None] * off).sum(2).transpose(1, 2).reshape(x.shape)
        if isinstance(objective, Interpolant):
            return objective.target(data, noise, t)
        return noise

    return model


def check_mixture(x, tol=0.08):
    assert x.isfinite().all()
    z = x.transpose(0, 1).flatten(1).T
    cov = torch.cov(CENTERS.T, correction=0) + SPREAD**2 * torch.eye(2)
    assert (z.mean(0) - CENTERS.mean(0)).abs().max() < tol, z.mean(0)
    assert (torch.cov(z.T) - cov).abs().max() < tol, torch.cov(z.T)
    near = torch.cdist(z, CENTERS).argmin(1).bincount(minlength=3) / len(z)
    assert (near - 1 / 3).abs().max() < tol, near


def crowd(seed=0, n=3000):
    return indexed_noise(seed, 0, [0], (2, 1, 1, n))[0]


class Net(torch.nn.Module):
    "A model with a null id that counts its calls and remembers whether it was in training."

    null_id = 3
    latent_shape = (4, 2, 3, 3)

    def __init__(self, channels=4):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.3))
        self.calls = []
        self.channels = channels

    def forward(self, x, t, y=None):
        self.calls.append((len(x), self.training))
        shift = 0 if y is None else (y.float().view(len(x), -1).mean(1) / 5).view(-1, 1, 1, 1, 1)
        out = torch.sin(self.scale * x + shift + t.view(-1, 1, 1, 1, 1))
        return torch.cat([out, 2 * out], 1)[:, : self.channels]
