"""Kineto traces read: every GPU event with the launch, the op and the wait that led to it.

How the events hang together (Kineto's libkineto, `CuptiActivity` and `RoctracerActivity`): a launch on the CPU and what
it started on the GPU carry the same `correlation`; the op that made the launch and the launch carry the same `External
id`. Triton launches through the driver, PyTorch through the runtime, so both categories are launches; on ROCm Kineto
files HIP's calls under the same names. A CUDA-graph launch is one launch with many kernels. GPU events are told by
`cat`: names are arbitrary, and streams are numbered anew by every process.

Times are microseconds, as in the file; differences of `ts` are exact to about a nanosecond.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusionlib.observe.tracefile import Limits, TraceError, number, read_values

__all__ = ["Kernel", "Launch", "Limits", "Mark", "Op", "Total", "Trace", "TraceError", "read_trace", "totals"]

GPU_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
#: Kineto's own categories, and those that other writers of the format give HIP's calls.
LAUNCH_CATEGORIES = ("cuda_runtime", "cuda_driver", "hip_runtime", "hip_driver")
OP_CATEGORIES = ("cpu_op",)
MARK_CATEGORIES = ("user_annotation",)


@dataclass(frozen=True, slots=True)
class Op:
    """An operator on the CPU: `start_us` and `duration_us`, its External id (None if it has none) and its thread."""

    name: str
    start_us: float
    duration_us: float
    external_id: int | None
    thread: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A range that the program named (`record_function`), on the CPU; `structure.steps` cuts a trace by such ranges."""

    name: str
    start_us: float
    duration_us: float
    thread: str


