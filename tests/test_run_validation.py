"""A run is checked as a whole before any work, and what is refused leaves nothing behind."""

import json
from pathlib import Path

import pytest
from PIL import Image

from minisora import cli, experiment
from minisora.clips import SceneClips
from minisora.core.checks import did_you_mean, parse_text, parse_texts
from minisora.data.video import write_video
from minisora.evaluation.heldout import hold_out
from minisora.experiment import Experiment, clip_name, make_video, slug
from minisora.recipe import RECIPES, Recipe, open_recipe, parse_field, recipe_for
from minisora.run_budget import steps_for


def films(folder, n=2, size=32, fps=8):
    folder.mkdir()
    scenes = SceneClips(n, size=size)
    for i in range(n):
        write_video(
            folder / f"film {'ab'[i % 2]} {'lr'[i // 2 % 2]}.mp4", scenes[i].frames, fps=fps
        )
    return folder


WRONG = [
    (dict(frames=15), "frames=15 must be a multiple of 4.*: 12 or 16"),
    (dict(patch=(4, 2)), "patch must be 3 positive integers"),
    (dict(heads=5), "heads=5 must divide width=144"),
    (dict(width=146, heads=2), "width: 146 is not a multiple of 4"),
    (dict(steps=0), "steps must be at least 1"),
    (dict(steps=-3), "steps must be at least 1"),
    (dict(lr=float("nan")), "lr must be a finite number, not nan"),
    (dict(lr=1e30), "lr must be"),
    (dict(eta=1.5), "eta must be a number from 0 to 1"),
    (dict(fps=1e300), "fps must be a number from 0.1 to 1000"),
    (dict(tokenizer=3), "tokenizer must be"),
    (dict(lr=float("inf")), "lr must be"),
    (dict(lr=-1.0), "lr must be"),
    (dict(size=72), "size=72 must be a multiple of 16.*: 64 or 80"),
    (dict(size=0), "size must be a whole number from 1"),
    (dict(size=(64, 96)), "are square"),
    (dict(channels=193), "channels must be a whole number from 1 to 192"),
    (dict(ema=1.5), "ema must be a number from 0 to 1"),
    (dict(shift=0.0), "shift must be a number above 0"),
    (dict(time_std=-1.0), "time_std"),
    (dict(guidance_until=2.0), "guidance_until"),
    (dict(eta=-0.5), "eta"),
    (dict(fps=-1.0), "fps"),
    (dict(heldout=0.9), "heldout"),
    (dict(eval_clips=1), "eval_clips must be a whole number from 2"),
    (dict(motions=("sideways",)), "motions must be one of"),
    (dict(motions=()), "motions"),
    (dict(frames=2, patch=(1, 2, 2)), "speak of motion"),
    (dict(depth=10**9), "more than anybody has trained"),
    (dict(width=10**7, heads=1), "no machine holds"),
    (dict(batch_size=10**9), "GB of memory"),
    (dict(size=16 * 10**4), "makes 400000000 tokens"),
    (dict(modern="False"), "modern must be bool"),
    (dict(prediction="noise"), "prediction must be one of"),
    (dict(kind="folder"), "kind='folder'"),
]


