"""Embeddings of captions beside the latents: made once, by one encoder, for one cache's text."""

import copy
import pickle

import pytest
import torch
from helpers.latent_cache import write
from helpers.models import VIDEO
from safetensors.torch import load_file, save_file

from minisora.core.pairs import innermost, made_from, note_of
from minisora.interpolants import Interpolant
from minisora.latent_cache import LatentCache, verify_cache
from minisora.latents.caption_embeddings import (
    CaptionedCache,
    CaptionEmbeddings,
    embeddings_file,
    write_caption_embeddings,
)
from minisora.models.text_conditions import TextInContext
from minisora.models.text_encoders import HashedWords
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import fit

ENCODER = HashedWords(12, 6)


class Counting(HashedWords):
    "An encoder that counts its calls."

    calls = 0

    def encode_batch(self, captions):
        self.calls += 1
        return super().encode_batch(captions)


@pytest.fixture
def cache(tmp_path):
    return write(tmp_path / "c")


def varied(cache, versions=3):
    return [[f"a clip {i % 4}", *(f"version {k} of {i % 4}" for k in range(1, versions))]
            for i in range(len(cache))]  # fmt: skip


def test_rows_are_what_the_encoder_says(cache):
    found = write_caption_embeddings(cache.path, ENCODER, tokens=4, dtype="float32")
    want = ENCODER.encode(cache.captions).pack(4)
    assert torch.equal(found.rows[found.choices[:, 0]], want)
    assert torch.equal(found.encode_batch(cache.captions), want)
    assert len(found.texts) == len(set(cache.captions)) and found.rows.shape[1:] == (5, 12)
    assert not verify_cache(cache.path) and len(LatentCache(cache.path)) == len(cache)
    half = write_caption_embeddings(cache.path, ENCODER, tokens=4, name="half")
    assert half.rows.dtype == torch.float16 and half.encode(cache.captions[0]).dtype == torch.float
    torch.testing.assert_close(half.encode_batch(cache.captions), want, rtol=1e-3, atol=1e-4)
    assert torch.equal(half.rows == 0, found.rows == 0)  # no padding, no token, comes or goes


def test_the_work_is_done_once(cache):
    encoder = Counting(12, 6)
    first = write_caption_embeddings(cache.path, encoder, varied(cache))
    before = encoder.calls, first.file.read_bytes()
    again = write_caption_embeddings(cache.path, encoder, varied(cache))
    assert (encoder.calls, again.file.read_bytes()) == before
    assert torch.equal(first.rows, again.rows)


def test_another_encoder_is_refused(cache):
    write_caption_embeddings(cache.path, ENCODER)
    other = HashedWords(13, 6)
    message = rf"captions.embeddings.safetensors holds .* \(12 numbers, {ENCODER.fingerprint}\)"
    with pytest.raises(ValueError, match=message):
        CaptionEmbeddings(cache.path, encoder=other)
    with pytest.raises(ValueError, match=message):
        write_caption_embeddings(cache.path, other)
    assert CaptionEmbeddings(cache.path, encoder=HashedWords(12, 6)).encoder is not None
    found = write_caption_embeddings(cache.path, other, overwrite=True)
    assert found.rows.shape[-1] == 13


def test_other_captions_tokens_and_types_are_refused(cache):
    write_caption_embeddings(cache.path, ENCODER, tokens=2)
    for change, message in (
        (dict(captions=varied(cache), tokens=2), "of other captions"),
        (dict(tokens=3), "of tokens=2, not 3"),
        (dict(tokens=2, dtype="float32"), "of dtype='float16', not 'float32'"),
    ):
        with pytest.raises(ValueError, match=f"captions.embeddings.safetensors is .* {message}"):
            write_caption_embeddings(cache.path, ENCODER, **change)


def test_embeddings_of_another_cache_are_refused(cache, tmp_path):
    write_caption_embeddings(cache.path, ENCODER)
    other = write(tmp_path / "other", n=12)
    file = embeddings_file(other.path)
    file.write_bytes(embeddings_file(cache.path).read_bytes())
    with pytest.raises(ValueError, match="was made for other text than this cache has"):
        CaptionEmbeddings(other.path)


def test_damage_is_named(cache):
    file = write_caption_embeddings(cache.path, ENCODER).file
    whole = file.read_bytes()
    for broken in (whole[:-100], whole[:50], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="captions.embeddings.safetensors"):
            CaptionEmbeddings(cache.path)
    save_file(dict(rows=torch.zeros(1)), file)
    with pytest.raises(ValueError, match="holds no embeddings of captions: its format is None"):
        CaptionEmbeddings(cache.path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="write_caption_embeddings makes it"):
        CaptionEmbeddings(cache.path)
    with pytest.raises(ValueError, match="name must be of letters"):
        CaptionEmbeddings(cache.path, "../x")


