"""What is written is what is read; damage is found and mended; bad input says what is wrong."""

import importlib
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from conftest import benchmark
from helpers.latent_cache import (
    FAULTS,
    SHARD,
    Clips,
    Stop,
    Tiny,
    content,
    exact,
    flip,
    write,
)

from minisora import latent_cache as lc
from minisora.clips import Clip
from minisora.core.noise import flip_mask
from minisora.core.renames import OLD_NAMES
from minisora.latent_cache import LatentCache, repair_cache, verify_cache, write_cache
from minisora.latents.cache_format import DTYPES
from minisora.latents.cache_plan import autoencoder_fingerprint


FLOAT16 = 2e-3  # relative: half of float16's last place, and a little for the sums


# ---------------------------------------------------------------- what is written is what is read


@pytest.mark.parametrize(
    "dtype, tolerance",
    [("float32", 1e-5), ("float16", FLOAT16), ("bfloat16", 2e-2), ("int8", 0.5 / 127)],
)
@pytest.mark.parametrize("per_channel", [False, True])
def test_round_trip(tmp_path, dtype, tolerance, per_channel):
    cache = write(tmp_path / "c", dtype=dtype, per_channel=per_channel)
    every = list(range(20))
    z, want = cache[every]["latents"], exact(every)
    assert len(cache) == 20 and z.shape == (20, 5, 2, 2, 2) and z.dtype == torch.float32
    relative = (
        1e-5 if dtype == "int8" else tolerance
    )  # an int8's error is a share of the largest number
    torch.testing.assert_close(
        cache.denormalize(z), want, rtol=relative, atol=tolerance * want.abs().max().item()
    )
    torch.testing.assert_close(cache.normalize(cache.denormalize(z)), z, rtol=1e-4, atol=1e-4)
    axes = (0, 2, 3, 4) if per_channel else (0, 1, 2, 3, 4)
    torch.testing.assert_close(z.mean(axes), torch.zeros_like(z.mean(axes)), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        z.std(axes, correction=0), torch.ones_like(z.std(axes)), rtol=1e-3, atol=0
    )
    assert cache.mean.shape == ((5, 1, 1, 1) if per_channel else ())
    assert cache.captions == [Clips()[i].caption for i in every]
    assert cache.sources[13] == "noise:13" and cache.attributes[13] == dict(
        digit=6, name="naïve 图"
    )


@pytest.mark.parametrize(
    "index", [[3], [19, 0, 7, 8], [-1, 2], np.array([5, 5, 5]), torch.tensor([1, 15])]
)
def test_any_batch_has_the_same_samples(tmp_path, index):
    cache = write(tmp_path / "c")
    batch, ids = cache[index], [int(i) % 20 for i in index]
    assert batch["index"].tolist() == ids
    for z, i in zip(batch["latents"], ids):
        assert torch.equal(z, cache[i]["latents"])
    assert torch.equal(cache[2:11:3]["latents"], cache[[2, 5, 8]]["latents"])
    assert torch.equal(batch["latents"], cache.__getitems__(index)["latents"])


@pytest.mark.parametrize("i", [20, -21])
def test_index_outside(tmp_path, i):
    with pytest.raises(IndexError, match=f"sample {i} of a cache with 20"):
        write(tmp_path / "c")[i]


class Words:
    def encode(self, caption):
        return torch.tensor([int(caption.split()[-1]), 1])


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_data_loader(tmp_path, workers):
    write(tmp_path / "c")
    cache = LatentCache(tmp_path / "c", Words())
    cache[0]  # maps are open when the workers start
    loader = torch.utils.data.DataLoader(
        cache, 6, num_workers=workers, collate_fn=LatentCache.collate
    )
    seen = torch.cat([b["latents"] for b in loader])
    assert torch.equal(seen, cache[range(20)]["latents"])
    conditions = torch.cat([b["condition"] for b in loader])
    assert conditions.dtype == torch.long and conditions.tolist() == [[i % 7, 1] for i in range(20)]


def test_pickle(tmp_path):
    cache = write(tmp_path / "c")
    cache[range(20)]
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy[[4, 18]]["latents"], cache[[4, 18]]["latents"])


