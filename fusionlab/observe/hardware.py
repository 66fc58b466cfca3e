"""Processor and driver: what the operating system knows and torch does not report."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path


def cpu_name() -> str:
    """The processor's product name, or its architecture if the system does not report one."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    except OSError:
        found = None
    return found.group(1).strip() if found else f"{platform.machine()} CPU ({sys.platform})"


def driver_version() -> str:
    """The kernel driver's version, from where NVIDIA's and AMD's drivers publish it."""
    for path, pattern in (
        ("/proc/driver/nvidia/version", r"Kernel Module(?: for \S+)?\s+(\d[\d.]*)"),
        ("/sys/module/amdgpu/version", r"(\d[\d.]*)"),
    ):
        try:
            found = re.search(pattern, Path(path).read_text(encoding="utf-8"))
        except OSError:
            continue
        if found:
            return found.group(1)
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return text.split()[0] if text.split() else "unknown"
