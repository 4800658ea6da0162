"""Out of memory, an update goes through in smaller parts; the memory there is."""

import ctypes
import os
from types import SimpleNamespace

import pytest
import torch
from helpers.train import Greedy, Pure, go, interruptible, same  # noqa: F401

from minisora.train import BatchTooLarge
from minisora.training import memory
from minisora.training.checkpoint import load_checkpoint


class Roomy(Pure):
    most = 10_000


def test_out_of_memory_falls_back_to_accumulation(tmp_path):
    "Five samples fit: 32 go through in 8 parts of 4, the same update as in one."
    options = dict(batch_size=32, steps=6, log_every=2, clip=0.5, valid=None)
    a = go(tmp_path / "a", net=Pure(dropout=0), on_oom="accumulate", **options)
    b = go(tmp_path / "b", net=Roomy(dropout=0), **options)
    for p, q in zip(a.model.parameters(), b.model.parameters()):
        assert torch.allclose(p, q, atol=1e-5)
    for p, q in zip(a.log, b.log):
        for k in ("loss", "grad_norm"):
            assert p[k] == pytest.approx(q[k], rel=1e-5)
    assert [r["parts"] for r in a.log] == [8] * len(a.log) and load_checkpoint(
        tmp_path / "a"
    ).state["parts"] == 8


def test_parts_need_not_divide_the_batch(monkeypatch):
    monkeypatch.setattr(Greedy, "most", 4)
    options = dict(batch_size=7, accumulate=1, steps=4, valid=None, log_every=1)
    a, b = (
        go(None, net=n, on_oom="accumulate", **options) for n in (Pure(dropout=0), Roomy(dropout=0))
    )
    for p, q in zip(a.model.parameters(), b.model.parameters()):
        assert torch.allclose(p, q, atol=1e-5)
    for p, q in zip(a.log, b.log):
        assert p["loss"] == pytest.approx(q["loss"], rel=1e-5)


def test_fallback_resumes(tmp_path):
    class Later(Greedy):
        "Has room for all in the first ten steps."

        @property
        def most(self):
            return 99 if self.calls < 10 else 5

    options = dict(batch_size=16, on_oom="accumulate")
    go(tmp_path / "a", net=Later(), **options)
    for stop in (14, 25, None):
        go(tmp_path / "b", net=Later(), stop_at=stop, **options)
    same(tmp_path / "a", tmp_path / "b")


def test_fallback_ends_at_one_sample(monkeypatch):
    monkeypatch.setattr(Greedy, "most", 0)
    with pytest.raises(BatchTooLarge, match="even batch_size=1 does not fit"):
        go(None, net=Greedy(), on_oom="accumulate")


def test_memory_is_that_of_the_container(tmp_path, monkeypatch):
    """The smallest limit above the process counts, of cgroup v2 or v1; 'max' and missing files do
    not."""
    root = tmp_path / "cgroup"
    own = tmp_path / "own"
    for file, text in {
        "a/memory.max": "max",
        "a/b/memory.max": "3000",
        "a/b/c/memory.max": "5000",
        "memory/job/memory.limit_in_bytes": "4000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text + "\n")
    for text, want in {
        "0::/a/b/c\n": {3000, 5000},
        "4:memory:/job\n1:cpu:/a/b\n": {4000, 9223372036854771712},
        "0::/../elsewhere\n": set(),
        "": set(),
    }.items():
        own.write_text(text)
        assert set(memory.cgroup_limits(root, own)) == want
    assert memory.cgroup_limits(root, tmp_path / "nowhere") == []
    monkeypatch.setattr(memory, "cgroup_limits", lambda: [12345])
    assert memory.device_memory(torch.device("cpu")) == 12345
    monkeypatch.setattr(memory, "cgroup_limits", lambda: [])
    assert memory.device_memory(torch.device("cpu")) > 12345


def test_the_memory_of_a_machine_without_sysconf(monkeypatch):
    "Windows says it in the third field, eight bytes in, of a structure of 64 bytes."

    def answer(pointer):
        status = pointer._obj
        assert ctypes.c_uint32.from_buffer(status).value == 64 == ctypes.sizeof(status)
        status[1] = 17 * 2**30
        return 1

    here = memory.machine_memory()
    assert here > 2**28
    kernel32 = SimpleNamespace(GlobalMemoryStatusEx=answer)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
    monkeypatch.delattr(os, "sysconf")
    assert memory.machine_memory() == 17 * 2**30
