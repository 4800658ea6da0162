"""A video model's config is made of parts: by a word, as an object, from JSON, and back; and old
names still lead there."""

import dataclasses
import importlib
import json
import warnings
from itertools import product

import pytest
import torch
from helpers.models import FRAMES, IN_CONTEXT, TINY, VIDEO, label, video

from minisora.core.checks import config_from_dict, config_to_dict
from minisora.core.hub import MODELS
from minisora.core.renames import OLD_ATTRIBUTES, OLD_FIELDS, OLD_NAMES
from minisora.dit import DiT, DiTConfig, TimestepEmbedder
from minisora.models.conditions import CONDITIONS, CaptionCondition, Unconditional, WordCondition
from minisora.models.layers import BlockConfig
from minisora.models.layouts import LAYOUTS, Checkpointed, Factorized, Joint, as_part
from minisora.models.positions import (
    POSITIONS,
    InflatedPositions,
    LattePositions,
    LearnedPositions,
    Positions,
    RelativePositionBias,
    RopePositions,
    SinCosPositions,
)
from minisora.models.modulation import MODULATIONS, AdaLN, AdaLNLoRA
from minisora.models.preconditioning import OUTPUTS, DataOutput, DirectOutput, EDMOutput
from minisora.models.text_conditions import PooledText, TextCrossAttention, TextInContext
from minisora.models.windows import Windows
from minisora.temporal import VIDEO_PRESETS, VideoDiT, VideoDiTConfig, inflate

PARTS = dict(
    layout=[Joint(), Factorized(), Windows(((1, 0, 0), (0, 2, 2)))],
    modulation=[AdaLN(), AdaLNLoRA(3)],
    positions=[
        Positions(),
        SinCosPositions((8, 4, 6)),
        RopePositions(),
        InflatedPositions(),
        LattePositions(learned_time=True),
        LearnedPositions((8, 4, 6)),
    ],
    condition=[
        Unconditional(),
        WordCondition(7, 2, True, 0.5),
        CaptionCondition(6),
        PooledText(6),
        TextInContext(6, 2),
        TextCrossAttention(6, 2),
    ],
    output=[DirectOutput(), DirectOutput(learn_sigma=True), EDMOutput(), DataOutput(0.1)],
)
FAMILIES = dict(
    layout=LAYOUTS,
    modulation=MODULATIONS,
    positions=POSITIONS,
    condition=CONDITIONS,
    output=OUTPUTS,
)


def allowed():
    "Every combination of kinds that a model can have."
    for values in product(*PARTS.values()):
        options = dict(zip(PARTS, values))
        if options["positions"].kind == "latte" and options["layout"].joins_time:
            continue
        if options["condition"].kind == "caption" and options["positions"].kind != "latte":
            continue
        yield options


def test_every_kind_is_tried():
    for name, registry in FAMILIES.items():
        assert {p.kind for p in PARTS[name]} == {c.kind for c in registry.classes.values()}


# ---------------------------------------------------------------- JSON and back


@pytest.mark.parametrize("options", list(allowed()), ids=label)
def test_a_config_goes_to_json_and_back(options):
    config = dataclasses.replace(FRAMES, block=BlockConfig(3.0, "rms", "swiglu", True), **options)
    values = json.loads(json.dumps(config.to_dict()))
    assert values["version"] == 2
    for name, part in options.items():
        assert values[name]["kind"] == part.kind
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert config_from_dict(VideoDiTConfig, values) == config
    assert VideoDiTConfig(**VideoDiTConfig.upgrade(values)) == config


@pytest.mark.parametrize("name", VIDEO_PRESETS)
def test_presets_go_to_json_and_back(name):
    values = json.loads(json.dumps(config_to_dict(VIDEO_PRESETS[name])))
    assert config_from_dict(VideoDiTConfig, values) == VIDEO_PRESETS[name]


def test_image_configs_go_to_json_and_back():
    values = json.loads(json.dumps(config_to_dict(TINY)))
    assert config_from_dict(DiTConfig, values) == TINY
    old = dict(size=[8, 8], time="flow", learn_sigma=False, checkpoint=True)
    want = DiTConfig(size=(8, 8), time_convention="flow", learn_sigma=False)
    assert config_from_dict(DiTConfig, old) == want


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_named_by_a_word_a_dict_or_itself(name):
    registry = FAMILIES[name]
    for part in PARTS[name]:
        fields = dataclasses.asdict(part)
        assert as_part(registry, part) is part
        assert as_part(registry, dict(kind=part.kind, **fields)) == part
        assert as_part(registry, part.kind) == type(part)()


