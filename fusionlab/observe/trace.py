"""Reading Kineto traces: every GPU event with the launch, the op and the wait that led to it.

How the events are related (Kineto's libkineto, `CuptiActivity` and `RoctracerActivity`): a launch on the CPU and what
it started on the GPU have the same `correlation`; the op that made the launch and the launch have the same `External
id`. Triton launches through the driver, PyTorch through the runtime, so both categories are launches; on ROCm Kineto
uses the same names for HIP's calls. A CUDA-graph launch is one launch with many kernels. GPU events are identified by
`cat`: names are arbitrary, and every process numbers its streams from scratch.

`joins` handles files with several processes, `events` the terms of other writers.

Times are microseconds, exact to the nanosecond: as in the file if they are small, else relative to `Trace.base_ns`.
What could not be read is in `Trace.flaws`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fusionlab.observe.flaws import Flaw
from fusionlab.observe.gather import SHAPE, Gathered, Raw, gather
from fusionlab.observe.joins import Call, Joiner, Source, Work
from fusionlab.observe.tracefile import Limits, TraceError

__all__ = ["Flaw", "Kernel", "Launch", "Limits", "Mark", "Op", "Total", "Trace", "TraceError", "read_trace", "totals"]

#: A window of a trace is joined with what began up to a second before it, in nanoseconds; a GPU rarely lags by more.
LEAD_NS = 1_000_000_000
#: Times beyond this are counted from a whole hour: as floats in microseconds they would be inexact
#: (`events.exact_float`).
_LARGE_NS, _HOUR_NS = 1000 << 33, 3_600_000_000_000


class _OfThread:
    """What ran on a thread; `thread` is a word for the process and one for the thread."""

    __slots__ = ()
    thread: str

    @property
    def process(self) -> str:
        """The thread's process."""
        return self.thread.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Op(_OfThread):
    """An operator on the CPU: `start_us` and `duration_us`, its External id (None if it has none) and its thread."""

    name: str
    start_us: float
    duration_us: float
    external_id: int | None
    thread: str


@dataclass(frozen=True, slots=True)
class Mark(_OfThread):
    """A range that the program named (`record_function`), on the CPU; `structure.steps` cuts a trace by such ranges."""

    name: str
    start_us: float
    duration_us: float
    thread: str


@dataclass(frozen=True, slots=True)
class Launch(_OfThread):
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
        name: as recorded, including templates.
        category: `kernel`, `gpu_memcpy` or `gpu_memset`.
        start_us, duration_us: on the GPU, in the trace's clock.
        device, stream: where it ran; the stream as recorded, a number or text.
        launch: the call that started it, None if the trace has none.
        op: name of the operator that made the launch, None if unknown.
        gap_us: start minus the latest end of what began before it on its stream; negative if the two overlap (as with
            programmatic dependent launch), None for the first.
        queue_us: start minus the end of the launch call; negative if the kernel started before the call returned. None
            without a launch.
        grid, block: programs and threads in x, y, z.
        registers: per thread.
        shared_bytes: static and dynamic shared memory per block.
        occupancy_percent: Kineto's estimate, not a measurement.
        graph_node: the CUDA-graph node it came from, None outside graphs or if the trace does not say.
        process: the process that launched it if the file holds several, None if unknown or there is only one.
        nodes: nodes of the FX graph that it computes; empty until `Trace.with_nodes` sets them.
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
    process: str | None = None
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
    """The content of a trace, each list in order of start: GPU events, operators, launches and named ranges.

    A trace of a CPU has no kernels and no launches; `structure.nest` says which of its operators ran inside which.
    `flaws` list what could not be read; `base_ns` was subtracted from the file's times, 0 or whole hours.
    """

    path: Path
    kernels: tuple[Kernel, ...]
    ops: tuple[Op, ...]
    launches: tuple[Launch, ...]
    marks: tuple[Mark, ...] = ()
    flaws: tuple[Flaw, ...] = ()
    base_ns: int = 0

    @property
    def processes(self) -> list[str]:
        """The processes that launched something or, if nothing was launched, ran operators."""
        return sorted({event.process for event in self.launches or self.ops})

    @property
    def begin_us(self) -> float:
        """When the first GPU event, operator or launch began; 0 in an empty trace."""
        return min((event.start_us for event in (*self.kernels, *self.ops, *self.launches)), default=0.0)

    def between(self, first_us: float, last_us: float) -> Trace:
        """What begins in [first_us, last_us) of the trace's time; joins are kept, even to what is outside."""

        def inside(event: Kernel | Op | Launch) -> bool:
            return first_us <= event.start_us < last_us

        return replace(
            self,
            kernels=tuple(filter(inside, self.kernels)),
            ops=tuple(filter(inside, self.ops)),
            launches=tuple(filter(inside, self.launches)),
            marks=(),
        )

    def with_nodes(self, nodes: Mapping[str, Sequence[str]]) -> Trace:
        """The same trace with `Kernel.nodes` looked up by kernel name, or else by op name.

        `nodes` maps a kernel's name to FX nodes, as written by Inductor's provenance tracking (`cppCodeToPost` in
        inductor_provenance_tracking_node_mappings.json); the `:number` that it may append to a name is ignored.
        """
        known: dict[str, tuple[str, ...]] = {}
        for name, listed in nodes.items():
            for key in {name, re.sub(r":\d+$", "", name)}:
                known[key] = tuple(dict.fromkeys((*known.get(key, ()), *listed)))
        found = (replace(k, nodes=known.get(k.name) or known.get(k.op or "", ())) for k in self.kernels)
        return replace(self, kernels=tuple(found))


