"""Working copies of the notebooks for JupyterLab, so that running and saving one changes nothing under version control.

The copies are in one folder. A copy is updated with its notebook as long as its cells have not been edited; outputs do
not count as an edit, since a run restores them. An edited copy is never overwritten: when its notebook changes, the new
version is put beside it under another name.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat

from fusionlab.files import write_whole
from fusionlab.notebooks.jupyter_kernel import KERNELSPEC, argv

ORIGINS = ".origins.json"  # for each copy, the digest of the cells that it was made from


def refresh_copies(notebooks: Sequence[Path], folder: Path) -> Iterator[str]:
    """Copy `notebooks` into `folder`, update unedited copies, and report what was done with each."""
    origins = _read_origins(folder)
    for path in notebooks:
        copy, current, origin = folder / path.name, cells_digest(path), origins.get(path.name)
        found = cells_digest(copy)
        if not copy.exists():
            yield f"new        {copy.name}"
        elif found == current:
            origins[path.name] = current
            continue
        elif current == origin:
            yield f"yours      {copy.name}: it has your changes"
            continue
        elif found and found == origin:
            yield f"refreshed  {copy.name}"
        else:
            copy = copy.with_name(f"{path.stem}.{current[:8]}.ipynb")
            yield f"yours      {path.name}: it has your changes; the notebook changed since, and is now {copy.name}"
            if not copy.exists():
                write_whole(copy, path.read_bytes())
            continue
        origins[path.name] = current
        write_whole(copy, path.read_bytes())
    write_whole(folder / ORIGINS, json.dumps(origins, indent=1).encode())


def cells_digest(path: Path) -> str:
    """A digest of the written part of a notebook, the types and sources of its cells; "" if there is no notebook."""
    try:
        cells = nbformat.read(path, as_version=4).cells
        written = [[cell.cell_type, cell.source] for cell in cells]
    except Exception:  # nbformat's exception depends on what is damaged
        return ""
    return hashlib.sha256(json.dumps(written).encode()).hexdigest()


def _read_origins(folder: Path) -> dict[str, str]:
    try:
        origins = json.loads((folder / ORIGINS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return origins if isinstance(origins, dict) else {}


def open_lab(folder: Path, name: str) -> int:
    """Open JupyterLab on `folder` with the notebook `name` open; returns its exit code when it ends."""
    environment = os.environ | {"JUPYTER_PATH": os.pathsep.join([str(_own_kernelspec(folder)), *_jupyter_path()])}
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}", str(folder / f"{name}.ipynb")]
    return subprocess.run(command, env=environment, check=False).returncode


def _jupyter_path() -> list[str]:
    return list(filter(None, os.environ.get("JUPYTER_PATH", "").split(os.pathsep)))


def _own_kernelspec(folder: Path) -> Path:
    """A folder for JUPYTER_PATH whose `python3` is this interpreter, taking precedence over others of that name."""
    data = folder / ".jupyter"
    spec = data / "kernels" / KERNELSPEC["name"] / "kernel.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    about = {"argv": argv(), "display_name": KERNELSPEC["display_name"], "language": KERNELSPEC["language"]}
    write_whole(spec, json.dumps(about, indent=1).encode())
    return data
