"""Before any test: no network, no windows, repeatable."""

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", MPLBACKEND="Agg")
if "MINISORA_CACHE" not in os.environ:  # notes of which caches are whole: not into the user's own
    os.environ["MINISORA_CACHE"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["MINISORA_CACHE"], ignore_errors=True)
sys.path.insert(0, str(ROOT))


HERE = (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0")


def block_network(event, args):
    "An audit hook that lets only this machine talk to itself."
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in HERE:
        raise OSError(f"no network in tests: refused to connect to {args[1]}")
    if event == "socket.getaddrinfo" and args[0] not in HERE:
        raise OSError(f"no network in tests: refused to look up {args[0]}")


sys.addaudithook(block_network)


@pytest.fixture(scope="session")
def root():
    "The repository's root folder."
    return ROOT


def benchmark(name):
    """The script benchmarks/NAME.py as a module, under a name of its own: minisora has modules so
    called."""
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))  # its `machine`
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    "Hugging Face `datasets`, quiet, with a cache of this test's own."
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def pytest_collection_modifyitems(items):
    "Tests marked `gpu` are skipped where there is no CUDA device."
    marked = [i for i in items if i.get_closest_marker("gpu")]  # keywords hold names of folders too
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))
