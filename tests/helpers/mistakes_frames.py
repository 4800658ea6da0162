"""Plausible mistakes in the exercises of lesson 13 that train one model for two tasks and mend a
film."""

import torch


def masked(z, counts):
    "1 where a frame is given: (B, 1, T, 1, 1)."
    return (torch.arange(z.shape[2]) < counts[:, None])[:, None, :, None, None].to(z)


def wide(t):
    return t[:, None, None, None, None]


def loss(
    noisy=lambda z, e, t: t * z + (1 - t) * e,
    show=lambda x, z, m: torch.where(m > 0, z, x),
    flag=lambda m, z, k: m,
    target=lambda z, e: z - e,
    error=lambda d: d**2,
    weigh=lambda e, m: (1 - m) * e,
    mean=lambda e, m, k: e.flatten(1).mean(1),
    count=lambda k: k,
    out=lambda v: v,
    time=lambda t, k: t,
):
    "The training loss, with one thing done otherwise."

    def training_loss(model, z, noise, t, y, counts):
        m = masked(z, count(counts))
        x = show(noisy(z, noise, wide(t)), z, m)
        x = torch.cat([x, flag(m, z, counts).expand_as(x[:, :1])], 1)
        v = out(model(x, time(t, counts), y))
        return mean(weigh(error(v - target(z, noise)), m), m, counts)

    return training_loss


def no_mask(model, z, noise, t, y, counts):
    return ((model(wide(t) * z + (1 - wide(t)) * noise, t, y) - z + noise) ** 2).flatten(1).mean(1)


def quiet(model, *args):
    with torch.no_grad():
        return loss()(model, *args)


def shown_as_answer(model, z, noise, t, y, counts):
    "Puts z, not the target, for the answer of a given frame."
    m = masked(z, counts)
    x = m * z + (1 - m) * (wide(t) * z + (1 - wide(t)) * noise)
    v = model(torch.cat([x, m.expand_as(x[:, :1])], 1), t, y)
    return ((m * z + (1 - m) * v - (z - noise)) ** 2).flatten(1).mean(1)


def mask_first(model, z, noise, t, y, counts):
    def turned(x, *rest):
        return model(x.roll(1, 1), *rest)

    return loss()(turned, z, noise, t, y, counts)


LOSS = [
    (no_mask, "the mask as the last channel"),
    (loss(show=lambda x, z, m: x), "the known frames must be too, clean"),
    (loss(flag=lambda m, z, k: 0 * m), "the last channel must say which"),
    (loss(flag=lambda m, z, k: 1 - m), "1 where a frame is known"),
    (loss(noisy=lambda z, e, t: t * e + (1 - t) * z), "the other way"),
    (loss(noisy=lambda z, e, t: z + (1 - t) * e), "must be multiplied with t"),
    (loss(noisy=lambda z, e, t: e), "pure noise"),
    (loss(noisy=lambda z, e, t: z), "nothing to learn"),
    (loss(noisy=lambda z, e, t: t * z + e), "multiplied with 1 − t"),
    (loss(show=lambda x, z, m: x + m * z), "yours adds them"),
    (loss(show=lambda x, z, m: m * z), "yours are zero"),
    (loss(show=lambda x, z, m: torch.where(m > 0, x, z)), "swapped"),
    (loss(count=lambda k: k + 1), "one frame too many is known"),
    (lambda model, *case: loss()(lambda x, t, y: model(x, t, None), *case), "yours hands on None"),
    (lambda model, *case: loss()(lambda x, t, y: model(x, t), *case), "TypeError: model() missing"),
    (loss(count=lambda k: k - 1), "one frame too few is known"),
    (loss(count=lambda k: k.max().expand_as(k)), "a count of its own"),
    (mask_first, "the mask comes last"),
    (loss(weigh=lambda e, m: e), "must not be in the mean"),
    (loss(weigh=lambda e, m: m * e), "the error of the known frames"),
    (loss(mean=lambda e, m, k: e.flatten(1).sum(1)), "the sum over a sample"),
    (loss(mean=lambda e, m, k: e.mean()), "must have the shape"),
    (loss(mean=lambda e, m, k: e.flatten(1).mean(1) / (1 - m).flatten(1).mean(1)), "alone"),
    (loss(target=lambda z, e: e - z), "not noise − z"),
    (loss(target=lambda z, e: z), "compares with the clip"),
    (loss(target=lambda z, e: e), "compares with the noise"),
    (loss(error=torch.abs), "take the square"),
    (loss(out=lambda v: v.detach()), "no gradient passes"),
    (quiet, "no gradient passes"),
    (lambda *args: loss()(*args).detach().numpy(), "no gradient passes"),
    (lambda *args: [float(v.detach()) for v in loss()(*args)], "no gradient passes"),
    (shown_as_answer, "there the error is 0"),
    (lambda *args: 0.5 * loss()(*args), "the model sees the right thing"),
    (loss(time=lambda t, k: wide(t)), "the times of the clips"),
    (loss(time=lambda t, k: 1 - t), "as they are"),
    (loss(time=lambda t, k: 0 * t), "as they are"),
]


