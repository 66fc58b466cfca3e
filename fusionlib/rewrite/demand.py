"""What `expect=` and `strict=` demand of a compile, and whether that was met."""

from __future__ import annotations

import itertools
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from types import FrameType

from torch._dynamo.utils import counters
from torch._guards import CompileContext

from fusionlib.rewrite.report import CompileRecord, Origin, Report

Expected = int | Mapping[str, int] | None

_numbers: weakref.WeakKeyDictionary[CompileContext, int] = weakref.WeakKeyDictionary()  # of the compiles so far
_next_number = itertools.count()


class FusionError(RuntimeError):
    """`expect=` or `strict=` was not met; the message is the report."""


def checked_expectation(expect: Expected, names: Iterable[str]) -> Expected:
    """`expect` itself. Raises ValueError if it is not a number of fused sites, in total or by fusion name."""
    known, by_name = list(names), dict(expect) if isinstance(expect, Mapping) else None
    counts: list[tuple[str, object]] = [("", expect)] if by_name is None else [*by_name.items()]
    for name, count in counts:
        if by_name is not None and name not in known:
            raise ValueError(f"expect={expect!r}: this pass has no fusion {name!r}; it has {known}")
        wanted = count is not None or by_name is not None
        if wanted and (type(count) is not int or count < 0):  # True is not a number of sites
            raise ValueError(
                f"expect={expect!r} must be a number of fused sites, 0 or more, a dict of such numbers by the names of "
                "fusions, or None"
            )
    return expect if by_name is None else by_name


def expects_nothing(expect: Expected) -> bool:
    """Whether a compile without any sites is what was asked for."""
    return expect == 0 or (isinstance(expect, Mapping) and bool(expect) and not any(expect.values()))


def graph_breaks() -> int:
    """How many graph breaks Dynamo has counted in this process."""
    return sum(counters["graph_break"].values())


def current_origin(breaks_before: int) -> Origin | None:
    """The current compile; `cut` if there were graph breaks since `breaks_before`. None outside Dynamo."""
    compiling, compile_id = CompileContext.try_get(), CompileContext.current_compile_id()
    if compiling is None or compile_id is None or compile_id.frame_id is None or compile_id.frame_compile_id is None:
        return None
    number = _numbers.setdefault(compiling, next(_next_number))
    return Origin(compile_id.frame_id, compile_id.frame_compile_id, number, graph_breaks() > breaks_before)


def demand(expect: Expected, strict: bool, report: Report, *, more: bool = False) -> None:
    """Raise FusionError if `report`, of one compile, does not meet the demand; `more`: graphs of it may follow."""
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
    """Records of graphs grouped into compiles; `expect` counts the sites of each.

    The graphs of one compile of one function belong together: those of its branches, loops and regions, and its own.
    If graph breaks cut a function, Dynamo treats the parts as separate functions; all such parts are one compile, each
    counted as it was last compiled. After a reset of Dynamo they are another compile. A graph from outside Dynamo
    stands alone.
    """
    records = list(records)
    reports = [Report((record,)) for record in records if record.origin is None]
    known = [(record.origin, record) for record in records if record.origin is not None]
    models: list[dict[int, tuple[CompileRecord, ...]]] = [{}]  # for each model that was cut, its parts by frame
    for _, group in groupby(sorted(known, key=lambda pair: pair[0].number), key=lambda pair: pair[0].number):
        origins, graphs = zip(*group, strict=True)
        origin = origins[0]
        if not any(each.cut for each in origins):
            reports.append(Report(graphs))
            continue
        if origin.frame in models[-1] and origin.attempt == 0:  # a frame's first compile comes once, or after a reset
            models.append({})
        models[-1][origin.frame] = graphs
    cut = [Report(tuple(graph for graphs in parts.values() for graph in graphs)) for parts in models if parts]
    return [*reports, *cut]


def is_part_of_a_graph() -> bool:
    """Whether Inductor runs its passes on the body of a branch, loop or region: the graph around it comes later.

    Nothing passed to a pass says so; the only sign is that Inductor's function for it is calling itself.
    """
    depth = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        depth += frame.f_code.co_name == "_recursive_post_grad_passes"
        frame = frame.f_back
    return depth > 1
