"""One .npy file per sample, the layout of DiT's feature extraction, becomes a cache."""

import os

import numpy as np
import pytest
import torch
from helpers.latent_cache import Stop, content, npy_folder

from minisora.latent_cache import LatentCache, import_npy_folder, verify_cache
from minisora.latents import cache_import
from minisora.latents.cache_import import NpyFolder


@pytest.mark.parametrize(
    "shape, axes, want",
    [
        ((1, 4, 8, 8), "TCHW", (4, 1, 8, 8)),
        ((4, 8, 8), "TCHW", (4, 1, 8, 8)),
        ((4, 8, 8), "CTHW", (4, 1, 8, 8)),
        ((6, 4, 8, 8), "TCHW", (4, 6, 8, 8)),
        ((1, 6, 4, 8, 8), "TCHW", (4, 6, 8, 8)),
        ((4, 6, 8, 8), "CTHW", (4, 6, 8, 8)),
    ],
)
def test_a_folder_of_npy_files_is_a_dataset(tmp_path, shape, axes, want):
    data = NpyFolder(npy_folder(tmp_path / "f", shape=shape), axes)
    d, raw = data[11], np.random.default_rng(11).normal(size=shape).astype(np.float32)
    assert len(data) == 12 and d["index"] == 11 and d["condition"].tolist() == [111], (
        "10 comes after 9, not after 1"
    )
    assert d["latents"].shape == want and d["latents"].dtype == torch.float32
    raw = raw.reshape((6, 4, 8, 8) if axes == "TCHW" and 6 in shape else want)
    assert np.array_equal(
        d["latents"], raw.swapaxes(0, 1) if axes == "TCHW" and 6 in shape else raw
    )
    batch = next(iter(torch.utils.data.DataLoader(data, 5)))
    assert batch["latents"].shape == (5, *want) and batch["condition"].shape == (5, 1)


def test_convert(tmp_path):
    npy_folder(tmp_path / "f")
    cache = import_npy_folder(
        tmp_path / "f",
        tmp_path / "c",
        "sd-vae-ft-ema, scaled by 0.18215",
        dtype="float32",
        progress=False,
    )
    assert cache.manifest["autoencoder"]["spec"] == dict(made_by="sd-vae-ft-ema, scaled by 0.18215")
    data, labelled = NpyFolder(tmp_path / "f"), LatentCache(tmp_path / "c", "label")
    for i in range(12):
        torch.testing.assert_close(
            cache.denormalize(cache[i]["latents"]), data[i]["latents"], rtol=1e-5, atol=1e-5
        )
        assert torch.equal(labelled[i]["condition"], data[i]["condition"])
    assert cache.sources[11] == "imagenet256_features/11.npy" and cache.captions[11] == "111"
    half = import_npy_folder(tmp_path / "f", tmp_path / "h", progress=False)
    assert half.manifest["dtype"] == "float16" and not verify_cache(tmp_path / "h")
    with pytest.raises(ValueError, match="no log-variance"):
        import_npy_folder(tmp_path / "f", tmp_path / "m", moments=True)
    with pytest.raises(ValueError, match="no flips"):
        import_npy_folder(tmp_path / "f", tmp_path / "m", flips=True)


def test_converting_goes_on_after_an_interruption(tmp_path, monkeypatch):
    npy_folder(tmp_path / "f")
    import_npy_folder(tmp_path / "f", tmp_path / "whole", batch_size=2, progress=False)
    real, left = cache_import._load_npy, [15]

    def dies(file):
        left[0] -= 1
        if not left[0]:
            raise Stop
        return real(file)

    monkeypatch.setattr(cache_import, "_load_npy", dies)
    with pytest.raises(Stop):
        import_npy_folder(tmp_path / "f", tmp_path / "c", batch_size=2, progress=False)
    assert not (tmp_path / "c").exists()
    import_npy_folder(tmp_path / "f", tmp_path / "c", batch_size=2, progress=False)
    assert content(tmp_path / "c") == content(tmp_path / "whole")


def _text(p):
    p.write_text("not an array")


def _pickle(p):
    np.save(p, np.array([dict(a=1)]), allow_pickle=True)


def _cut(p):
    os.truncate(p, 200)


def _vector(p):
    np.save(p, np.zeros(7, np.float32))


def _whole_numbers(p):
    np.save(p, np.zeros((1, 4, 8, 8), np.int64))


def _nan(p):
    np.save(p, np.full((1, 4, 8, 8), np.nan, np.float32))


def _other_size(p):
    np.save(p, np.zeros((1, 4, 8, 9), np.float32))


@pytest.mark.parametrize(
    "harm, message",
    [
        (_text, "is no .npy file"),
        (_pickle, "is no .npy file"),
        (_cut, "is no .npy"),
        (_vector, "no latent"),
        (_whole_numbers, "no latent"),
        (_nan, "not finite"),
        (_other_size, r"\(4, 1, 8, 9\)"),
    ],
)
def test_a_bad_npy_file_is_named(tmp_path, harm, message):
    harm(npy_folder(tmp_path / "f") / "imagenet256_features/7.npy")
    with pytest.raises(ValueError, match=message) as e:
        import_npy_folder(tmp_path / "f", tmp_path / "c", progress=False)
    assert "imagenet256_features/7.npy" in str(e.value) and len(str(e.value).splitlines()) == 1
    assert not (tmp_path / "c").exists()


def test_bad_npy_folders(tmp_path):
    f = npy_folder(tmp_path / "f")
    (f / "imagenet256_labels/5.npy").unlink()
    with pytest.raises(FileNotFoundError, match="imagenet256_labels/5.npy is missing"):
        NpyFolder(f)
    np.save(f / "imagenet256_labels/5.npy", np.array([0.5]))
    with pytest.raises(ValueError, match="imagenet256_labels/5.npy holds float64"):
        NpyFolder(f)[5]
    with pytest.raises(FileNotFoundError, match=r"must have one folder \*_features, it has 0"):
        NpyFolder(tmp_path)
    with pytest.raises(ValueError, match="axes must be"):
        NpyFolder(f, "HWC")
