"""Plausible mistakes in the exercises of lesson 13 that make clips larger, by checker."""

import torch
from einops import rearrange, repeat


def wide(t):
    return t[:, None, None, None, None]


def squares(pattern):
    "Depth to space after an einops pattern; p is the size of a square."
    return lambda z, p: rearrange(z, pattern, y=p, x=p)


def grown(z, p, pick):
    "Each place of the channels that `pick` leaves, p × p times."
    return repeat(pick(z, p), "b c t h w -> b c t (h y) (w x)", y=p, x=p)


def frame_batch(z, p, before=lambda z: z, after=lambda z: z):
    "torch's pixel_shuffle over a batch of frames, with axes moved or not."
    frames = before(z)
    shuffled = torch.pixel_shuffle(frames.reshape(-1, z.shape[1], *z.shape[3:]), p)
    return after(shuffled.reshape(len(z), -1, *shuffled.shape[1:])).reshape(
        len(z), -1, z.shape[2], *shuffled.shape[2:]
    )


SQUARES = [
    (squares("b (c x y) t h w -> b c t (h y) (w x)"), "row and column of a square are swapped"),
    (squares("b (y x c) t h w -> b c t (h y) (w x)"), "takes every C-th channel"),
    (squares("b (x y c) t h w -> b c t (h y) (w x)"), "its column counts up first"),
    (squares("b (c y x) t h w -> b c t (y h) (w x)"), "on top of each other"),
    (squares("b (c y x) t h w -> b c t (h y) (x w)"), "side by side"),
    (squares("b (c y x) t h w -> b c t (y h) (x w)"), "whole pictures together"),
    (squares("b (c y x) t h w -> b c t (w x) (h y)"), "must have the shape"),
    (squares("b (c y x) t h w -> b t c (h y) (w x)"), "must have the shape"),
    (squares("b (c y x) t h w -> b c (t y) h (w x)"), "must have the shape"),
    (lambda z, p: z.reshape(len(z), -1, z.shape[2], p * z.shape[3], p * z.shape[4]), "reshape"),
    (lambda z, p: z, "must have the shape"),
    (lambda z, p: grown(z, p, lambda z, p: z), "must have the shape"),
    (lambda z, p: grown(z, p, lambda z, p: z[:, : z.shape[1] // p**2]), "numbers of its own"),
    (lambda z, p: grown(z, p, lambda z, p: z[:, :: p * p]), "different numbers"),
    (lambda z, p: grown(z, p, lambda z, p: z.unflatten(1, (-1, p * p)).mean(2)), "averaged"),
    (lambda z, p: torch.pixel_shuffle(z, p), "pixel_shuffle expects"),
    (lambda z, p: frame_batch(z, p), "to make a batch of frames"),
    (lambda z, p: frame_batch(z, p, lambda z: z.transpose(1, 2)), "at the end"),
    (lambda z, p: squares("b (c y x) t h w -> b c t (h y) (w x)")(z, 2), "EinopsError"),
    (lambda z, p: depth(z.flip(1), p), "must be channel 0"),
    (lambda z, p: depth(z.flip(2), p), "must be channel 0"),
    (lambda z, p: depth(z, p).flip(3), "must be channel"),
    (lambda z, p: depth(z, p).half(), "too coarse"),
    (lambda z, p: depth(z, p) / p, "must be channel 0"),
    (lambda z, p: depth(z, p)[:, :, :1].expand(-1, -1, z.shape[2], -1, -1), "frame 1"),
    (lambda z, p: depth(z, p).flip(0), "must be channel 0"),
    (lambda z, p: depth(z.transpose(3, 4), p).transpose(3, 4), "are swapped"),
    (lambda z, p: depth(z.roll(1, 1), p), "must be channel 0"),
    (lambda z, p: depth(z, p).int(), "must hold floats"),
]


def depth(z, p):
    return rearrange(z, "b (c y x) t h w -> b c t (h y) (w x)", y=p, x=p)


def upsampling(
    share=lambda draws, top: top * draws,
    shown=None,
    noisy=lambda z, e, t: t * z + (1 - t) * e,
    mix=lambda u, n, a: (1 - a) * u + a * n,
    own=lambda e, n: n,
    after=lambda x, e, n, a: x,
    target=lambda z, e, u, n, a: z,
    parts=lambda x, u, p: [x, u, p],
    time=lambda t: t,
    error=lambda d: d**2,
    mean=lambda e, a: e.flatten(1).mean(1),
    out=lambda v: v,
):
    "The loss of an upsampler, with one thing done otherwise; `shown`: the level that is told."

    def mended_loss(model, z, told, noise, draws, t, max_level):
        e, n = noise.chunk(2, 1)
        a = wide(share(draws, max_level).expand_as(draws))
        b = a if shown is None else wide(shown(draws, max_level).expand_as(draws))
        x = after(noisy(z, e, wide(t)), e, n, a)
        u = mix(told, own(e, n), a)
        plane = b.expand_as(x[:, :1])
        v = out(model(torch.cat(parts(x, u, plane), 1), time(t)))
        return mean(error(v - target(z, e, told, n, a)), a)

    return mended_loss


def no_level(draws, top):
    return 0 * draws


def spoiled(x, e, n, a):
    return (1 - a) * x + a * n


def unnoticed(model, *args):
    with torch.no_grad():
        return upsampling()(model, *args)


def half_taught(model, *args):
    "Detaches the first clip's answer."
    return upsampling(out=lambda v: torch.cat([v[:1].detach(), v[1:]]))(model, *args)


def halves_swapped(model, z, told, noise, *rest):
    return upsampling()(model, z, told, noise.roll(z.shape[1], 1), *rest)


def clip_by_clip(model, z, told, noise, draws, t, max_level):
    "Clip by clip, with a plane of ones times the level."
    losses = []
    for i, channels in enumerate([z.shape[1]] * len(z)):
        a = float(max_level * draws[i])
        x = torch.lerp(noise[i : i + 1, :channels], z[i : i + 1], float(t[i]))
        u = torch.lerp(told[i : i + 1], noise[i : i + 1, channels:], a)
        v = model(torch.cat([x, u, a * torch.ones_like(x[:, :1])], 1), t[i : i + 1])
        losses.append(torch.nn.functional.mse_loss(v, z[i : i + 1]))
    return torch.stack(losses)


UPSAMPLER = [
    (upsampling(lambda d, top: top * d.mean(), mix=lambda u, n, a: u, after=spoiled), "t alone"),
    (upsampling(mix=lambda u, n, a: u, after=spoiled), "noise from t alone"),
    (upsampling(after=spoiled), "noise from t alone"),
    (upsampling(lambda d, top: top * d.mean()), "a share of noise of its own"),
    (upsampling(lambda d, top: top * d[0]), "a share of noise of its own"),
    (upsampling(mix=lambda u, n, a: u), "what is told is clean"),
    (upsampling(own=lambda e, n: e), "which a model can subtract"),
    (upsampling(mix=lambda u, n, a: a * u + (1 - a) * n), "mixed the other way"),
    (upsampling(mix=lambda u, n, a: u + a * n), "multiplied with 1 − a"),
    (upsampling(mix=lambda u, n, a: (1 - a * a).sqrt() * u + a * n), "square roots"),
    (upsampling(mix=lambda u, n, a: (1 - a).sqrt() * u + a.sqrt() * n), "square roots"),
    (upsampling(mix=lambda u, n, a: n), "pure noise"),
    (upsampling(lambda d, top: d), "yours go to 1"),
    (upsampling(lambda d, top: d.clamp(max=top)), "cut off there"),
    (upsampling(lambda d, top: top + 0 * d), "every clip gets max_level"),
    (upsampling(shown=no_level), "the plane of the level: the level is 0"),
    (upsampling(shown=lambda d, top: d), "the plane of the level: the shares go from 0"),
    (upsampling(shown=lambda d, top: 1 - top * d), "1 − level is told"),
    (upsampling(shown=lambda d, top: top * d.mean()), "the plane of the level: every clip has"),
    (upsampling(noisy=lambda z, e, t: t * e + (1 - t) * z), "mixes them the other way"),
    (upsampling(noisy=lambda z, e, t: z), "nothing to learn"),
    (upsampling(noisy=lambda z, e, t: e), "pure noise"),
    (upsampling(noisy=lambda z, e, t: t * z + e), "multiplied with 1 − t"),
    (upsampling(after=lambda x, e, n, a: x - e + n), "the model must see t z"),
    (upsampling(target=lambda z, e, u, n, a: (1 - a) * z + a * n), "the target stays clean"),
    (upsampling(target=lambda z, e, u, n, a: u), "yours is what was told"),
    (upsampling(target=lambda z, e, u, n, a: (1 - a) * u + a * n), "told clip with its noise"),
    (upsampling(target=lambda z, e, u, n, a: z - e), "not a velocity"),
    (upsampling(target=lambda z, e, u, n, a: e), "not the noise"),
    (upsampling(parts=lambda x, u, p: [u, x, p]), "yours: told, latents, level"),
    (upsampling(parts=lambda x, u, p: [p, x, u]), "yours: level, latents, told"),
    (upsampling(parts=lambda x, u, p: [x, u]), "one channel of the level"),
    (upsampling(parts=lambda x, u, p: [x, u, p, p]), "one channel of the level"),
    (upsampling(time=wide), "the times of the clips"),
    (upsampling(time=lambda t: 1 - t), "hand the model `t` as it is"),
    (upsampling(error=torch.abs), "take the square"),
    (upsampling(mean=lambda e, a: e.flatten(1).sum(1)), "the sum over a clip"),
    (upsampling(mean=lambda e, a: e.mean()), "must have the shape"),
    (upsampling(mean=lambda e, a: e.flatten(1).mean(1).sqrt()), "leave the square"),
    (upsampling(mean=lambda e, a: ((1 - a) * e).flatten(1).mean(1)), "does not weigh"),
    (upsampling(out=lambda v: v.detach()), "no gradient passes"),
    (unnoticed, "no gradient passes"),
    (lambda model, z, *rest: (z * 0).flatten(1).mean(1), "the model is never asked"),
    (halves_swapped, "the first half of the channels"),
    (half_taught, "no gradient passes"),
    (upsampling(lambda d, top: top * d**2), "a = max_level · draws"),
    (upsampling(lambda d, top: 0.3 * d), "max_level 0.8: what is told"),
    (upsampling(mix=lambda u, n, a: (1 - a) * u + a * torch.randn_like(n)), "what is told"),
    (upsampling(mean=lambda e, a: e[:, :1].flatten(1).mean(1)), "the losses are"),
    (lambda *case: clip_by_clip(*case[:4], case[4] * 0 + case[4].mean(), *case[5:]), "its own"),
]
MISTAKES = {"upsampling_depth_to_space": SQUARES, "upsampling_loss": UPSAMPLER}


def written_in(z, p):
    "One strided assignment for each place of a square."
    large = z.new_empty(len(z), z.shape[1] // p**2, z.shape[2], p * z.shape[3], p * z.shape[4])
    for k in range(p * p):
        large[..., k // p :: p, k % p :: p] = z[:, k :: p * p]
    return large


RIGHT = [
    ("upsampling_depth_to_space", written_in),
    (
        "upsampling_depth_to_space",
        lambda z, p: torch.pixel_shuffle(z.transpose(1, 2), p).transpose(1, 2),
    ),
    ("upsampling_loss", clip_by_clip),
    ("upsampling_loss", upsampling(mix=lambda u, n, a: u + a * (n - u))),
]
