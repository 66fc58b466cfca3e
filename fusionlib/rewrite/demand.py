"""What `expect=` and `strict=` demand of a compile, and whether it was met."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from types import FrameType

from torch._dynamo.utils import counters
from torch._guards import CompileContext

from fusionlib.rewrite.report import CompileRecord, Origin, Report

Expected = int | Mapping[str, int] | None


class FusionError(RuntimeError):
    """`expect=` or `strict=` was not met; the message is the report."""


def checked_expectation(expect: Expected, names: Iterable[str]) -> Expected:
    """`expect` itself. Raises ValueError where it is no number of fused sites, in all or by the names of fusions."""
    known, by_name = list(names), dict(expect) if isinstance(expect, Mapping) else None
    counts: list[tuple[str, object]] = [("", expect)] if by_name is None else [*by_name.items()]
    for name, count in counts:
        if by_name is not None and name not in known:
            raise ValueError(f"expect={expect!r}: this pass has no fusion {name!r}; it has {known}")
        if (count is not None or by_name is not None) and (not isinstance(count, int) or count < 0):
            raise ValueError(
                f"expect={expect!r} must be a number of fused sites, 0 or more, a dict of such numbers by the names of "
                "fusions, or None"
            )
    return expect if by_name is None else by_name


def graph_breaks() -> int:
    """How many graph breaks Dynamo has counted in this process."""
    return sum(counters["graph_break"].values())


def current_origin(breaks_before: int) -> Origin | None:
    """Which compile is going on; `cut` if there were graph breaks since `breaks_before`. None outside of Dynamo."""
    compile_id = CompileContext.current_compile_id()
    if compile_id is None or compile_id.frame_id is None or compile_id.frame_compile_id is None:
        return None
    return Origin(compile_id.frame_id, compile_id.frame_compile_id, graph_breaks() > breaks_before)


def demand(expect: Expected, strict: bool, report: Report, *, more: bool = False) -> None:
    """Raise FusionError where `report`, of one compile, is not what is demanded; `more`: graphs of it may follow."""
    if isinstance(expect, Mapping):
        wanted, found = expect, Counter(report.fused_by)
    else:
        wanted, found = {} if expect is None else {"": expect}, Counter({"": len(report.fused)})
    for name, count in wanted.items():
        if found[name] > count or (found[name] < count and not more):
            raise FusionError(f"expected {count} fused {name + ' ' if name else ''}sites, got {found[name]}\n{report}")
    if strict and report.refused:
        raise FusionError(f"strict: {len(report.refused)} sites refused\n{report}")


def by_compile(records: Iterable[CompileRecord]) -> list[Report]:
    """Records of graphs put together to compiles, each of which `expect` counts the sites of.

    The graphs of one compile of one function belong together: those of its branches, loops and regions, and its own.
    Where graph breaks cut a function, the parts are functions of their own to Dynamo; all such parts are one compile,
    each counted as it was compiled last. A graph from outside of Dynamo stands alone.
    """
    records = list(records)
    reports = [Report((record,)) for record in records if record.origin is None]
    known = [((r.origin.frame, r.origin.attempt), r.origin.cut, r) for r in records if r.origin is not None]
    parts: dict[int, tuple[CompileRecord, ...]] = {}
    for (frame, _), group in groupby(sorted(known, key=itemgetter(0)), key=itemgetter(0)):
        _, cuts, graphs = zip(*group, strict=True)
        if any(cuts):
            parts[frame] = graphs
        else:
            reports.append(Report(graphs))
    cut = tuple(graph for graphs in parts.values() for graph in graphs)
    return [*reports, Report(cut)] if cut else reports


def is_part_of_a_graph() -> bool:
    """Whether Inductor runs its passes on the body of a branch, loop or region: the graph around it comes later.

    Nothing that a pass gets says so, but that Inductor's function for it calls itself.
    """
    depth = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        depth += frame.f_code.co_name == "_recursive_post_grad_passes"
        frame = frame.f_back
    return depth > 1
