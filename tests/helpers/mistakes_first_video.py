"""Plausible mistakes in the exercises of lesson 10, and right answers of another kind."""

import numpy as np
import torch


def walked(
    mix=lambda w, f, g: f + g * (w - f),
    slope=lambda d, x, a, b: (d - x) / (1 - a),
    at=lambda a, b: a,
    times=lambda t: t,
    end=lambda decode, z, mean, std: decode(z * std + mean).clamp(-1, 1),
    again=False,
):
    "The sampler, with one part of it exchanged."

    def to_clips(model, decode, noise, told, null, given, guidance, mean, std):
        x = noise
        steps = times(given)
        for a, b in zip(steps[:-1], steps[1:]):
            t = torch.full((len(x),), at(a, b))
            with_words = model(x, t, told)
            data = mix(with_words, model(x, t, torch.full_like(told, null)), guidance)
            x = (noise if again else x) + (b - a) * slope(data, x, a, b)
        return end(decode, x, mean, std)

    return to_clips


def both_at_once(model, decode, noise, told, null, times, guidance, mean, std):
    "One call of the model per step, and the state as a line between prediction and noise."
    x = noise
    for k in range(len(times) - 1):
        t = noise.new_full((2 * len(x),), times[k])
        words = torch.cat([told, 0 * told + null])
        told_data, free = model(torch.cat([x, x]), t, words).chunk(2)
        data = guidance * told_data + (1 - guidance) * free
        left = (1 - times[k + 1]) / (1 - times[k])
        x = left * x + (1 - left) * data
    return torch.clip(decode(mean + std * x), -1, 1)


def as_floats_of(t):
    "A sampler that hands the time over as a number."

    def to_clips(model, decode, noise, told, null, times, guidance, mean, std):
        return decode(model(noise, times[0], told))

    return to_clips


def one_word(model, decode, noise, told, null, times, guidance, mean, std):
    "A sampler whose 'no words' is one row, whatever the batch."
    t = torch.zeros(len(noise))
    return decode(model(noise, t, torch.full((1, told.shape[1] + 1), null)))


def stretch(u, shift):
    return u / (u + shift * (1 - u))


def shown(
    time=stretch,
    line=lambda t, u, data, noise: t * data + (1 - t) * noise,
    hide=lambda coin, drop: coin < drop,
):
    "The training example, with one part of it exchanged."

    def answer(data, told, noise, u, coin, null, shift, drop):
        t = time(u, shift)
        x = line(t[:, None, None], u[:, None, None], data, noise)
        return x, t, torch.where(hide(coin, drop)[:, None], null, told)

    return answer


def in_a_loop(data, told, noise, u, coin, null, shift, drop):
    "The training example, clip by clip."
    rows = []
    for i in range(len(u)):
        t = 1 / (1 + shift * (1 / u[i] - 1))
        words = torch.full_like(told[i], null) if coin[i] < drop else told[i]
        rows.append((torch.lerp(noise[i], data[i], t), t, words))
    return tuple(map(torch.stack, zip(*rows)))


def changed(**entries):
    "A record of an experiment, with these entries instead."
    record = dict(
        base=dict(shift=6.0, width=128, steps=1000),
        changed=dict(shift=2.0, width=128, steps=1000),
        data=["1200 balls"] * 2,
        seeds=[[0, 1], [0, 1]],
        cpu_seconds=[[25.0, 25.5], [25.1, 24.9]],
        scores=[[0.60, 0.62], [0.66, 0.68]],
        lower_is_better=True,
        verdict="worse",
    )
    return record | entries


def without(name):
    return {key: value for key, value in changed().items() if key != name}


