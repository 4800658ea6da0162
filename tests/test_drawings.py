"""The diagrams: each draws, says what it shows, holds its labels apart, and can be read on light
and dark paper."""

import base64
import html
import inspect
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import ImageFont

from minisora import drawings, svg
from minisora.autoencoder import ImageVAE
from minisora.dit import DiT, DiTConfig, patchify
from minisora.latents.video_vae import CausalVideoVAE
from minisora.models.layouts import Factorized, Joint
from minisora.recipe import RECIPES
from minisora.temporal import VideoDiT, VideoDiTConfig

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
ALL = [getattr(drawings, name) for name in drawings.__all__]
ALL = [
    f
    for f in ALL
    if all(p.default is not p.empty for p in inspect.signature(f).parameters.values())
]
SECONDS = dict(autoencoder=69, latents=19, training=1070, decoder=49)
LABELS = {
    "pipeline": ["metrics", "autoencoder", "latent cache", "encode", "decode", "fit", "sample"],
    "vae": ["encode", "decode", "μ", "σ", "ε", "z", "KL: the rate", "reconstruction error"],
    "causal_latents": ["latent 0", "latent 2", "sees frame 0", "sees frames 0–4"],
    "patches": ["16 patches of 16 numbers", "16 tokens of 64 numbers", "one linear layer"],
    "dit_block": [
        "b1",
        "s1",
        "g1",
        "b2",
        "s2",
        "g2",
        "attention",
        "MLP",
        "layer norm",
        "144 → 864",
    ],
    "clock": ["999", "0.5", "α", "σ"],
    "tubelets": ["8 × 4 × 2 × 2", "128 → 144", "64 tokens", "16 frames"],
    "attention": [
        "joint",
        "factorized, even",
        "factorized, odd",
        "windows",
        "256 pairs",
        "64 pairs",
    ],
    "training_loop": ["batch", "loss", "gradient", "average", "checkpoint", "each 1,000 steps"],
    "run_folder": ["recipe.json", "latents/", "checkpoints/", "metrics.json"],
    "stages": ["clips", "autoencoder", "latents", "transformer", "your clip", "8,200 steps"],
}


def texts(drawing):
    "Every text: (what it says, its box as left, top, right, bottom), in the widest common font."
    for e in ET.fromstring(drawing.svg()).iter("{http://www.w3.org/2000/svg}text"):
        said = "".join(e.itertext()).replace("\u200b", "")
        size = float(e.get("font-size"))
        name = "DejaVuSans-Bold.ttf" if e.get("font-weight") == "600" else "DejaVuSans.ttf"
        wide = ImageFont.truetype(str(FONTS / name), 100).getlength(said) * size / 100
        x, y = float(e.get("x")), float(e.get("y"))
        left = x - wide * {"start": 0, "middle": 0.5, "end": 1}[e.get("text-anchor")]
        yield said, (left, y - 0.8 * size, left + wide, y + 0.2 * size)


def overlaps(a, b):
    return min(a[2], b[2]) > max(a[0], b[0]) + 1 and min(a[3], b[3]) > max(a[1], b[1]) + 1


def crowded(drawing):
    "Texts that leave the paper or lie over each other."
    found = list(texts(drawing))
    outside = [
        s
        for s, (left, top, right, bottom) in found
        if left < 2 or top < 2 or right > drawing.width - 2 or bottom > drawing.height - 2
    ]
    pairs = [
        (s, other)
        for i, (s, a) in enumerate(found)
        for other, b in found[i + 1 :]
        if overlaps(a, b)
    ]
    return outside + pairs


def test_every_drawing_is_tested():
    assert {f.__name__ for f in ALL} == LABELS.keys()


@pytest.mark.parametrize("draw", ALL, ids=lambda f: f.__name__)
def test_a_drawing(draw):
    "Well-formed, small, 420 wide, in our own colors, with its labels and an alternative text."
    drawing = draw(seconds=SECONDS) if draw.__name__ == "stages" else draw()
    root = ET.fromstring(drawing.svg())
    said = [s for s, _ in texts(drawing)]
    assert not set(LABELS[draw.__name__]) - set(said), said
    assert drawing.width == 420 and len(drawing.svg()) < 13_000
    assert crowded(drawing) == []
    known = {f"{p}{k}" for k in svg.KINDS for p in ("", "box-", "line-")} | {
        "paper",
        "ink",
        "line-faint",
    }
    assert {e.get("class") for e in root.iter() if e.get("class")} <= known
    shown = drawing._repr_html_()
    alt = html.unescape(re.search(r'<img class="drawing" alt="([^"]+)"', shown).group(1))
    assert alt == drawing.alt and len(alt) > 60 and alt.endswith(".")
    assert root.get("aria-label") == alt == root[0].text
    assert base64.b64decode(re.search(r'base64,([^"]+)"', shown).group(1)).decode() == drawing.svg()


def test_crowded_texts_are_found():
    two = svg.Drawing("x", 100, 40, (svg.label(50, 20, "one"), svg.label(60, 24, "two")))
    assert crowded(two) == [("one", "two")]
    assert crowded(svg.Drawing("x", 100, 40, (svg.label(90, 20, "a long one"),))) == ["a long one"]
    apart = svg.Drawing("x", 100, 60, (svg.label(50, 20, "one"), svg.label(50, 40, "two")))
    assert crowded(apart) == []


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", svg.KINDS)
def test_text_can_be_read(kind, dark):
    "Ink and shade on the tint of a box, and the shade on paper: WCAG's 4.5 : 1."
    tint, shade = svg.KINDS[kind][2 * dark : 2 * dark + 2]
    assert contrast(shade, svg.PAPER[dark]) >= 4.5
    assert contrast(svg.INK[dark], tint) >= 4.5
    assert contrast(shade, tint) >= 4.5
    rules = svg.style_of(svg.box(0, 0, 9, 9, kind=kind)).split("@media")[dark]
    assert f".box-{kind}{{fill:{tint};stroke:{shade}}}" in rules


