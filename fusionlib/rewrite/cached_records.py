"""Keeps a compile's record with its artefact, so that the report is right even if a warm cache runs no pass.

Inductor stores the change of `counters["inductor"]` during a compile in the artefact and adds it again on every load,
in any process. A counter whose *name* carries the record is therefore written and read by the cache itself: there is no
extra file to go stale or missing. On a load the name appears, with the key its pass had: the load belongs to the pass
that Inductor last asked for that key, since it asks whenever it looks up an artefact.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Protocol

from torch._dynamo.utils import counters

from fusionlib.rewrite.report import CompileRecord

_PREFIX = "fusionlib_record:"


class Owner(Protocol):
    """A pass that takes the records loaded from a cache."""

    def take(self, record: CompileRecord) -> None:
        """Take a record that was loaded from a cache."""


_collected: Counter[str] = Counter()  # the count of each name when last checked
_owners: dict[str, weakref.ReferenceType[Owner]] = {}  # key -> the pass last asked for it


def looked_up(owner: Owner, key: str) -> None:
    """Note that Inductor is about to look up an artefact under `key`, which it asked `owner` for."""
    collect()
    _owners[key] = weakref.ref(owner)


def write(key: str, record: CompileRecord) -> None:
    """Put the record of the current compile, for an artefact under `key`, into its counters."""
    collect()
    name = f"{_PREFIX}{key}:{record.encode()}"
    counters["inductor"][name] += 1
    _collected[name] = counters["inductor"][name]


def collect() -> None:
    """Hand every load since the last call to the pass it was for; loads for a pass that is gone are dropped."""
    names = {name: count for name, count in counters["inductor"].items() if name.startswith(_PREFIX)}
    for name, count in names.items():
        if (loads := count - _collected[name]) > 0:
            _, key, text = name.split(":")
            owner = _owners[key]() if key in _owners else None
            if owner is not None:
                for _ in range(loads):
                    owner.take(CompileRecord.decode(text))
    # A missing name was cleared and cannot have been counted again: each load is preceded by `looked_up`.
    _collected.clear()
    _collected.update(names)
