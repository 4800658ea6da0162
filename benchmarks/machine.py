"""What a figure was measured on."""

import os
import platform
import subprocess

import torch


def processor():
    "The processor's name; where that names no model (in clouds), with family, model and stepping."
    try:
        lines = [line.split(":", 1) for line in open("/proc/cpuinfo") if ":" in line]
    except OSError:
        lines = []
    said = {key.strip(): value.strip() for key, value in lines}
    name = said.get("model name") or platform.processor()
    if any(c.isdigit() for c in name) or "cpu family" not in said:
        return name
    return (
        f"{name} (family {said['cpu family']}, model {said['model']}, stepping {said['stepping']})"
    )


def memory_gib():
    "Memory of this machine, or None where the system does not say (Windows)."
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def machine():
    "Processor, cores, memory, GPU, and the versions that matter, as a dict for a results file."
    cpu = processor()
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
    except OSError:
        commit = ""
    return dict(
        cpu=cpu,
        cores=os.cpu_count(),
        memory_gib=memory_gib(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        python=platform.python_version(),
        torch=torch.__version__,
        commit=commit,
    )
