"""Traces as timelines: several variants of a step on one time axis, with what each kernel waited for.

A GPU trace is drawn as launch calls on the CPU above the kernels they started; a trace without GPU events as operators
above the operators that they call. Every variant starts at its own first event, so that spans can be compared visually.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusionlab.observe.trace import Kernel, Op, Trace
from fusionlab.show import Drawing, Table
from fusionlab.show.names import us
from fusionlab.show.timeline_rows import Canvas, extent_us, operator_levels

MOST = 2000  # events per variant: more are illegible and slow to draw


class TimelineError(ValueError):
    """Traces that cannot be drawn as a timeline; the message says which, and how to fix it."""


@dataclass(frozen=True)
class Times:
    """The times of one variant, in microseconds.

    Args:
        on_gpu: whether they are of kernels; otherwise of operators on the CPU.
        events: kernels with copies and fills, or top-level operators.
        busy_us: sum of their durations.
        gap_us: time between the first start and the last end in which none ran.
        span_us: from the first start to the last end.
        whole_us: the same from the first launch; equal to `span_us` on a CPU.
        replayed: whether a CUDA graph was replayed. A model's graph is launched once for all of its layers, so the
            launch does not count towards the time of one path.
    """

    on_gpu: bool
    events: int
    busy_us: float
    gap_us: float
    span_us: float
    whole_us: float
    replayed: bool = False

    @property
    def compared_us(self) -> float:
        """The time to compare: from the first launch, since launches cost time too; for a replay, the span."""
        return self.span_us if self.replayed else self.whole_us


def times(trace: Trace) -> Times:
    """The times of everything in `trace`.

    Raises:
        TimelineError: if it holds neither GPU events nor operators.
    """
    events: Sequence[Kernel] | Sequence[Op] = trace.kernels or [
        op for op, level in operator_levels(trace) if level == 1
    ]
    if not events:
        raise TimelineError(f"{trace.path.name}: no GPU events and no operators; record a step that runs something")
    spans = sorted((event.start_us, event.start_us + event.duration_us) for event in events)
    first, reached, gap = spans[0][0], spans[0][0], 0.0
    for start, end in spans:
        gap += max(0.0, start - reached)
        reached = max(reached, end)
    begin = min([first, *(kernel.launch.start_us for kernel in trace.kernels if kernel.launch)])
    busy = sum(event.duration_us for event in events)
    replayed = any(kernel.launch and "GraphLaunch" in kernel.launch.name for kernel in trace.kernels)
    # A trace has nanoseconds; beyond them a sum and a difference of floats differ, and so would what is printed.
    busy, gap, span, whole = (round(us, 3) for us in (busy, gap, reached - first, reached - begin))
    return Times(bool(trace.kernels), len(events), busy, gap, span, whole, replayed)


def timeline(variants: Mapping[str, Trace], *, where: str = "", full: Mapping[str, str] | None = None) -> Drawing:
    """The steps in `variants`, label -> trace of one step, one below the other.

    Args:
        where: what they were recorded on, for the caption: a GPU's name, for instance.
        full: label -> path of the whole trace relative to the repository, offered for Perfetto.

    Raises:
        TimelineError: if there are no variants, or one has nothing to draw.
    """
    if not variants:
        raise TimelineError("no traces were given; give at least one, as label -> trace")
    measured = {label: times(trace) for label, trace in variants.items()}
    for label, trace in variants.items():
        count = len(trace.kernels) or len(trace.ops)
        if count > MOST:
            raise TimelineError(
                f"{label}: {count} events, over the limit of {MOST} that one figure can show; read a part of the "
                "trace with read_trace(..., window_us=(first, last)), or open the file in ui.perfetto.dev"
            )
    canvas = Canvas(max(extent_us(trace) for trace in variants.values()), variants)
    for label, trace in variants.items():
        canvas.variant(label, trace, measured[label].on_gpu)
    kinds = {True: "GPU timeline", False: "CPU timeline"}
    on_gpu = {entry.on_gpu for entry in measured.values()}
    kind = kinds[on_gpu.pop()] if len(on_gpu) == 1 else "GPU and CPU timelines"
    names = ", ".join(variants)
    return Drawing(
        canvas.figure(),
        caption=f"{kind} of {names}{f' ({where})' if where else ''}.",
        alt=_alt(variants, measured),
        summary=_summary(measured) + _offer(full),
        table=delta_table(measured),
    )


def delta_table(measured: Mapping[str, Times]) -> Table:
    """Kernels or operators, time in them, time between them, and span of each variant, compared with the first.

    Savings are counted from the first launch, in replays of CUDA graphs over the span; the header says which.
    """
    base = next(iter(measured.values()))
    on_gpu = all(entry.on_gpu for entry in measured.values())
    what = "kernels" if on_gpu else "events" if any(entry.on_gpu for entry in measured.values()) else "operators"
    columns = ["variant", what, f"in {what}, µs", "gaps, µs", "span, µs"]
    whole, since = "from first launch, µs", " of the span" if base.replayed else " from first launch" * on_gpu
    columns += [whole] * on_gpu + [f"saved{since}, µs"]
    rows = []
    for label, entry in measured.items():
        row = [label, str(entry.events), us(entry.busy_us), us(entry.gap_us), us(entry.span_us)]
        row += [us(entry.whole_us)] * on_gpu
        rows.append([*row, us(base.compared_us - entry.compared_us) if _comparable(entry, base) else "–"])
    return Table("The same in numbers", columns, rows)


def _comparable(entry: Times, base: Times) -> bool:
    return entry is not base and (entry.on_gpu, entry.replayed) == (base.on_gpu, base.replayed)


def _summary(measured: Mapping[str, Times]) -> str:
    sentences = []
    base = next(iter(measured.values()))
    for label, entry in measured.items():
        what = "kernel" if entry.on_gpu else "operator on the CPU"
        many = "kernels" if entry.on_gpu else "operators on the CPU"
        text = f"{label}: {entry.events} {what if entry.events == 1 else many}, {us(entry.busy_us)} µs in them"
        if entry.events > 1:
            text += f" and {us(entry.gap_us)} µs between them, {us(entry.span_us)} µs from first to last"
        else:
            text = text.replace(" in them", " in it")
        if _comparable(entry, base) and entry.on_gpu and entry.compared_us > 0:
            ratio = base.compared_us / entry.compared_us
            since = "" if entry.replayed else " from the first launch"
            text += f"; {ratio:.{1 if ratio >= 10 else 2}f} times as fast as {next(iter(measured))}{since}"
        sentences.append(text + ".")
    if not any(entry.on_gpu for entry in measured.values()):
        sentences.append("This is a CPU timeline: there are operators and no kernels, and it says nothing about a GPU.")
    return " ".join(sentences)


def _offer(full: Mapping[str, str] | None) -> str:
    if not full:
        return ""
    files: dict[str, list[str]] = {}
    for path in dict.fromkeys(full.values()):
        folder, _, name = path.rpartition("/")
        files.setdefault(folder, []).append(name)
    listed = "; ".join(f"{folder or '.'}: {', '.join(names)}" for folder, names in files.items())
    return f" Everything that was recorded can be opened in ui.perfetto.dev, from the folder {listed}."


def _alt(variants: Mapping[str, Trace], measured: Mapping[str, Times]) -> str:
    parts = [f"A time axis in microseconds with {len(variants)} step{'s' * (len(variants) > 1)} below one another."]
    if any(entry.on_gpu for entry in measured.values()):
        parts.append(
            "On the GPU each has a row of launch calls and a row of kernels for every stream; arrows lead from a "
            "launch to what it started, and hatched bars fill the gaps."
        )
    if not all(entry.on_gpu for entry in measured.values()):
        parts.append(
            "On the CPU each has a row of operators with hatched gaps, a row of the operators that these call, and "
            "above them a row for torch.compile where that was at work."
        )
    return " ".join(parts)