MISTAKES = {
    "first_video_sampler": [
        (walked(slope=lambda d, x, a, b: d), "the model predicts data"),
        (walked(slope=lambda d, x, a, b: d - x), "in the time that is left: divide"),
        (walked(slope=lambda d, x, a, b: (x - d) / (1 - a)), "away from the data"),
        (walked(slope=lambda d, x, a, b: (d - x) / (1 - b)), "must be finite"),
        (walked(slope=lambda d, x, a, b: (d - x) / a if a else d - x), "off by up to"),
        (walked(slope=lambda d, x, a, b: (d - x) / max(1 - a, 0.05)), "off by up to"),
        (walked(at=lambda a, b: b), "beginning of each step"),
        (walked(mix=lambda w, f, g: w), "guidance is missing"),
        (walked(mix=lambda w, f, g: f), "never heard"),
        (walked(mix=lambda w, f, g: w + g * (w - f)), "1 the one with"),
        (walked(mix=lambda w, f, g: w + g * (f - w)), "away from the words"),
        (walked(mix=lambda w, f, g: f + g * w), "add up to 1"),
        (walked(times=lambda t: torch.linspace(0, 1, len(t)).tolist()), "not evenly spaced"),
        (walked(times=lambda t: t[:-1]), "the last step, to 1"),
        (walked(times=lambda t: t[1:]), "the first step"),
        (walked(end=lambda d, z, m, s: d(z).clamp(-1, 1)), "mean and std back"),
        (walked(end=lambda d, z, m, s: d((z + m) * s).clamp(-1, 1)), "in the other order"),
        (walked(end=lambda d, z, m, s: d((z - m) / s).clamp(-1, 1)), "normalizes once more"),
        (walked(end=lambda d, z, m, s: d(z * m + s).clamp(-1, 1)), "are swapped"),
        (walked(end=lambda d, z, m, s: d(z * s + m)), "cut to [-1, 1]"),
        (walked(end=lambda d, z, m, s: d((z * s + m).clamp(-1, 1))), "not the latents"),
        (walked(end=lambda d, z, m, s: z * s + m), "must have the shape"),
        (walked(again=True), "off by up to"),
        (as_floats_of(0), "one time per clip of x"),
        (one_word, "a row of words for each clip"),
    ],
    "first_video_example": [
        (shown(time=lambda u, s: u / (u + (1 - u) / s)), "still moved towards the data"),
        (shown(time=lambda u, s: u), "not shifted at all"),
        (shown(time=lambda u, s: 1 - stretch(u, s)), "those are 1 − t"),
        (shown(time=lambda u, s: u / s), "the denominator is"),
        (shown(time=lambda u, s: u / (s * (u + 1 - u))), "the denominator is"),
        (shown(time=lambda u, s: stretch(u, 6.0)), "with shift 3 and drop 0.4: u ="),
        (shown(line=lambda t, u, d, n: u * d + (1 - u) * n), "before the shift"),
        (shown(line=lambda t, u, d, n: (1 - t) * d + t * n), "runs the other way"),
        (shown(line=lambda t, u, d, n: d + (1 - t) * n), "full weight"),
        (shown(line=lambda t, u, d, n: t * d + (1 - t**2).sqrt() * n), "the squares"),
        (shown(line=lambda t, u, d, n: t.mean() * d + (1 - t.mean()) * n), "its own clip"),
        (shown(hide=lambda c, p: c > p), "still read the wrong way round"),
        (shown(hide=lambda c, p: c < 1 - p), "not of 0.9"),
        (shown(hide=lambda c, p: c < 2), "all words are hidden"),
        (shown(hide=lambda c, p: c < 0), "no words are hidden"),
        (shown(hide=lambda c, p: c < 0.1), "clips have no words left"),
        (lambda *a: shown()(*a)[:2], "3 things"),
        (lambda *a: shown()(*a)[::-1], "x must hold floats"),
    ],
    "first_video_experiment": [
        (changed(seeds=[[0], [0]], cpu_seconds=[[25.0], [25.0]]), "one seed shows no noise"),
        (changed(seeds=[[0, 0], [0, 0]]), "two different ones"),
        (changed(seeds=[[0, 1], [2, 3]]), "both need the same"),
        (changed(changed=dict(shift=2.0, width=64)), "2 things were changed (shift, width)"),
        (changed(changed=dict(shift=6.0, width=128)), "what was changed"),
        (changed(changed=dict(shift=2.0)), "list the same settings"),
        (changed(base=6.0), "must be dicts of settings"),
        (changed(data=["1200 balls", "2400 balls"]), "the data must be the same"),
        (changed(data="balls"), "data must be a pair"),
        (changed(cpu_seconds=[[25.0, 25.0], [50.0, 50.0]]), "are not the same budget"),
        (changed(cpu_seconds=[[99.0, 99.0], [99.0, 99.0]]), "the budget is five minutes"),
        (changed(cpu_seconds=[50.0, 50.0]), "two lists, one number per run"),
        (changed(cpu_seconds=[[0, 0], [0, 0]]), "some CPU seconds"),
        (changed(scores=[[0.6], [0.7]]), "for each of 2 seeds"),
        (changed(scores=[[0.6, 0.6], [0.7, 0.7]]), "was the seed handed on"),
        (changed(scores=[[0.6, 0.7], [0.6, 0.7]]), "was the change handed on"),
        (changed(scores=[[0.6, float("nan")], [0.6, 0.7]]), "not finite"),
        (changed(verdict="better"), "the wrong way round"),
        (changed(lower_is_better=False), "the wrong way round"),
        (changed(verdict="unclear"), "more than the seeds explain"),
        (changed(scores=[[0.6, 0.7], [0.66, 0.69]]), "could turn that round"),
        (changed(verdict="yes"), "verdict must be one of"),
        (changed(lower_is_better="yes"), "True or False"),
        (without("seeds"), "the record has no seeds"),
        ([0.6, 0.7], "hand over the dict"),
    ],
}

RIGHT = [
    ("first_video_sampler", both_at_once),
    ("first_video_sampler", walked(slope=lambda d, x, a, b: (d - x) / (1 - a))),
    ("first_video_example", in_a_loop),
    ("first_video_experiment", changed(seeds=[(1, 0), [0, 1]])),
    ("first_video_experiment", changed(scores=[[0.6, 0.7], [0.66, 0.69]], verdict="unclear")),
    ("first_video_experiment", changed(lower_is_better=False, verdict="better")),
    ("first_video_experiment", changed(scores=torch.tensor([[0.60, 0.62], [0.66, 0.68]]))),
    ("first_video_experiment", changed(lower_is_better=np.bool_(True))),
]