def test_moments(tmp_path):
    cache = write(tmp_path / "c", moments=True, dtype="float32")
    first, std = cache[range(20)]["latents"], np.exp(-1)
    assert torch.equal(cache[[17]]["latents"][0], first[17]), (
        "a sample must not depend on its batch"
    )
    cache.set_epoch(1)
    second = cache[range(20)]["latents"]
    assert not torch.equal(first, second)
    assert torch.equal(LatentCache(tmp_path / "c", seed=0)[range(20)]["latents"], first)
    assert not torch.equal(LatentCache(tmp_path / "c", seed=1)[range(20)]["latents"], first)
    mean = LatentCache(tmp_path / "c", sample=False)
    torch.testing.assert_close(
        mean.denormalize(mean[range(20)]["latents"]), exact(range(20)), rtol=1e-4, atol=1e-4
    )
    noise = torch.stack([cache.denormalize(z) for z in (first, second)]) - exact(range(20))
    assert abs(noise.std() - std) < 0.03 * std and abs(noise.mean()) < 0.03
    both = torch.corrcoef(noise.flatten(1))[0, 1]
    assert abs(both) < 0.1, "two epochs must draw independent samples"
    assert abs(first.std() - 1) < 0.02, "the statistics must count the posterior variance"


def test_workers_see_the_epoch(tmp_path):
    cache = write(tmp_path / "c", moments=True)
    loader = torch.utils.data.DataLoader(
        cache, 20, num_workers=1, collate_fn=LatentCache.collate, persistent_workers=True
    )
    first = next(iter(loader))["latents"]
    cache.set_epoch(5)
    fifth = next(iter(loader))["latents"]
    assert not torch.equal(first, fifth) and torch.equal(fifth, cache[range(20)]["latents"])


def test_stored_samples(tmp_path):
    a, b, c = (write(tmp_path / n, sample_seed=s) for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert a.manifest["tensors"] == ["sample"]
    assert torch.equal(a[range(20)]["latents"], b[range(20)]["latents"])
    assert not torch.equal(a[range(20)]["latents"], c[range(20)]["latents"])
    noise = a.denormalize(a[range(20)]["latents"]) - exact(range(20))
    assert abs(noise.std() - np.exp(-1)) < 0.03


def test_no_global_randomness(tmp_path):
    ae, state, numpy_state = Tiny(), torch.get_rng_state(), np.random.get_state()[1].copy()
    write_cache(tmp_path / "c", Clips(), ae, moments=True, progress=False)[range(20)]
    assert (
        torch.equal(state, torch.get_rng_state())
        and (numpy_state == np.random.get_state()[1]).all()
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_is_what_is_stored(tmp_path, dtype):
    cache = write(tmp_path / "c", dtype=dtype)
    raw = LatentCache(tmp_path / "c", raw=True)
    batch = raw[[3, 19]]
    z, scale = batch["latents"], batch.get("scale")
    assert z.dtype == getattr(torch, dtype) and (scale is None) == (dtype != "int8")
    torch.testing.assert_close(
        raw.normalize(z, scale), cache[[3, 19]]["latents"], rtol=1e-6, atol=1e-6
    )
    one = raw[19]
    torch.testing.assert_close(
        raw.normalize(one["latents"], one.get("scale")), cache[19]["latents"], rtol=1e-6, atol=1e-6
    )


def test_labels_as_conditions(tmp_path):
    write(tmp_path / "c")
    cache = LatentCache(tmp_path / "c", "digit")
    assert cache[[3, 9]]["condition"].tolist() == [[3], [2]]
    with pytest.raises(ValueError, match="sample 0 has no integer attribute 'name'"):
        LatentCache(tmp_path / "c", "name")


# ---------------------------------------------------------------- the second view


class Mirrored(Clips):
    def __getitem__(self, i):
        c = super().__getitem__(i)
        return Clip(c.frames.flip(-1), c.caption, c.fps, c.source, c.attributes)


def stored(cache, index, view=0):
    "What a view of these samples holds, as float32."
    z, scale = cache.shards.read(index, view), cache.shards.scale(index, view)
    return z.float() if scale is None else z * scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, dict(moments=True)], ids=["mean", "moments"])