def totals(events: Iterable[Kernel | Op | Launch | Mark]) -> dict[str, Total]:
    """Count and summed duration by name, longest first."""
    sums: dict[str, tuple[int, float]] = {}
    for event in events:
        count, duration = sums.get(event.name, (0, 0.0))
        sums[event.name] = (count + 1, duration + event.duration_us)
    return {name: Total(*sums[name]) for name in sorted(sums, key=lambda name: (-sums[name][1], name))}


def read_trace(
    path: str | Path, limits: Limits | None = None, *, window_us: tuple[float, float] | None = None
) -> Trace:
    """Read the Kineto or Chrome trace at `path`, JSON or gzip, within `limits`.

    Events of other categories (flows, Python frames, the GPU's copy of annotations) are skipped. What the trace does
    not say is None. What cannot be read is left out and listed in `Trace.flaws`.

    Args:
        window_us: keep only what begins in [first, last), counted from the first event, with its joins to what began up
            to a second before. The file is read twice, and what is not kept takes no memory, so a file of any size can
            be read if `limits.text_bytes` permits.

    Raises:
        TraceError: for a file that is missing, not a trace, unreadable or over a limit; the message says which.
    """
    if window_us is None:
        return _Joined(gather(path, limits)).trace()
    begin = gather(path, limits, (0, 0)).begin_ns or 0
    first, last = (begin + round(edge * 1000) for edge in window_us)
    joined = _Joined(gather(path, limits, (first - LEAD_NS, last)))
    return joined.trace().between(*((edge - joined.base_ns) / 1000 for edge in (first, last)))


