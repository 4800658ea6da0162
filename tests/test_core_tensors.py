"""Weights as others save them, what is no weights at all, and what was damaged: read right, or
refused in one line."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.models import TINY, awake, rewrite, video
from safetensors.torch import load_file, save_file

from minisora.autoencoder import ImageVAE, load_autoencoder
from minisora.core.hub import load_strict
from minisora.core.sizes import TooLarge, check_size
from minisora.core.tensors import load_array, load_tensors, open_arrays, plain_state
from minisora.data.named import load_digits
from minisora.dit import DiT, DiTConfig, load_diffusers_dit
from minisora.evaluation.judge import AttributeClassifier
from minisora.latents.video_vae import CausalVideoVAE
from minisora.models.weights import (
    load_official_state,
    load_partial,
    save_diffusers_dit,
)
from minisora.temporal import VideoDiT, VideoDiTConfig


def model():
    return awake(DiT(TINY)).eval()


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def saved(value):
    "The bytes of torch.save."
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def archive(**files):
    "The bytes of a zip archive."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            z.writestr(name.replace("__", "."), data)
    return out.getvalue()


class Program:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


# ---------------------------------------------------------------- no weights

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
NOT_WEIGHTS = {
    "empty": (b"", "is empty"),
    "a pointer": (LFS, "git lfs pull"),
    "a page": (b"<!DOCTYPE html><html><body>log in", "web page"),
    "a page in capitals": (b"\xef\xbb\xbf  <HTML>", "web page"),
    "an answer": (b'{"error": "Repository not found"}', "text"),
    "text": (b"Entry not found", "text"),
    "zeros": (bytes(4096), "only zeros"),
    "a pickle of a program": (saved({"a": Program()}), "nothing is unpickled"),
    "a bare pickle": (b"\x80\x04cos\nsystem\n.", "more than tensors|damaged"),
    "a cut archive": (saved({"a": torch.ones(100)})[:300], "cut short"),
    "an archive of text": (archive(a__txt=b"x"), "something else"),
    "arrays": (archive(a__npy=b"x"), "NumPy"),
    "a list": (saved([torch.ones(1)]), "holds a list"),
    "a number": (saved(3), "holds a int"),
    "GGUF": (b"GGUF\3\0\0\0", "GGUF"),
    "gzip": (b"\x1f\x8b\x08\0\0", "gzip"),
    "noise": (bytes(range(128, 256)) * 4, "no file of tensors|damaged"),
}


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors", ".pth"])
@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_what_is_no_weights_is_said(tmp_path, name, suffix):
    data, message = NOT_WEIGHTS[name]
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message) as info:
        load_official_state(model(), file)
    text = str(info.value)
    assert str(file) in text and "\n" not in text
    assert "weights_only" not in text and "unsafe" not in text and "trust" not in text.lower()


@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_a_model_folder_says_it_too(tmp_path, name):
    model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(NOT_WEIGHTS[name][0])
    with pytest.raises(ValueError, match=r"model\.safetensors: ") as info:
        DiT.from_pretrained(tmp_path)
    assert "\n" not in str(info.value)


def npz(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def claiming(shape):
    "An .npz with an array that claims a shape and holds four bytes."
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, dict(shape=shape, fortran_order=False, descr="|u1"))
    return archive(images__npy=out.getvalue() + b"1234")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "is empty"),
        (b"not an archive", "text"),
        (LFS, "git lfs pull"),
        (npz(images=np.zeros(100))[:150], "cut short"),
        (npz(images=np.array([None, {}])), "objects"),
        (claiming((10**12,)), "claims the shape"),
        (archive(images__npy=b"x"), "damaged"),
        (saved({})[:2] + b"\0" * 60, "cut short"),
    ],
)
def test_arrays_that_are_none(tmp_path, data, message):
    (tmp_path / "digits.npz").write_bytes(data)
    with (
        pytest.raises(ValueError, match=message) as info,
        open_arrays(tmp_path / "digits.npz") as f,
    ):
        f["images"]()
    text = str(info.value)
    assert "digits.npz" in text and "\n" not in text and "unsafe" not in text


def test_arrays(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(6).reshape(2, 3), y=np.zeros(0))
    with open_arrays(tmp_path / "a.npz") as f:
        assert list(f) == ["x", "y"] and f["x"]().tolist() == [[0, 1, 2], [3, 4, 5]]
        assert f["y"]().shape == (0,)


# ---------------------------------------------------------------- damaged


def test_every_flipped_bit_of_the_numbers_is_noticed(tmp_path):
    model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in (start, start + 1, (start + len(whole)) // 2, len(whole) - 1):
        data = bytearray(whole)
        data[at] ^= 1
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"model\.safetensors: was changed after"):
            DiT.from_pretrained(tmp_path)
    file.write_bytes(whole)
    DiT.from_pretrained(tmp_path)


def test_the_checksum_does_not_depend_on_chance(tmp_path):
    for name in "abcdef":
        model().save_pretrained(tmp_path / name)
    assert len({(tmp_path / n / "model.safetensors").read_bytes() for n in "abcdef"}) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool, torch.int64])
def test_checksums_of_all_types(tmp_path, dtype):
    from minisora.core.files import write_tensors

    tensors = dict(a=torch.ones(3, 2).to(dtype), b=torch.zeros((), dtype=dtype), c=torch.ones(0))
    write_tensors(tmp_path / "w.safetensors", tensors)
    assert same(load_tensors(tmp_path / "w.safetensors"), tensors)


def test_a_file_without_a_checksum_loads(tmp_path):
    m = model()
    m.save_pretrained(tmp_path)
    save_file(m.state_dict(), tmp_path / "model.safetensors")
    assert same(DiT.from_pretrained(tmp_path).state_dict(), m.state_dict())


SHIPPED = sorted(p.relative_to(ROOT) for p in (ROOT / "data").rglob("model.safetensors"))


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_a_flipped_bit_of_what_comes_with_the_course_is_noticed(tmp_path, path):
    assert len(SHIPPED) == 14
    shutil.copytree((ROOT / path).parent, tmp_path / "m")
    load_tensors(tmp_path / "m" / path.name)
    data = bytearray((tmp_path / "m" / path.name).read_bytes())
    data[-5] ^= 8
    (tmp_path / "m" / path.name).write_bytes(data)
    with pytest.raises(ValueError, match="was changed after"):
        load_tensors(tmp_path / "m" / path.name)


def test_a_checksum_beside_old_weights_goes_with_them(tmp_path):
    model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.sha256").write_text("0" * 64 + "  model.safetensors\n")
    with pytest.raises(ValueError, match=r"delete model\.safetensors\.sha256"):
        DiT.from_pretrained(tmp_path)
    model().save_pretrained(tmp_path)
    DiT.from_pretrained(tmp_path)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", ["folder", "pickle", "state"])
def test_broken_numbers_are_refused(tmp_path, bad, at):
    m = model()
    state = m.state_dict()
    state["blocks.1.mlp.fc1.bias"][3] = bad
    with pytest.raises(ValueError, match="key 'blocks.1.mlp.fc1.bias' holds NaN or infinite"):
        if at == "folder":
            m.save_pretrained(tmp_path)
            DiT.from_pretrained(tmp_path)
        elif at == "pickle":
            torch.save(state, tmp_path / "m.pt")
            load_official_state(DiT(TINY), tmp_path / "m.pt")
        else:
            load_strict(DiT(TINY), state)


def test_whole_numbers_are_no_weights():
    state = {k: v.int() for k, v in model().state_dict().items()}
    with pytest.raises(ValueError, match="holds torch.int32, not torch.float32"):
        load_strict(DiT(TINY), state)


# ---------------------------------------------------------------- as others save them

NESTINGS = {
    "plain": lambda s: s,
    "model": lambda s: dict(model=s, optimizer=dict(state={}, param_groups=[]), step=7),
    "state_dict": lambda s: dict(state_dict=s, epoch=3, pytorch_lightning_version="2"),
    "module": lambda s: dict(module=s, global_steps=2),
    "ema": lambda s: dict(ema=s, model={k: v * 0 for k, v in s.items()}, args=None),
    "ema_state_dict": lambda s: dict(ema_state_dict=s, state_dict={k: v * 0 for k, v in s.items()}),
    "model_state_dict": lambda s: dict(model_state_dict=s, loss=0.1, rng=torch.zeros(3)),
    "twice": lambda s: dict(state_dict=dict(model=s)),
}
PREFIXES = ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod.", "net."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("nesting", NESTINGS)
def test_weights_as_others_save_them(tmp_path, nesting, prefix):
    m = model()
    state = {prefix + k: v for k, v in m.state_dict().items()}
    torch.save(NESTINGS[nesting](state), tmp_path / "w.pt")
    assert same(load_official_state(DiT(TINY), tmp_path / "w.pt").state_dict(), m.state_dict())
    again = load_official_state(DiT(TINY), NESTINGS[nesting](state))
    assert same(again.state_dict(), m.state_dict())


def test_a_missing_key_behind_a_prefix_is_named():
    state = {f"module.{k}": v for k, v in model().state_dict().items()}
    del state["module.final_layer.linear.bias"]
    with pytest.raises(ValueError, match=r"missing key 'final_layer\.linear\.bias'"):
        load_official_state(DiT(TINY), state)


def test_numbers_as_names_are_no_state_dict():
    with pytest.raises(ValueError, match="0 is no name of a tensor"):
        plain_state(dict(model={0: torch.ones(1)}))


class compiled(torch.nn.Module):
    "As torch.compile names it, without the seconds that its import takes."

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module


def test_compiled_and_plain_weights_are_the_same(tmp_path):
    m = model()
    assert same(load_strict(DiT(TINY), compiled(m).state_dict()).state_dict(), m.state_dict())
    fresh = DiT(TINY)
    load_strict(compiled(fresh), m.state_dict())
    assert same(fresh.state_dict(), m.state_dict())
    m2 = model()
    m2.blocks[0] = compiled(m2.blocks[0])
    assert same(load_strict(DiT(TINY), m2.state_dict()).state_dict(), m.state_dict())
    save_file(compiled(m).state_dict(), tmp_path / "w.safetensors")
    m.save_pretrained(tmp_path)
    shutil.move(tmp_path / "w.safetensors", tmp_path / "model.safetensors")
    assert same(DiT.from_pretrained(tmp_path).state_dict(), m.state_dict())


def shard(folder, name="model.safetensors", index="model.safetensors.index.json"):
    "Cut the weights of a folder into two files with an index."
    state = load_file(folder / name)
    (folder / name).unlink()
    parts = [dict(list(state.items())[i::2]) for i in range(2)]
    files = [f"part-{i + 1}-of-2.safetensors" for i in range(2)]
    for file, part in zip(files, parts):
        save_file(part, folder / file)
    table = {k: file for file, part in zip(files, parts) for k in part}
    (folder / index).write_text(json.dumps(dict(metadata={}, weight_map=table)))
    return folder / index, folder / files[1]


def test_shards(tmp_path):
    m = model()
    m.save_pretrained(tmp_path)
    index, part = shard(tmp_path)
    assert same(DiT.from_pretrained(tmp_path).state_dict(), m.state_dict())
    assert same(load_official_state(DiT(TINY), index).state_dict(), m.state_dict())
    table = json.loads(index.read_text())
    for name in ("../part.safetensors", "a/b", "", None, 3, ["x"], "..\\x"):
        index.write_text(json.dumps(dict(weight_map=table["weight_map"] | {"pos_embed": name})))
        with pytest.raises(ValueError, match=r"index\.json: weight_map must name a file"):
            DiT.from_pretrained(tmp_path)
    index.write_text(json.dumps(table))
    part.unlink()
    with pytest.raises(FileNotFoundError, match=part.name):
        DiT.from_pretrained(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json"):
        DiT.from_pretrained(tmp_path)


@pytest.mark.parametrize("sharded", [False, True])
def test_variants_and_types(tmp_path, sharded):
    m = model()
    m.save_pretrained(tmp_path)
    half = {k: v.half() for k, v in m.state_dict().items()}
    save_file(half, tmp_path / "model.fp16.safetensors")
    if sharded:
        shard(tmp_path, "model.fp16.safetensors", "model.safetensors.index.fp16.json")
    got = DiT.from_pretrained(tmp_path, variant="fp16")
    assert got.x_embedder.proj.weight.dtype == torch.float32
    assert torch.equal(got.x_embedder.proj.weight, half["x_embedder.proj.weight"].float())
    for dtype in (torch.float16, "float16", "torch.float16"):
        got = DiT.from_pretrained(tmp_path, torch_dtype=dtype)
        assert got.x_embedder.proj.weight.dtype == torch.float16
    for wrong in ("float", "int64", torch.int8, 16, "half of it"):
        if wrong != "float":
            with pytest.raises(ValueError, match="torch_dtype must be such as"):
                DiT.from_pretrained(tmp_path, torch_dtype=wrong)
    with pytest.raises(FileNotFoundError, match=r"model\.bf16\.safetensors"):
        DiT.from_pretrained(tmp_path, variant="bf16")
    with pytest.raises(ValueError, match="variant must be"):
        DiT.from_pretrained(tmp_path, variant="../fp16")


def test_diffusers_shards_and_variants(tmp_path):
    config = DiTConfig(size=(8, 8), width=32, depth=2, heads=2, num_classes=5)
    m = awake(DiT(config)).eval()
    m.pos_embed.copy_(DiT(config).pos_embed)
    save_diffusers_dit(m, tmp_path)
    stem = "diffusion_pytorch_model"
    half = {k: v.half() for k, v in load_file(tmp_path / f"{stem}.safetensors").items()}
    save_file(half, tmp_path / f"{stem}.fp16.safetensors")
    got = load_diffusers_dit(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert got.x_embedder.proj.weight.dtype == torch.float16
    shard(tmp_path, f"{stem}.safetensors", f"{stem}.safetensors.index.json")
    assert same(load_diffusers_dit(tmp_path).state_dict(), m.state_dict())


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    m = model()
    m.save_pretrained("~/m")
    assert (tmp_path / "m").is_dir()
    assert same(DiT.from_pretrained("~/m").state_dict(), m.state_dict())
    assert same(load_tensors("~/m/model.safetensors"), m.state_dict())
    ae = ImageVAE()
    ae.save_pretrained("~/ae")
    assert isinstance(load_autoencoder("~/ae"), ImageVAE)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        DiT.from_pretrained("~/nothing")


def test_other_classes_by_an_explicit_partial_load(tmp_path):
    m = model()
    torch.save(dict(model=m.state_dict()), tmp_path / "w.pt")
    few = DiT(DiTConfig(**{**vars(TINY), "num_classes": 2}))
    before = few.y_embedder.embedding_table.weight.clone()
    with pytest.raises(ValueError, match="y_embedder.embedding_table.weight' has shape"):
        load_official_state(few, tmp_path / "w.pt")
    name = "y_embedder.embedding_table.weight"
    assert load_partial(few, tmp_path / "w.pt", "y_embedder.*") == [name]
    assert torch.equal(few.y_embedder.embedding_table.weight, before)
    assert torch.equal(few.blocks[1].mlp.fc1.weight, m.blocks[1].mlp.fc1.weight)
    with pytest.raises(ValueError, match="has no tensor 'z_embedder"):
        load_partial(few, tmp_path / "w.pt", ["z_embedder.*"])
    with pytest.raises(ValueError, match="y_embedder.embedding_table.weight' has shape"):
        load_partial(few, tmp_path / "w.pt", ["final_layer.*"])
    state = m.state_dict()
    del state["blocks.0.attn.qkv.bias"]
    with pytest.raises(ValueError, match="missing key 'blocks.0.attn.qkv.bias'"):
        load_partial(few, state, "y_embedder.*")
    none = DiT(DiTConfig(**{**vars(TINY), "num_classes": 2}))
    assert load_partial(none, {k: v for k, v in m.state_dict().items() if k != name}, name) == [
        name
    ]


# ---------------------------------------------------------------- too large, of another type

SMALL_VAE = dict(channels=4, width=8, depth=1)
FOLDERS = {
    "dit": model,
    "video": video,
    "vae": lambda: CausalVideoVAE(**SMALL_VAE),
    "image": lambda: ImageVAE(width=8, enc_width=8),
    "judge": lambda: AttributeClassifier(dict(a=["x", "y"]), width=4),
}
WRONG = [
    ("dit", dict(depth=10**9)),
    ("dit", dict(width=10**9, heads=1)),
    ("dit", dict(num_classes=10**9)),
    ("dit", dict(size=[10**6, 10**6])),
    ("dit", dict(mlp_ratio=1e9)),
    ("dit", dict(mlp_ratio=float("nan"))),
    ("dit", dict(width="32")),
    ("dit", dict(depth=True)),
    ("dit", dict(size=[8, "8"])),
    ("dit", dict(qk_norm=1)),
    ("dit", dict(norm=["rms"])),
    ("video", dict(depth=10**9)),
    ("video", dict(width=4 * 10**8, heads=1)),
    ("video", dict(condition=dict(kind="words", vocab=10**9, slots=2))),
    ("video", dict(condition=dict(kind="words", vocab="7", slots=2))),
    ("video", dict(condition=dict(kind="words", vocab=7, slot=2))),
    ("video", dict(condition=dict(kind=["words"]))),
    ("video", dict(positions=dict(kind="sincos", base_size=5))),
    ("video", dict(block=dict(mlp_ratio="4"))),
    ("video", dict(block=[1])),
    ("video", dict(layout=None)),
    ("video", dict(size=[10**9, 4, 6])),
    ("video", dict(relative_bias=True, size=[512, 512, 512])),
    ("vae", dict(width=10**9)),
    ("vae", dict(depth=10**9)),
    ("vae", dict(channels=10**9)),
    ("vae", dict(width="8")),
    ("vae", dict(depth=True)),
    ("vae", dict(width=-8)),
    ("vae", dict(width=0)),
    ("vae", dict(channels=0)),
    ("vae", dict(first_alone="no")),
    ("vae", dict(seed=-1)),
    ("image", dict(width=10**9)),
    ("image", dict(smooth=10**9)),
    ("image", dict(enc_width=2.5)),
    ("judge", dict(width=10**9)),
    ("judge", dict(attributes=["a"])),
    ("judge", dict(attributes=dict(a=3))),
    ("judge", dict(attributes={})),
    ("judge", dict(attributes=dict(a=[]))),
    ("judge", dict(frames="8")),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    for name, make in FOLDERS.items():
        make().save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name, change", WRONG, ids=str)
def test_a_config_of_the_wrong_size_or_type_is_refused(tmp_path, folders, name, change):
    "In a moment, and without the memory that it asks for."
    shutil.copytree(folders / name, tmp_path / "m")
    rewrite(tmp_path / "m", **change)
    kind = type(FOLDERS[name]())
    with pytest.raises(ValueError, match=r"config\.json: ") as info:
        kind.from_pretrained(tmp_path / "m")
    assert "\n" not in str(info.value) and len(str(info.value)) < 400
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    with pytest.raises(ValueError, match=r"config\.json: "):
        kind.from_config(config)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiT(DiTConfig(depth=10**9)),
        lambda: DiT(DiTConfig(width=4 * 10**8, heads=1)),
        lambda: DiT(DiTConfig(size=(10**6, 10**6))),
        lambda: VideoDiT(VideoDiTConfig(depth=10**8)),
        lambda: VideoDiT(VideoDiTConfig(width=10**6, heads=1, depth=1000)),
        lambda: VideoDiT(VideoDiTConfig(size=(10**8, 8, 8))),
        lambda: CausalVideoVAE(width=10**9),
        lambda: CausalVideoVAE(depth=10**9),
        lambda: ImageVAE(width=10**9),
        lambda: AttributeClassifier(dict(a=["x"]), width=10**9),
    ],
)
def test_built_by_hand_too(make):
    with pytest.raises(ValueError):
        make()


def test_any_integer_type():
    config = DiTConfig(
        size=np.array([8, 8]).tolist(), width=np.int64(32), depth=np.int8(1), heads=2
    )
    assert type(config.width) is int and type(config.depth) is int
    assert DiTConfig(size=(np.int32(8), 8), mlp_ratio=np.float32(2)).mlp_ratio == 2.0
    json.dumps(vars(config))
    assert CausalVideoVAE(np.int64(4), np.int64(8), np.int64(1)).spec.channels == 4


def test_counting_stops_early():
    def build():
        raise_after = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(10**9))
        return raise_after

    with pytest.raises(TooLarge):
        check_size(build, dict(depth=10**9), (10, 100))


# ---------------------------------------------------------------- digits and single arrays


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "is empty"),
        (b"images,labels\n", "text"),
        (LFS, "git lfs pull"),
        (npz(train_images=np.zeros((3, 4, 4), np.uint8))[:200], "cut short"),
        (npz(train_images=np.zeros((3, 4, 4), np.uint8)), "has no array 'train_labels'"),
        (npz(train_images=np.zeros((3, 4, 4)), train_labels=np.arange(3)), "must be uint8"),
        (npz(train_images=np.zeros((3, 4, 4), np.uint8), train_labels=np.arange(2)), "3 whole"),
        (npz(train_images=np.array([{}]), train_labels=np.arange(1)), "not unpickled"),
    ],
)
def test_digits_that_are_none(tmp_path, data, message):
    (tmp_path / "d.npz").write_bytes(data)
    with pytest.raises(ValueError, match=message) as info:
        load_digits(tmp_path / "d.npz")
    text = str(info.value)
    assert "d.npz" in text and "\n" not in text and "allow_pickle" not in text


def test_single_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6))
    assert load_array(tmp_path / "a.npy").tolist() == [0, 1, 2, 3, 4, 5]
    assert isinstance(load_array(tmp_path / "a.npy", mmap_mode="r"), np.memmap)
    whole = (tmp_path / "a.npy").read_bytes()
    np.save(tmp_path / "objects.npy", np.array([{}]))
    spoilt = {
        "empty": b"",
        "text": b"hello",
        "cut": whole[:-8],
        "lfs": LFS,
        "huge": whole.replace(b"(6,), ", b"(6" + b"0" * 3 + b"),")[:200],
        "objects": (tmp_path / "objects.npy").read_bytes(),
        "header": whole[:9],
    }
    for name, data in spoilt.items():
        (tmp_path / f"{name}.npy").write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.npy: holds no array") as info:
            load_array(tmp_path / f"{name}.npy")
        assert "\n" not in str(info.value) and "allow_pickle" not in str(info.value)
    with pytest.raises(FileNotFoundError, match=r"none\.npy"):
        load_array(tmp_path / "none.npy")