@dataclass(frozen=True, slots=True)
class Launch:
    """A runtime or driver call that put work on a GPU; a graph launch puts many kernels there."""

    name: str
    category: str
    start_us: float
    duration_us: float
    correlation: int
    external_id: int | None
    thread: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One GPU event.

    Args:
        name: as recorded, templates and all.
        category: `kernel`, `gpu_memcpy` or `gpu_memset`.
        start_us, duration_us: on the GPU, in the trace's clock.
        device, stream: where it ran; the stream as recorded, a number or text.
        launch: the call that started it, None if the trace has none.
        op: name of the operator that made the launch, None if unknown.
        gap_us: start less the latest end of what began before it on its stream; negative where the two overlap (as
            with programmatic dependent launch), None for the first.
        queue_us: start less the end of the launch call; negative where the kernel started before the call returned.
            None without a launch.
        grid, block: programs and threads in x, y, z.
        registers: per thread.
        shared_bytes: static and dynamic shared memory of a block.
        occupancy_percent: Kineto's estimate; no measurement.
        graph_node: the CUDA-graph node it came from, None outside graphs or where the trace does not say.
        nodes: nodes of the FX graph it stands for; empty until `Trace.with_nodes` names them.
    """

    name: str
    category: str
    start_us: float
    duration_us: float
    device: int | None
    stream: int | str | None
    launch: Launch | None
    op: str | None
    gap_us: float | None
    queue_us: float | None
    grid: tuple[int, int, int] | None
    block: tuple[int, int, int] | None
    registers: int | None
    shared_bytes: int | None
    occupancy_percent: float | None
    graph_node: int | None
    nodes: tuple[str, ...] = ()

    @property
    def end_us(self) -> float:
        """When it ended on the GPU."""
        return self.start_us + self.duration_us


@dataclass(frozen=True, slots=True)
class Total:
    """How often a name occurs, and the sum of its durations."""

    count: int
    duration_us: float


@dataclass(frozen=True)
class Trace:
    """What a trace holds, each in order of start: GPU events, operators, launches and named ranges.

    A trace of a CPU has no kernels and no launches; `structure.nest` says which of its operators ran inside which.
    """

    path: Path
    kernels: tuple[Kernel, ...]
    ops: tuple[Op, ...]
    launches: tuple[Launch, ...]
    marks: tuple[Mark, ...] = ()

    def with_nodes(self, nodes: Mapping[str, Sequence[str]]) -> Trace:
        """The same trace with `Kernel.nodes` looked up by kernel name, or else by op name.

        `nodes` maps a kernel's name to FX nodes, as Inductor's provenance tracking writes it (`cppCodeToPost` in
        inductor_provenance_tracking_node_mappings.json); the `:number` that it may put behind a name is ignored.
        """
        known: dict[str, tuple[str, ...]] = {}
        for name, listed in nodes.items():
            for key in {name, re.sub(r":\d+$", "", name)}:
                known[key] = tuple(dict.fromkeys((*known.get(key, ()), *listed)))
        found = (replace(k, nodes=known.get(k.name) or known.get(k.op or "", ())) for k in self.kernels)
        return replace(self, kernels=tuple(found))


def totals(events: Iterable[Kernel | Op | Launch | Mark]) -> dict[str, Total]:
    """Count and summed duration by name, the longest first."""
    sums: dict[str, tuple[int, float]] = {}
    for event in events:
        count, duration = sums.get(event.name, (0, 0.0))
        sums[event.name] = (count + 1, duration + event.duration_us)
    return {name: Total(*sums[name]) for name in sorted(sums, key=lambda name: (-sums[name][1], name))}


def read_trace(path: str | Path, limits: Limits | None = None) -> Trace:
    """Read the Kineto or Chrome trace at `path`, JSON or gzip, within `limits`.

    Events of categories that are not read here (flows, Python frames, the GPU's copy of annotations) are skipped
    unread. What the trace does not say is None.

    Raises:
        TraceError: for a file that is missing, malformed, truncated or past a limit; the message says which.
    """
    reader = _Reader(Path(path))
    for key, value in read_values(path, limits):
        if key == "traceEvents":
            reader.add(value)
    return reader.finish()


class _Reader:
    """Sorts events into ops, launches and GPU events; the joins wait for the end, as a file has no order."""

    def __init__(self, path: Path) -> None:
        self.path, self.index = path, -1
        self.ops: list[Op] = []
        self.marks: list[Mark] = []
        self.launches: list[tuple[Launch, dict[str, Any]]] = []
        self.kernels: list[tuple[Kernel, int | None, int | None]] = []  # kernel, correlation, External id

    def add(self, event: Any) -> None:
        """Take one entry of `traceEvents`."""
        self.index += 1
        if not isinstance(event, dict):
            raise self.fault(f"is {type(event).__name__}, not an object")
        category = event.get("cat")
        if event.get("ph") != "X" or not isinstance(category, str):
            return
        if category in OP_CATEGORIES:
            self.ops.append(Op(*self.span(event), self.external(self.args(event)), self.thread(event)))
        elif category in MARK_CATEGORIES:
            self.marks.append(Mark(*self.span(event), self.thread(event)))
        elif category in LAUNCH_CATEGORIES:
            self.add_launch(event, self.args(event), sys.intern(category))
        elif category in GPU_CATEGORIES:
            self.add_kernel(event, self.args(event), sys.intern(category))

    def add_launch(self, event: dict, args: dict, category: str) -> None:
        """Take a call that may have launched something: it has a correlation."""
        correlation = self.integer(args, "correlation")
        if correlation is None:
            return
        name, start, duration = self.span(event)
        external = self.external(args)
        launch = Launch(name, category, start, duration, correlation, external, self.thread(event))
        self.launches.append((launch, self.shape(args)))

    def add_kernel(self, event: dict, args: dict, category: str) -> None:
        """Take a GPU event; launch, op and gap are joined later."""
        name, start, duration = self.span(event)
        stream = args.get("stream", event.get("tid"))
        device = args.get("device", event.get("pid"))
        kernel = Kernel(
            name=name,
            category=category,
            start_us=start,
            duration_us=duration,
            device=device if type(device) is int else None,
            stream=stream if type(stream) in (int, str) else None,
            launch=None,
            op=None,
            gap_us=None,
            queue_us=None,
            registers=self.integer(args, "registers per thread"),
            occupancy_percent=number(args.get("est. achieved occupancy %")),
            graph_node=self.integer(args, "graph node id") or None,
            **self.shape(args),
        )
        self.kernels.append((kernel, self.integer(args, "correlation"), self.external(args)))

    def finish(self) -> Trace:
        """Join everything; among calls of one correlation the earliest is the launch, as the others run inside it."""
        self.launches.sort(key=lambda pair: pair[0].start_us)
        self.ops.sort(key=lambda op: (op.start_us, -op.duration_us))  # of two that start together, the outer first
        self.marks.sort(key=lambda mark: (mark.start_us, -mark.duration_us))
        by_correlation: dict[int, tuple[Launch, dict]] = {}
        for launch, shape in self.launches:
            by_correlation.setdefault(launch.correlation, (launch, shape))
        by_external: dict[int, str] = {}
        for op in self.ops:
            if op.external_id is not None:
                by_external.setdefault(op.external_id, op.name)
        self.kernels.sort(key=lambda entry: (entry[0].start_us, entry[0].end_us))
        ends: dict[tuple, float] = {}
        joined = []
        for kernel, correlation, external in self.kernels:
            launch, shape = by_correlation.get(correlation, (None, {})) if correlation else (None, {})
            if external is None and launch is not None:
                external = launch.external_id
            place = (kernel.device, kernel.stream)
            before = ends.get(place)
            ends[place] = kernel.end_us if before is None else max(before, kernel.end_us)
            joined.append(
                replace(
                    kernel,
                    launch=launch,
                    op=by_external.get(external),
                    gap_us=None if before is None else kernel.start_us - before,
                    queue_us=None if launch is None else kernel.start_us - (launch.start_us + launch.duration_us),
                    # ROCm's launches carry the geometry and its kernels do not.
                    **{field: value for field, value in shape.items() if getattr(kernel, field) is None},
                )
            )
        launches = tuple(launch for launch, _ in self.launches)
        return Trace(self.path, tuple(joined), tuple(self.ops), launches, tuple(self.marks))

    def shape(self, args: dict) -> dict[str, Any]:
        """Grid, block and shared memory, each None where `args` does not say."""
        return {
            "grid": self.triple(args, "grid"),
            "block": self.triple(args, "block"),
            "shared_bytes": self.integer(args, "shared memory"),
        }

    def span(self, event: dict) -> tuple[str, float, float]:
        """Name, start and duration, which every complete event must have."""
        name, start, duration = event.get("name"), number(event.get("ts")), number(event.get("dur"))
        if not isinstance(name, str):
            raise self.fault(f"has the name {name!r:.60}, not a string")
        if start is None or duration is None or duration < 0:
            raise self.fault(
                f"({name:.60}) has ts={event.get('ts')!r:.60}, dur={event.get('dur')!r:.60}; both must be finite "
                "numbers of microseconds, dur >= 0"
            )
        return sys.intern(name), start, duration

    def args(self, event: dict) -> dict:
        """The event's arguments; none is none."""
        args = event.get("args", {})
        if not isinstance(args, dict):
            raise self.fault(f"has args of type {type(args).__name__}, not an object")
        return args

    def external(self, args: dict) -> int | None:
        """The External id; zero is Kineto's word for none."""
        return self.integer(args, "External id") or None

    def thread(self, event: dict) -> str:
        """Process and thread as one word."""
        return sys.intern(f"{event.get('pid')!s:.40}/{event.get('tid')!s:.40}")

    def integer(self, args: dict, key: str) -> int | None:
        """A whole number, or None where the writer had none (Kineto writes "N/A", NaN or nothing)."""
        value = number(args.get(key))
        return int(args[key]) if value is not None and value.is_integer() else None

    def triple(self, args: dict, key: str) -> tuple[int, int, int] | None:
        """Three whole numbers, or None where there are none."""
        value = args.get(key)
        whole = isinstance(value, list) and len(value) == 3 and all(type(part) is int for part in value)
        return tuple(value) if whole else None

    def fault(self, what: str) -> TraceError:
        """An error that names the event."""
        return TraceError(f"{self.path}: event {self.index} of traceEvents {what}; record or export the trace again")
