"""What figures were measured on, and the options that every benchmark has."""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch


def machine():
    "Processor, cores, memory, GPU, and the versions that matter, as a dict for a record."
    return dict(
        cpu=processor(),
        cores=os.cpu_count(),
        memory_gib=memory_gib(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        python=platform.python_version(),
        torch=torch.__version__,
        commit=_commit(),
    )


def processor():
    "The processor's name; where that names no model (in clouds), with family, model and stepping."
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    said = dict(line.split(":", 1) for line in lines if ":" in line)
    said = {key.strip(): value.strip() for key, value in said.items()}
    name = said.get("model name") or platform.processor()
    if any(c.isdigit() for c in name) or "cpu family" not in said:
        return name
    numbers = f"family {said['cpu family']}, model {said['model']}, stepping {said['stepping']}"
    return f"{name} ({numbers})"


def memory_gib():
    "Memory of this machine, or None where the system does not say (Windows)."
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def spread(values, digits=2):
    "Median and range."
    found = dict(median=statistics.median(values), low=min(values), high=max(values))
    return {name: round(value, digits) for name, value in found.items()}


def peak_resident():
    """The most bytes that this process had at once. From /proc where there is one: getrusage would
    count what the process had that started this one, too."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = [row for row in status.read_text().splitlines() if row.startswith("VmHWM")]
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


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