def test_a_drawing_is_saved_whole(tmp_path):
    drawing = drawings.vae()
    drawing.save(tmp_path / "vae.svg")
    assert (tmp_path / "vae.svg").read_text(encoding="utf-8") == drawing.svg()
    assert drawing.captioned("a < b").svg() == drawing.svg()
    assert ">a &lt; b</figcaption>" in drawing.captioned("a < b")._repr_html_()
    assert repr(drawing).startswith("Drawing('A variational")


def test_markup():
    assert svg.label(0, 0, "a < *b*_{1}").count("tspan") == 6
    assert "a &lt; <tspan" in svg.label(0, 0, "a < *b*")
    assert svg.times(3, 1600) == "3 × 1,600"


# ------------------------------------------------- the numbers are those of the real objects


def test_the_readme_s_picture_is_the_drawing():
    "README.md can show a file only; running the notebook of the drawings writes it."
    drawing = drawings.pipeline()
    root = Path(__file__).parents[1]
    have = (root / "nbs" / "images" / "pipeline.svg").read_text(encoding="utf-8")
    assert have == drawing.svg(), "run nbs/99_drawings.ipynb"
    assert f"![{drawing.alt}](nbs/images/pipeline.svg)" in (root / "README.md").read_text(
        encoding="utf-8"
    )


def test_shapes_of_the_pipeline():
    "As the autoencoder and the model of the recipe have them."
    recipe = RECIPES["scenes"]
    clip, latents, tokens = drawings.clip_shapes(recipe)
    ae = ImageVAE(channels=recipe.channels, enc_width=0)
    z = ae.encode(torch.zeros(1, *clip)).mode
    assert tuple(z.shape[1:]) == latents
    config = VideoDiTConfig(
        channels=latents[0], size=latents[1:], patch=recipe.patch, width=recipe.width
    )
    assert config.grid == tokens
    assert patchify(z, recipe.patch).shape[1:] == (64, 128)
    other = drawings.pipeline(RECIPES["folder"])
    assert "16 × 16 × 12 × 12" in [s for s, _ in texts(other)] and crowded(other) == []


def test_what_causal_latents_see():
    "The drawing's words, and a causal autoencoder of random weights."
    ae = CausalVideoVAE(width=8, depth=1)
    g = torch.Generator().manual_seed(0)
    for p in ae.parameters():
        p.data = 0.1 * torch.randn(p.shape, generator=g)
    clip = torch.randn(1, 3, 9, 8, 8, generator=g)
    for frame in (0, 2, 5):
        touched = clip.clone()
        touched[:, :, frame] *= -1
        with torch.no_grad():
            changed = (ae.encode(touched).mode != ae.encode(clip).mode).flatten(3).any(-1).any(1)[0]
        drawn = drawings.causal_latents(changed=frame).svg()
        orange = re.findall(r'class="box-model"[^>]*width="109"', drawn)
        assert changed.tolist() == [k >= 3 - len(orange) for k in range(3)]


def test_the_block_has_six_vectors():
    block = DiT(DiTConfig(size=(4, 4), width=48, depth=1, heads=4)).blocks[0]
    out, into = block.adaLN_modulation[1].weight.shape
    said = [s for s, _ in texts(drawings.dit_block(48))]
    assert f"{into} → {out}" in said


@pytest.mark.parametrize("layout, i", [(Joint(), 0), (Factorized(), 0), (Factorized(), 1)])
def test_masks_are_those_of_the_model(layout, i):
    "Who changes when one token changes, in a block of a real model, is who the drawing says."
    grid = (3, 2, 2)
    model = VideoDiT(
        VideoDiTConfig(
            size=grid, channels=1, patch=(1, 1, 1), width=24, depth=2, heads=2, layout=layout
        )
    )
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = 0.1 * torch.randn(p.shape, generator=g)
    h = torch.randn(1, 12, 24, generator=g)
    c = torch.randn(1, 24, generator=g)

    def after(tokens):
        with torch.no_grad():
            arranged = layout.arrange(tokens, None, grid)
            return layout.apply_block(model, i, arranged, c, grid).reshape(12, 24)

    seen = torch.zeros(12, 12, dtype=torch.bool)
    for j in range(12):
        touched = h.clone()
        touched[0, j, 0] += 1
        seen[:, j] = (after(touched) != after(h)).any(-1)
    assert seen.equal(drawings.attends(layout, i, grid))


def test_windows():
    mask = drawings.in_windows((2, 2, 2), (2, 1, 2))
    assert mask.sum() == 32 and mask[0].nonzero().flatten().tolist() == [0, 1, 4, 5]


def test_the_run_s_folder_is_what_a_run_writes():
    "What the first version left of a run is in the tree, under the same names."
    run = Path(__file__).parent / "data" / "version-0.1" / "run"
    names = {p.name + "/" * p.is_dir() for p in run.iterdir()}
    drawn = {name for depth, name, *_ in drawings.FOLDER if depth == 1}
    assert names <= drawn, names - drawn
    inside = {p.name + "/" * p.is_dir() for p in (run / "training").iterdir()}
    assert inside == {name for depth, name, *_ in drawings.FOLDER if depth == 2}