class _Joined:
    """Joins what was gathered, and converts it to the classes of `Trace`."""

    def __init__(self, gathered: Gathered) -> None:
        self.gathered = gathered
        begin = gathered.begin_ns or 0
        self.base_ns = begin // _HOUR_NS * _HOUR_NS if begin >= _LARGE_NS else 0
        hosts = {raw.source for raw in gathered.launches or gathered.ops}
        calls = (
            Call(raw.source, raw.correlation or 0, raw.external, raw.start_ns, key)
            for key, raw in enumerate(gathered.launches)
        )
        self.joiner = Joiner(hosts, calls, map(_work, gathered.kernels))
        self.parted = len({process.part for process in self.joiner.by_process}) > 1
        self.op_names: dict[tuple[Source | None, int], str] = {}
        for raw in gathered.ops:
            if raw.external is not None:
                self.op_names.setdefault((self.process(raw), raw.external), raw.name)

    def trace(self) -> Trace:
        """All of it."""
        gathered = self.gathered
        launches = [self.launch(raw) for raw in gathered.launches]
        ends: dict[tuple, int] = {}
        kernels = tuple(self.kernel(raw, launches, ends) for raw in gathered.kernels)
        ops = tuple(Op(raw.name, *self.span(raw), raw.external, self.thread(raw)) for raw in gathered.ops)
        marks = tuple(Mark(raw.name, *self.span(raw), self.thread(raw)) for raw in gathered.marks)
        return Trace(gathered.path, kernels, ops, tuple(launches), marks, gathered.flaws.listed(), self.base_ns)

    def launch(self, raw: Raw) -> Launch:
        """One call."""
        return Launch(raw.name, raw.category, *self.span(raw), raw.correlation or 0, raw.external, self.thread(raw))

    def kernel(self, raw: Raw, launches: Sequence[Launch], ends: dict[tuple, int]) -> Kernel:
        """One GPU event; `ends` holds the latest end on each stream so far."""
        work = _work(raw)
        call, ambiguous = self.joiner.launch(work)
        if ambiguous:
            self.gathered.flaws.index = raw.index
            self.gathered.flaws.add(_AMBIGUOUS, raw.name, raw.category, lost=False)
        candidates = self.joiner.candidates(work)
        if call is not None:
            candidates = [self.joiner.process[call.source]]
        process = candidates[0] if len(candidates) == 1 else None
        stream = (process or raw.source, raw.fields["device"], raw.fields["stream"])
        before = ends.get(stream)
        ends[stream] = raw.end_ns if before is None else max(before, raw.end_ns)
        made_by = None if call is None else self.gathered.launches[call.key]
        # On ROCm the launches have the geometry, not the kernels.
        shape = {} if made_by is None else {key: made_by.fields[key] for key in SHAPE if raw.fields[key] is None}
        external = raw.external or (made_by.external if made_by else None)
        start, duration = self.span(raw)
        return Kernel(
            name=raw.name,
            category=raw.category,
            start_us=start,
            duration_us=duration,
            launch=None if call is None else launches[call.key],
            op=self.op(candidates, external),
            gap_us=None if before is None else (raw.start_ns - before) / 1000,
            queue_us=None if made_by is None else (raw.start_ns - made_by.end_ns) / 1000,
            process=self.word(process) if process and self.joiner.several else None,
            **{**raw.fields, **shape},
        )

    def op(self, processes: Sequence[Source], external: int | None) -> str | None:
        """The operator with this External id in one of `processes`, None if there is none or more than one."""
        if external is None:
            return None
        keys = processes if self.joiner.several else [None]
        found = [self.op_names[key, external] for key in keys if (key, external) in self.op_names]
        return found[0] if len(found) == 1 else None

    def process(self, raw: Raw) -> Source | None:
        """The process of a host event; None if the file holds only one."""
        return self.joiner.process.get(raw.source, raw.source) if self.joiner.several else None

    def word(self, process: Source) -> str:
        """A word for a process; parts of a file may hold processes with the same number, from different machines."""
        return f"{process.part + 1}:{process.pid}" if self.parted else process.pid

    def thread(self, raw: Raw) -> str:
        """A word for the process and one for the thread."""
        return sys.intern(f"{self.word(self.process(raw) or raw.source)}/{raw.tid}")

    def span(self, raw: Raw) -> tuple[float, float]:
        """Start and duration in microseconds."""
        return (raw.start_ns - self.base_ns) / 1000, raw.duration_ns / 1000


_AMBIGUOUS = "without a launch: more than one process in this file may have made it"


def _work(raw: Raw) -> Work:
    return Work(raw.source, raw.fields["device"], raw.correlation, raw.external, raw.end_ns)
