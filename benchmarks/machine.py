"""What figures were measured on, and the options that every benchmark has."""

import argparse
import os
import platform
import subprocess
from pathlib import Path

import torch


def machine():
    "Processor, cores, memory, GPU, and the versions that matter, as a dict for a record."
    page, pages = (os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES"))
    return dict(
        cpu=_processor(),
        cores=os.cpu_count(),
        memory_gib=round(page * pages / 2**30, 1),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        python=platform.python_version(),
        torch=torch.__version__,
        commit=_commit(),
    )


def _processor():
    "The name of the processor."
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit():
    "The short name of the commit of the current folder, or ''."
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def make_parser(doc, script=None, record=None):
    """An ArgumentParser that shows the docstring of a script; for `script` (its `__file__`) with
    --out, where the record goes: benchmarks/RECORD.json, by default of the script's name."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=formatter)
    if script is not None:
        file = Path(script).with_name(f"{record or Path(script).stem}.json")
        help = f"where the figures are written, as JSON (default: benchmarks/{file.name})"
        parser.add_argument("--out", type=Path, default=file, metavar="FILE", help=help)
    return parser
