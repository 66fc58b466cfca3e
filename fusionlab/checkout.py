"""The checkout that the walkthrough works in: where it is, and at which commit."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

import fusionlib
from fusionlib.commands.errors import UsageError


def repository_root(start: Path | None = None) -> Path:
    """Return the checkout that contains `start` (default: the working directory), else this package's own."""
    start = (start or Path.cwd()).resolve()
    package_parent = Path(fusionlib.__file__).resolve().parent.parent
    for folder in (start, *start.parents, package_parent):
        if _is_checkout(folder):
            return folder
    raise UsageError(
        f"no checkout of fusionlib found at or above {start}, and this installation is not an editable one; "
        "the notebooks are not part of the wheel: clone the repository and run the command inside it"
    )


def _is_checkout(folder: Path) -> bool:
    project = folder / "pyproject.toml"
    if not project.is_file() or not (folder / "notebooks").is_dir():
        return False
    try:
        return tomllib.loads(project.read_text(encoding="utf-8")).get("project", {}).get("name") == "fusionlib"
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False


def git_commit(root: Path, apart_from: Sequence[str] = ()) -> str | None:
    """Return the short hash of the commit, marked if files differ from it; None outside a git checkout.

    `apart_from` names folders whose files may differ.
    """
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        status = ["status", "--porcelain", "--", ".", *(f":!{folder}" for folder in apart_from)]
        return f"{commit}, with local changes" if _git(root, *status) else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
