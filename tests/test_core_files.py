"""Atomic writes: whole or not there, whatever fails on the way."""

import errno
import os
import stat

import pytest
import torch

from minisora.core import files, tensors


def test_a_failed_flush_is_an_error_and_the_old_file_lives(tmp_path, monkeypatch):
    "A disk that says at fsync that it is full must not be believed to have kept the file."
    files.write_json(tmp_path / "a.json", dict(a=1))

    def full(descriptor):
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write .*a.json: No space left"):
        files.write_json(tmp_path / "a.json", dict(a=2))
    assert files.read_json(tmp_path / "a.json") == dict(a=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path, monkeypatch):
    def no_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", no_folders)
    files.write_json(tmp_path / "a.json", dict(a=1))
    assert files.read_json(tmp_path / "a.json") == dict(a=1)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_others_may_read_what_the_umask_allows(tmp_path, mask):
    "safetensors writes 0600 whatever the umask; another user then reads 'No such file'."
    before = os.umask(mask)
    try:
        files.write_tensors(tmp_path / "w.safetensors", dict(a=torch.ones(2)))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o666 & ~mask


def test_shared_and_strided_tensors_are_written(tmp_path):
    x = torch.arange(6.0).view(2, 3)
    files.write_tensors(tmp_path / "w.safetensors", dict(a=x, b=x, c=x.T))
    back = tensors.load_tensors(tmp_path / "w.safetensors")
    assert back["a"].equal(x) and back["b"].equal(x) and back["c"].equal(x.T)


@pytest.mark.parametrize("write", [files.new_folder, files.atomic_folder])
def test_an_error_while_filling_a_folder_leaves_nothing(tmp_path, write):
    with pytest.raises(KeyboardInterrupt):
        with write(tmp_path / "x") as part:
            (part / "half").write_text("…")
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_never_replaces_another(tmp_path):
    with files.new_folder(tmp_path / "x") as part:
        (part / "a").write_text("1")
    with pytest.raises(OSError, match="cannot write .*/x"):
        with files.new_folder(tmp_path / "x") as part:
            (part / "a").write_text("2")
    assert (tmp_path / "x" / "a").read_text() == "1"
