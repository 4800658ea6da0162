"""The recipe of a run: its fields, the recipe for some data, and the one that a folder holds."""

import json
from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest

from minisora.data.vocabulary import Vocabulary
from minisora.interpolants import Interpolant
from minisora.models.conditions import WordCondition
from minisora.models.layers import BlockConfig
from minisora.recipe import (
    FAST_SHAPES,
    MODERN_BLOCK,
    RECIPES,
    SMOOTH_MOTION,
    Recipe,
    open_recipe,
    read_recipe,
    recipe_for,
)

WORDS = Vocabulary.from_captions(["a red ring moves left", "a blue ball grows"], ("a", "moves"))


# ---------------------------------------------------------------- a recipe


def test_a_recipe_is_frozen_and_equal_to_its_copy():
    recipe = Recipe(steps=6)
    assert recipe == Recipe(steps=6) != Recipe() and hash(recipe) == hash(Recipe(steps=6))
    with pytest.raises(FrozenInstanceError):
        recipe.steps = 7


def test_lists_of_json_become_tuples():
    recipe = Recipe(patch=[2, 2, 2], motions=["left", "up"])
    assert recipe.patch == (2, 2, 2) and recipe.motions == ("left", "up")


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(steps="many"), "Recipe.steps must be int, not 'many'"),
        (dict(steps=2.5), "Recipe.steps must be int, not 2.5"),
        (dict(steps=True), "Recipe.steps must be int, not True"),
        (dict(steps=0), "Recipe.steps must be at least 1, not 0"),
        (dict(seed=-1), "Recipe.seed must be at least 0, not -1"),
        (dict(lr="fast"), "Recipe.lr must be float, not 'fast'"),
        (dict(modern=1), "Recipe.modern must be bool, not 1"),
        (dict(patch=(4, 2)), r"Recipe.patch must be 3 positive integers, not \(4, 2\)"),
        (dict(patch=(4, 2, 0)), r"Recipe.patch must be 3 positive integers, not \(4, 2, 0\)"),
        (dict(kind="films"), "Recipe.kind must be one of 'scenes', .*, not 'films'"),
        (dict(on_error="ignore"), "Recipe.on_error must be one of .*, not 'ignore'"),
        (dict(prediction="noise"), "Recipe.prediction must be one of 'data', .*, not 'noise'"),
    ],
)
def test_a_wrong_value_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**wrong)


@pytest.mark.parametrize("name", ["enc_width", "smooth", "decoder_steps", "renoise_times", "seed"])
def test_what_may_be_zero(name):
    assert getattr(Recipe(**{name: 0}), name) == 0


def test_a_whole_number_is_a_float_too():
    assert Recipe(guidance_scale=3) == Recipe(guidance_scale=3.0)
    assert type(Recipe(guidance_scale=3).guidance_scale) is float


# ---------------------------------------------------------------- what it says of a run


@pytest.mark.parametrize("modern", [False, True])
def test_the_model_of_a_recipe(modern):
    recipe = Recipe(modern=modern, width=48, depth=2, heads=3, in_context=False, init_std=0.1)
    config = recipe.model_config((8, 16, 8, 8), WORDS)
    assert (config.channels, config.size, config.patch) == (8, (16, 8, 8), (4, 2, 2))
    assert (config.width, config.depth, config.heads) == (48, 2, 3)
    assert config.condition == WordCondition(len(WORDS), WORDS.slots, False, 0.1)
    assert config.block == (MODERN_BLOCK if modern else BlockConfig())
    assert MODERN_BLOCK == BlockConfig(norm="rms", mlp="swiglu", qk_norm=True) != BlockConfig()


def test_the_objective_of_a_recipe():
    data = Recipe(shift=3.0, max_weight=9.0, jerk_weight=0.1, temporal_diff_weight=2.0).objective()
    assert data == Interpolant(
        prediction="data",
        loss_weighting="velocity",
        max_weight=9.0,
        shift=3.0,
        std=1.4,
        temporal_diff_weight=2.0,
        jerk_weight=0.1,
    )
    assert Recipe(prediction="velocity").objective() == Interpolant(shift=6.0, std=1.4)


def test_the_sampling_of_a_recipe():
    recipe = Recipe(num_inference_steps=7, eta=0.5, guidance_until=0.3, renoise_times=2, shift=2.0)
    assert recipe.sampling() == dict(
        num_inference_steps=7,
        guidance_scale=2.0,
        guidance_interval=[0.0, 0.3],
        solver="ddim",
        eta=0.5,
        shift=2.0,
        renoise_times=2,
    )


def test_the_words_of_a_recipe():
    captions = ["a red ring moves left", "a blue ball grows"]
    assert Recipe().vocabulary(captions) == WORDS
    assert WORDS.words == ("ball", "blue", "grows", "left", "red", "ring")


# ---------------------------------------------------------------- for some data


@pytest.fixture
def data(tmp_path):
    "A folder of clips, an .npz of digits, and a file that is neither."
    (tmp_path / "clips").mkdir()
    (tmp_path / "digits.npz").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no video")
    return tmp_path