def test_a_failed_write_leaves_the_old_file(cache, monkeypatch):
    file = write_caption_embeddings(cache.path, ENCODER).file
    before = file.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minisora.core.files.save_file", fail)
    with pytest.raises(OSError, match="captions.embeddings.safetensors"):
        write_caption_embeddings(cache.path, ENCODER, tokens=3, overwrite=True)
    assert file.read_bytes() == before and load_file(file)


def test_each_epoch_has_other_captions_by_seed_epoch_and_index(cache):
    embeddings = write_caption_embeddings(cache.path, ENCODER, varied(cache, 3), tokens=2)
    data = CaptionedCache(cache, embeddings)
    index = list(range(len(cache)))
    seen = []
    for epoch in range(12):
        data.set_epoch(epoch)
        batch = data[index]
        assert batch["condition"].shape == (len(cache), 3, 12)
        assert torch.equal(batch["latents"], cache[index]["latents"])
        one = data[5]
        assert torch.equal(one["condition"], batch["condition"][5])
        reverse = data[index[::-1]]["condition"].flip(0)
        assert torch.equal(reverse, batch["condition"])
        seen.append(data.texts_of(torch.tensor(index)))
    seen = torch.stack(seen)
    assert all(len(set(column.tolist())) == 3 for column in seen.T)
    for texts, own in zip(seen.T, varied(cache), strict=True):
        assert {embeddings.texts[k] for k in texts} <= set(own)
    fixed = CaptionedCache(cache, embeddings, first=True)
    assert [embeddings.texts[k] for k in fixed.texts_of(torch.tensor(index))] == [
        some[0] for some in varied(cache)
    ]


def test_a_caption_that_is_not_there_needs_the_encoder(cache):
    write_caption_embeddings(cache.path, ENCODER, tokens=2, dtype="float32")
    alone = CaptionEmbeddings(cache.path)
    with pytest.raises(ValueError, match="has no caption 'a new one'; open it with its encoder"):
        alone.encode("a new one")
    found = CaptionEmbeddings(cache.path, encoder=ENCODER).encode("a new one")
    assert torch.equal(found, ENCODER.encode(["a new one"]).pack(2)[0])


def test_fit_takes_it_notes_the_encoder_and_resumes_with_it_only(cache, tmp_path):
    data = CaptionedCache(cache, write_caption_embeddings(cache.path, ENCODER, tokens=2))
    assert innermost(data) is data and made_from(data) != made_from(cache)
    note = note_of(Interpolant(), data)
    assert note["vocabulary"]["encoder"]["fingerprint"] == ENCODER.fingerprint
    channels, *size = cache.shape
    config = VideoDiTConfig(
        size=tuple(size),
        channels=channels,
        patch=(1, 1, 1),
        width=16,
        depth=1,
        heads=2,
        condition=TextInContext(12, 2),
    )
    options = dict(batch_size=4, progress=False, out=tmp_path / "run", warmup=1)
    fit(VideoDiT(config), data, Interpolant(), steps=3, stop_at=2, **options)
    result = fit(VideoDiT(config), data, Interpolant(), steps=3, valid=data, **options)
    assert result.step == 3 and result.mean and result.vocabulary == data.vocabulary
    other = write_caption_embeddings(cache.path, HashedWords(12, 5), tokens=2, name="other")
    with pytest.raises(ValueError, match="trained on other data, of another vocabulary"):
        fit(VideoDiT(config), CaptionedCache(cache, other), Interpolant(), steps=5, **options)
    with pytest.raises(ValueError, match="valid has another vocabulary"):
        fit(VideoDiT(config), data, Interpolant(), steps=1, progress=False,
            valid=CaptionedCache(cache, other))  # fmt: skip
    assert VIDEO.condition.kind == "words"


def test_it_goes_to_other_processes(cache):
    data = CaptionedCache(cache, write_caption_embeddings(cache.path, ENCODER, varied(cache)))
    for again in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert torch.equal(again[[3, 1]]["condition"], data[[3, 1]]["condition"])


def test_what_does_not_fit_is_named(cache):
    for captions, message in (
        (["a"], "captions: 1 given, for 20 samples"),
        ([["a"]] * 19 + [[]], r"captions\[19\] must be a text or texts, not \[\]"),
        (["a"] * 19 + [["b", "c"]], r"captions\[19\] has 2 texts, captions\[0\] 1"),
        (["a"] * 19 + [[3]], r"captions\[19\] must be a text or texts"),
    ):
        with pytest.raises(ValueError, match=message):
            write_caption_embeddings(cache.path, ENCODER, captions)
    with pytest.raises(ValueError, match="tokens must be a whole number from 0 to 6"):
        write_caption_embeddings(cache.path, ENCODER, tokens=7)
    embeddings = write_caption_embeddings(cache.path, ENCODER)
    labeled = LatentCache(cache.path, vocabulary=embeddings)
    assert torch.equal(labeled[3]["condition"], embeddings.encode(cache.captions[3]))
    with pytest.raises(ValueError, match="it has conditions already"):
        CaptionedCache(labeled, embeddings)
