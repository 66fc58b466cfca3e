"""Numbers that are not this project's: what others published, and measurements that predate this library.

Each file of data/reference says whose numbers it holds, on what hardware, and that they are not ours. Our own
measurements are in data/traces or data/benchmarks, with a manifest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UNITS = ("_us", "_percent", "_percentage_points", "_count", "_requests", "_gb_s", "_share")
TABLE_UNITS = ("us", "share", "gb_s")


class ReferenceFileError(ValueError):
    """An invalid file of data/reference: the message names the file, the field and what it must be."""


@dataclass(frozen=True)
class NumberTable:
    """A table of numbers with one unit.

    Args:
        title: what it shows.
        unit: `us`, `share` (of 1) or `gb_s`.
        columns_are: what the columns count, for example `tokens`.
        columns: those values, one per column.
        rows: name -> one number per column; None if nothing was measured.
        labels: row name -> the words a reader sees.
    """

    title: str
    unit: str
    columns_are: str
    columns: tuple[int, ...]
    rows: dict[str, tuple[float | None, ...]]
    labels: dict[str, str]

    def value(self, row: str, column: int) -> float | None:
        """The number in `row` at `column`, None if there is none; KeyError for an unknown row or column."""
        if column not in self.columns:
            raise KeyError(f"{self.columns_are}={column} is not in the table; it has {list(self.columns)}")
        return self.rows[row][self.columns.index(column)]


@dataclass(frozen=True)
class Reference:
    """Numbers that this project's commands did not measure.

    Args:
        title, url: the source; url is None if nothing was published, and `note` then says where they come from.
        measured_by_this_project: always False; our own measurements belong elsewhere, with their provenance.
        hardware: as named by the source.
        note: what a reader must know before using a number.
        values: name -> number; the name ends in the unit.
        conditions: how it was measured, word -> text; empty if the source does not say.
        tables: name -> table; empty if the source has none.
    """

    title: str
    url: str | None
    measured_by_this_project: bool
    hardware: str
    note: str
    values: dict[str, float]
    conditions: dict[str, str] = field(default_factory=dict)
    tables: dict[str, NumberTable] = field(default_factory=dict)


_FORM = {"title": str, "measured_by_this_project": bool, "hardware": str, "note": str, "values": dict}
_OPTIONAL = {"conditions", "tables"}


def read_reference(path: str | Path) -> Reference:
    """Read and check a file of data/reference.

    Raises:
        ReferenceFileError: if it cannot be read, or a field is missing, unknown or malformed.
    """
    try:
        data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReferenceFileError(f"{path}: cannot be read as JSON ({error})") from error
    required = {*_FORM, "url"}
    if not isinstance(data, dict) or not required <= set(data) <= required | _OPTIONAL:
        raise ReferenceFileError(
            f"{path}: must be an object of {', '.join(sorted(required))} with conditions and tables if any"
        )
    for name, kind in _FORM.items():
        if not isinstance(data[name], kind) or (kind is str and not data[name].strip()):
            raise ReferenceFileError(f"{path}: {name} must be a {kind.__name__} and not empty")
    if data["measured_by_this_project"]:
        raise ReferenceFileError(
            f"{path}: measured_by_this_project must be false; a measurement of ours is no reference"
        )
    url = data["url"]
    if url is not None and not (isinstance(url, str) and url.startswith("https://")):
        raise ReferenceFileError(
            f"{path}: url={url!r} must begin with https://, or be null where nothing was published"
        )
    for name, value in data["values"].items():
        if not name.endswith(UNITS) or not _number(value):
            raise ReferenceFileError(
                f"{path}: {name}={value!r} must be a number, its name ending in one of {', '.join(UNITS)}"
            )
    conditions = data.get("conditions", {})
    if not isinstance(conditions, dict) or not all(isinstance(v, str) and v.strip() for v in conditions.values()):
        raise ReferenceFileError(f"{path}: conditions must be an object of texts")
    tables = data.get("tables", {})
    if not isinstance(tables, dict):
        raise ReferenceFileError(f"{path}: tables must be an object")
    read = {name: _table(table, f"{path}: table {name!r}") for name, table in tables.items()}
    return Reference(**{key: data[key] for key in required}, conditions=conditions, tables=read)


def _table(data: Any, source: str) -> NumberTable:
    """Check and build one table."""
    if not isinstance(data, dict) or set(data) != {"title", "unit", "columns_are", "columns", "rows"}:
        raise ReferenceFileError(f"{source} must be an object of title, unit, columns_are, columns and rows")
    if data["unit"] not in TABLE_UNITS:
        raise ReferenceFileError(f"{source}: unit={data['unit']!r} must be one of {', '.join(TABLE_UNITS)}")
    if not all(isinstance(data[name], str) and data[name].strip() for name in ("title", "columns_are")):
        raise ReferenceFileError(f"{source}: title and columns_are must be text and not empty")
    columns = data["columns"]
    if not isinstance(columns, list) or not columns or not all(type(c) is int and c > 0 for c in columns):
        raise ReferenceFileError(f"{source}: columns={columns!r} must be positive integers")
    rows, labels = {}, {}
    if not isinstance(data["rows"], Mapping) or not data["rows"]:
        raise ReferenceFileError(f"{source}: rows must be an object and not empty")
    for name, row in data["rows"].items():
        good = isinstance(row, dict) and set(row) == {"label", "values"} and isinstance(row["label"], str)
        if not good or not isinstance(row["values"], list) or len(row["values"]) != len(columns):
            raise ReferenceFileError(f"{source}: row {name!r} must hold a label and {len(columns)} values")
        if not all(value is None or (_number(value) and value > 0) for value in row["values"]):
            raise ReferenceFileError(f"{source}: row {name!r} must hold numbers > 0, or null where there is none")
        rows[name], labels[name] = tuple(row["values"]), row["label"]
    return NumberTable(data["title"], data["unit"], data["columns_are"], tuple(columns), rows, labels)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