def test_earlier_words_are_understood():
    assert as_part(LAYOUTS, "factorised") == Factorized()
    assert as_part(OUTPUTS, "none") == DirectOutput() and as_part(OUTPUTS, "x") == DataOutput()
    assert MODELS["VideoDiT"] is MODELS["video-dit"] is VideoDiT and MODELS["DiT"] is DiT


def test_parts_are_equal_by_what_they_say():
    words = dataclasses.replace(VIDEO, layout="factorized", condition=dict(kind="words", vocab=5))
    objects = dataclasses.replace(VIDEO, layout=Factorized(), condition=WordCondition(5))
    assert words == objects and hash(words) == hash(objects)
    assert dataclasses.replace(VIDEO, block=dict(norm="rms")).block == BlockConfig(norm="rms")


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("layout", "axial", "must be one of 'factorized', .*, not 'axial'"),
        ("layout", "factorize", r"must be .* not 'factorize'; did you mean 'factorized'\?"),
        ("layout", dict(num_joint_images=2), "must be one of 'factorized', .*, not None"),
        ("layout", None, "must be one of 'factorized', .*, not None"),
        ("layout", Factorized, r"must be a part such as Factorized\(\), not <class"),
        ("layout", Checkpointed(), "must be one of 'factorized', .*, not 'checkpointed'"),
        # kinds of another family that are called alike
        ("positions", Unconditional(), r"must be a part such as Positions\(\), not Unconditional"),
        ("condition", Positions(), r"must be a part such as Unconditional\(\), not Positions"),
        ("output", Positions(), r"must be a part such as DirectOutput\(\), not Positions"),
        ("positions", 3, "must be one of .*'rope'.* not 3"),
        ("block", "rms", "must be a BlockConfig, not 'rms'"),
        ("block", None, "must be a BlockConfig, not None"),
    ],
    ids=str,
)
def test_what_is_no_part_is_refused(field, value, message):
    with pytest.raises(ValueError, match=rf"^VideoDiTConfig\.{field} {message}"):
        dataclasses.replace(VIDEO, **{field: value})


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda v: v.update(window=3),
            r"^here: VideoDiTConfig has no field 'window'$",
        ),
        (lambda v: v.update(witdh=3), "has no field 'witdh'; did you mean 'width'"),
        (lambda v: v["layout"].update(kind="axial"), r"^here: VideoDiTConfig\.layout must be one"),
        (lambda v: v["condition"].update(vocabb=3), "^here: .*WordCondition.*'vocabb'"),
        (lambda v: v["condition"].update(vocab=0), r"^here: WordCondition\.vocab must be at least"),
        (lambda v: v["block"].update(norm="batch"), r"^here: BlockConfig\.norm must be one of"),
        (lambda v: v["block"].update(window=3), "^here: .*BlockConfig.*'window'"),
        (lambda v: v.update(width=50), r"^here: VideoDiTConfig\.width: 50 is not a multiple of 4"),
    ],
)
def test_spoilt_json_is_refused(change, message):
    values = json.loads(json.dumps(FRAMES.to_dict()))
    change(values)
    with pytest.raises(ValueError, match=message) as info:
        config_from_dict(VideoDiTConfig, values, "here")
    assert "\n" not in str(info.value)


def test_parts_of_a_file_without_the_rest_are_not_lost():
    "A config.json that a hand wrote: what it does not say keeps its default."
    values = dict(size=[4, 4, 6], patch=[1, 2, 2], layout=dict(kind="factorized"), positions="rope")
    config = config_from_dict(VideoDiTConfig, values)
    assert config.layout == Factorized() and config.positions == RopePositions()
    assert config.block == BlockConfig()


# ---------------------------------------------------------------- names of version 0.1

