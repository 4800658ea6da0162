"""The playground: its noise, words and steps in JavaScript are the library's, and so is the clip
that a browser makes."""

import json
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import browser
from PIL import Image

from minisora.clips import COLORS
from minisora.core.noise import indexed_noise
from minisora.data.vocabulary import Vocabulary
from minisora.pipeline import VideoPipeline
from minisora.sampling import time_grid

sys.path.insert(0, str(ROOT / "tools"))
import playground  # noqa: E402

PAGE = ROOT / "nbs" / "playground"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")


def node(module, script, given):
    "What `script`, with the names of one of the page's modules and `given`, prints as JSON."
    text = f"""import * as m from {json.dumps((PAGE / module).as_uri())};
        import {{ readFileSync }} from 'fs';
        const given = JSON.parse(readFileSync(0, 'utf8'));
        {script}"""
    run = subprocess.run(
        ["node", "--input-type=module", "-e", text],
        input=json.dumps(given),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-1500:]
    return json.loads(run.stdout)


@pytest.fixture(autouse=True, scope="module")
def javascript_is_read_as_modules(tmp_path_factory):
    """Node takes a .js file for a module only beside a package.json that says so; a browser needs
    none. So the tests read a copy with one."""
    global PAGE
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')
    kept, PAGE = PAGE, folder
    yield
    PAGE = kept


# --- noise ---


@needs_node
def test_noise_is_the_library_s_number_by_number():
    """Seeds of one word and of two, the steps of sampling and of the last passes, and enough
    numbers for each layer of the ziggurat and its tail. In the tail, one number in thousands, the
    last digit may differ: NumPy's logarithm is one of single precision."""
    cases = [(0, 0, 0, 8192), (3, 24, 0, 8192), (99, 10**6 + 2, 7, 8192), (2**32 + 5, 1, 2, 500)]
    cases += [(2**40, 10**6, 3, 501), (5, 5, 5, 400_000)]
    script = """console.log(JSON.stringify(given.map(
        ([seed, step, index, count]) => [...m.indexedNoise(seed, step, index, count)])));"""
    for case, got in zip(cases, node("noise.js", script, cases)):
        seed, step, index, count = case
        want = indexed_noise(seed, step, [index], (count,))[0][0]
        got = torch.tensor(got)
        in_tail = want.abs() > 3.6541528
        assert torch.equal(got[~in_tail], want[~in_tail]), case
        torch.testing.assert_close(got[in_tail], want[in_tail], rtol=2e-7, atol=0)
    assert in_tail.sum() > 50


# --- words ---


def vocabularies():
    """That of the first video, one of two words per caption, one in other writings, and one of more
    than thirty words."""
    first = playground_vocabulary()
    signs = Vocabulary(["thank", "you", "it's", "x2"], 2, (), [(1, 3), (0, 2, 4)])
    written = Vocabulary(["红", "色", "naïve", "🏳️‍🌈".replace("\ufe0f", ""), "🇫🇷"], 2, split=2)
    many = Vocabulary([f"w{i}" for i in range(40)], 2, ("the",), [range(1, 41), range(1, 36)])
    return [first, signs, written, many]


def playground_vocabulary():
    return VideoPipeline.from_pretrained(ROOT / "data" / "first-video").vocabulary


def captions(vocabulary, count, seed):
    "Right and wrong ones: words shuffled, left out, misspelled, in other letters, forms and cases."
    draw = random.Random(seed)
    words = [*vocabulary.words, *vocabulary.drop, "the", "an", "moving", "move", "growing", "grow"]

    def spoil(word):
        at = draw.randrange(len(word))
        letter = draw.choice("abcdefghijklmnopqrstuvwxyzßéİ0'_-" + "日Ω😀")
        return draw.choice(
            [word[:at] + letter + word[at:], word[:at] + word[at + 1 :], word.upper(), word + "ing"]
        )

    by_slot = [[vocabulary.words[i - 1] for i in ids if i] for ids in vocabulary.ids_by_slot]
    for n in range(count):
        if n % 2:
            chosen = ["The", *(draw.choice(fits) for fits in by_slot)]
        else:
            chosen = [draw.choice(words) for _ in range(draw.randrange(6))]
        chosen = [spoil(w) if draw.random() < 0.25 else w for w in chosen]
        yield draw.choice([" ", ", ", "  "]).join(chosen)
    yield from ("", "…", "_", "a", "the", "a red ring", "red ring left right", "ring red left")
    yield from ("it's", 'say "it\'s"', "a\tred\nring\\", "naïve", "Ⅷ ²")
    yield from (
        "红色",
        "naïve 红",
        "e\u0301té’s",
        "🏳️‍🌈🇫🇷🇩🇪",
        "👍🏽ﬁne",
        "می\u200cخواهم x\u200d",
        "हिन्दी",
    )
    yield from ("sp\u00a0here", "x\u200by z", "\x07 bell", "\U000e0001 tag")


