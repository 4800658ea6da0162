"""Damage of every kind to every file of a cache: each is one line that names the file."""

import errno
import os
import shutil
import time

import numpy as np
import pytest
import torch
from helpers.files import room_for
from helpers.latent_cache import SHARD, Clips, Tiny, content, flip, write

from minisora.core.files import read_json, short_hash, write_json
from minisora.core.pairs import made_from
from minisora.core.provenance import shards_fingerprint
from minisora.latent_cache import LatentCache, verify_cache, write_cache
from minisora.latents import cache_verified

FILES = ["manifest.json"] + [
    f"latents-0000{k}.{kind}" for k in range(3) for kind in ("safetensors", "jsonl")
]


def cut(share):
    return lambda p: os.truncate(p, int(p.stat().st_size * share))


def replace_by(make):
    def harm(p):
        p.unlink()
        make(p)

    return harm


def rewrite(change):
    return lambda p: p.write_bytes(change(bytearray(p.read_bytes())))


def text(words):
    return lambda p: p.write_text(words)


def zeros(raw):
    raw[len(raw) // 3 : len(raw) // 3 + 16] = bytes(16)
    return raw


HARMS = {
    "empty": cut(0),
    "one byte": lambda p: os.truncate(p, 1),
    "seven bytes": lambda p: os.truncate(p, 7),
    "half": cut(0.5),
    "nine tenths": cut(0.9),
    "one byte less": lambda p: os.truncate(p, p.stat().st_size - 1),
    "one byte more": rewrite(lambda raw: raw + b"\0"),
    "much more": lambda p: os.truncate(p, 2**22),
    "the first bit": lambda p: flip(p, 0),
    "the first of its head": lambda p: flip(p, 8),
    "in its head": lambda p: flip(p, 30),
    "a length of exabytes": lambda p: flip(p, 7, 128),
    "in the middle": lambda p: flip(p, p.stat().st_size // 2),
    "the last bit": lambda p: flip(p, -1, 128),
    "all zeros": rewrite(lambda raw: bytes(len(raw))),
    "a block of zeros": rewrite(zeros),
    "a block of ones": rewrite(lambda raw: b"\xff" * 16 + raw[16:]),
    "a page of a server": text("<html>404</html>"),
    "a pointer of git": text("version https://git-lfs.github.com/spec/v1\nsize 3\n"),
    "UTF-16": lambda p: p.write_text('{"a": 1}', encoding="utf-16"),
    "deep lists": text("[" * 200_000),
    "deep objects": text('{"a":' * 200_000),
    "deep lists behind a length": lambda p: p.write_bytes(
        bytes([64, 13, 3]) + bytes(5) + b"[" * 200_000
    ),
    "a list": text("[]"),
    "null": text("null"),
    "an empty object": text("{}"),
    "a number of 5,000 digits": text('{"a": ' + "9" * 5000 + "}"),
    "gone": lambda p: p.unlink(),
    "a folder": replace_by(lambda p: p.mkdir()),
    "a link to itself": replace_by(lambda p: p.symlink_to(p.name)),
    "a link to nowhere": replace_by(lambda p: p.symlink_to("nowhere")),
    "a pipe": replace_by(os.mkfifo),
    "a device": replace_by(lambda p: p.symlink_to("/dev/zero")),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "c"
    write(path, dtype="int8", flips=True)
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_named(whole, tmp_path, name):
    "33 kinds of damage to each of the seven files; opening and verifying both find all of them."
    for kind, harm in HARMS.items():
        path = tmp_path / kind
        shutil.copytree(whole, path)
        harm(path / name)
        for look in (LatentCache, verify_cache):
            try:
                found = look(path)
            except (ValueError, OSError) as e:
                told = str(e)
            else:
                assert look is verify_cache, f"{kind} of {name}: opened without a word"
                told = "; ".join(found.values())
            assert name in told and len(told.splitlines()) == 1, (kind, told)
        shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: m.pop("dtype"), "dtype is None, not str"),
        (lambda m: m.update(samples="20"), "samples is '20', not int"),
        (lambda m: m.update(shards={}), "shards is {}, not list"),
        (lambda m: m["shards"].append(3), "shards holds 3"),
        (lambda m: m["shards"][1].pop("sums"), "sums is None, not list"),
        (lambda m: m["shards"][1].update(file="../x"), "'../x' is no name of a file beside it"),
        (lambda m: m.update(statistics=[]), r"statistics is \[\], not dict"),
    ],
)
def test_a_manifest_that_was_sealed_again(whole, tmp_path, change, words):
    shutil.copytree(whole, tmp_path / "c")
    file = tmp_path / "c/manifest.json"
    m = read_json(file)
    del m["sha256"]
    change(m)
    write_json(file, m | dict(sha256=short_hash(m)))
    with pytest.raises(ValueError, match=f"manifest.json: .*{words}"):
        LatentCache(tmp_path / "c")


# ---------------------------------------------------------------- after it was opened