# what `__all__` of the two modules held
DIT = """PRESETS check_fields one_of DiTConfig dit_presets patchify unpatchify PatchEmbed
sincos_1d places sincos_2d rotary rotate neighbours RelativeBias TimestepEmbedder LabelEmbedder
attend Attention Mlp gated_width SwiGLU modulate token_norm DiTBlock FinalLayer path_variance
velocity_from_rest velocity_from_data initialise config_from_dict load_state written_whole
Pretrained fixed_positions DiT resize read_tensors load_official_state official_state
save_official_state diffusers_layout to_diffusers from_diffusers diffusers_config
diffusers_constants config_from_diffusers read_json diffusers_folder load_diffusers
pipeline_labels save_diffusers save_dit_pipeline count_parameters dit_macs""".split()
TEMPORAL = """VIDEO_PRESETS VideoDiTConfig video_problems sincos_3d rope_split rotary_3d
video_positions hashed routed_tokens rows_of VideoDiT latte_state load_latte_state inflate
load_image_weights resize_video bias_grid stretched_table stretched_time video_presets
latte_presets""".split()
MODULES = {"minisora.dit": DIT, "minisora.temporal": TEMPORAL}
NAMES = [(m, n) for m, names in MODULES.items() for n in names]
TABLE = [(m, n) for m in MODULES for n in OLD_NAMES[m]]


@pytest.mark.parametrize("module, name", NAMES, ids=map(".".join, NAMES))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_name_of_version_0_1_is_still_there(module, name):
    assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize("module, name", TABLE, ids=map(".".join, TABLE))
def test_every_old_name_of_the_table_resolves_and_warns(module, name):
    home, _, new = OLD_NAMES[module][name].partition(":")
    want = getattr(importlib.import_module(home), new)
    found = importlib.import_module(module)
    if name in vars(found):  # the lesson imports it itself
        assert vars(found)[name] is want
        return
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} is now {home}.{new}") as said:
        assert getattr(found, name) is want
    assert said[0].filename == __file__


def test_a_name_that_never_was_is_none():
    for module in MODULES:
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            getattr(importlib.import_module(module), "nothing")


@pytest.mark.parametrize(
    "thing, old, new",
    [
        (DiTConfig(), "time", "time_convention"),
        (TimestepEmbedder(8, "ddpm"), "time", "convention"),
        (RelativePositionBias(2, (1, 2, 2), prefix=3), "extra", "prefix"),
        (DiT(TINY), "tokens", "embed_tokens"),
        (video(FRAMES, condition=IN_CONTEXT), "extra", "num_tokens"),
        (video(), "shape_of", "infer_layout"),
        (video(), "bias_of", "block_bias"),
        (video(FRAMES, positions="rope", layout="factorized"), "turns", "rope"),
        (video(FRAMES, positions="rope", layout="factorized"), "time_turns", "time_rope"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_old_attributes_lead_to_the_new_ones(thing, old, new):
    assert OLD_ATTRIBUTES[type(thing).__name__][old] == new
    with pytest.warns(DeprecationWarning, match=f"{type(thing).__name__}.{old} is now {new}"):
        found = getattr(thing, old)
    want = getattr(thing, new)
    assert found is want or found == want


def test_old_fields_are_taken_by_their_old_names():
    assert OLD_FIELDS["DiTConfig"] == dict(time="time_convention")
    with pytest.warns(DeprecationWarning, match=r"DiTConfig\(time=…\) is now time_convention=…"):
        assert DiTConfig(time="flow") == DiTConfig(time_convention="flow")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_was_called_otherwise_still_gives_the_same():
    from minisora import dit, temporal
    from minisora.models.weights import diffusers_config

    with pytest.raises(ValueError, match=r"DiTConfig\.norm must be one of 'x', not 'layer'"):
        dit.one_of(TINY, "norm", ("x",))
    xl = dit.PRESETS["DiT-XL/2"]
    assert dit.config_from_diffusers(diffusers_config(xl)) == xl
    rope = dataclasses.replace(FRAMES, positions="rope", layout="factorized")
    assert set(temporal.video_positions(rope)) == {"rope", "time_rope"}
    assert list(temporal.video_problems(rope)) == []
    assert temporal.bias_grid(VideoDiT(rope), 1) == (4, 1, 1)
    image = DiT(TINY)
    bare = inflate(image, 2)
    with torch.no_grad():
        bare.blocks[0].attn.qkv.weight.zero_()
    filled = temporal.load_image_weights(bare, image)
    assert torch.equal(filled.blocks[0].attn.qkv.weight, image.blocks[0].attn.qkv.weight)