def test_each_kind_of_data_has_its_recipe(data, monkeypatch):
    assert recipe_for() == RECIPES["scenes"]
    digits = recipe_for(data / "digits.npz")
    assert digits == replace(RECIPES["digits"], data=str(data / "digits.npz"))
    clips = recipe_for(str(data / "clips"), steps=9)
    assert clips == replace(RECIPES["folder"], data=str(data / "clips"), steps=9)
    monkeypatch.chdir(data)
    assert recipe_for("clips").data == str(data / "clips"), "a run finds its data from anywhere"


def test_recipes_share_what_was_found():
    for kind in ("scenes", "digits"):
        found = asdict(RECIPES[kind])
        assert found["kind"] == kind
        assert {**found, **SMOOTH_MOTION, **FAST_SHAPES} == found
    assert RECIPES["folder"] == Recipe(
        kind="folder", size=96, channels=16, ae_noise=0.05, shift=3.0, steps=3000, heldout=0.1
    )


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("nowhere", FileNotFoundError, "nowhere: no such file or folder"),
        ("notes.txt", ValueError, "notes.txt: neither a folder of clips nor an .npz"),
    ],
)
def test_data_that_is_none_is_named(data, name, error, message):
    with pytest.raises(error, match=message):
        recipe_for(str(data / name))


@pytest.mark.parametrize("call", [recipe_for, lambda **k: open_recipe("unused", **k)])
def test_an_unknown_field_is_named(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = "no recipe field 'stepz'; did you mean 'steps'.*known: .*guidance_scale"
    with pytest.raises(ValueError, match=message):
        call(stepz=3)
    assert not [*tmp_path.iterdir()], "nothing is written"


def test_a_wrong_change_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="Recipe.steps must be int, not 'many'"):
        open_recipe(tmp_path / "run", steps="many")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- in a folder


def test_a_folder_keeps_its_recipe(tmp_path):
    recipe = open_recipe(tmp_path / "new" / "run", steps=6, patch=(2, 2, 2), motions=["left"])
    path = tmp_path / "new" / "run" / "recipe.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(asdict(recipe)))
    assert set(json.loads(path.read_text())) == {f.name for f in fields(Recipe)}
    before = path.stat()
    assert open_recipe(tmp_path / "new" / "run") == recipe == read_recipe(path)
    assert open_recipe(tmp_path / "new" / "run", steps=6) == recipe
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_another_recipe_in_the_same_folder_is_an_error(data):
    open_recipe(data / "run", str(data / "clips"), steps=6)
    with pytest.raises(ValueError, match="run holds a run with steps=6, not 7: choose another"):
        open_recipe(data / "run", steps=7)
    with pytest.raises(ValueError, match="holds a run with data=.*clips.*, not .*digits.npz"):
        open_recipe(data / "run", str(data / "digits.npz"))


def test_what_json_makes_of_a_tuple_is_no_other_value(tmp_path):
    open_recipe(tmp_path, patch=(2, 2, 2), motions=("left", "up"))
    again = open_recipe(tmp_path, patch=(2, 2, 2), motions=("left", "up"))
    assert again.patch == (2, 2, 2)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is no JSON"),
        ("", "is no JSON"),
        ("[]", "no JSON object"),
        ("3", "no JSON object"),
        ('{"kind": "scenes", "colour": 3}', "Recipe has no field 'colour'.*not a recipe"),
        ('{"stepz": 3}', "Recipe has no field 'stepz'; did you mean 'steps'"),
        ('{"steps": "many"}', "Recipe.steps must be int, not 'many'.*not a recipe"),
        ('{"kind": "films"}', "Recipe.kind must be one of .*not 'films'"),
        ('{"motions": 3}', "motions|not iterable"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, text, message):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        open_recipe(tmp_path)
    assert str(tmp_path / "recipe.json") in str(raised.value) and "\n" not in str(raised.value)
    assert (tmp_path / "recipe.json").read_text() == text


def test_what_version_01_wrote_is_read(root):
    recipe = read_recipe(root / "tests" / "data" / "version-0.1" / "run" / "recipe.json")
    assert (recipe.renoise_times, recipe.in_context, recipe.decoder_steps) == (2, True, 0)
    first = read_recipe(root / "data" / "first-video" / "recipe.json")
    assert first.kind == "scenes" and first.guidance_scale > 1 and first.decoder_steps > 0


OLD_FIELDS = dict(
    context=("in_context", False),
    label_std=("init_std", 0.25),
    delta=("temporal_diff_weight", 2.0),
    steady=("jerk_weight", 0.5),
    tune_steps=("decoder_steps", 3),
    sample_steps=("num_inference_steps", 7),
    guidance=("guidance_scale", 3.0),
    settle=("renoise_times", 4),
)


@pytest.mark.parametrize("old", OLD_FIELDS)
def test_a_field_of_version_01_by_its_old_name(tmp_path, old):
    new, value = OLD_FIELDS[old]
    with pytest.warns(DeprecationWarning, match=f"{old}=….* is now {new}=…"):
        recipe = Recipe(**{old: value})
    assert getattr(recipe, new) == value
    with pytest.warns(DeprecationWarning, match=f"Recipe.{old} is now {new}"):
        assert getattr(recipe, old) == value
    # in a file, and as a change, without a warning: files cannot be told
    (tmp_path / "recipe.json").write_text(json.dumps({old: value}))
    assert read_recipe(tmp_path / "recipe.json") == recipe
    assert getattr(recipe_for(**{old: value}), new) == value
    assert open_recipe(tmp_path, **{old: value}) == recipe