@pytest.mark.parametrize("size", [0, 100, 700])
@pytest.mark.parametrize("touched", [False, True], ids=["not yet read", "read before"])
def test_a_shard_that_is_cut_after_opening(whole, tmp_path, size, touched):
    "Reading behind the end of a mapped file would end the process: SIGBUS."
    shutil.copytree(whole, tmp_path / "c")
    cache = LatentCache(tmp_path / "c")
    if touched:
        cache[range(20)]
    os.truncate(tmp_path / "c" / SHARD, size)
    assert len(cache[[0, 17]]["latents"]) == 2
    with pytest.raises(ValueError, match=f"{SHARD} has {size} bytes .* cut after .* opened"):
        cache[[0, 9]]
    assert len(cache[[0, 17]]["latents"]) == 2


def test_rows_that_are_cut_after_opening(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "c")
    cache = LatentCache(tmp_path / "c")
    assert cache.rows[9]["source"] == "noise:9"
    os.truncate(tmp_path / "c/latents-00001.jsonl", 10)
    for read in (lambda: cache.rows[9], lambda: cache.captions):
        with pytest.raises(ValueError, match="latents-00001.jsonl has 10 bytes"):
            read()


@pytest.mark.parametrize("word", ["{broken", "[1]", "\xff\xfe"])
def test_a_row_that_cannot_be_read_is_named(whole, tmp_path, word):
    shutil.copytree(whole, tmp_path / "c")
    file = tmp_path / "c/latents-00001.jsonl"
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([lines[0], word.encode("latin-1"), *lines[2:]]))
    cache = LatentCache(tmp_path / "c", check="size")
    with pytest.raises(ValueError, match="latents-00001.jsonl is damaged: line 2 holds no row"):
        cache.captions


def test_another_cache_that_takes_the_place_is_not_mixed_in(tmp_path):
    cache = write(tmp_path / "c")
    first = cache[[1]]["latents"]
    write_cache(
        tmp_path / "c",
        Clips(),
        Tiny(1),
        batch_size=4,
        shard_size=8,
        progress=False,
        overwrite=True,
    )
    assert torch.equal(cache[[1]]["latents"], first), "what is mapped stays as it was"
    with pytest.raises(ValueError, match=f"{SHARD} belongs to another cache .*after .* opened"):
        cache[[9]]


def test_a_shard_that_is_removed_after_opening(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "c")
    cache = LatentCache(tmp_path / "c")
    first = cache[[1]]["latents"]
    shutil.rmtree(tmp_path / "c")
    assert torch.equal(cache[[1]]["latents"], first)
    with pytest.raises(ValueError, match=f"{SHARD} is missing: it was removed after"):
        cache[[9]]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs a list of descriptors")
def test_shards_need_no_descriptor_each(tmp_path):
    cache = write(tmp_path / "c", n=40, batch_size=1, shard_size=1)
    before = len(os.listdir("/proc/self/fd"))
    cache[range(40)]
    assert len(cache.captions) == 40
    assert len(os.listdir("/proc/self/fd")) <= before + 2


# ---------------------------------------------------------------- verified once


@pytest.fixture
def hashed(monkeypatch, tmp_path):
    "The files whose checksum is computed; notes of this test only, and times without steps."
    from minisora.latents import cache_format

    files = []
    real = cache_format.sha256_file
    monkeypatch.setenv("MINISORA_CACHE", str(tmp_path / "notes"))
    monkeypatch.setattr(cache_verified, "_STEP", 0)
    monkeypatch.setattr(cache_verified, "_COARSE_STEP", 0)
    monkeypatch.setattr(
        cache_format, "sha256_file", lambda file: files.append(file.name) or real(file)
    )
    return files


def test_a_file_is_read_again_only_after_a_change(whole, tmp_path, hashed):
    path = tmp_path / "c"
    shutil.copytree(whole, path)
    LatentCache(path)
    assert sorted(hashed) == sorted(FILES[1:])
    hashed.clear()
    LatentCache(path)
    assert hashed == []
    before = (path / SHARD).stat()
    time.sleep(0.02)
    flip(path / SHARD, -3)
    os.utime(path / SHARD, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=f"{SHARD} is damaged: its sha256"):
        LatentCache(path)
    assert list(verify_cache(path)) == [SHARD]
    flip(path / SHARD, -3)
    hashed.clear()
    LatentCache(path)
    assert SHARD in hashed and "latents-00000.safetensors" not in hashed


def test_verify_reads_every_byte_again(whole, tmp_path, hashed):
    shutil.copytree(whole, tmp_path / "c")
    LatentCache(tmp_path / "c")
    hashed.clear()
    verify_cache(tmp_path / "c")
    assert sorted(hashed) == sorted(FILES[1:])


