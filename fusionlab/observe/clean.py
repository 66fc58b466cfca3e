"""Makes traces fit to publish: whitelisted, rebased, small, and byte-for-byte reproducible.

A recorded trace reveals more than its kernels: the host's name, the user's name in `/tmp/torchinductor_<user>` and in
every Python frame, process numbers, addresses. Only what is listed here is kept, and the remaining names are scrubbed
of paths and of any names that the file itself gives away.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fusionlab.observe.events import (
    CATEGORIES,
    GPU_CATEGORIES,
    LAUNCH_CATEGORIES,
    MARK_CATEGORIES,
    arguments,
    category,
    external_id,
    nanoseconds,
    number,
)
from fusionlab.observe.flaws import Flaws
from fusionlab.observe.tracefile import Limits, TraceError, read_values

SIZE_LIMIT = 100_000  # bytes of the gzip file: small enough to commit, large enough for several decode steps

#: Ranges that are kept: the recorder's own and the profiler's. A program's other range names may be anything.
_MARK = re.compile(r"fusionlib step \d{1,3}|ProfilerStep#\d{1,9}")
_TOP_LEVEL_NUMBERS = ("schemaVersion", "cuda_runtime_version", "cuda_driver_version", "hip_runtime_version")
_DEVICE_NUMBERS = ("id", "totalGlobalMem", "computeMajor", "computeMinor", "warpSize", "numSms")
_ARGS = (
    "correlation",
    "device",
    "stream",
    "grid",
    "block",
    "registers per thread",
    "shared memory",
    "blocks per SM",
    "warps per SM",
    "est. achieved occupancy %",
    "graph id",
    "graph node id",
    "bytes",
    "Input Dims",
    "Input Strides",
)
_HOST_PID = 1_000_000  # far from device numbers, which are the process numbers of GPU events

_GPU_NAME = re.compile(r"(?:NVIDIA|AMD|Intel|Tesla|GeForce|Radeon|Instinct)[\w .()\-/]{0,60}")
PATH = re.compile(r"(?:[A-Za-z]:\\|\\\\|~/|(?<![\w<>)])/)[^\s,;:'\"<>()]*[\w.]")
USERS = re.compile(r"(?:torchinductor_|/home/|/Users/|[A-Za-z]:\\{1,2}Users\\{1,2})([A-Za-z0-9][\w.\-]*)")
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{5,}\b|[\w.+\-]+@[\w\-]+(?:\.[\w\-]+)+|\b\d{1,3}(?:\.\d{1,3}){3}\b")


def clean_trace(
    source: str | Path,
    target: str | Path,
    *,
    secrets: Iterable[str] = (),
    window_us: tuple[float, float] | None = None,
    size_limit: int = SIZE_LIMIT,
    limits: Limits | None = None,
) -> int:
    """Write the publishable part of the trace `source` to the gzip file `target`; returns its size in bytes.

    Complete events of the GPU, of launches and of operators are kept, with whitelisted numeric arguments, and so are
    the ranges that mark a step. Time starts at the first of them; process and thread numbers are reassigned. Paths,
    addresses, the host's name, user names seen in paths and every word in `secrets` are replaced. Cleaning is
    idempotent.

    Args:
        secrets: further words that must not remain, of any length >= 1; case-insensitive.
        window_us: keep only events that begin in [first, last), counted from the first event kept otherwise.
        size_limit: the largest `target` that is written.
        limits: for reading `source`.

    Raises:
        TraceError: if `source` cannot be read, lacks events that would be kept or is from several processes, if the
            result exceeds `size_limit`, or if a secret remains.
    """
    cleaner = _Cleaner(Path(source), limits or Limits())
    flaws = Flaws()
    try:
        for key, value in read_values(source, limits, flaws):
            cleaner.add(key, value)
        cleaner.check(flaws)
        cleaner.secrets.update(word.lower() for word in secrets if word)
        data = _compressed(cleaner.finish(window_us))
    except TraceError:
        raise
    except (ValueError, RecursionError) as error:  # lists nested a thousand deep
        raise TraceError(f"{source}: an event cannot be written ({error}); record again") from error
    if len(data) > size_limit:
        raise TraceError(
            f"{source}: {len(data)} bytes when cleaned, over the limit of {size_limit}; record fewer steps or give "
            "window_us a part of it"
        )
    try:
        Path(target).write_bytes(data)
    except OSError as error:
        raise TraceError(f"{target}: cannot be written: {error.strerror}; check the folder and its rights") from error
    return len(data)


def _compressed(trace: dict[str, Any]) -> bytes:
    text = json.dumps(trace, separators=(",", ":"), sort_keys=True, allow_nan=False, default=float)
    buffer = io.BytesIO()
    # No time and no file name in the header, so that the same trace gives the same bytes.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(text.encode("ascii"))
    return buffer.getvalue()


class _Cleaner:
    """Collects what is kept; names are scrubbed at the end, when all names that the file gives away are known."""

    def __init__(self, source: Path, limits: Limits) -> None:
        self.source, self.limits = source, limits
        self.secrets: set[str] = set()
        self.top: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []

    def add(self, key: str, value: Any) -> None:
        """Take one top-level value, or one event."""
        self.secrets.update(user.lower() for user in _users(value))
        if key == "traceEvents":
            if isinstance(value, dict) and value.get("ph") == "X" and _kept(value):
                self.events.append(self.event(value))
                self.limits.check_events(self.source, len(self.events))
        elif key == "host_name" and isinstance(value, str):
            # The first label of the host's name is a secret too.
            self.secrets.update(part for part in (value.lower(), value.lower().split(".")[0]) if part)
        elif (key in _TOP_LEVEL_NUMBERS and number(value) is not None) or (key, value) == ("displayTimeUnit", "ms"):
            self.top[key] = value
        elif key == "deviceProperties" and isinstance(value, list):
            self.top[key] = [_device(entry) for entry in value if isinstance(entry, dict)]

    def event(self, event: dict[str, Any]) -> dict[str, Any]:
        """The whitelisted fields of a complete event."""
        start, duration = nanoseconds(event.get("ts")), nanoseconds(event.get("dur"))
        if start is None or duration is None or duration < 0 or not isinstance(event.get("name"), str):
            raise TraceError(f"{self.source}: an event has no name, ts or dur: {event.get('name')!r:.60}; record again")
        args = arguments(event) or {}
        kept = {key: args[key] for key in _ARGS if key in args and _numeric(args[key])}
        if (external := external_id(args)) is not None:
            kept["External id"] = external
        fields = {"cat": category(event), "name": event["name"], "ph": "X"}
        numbers = {key: event.get(key) if _numeric(event.get(key)) else str(event.get(key)) for key in ("pid", "tid")}
        return fields | numbers | {"ts": start, "dur": duration, "args": kept}

    def check(self, flaws: Flaws) -> None:
        """Raise TraceError unless everything to be kept was read, and is from one process."""
        for flaw in flaws.listed():
            if flaw.lost and flaw.category in ("", *CATEGORIES):
                raise TraceError(f"{self.source}: {flaw}; only a whole trace is published: record or copy it again")
        launches = (event for event in self.events if event["cat"] in LAUNCH_CATEGORIES)
        processes = {event["pid"] for event in launches if "correlation" in event["args"]}
        if len(processes) > 1:
            raise TraceError(
                f"{self.source}: launches of {len(processes)} processes, and cleaning keeps nothing by which to tell "
                "their kernels apart; clean the trace of each before they are merged"
            )

    def finish(self, window_us: tuple[float, float] | None) -> dict[str, Any]:
        """The cleaned trace."""
        self.rebase()
        if window_us is not None:
            first, last = (edge * 1000 for edge in window_us)
            self.events = [event for event in self.events if first <= event["ts"] < last]
            self.rebase()
        self.renumber()
        words = sorted(self.secrets, key=lambda word: (-len(word), word))
        known = re.compile("|".join(rf"(?<![A-Za-z0-9]){re.escape(w)}(?![A-Za-z0-9])" for w in words) or r"(?!)", re.I)
        names: dict[str, str] = {}
        for event in self.events:
            name = event["name"]
            if name not in names:
                names[name] = known.sub("<name>", ADDRESS.sub("<address>", PATH.sub("<path>", name)))
                if known.search(names[name]):
                    raise TraceError(f"{self.source}: a secret would remain in an event's name; choose a longer secret")
            event["name"] = names[name]
            event |= {key: event[key] / 1000 for key in ("ts", "dur")}  # nanoseconds as microseconds
        return self.top | {"traceEvents": self.events}

    def rebase(self) -> None:
        """Make time start at the first event, and sort the events by time."""
        base = min((event["ts"] for event in self.events), default=0)
        for event in self.events:
            event["ts"] -= base
        self.events.sort(key=lambda event: event["ts"])

    def renumber(self) -> None:
        """Number the host's processes and threads in order of appearance; GPU events keep device and stream."""
        pids: dict[Any, int] = {}
        tids: dict[Any, int] = {}
        for event in self.events:
            if event["cat"] in GPU_CATEGORIES:
                event |= {key: event[key] if isinstance(event[key], int) else 0 for key in ("pid", "tid")}
                continue
            tids.setdefault((event["pid"], event["tid"]), len(tids) + 1)
            event["tid"] = tids[event["pid"], event["tid"]]
            event["pid"] = pids.setdefault(event["pid"], _HOST_PID + len(pids))


def _kept(event: dict[str, Any]) -> bool:
    """Whether a complete event is published."""
    kind = category(event)
    if kind in MARK_CATEGORIES:
        return isinstance(event.get("name"), str) and bool(_MARK.fullmatch(event["name"]))
    return kind in CATEGORIES


def _users(value: Any) -> set[str]:
    """User names that occur in paths anywhere in `value`."""
    return set(USERS.findall(json.dumps(value, ensure_ascii=False, default=str)))


def _device(entry: dict[str, Any]) -> dict[str, Any]:
    """The published part of a device's properties; product names are kept, names that could be anything are not."""
    kept = {key: entry[key] for key in _DEVICE_NUMBERS if number(entry.get(key)) is not None}
    name = entry.get("name")
    return kept | ({"name": name} if isinstance(name, str) and _GPU_NAME.fullmatch(name) else {})


def _numeric(value: Any) -> bool:
    """Whether `value` is a finite number or nested lists of them."""
    if isinstance(value, list):
        return all(_numeric(part) for part in value)
    return number(value) is not None
