"""Captions as people write them: each a pure function, and a set apart for measuring."""

import re
from collections import Counter

import pytest

from minisora.clips import COLORS, MOTIONS, OBJECTS, scene_caption, scene_combinations
from minisora.data.captions import CAPTION_WORDS, heldout_paraphrases, vary_caption

TRAIN, HELDOUT = CAPTION_WORDS["train"], CAPTION_WORDS["heldout"]
# words of direction, which English has once, and words that carry little alone
SHARED = set("left right up down".split())
EMPTY = set("a the to and in of on off it this shape sign side symbol three circular".split())


def content(words):
    "The words of all phrases that name an object, a color or a motion."
    found = {w for p in words.phrases() for w in re.findall(r"[a-z]+", p)}
    return found - EMPTY


def test_every_scene_can_be_written():
    for words in CAPTION_WORDS.values():
        assert set(words.objects) == set(OBJECTS) and set(words.colors) == set(COLORS)
        assert set(words.motions) == set(MOTIONS)
    for i, combination in enumerate(scene_combinations("all")):
        assert vary_caption(combination, 0, i) and HELDOUT.write(combination, 0, i)


def test_the_plain_caption_is_one_of_them():
    for table in (TRAIN.objects, TRAIN.colors):
        assert all(texts[0] == name for name, texts in table.items())
    moves = {motion: forms[0][0] for motion, forms in TRAIN.motions.items()}
    for motion, says in moves.items():
        assert scene_caption("ball", "red", motion) == f"a red ball {says}"
    assert TRAIN.templates[0].format(color="red", object="ball", moves="x") == "a red ball x"


def test_a_caption_depends_on_seed_and_index_alone():
    scene = ("ring", "red", "left")
    first = [vary_caption(scene, 1, i) for i in range(50)]
    assert first == [vary_caption(scene, 1, i) for i in range(50)]
    assert first != [vary_caption(scene, 2, i) for i in range(50)]
    assert len(set(first)) > 35


def test_captions_differ_in_words_order_and_what_they_say():
    scene = ("ball", "blue", "right")
    many = [vary_caption(scene, 0, i) for i in range(2000)]
    for texts in (TRAIN.objects["ball"], TRAIN.colors["blue"]):
        assert len(texts) > 10
        assert all(any(text in caption for caption in many) for text in texts)
    colors = re.compile("|".join(TRAIN.colors["blue"]))
    unsaid = sum(not colors.search(c) for c in many) / len(many)
    assert 0.03 < unsaid < 0.1
    starts = Counter(caption.split()[0] for caption in many)
    assert len(starts) > 8
    assert any(re.match(r"\w+ing .*right.*: an? ", caption) for caption in many)
    assert all(colors.search(vary_caption(scene, 0, i, leave_out=0)) for i in range(300))


def test_articles_go_with_the_next_word():
    many = [vary_caption(("ball", "blue", "left"), 0, i) for i in range(3000)]
    assert any("an indigo" in c for c in many) and any("an orb" in c for c in many)
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]", c) for c in many)


def test_300_held_out_paraphrases_share_no_template_and_no_synonym():
    found = heldout_paraphrases(scene_combinations("all"), 300)
    assert len({caption for caption, _ in found}) == len(found) == 300
    assert not set(TRAIN.templates + TRAIN.partial) & set(HELDOUT.templates + HELDOUT.partial)
    assert not TRAIN.phrases() & HELDOUT.phrases()
    assert content(TRAIN) & content(HELDOUT) == SHARED
    assert content(TRAIN) & content(CAPTION_WORDS["rare"]) == SHARED
    assert max(Counter(combination for _, combination in found).values()) == 1
    trained = {vary_caption(c, 0, i) for i in range(20) for c in scene_combinations("all")}
    assert not trained & {caption for caption, _ in found}


def test_templates_of_the_two_sets_have_no_frame_in_common():
    def frame(template):
        return tuple(re.sub(r"\{\w+\}", "_", template).lower().split())

    train = {frame(t) for t in TRAIN.templates + TRAIN.partial}
    assert not train & {frame(t) for t in HELDOUT.templates}


def test_held_out_paraphrases_say_everything_of_their_scene():
    for caption, (obj, color, motion) in heldout_paraphrases(scene_combinations("all"), 300):
        assert any(text in caption for text in HELDOUT.objects[obj]), caption
        assert any(text in caption for text in HELDOUT.colors[color]), caption
        assert any(form in caption for forms in HELDOUT.motions[motion] for form in forms), caption


def test_errors_name_what_is_unknown():
    with pytest.raises(ValueError, match="unknown object 'bal'; known: ball.*did you mean 'ball'"):
        vary_caption(("bal", "red", "left"))
    with pytest.raises(ValueError, match="unknown color 'pink'"):
        vary_caption(("ball", "pink", "left"))
    with pytest.raises(ValueError, match="unknown motion 'fly'"):
        vary_caption(("ball", "red", "fly"))
    with pytest.raises(ValueError, match="n: 1 scenes give .* captions, not 5000"):
        heldout_paraphrases([("ball", "red", "left")], 5000)
    with pytest.raises(ValueError, match="leave_out"):
        vary_caption(("ball", "red", "left"), leave_out=2)
