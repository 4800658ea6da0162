"""Latte's layout: its function, its state dict, its joint training on images and clips, and inflation into it."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from test_dit import awake, close

from minisora.dit import DiT, DiTConfig
from minisora.diffusion import Diffusion
from minisora.sampling import guide
from minisora.temporal import (
    VIDEO_PRESETS,
    VideoDiT,
    VideoDiTConfig,
    inflate,
    latte_state,
    load_latte_state,
)
from minisora.train import fit

LATTE = VideoDiTConfig(
    size=(3, 8, 8),
    patch=(1, 2, 2),
    width=32,
    depth=4,
    heads=2,
    vocab=5,
    attention="factorised",
    positions="latte",
    learn_sigma=True,
    time="ddpm",
)
TEXT = dataclasses.replace(LATTE, vocab=0, caption=77 * 768)


def awaken(config=LATTE, seed=1):
    model = awake(VideoDiT(config), seed=seed)
    if config.caption:
        model.text_embedding_projection[1].weight.data *= (
            3 / config.caption**0.5
        )  # a sum of very many
    return model


def inputs(frames=3, n=2, seed=0, classes=5, ids=1):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 4, frames, 8, 8, generator=g),
        torch.tensor([0.137, 0.9])[:n],
        torch.randint(0, classes, (n, ids), generator=g),
    )


def captions(n=2, parts=1, numbers=(77, 768)):
    return torch.randn(n, parts, *numbers, generator=torch.Generator().manual_seed(3))


def plain_latte(w, x, step, y, heads, y_images=()):
    """Latte in the plainest way, from a state dict of its names: one sample x (F, C, H, W), its step index, its class,
    one class for each image behind the frames -> (F, 2 C, H, W). Attention is written out, frame by frame.
    Where the weights have a text projection, captions (77, 768) stand in place of classes."""
    linear = lambda name, h: h @ w[name + ".weight"].T + w[name + ".bias"]
    half = torch.exp(-torch.arange(128) / 128 * torch.log(torch.tensor(10000.0)))
    wave = torch.cat([(step * half).cos(), (step * half).sin()])
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", wave)))
    text = "text_embedding_projection.1.weight" in w
    of = lambda y: (
        time
        + (
            linear("text_embedding_projection.1", F.silu(y.flatten()))
            if text
            else w["y_embedder.embedding_table.weight"][y]
        )
    )
    norm = lambda h: (
        (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    )

    def block(i, h, c):  # (N, D)
        s1, m1, g1, s2, m2, g2 = linear(f"blocks.{i}.adaLN_modulation.1", F.silu(c)).chunk(6)
        parts = linear(f"blocks.{i}.attn.qkv", norm(h) * (1 + m1) + s1).chunk(3, -1)
        q, k, v = [p.view(len(h), heads, -1).transpose(0, 1) for p in parts]
        seen = ((q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5).softmax(-1) @ v
        h = h + g1 * linear(f"blocks.{i}.attn.proj", seen.transpose(0, 1).reshape(len(h), -1))
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(h) * (1 + m2) + s2), approximate="tanh")
        return h + g2 * linear(f"blocks.{i}.mlp.fc2", hidden)

    patches = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2)
    h = patches.flatten(2).transpose(1, 2) + w["pos_embed"]  # (F, S, D)
    T = len(x) - len(y_images)
    conditions = [of(y)] * T + [of(k) for k in y_images]
    for i in range(0, len({k.split(".")[1] for k in w if k.startswith("blocks.")}), 2):
        h = torch.stack([block(i, f, c) for f, c in zip(h, conditions)])
        clip = h[:T] + w["temp_embed"][0][:, None] if i == 0 else h[:T]
        clip = torch.stack([block(i + 1, clip[:, s], of(y)) for s in range(h.shape[1])], 1)
        h = torch.cat([clip, h[T:]])
    out = []
    for f, c in zip(h, conditions):
        shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(time if text else c)).chunk(
            2
        )  # sic
        patch = linear("final_layer.linear", norm(f) * (1 + scale) + shift).view(
            4, 4, 2, 2, -1
        )  # (h, w, p, q, 2 C)
        out.append(patch.permute(4, 0, 2, 1, 3).reshape(-1, 8, 8))
    return torch.stack(out)


@pytest.mark.parametrize("images", [0, 2])
def test_the_function_is_that_of_latte(images):
    model = awaken(dataclasses.replace(LATTE, images=images))
    x, t, y = inputs(3 + images, ids=1 + images)
    want = [
        plain_latte(
            latte_state(model), a.transpose(0, 1), round(1000 * (1 - s.item())), ids[0], 2, ids[1:]
        )
        for a, s, ids in zip(x, t, y)
    ]
    close(model(x, t, y), torch.stack(want).transpose(1, 2), rel=2e-5)


@pytest.mark.parametrize("images", [0, 2])
def test_captions_are_heard_as_in_latte(images):
    model, (x, t, _) = awaken(dataclasses.replace(TEXT, images=images)), inputs(3 + images)
    y = captions(parts=1 + images)
    want = [
        plain_latte(
            latte_state(model),
            a.transpose(0, 1),
            round(1000 * (1 - s.item())),
            each[0],
            2,
            each[1:],
        )
        for a, s, each in zip(x, t, y)
    ]
    out = model(x, t, y)
    close(out, torch.stack(want).transpose(1, 2), rel=2e-5)
    assert torch.equal(model(x, t, y.flatten(1)), out) and torch.equal(
        model(x, t, y.mT.contiguous().mT), out
    )
    if not images:
        assert torch.equal(model(x, t, y[:, 0]), out)  # (B, 77, 768)
    assert not torch.allclose(model(x, t, y.flip(0)), out, rtol=1e-3)


def test_no_caption_is_a_learned_null():
    "A caption of zeros leaves the projection's bias, which trains; guidance and training find it by `null_id`."
    model, (x, t, _) = awaken(dataclasses.replace(TEXT, caption=6)), inputs()
    y, out = captions(numbers=(6,))[:, 0], model(x, t)
    assert model.null_id == 0 and torch.equal(out, model(x, t, 0 * y))
    out.square().mean().backward()
    weight, bias = model.text_embedding_projection[1].parameters()
    assert bias.grad.any() and not weight.grad.any()
    with torch.no_grad():
        close(guide(model, 3.0)(x, t, y)[:, :4], (3 * model(x, t, y) - 2 * model(x, t))[:, :4])


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_fit_trains_on_captions_and_drops_them(dropout):
    model = awaken(dataclasses.replace(TEXT, caption=6))
    before = model.text_embedding_projection[1].weight.detach().clone()
    data = (inputs(n=4)[0], captions(4, numbers=(6,))[:, 0])
    fit(
        model,
        data,
        Diffusion(variance="learned-range"),
        steps=3,
        batch_size=2,
        warmup=0,
        condition_dropout=dropout,
        device="cpu",
        progress=False,
    )
    assert torch.equal(model.text_embedding_projection[1].weight, before) == (
        dropout == 1
    )  # zeros teach it nothing


@pytest.mark.parametrize("shape", [(2, 1), (2, 77, 767), (1, 77, 768), (2, 2, 77, 768)])
def test_bad_captions(shape):
    with pytest.raises(ValueError, match=rf"y must be \(2, 59136\), not \({shape[0]}, "):
        VideoDiT(TEXT)(*inputs()[:2], torch.zeros(shape))


@pytest.mark.parametrize(
    "options",
    [
        dict(vocab=5),
        dict(slots=2),
        dict(context=True),
        dict(positions="rope"),
        dict(caption=-1),
        dict(caption=6.0),
    ],
)
def test_bad_caption_configs(options):
    with pytest.raises(ValueError, match=r"VideoDiTConfig\.caption"):
        dataclasses.replace(TEXT, **options)


def test_names_and_shapes_are_those_of_latte():
    with torch.device("meta"):
        model = VideoDiT(dataclasses.replace(VIDEO_PRESETS["Latte-XL/2"], vocab=101))
    state = {k: v.shape for k, v in model.state_dict().items()}
    with torch.device("meta"):
        image = DiT(dataclasses.replace(DiTConfig(), num_classes=101)).state_dict()
    want = {k: v.shape for k, v in image.items()} | {
        "temp_embed": (1, 16, 1152)
    }  # a DiT's, and time
    changed = {"x_embedder.proj.weight", "x_embedder.proj.bias"}
    assert {k: v for k, v in want.items() if k not in changed} == {
        k: v for k, v in state.items() if "x_embedder" not in k
    }
    theirs = latte_state(awaken())
    assert (
        theirs["x_embedder.proj.weight"].shape == (32, 4, 2, 2)
        and changed < set(theirs)
        and len(theirs) == len(state) - 24 * 10
    )
    shapes = lambda **options: {
        k: v.shape
        for k, v in latte_state(awaken(dataclasses.replace(LATTE, vocab=0, **options))).items()
    }
    plain, text = shapes(), "text_embedding_projection.1"
    assert [k for k in plain if "y_embedder" in k] == []
    assert shapes(caption=59136) == plain | {
        f"{text}.weight": (32, 77 * 768),
        f"{text}.bias": (32,),
    }


@pytest.mark.parametrize("vocab", [0, 5, "caption"])
@pytest.mark.parametrize("kind", ["pt", "ema.pt", "safetensors", "dict"])
def test_round_trip_is_bit_equal(tmp_path, vocab, kind):
    config = TEXT if vocab == "caption" else dataclasses.replace(LATTE, vocab=vocab)
    state = {
        k: torch.randn(
            v.shape, generator=torch.Generator().manual_seed(i)
        )  # positions too are theirs
        for i, (k, v) in enumerate(latte_state(awaken(config)).items())
    }
    file = tmp_path / f"w.{kind}"
    if kind == "safetensors":
        save_file(state, file)
    elif kind != "dict":
        torch.save(dict(ema=state, model={}) if kind == "ema.pt" else state, file)
    model = load_latte_state(VideoDiT(config), state if kind == "dict" else file)
    again = latte_state(model)
    assert set(again) == set(state) and all(torch.equal(again[k], v) for k, v in state.items())
    model.save_pretrained(tmp_path / "m")  # and survives our own folder
    ours = latte_state(VideoDiT.from_pretrained(tmp_path / "m"))
    assert all(torch.equal(ours[k], v) for k, v in state.items())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("temp_embed"), "temp_embed is missing"),
        (lambda s: s.pop("x_embedder.proj.weight"), r"x_embedder\.proj\.weight is missing"),
        (
            lambda s: s.update({"text_embedding_projection.1.weight": torch.zeros(1)}),
            "text_embedding_projection",
        ),
        (lambda s: s.update({"temp_embed": torch.zeros(1, 4, 32)}), "temp_embed has shape"),
        (lambda s: s.update({"x_embedder.proj.weight": torch.zeros(32, 16)}), "has 2 axes"),
    ],
)
def test_foreign_weights_are_refused(tmp_path, change, message):
    state = latte_state(awaken())
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt: .*{message}"):
        load_latte_state(VideoDiT(LATTE), tmp_path / "w.pt")


@pytest.mark.parametrize(
    "field, value",
    [
        ("qk_norm", True),
        ("norm", "rms"),
        ("mlp", "swiglu"),
        ("positions", "inflated"),
        ("relative_bias", True),
        ("context", True),
        ("slots", 2),
        ("time", "flow"),
        ("time_scale", 10.0),
        ("patch", (1, 2, 4)),
        ("size", (3, 8, 4)),
        ("depth", 3),
    ],
)
def test_what_latte_does_not_have_is_not_saved_as_latte(field, value):
    with pytest.raises(ValueError, match=rf"VideoDiTConfig\.{field}"):
        latte_state(VideoDiT(dataclasses.replace(LATTE, **{field: value})))


def test_other_captions_are_not_saved_as_latte():
    with pytest.raises(
        ValueError, match=r"VideoDiTConfig\.caption: Latte has 77 · 768 = 59136 numbers, not 768"
    ):
        latte_state(VideoDiT(dataclasses.replace(TEXT, caption=768)))


def test_presets_are_those_of_the_paper():
    "673.68 million parameters: Ma et al. 2024, table 3 (its count is of the trained ones, class-unconditional)."
    assert [n for n in VIDEO_PRESETS if n.startswith("Latte")] == [
        f"Latte-{s}/{p}" for s in ("S", "B", "L", "XL") for p in (2, 4, 8)
    ]
    with torch.device("meta"):
        model = VideoDiT(VIDEO_PRESETS["Latte-XL/2"])
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 673.68
    assert model.config.size == (16, 32, 32) and model.out_channels == 8 and model.null_id is None


# ---------------------------------------------------------------- images behind the frames

JOINT = dataclasses.replace(LATTE, images=2)


def test_images_are_seen_in_space_and_not_in_time():
    "Neither a frame nor another image hears an image; a frame hears the frames; the label of an image is its own."
    model, (x, t, y) = awaken(JOINT).eval(), inputs(5, n=1, ids=3)
    out, other = model(x, t, y), x.clone()
    other[:, :, 3] += 1  # the first image
    moved = (model(other, t, y) - out).abs().amax((0, 1, 3, 4)) > 1e-5
    assert moved.tolist() == [False, False, False, True, False]
    other = x.clone()
    other[:, :, 0] += 1  # a frame
    assert ((model(other, t, y) - out).abs().amax((0, 1, 3, 4)) > 1e-5).tolist() == [True] * 3 + [
        False
    ] * 2
    label = y.clone()
    label[:, 1] = (y[:, 1] + 1) % 5
    assert ((model(x, t, label) - out).abs().amax((0, 1, 3, 4)) > 1e-5).tolist() == [False] * 3 + [
        True,
        False,
    ]
    close(model(x[:, :, :3], t, y[:, :1]), out[:, :, :3])  # the clip alone is the same clip
    null = torch.full((1, 3), 5)
    assert torch.equal(model(x, t), model(x, t, null))


def test_images_train_the_spatial_blocks_alone():
    model, (x, t, y) = awaken(JOINT), inputs(5, ids=3)
    model(x, t, y)[:, :, 3:].square().mean().backward()  # a loss on the images only
    trained = [
        bool(b.attn.qkv.weight.grad is not None and b.attn.qkv.weight.grad.any())
        for b in model.blocks
    ]
    assert trained == [True, False, True, False]


@pytest.mark.parametrize(
    "options",
    [
        dict(vocab=0),
        dict(positions="rope"),
        dict(positions="none", relative_bias=True),
        dict(slots=2),
        dict(learn_sigma=False, time="flow", precondition="edm"),
        dict(checkpoint=True),
    ],
    ids=str,
)
def test_images_with_other_options(options):
    c = dataclasses.replace(JOINT, **options)
    model, (x, t, y) = awaken(c), inputs(5, ids=3 * c.slots)
    out = model(x, t, y)
    assert out.shape == (2, model.out_channels, 5, 8, 8)
    close(model(x[:, :, :3], t, y[:, : c.slots]), out[:, :, :3])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, x, t, y: m(x[:, :, :4], t, y), r"x must be \(B, 4, 3, 8, 8\) or 5 frames, not"),
        (lambda m, x, t, y: m(x[0], t, y), "x must be"),
        (lambda m, x, t, y: m(x, t, y[:, :1]), r"y must be \(2, 3\), not \(2, 1\)"),
    ],
)
def test_bad_calls_with_images(call, message):
    with pytest.raises(ValueError, match=message):
        call(VideoDiT(JOINT), *inputs(5, ids=3))


@pytest.mark.parametrize(
    "field, options",
    [
        ("images", dict(context=True)),
        ("images", dict(attention="joint", positions="none")),
        ("images", dict(positions="sincos")),
        ("images", dict(positions="inflated")),
        ("images", dict(size=(4, 8, 8), patch=(2, 2, 2))),
        ("positions", dict(images=0, attention="joint")),
        ("learned_time", dict(positions="rope", learned_time=True)),
    ],
)
def test_bad_latte_configs(field, options):
    with pytest.raises(ValueError, match=rf"VideoDiTConfig\.{field}"):
        dataclasses.replace(JOINT, **options)


# ---------------------------------------------------------------- inflation

IMAGE = DiTConfig(size=(8, 8), width=32, depth=2, heads=2, num_classes=5)
INFLATED = [
    dict(),
    dict(norm="rms"),
    dict(mlp="swiglu"),
    dict(qk_norm=True),
    dict(positions="rope"),
    dict(positions="none"),
    dict(relative_bias=True),
    dict(learn_sigma=False, time="flow", precondition="edm"),
    dict(learn_sigma=False, time="flow", precondition="x", t_clip=0.3),
    dict(num_classes=0),
    dict(checkpoint=True),
]


def frame_by_frame(image, x, t, y):
    return torch.stack([image(x[:, :, i], t, y) for i in range(x.shape[2])], 2)


@pytest.mark.parametrize("options", INFLATED, ids=str)
def test_every_image_model_is_inflated_whole(options):
    image, (x, t, y) = awake(DiT(dataclasses.replace(IMAGE, **options))), inputs()
    video = inflate(image, 3)
    close(video(x, t, y), frame_by_frame(image, x, t, y))
    video(x, t, y).square().mean().backward()  # and the way into time is open to learning
    assert all(b.adaLN_modulation[1].weight.grad.any() for b in video.blocks[1::2])


def test_inflated_into_lattes_own_layout(tmp_path):
    image, (x, t, y) = awake(DiT(IMAGE)), inputs()
    image.pos_embed += 0.3 * torch.randn(
        image.pos_embed.shape, generator=torch.Generator().manual_seed(0)
    )  # its own
    video = inflate(image, 3, latte=True)
    close(video(x, t, y), frame_by_frame(image, x, t, y))
    video(x, t, y).square().mean().backward()
    assert (
        video.temp_embed.grad.any() and torch.unique(video.temp_embed.grad[0], dim=0).shape[0] == 3
    )
    close(
        plain_latte(latte_state(video), x[0].transpose(0, 1), 863, y[0, 0], 2),
        video(x, t, y)[0].transpose(0, 1),
        rel=2e-5,
    )
    state = latte_state(video)
    close(
        load_latte_state(VideoDiT(LATTE), state)(x, t, y), video(x, t, y)
    )  # as Latte's own, frozen
    video.save_pretrained(tmp_path / "m")
    close(VideoDiT.from_pretrained(tmp_path / "m")(x, t, y), video(x, t, y))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: inflate(DiT(dataclasses.replace(IMAGE, positions="rope")), 3, latte=True),
            "no 'rope' positions",
        ),
        (lambda: inflate(moved(DiT(IMAGE)), 3), "not those of the size"),
        (lambda: inflate(DiT(dataclasses.replace(IMAGE, null_class=False)), 3), "null class"),
    ],
)
def test_what_cannot_be_inflated(make, message):
    with pytest.raises(ValueError, match=f"inflate: .*{message}"):
        make()


def moved(image):
    image.pos_embed += 0.1
    return image
