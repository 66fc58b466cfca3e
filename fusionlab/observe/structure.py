"""What lies inside what: operators inside operators, and everything of a trace inside its marked steps.

A trace's file is flat. On one thread operators nest like calls, so an operator's own (self) time is its duration less
that of the operators directly inside it; that is all a CPU trace needs to say where time went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusionlab.observe.trace import Kernel, Launch, Mark, Op, Total, Trace

#: Times are cut to nanoseconds, each on its own, so a child may seem to end this much (us) after its parent.
_SLACK_US = 0.002


@dataclass(frozen=True, slots=True)
class Nested:
    """An operator and its place among the others.

    Args:
        op: the operator.
        parent: index of the operator it ran inside, in the same sequence; None at the outside.
        children: indices of those directly inside, in order of start.
        depth: how many it ran inside.
        self_us: its duration less its children's, microseconds.
    """

    op: Op
    parent: int | None
    children: tuple[int, ...]
    depth: int
    self_us: float


def nest(ops: Sequence[Op]) -> tuple[Nested, ...]:
    """Which of `ops` ran inside which, by thread; `ops` in order of start, the outer first, as in `Trace.ops`."""
    parents: list[int | None] = []
    children: list[list[int]] = [[] for _ in ops]
    depths: list[int] = []
    open_by_thread: dict[str, list[int]] = {}
    for index, op in enumerate(ops):
        stack = open_by_thread.setdefault(op.thread, [])
        while stack and not _inside(op, ops[stack[-1]]):
            stack.pop()
        parents.append(stack[-1] if stack else None)
        depths.append(len(stack))
        if stack:
            children[stack[-1]].append(index)
        stack.append(index)
    return tuple(
        Nested(
            op=op,
            parent=parents[index],
            children=tuple(children[index]),
            depth=depths[index],
            self_us=max(0.0, op.duration_us - sum(ops[child].duration_us for child in children[index])),
        )
        for index, op in enumerate(ops)
    )


def _inside(op: Op, outer: Op) -> bool:
    return op.start_us + op.duration_us <= outer.start_us + outer.duration_us + _SLACK_US


def self_totals(ops: Sequence[Op]) -> dict[str, Total]:
    """Count and summed self time by name, the longest first: where a CPU's time went, nothing counted twice."""
    sums: dict[str, tuple[int, float]] = {}
    for nested in nest(ops):
        count, time = sums.get(nested.op.name, (0, 0.0))
        sums[nested.op.name] = (count + 1, time + nested.self_us)
    return {name: Total(*sums[name]) for name in sorted(sums, key=lambda name: (-sums[name][1], name))}


def steps(trace: Trace) -> list[Trace]:
    """`trace` cut into its marks: of each mark the operators that began and the kernels that were launched in it.

    A kernel belongs to the step that launched it, whenever it ran; without a launch, to the step in whose time it
    began. Gaps and delays stay those of the whole trace. Without marks there is one step, the whole. Where the trace
    holds several processes, a mark is a step of its own process.
    """
    if not trace.marks:
        return [trace]
    several = len(trace.processes) > 1

    def within(mark: Mark, event: Op | Launch | Kernel) -> bool:
        began = mark.start_us <= event.start_us < mark.start_us + mark.duration_us
        return began and (not several or event.process == mark.process)

    return [
        replace(
            trace,
            kernels=tuple(kernel for kernel in trace.kernels if within(mark, kernel.launch or kernel)),
            ops=tuple(op for op in trace.ops if within(mark, op)),
            launches=tuple(launch for launch in trace.launches if within(mark, launch)),
            marks=(mark,),
        )
        for mark in trace.marks
    ]
