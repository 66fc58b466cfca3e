"""Keeps a compile's record with its artefact, so that the report is right even if a warm cache runs no pass.

Inductor stores the change of `counters["inductor"]` during a compile in the artefact and adds it again on every load,
in any process. A counter whose *name* carries the record is therefore written and read by the cache itself: there is no
extra file to go stale or missing. On a load the name is set, with the key its pass had: the load belongs to the pass
that Inductor last asked for that key, since it asks whenever it looks up an artefact. The pass gets its record at that
moment, so that counters may be cleared at any time.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any, Protocol

from torch._dynamo.utils import counters

from fusionlib.rewrite.report import CompileRecord

_PREFIX = "fusionlib_record:"


class Owner(Protocol):
    """A pass that takes the records loaded from a cache."""

    def take(self, record: CompileRecord) -> None:
        """Take a record that was loaded from a cache."""


_owners: dict[str, weakref.ReferenceType[Owner]] = {}  # key -> the pass last asked for it


class _Watched(Counter[str]):
    """Inductor's counters, with a look at what is counted: a record that a cache brings goes to its pass."""

    def __setitem__(self, name: str, count: int) -> None:
        loads = count - self[name]
        super().__setitem__(name, count)
        if loads > 0 and name.startswith(_PREFIX):
            _loaded(name, loads)

    def copy(self) -> Counter[str]:  # type: ignore[override]
        """Plain counters, which nobody watches."""
        return Counter(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Counter, (dict(self),)


def looked_up(owner: Owner, key: str) -> None:
    """Note that Inductor is about to look up an artefact under `key`, which it asked `owner` for."""
    _watched()
    _owners[key] = weakref.ref(owner)


def write(key: str, record: CompileRecord) -> None:
    """Put the record of the current compile, for an artefact under `key`, into its counters."""
    name, watched = f"{_PREFIX}{key}:{record.encode()}", _watched()
    dict.__setitem__(watched, name, watched[name] + 1)  # this is no load


def _watched() -> _Watched:
    """Inductor's counters, watched from now on; whoever clears all counters takes the watch away."""
    current = counters["inductor"]
    if not isinstance(current, _Watched):
        counters["inductor"] = current = _Watched(current)
    return current


def _loaded(name: str, loads: int) -> None:
    """Hand a record to the pass it was for; one for a pass that is gone is dropped."""
    _, key, text = name.split(":")
    owner = _owners[key]() if key in _owners else None
    if owner is not None:
        for _ in range(loads):
            owner.take(CompileRecord.decode(text))
