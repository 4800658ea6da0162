"""Plausible mistakes in the exercises of lesson 03, by checker: a wrong answer, and words of the
hint that it must get."""

import torch
import torch.nn.functional as F
from einops import rearrange

from minisora.models.positions import apply_rope, rope_cos_sin


def turned(q, place, axis=-1):
    return apply_rope(q, rope_cos_sin(place, q.shape[axis]))


def norm(x, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def outside(x):
    "Normed, with eps added to the deviation."
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, correction=0, keepdim=True) + 1e-6)


def half(x, f, shift, scale, gate):
    return x + gate * f(norm(x) * (1 + scale) + shift)


def block(branch=half, order=range(6), axis=True, change=lambda six: six):
    "A block whose halves are `branch`, with its six parts in this order."

    def answer(x, c, attention, mlp, modulation):
        six = modulation(c)
        six = change(six[:, None] if axis else six).chunk(6, -1)
        six = [six[i] for i in order]
        return branch(branch(x, attention, *six[:3]), mlp, *six[3:])

    return answer


def parallel(x, c, attention, mlp, modulation):
    b1, s1, g1, b2, s2, g2 = modulation(c)[:, None].chunk(6, -1)
    return x + g1 * attention(norm(x) * (1 + s1) + b1) + g2 * mlp(norm(x) * (1 + s2) + b2)


def forgets(x, c, attention, mlp, modulation):
    b1, s1, g1, b2, s2, g2 = modulation(c)[:, None].chunk(6, -1)
    h = x + g1 * attention(norm(x) * (1 + s1) + b1)
    return x + g2 * mlp(norm(h) * (1 + s2) + b2)


def normed_once(x, c, attention, mlp, modulation):
    b1, s1, g1, b2, s2, g2 = modulation(c)[:, None].chunk(6, -1)
    h = norm(x)
    x = x + g1 * attention(h * (1 + s1) + b1)
    return x + g2 * mlp(h * (1 + s2) + b2)


def in_place(x, c, attention, mlp, modulation):
    "Right in its numbers, but writes over what the norm needs in the backward pass."
    b1, s1, g1, b2, s2, g2 = torch.tensor_split(modulation(c).unsqueeze(1), 6, dim=2)
    x = x.clone()
    x += g1 * attention(norm(x, 1e-5).mul(s1 + 1).add(b1))
    x += g2 * mlp(torch.addcmul(norm(x, 1e-5) + b2, norm(x, 1e-5), s2))
    return x


def by_hand(x, c, attention, mlp, modulation):
    "Right, token by token."
    six = rearrange(modulation(c), "b (six d) -> six b 1 d", six=6)
    for f, (shift, scale, gate) in zip((attention, mlp), (six[:3], six[3:])):
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        x = x + gate * f((x - mean) * (variance + 1e-6).rsqrt() * (1 + scale) + shift)
    return x


def heads_of(x, heads, cut="b n (heads d) -> b heads n d"):
    return rearrange(x, cut, heads=heads)


def attention(
    q, k, v, heads, into=heads_of, back="b heads n d -> b n (heads d)", scale=0.5, axis=-1
):
    shape = q.shape
    q, k, v = (into(x, heads) for x in (q, k, v))
    w = torch.softmax(q @ k.mT / q.shape[-1] ** scale, axis)
    out = w @ v
    return out.reshape(shape) if back is None else rearrange(out, back)


def sliced(x, heads):
    return x.reshape(len(x), heads, x.shape[1], -1)


