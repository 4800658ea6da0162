"""Plausible mistakes in the exercises of lesson 07, by checker: a wrong answer, and words of the
hint that it must get."""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat


def norm(x, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def steered(x, c, when, modulation, order=(0, 1, 2)):
    "What attention is given (B, T · S, D), and the gate."
    parts = modulation(c)[:, None].chunk(3, -1)
    shift, scale, gate = (parts[i] for i in order)
    marks = repeat(when, "t d -> (t s) d", s=x.shape[1] // len(when))
    return norm(x) * (1 + scale) + shift + marks, gate


def fold(h, frames, attention):
    rows = rearrange(h, "b (t s) d -> (b s) t d", t=frames)
    return rearrange(attention(rows), "(b s) t d -> b (t s) d", b=len(h))


def block(attend=fold, end=lambda x, h, said, gate, marks: x + gate * said, order=(0, 1, 2)):
    "A block that folds with `attend` and leaves with `end`."

    def answer(x, c, when, attention, modulation):
        h, gate = steered(x, c, when, modulation, order)
        marks = when.repeat_interleave(x.shape[1] // len(when), 0)
        return end(x, h, attend(h, len(when), attention), gate, marks)

    return answer


def given(make):
    "A block whose attention is given make(x, shift, scale, marks)."

    def answer(x, c, when, attention, modulation):
        shift, scale, gate = modulation(c)[:, None].chunk(3, -1)
        marks = when.repeat_interleave(x.shape[1] // len(when), 0)
        return x + gate * fold(make(x, shift, scale, marks), len(when), attention)

    return answer


def refolded(into, back):
    "A fold of these two patterns; either may be a view."

    def attend(h, frames, attention):
        b, n, d = h.shape
        sizes = dict(t=frames, s=n // frames)
        if into == "view":
            return attention(h.reshape(b * (n // frames), frames, d)).reshape(h.shape)
        return rearrange(attention(rearrange(h, into, **sizes)), back, b=b, **sizes)

    return attend


def repeated(x, c, when, attention, modulation, each=False):
    "Steers the rows after the fold, with the parts of other clips."
    b = len(x)
    places = x.shape[1] // len(when)
    c = c.repeat_interleave(places, 0) if each else c.repeat(places, 1)
    rows = rearrange(x, "b (t s) d -> (b s) t d", t=len(when))
    shift, scale, gate = modulation(c)[:, None].chunk(3, -1)
    rows = rows + gate * attention(norm(rows) * (1 + scale) + shift + when)
    return rearrange(rows, "(b s) t d -> b (t s) d", b=b)


def token_wise(x, c, when, attention, modulation):
    "The parts of a clip without an axis for its tokens."
    shift, scale, gate = modulation(c).chunk(3, -1)
    marks = when.repeat_interleave(x.shape[1] // len(when), 0)
    h = norm(x) * (1 + scale) + shift + marks
    return x + gate * fold(h, len(when), attention)


def place_by_place(x, c, when, attention, modulation):
    "Right, in a loop over places."
    h, gate = steered(x, c, when, modulation)
    out = torch.empty_like(x)
    places = x.shape[1] // len(when)
    for s in range(places):
        out[:, s::places] = x[:, s::places] + gate * attention(h[:, s::places])
    return out


def transposed(x, c, when, attention, modulation):
    "Right, with view and transpose, and a norm of its own."
    b, n, d = x.shape
    t = len(when)
    shift, scale, gate = modulation(c).view(b, 3, 1, 1, d).unbind(1)
    h = x.view(b, t, n // t, d)
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    h = (h * (1 + scale) + shift + when[None, :, None]).transpose(1, 2)
    return x + (gate * attention(h)).transpose(1, 2).reshape(b, n, d)


def rope(
    x,
    places,
    layout="neighbors",
    spread="neighbors",
    base=100.0,
    sign=-1,
    power=4,
    axes=(0, 1, 2),
    way=1,
):
    "Rotary positions; the two layouts of pairs must agree."
    parts = []
    for axis, part in zip(axes, x.chunk(3, -1)):
        angle = way * places[:, axis, None].to(x) * base ** -(torch.arange(4).to(x) / power)
        if spread == "neighbors":
            angle = angle.repeat_interleave(2, -1)
        else:
            angle = torch.cat([angle, angle], -1)
        if layout == "neighbors":
            even, odd = part[..., 0::2], part[..., 1::2]
            other = torch.stack([sign * odd, even], -1).flatten(-2)
        else:
            a, b = part.chunk(2, -1)
            other = torch.cat([sign * b, a], -1)
        parts.append(part * angle.cos() + other * angle.sin())
    return torch.cat(parts, -1)


def complex_rope(x, places):
    "Right, with complex numbers."
    angle = (places[..., None].to(x) * 100.0 ** -(torch.arange(4).to(x) / 4)).flatten(1)
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], 12, 2).contiguous())
    return torch.view_as_real(z * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


MISTAKES = {
    "temporal_block": [
        (block(refolded("view", None)), "follow each other"),
        (block(refolded("b (t s) d -> (b t) s d", "(b t) s d -> b (t s) d")), "within each frame"),
        (block(lambda h, t, attention: attention(h)), "all tokens of the clip"),
        (block(refolded("b (s t) d -> (b s) t d", "(b s) t d -> b (s t) d")), "follow each other"),
        (
            block(refolded("b (t s) d -> (b s) t d", "(b s) t d -> b (s t) d")),
            "unfold in the order",
        ),
        (block(refolded("b (t s) d -> (b s) t d", "(s b) t d -> b (t s) d")), "clips and places"),
        (block(refolded("b (t s) d -> (t s) b d", "(t s) b d -> b (t s) d")), "over the clips"),
        (block(end=lambda x, h, said, gate, m: x + said), "the gate is missing"),
        (block(end=lambda x, h, said, gate, m: gate * said), "x itself is lost"),
        (block(end=lambda x, h, said, gate, m: gate * (x + said)), "not x as well"),
        (block(end=lambda x, h, said, gate, m: h + gate * said), "adds to x itself"),
        (block(end=lambda x, h, said, gate, m: x + m + gate * said), "must not stay in x"),
        (block(order=(1, 0, 2)), "shift and scale are exchanged"),
        (block(order=(1, 2, 0)), "shift, scale and gate, in this order"),
        (given(lambda x, b, s, m: norm(x) * (1 + s) + b), "marks of the moments are missing"),
        (given(lambda x, b, s, m: norm(x + m) * (1 + s) + b), "added after the norm"),
        (given(lambda x, b, s, m: (norm(x) + m) * (1 + s) + b), "after the scale and the shift"),
        (given(lambda x, b, s, m: x * (1 + s) + b + m), "the norm is missing"),
        (given(lambda x, b, s, m: norm(x) * s + b + m), "a scale of 0"),
        (given(lambda x, b, s, m: norm(x, 1e-5) * (1 + s) + b + m), "eps is 10⁻⁶"),
        (given(lambda x, b, s, m: norm(x * (1 + s) + b) + m), "first the norm"),
        (repeated, "steered by its own parts"),
        (token_wise, "axis of length 1"),
        (lambda x, c, w, a, mod: block()(x, F.silu(c), w, a, mod), "SiLU inside"),
        (lambda x, c, w, a, mod: block()(x, c, w.detach(), a, mod), "the gradient of when"),
        (lambda x, c, w, a, mod: x, "this is not x + gate"),
        (lambda x, c, w, a, mod: x.flip(0), "this is not x + gate"),
    ],
    "temporal_rope_axes": [
        (lambda x, p: rope(x, p, spread="halves"), "changes no length"),
        (lambda x, p: rope(x, p, layout="halves"), "changes no length"),
        (lambda x, p: rope(x, p, sign=1), "changes no length"),
        (lambda x, p: x, "and yours does not"),
        (lambda x, p: rope(x, p, axes=(2, 1, 0)), "must turn channels 0 … 7"),
        (lambda x, p: rope(x, p, axes=(0, 2, 1)), "must turn channels 8 … 15"),
        (lambda x, p: rope(x, p, axes=(0, 0, 0)), "must leave all others"),
        (lambda x, p: rope(x, p.sum(1, keepdim=True).expand(-1, 3)), "must leave all others"),
        (lambda x, p: rope(x, p, base=10000.0), "the cosines must add up"),
        (lambda x, p: rope(x, p, power=8), "the cosines must add up"),
        (lambda x, p: rope(x, 2 * p), "the cosines must add up"),
        (lambda x, p: rope(x, p + 1), "nothing turns"),
        (lambda x, p: rope(x, p.long()), "the cosines must add up"),
        (lambda x, p: rope(x, p[:1].expand(len(p), -1)), "is turned by places[i]"),
        (lambda x, p: rope(x, p).flip(-1), "nothing turns"),
    ],
}

RIGHT = [
    ("temporal_block", place_by_place),
    ("temporal_block", transposed),
    ("temporal_block", lambda *a: repeated(*a, each=True)),
    ("temporal_rope_axes", lambda x, p: rope(x, p, layout="halves", spread="halves")),
    ("temporal_rope_axes", lambda x, p: rope(x, p, way=-1)),
    ("temporal_rope_axes", complex_rope),
]
