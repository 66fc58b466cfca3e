"""What a run leaves in its output folder: the last good result of each notebook, and any later failure.

    NAME.ipynb           the last run that completed
    NAME.failed.ipynb    a later run that did not, up to the cell that stopped it

The metadata of both holds, under `fusionlib`, a key of everything that could change them, how long they took and where
they ran. A file that is not a whole notebook, damaged or truncated, counts as absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

_FAILED = ".failed"


@dataclass(frozen=True)
class Results:
    """The results in one folder, by notebook name."""

    folder: Path

    def good(self, name: str) -> Path:
        """Path of the last good result."""
        return self.folder / f"{name}.ipynb"

    def failed(self, name: str) -> Path:
        """Path of a failure since then."""
        return self.folder / f"{name}{_FAILED}.ipynb"

    def still_valid(self, name: str, key: str) -> dict[str, Any] | None:
        """What the last good run recorded, if its key is `key` and no run with that key has failed since."""
        record = read_record(self.good(name))
        if record is None or record.get("key") != key:
            return None
        failure = read_record(self.failed(name))
        return None if failure is not None and failure.get("key") == key else record

    def published(self, name: str) -> Path | None:
        """The file that the site shows: the last good result, else the failure, else None."""
        return next((path for path in (self.good(name), self.failed(name)) if read_record(path) is not None), None)


def notebook_name(path: Path) -> str:
    """The name of the notebook whose result is at `path`."""
    return path.stem.removesuffix(_FAILED)


def failed_since(path: Path) -> bool:
    """Whether a run failed after the good result at `path`."""
    failure = path.with_name(f"{path.stem}{_FAILED}.ipynb")
    return notebook_name(path) == path.stem and read_record(failure) is not None


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what the run that wrote `path` recorded, {} if nothing; None if there is no whole notebook at `path`."""
    try:
        node = nbformat.read(path, as_version=4)
        nbformat.validate(node)
        record = node.metadata.get("fusionlib", {})
        return dict(record) if node.cells and isinstance(record, dict) else None
    except Exception:  # nbformat's exception depends on what is damaged
        return None
