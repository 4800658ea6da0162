"""Captions in any writing; what version 0.1 learned keeps its words."""

import json
import random

import pytest

from minisora.data.vocabulary import Vocabulary, tokenize
from minisora.data.words import split_words, split_words_earlier


@pytest.mark.parametrize(
    "caption, words",
    [
        ("A red ball, moving_left!", ["a", "red", "ball", "moving", "left"]),
        ("It's John's ball’s 'x'", ["it's", "john's", "ball's", "x"]),
        ("ve\u0301hicule E\u0301te\u0301", ["véhicule", "été"]),
        ("véhicule Été", ["véhicule", "été"]),
        ("Ｒｅｄ ﬁsh ①", ["red", "fish", "1"]),
        ("हिन्दी शब्द", ["हिन्दी", "शब्द"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("การ เดิน", ["การ", "เดิน"]),
        ("빨간 공", ["빨간", "공"]),
        ("一个红球", ["一", "个", "红", "球"]),
        ("红球 moves left", ["红", "球", "moves", "left"]),
        ("赤いボール", ["赤", "い", "ボ", "ー", "ル"]),
        ("🐶🔥", ["🐶", "🔥"]),
        ("👩‍🚀 👍🏽 ❤️ 🇨🇳🇫🇷", ["👩‍🚀", "👍🏽", "❤", "🇨🇳", "🇫🇷"]),
        ("ring🐶ring", ["ring", "🐶", "ring"]),
        ("İstanbul", ["i̇stanbul"]),
        ("_ -- ...", []),
    ],
)
def test_words(caption, words):
    assert split_words(caption) == [w for w in words]


def test_english_is_split_as_ever():
    chance = random.Random(0)
    signs = [chr(k) for k in range(32, 127)] + list("'''   aeiou") + list("éüß")
    for _ in range(2000):
        caption = "".join(chance.choices(signs, k=12))
        assert split_words(caption) == split_words_earlier(caption)


@pytest.mark.parametrize(
    "captions, prompt, count",
    [
        (["ve\u0301hicule rouge", "balle rouge"], "v\u00e9hicule rouge", 2),
        (["🐶", "🔥🐶"], "🐶🔥", 2),
        (["一个红球", "一个蓝球"], "一个蓝球", 4),
        (["दो गेंद", "एक गेंद"], "एक गेंद", 2),
    ],
)
def test_vocabularies_of_any_writing(captions, prompt, count):
    vocab = Vocabulary.from_captions(captions)
    assert (vocab.encode(prompt) > 0).sum() == count
    again = Vocabulary.from_dict(json.loads(json.dumps(vocab.to_dict())))
    assert again == vocab and again.split == 2
    assert again.encode(prompt, strict="🐶" not in prompt).tolist() == vocab.encode(prompt).tolist()
    with pytest.raises(ValueError, match="unknown word"):
        vocab.encode("ring 🦊")


@pytest.mark.parametrize(
    "captions",
    [
        ["ve\u0301hicule rouge", "balle rouge"],
        ["一个红球", "红", "球", "红球"],
        ["m² ½", "x™"],
        ["a ball 🔴", "a ring 🔴"],
    ],
)
def test_what_version_0_1_learned_keeps_its_words(captions):
    old = Vocabulary.from_captions(captions, split=1)
    assert old.words == tuple(sorted({w for c in captions for w in split_words_earlier(c)}))
    assert "split" not in old.to_dict()
    again = Vocabulary.from_dict(old.to_dict())
    for caption in captions:
        words = [again.words[i - 1] for i in again.encode(caption, strict=True) if i]
        assert words == split_words_earlier(caption)


def test_english_vocabularies_are_stored_as_ever():
    vocab = Vocabulary.from_captions(["a red ball", "a véhicule"], drop=("a",))
    assert vocab.to_dict() == Vocabulary.from_captions(
        ["a red ball", "a véhicule"], drop=("a",), split=1
    ).to_dict()
    assert "split" not in vocab.to_dict()
    assert vocab.encode("ve\u0301hicule").tolist() == vocab.encode("véhicule").tolist()


def test_a_prompt_is_a_text():
    vocab = Vocabulary.from_captions(["a red ball"])
    for wrong in (None, 3, ["a red ball"]):
        with pytest.raises(ValueError, match="a prompt is a text"):
            vocab.encode(wrong)
    assert tokenize("The ball", drop=("a",)) == ["ball"]