@pytest.mark.parametrize("notes", [b"", b"[]", b'{"latents-00001.safetensors": 3}', b"\xff"])
def test_notes_that_cannot_be_read_do_not_count(whole, tmp_path, hashed, notes):
    shutil.copytree(whole, tmp_path / "c")
    LatentCache(tmp_path / "c")
    (file,) = (tmp_path / "notes/verified").iterdir()
    file.write_bytes(notes)
    hashed.clear()
    LatentCache(tmp_path / "c")
    assert sorted(hashed) == sorted(FILES[1:])


def test_notes_that_cannot_be_kept_are_no_error(whole, tmp_path, hashed):
    shutil.copytree(whole, tmp_path / "c")
    (tmp_path / "notes").write_text("in the way")
    assert len(LatentCache(tmp_path / "c")) == 20


def test_a_change_within_the_step_of_the_clock_is_not_trusted(whole, tmp_path, monkeypatch):
    "Also with a clock that was set back: then the file seems to come from the future."
    monkeypatch.setenv("MINISORA_CACHE", str(tmp_path / "notes"))
    shutil.copytree(whole, tmp_path / "c")
    for now in (time.time_ns(), time.time_ns() - 10**12):
        monkeypatch.setattr(cache_verified.time, "time_ns", lambda now=now: now)
        LatentCache(tmp_path / "c")
        assert not (tmp_path / "notes").exists()


# ---------------------------------------------------------------- full disks, permissions


@pytest.mark.parametrize("size", [200, 450, 600, 1000, 2500])
def test_a_disk_that_fills_up_at_any_byte(tmp_path, size):
    "The good message must not be lost when closing the files fails as well."
    with room_for(size), pytest.raises(OSError) as e:
        write(tmp_path / "c")
    assert f"cannot write the cache: {os.strerror(errno.EFBIG)}. No finished cache" in str(e.value)
    assert len(str(e.value).splitlines()) == 1 and "the same call resumes there" in str(e.value)
    assert not (tmp_path / "c").exists()
    write(tmp_path / "c")
    write(tmp_path / "other")
    assert content(tmp_path / "c") == content(tmp_path / "other")


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_a_cache_has_the_permissions_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write(tmp_path / "c")
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "c").iterdir()}
    assert modes == {0o666 & ~mask}


# ---------------------------------------------------------------- which latents are these?


def test_the_fingerprint_is_of_the_latents(tmp_path, whole):
    class Elsewhere(Clips):
        def __getitem__(self, i):
            clip = super().__getitem__(i)
            return type(clip)(clip.frames, clip.caption, clip.fps, f"/moved/{i}", clip.attributes)

    class Others(Clips):
        def __getitem__(self, i):
            return super().__getitem__(i + (i == 13))

    small = dict(batch_size=4, shard_size=8, progress=False)
    same = write(tmp_path / "a").fingerprint
    assert len(same) == 16 and LatentCache(tmp_path / "a").fingerprint == same
    assert write_cache(tmp_path / "b", Elsewhere(), Tiny(), **small).fingerprint == same
    others = [
        write_cache(tmp_path / "c", Others(), Tiny(), **small),
        write_cache(tmp_path / "d", Clips(), Tiny(1), **small),
        write(tmp_path / "e", dtype="float32"),
        write(tmp_path / "f", flips=True),
        write(tmp_path / "g", n=19),
    ]
    assert len({same, *(cache.fingerprint for cache in others)}) == 6


@pytest.mark.parametrize("name", ["float16", "int8", "moments", "float32"])
def test_caches_of_earlier_versions_have_one(name, root):
    cache = LatentCache(root / "tests/data/version-0.1/caches" / name, check="size")
    assert len(cache.fingerprint) == 16


def test_many_shards_give_the_batch_of_one(tmp_path):
    many = write(tmp_path / "a", n=40, batch_size=2, shard_size=2)
    one = write(tmp_path / "b", n=40, batch_size=2, shard_size=40)
    index = np.random.default_rng(0).integers(0, 40, 64)
    assert torch.equal(many[index]["latents"], one[index]["latents"])


def test_the_fingerprint_sees_the_order(tmp_path):
    "Two samples that changed places have the same sums, and are other latents."

    class Swapped(Clips):
        def __getitem__(self, i):
            return super().__getitem__({1: 2, 2: 1}.get(i, i))

    small = dict(batch_size=4, shard_size=8, progress=False)
    cache = write(tmp_path / "a")
    swapped = write_cache(tmp_path / "b", Swapped(), Tiny(), **small)
    assert np.allclose(cache.manifest["shards"][0]["sums"], swapped.manifest["shards"][0]["sums"])
    assert cache.fingerprint != swapped.fingerprint
    assert shards_fingerprint(cache.manifest) != shards_fingerprint(swapped.manifest)
    assert made_from(cache) != made_from(swapped)
    part = torch.utils.data.Subset
    assert made_from(part(cache, [0, 1])) == made_from(part(cache, [0, 1]))
    assert (
        len({made_from(cache), *(made_from(part(cache, i)) for i in ([0, 1], [1, 0], [2, 3]))}) == 4
    )
