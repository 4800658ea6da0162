"""Atomic writes: whole or not there, whatever fails on the way."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file

from conftest import ROOT
from helpers.files import room_for

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


# ---------------------------------------------------------------- full disks


def save_torch(path):
    with files.atomic_file(path) as part:
        torch.save(dict(a=torch.zeros(50_000)), part)


def save_in_folder(path):
    with files.atomic_folder(path.parent / "model") as part:
        files.write_json(part / "config.json", dict(a=1))
        files.write_tensors(part / "model.safetensors", dict(a=torch.zeros(50_000)))


def save_new_folder(path):
    with files.new_folder(path.parent / "step-1") as part:
        (part / "weights").write_bytes(bytes(200_000))


WRITERS = dict(
    json=(lambda path: files.write_json(path, dict(a="x" * 200_000)), "x.bin"),
    tensors=(lambda path: files.write_tensors(path, dict(a=torch.zeros(50_000))), "x.bin"),
    torch=(save_torch, "x.bin"),
    folder=(save_in_folder, "model"),
    checkpoint=(save_new_folder, "step-1"),
)


@pytest.mark.parametrize("size", [0, 1000, 100_000])
@pytest.mark.parametrize("write, name", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, write, name, size):
    with room_for(size), pytest.raises(OSError) as e:
        write(tmp_path / "x.bin")
    text = str(e.value)
    assert f"cannot write {tmp_path / name}: " in text and len(text.splitlines()) == 1
    assert text.count(str(tmp_path)) == 1 and ".part" not in text
    assert e.value.errno == errno.EFBIG or (size and "is the disk full?" in text)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "x.bin")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_errors_that_are_not_the_disks_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        with files.atomic_file(tmp_path / "x"):
            raise RuntimeError("shapes do not fit")


# ---------------------------------------------------------------- what a kill leaves behind

KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from minisora.core import files
with files.{how}({path!r}) as part:
    ((part / 'half') if part.is_dir() else part).write_text('half')
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["atomic_file", "new_folder", "atomic_folder"])
def test_what_a_killed_writer_left_is_gone_at_the_next_start(tmp_path, how):
    code = KILLED.format(root=str(ROOT), how=how, path=str(tmp_path / "x"))
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".x.") and left.name.endswith(".part")
    files.write_json(tmp_path / "other.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["other.json"]


GONE = 2**22 + 1  # no process has this number


@pytest.mark.parametrize(
    "name, folder, stays",
    [
        (f".m.safetensors.{files._machine()}.{GONE}.0.part", True, False),
        (f".m.safetensors.{files._machine()}.{os.getppid()}.0.part", True, True),
        (f".m.safetensors.0123ab.{GONE}.0.part", True, True),  # of another machine
        (f".model.part-{GONE}", True, False),  # as earlier versions named them
        (f".times.json.{GONE}.part", False, False),
        (f".times.json.{os.getppid()}.part", False, True),
        (f".film.{GONE}.part", False, True),  # somebody's download
        (f".archive.part-{GONE}", False, True),
        ("film.part", False, True),
    ],
)
def test_only_what_is_surely_left_behind_is_removed(tmp_path, name, folder, stays):
    if folder:
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half")
    else:
        (tmp_path / name).write_text("half")
    assert files.remove_abandoned(tmp_path) == ([] if stays else [name])
    assert (tmp_path / name).exists() == stays


def test_what_a_process_out_of_sight_writes_stays(tmp_path):
    "In another container on the same machine its number says nothing; its lock does."
    part = tmp_path / f".m.json.{files._machine()}.{GONE}.0.part"
    part.mkdir()
    with files.folder_lock(part):
        assert files.remove_abandoned(tmp_path) == [] and part.exists()
    assert files.remove_abandoned(tmp_path) == [part.name]


def test_leftovers_of_a_process_of_the_same_number_are_no_obstacle(tmp_path):
    "In a container every program may be process 1."
    here = files.aside(tmp_path / "x")
    parts = here.name.split(".")
    for n in range(int(parts[-2]), int(parts[-2]) + 4):
        (tmp_path / ".".join([*parts[:-2], str(n), "part"])).mkdir()
    for write in (files.atomic_file, files.new_folder, files.atomic_folder):
        with write(tmp_path / "x") as part:
            ((part / "a") if part.is_dir() else part).write_text("1")
        if write is files.atomic_file:
            (tmp_path / "x").unlink()
    assert (tmp_path / "x" / "a").read_text() == "1"
    files.remove_abandoned(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_threads_may_write_the_same_file(tmp_path):
    meet = threading.Barrier(4)

    def write(n):
        with files.atomic_file(tmp_path / "x") as part:
            part.write_text(str(n) * 9)
            meet.wait(20)

    threads = [threading.Thread(target=write, args=[n]) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    text = (tmp_path / "x").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and text in [str(n) * 9 for n in range(4)]


@pytest.mark.parametrize("name", ["圖" * 80, "a" * 255, "x.json"])
def test_the_longest_names_are_written(tmp_path, name):
    with files.atomic_file(tmp_path / name) as part:
        part.write_text("1")
    assert [p.name for p in tmp_path.iterdir()] == [name]


# ---------------------------------------------------------------- permissions, locks


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("write", [files.new_folder, files.atomic_folder])
def test_every_file_of_a_folder_has_the_permissions_of_the_umask(tmp_path, write, mask):
    before = os.umask(mask)
    try:
        with write(tmp_path / "x") as part:
            save_file(dict(a=torch.ones(2)), part / "a.safetensors")
            (part / "b.json").write_text("{}")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "x").iterdir()}
    assert modes == {"a.safetensors": 0o666 & ~mask, "b.json": 0o666 & ~mask}


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    "NFS locks no folder that is open for reading, others lock nothing: then there is no lock."
    import fcntl

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    files.write_json(tmp_path / "a.json", dict(a=1))
    with files.folder_lock(tmp_path):
        assert files.read_json(tmp_path / "a.json") == dict(a=1)


# ---------------------------------------------------------------- Windows


def test_flushing_as_windows_does_it(tmp_path, monkeypatch):
    "There fsync takes no handle that was opened for reading, and no folder can be opened at all."
    real_open = os.open
    readable = set()

    def opened(path, flags, *mode):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        descriptor = real_open(path, flags, *mode)
        (readable.add if flags == os.O_RDONLY else readable.discard)(descriptor)
        return descriptor

    def fsync(descriptor):
        if descriptor in readable:
            raise OSError(errno.EBADF, "Bad file descriptor")

    (tmp_path / "a").write_text("1")
    with monkeypatch.context() as m:
        m.setattr(os, "open", opened)
        m.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="Bad file descriptor"):
            files.fsync_path(str(tmp_path / "a"))
        m.setattr(os, "name", "nt")
        files.fsync_path(str(tmp_path / "a"))
        files.fsync_path(str(tmp_path))


def test_leftovers_stay_where_nobody_can_be_asked_whether_a_process_runs(monkeypatch):
    "os.kill(pid, 0) asks on POSIX; on Windows it would send Ctrl-C."
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("asked by a signal"))
    monkeypatch.setattr(os, "name", "nt")
    assert files._is_running(GONE)