def fused(q, k, v, heads):
    "Right, by PyTorch's own attention."
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def by_einsum(q, k, v, heads):
    "Right, without moving an axis."
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    w = torch.einsum("bihd,bjhd->bhij", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", w, v).flatten(2)


def head_by_head(q, k, v, heads):
    "Right, in a loop."
    out = []
    for a, b, c in zip(*(x.chunk(heads, -1) for x in (q, k, v))):
        out.append(torch.softmax(a @ b.transpose(1, 2) / a.shape[-1] ** 0.5, dim=2) @ c)
    return torch.cat(out, dim=-1)


MISTAKES = {
    "dit_block_parameters": [
        (lambda D: 12 * D * D, "and so are the biases"),
        (lambda D: 18 * D * D, "biases too"),
        (lambda D: 12 * D * D + 9 * D, "adaLN layer is missing"),
        (lambda D: 10 * D * D + 10 * D, "MLP is missing"),
        (lambda D: 14 * D * D + 11 * D, "attention is missing"),
        (lambda D: D, "add qkv, proj"),
    ],
    "dit_inverse_rope": [
        (lambda q, place: turned(q, place), "turns once more"),
        (lambda q, place: q, "leaves the query turned"),
        (lambda q, place: turned(q, -place.flip(-1)), "swaps them"),
        (lambda q, place: turned(q, 1 - place), "by minus that angle"),
        (lambda q, place: -turned(q, place), "by minus that angle"),
        (lambda q, place: turned(q, -place, 0), "raised"),
    ],
    "dit_adaln_block": [
        (block(lambda x, f, b, s, g: x + g * f(norm(x) * s + b)), "a scale of 0"),
        (block(lambda x, f, b, s, g: x + f(norm(x) * (1 + s) + b)), "gates are missing"),
        (block(lambda x, f, b, s, g: g * f(norm(x) * (1 + s) + b)), "x itself is lost"),
        (block(lambda x, f, b, s, g: g * half(x, f, b, s, 1)), "not x as well"),
        (block(lambda x, f, b, s, g: x + g * f(x * (1 + s) + b)), "the norm is missing"),
        (block(lambda x, f, b, s, g: half(norm(x), f, b, s, g)), "not to the normed x"),
        (
            block(lambda x, f, b, s, g: x + g * f(F.layer_norm(x, x.shape[1:]) * (1 + s) + b)),
            "not the sample as a whole",
        ),
        (
            block(lambda x, f, b, s, g: x + g * f(norm(x.mT).mT * (1 + s) + b)),
            "not over the tokens",
        ),
        (block(lambda x, f, b, s, g: x + g * f(norm(x * (1 + s) + b))), "first the norm"),
        (block(order=(1, 0, 2, 4, 3, 5)), "shift and scale are exchanged"),
        (block(order=(2, 0, 1, 5, 3, 4)), "shift, scale, gate"),
        (block(order=(3, 4, 5, 0, 1, 2)), "first three parts are those of attention"),
        (block(order=(0, 2, 4, 1, 3, 5)), "three parts for attention come first"),
        (block(order=(0, 1, 2, 0, 1, 2)), "the same three parts"),
        (block(axis=False), "axis of length 1"),
        (block(change=F.silu), "this is not x + gate"),
        (block(lambda x, f, b, s, g: x + g * f(norm(x, 1e-5) * (1 + s) + b)), "eps is 10⁻⁶"),
        (block(lambda x, f, b, s, g: x + g * f(outside(x) * (1 + s) + b)), "root of the variance"),
        (block(change=torch.Tensor.detach), "the gradient of c"),
        (parallel, "reads what attention has left"),
        (normed_once, "reads what attention has left"),
        (forgets, "what attention added is lost"),
        (lambda x, c, a, m, mod: block()(x, c, m, a, mod), "are exchanged"),
        (lambda x, c, a, m, mod: block()(x, F.silu(c), a, m, mod), "SiLU inside"),
        (lambda x, c, a, m, mod: block()(x, c, a, m, mod).detach(), "detached"),
        (in_place, "backward pass fails"),
        (lambda x, c, a, m, mod: x, "this is not x + gate"),
    ],
    "dit_attention_heads": [
        (lambda *a: attention(*a, into=sliced, back=None), "a few tokens only"),
        (lambda *a: attention(*a, back=None), "not put together well"),
        (lambda *a: attention(*a, into=sliced), "but not cut well"),
        (lambda *a: attention(*a, scale=0), "not divided by √d"),
        (lambda *a: attention(*a, scale=1), "not by d"),
        (
            lambda q, k, v, h: attention(q / h**0.5, k, v, h),
            "√d of a head, not of all channels",
        ),
        (lambda *a: attention(*a, axis=-2), "for each query"),
        (lambda q, k, v, h: attention(k, q, v, h), "exchanged"),
        (lambda q, k, v, h: attention(q, k, v, 1), "one head over all channels"),
        (
            lambda *a: attention(
                *a, into=lambda x, h: heads_of(x, h, "b n (d heads) -> b heads n d")
            ),
            "side by side",
        ),
        (lambda *a: attention(*a, back="b heads n d -> b n (d heads)"), "put side by side again"),
        (
            lambda *a: attention(
                *a,
                into=lambda x, h: heads_of(x, h, "b n (heads d) -> b n heads d"),
                back="b n heads d -> b n (heads d)",
            ),
            "not to the other heads",
        ),
        (lambda q, k, v, h: fused(q, k.detach(), v, h), "the gradient of k"),
        (lambda q, k, v, h: v, "each head is softmax"),
        (lambda q, k, v, h: attention(q, k, q, h), "each head is softmax"),
    ],
}

RIGHT = [
    ("dit_adaln_block", by_hand),
    ("dit_attention_heads", fused),
    ("dit_attention_heads", by_einsum),
    ("dit_attention_heads", head_by_head),
]