def encoded(vocabulary, caption):
    try:
        return vocabulary.encode(caption, strict=True).tolist()
    except ValueError as e:
        return str(e)


@needs_node
def test_words_have_the_same_ids_and_wrong_ones_the_same_message():
    script = """const vocabulary = new m.Vocabulary(given.about);
        console.log(JSON.stringify(given.captions.map((caption) => {
            try { return vocabulary.encode(caption); } catch (error) { return error.message; }
        })));"""
    for seed, vocabulary in enumerate(vocabularies()):
        asked = list(captions(vocabulary, 1500, seed))
        want = [encoded(vocabulary, caption) for caption in asked]
        assert sum(isinstance(w, list) for w in want) > 20
        assert sum("did you mean" in w for w in want if isinstance(w, str)) > 10
        got = node("vocabulary.js", script, dict(about=vocabulary.to_dict(), captions=asked))
        for caption, g, w in zip(asked, got, want):
            assert g == w, caption


def test_the_buttons_have_the_colors_of_the_clips():
    text = (PAGE / "page.js").read_text()
    for name, color in COLORS.items():
        assert f"{name}: {list(color)}" in text


# --- steps ---


@needs_node
def test_times_are_the_library_s():
    cases = [(24, 6.0, (0.001, 0.999)), (7, 6.0, (0.001, 0.999)), (1, 1.0, (0.0, 1.0))]
    script = "console.log(JSON.stringify(given.map((g) => m.timeGrid(...g))));"
    for case, got in zip(cases, node("sampler.js", script, cases)):
        assert torch.allclose(torch.tensor(got).double(), torch.tensor(time_grid(*case)).double())


@needs_node
def test_a_model_that_the_page_cannot_play_is_named():
    about = dict(
        objective=dict(objective="interpolant", path="linear", prediction="data"),
        sampling=dict(solver="ddim"),
        vocabulary={},
    )
    other = about | dict(objective=dict(objective="interpolant", path="vp", prediction="noise"))
    script = "console.log(JSON.stringify(given.map(m.problemOf)));"
    fits, says = node("sampler.js", script, [about, other])
    assert fits == "" and '"path":"vp"' in says


# --- the GIF ---


@needs_node
def test_a_saved_gif_has_the_frames(tmp_path):
    """Few colors come out as they are, to five bits; many codes fill and clear the table of the
    compression."""
    generator = torch.Generator().manual_seed(0)
    colors = torch.randint(0, 32, (60, 3), generator=generator)
    picked = torch.randint(0, 60, (3, 48 * 40), generator=generator)
    frames = (colors[picked] * 255 / 31).round().int()  # (3, 48 · 40, 3)
    rgba = torch.cat([frames, torch.full((*frames.shape[:2], 1), 255)], 2).flatten(1)
    script = """const pictures = given.map((p) => Uint8ClampedArray.from(p));
        console.log(JSON.stringify([...m.toGif(pictures, 48, 40, 8, 3)]));"""
    path = tmp_path / "x.gif"
    path.write_bytes(bytes(node("gif.js", script, rgba.tolist())))
    with Image.open(path) as gif:
        assert gif.size == (144, 120) and gif.n_frames == 3
        for i in range(3):
            gif.seek(i)
            assert gif.info["duration"] in (120, 130)
            shown = torch.from_numpy(np.array(gif.convert("RGB")))  # (120, 144, 3)
            assert torch.equal(shown[1::3, 1::3].reshape(-1, 3).int(), frames[i])


# --- what `make docs` puts together ---


def test_without_node_or_onnx_the_page_is_built_and_says_so(tmp_path, monkeypatch, capsys):
    def missing(*_):
        raise ImportError("export: onnx not installed")

    monkeypatch.setattr(playground, "export_model", missing)
    monkeypatch.setattr(playground.node, "FOLDER", tmp_path / "node_modules")
    monkeypatch.setenv("PATH", str(tmp_path))
    problems = playground.build(tmp_path / "out")
    assert (tmp_path / "out" / "index.html").is_file()
    assert not (tmp_path / "out" / "files.json").exists()
    said = capsys.readouterr().err
    assert len(problems) == 2 and "onnx not installed" in said and "install Node.js" in said


@pytest.mark.parametrize("name", ["10_first_video.html", "first_video.html"])
def test_links_lead_to_the_site_s_pages_however_they_are_named(name, tmp_path):
    (tmp_path / "playground").mkdir()
    (tmp_path / name).touch()
    page = tmp_path / "playground" / "index.html"
    page.write_text('<a href="../10_first_video.html">')
    playground.relink(page)
    assert page.read_text() == f'<a href="../{name}">'


def test_the_page_links_to_notebooks_that_are_there():
    found = re.findall(r'"\.\./(\w+)\.html"', (PAGE / "index.html").read_text())
    assert len(found) > 5
    assert [n for n in found if not (ROOT / "nbs" / f"{n}.ipynb").exists()] == []


