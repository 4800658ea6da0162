"""Captions to ids; what the model never saw is refused."""

import pytest
import torch

from minisora.clips import scene_caption, scene_combinations
from minisora.data.vocabulary import Vocabulary


@pytest.fixture
def vocab():
    captions = [scene_caption(*c) for c in scene_combinations()]
    return Vocabulary.from_captions(captions, drop=("a", "moves"))


def test_vocabulary(vocab):
    assert len(vocab) == 6 + 6 + 9 + 1 and vocab.slots == 3
    ids = vocab.encode("a red ring moves left")
    assert ids.dtype == torch.int64 and [vocab.words[i - 1] for i in ids] == ["red", "ring", "left"]
    for same in ("red ring left", "A red RING moving left.", "the red ring moves left"):
        assert torch.equal(vocab.encode(same), ids), same
    assert torch.equal(vocab.encode("a red ring growing"), vocab.encode("a red ring grows"))
    assert Vocabulary.from_dict(vocab.to_dict()) == vocab
    import json

    assert Vocabulary.from_dict(json.loads(json.dumps(vocab.to_dict()))) == vocab
    held = [scene_caption(*c) for c in scene_combinations("heldout")]
    assert vocab.encode_batch(held).min() > 0 and all(
        len(vocab.encode(h, strict=True)) == 3 for h in held
    )


@pytest.mark.parametrize(
    "prompt, strict, words",
    [
        (
            "a red dog moves left",
            False,
            "unknown word 'dog' in prompt 'a red dog moves left'; known: ball, blue",
        ),
        ("a rde ring grows", False, "did you mean 'red'"),
        ("a red red red ring grows", False, "has 5 words; the model knows up to 3"),
        ("  ", False, "has no words"),
        ("a ball moves left", True, "'ball' is never word 1"),
        ("a red ring", True, "word 3 is missing"),
    ],
)
def test_prompts_that_are_not_understood(vocab, prompt, strict, words):
    with pytest.raises(ValueError) as e:
        vocab.encode(prompt, strict)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_words_of_a_folder():
    vocab = Vocabulary.from_captions(
        ["a", "thank you", "moves", *(f"word{i}" for i in range(200))], drop=("a", "moves")
    )
    assert vocab.encode("a").tolist() == [vocab.ids["a"], 0] and vocab.encode("thank you").min() > 0
    with pytest.raises(ValueError) as e:
        vocab.encode("thx")
    assert "more" in str(e.value) and len(str(e.value)) < 400
    with pytest.raises(ValueError, match="duplicate word 'a'"):
        Vocabulary(["a", "a"], 2)
