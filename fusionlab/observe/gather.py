"""The relevant events of a trace, gathered from its file but not yet joined; times are integer nanoseconds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionlab.observe import events
from fusionlab.observe.flaws import Flaws
from fusionlab.observe.joins import Source
from fusionlab.observe.tracefile import Limits, TraceError, read_values

#: Kineto writes it after all other events of a trace.
_END_MARK = "Record Window End"
#: What describes the launched grid, by the names of `trace.Kernel`.
SHAPE = ("grid", "block", "shared_bytes")


@dataclass(frozen=True, slots=True)
class Raw:
    """An event as read; `fields` are what only GPU events and launches have."""

    index: int
    name: str
    category: str
    start_ns: int
    duration_ns: int
    source: Source
    tid: str
    external: int | None
    correlation: int | None
    fields: Mapping[str, Any]

    @property
    def end_ns(self) -> int:
        """When it ended."""
        return self.start_ns + self.duration_ns


class Gathered:
    """Operators, marks, launches and GPU events of one file, each list in order of start.

    `begin_ns` is when the first event that is not a mark began, inside the window or not; None if there is none.
    """

    def __init__(self, path: Path, limits: Limits, window_ns: tuple[int, int] | None) -> None:
        self.path, self.limits, self.window, self.flaws = path, limits, window_ns, Flaws()
        self.begin_ns: int | None = None
        self.part, self.kept = 0, 0
        self.sources: dict[tuple[int, str, str], Source] = {}
        self.ops: list[Raw] = []
        self.marks: list[Raw] = []
        self.launches: list[Raw] = []
        self.kernels: list[Raw] = []

    def add(self, event: Any) -> None:
        """Add one entry of `traceEvents`."""
        if not isinstance(event, dict):
            self.flaws.add("skipped: no object", type(event).__name__)
            return
        self.part += event.get("name") == _END_MARK
        if event.get("ph") != "X":
            return
        kind = events.category(event)
        if kind is None:
            self.flaws.add("left out: no category, so no PyTorch profiler wrote it", event.get("name"))
        elif kind in events.CATEGORIES:
            self.add_complete(event, sys.intern(kind))

    def add_complete(self, event: dict, kind: str) -> None:
        """Add an event of a relevant category, if it has a name and a time and is inside the window."""
        name, args = event.get("name"), events.arguments(event)
        start, duration = events.nanoseconds(event.get("ts")), events.nanoseconds(event.get("dur"))
        if not isinstance(name, str):
            self.flaws.add("skipped: no name", name, kind)
            return
        if start is None or duration is None or duration < 0:
            missing = "a negative duration" if start is not None and duration is not None else "no time"
            self.flaws.add(f"skipped: {missing}", name, kind)
            return
        if args is None:
            self.flaws.add("read without arguments: these are no object", name, kind)
            args = {}
        correlation = events.integer(args, "correlation")
        if correlation is None and kind in events.LAUNCH_CATEGORIES:
            return  # the call started nothing
        if kind not in events.MARK_CATEGORIES:
            self.begin_ns = start if self.begin_ns is None else min(self.begin_ns, start)
        if self.window and not self.window[0] <= start < self.window[1]:
            return
        if (printable := events.readable(name)) != name:
            self.flaws.add("read with � for halves of characters", printable, kind, lost=False)
        key = (self.part, events.label(event, args), _word(event.get("pid")))
        raw = Raw(
            index=self.flaws.index,
            name=sys.intern(printable),
            category=kind,
            start_ns=start,
            duration_ns=duration,
            source=self.sources.setdefault(key, Source(*key)),
            tid=_word(event.get("tid")),
            external=events.external_id(args),
            correlation=correlation,
            fields=_fields(kind, event, args),
        )
        self.list_of(kind).append(raw)
        self.kept += 1
        self.limits.check_events(self.path, self.kept)

    def list_of(self, kind: str) -> list[Raw]:
        """The list for events of a category."""
        if kind in events.GPU_CATEGORIES:
            return self.kernels
        if kind in events.LAUNCH_CATEGORIES:
            return self.launches
        return self.marks if kind in events.MARK_CATEGORIES else self.ops

    def finish(self) -> None:
        """Sort everything by start, of two that start together the outer first.

        Raises:
            TraceError: if the file holds nothing because of a flaw.
        """
        for raws in (self.launches, self.ops, self.marks):
            raws.sort(key=lambda raw: (raw.start_ns, -raw.duration_ns))
        self.kernels.sort(key=lambda raw: (raw.start_ns, raw.end_ns))
        lost = [flaw for flaw in self.flaws.listed() if flaw.lost]
        if self.begin_ns is None and not self.marks and lost:
            raise TraceError(f"{self.path}: nothing can be read: {lost[0]}; record or export the trace again")


def gather(path: str | Path, limits: Limits | None = None, window_ns: tuple[int, int] | None = None) -> Gathered:
    """The events of the trace at `path`; with `window_ns` only those that begin in [first, last) of the file's time.

    Raises:
        TraceError: as `trace.read_trace` does.
    """
    limits = limits or Limits()
    gathered = Gathered(Path(path), limits, window_ns)
    for key, value in read_values(path, limits, gathered.flaws):
        if key == "traceEvents":
            gathered.add(value)
    gathered.finish()
    return gathered


def _word(value: Any) -> str:
    """A process, thread or stream as text, limited in length."""
    return sys.intern(events.readable(f"{value!s:.40}"))


def _fields(kind: str, event: Mapping[str, Any], args: Mapping[str, Any]) -> Mapping[str, Any]:
    """The extra fields of launches and GPU events, named as in `trace.Kernel`; None if the trace does not say."""
    if kind not in events.GPU_CATEGORIES and kind not in events.LAUNCH_CATEGORIES:
        return {}
    values = events.triple(args, "grid"), events.triple(args, "block"), events.integer(args, "shared memory")
    shape = dict(zip(SHAPE, values, strict=True))
    if kind in events.LAUNCH_CATEGORIES:
        return shape
    stream = args.get("stream", event.get("tid"))
    device = args.get("device", event.get("pid"))
    return {
        "device": device if type(device) is int else None,
        "stream": stream if type(stream) is int else _word(stream) if type(stream) is str else None,
        "registers": events.integer(args, "registers per thread"),
        "occupancy_percent": events.number(args.get("est. achieved occupancy %")),
        "graph_node": events.integer(args, "graph node id") or None,
        **shape,
    }
