"""What a figure was measured on."""

import os
import platform
import subprocess

import torch


def machine():
    "Processor, cores, memory, GPU, and the versions that matter, as a dict for a results file."
    try:
        names = [
            k.split(":", 1)[1].strip() for k in open("/proc/cpuinfo") if k.startswith("model name")
        ]
    except OSError:
        names = []
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
    except OSError:
        commit = ""
    return dict(
        cpu=names[0] if names else platform.processor(),
        cores=os.cpu_count(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        python=platform.python_version(),
        torch=torch.__version__,
        commit=commit,
    )
