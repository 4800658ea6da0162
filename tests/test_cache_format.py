"""The files of a cache: heads, manifests of every version, eight bits with their scales."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.latent_cache import (
    FAULTS,
    ROWS,
    SHARD,
    Clips,
    Stop,
    Stopping,
    Tiny,
    child,
    content,
    exact,
    flip,
    npy_folder,
    write,
)
from safetensors import safe_open

import minisora
from minisora.autoencoder import load_autoencoder
from minisora.clips import SceneClips
from minisora.core.files import sha256_file, short_hash, write_json
from minisora.latent_cache import (
    LatentCache,
    import_npy_folder,
    repair_cache,
    verify_cache,
    write_cache,
)
from minisora.latents import cache_writer
from minisora.latents.cache_format import load_manifest, quantize_int8, shard_header

FLOAT16 = 2e-3  # relative: half of float16's last place, and a little for the sums


# ---------------------------------------------------------------- heads and manifests


def test_others_can_read_the_shards(tmp_path):
    write(tmp_path / "c", moments=True)
    with safe_open(tmp_path / "c/latents-00001.safetensors", "pt") as f:
        assert set(f.keys()) == {"moments"} and f.metadata()["start"] == "8"
        mean, logvar = f.get_tensor("moments").chunk(2, 1)  # as diffusers orders them
        torch.testing.assert_close(mean.float(), exact(range(8, 16)), rtol=FLOAT16, atol=FLOAT16)
        assert torch.equal(logvar, torch.full((8, 5, 2, 2, 2), -2.0).half())


def test_another_version_of_a_shard(tmp_path):
    write(tmp_path / "c")
    file = tmp_path / "c" / SHARD
    raw = file.read_bytes()
    assert raw.count(b'"version": "2"') == 1
    file.write_bytes(raw.replace(b'"version": "2"', b'"version": "9"'))
    for check in (True, "size"):
        with pytest.raises(ValueError, match=f"{SHARD} has format version 9; this code reads 2"):
            LatentCache(tmp_path / "c", check=check)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda m: m.update(version=3), "format version 3; this code reads 2"),
        (
            lambda m: m.update(version=1, tensors=["mean", "logvar"]),
            "format version 1; this code reads 2",
        ),
        (lambda m: m.update(format="else"), "no manifest of a latent cache"),
        (lambda m: m["statistics"]["all"].update(std=0.5), "changed after it was written"),
        (lambda m: m["shards"].pop(), "changed after it was written"),
        (lambda m: m.pop("sha256"), "changed after it was written"),
    ],
)
def test_manifest(tmp_path, edit, message):
    write(tmp_path / "c")
    file = tmp_path / "c/manifest.json"
    m = json.loads(file.read_text())
    edit(m)
    file.write_text(json.dumps(m))
    with pytest.raises(ValueError, match=f"manifest.json .*{message}"):
        LatentCache(tmp_path / "c")


@pytest.mark.parametrize(
    "harm",
    [lambda p: os.truncate(p, 100), lambda p: p.write_text("[]"), lambda p: p.write_text("")],
)
def test_a_broken_manifest(tmp_path, harm):
    write(tmp_path / "c")
    harm(tmp_path / "c/manifest.json")
    with pytest.raises(ValueError, match="manifest.json"):
        LatentCache(tmp_path / "c")
    with pytest.raises(ValueError, match="manifest.json"):
        write(tmp_path / "c")


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
    m = load_manifest(path) | dict(version=1)
    for k in ("flips", "config"):
        del m[k]
    for s in m["shards"]:
        file = path / s["file"]
        raw = file.read_bytes().replace(b'"version": "2"', b'"version": "1"')
        file.write_bytes(raw)
        s["sha256"] = sha256_file(file)
    write_json(path / "manifest.json", m | dict(sha256=short_hash(m)))


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
    assert (
        repair_cache(tmp_path / "c", Clips(), Tiny()) == [SHARD]
        and content(tmp_path / "c") == before
    )
    with pytest.raises(ValueError, match="exists with flips="):
        write(tmp_path / "c", flips=True)


# ---------------------------------------------------------------- what version 0.1 wrote


OLD = ROOT / "tests" / "data" / "version-0.1"
OPTIONS = dict(
    float16={},
    int8=dict(dtype="int8", flips=True),
    moments=dict(moments=True, dtype="bfloat16", per_channel=True),
    float32=dict(dtype="float32", sample_seed=3),
)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_call_gives_the_same_bytes_as_version_01(tmp_path, name):
    """Heads and text always; the numbers too with MINISORA_EXACT=1, on a processor that rounds
    alike."""
    flat = load_autoencoder(OLD / "autoencoders" / "flat")
    clips = SceneClips(10, frames=4, size=16)
    options = dict(OPTIONS[name], batch_size=4, shard_size=8, progress=False)
    write_cache(tmp_path / "c", clips, flat, **options)
    old, new = content(OLD / "caches" / name), content(tmp_path / "c")
    assert list(old) == list(new)
    manifest = load_manifest(OLD / "caches" / name)
    for shard in manifest["shards"]:
        assert new[shard["rows"]] == old[shard["rows"]]
        head = shard_header(manifest, shard["start"])
        assert new[shard["file"]].startswith(head) and old[shard["file"]].startswith(head)
        assert len(new[shard["file"]]) == len(old[shard["file"]])
    if os.environ.get("MINISORA_EXACT") == "1":
        assert {k: v for k, v in new.items() if k != "manifest.json"} == {
            k: v for k, v in old.items() if k != "manifest.json"
        }
        assert load_manifest(tmp_path / "c") == manifest | dict(code=minisora.__version__)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_cache_of_version_01_is_verified_and_repaired(tmp_path, name):
    shutil.copytree(OLD / "caches" / name, tmp_path / "c")
    before, bad = content(tmp_path / "c"), "latents-00001.safetensors"
    assert verify_cache(tmp_path / "c") == {}
    flip(tmp_path / "c" / bad, -1)
    assert list(verify_cache(tmp_path / "c")) == [bad]
    flat = load_autoencoder(OLD / "autoencoders" / "flat")
    exact = os.environ.get("MINISORA_EXACT") == "1"
    assert repair_cache(tmp_path / "c", SceneClips(10, frames=4, size=16), flat, exact) == [bad]
    assert verify_cache(tmp_path / "c") == {} and (not exact or content(tmp_path / "c") == before)


# ---------------------------------------------------------------- eight bits


KINDS = [{}, dict(moments=True), dict(sample_seed=0), dict(flips=True)]


def test_the_error_is_half_a_step_of_each_channel():
    z = torch.randn(6, 5, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    z *= torch.logspace(-3, 3, 5).view(5, 1, 1, 1) * torch.arange(1, 7).view(6, 1, 1, 1, 1)
    q, scale = quantize_int8(z)
    assert q.dtype == torch.int8 and scale.dtype == torch.float32 and scale.shape == (6, 5, 1, 1, 1)
    assert (q.abs().amax((2, 3, 4)) == 127).all(), (
        "each channel of each sample uses the whole range"
    )
    error = (q * scale - z).abs()
    assert (error <= 0.501 * scale).all()
    rms = (error / scale).square().mean().sqrt()
    assert abs(rms - 12**-0.5) < 0.01, "rounding errors are uniform: neither cut off nor biased"
    assert abs(((q * scale - z) / scale).mean()) < 0.02


@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-38, 3e38, -7.0])
def test_a_channel_of_one_value(value):
    z = torch.full((1, 2, 1, 2, 2), value)
    z[0, 1] = 1.0
    q, scale = quantize_int8(z)
    assert torch.isfinite(q * scale).all() and torch.equal((q * scale)[0, 1], z[0, 1])
    assert ((q * scale - z).abs() <= 0.501 * scale).all()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_it_is_the_float32_cache_to_half_a_step(tmp_path, options):
    a, b = (write(tmp_path / d, dtype=d, **options) for d in ("int8", "float32"))
    every = np.arange(20)
    for view in range(2 if options.get("flips") else 1):
        q, scale, want = (
            a.shards.read(every, view),
            a.shards.scale(every, view),
            b.shards.read(every, view),
        )
        assert torch.equal(scale, quantize_int8(want)[1]) and torch.equal(q, quantize_int8(want)[0])
    if options != dict(moments=True):
        torch.testing.assert_close(
            a.std,
            (a.shards.read(every) * a.shards.scale(every)).std(correction=0),
            rtol=0.02,
            atol=0,
        )
    torch.testing.assert_close(a.std, b.std, rtol=2e-3, atol=0)
    z = a[[19, 3, 8]]["latents"]
    torch.testing.assert_close(z, b[[19, 3, 8]]["latents"], rtol=0, atol=0.03)
    assert torch.equal(z[1], a[3]["latents"]) and not verify_cache(tmp_path / "int8")


def test_statistics_are_those_of_what_is_read(tmp_path):
    cache = write(tmp_path / "c", dtype="int8")
    z = cache.shards.read(np.arange(20)) * cache.shards.scale(np.arange(20))
    torch.testing.assert_close(z.mean(), cache.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(correction=0), cache.std, rtol=1e-5, atol=0)


def test_bytes_and_other_readers(tmp_path):
    cache = write(tmp_path / "c", dtype="int8")
    sizes = {
        s["file"]: (tmp_path / "c" / s["file"]).stat().st_size for s in cache.manifest["shards"]
    }
    assert sizes == {s["file"]: s["bytes"] for s in cache.manifest["shards"]}
    with safe_open(tmp_path / "c" / SHARD, "pt") as f:
        assert set(f.keys()) == {"mean", "scale"} and f.get_tensor("scale").shape == (8, 5)
        assert f.get_tensor("mean").dtype == torch.int8
        z = f.get_tensor("mean") * f.get_tensor("scale")[..., None, None, None]
    assert torch.equal(
        z, cache.shards.read(np.arange(8, 16)) * cache.shards.scale(np.arange(8, 16))
    )
    assert len(shard_header(cache.manifest, 8)) + 8 * (5 * 8 + 4 * 5) == sizes[SHARD]
    with safe_open(write(tmp_path / "flipped", dtype="int8", flips=True).path / SHARD, "pt") as f:
        assert f.get_tensor("mean").shape[:2] == (8, 2) and f.get_tensor("scale").shape == (8, 2, 5)
    with safe_open(write(tmp_path / "moments", dtype="int8", moments=True).path / SHARD, "pt") as f:
        assert f.get_tensor("moments").shape[:2] == f.get_tensor("scale").shape == (8, 10)


def test_an_odd_number_of_bytes(tmp_path):
    "The scales then begin at an address that is no multiple of four."

    class Odd(Tiny):
        def encode(self, x):
            z = self.net(x)[:, :1, :1, :1, :1]
            return z, torch.full_like(z, -2.0)

    cache = write_cache(tmp_path / "c", Clips(3), Odd(), dtype="int8", progress=False)
    want = exact(range(3), 3)[:, :1, :1, :1, :1]
    torch.testing.assert_close(
        cache.denormalize(cache[range(3)]["latents"]), want, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("at", [3, 9, 18])
def test_an_interrupted_run_gives_the_same_bytes(tmp_path, at, options):
    write(tmp_path / "whole", dtype="int8", **options)
    clips = Stopping(at)
    options = dict(dtype="int8", batch_size=4, shard_size=8, progress=False, **options)
    with pytest.raises(Stop):
        write_cache(tmp_path / "c", clips, Tiny(), **options)
    write_cache(tmp_path / "c", clips, Tiny(), **options)
    assert content(tmp_path / "c") == content(tmp_path / "whole") and not verify_cache(
        tmp_path / "c"
    )


def test_killed_between_the_scales_and_the_last_line_of_the_journal(tmp_path):
    plan = dict(
        samples=2, shard_size=2, shape=[1, 1, 2, 2], dtype="int8", tensors=["mean"], id="a tiny one"
    )
    batch = (
        torch.arange(8, dtype=torch.int8).view(2, 1, 1, 1, 2, 2),
        ["a", "b"],
        [[0.0], [0.0]],
        torch.ones(2, 1, 1),
    )
    shard = cache_writer.ShardWriter(tmp_path, plan, 0)
    shard.append(*batch)
    shard.close()
    before = content(tmp_path)
    shard = cache_writer.ShardWriter(tmp_path, plan, 0)
    entry = shard.finish()
    after = content(tmp_path)
    for harm in (lambda: None, lambda: os.truncate(tmp_path / entry["file"], entry["bytes"] - 3)):
        (tmp_path / "latents-00000.journal").write_bytes(
            before["latents-00000.journal"]
        )  # the last line is lost
        harm()
        again = cache_writer.ShardWriter(tmp_path, plan, 0)
        assert again.done == 2 and again.finish() == entry and content(tmp_path) == after
    assert after[entry["file"]].endswith(torch.ones(2).numpy().tobytes())


def test_kill_9(tmp_path):
    write(tmp_path / "whole", n=120, shard_size=40, dtype="int8")
    p = child(tmp_path / "c", slow=0.03, dtype="int8")
    while not list((tmp_path / "c.part").glob("*.journal")) and p.poll() is None:
        time.sleep(0.005)
    time.sleep(0.4)
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -signal.SIGKILL
    p.stdout.close()
    assert not (tmp_path / "c").exists()
    write(tmp_path / "c", n=120, shard_size=40, dtype="int8")
    assert content(tmp_path / "c") == content(tmp_path / "whole")


FAULTS8 = FAULTS | {
    "a flipped bit of a scale": (SHARD, lambda p: flip(p, -1), "sha256"),
    "scales cut off": (
        SHARD,
        lambda p: os.truncate(p, p.stat().st_size - 8 * 5 * 4),
        "bytes where",
    ),
}


@pytest.mark.parametrize("name, harm, message", FAULTS8.values(), ids=FAULTS8)
def test_damage_is_found_and_mended(tmp_path, name, harm, message):
    write(tmp_path / "c", dtype="int8")
    before = content(tmp_path / "c")
    harm(tmp_path / "c" / name)
    with pytest.raises(ValueError, match=f"{name} .*({message})"):
        LatentCache(tmp_path / "c")
    assert (
        repair_cache(tmp_path / "c", Clips(), Tiny()) == [SHARD]
        and content(tmp_path / "c") == before
    )


def test_other_types_have_no_scales_and_other_bytes(tmp_path):
    write(tmp_path / "c")
    with pytest.raises(ValueError, match="exists with dtype='float16', requested 'int8'"):
        write(tmp_path / "c", dtype="int8")
    assert (
        ROWS in content(tmp_path / "c")
        and b"scale" not in (tmp_path / "c" / SHARD).read_bytes()[:400]
    )


@pytest.mark.parametrize("scale", [float("inf"), float("nan")])
def test_latents_that_are_not_finite_are_named(tmp_path, scale):
    ae, real = Tiny(), Tiny()
    ae.encode = lambda x: [
        m * torch.where(x[:, :1, :1, :1, :1] == x5, scale, 1.0) for m in real.encode(x)
    ]
    x5 = (Clips()[5].frames.float() / 127.5 - 1)[0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"clip 5 \(noise:5\): its latents are not finite in int8"):
        write_cache(tmp_path / "c", Clips(), ae, batch_size=4, progress=False, dtype="int8")


def test_convert(tmp_path):
    npy_folder(tmp_path / "f")
    a, b = (
        import_npy_folder(tmp_path / "f", tmp_path / d, dtype=d, progress=False)
        for d in ("int8", "float32")
    )
    x, y = (c.denormalize(c[range(12)]["latents"]) for c in (a, b))
    torch.testing.assert_close(x, y, rtol=0, atol=0.51 / 127 * y.abs().max().item())
    assert not torch.equal(x, y)


def test_a_manifest_with_a_type_of_tomorrow(tmp_path):
    write(tmp_path / "c", dtype="int8")
    m = load_manifest(tmp_path / "c") | dict(dtype="float4")
    write_json(tmp_path / "c/manifest.json", m | dict(sha256=short_hash(json.loads(json.dumps(m)))))
    with pytest.raises(ValueError, match="manifest.json: dtype must be one of 'float16'"):
        LatentCache(tmp_path / "c")
