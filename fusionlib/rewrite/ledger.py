"""Keeping a compile's record with its artefact, so that the report is right although a warm cache runs no pass.

Inductor stores the change of `counters["inductor"]` during a compile in the artefact and adds it again on every load,
in any process. A counter whose *name* carries the record is therefore written and read by the cache itself: no file
beside it can go stale or missing. On a load the name shows up; whose it is, is said by the uuid in it and by which
pass Inductor asked for its uuid last, since it asks whenever it looks an artefact up.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Protocol

from torch._dynamo.utils import counters

from fusionlib.rewrite.report import CompileRecord

_PREFIX = "fusionlib_record"


class Owner(Protocol):
    """A pass that takes records: those it made, and those that a cache brought."""

    def take(self, record: CompileRecord) -> None:
        """Take a record that was loaded from a cache."""

    def digest(self) -> str:
        """The uuid of the pass."""


_seen: Counter[str] = Counter()
_current: weakref.ReferenceType[Owner] | None = None


def _names() -> Counter[str]:
    return Counter({name: n for name, n in counters["inductor"].items() if name.startswith(_PREFIX)})


def write(owner: Owner, record: CompileRecord) -> None:
    """Put the record of the compile that is going on into its counters."""
    settle(owner)
    name = f"{_PREFIX}:{owner.digest()}:{record.encode()}"
    counters["inductor"][name] += 1
    _seen[name] = counters["inductor"][name]


def settle(owner: Owner) -> None:
    """Give loads since the last call to the pass that was current, and make `owner` current."""
    global _current
    previous = _current() if _current is not None else None
    names = _names()
    for name, count in names.items():
        _, digest, text = name.split(":")
        taker = next((o for o in (previous, owner) if o is not None and o.digest() == digest), None)
        for _ in range(count - _seen[name] if taker is not None else 0):
            taker.take(CompileRecord.decode(text))
    # Counters may have been cleared meanwhile: what is gone was counted already.
    _seen.clear()
    _seen.update(names)
    _current = weakref.ref(owner)
