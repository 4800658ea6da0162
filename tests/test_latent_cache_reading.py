"""Flips, orders, mid-epoch resume, loaders, accelerate, mmengine, lazy rows, and the layout of one file a sample."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_latent_cache import SHARD, Clips, Stop, Tiny, content, exact, flip, write

from minisora import latent_cache as lc
from minisora.clips import Clip
from minisora.latent_cache import (
    LatentCache,
    LatentSampler,
    NpyFolder,
    convert,
    repair,
    verify,
    write_cache,
)


class Mirrored(Clips):
    def __getitem__(self, i):
        c = super().__getitem__(i)
        return Clip(c.frames.flip(-1), c.caption, c.fps, c.source, c.attributes)


def stored(cache, index, view=0):
    "What a view of these samples holds, as float32."
    z, scale = cache.shards.read(index, view), cache.shards.scale(index, view)
    return z.float() if scale is None else z * scale


# ---------------------------------------------------------------- the second view


@pytest.mark.parametrize("dtype", lc.DTYPES)
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
        plain.denormalise(plain[every]["latents"]), exact(range(20)), rtol=1e-2, atol=0.3
    )
    coins = lc.coins(0, 0, 20)
    assert 3 < coins.sum() < 17
    shown = LatentCache(tmp_path / "c", sample=False)
    got = shown.denormalise(shown[every]["latents"])
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
    assert repair(tmp_path / "c", Clips(), Tiny()) == [SHARD] and content(tmp_path / "c") == before
    with pytest.raises(ValueError, match="another flips: True, not False"):
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


# ---------------------------------------------------------------- what the manifest says, and version 1


def test_the_manifest_says_what_the_cache_is(tmp_path):
    class Configured(Tiny):
        config = dict(block_out_channels=[8, 16], scaling_factor=0.18215)

    import minisora

    write_cache(tmp_path / "c", Clips(), Configured(), progress=False)
    m = json.loads((tmp_path / "c/manifest.json").read_text())
    assert (
        m["config"] == Configured.config and m["code"] == minisora.__version__ and m["version"] == 2
    )
    assert m["autoencoder"]["name"] == "Configured" and m["autoencoder"]["spec"]["channels"] == 5
    assert (
        m["statistics"]["all"].keys() == {"mean", "std"}
        and len(m["statistics"]["channel"]["std"]) == 5
    )
    assert m["dtype"] == "float16" and m["shape"] == [5, 2, 2, 2] and m["samples"] == 20
    assert all(len(s["sha256"]) == len(s["rows_sha256"]) == 64 for s in m["shards"])
    row = LatentCache(tmp_path / "c").rows[13]
    assert row == dict(
        caption="clip number 6",
        source="noise:13",
        fps=8.0,
        attributes=dict(digit=6, name="naïve 图"),
    )


def as_version_1(path):
    "Rewrite a cache as the first release wrote it."
    m = lc.load_manifest(path) | dict(version=1)
    for k in ("flips", "config"):
        del m[k]
    for s in m["shards"]:
        file = path / s["file"]
        raw = file.read_bytes().replace(b'"version": "2"', b'"version": "1"')
        file.write_bytes(raw)
        s["sha256"] = lc.file_hash(file)
    lc.write_json(path / "manifest.json", m | dict(sha256=lc.digest(m)))


def test_a_cache_of_version_1_is_read_and_reused_and_repaired(tmp_path):
    new = write(tmp_path / "c")[range(20)]["latents"]
    as_version_1(tmp_path / "c")
    before = content(tmp_path / "c")
    assert torch.equal(LatentCache(tmp_path / "c")[range(20)]["latents"], new)
    assert (
        torch.equal(write(tmp_path / "c")[range(20)]["latents"], new)
        and content(tmp_path / "c") == before
    )
    flip(tmp_path / "c" / SHARD, -5)
    assert repair(tmp_path / "c", Clips(), Tiny()) == [SHARD] and content(tmp_path / "c") == before
    with pytest.raises(ValueError, match="another flips"):
        write(tmp_path / "c", flips=True)


# ---------------------------------------------------------------- verify and repair, the faults not in the main file


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
        (problem,) = verify(tmp_path / "c", check).values()
        assert message in problem and SHARD in problem
    assert repair(tmp_path / "c", Clips(), Tiny()) == [SHARD] and content(tmp_path / "c") == before


def test_several_bad_shards_are_all_named_and_all_repaired(tmp_path):
    write(tmp_path / "c")
    before = content(tmp_path / "c")
    flip(tmp_path / "c/latents-00000.safetensors", -1)
    (tmp_path / "c/latents-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="latents-00000.*; .*latents-00002"):
        LatentCache(tmp_path / "c")
    assert len(repair(tmp_path / "c", Clips(), Tiny())) == 2 and content(tmp_path / "c") == before


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
        repair(tmp_path / "c", Clips(), ae)
    assert list(verify(tmp_path / "c")) == [SHARD], "the manifest still says so"
    assert repair(tmp_path / "c", Clips(), Tiny()) == [SHARD] and content(tmp_path / "c") == before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


# ---------------------------------------------------------------- lazy rows, raw latents, labels


def test_rows_are_parsed_when_asked_for(tmp_path, monkeypatch):
    cache, parsed = write(tmp_path / "c"), []
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda s: parsed.append(1) or real(s))
    assert cache.rows[13]["source"] == "noise:13" and len(parsed) == 1
    assert [r["source"] for r in cache.rows[18:]] == ["noise:18", "noise:19"] and len(parsed) == 3
    assert cache.rows[-1]["source"] == "noise:19" and len(cache.rows) == 20
    assert [r["source"] for r in cache.rows] == cache.sources == [f"noise:{i}" for i in range(20)]
    with pytest.raises(IndexError, match="row 20 of a cache with 20"):
        cache.rows[20]
    assert pickle.loads(pickle.dumps(cache)).rows[9] == cache.rows[9]


def test_rows_that_do_not_fit_are_named(tmp_path):
    cache = write(tmp_path / "c")
    os.truncate(tmp_path / "c/latents-00001.jsonl", 150)
    with pytest.raises(ValueError, match=r"latents-00001.jsonl has 1 lines for 8 samples"):
        cache.rows[9]


@pytest.mark.parametrize("dtype", lc.DTYPES)
def test_raw_is_what_is_stored(tmp_path, dtype):
    cache = write(tmp_path / "c", dtype=dtype)
    raw = LatentCache(tmp_path / "c", raw=True)
    batch = raw[[3, 19]]
    z, scale = batch["latents"], batch.get("scale")
    assert z.dtype == getattr(torch, dtype) and (scale is None) == (dtype != "int8")
    torch.testing.assert_close(
        raw.normalise(z, scale), cache[[3, 19]]["latents"], rtol=1e-6, atol=1e-6
    )
    one = raw[19]
    torch.testing.assert_close(
        raw.normalise(one["latents"], one.get("scale")), cache[19]["latents"], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("options", [{}, dict(flips=True)], ids=["", "flips"])
def test_the_system_is_asked_for_a_row_once(tmp_path, monkeypatch, options):
    "Rows of a shard are fetched together at their first reading; later they are in memory, or one page fault away."
    cache, asked = write(tmp_path / "c", **options), []
    monkeypatch.setattr(
        lc.MappedShards, "fetch", lambda self, whole, offset, rows: asked.append(rows.tolist())
    )
    for index in ([0, 5, 17], [17, 6, 5], [6, 0]):
        cache.shards.read(np.array(index))
    assert asked == [
        [r * lc.views(cache.manifest) for r in rows] for rows in ([0, 5], [1], [6], [], [])
    ]


def test_labels_as_conditions(tmp_path):
    write(tmp_path / "c")
    cache = LatentCache(tmp_path / "c", "digit")
    assert cache[[3, 9]]["condition"].tolist() == [[3], [2]]
    with pytest.raises(ValueError, match="sample 0 has no integer attribute 'name'"):
        LatentCache(tmp_path / "c", "name")


# ---------------------------------------------------------------- order


def shares(n, world_size, epoch=0, start=0, seed=0, **options):
    out = [LatentSampler(n, seed, r, world_size, **options) for r in range(world_size)]
    for s in out:
        s.set_epoch(epoch, start)
    assert [len(s) for s in out] == [len(list(s)) for s in out], "len must say what comes"
    return [list(s) for s in out]


@pytest.mark.parametrize("n, world_size", [(10, 1), (10, 3), (2, 5), (12, 4)])
def test_ranks_share_an_epoch(n, world_size):
    keep = shares(n, world_size, uneven="keep")
    assert sorted(sum(keep, [])) == list(range(n)), "each sample exactly once"
    wrap = shares(n, world_size)
    assert set(sum(wrap, [])) == set(range(n)) and {len(s) for s in wrap} == {-(-n // world_size)}
    (order,) = shares(n, 1)
    together = [i for step in zip(*wrap) for i in step]
    assert together == (order * 3)[: len(together)], (
        "one permutation, which begins again where it ends"
    )
    drop = sum(shares(n, world_size, uneven="drop"), [])
    assert len(set(drop)) == len(drop) == n // world_size * world_size


def test_order_is_a_function_of_seed_and_epoch():
    a = shares(50, 2)
    torch.randn(3)
    np.random.rand()
    assert a == shares(50, 2) and a != shares(50, 2, epoch=1) and a != shares(50, 2, seed=1)
    assert a[0] != sorted(a[0]) and shares(6, 2, shuffle=False) == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("uneven", ["wrap", "drop", "keep"])
def test_going_on_in_the_middle_of_an_epoch(uneven):
    whole = shares(23, 3, epoch=4, uneven=uneven)
    rest = shares(23, 3, epoch=4, start=12, uneven=uneven)
    assert rest == [s[4:] for s in whole]
    other = shares(23, 2, epoch=4, start=12, uneven="keep")  # with another number of ranks
    assert sorted(sum(other, []) + sum([s[:4] for s in whole], [])) == list(range(23))


@pytest.mark.parametrize(
    "given, message", [(dict(rank=3, world_size=3), "rank 3"), (dict(uneven="x"), "uneven")]
)
def test_bad_samplers(given, message):
    with pytest.raises(ValueError, match=message):
        LatentSampler(5, **given)
    with pytest.raises(ValueError, match="start must be"):
        LatentSampler(5).set_epoch(0, 9)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_loader_goes_on_in_the_middle_of_an_epoch(tmp_path, workers):
    cache = write(tmp_path / "c", moments=True)
    cache.set_epoch(3)
    sampler = LatentSampler(cache, seed=7)
    load = lambda: list(
        torch.utils.data.DataLoader(
            cache, 4, sampler=sampler, num_workers=workers, collate_fn=LatentCache.collate
        )
    )
    sampler.set_epoch(3)
    whole = load()
    sampler.set_epoch(3, start=2 * 4)
    rest = load()
    assert len(whole) == 5 and len(rest) == 3
    for a, b in zip(whole[2:], rest):
        assert torch.equal(a["latents"], b["latents"]) and torch.equal(a["index"], b["index"])


# ---------------------------------------------------------------- other people's engines

ACCELERATE = """
import sys, torch
from accelerate import Accelerator
from minisora.latent_cache import LatentCache, LatentSampler
acc, cache = Accelerator(cpu=True), LatentCache(sys.argv[1])
model = torch.nn.Linear(8, 8)
loader = torch.utils.data.DataLoader(cache, 4, sampler=LatentSampler(cache, seed=1), collate_fn=LatentCache.collate)
model, optimizer, loader = acc.prepare(model, torch.optim.SGD(model.parameters(), 0.1), loader)
seen = []
for batch in loader:
    loss = model(batch["latents"].flatten(2)).square().mean()
    acc.backward(loss); optimizer.step(); optimizer.zero_grad(); seen += batch['index'].tolist()