# --- in a browser ---


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "The playground, built and open in headless Chromium."
    if browser.CHROMIUM is None:
        pytest.skip("needs Chromium")
    if not playground.node.version("onnxruntime-web"):
        pytest.skip("needs onnxruntime-web: run make docs once")
    site = tmp_path_factory.mktemp("site")
    problems = playground.build(site / "playground")
    if problems:
        pytest.skip("; ".join(problems))
    profile = tmp_path_factory.mktemp("profile")
    with browser.served(site) as address, browser.opened(profile) as page:
        page.go(f"{address}/playground/index.html")
        page.wait("document.querySelector('#words button')")
        yield page


def make(page, caption, **settings):
    "Type a caption, press Enter, and wait for (latents, pixels) of the clip or for a refusal."
    page.run("window.lastClip = null; document.getElementById('reset').click()")
    for name, value in settings.items():
        page.run(f"document.getElementById('{name}').value = {value}")
    page.run("document.getElementById('caption').select()")
    page.type(caption)
    page.press("Enter")
    page.wait("window.lastClip || document.getElementById('problem').textContent")
    problem = page.run("document.getElementById('problem').textContent")
    if problem:
        return problem
    found = page.run("[[...lastClip.latents], [...lastClip.pixels]]")
    return [torch.tensor(numbers) for numbers in found]


def expected(caption, **options):
    "The library's normalized latents and its clip."
    pipe = VideoPipeline.from_pretrained(ROOT / "data" / "first-video")
    seen = []
    decode = pipe.decode
    pipe.decode = lambda latents: decode(seen.append(latents) or latents)
    frames = pipe(caption, **options).frames
    return seen[0], frames


@pytest.mark.parametrize(
    "caption, here, there",
    [
        ("a red ring moves left", {}, {}),
        (
            "the yellow star grows",
            dict(steps=7, guidance=1, seed=42),
            dict(num_inference_steps=7, guidance_scale=1.0, seed=42),
        ),
        (
            "Blue triangle, shrinking!",
            dict(steps=14, guidance=4, seed=5),
            dict(num_inference_steps=14, guidance_scale=4.0, seed=5),
        ),
    ],
)
def test_the_browser_s_clip_is_the_library_s(page, caption, here, there):
    got = make(page, caption, **here)
    assert not isinstance(got, str), got
    for g, w in zip(got, expected(caption, **there)):
        assert (g.view_as(w) - w).abs().max() < 1e-3


def test_an_unknown_word_gets_the_command_line_s_message(page):
    said = make(page, "a red sqare moves left")
    with pytest.raises(ValueError) as e:
        playground_vocabulary().encode("a red sqare moves left", strict=True)
    assert said == str(e.value) and "did you mean 'square'" in said
    assert page.run("document.getElementById('caption').getAttribute('aria-invalid')") == "true"


def test_words_are_chosen_by_their_buttons(page):
    page.run("document.querySelector('[data-word=purple]').click()")
    page.run("document.querySelector('[data-word=cross]').click()")
    page.run("document.querySelector('[data-word=grows]').click()")
    assert page.run("document.getElementById('caption').value") == "a purple cross grows"
    pressed = "[...document.querySelectorAll('#words [aria-pressed=true]')]"
    assert page.run(f"{pressed}.map(button => button.dataset.word)") == ["purple", "cross", "grows"]


def test_making_can_be_stopped_and_the_next_clip_is_whole(page):
    page.run("window.lastClip = null; document.getElementById('reset').click()")
    page.run("document.getElementById('make').click()")
    page.wait("document.querySelectorAll('#guesses li').length > 1")
    page.run("document.getElementById('make').click()")
    assert page.run("document.getElementById('status').textContent") == "Stopped."
    got = make(page, "a green ball moves up", steps=4)
    want = expected("a green ball moves up", num_inference_steps=4)
    assert (got[0].view_as(want[0]) - want[0]).abs().max() < 1e-3


def test_every_control_has_a_name_and_the_page_fits_a_phone(page):
    unnamed = """[...document.querySelectorAll('input, button, canvas, progress')].filter(e =>
        !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim()
          || e.closest('button'))).map(e => e.outerHTML)"""
    assert page.run(unnamed) == []
    page.resize(390, 844)
    assert page.run("document.documentElement.scrollWidth") <= 390


def test_the_site_s_choice_of_light_or_dark_holds_here_too(page):
    address = page.run("location.href")
    seen = []
    for chosen in ("alternate", "default"):
        page.run(f"localStorage.setItem('smalldocs-scheme', '{chosen}')")
        page.go(f"{address.partition('?')[0]}?{chosen}", dark=chosen == "default")
        seen.append(page.run("getComputedStyle(document.body).backgroundColor"))
    assert seen == ["rgb(21, 23, 27)", "rgb(251, 250, 248)"]
