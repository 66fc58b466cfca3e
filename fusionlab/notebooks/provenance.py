"""Where and with which versions a notebook ran, without host or user names."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from fusionlab.checkout import git_commit
from fusionlib.commands.diagnosis import installed_version

LIBRARIES = ("torch", "triton", "transformers", "numpy", "plotly", "ipykernel")


def library_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Return the installed version of each distribution, None if it is not installed."""
    return {name: installed_version(name) for name in names}


def device_markers() -> dict[str, str | bool | None]:
    """Return what distinguishes kinds of device, without importing torch, which takes seconds."""
    variables = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "TRITON_INTERPRET")
    nodes = ("/proc/driver/nvidia/version", "/dev/kfd")
    return {
        "machine": platform.machine(),
        **{name: os.environ.get(name) for name in variables},
        **{path: Path(path).exists() for path in nodes},
    }


def provenance(root: Path) -> dict[str, str]:
    """Return what a reader needs to judge a number: versions, device, date, and the commit if there is one."""
    versions = {"Python": platform.python_version()}
    versions |= {name: version for name, version in library_versions(LIBRARIES).items() if version}
    now = datetime.datetime.now(datetime.UTC)
    record = {**versions, "device": device_name(), "date": now.strftime("%Y-%m-%d %H:%M UTC")}
    commit = git_commit(root)
    return record | ({"commit": commit} if commit else {})


def device_name() -> str:
    """Return the name of the first GPU, else the kind of CPU."""
    try:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name(0)
    except (ImportError, OSError, RuntimeError):
        pass  # a broken torch has already failed the notebook; the page still says where it ran
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores), no GPU"