print(acc.process_index, acc.num_processes, seen)
"""


def test_accelerate_two_processes(tmp_path):
    "Two processes under accelerate: the same number of batches each, together every sample."
    write(tmp_path / "c")
    port = 20000 + os.getpid() % 20000
    env = os.environ | dict(
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        PYTHONPATH=str(ROOT),
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
    )
    run = lambda r: subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ACCELERATE, str(tmp_path / "c")],
        env=env | dict(RANK=str(r), LOCAL_RANK=str(r)),
        stdout=subprocess.PIPE,
        text=True,
    )
    said = [p.communicate()[0].split(None, 2) for p in [run(0), run(1)]]
    assert [s[:2] for s in said] == [["0", "2"], ["1", "2"]]
    a, b = (json.loads(s[2]) for s in said)
    assert len(a) == len(b) and set(a) | set(b) == set(range(20)) and set(a[:8]).isdisjoint(b[:8])


def test_mmengine_trains_two_steps(tmp_path):
    "The cache under the Runner of mmengine, an optional extra."
    pytest.importorskip("mmengine", reason="mmengine is an optional extra: pip install mmengine")
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(8, 8), []

        def forward(self, latents, index, condition=None, mode="loss"):
            self.seen.append((index.tolist(), condition.tolist()))
            return dict(loss=(self.layer(latents.flatten(2)) - latents.flatten(2)).square().mean())

    write(tmp_path / "c")
    cache, model = LatentCache(tmp_path / "c", "digit"), Model()
    before = model.layer.weight.clone()
    loader = torch.utils.data.DataLoader(
        cache, 4, sampler=LatentSampler(cache, seed=1), collate_fn=LatentCache.collate
    )
    runner = Runner(
        model,
        str(tmp_path / "work"),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=2),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_scope="mmengine",
        default_hooks=dict(checkpoint=None),
        log_level="ERROR",
    )
    runner.train()
    order = list(LatentSampler(cache, seed=1))
    assert [i for i, _ in model.seen] == [order[:4], order[4:8]] and runner.iter == 2
    assert [c for _, c in model.seen] == [[[i % 7] for i in o] for o in (order[:4], order[4:8])]
    assert not torch.equal(before, model.layer.weight), "the weights must move"


# ---------------------------------------------------------------- one .npy file a sample


def npy_folder(folder, n=12, shape=(1, 4, 8, 8), name="imagenet256", dtype=np.float32):
    "As DiT's extract_features leaves them; file i is a pure function of i."
    for kind in ("features", "labels"):
        (folder / f"{name}_{kind}").mkdir(parents=True)
    for i in range(n):
        np.save(
            folder / f"{name}_features/{i}.npy",
            np.random.default_rng(i).normal(size=shape).astype(dtype),
        )
        np.save(folder / f"{name}_labels/{i}.npy", np.array([100 + i]))
    return folder


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
    cache = convert(
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
            cache.denormalise(cache[i]["latents"]), data[i]["latents"], rtol=1e-5, atol=1e-5
        )
        assert torch.equal(labelled[i]["condition"], data[i]["condition"])
    assert cache.sources[11] == "imagenet256_features/11.npy" and cache.captions[11] == "111"
    half = convert(tmp_path / "f", tmp_path / "h", progress=False)
    assert half.manifest["dtype"] == "float16" and not verify(tmp_path / "h")
    with pytest.raises(ValueError, match="no log-variance"):
        convert(tmp_path / "f", tmp_path / "m", moments=True)
    with pytest.raises(ValueError, match="no flips"):
        convert(tmp_path / "f", tmp_path / "m", flips=True)


def test_converting_goes_on_after_an_interruption(tmp_path, monkeypatch):
    npy_folder(tmp_path / "f")
    convert(tmp_path / "f", tmp_path / "whole", batch_size=2, progress=False)
    real, left = lc.load_npy, [15]

    def dies(file):
        left[0] -= 1
        if not left[0]:
            raise Stop
        return real(file)

    monkeypatch.setattr(lc, "load_npy", dies)
    with pytest.raises(Stop):
        convert(tmp_path / "f", tmp_path / "c", batch_size=2, progress=False)
    assert not (tmp_path / "c").exists()
    convert(tmp_path / "f", tmp_path / "c", batch_size=2, progress=False)
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
        convert(tmp_path / "f", tmp_path / "c", progress=False)
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
