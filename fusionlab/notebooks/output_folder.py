"""What a run leaves in its output folder: the last good result of each notebook, and beside it a later failure.

    NAME.ipynb           the last run that reached its end
    NAME.failed.ipynb    a run since then that did not, up to the cell that stopped it

Both carry in their metadata, under `fusionlib`, the key of everything that could change them, how long they took and
where they ran. A file that is none of these, damaged or cut short, counts as absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

_FAILED = ".failed"


@dataclass(frozen=True)
class Results:
    """The results in one folder, by the notebooks' names."""

    folder: Path

    def good(self, name: str) -> Path:
        """Where the last good result is."""
        return self.folder / f"{name}.ipynb"

    def failed(self, name: str) -> Path:
        """Where a failure since then is."""
        return self.folder / f"{name}{_FAILED}.ipynb"

    def still_valid(self, name: str, key: str) -> dict[str, Any] | None:
        """What the last good run recorded, if `key` still describes it and no run with that key failed since."""
        record = read_record(self.good(name))
        if record is None or record.get("key") != key:
            return None
        failure = read_record(self.failed(name))
        return None if failure is not None and failure.get("key") == key else record

    def published(self, name: str) -> Path | None:
        """What the site shows: the last good result, else the failure, else nothing."""
        return next((path for path in (self.good(name), self.failed(name)) if read_record(path) is not None), None)


def notebook_name(path: Path) -> str:
    """The name of the notebook whose result lies at `path`."""
    return path.stem.removesuffix(_FAILED)


def failed_since(path: Path) -> bool:
    """Whether a run failed after the good result at `path`."""
    failure = path.with_name(f"{path.stem}{_FAILED}.ipynb")
    return notebook_name(path) == path.stem and read_record(failure) is not None


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what the run that wrote `path` recorded, {} if nothing; None without a whole notebook at `path`."""
    try:
        node = nbformat.read(path, as_version=4)
        nbformat.validate(node)
        record = node.metadata.get("fusionlib", {})
        return dict(record) if node.cells and isinstance(record, dict) else None
    except Exception:  # whatever is damaged: nbformat raises what the first thing it misses happens to raise
        return None