@pytest.mark.parametrize("changes, error", WRONG, ids=lambda v: str(v)[:40])
def test_what_cannot_be_meant_is_refused_before_anything_is_written(tmp_path, changes, error):
    for call in (Experiment, make_video, open_recipe):
        with pytest.raises(ValueError, match=error):
            call(tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()


def test_the_right_value_is_taken_after_a_wrong_one(tmp_path):
    with pytest.raises(ValueError):
        open_recipe(tmp_path / "run", size=72)
    assert open_recipe(tmp_path / "run", size=80).size == 80


@pytest.mark.parametrize("kind", RECIPES)
def test_what_ships_is_right(kind):
    assert RECIPES[kind].check() is RECIPES[kind]


def test_a_first_call_that_is_refused_leaves_nothing(tmp_path):
    "An unknown word, a seed that is none, pictures only, no clip, a file as OUT, OUT in DATA."
    out, empty, pictures = tmp_path / "run", tmp_path / "empty", tmp_path / "pictures"
    empty.mkdir()
    pictures.mkdir()
    for name in ("a ball", "a ring"):
        Image.new("RGB", (40, 40), "red").save(pictures / f"{name}.png")
    data = films(tmp_path / "films")
    (tmp_path / "file").touch()
    small = dict(size=32, progress=False)
    for options, error in (
        (dict(prompt="a red dog"), "dog"),
        (dict(seed=-1), "seed"),
        (dict(data=str(pictures), **small), "a ball.png: 1 frame.*frames=1"),
        (dict(data=str(empty), **small), "empty"),
        (dict(data=str(data), prompt="film c", **small), "'c'"),
    ):
        with pytest.raises(ValueError, match=error):
            make_video(out, **options)
        assert not out.exists(), options
    with pytest.raises(NotADirectoryError, match="OUT=.*file: is a file"):
        make_video(tmp_path / "file")
    for inside in (data, data / "run"):
        with pytest.raises(ValueError, match="lies in DATA"):
            make_video(inside, data=str(data))
    assert not (data / "run").exists() and not (data / "recipe.json").exists()


def test_pictures_make_a_run_of_one_frame(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a ball", "a ring"):
        Image.new("RGB", (40, 40), "red").save(folder / f"{name}.png")
    run = Experiment(
        tmp_path / "run", str(folder), progress=False, size=32, frames=1, patch=(1, 2, 2)
    )
    with run.lock.scope():
        run.begin()
    assert json.loads((tmp_path / "run" / "captions.json").read_text()) == ["a ball", "a ring"]


# ------------------------------------------------- text


@pytest.mark.parametrize("text", ["true", "True", "YES", "on", "1", " yes "])
def test_what_is_true(text):
    assert parse_field(f"modern={text}") == ("modern", True)


@pytest.mark.parametrize("text", ["false", "False", "NO", "off", "0"])
def test_what_is_false(text):
    assert parse_field(f"modern={text}") == ("modern", False)


@pytest.mark.parametrize("text", ["", "maybe", "2", "None", "-1", "truee"])
def test_what_is_neither_is_refused_by_field(text):
    with pytest.raises(ValueError, match="relative_bias takes true or false"):
        parse_field(f"relative_bias={text}")


@pytest.mark.parametrize(
    "text, field",
    [
        ("patch=4,2,2", ("patch", (4, 2, 2))),
        ("patch=(1, 2, 2)", ("patch", (1, 2, 2))),
        ("patch=4x2x2", ("patch", (4, 2, 2))),
        ("motions=left,up", ("motions", ("left", "up"))),
        ("motions=left", ("motions", ("left",))),
        ("size=96x160", ("size", (96, 160))),
        ("size=64", ("size", 64)),
        ("lr=1e-3", ("lr", 0.001)),
        ("guidance=3", ("guidance_scale", 3.0)),
    ],
)
def test_text_becomes_the_fields_type(text, field):
    assert parse_field(text) == field


@pytest.mark.parametrize(
    "text, error",
    [
        ("steps=2.5", "steps takes a whole number"),
        ("steps=²", "steps takes a whole number"),
        ("steps=", "steps takes a whole number"),
        ("patch=4,a,2", "patch takes a whole number"),
        ("lr=nan", "lr takes a number"),
        ("lr=inf", "lr takes a number"),
        ("steps", "FIELD=VALUE"),
        ("stepz=3", "did you mean 'steps'"),
        ("data=x", "--data"),
        ("kind=folder", "--data"),
    ],
)
def test_text_that_is_none_is_refused_by_field(text, error, capsys):
    with pytest.raises(ValueError, match=error):
        parse_field(text)
    with pytest.raises(SystemExit) as stop:
        cli.main(["clips", "--out", "never", "--set", text])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_set_may_repeat(monkeypatch):
    seen = {}
    monkeypatch.setattr(cli, "make_video", lambda *a, **changes: seen.update(changes) or ("x", {}))
    call = ["video", "--set", "modern=no", "clips=2", "--set", "steps=5", "--set", "size=32"]
    assert cli.main(call) == 0
    assert seen == dict(modern=False, clips=2, steps=5, size=32)


def test_parse_text_of_every_kind():
    assert parse_text("x", " 3 ", int) == 3 and parse_text("x", "a b", str) == "a b"
    assert parse_texts("x", "['a', 'b']", str) == ("a", "b")


@pytest.mark.parametrize(
    "word, known, hint",
    [
        ("three", ["green", "red", "tree"], "'tree'"),
        ("three", ["green"], ""),
        ("dog", ["dot", "ring"], ""),
        ("rnig", ["ring", "star"], "'ring'"),
        ("rde", ["red"], "'red'"),
        ("colour", ["color"], "'color'"),
        ("blue", ["ball"], ""),
        ("stepz", ["steps", "ae_steps"], "'steps'"),
    ],
)
def test_only_what_is_near_is_suggested(word, known, hint):
    found = did_you_mean(word, known)
    assert hint in found if hint else found == ""


# ------------------------------------------------- wide clips, true rates, held-out captions


def test_a_folder_may_be_wide(tmp_path):
    data = films(tmp_path / "films")
    run = Experiment(tmp_path / "run", str(data), progress=False, size=(32, 64), ae_steps=2)
    assert run.clips()[0].frames.shape == (3, 16, 32, 64)
    assert run.cache.shape == (16, 16, 4, 8)
    assert json.loads((run.out / "recipe.json").read_text())["size"] == [32, 64]
    assert Experiment(run.out, progress=False, size=(32, 64)).recipe == run.recipe
    assert recipe_for(str(data), size=(64, 64)).size == 64


@pytest.mark.parametrize("fps, shown", [(0.0, 4.0), (8.0, 8.0)])
def test_a_run_keeps_the_true_rate(tmp_path, fps, shown):
    "Sixteen frames at 4 per second are four seconds: whole, or the middle two of them."
    data = films(tmp_path / "films", fps=4)
    tiny = dict(size=32, ae_steps=2, steps=1, width=48, depth=1, heads=3, num_inference_steps=1)
    run = Experiment(tmp_path / "run", str(data), progress=False, fps=fps, **tiny)
    assert run.pipeline.fps == pytest.approx(shown, rel=0.02)
    kept = json.loads((run.out / "model" / "latents.json").read_text())["fps"]
    assert kept == pytest.approx(shown, rel=0.02)
    again = experiment.VideoPipeline.from_pretrained(run.out)
    assert again.fps == pytest.approx(shown, rel=0.02)


def test_held_out_captions_are_made_of_known_words():
    captions = [f"a {c} {o} {w}" for c in "rgb" for o in "xyz" for w in ("up", "down", "left")]
    held = hold_out(captions, 0.2)
    assert len(held) == 5 and held == hold_out(reversed(captions), 0.2)
    rest = [c.split() for c in captions if c not in held]
    assert all({r[k] for r in rest} >= {c.split()[k]} for c in held for k in range(4))
    for few in (captions[:19], [f"word{i}" for i in range(40)], ["...", "!"] * 20, []):
        assert hold_out(few, 0.2) == []
    assert hold_out(captions, 0.0) == []


def test_a_folder_with_many_captions_holds_some_out(tmp_path):
    data, scenes = tmp_path / "films", SceneClips(1, size=16, frames=4)
    data.mkdir()
    names = [f"{c} {o} {w}" for c in ("red", "blue") for o in "xyzuv" for w in ("up", "down")]
    for name in names:
        write_video(data / f"{name}.mp4", scenes[0].frames, fps=8)
    run = Experiment(tmp_path / "run", str(data), progress=False, size=16, frames=4)
    held, kept = run.prompts(9), run.captions
    assert run.holds_out and len(held) == 2 and len(kept) == 18 and not set(held) & set(kept)
    assert len(run.clips()) == 18 and len(run.clips("heldout")) == 2 and len(run.clips("all")) == 20
    assert sorted(run.clips("heldout")[i].caption for i in range(2)) == held
    old = Experiment(tmp_path / "old", str(data), progress=False, size=16, frames=4, heldout=0.0)
    assert not old.holds_out and len(old.captions) == 20


# ------------------------------------------------- names and budgets


@pytest.mark.parametrize(
    "text, name",
    [
        ("...", "clip"),
        ("ve\u0301hicule", "véhicule"),
        ("a red/../ring", "a-red-ring"),
        ("\x1b[2J", "2j"),
        ("हिन्दी में", "हिन्दी-में"),
    ],
)
def test_the_name_of_a_clip(text, name):
    assert slug(text) == name


def test_a_long_name_fits_into_a_file_system(tmp_path):
    for text in ("车" * 200, "a" * 300, "é" * 200):
        assert len(slug(text).encode()) <= 150
        (tmp_path / f".{clip_name(text, 10**18, guidance_scale=2.5)}.mp4.12345678.part").touch()


def test_each_choice_of_sampling_has_a_name():
    names = {
        clip_name("x", seed, guidance_scale=g, num_inference_steps=n)
        for seed in (0, 1)
        for g in (None, 2.0, 3.5)
        for n in (None, 8)
    }
    assert len(names) == 12 and "x" in names and "x-seed1-guidance3.5-steps8" in names


@pytest.mark.parametrize("minutes", [1, 5, 20, 90])
def test_a_budget_is_filled(minutes):
    recipe = Recipe()
    found = steps_for(recipe, minutes, seconds=0.132)
    spent = found["steps"] * 0.132
    assert spent < 60 * minutes and recipe_for(**found)
    assert steps_for(recipe, minutes, 0.264)["steps"] < found["steps"]


def test_a_budget_is_asked_only_of_a_new_run(tmp_path, monkeypatch, capsys):
    asked, made = [], []
    monkeypatch.setattr(
        cli, "budget_changes", lambda data, m, **c: asked.append(m) or (dict(c, steps=9), "about")
    )
    monkeypatch.setattr(cli, "make_video", lambda *a, **c: made.append(c) or ("x", {}))
    call = ["video", "--out", str(tmp_path / "run"), "--minutes", "2", "--set", "size=32"]
    assert cli.main(call) == 0 and asked == [2.0] and made == [dict(size=32, steps=9)]
    assert "about" in capsys.readouterr().err
    open_recipe(tmp_path / "run", size=32)
    assert cli.main(call) == 0 and asked == [2.0] and made[1] == dict(size=32)
    for wrong in ("0", "-1", "nan", "soon"):
        with pytest.raises(SystemExit):
            cli.main(["video", "--minutes", wrong])


def test_version_and_module(capsys):
    import minisora

    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"minisora {minisora.__version__}\n"
    assert "main())" in (Path(minisora.__file__).parent / "__main__.py").read_text()


def test_help_lists_the_fields(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    for field in ("guidance_scale", "ae_noise", "fps", "heldout", "motions"):
        assert f"\n  {field} " in shown