def test_flips_are_the_latents_of_mirrored_clips(tmp_path, options, dtype):
    write(tmp_path / "c", flips=True, dtype=dtype, **options)
    write_cache(
        tmp_path / "m",
        Mirrored(),
        Tiny(),
        batch_size=4,
        shard_size=8,
        progress=False,
        dtype=dtype,
        **options,
    )
    both, mirrored = LatentCache(tmp_path / "c"), LatentCache(tmp_path / "m")
    every = np.arange(20)
    assert torch.equal(stored(both, every, 1), stored(mirrored, every))
    plain = LatentCache(tmp_path / "c", flip=False, sample=False)
    torch.testing.assert_close(
        plain.denormalize(plain[every]["latents"]), exact(range(20)), rtol=1e-2, atol=0.3
    )
    coins = flip_mask(0, 0, 20)
    assert 3 < coins.sum() < 17
    shown = LatentCache(tmp_path / "c", sample=False)
    got = shown.denormalize(shown[every]["latents"])
    want = torch.stack(
        [stored(mirrored if coin else plain, np.array([i]))[0, :5] for i, coin in enumerate(coins)]
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_flips_follow_epoch_and_index_only(tmp_path):
    cache = write(tmp_path / "c", flips=True)
    first = cache[range(20)]["latents"]
    assert torch.equal(cache[[17, 2]]["latents"], first[[17, 2]])
    cache.set_epoch(1)
    assert not torch.equal(cache[range(20)]["latents"], first)
    cache.set_epoch(0)
    assert torch.equal(cache[range(20)]["latents"], first)
    assert not torch.equal(LatentCache(tmp_path / "c", seed=1)[range(20)]["latents"], first)


def test_flips_count_in_the_statistics_and_can_be_repaired(tmp_path):
    cache = write(tmp_path / "c", flips=True, dtype="float32")
    z = torch.cat([cache.shards.read(np.arange(20), v) for v in (0, 1)])
    torch.testing.assert_close(z.mean(), cache.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(correction=0), cache.std, rtol=1e-5, atol=0)
    before = content(tmp_path / "c")
    flip(tmp_path / "c" / SHARD, -5)
    assert (
        repair_cache(tmp_path / "c", Clips(), Tiny()) == [SHARD]
        and content(tmp_path / "c") == before
    )
    with pytest.raises(ValueError, match="exists with flips=True, requested False"):
        write(tmp_path / "c", dtype="float32")


def test_stored_samples_of_both_views_draw_different_noise(tmp_path):
    class Symmetric(Clips):
        def __getitem__(self, i):
            c = super().__getitem__(i)
            return Clip(torch.full_like(c.frames, 10 * i), c.caption, c.fps, c.source)

    class Flat(Tiny):
        def encode(self, x):
            z = x[:, :1, :, ::8, ::8].expand(-1, 5, -1, -1, -1)
            return z, torch.zeros_like(z)

    cache = write_cache(
        tmp_path / "c", Symmetric(), Flat(), flips=True, sample_seed=0, progress=False
    )
    assert not torch.equal(cache.shards.read(np.arange(20), 0), cache.shards.read(np.arange(20), 1))


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name, harm, message", FAULTS.values(), ids=FAULTS)
def test_damage_is_an_error_that_names_the_file_and_repair_mends_it(tmp_path, name, harm, message):
    write(tmp_path / "c")
    before = content(tmp_path / "c")
    harm(tmp_path / "c" / name)
    assert content(tmp_path / "c") != before
    with pytest.raises(ValueError, match=f"{name} .*({message})") as e:
        LatentCache(tmp_path / "c")
    assert len(str(e.value).splitlines()) == 1
    assert list(verify_cache(tmp_path / "c")) == [SHARD]
    assert repair_cache(tmp_path / "c", Clips(), Tiny()) == [SHARD]
    assert content(tmp_path / "c") == before and [p.name for p in tmp_path.iterdir()] == ["c"]
    assert repair_cache(tmp_path / "c", Clips(), Tiny()) == []


def test_sizes_alone_are_a_weaker_check(tmp_path):
    write(tmp_path / "c")
    flip(tmp_path / "c" / SHARD, -5)
    LatentCache(tmp_path / "c", check="size")
    os.truncate(
        tmp_path / "c" / SHARD, 2000 if (tmp_path / "c" / SHARD).stat().st_size > 2000 else 500
    )
    with pytest.raises(ValueError, match=SHARD):
        LatentCache(tmp_path / "c", check="size")
    with pytest.raises(ValueError, match="check must be one of True, 'size'"):
        LatentCache(tmp_path / "c", check="never")


def test_a_foreign_shard(tmp_path):
    write(tmp_path / "c")
    write_cache(tmp_path / "other", Clips(), Tiny(1), batch_size=4, shard_size=8, progress=False)
    shutil.copy(tmp_path / "other" / SHARD, tmp_path / "c" / SHARD)
    assert (tmp_path / "c" / SHARD).stat().st_size == (tmp_path / "other" / SHARD).stat().st_size
    for check in (True, "size"):
        with pytest.raises(ValueError, match=f"{SHARD} belongs to another cache"):
            LatentCache(tmp_path / "c", check=check)


def test_no_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished latent cache at .*nowhere"):
        LatentCache(tmp_path / "nowhere")


def test_another_autoencoder(tmp_path):
    write(tmp_path / "c")
    assert len(LatentCache(tmp_path / "c", autoencoder=Tiny())) == 20
    with pytest.raises(ValueError, match="another autoencoder"):
        LatentCache(tmp_path / "c", autoencoder=Tiny(1))
    other = Tiny()
    with torch.no_grad():
        other.net.bias[0] += 1e-7
    assert autoencoder_fingerprint(other) != autoencoder_fingerprint(Tiny()), (
        "the hash must see the smallest change of a weight"
    )


def test_repair_refuses_what_is_not_the_same(tmp_path):
    write(tmp_path / "c")
    flip(tmp_path / "c" / SHARD, -5)
    before = content(tmp_path / "c")
    with pytest.raises(ValueError, match="another autoencoder"):
        repair_cache(tmp_path / "c", Clips(), Tiny(1))

    class Others(Clips):
        def __getitem__(self, i):
            return super().__getitem__(i + 1)

    with pytest.raises(ValueError, match=f"{SHARD}: encoding again gave other bytes"):
        repair_cache(tmp_path / "c", Others(), Tiny())
    assert content(tmp_path / "c") == before and [p.name for p in tmp_path.iterdir()] == ["c"]
    assert repair_cache(tmp_path / "c", Others(), Tiny(), exact=False) == [SHARD]
    assert not verify_cache(tmp_path / "c") and LatentCache(tmp_path / "c").sources[8] == "noise:9"


def foreign_shard(folder):
    write_cache(folder / "other", Clips(), Tiny(1), batch_size=4, shard_size=8, progress=False)
    (folder / "c" / SHARD).write_bytes((folder / "other" / SHARD).read_bytes())


def other_version(folder):
    raw = (folder / "c" / SHARD).read_bytes()
    (folder / "c" / SHARD).write_bytes(raw.replace(b'"version": "2"', b'"version": "7"'))


@pytest.mark.parametrize(
    "harm, message",
    [
        (foreign_shard, "belongs to another cache"),
        (other_version, "has format version 7; this code reads 2"),
    ],
)
def test_a_foreign_shard_and_one_of_another_version_are_repaired(tmp_path, harm, message):
    write(tmp_path / "c")
    before = content(tmp_path / "c")
    harm(tmp_path)
    for check in (True, "size"):
        (problem,) = verify_cache(tmp_path / "c", check).values()
        assert message in problem and SHARD in problem
    assert (
        repair_cache(tmp_path / "c", Clips(), Tiny()) == [SHARD]
        and content(tmp_path / "c") == before
    )


def test_several_bad_shards_are_all_named_and_all_repaired(tmp_path):
    write(tmp_path / "c")
    before = content(tmp_path / "c")
    flip(tmp_path / "c/latents-00000.safetensors", -1)
    (tmp_path / "c/latents-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="latents-00000.*; .*latents-00002"):
        LatentCache(tmp_path / "c")
    assert (
        len(repair_cache(tmp_path / "c", Clips(), Tiny())) == 2
        and content(tmp_path / "c") == before
    )


def test_repair_can_be_killed_and_called_again(tmp_path):
    write(tmp_path / "c")
    before = content(tmp_path / "c")
    flip(tmp_path / "c" / SHARD, -1)

    class Dies(Tiny):
        def encode(self, x):
            if self.batches:
                raise Stop
            return super().encode(x)

    ae = Dies()
    ae.__class__.__name__ = "Tiny"
    with pytest.raises(Stop):
        repair_cache(tmp_path / "c", Clips(), ae)
    assert list(verify_cache(tmp_path / "c")) == [SHARD], "the manifest still says so"
    assert (
        repair_cache(tmp_path / "c", Clips(), Tiny()) == [SHARD]
        and content(tmp_path / "c") == before
    )
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(dtype="int4"), "dtype must be one of 'float16'"),
        (dict(limit=0), "limit must be a whole number from 1, not 0"),
        (dict(batch_size=0), "batch_size"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "c", **options)
    assert not list(tmp_path.iterdir())


def test_clips_of_two_sizes(tmp_path):
    with pytest.raises(
        ValueError, match=r"clip 13 \(noise:13\): frames are torch.uint8 \(3, 2, 8, 8\)"
    ):
        write_cache(tmp_path / "c", Clips(odd=13), Tiny(), batch_size=4, progress=False)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("scale", [1e6, float("nan")])
def test_latents_that_do_not_fit(tmp_path, scale):
    ae, real = Tiny(), Tiny()
    ae.encode = lambda x: [
        m * torch.where(x[:, :1, :1, :1, :1] == x5, scale, 1.0) for m in real.encode(x)
    ]
    x5 = (Clips()[5].frames.float() / 127.5 - 1)[0, 0, 0, 0]
    with pytest.raises(
        ValueError, match=r"clip 5 \(noise:5\): its latents are not finite in float16"
    ):
        write_cache(tmp_path / "c", Clips(), ae, batch_size=4, progress=False)
    assert not (tmp_path / "c").exists()


def test_attributes_that_json_cannot_hold(tmp_path):
    class Odd(Clips):
        def __getitem__(self, i):
            c = super().__getitem__(i)
            return Clip(
                c.frames,
                c.caption,
                c.fps,
                c.source,
                dict(a=np.float32(0.5), b=torch.tensor([1, 2]), c=object() if i == 3 else 0),
            )

    with pytest.raises(TypeError, match="a object .* cannot be stored"):
        write_cache(tmp_path / "c", Odd(), Tiny(), progress=False)
    cache = write_cache(tmp_path / "d", Odd(3), Tiny(), progress=False)
    assert cache.attributes[0] == dict(a=0.5, b=[1, 2], c=0)


def test_training_mode_is_given_back(tmp_path):
    ae = Tiny().train()
    write_cache(tmp_path / "c", Clips(), ae, progress=False)
    assert ae.training
    with pytest.raises(ValueError):
        write_cache(tmp_path / "d", Clips(odd=3), ae, progress=False)
    assert ae.training


def test_a_million_samples_open_at_once(tmp_path):
    "Opening takes no time or memory that grow with the latents: 8 GB of holes, in a new process."
    result = benchmark("latent_cache").sparse_million(tmp_path, rows=False)
    assert (
        result["samples"] == 1_000_000
        and result["added_rss_mb"] < 200
        and result["first_batch_cpu_s"] < 1
    )


# ---------------------------------------------------------------- names of version 0.1


def test_every_old_name_is_still_there():
    "All 71 of them, with a warning where the name is another now."
    old = OLD_NAMES["minisora.latent_cache"]
    assert len(old) + len({"LatentCache", "write_cache", "write_caches"} - set(old)) == 71
    for name, place in old.items():
        home, _, new = place.partition(":")
        if name in vars(lc):  # the lesson uses it under that name
            assert name == new
            continue
        with pytest.warns(DeprecationWarning, match=f"latent_cache.{name} is now {home}.{new}"):
            assert getattr(lc, name) is getattr(importlib.import_module(home), new)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lc.nonsense


def test_old_methods_are_still_there(tmp_path):
    cache = write(tmp_path / "c", dtype="int8")
    z = cache[[1, 5]]["latents"]
    with pytest.warns(DeprecationWarning, match="denormalise is now denormalize"):
        assert torch.equal(cache.denormalise(z), cache.denormalize(z))
    with pytest.warns(DeprecationWarning, match="normalise is now normalize"):
        assert torch.equal(cache.normalise(z), cache.normalize(z))
    with pytest.warns(DeprecationWarning, match="encode is now encode_conditions"):
        assert torch.equal(cache.encode("digit"), cache.encode_conditions("digit"))
    with pytest.warns(DeprecationWarning, match="parts is now locate"):
        assert len(list(cache.shards.parts(np.array([1, 9]), 0))) == 2
    with pytest.warns(DeprecationWarning, match="text is now lines"):
        assert len(cache.rows.text(0)[1]) == 9


def test_an_encoder_in_training_mode_repairs_what_it_wrote(tmp_path):
    class Drops(Tiny):
        def encode(self, x):
            return super().encode(torch.nn.functional.dropout(x, 0.5, self.training))

    write_cache(tmp_path / "c", Clips(), Drops().train(), progress=False)
    before, file = content(tmp_path / "c"), "latents-00000.safetensors"
    flip(tmp_path / "c" / file, -5)
    ae = Drops().train()
    assert repair_cache(tmp_path / "c", Clips(), ae) == [file]
    assert content(tmp_path / "c") == before and ae.training