def film(
    tail=lambda o, f: 1 + f * (o - 1),
    cut=None,
    known=None,
    caption=lambda captions, i: captions[i],
    join=None,
    first=0,
):
    "A film of clips, with one thing done otherwise."

    def mended(draw, encode, decode, captions, overlap, factor):
        n = tail(overlap, factor)
        z = draw(captions[0], None)
        whole = decode(z)
        for i in range(1, len(captions)):
            given = known(whole, z, encode, overlap, n) if known else encode(whole[:, :, -n:])
            z = draw(caption(captions, i), given)
            clip = decode(z)
            if join:
                whole = join(whole, clip, n)
            else:
                gone = cut(overlap, factor) if cut else n
                whole = torch.cat([whole, clip[:, :, gone:]], 2)
        return whole

    return mended


def moved(whole, z, encode, overlap, n):
    return z[:, :, -overlap:]


FILM = [
    (film(known=moved, cut=lambda o, f: o), "both faults are still there"),
    (film(known=moved), "the right frames are cut off"),
    (film(cut=lambda o, f: o), "the clips begin right"),
    (film(cut=lambda o, f: 0), "shown twice: cut them off"),
    (film(cut=lambda o, f: f * (o - 1)), "cuts off one less"),
    (film(cut=lambda o, f: 2 + f * (o - 1)), "cuts off one more"),
    (film(tail=lambda o, f: f * o), "encode wants 1 + 4 n frames"),
    (film(tail=lambda o, f: 1 + f * o), "draw wants 2 known latent frames"),
    (film(tail=lambda o, f: o), "encode wants 1 + 4 n frames"),
    (film(known=lambda w, z, e, o, n: e(w)[:, :, -o:]), "the right frames are cut off"),
    (film(known=lambda w, z, e, o, n: e(w[:, :, :n])), "not its beginning"),
    (film(known=lambda w, z, e, o, n: None), "no clip is shown the one before"),
    (film(known=lambda w, z, e, o, n: w[:, :, -n:]), "draw wants 2 known latent frames"),
    (film(caption=lambda c, i: c[0]), "a caption of its own"),
    (film(caption=lambda c, i: c[i - 1]), "not those of a clip that continues it"),
    (film(join=lambda w, c, n: torch.cat([w, c[:, :, :-n]], 2)), "not those of a clip"),
    (film(join=lambda w, c, n: c), "frames, not"),
    (film(join=lambda w, c, n: torch.cat([c[:, :, n:], w], 2)), "not those of a clip"),
    (film(tail=lambda o, f: 1 + 4 * (o - 1)), "draw wants 3 known latent frames"),
    (film(tail=lambda o, f: 1 + f), "draw wants 1 known latent frames"),
]
MISTAKES = {"frames_training_loss": LOSS, "frames_mended_film": FILM}


def one_by_one(model, z, noise, t, y, counts):
    "Sample by sample, the given frames written over, the error of the others summed."
    losses = []
    for i, k in enumerate(counts.tolist()):
        x = t[i] * z[i : i + 1] + (1 - t[i]) * noise[i : i + 1]
        x[:, :, :k] = z[i : i + 1, :, :k]
        flag = torch.zeros_like(x[:, :1])
        flag[:, :, :k] = 1
        v = model(torch.cat([x, flag], 1), t[i : i + 1], y[i : i + 1])
        off = (z[i : i + 1] - noise[i : i + 1] - v)[:, :, k:]
        losses.append(off.square().sum() / z[i].numel())
    return torch.stack(losses)


RIGHT = [
    ("frames_training_loss", one_by_one),
    ("frames_mended_film", film(join=lambda w, c, n: torch.cat([w[:, :, :-n], c], 2))),
]
