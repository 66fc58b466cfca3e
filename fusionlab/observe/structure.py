"""Nesting: operators inside operators, and everything in a trace inside its marked steps.

A trace file is flat. On one thread operators nest like calls, so an operator's own (self) time is its duration minus
that of its direct children; a CPU trace needs no more to show where time went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusionlab.observe.trace import Kernel, Launch, Mark, Op, Total, Trace

#: Times are truncated to nanoseconds individually, so a child may appear to end this much (us) after its parent.
_SLACK_US = 0.002


@dataclass(frozen=True, slots=True)
class Nested:
    """An operator and its place among the others.

    Args:
        op: the operator.
        parent: index of the operator it ran inside, in the same sequence; None for an outermost one.
        children: indices of its direct children, in order of start.
        depth: number of operators it ran inside.
        self_us: its duration minus its children's, microseconds.
    """

    op: Op
    parent: int | None
    children: tuple[int, ...]
    depth: int
    self_us: float


def nest(ops: Sequence[Op]) -> tuple[Nested, ...]:
    """Which of `ops` ran inside which, by thread; `ops` are in order of start, outer first, as in `Trace.ops`."""
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
    """Count and summed self time by name, longest first: where a CPU's time went, with nothing counted twice."""
    sums: dict[str, tuple[int, float]] = {}
    for nested in nest(ops):
        count, time = sums.get(nested.op.name, (0, 0.0))
        sums[nested.op.name] = (count + 1, time + nested.self_us)
    return {name: Total(*sums[name]) for name in sorted(sums, key=lambda name: (-sums[name][1], name))}


def steps(trace: Trace) -> list[Trace]:
    """`trace` split by its marks: for each, the operators that began and the kernels that were launched in it.

    A kernel belongs to the step that launched it, whenever it ran; without a launch, to the step during which it began.
    Gaps and delays stay those of the whole trace. Without marks, the whole trace is one step. If the trace holds
    several processes, a mark is a step of its own process.
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
