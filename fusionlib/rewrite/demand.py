"""What `expect=` and `strict=` demand of a compile, and whether that was met."""

from __future__ import annotations

import inspect
import itertools
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from types import CodeType, FrameType

from torch._dynamo.utils import counters
from torch._guards import CompileContext

from fusionlib.rewrite.model_parts import Graphs, compiles, lives
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


class Compiles:
    """Tells which compile a graph belongs to, and whether graph breaks cut its model."""

    def __init__(self) -> None:
        self._breaks = _graph_breaks()
        self._cut: set[CodeType | type | None] = set()  # the models that were cut

    def current(self) -> Origin | None:
        """The compile that this call is part of; None outside Dynamo.

        A model is cut if Dynamo compiles a function that it calls, or if a break was counted since the last call:
        Dynamo counts a break before it compiles what precedes it. If that break was in something else, a whole model is
        taken for the first part of one.
        """
        compiling, compile_id = CompileContext.try_get(), CompileContext.current_compile_id()
        if (
            compiling is None
            or compile_id is None
            or compile_id.frame_id is None
            or compile_id.frame_compile_id is None
        ):
            return None
        (model, inside), breaks = _outermost_compiled(), _graph_breaks()
        if inside or breaks != self._breaks:
            self._cut.add(model)
        self._breaks = breaks
        number = _numbers.setdefault(compiling, next(_next_number))
        code, frame, attempt = _traced_code(), compile_id.frame_id, compile_id.frame_compile_id
        return Origin(frame, attempt, number, model in self._cut, model, code, getattr(compiling, "attempt", 0))


def _traced_code() -> CodeType | None:
    """The code of the frame that Dynamo compiles at present."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        return InstructionTranslator.current_tx().output.root_tx.f_code
    except AttributeError:  # none is traced, or Dynamo's inside has changed
        return None


def _graph_breaks() -> int:
    """How many graph breaks Dynamo has counted in this process."""
    return sum(counters["graph_break"].values())


def _outermost_compiled() -> tuple[CodeType | type | None, bool]:
    """What the outermost call of a torch.compile'd callable runs, and whether Dynamo compiles something called in it.

    The first is a function's code, or a module's class: instances of a class, and functions made of one code, share
    Dynamo's frames, so they are one model here as well; None if PyTorch wraps what it compiles otherwise. A compile id
    cannot say this: it names one frame, and nothing of the frames that call it.
    """
    wrapped, inside, caller = None, False, False
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == "torch._dynamo.convert_frame":  # further out is what runs, so far in is what compiles
            caller = False
        elif module == "torch._dynamo.eval_frame" and frame.f_code.co_name == "compile_wrapper":
            wrapped, inside = frame.f_locals.get("fn"), caller
        else:
            caller = caller or not module.startswith("torch.")
        frame = frame.f_back
    wrapped = inspect.unwrap(wrapped) if callable(wrapped) else None  # a decorator's code is that of all it decorates
    owner = getattr(wrapped, "__self__", None)
    return (getattr(wrapped, "__code__", None) if owner is None else type(owner)), inside


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
    If graph breaks cut a model, Dynamo treats the parts as separate functions; all parts of a model are one compile,
    each counted as it was last compiled. After a reset of Dynamo they are another compile. A graph from outside Dynamo
    stands alone.
    """
    records = list(records)
    whole: list[Graphs] = []
    cut: list[Graphs] = []
    for graphs in compiles(records):
        (cut if any(record.origin is not None and record.origin.cut for record in graphs) else whole).append(graphs)
    parts = [tuple(chain.from_iterable(attempts[-1] for attempts in life.values())) for life in lives(cut)]
    alone = [(record,) for record in records if record.origin is None]
    return [Report(graphs) for graphs in (*alone, *whole, *parts)]


def so_far(records: Iterable[CompileRecord], latest: CompileRecord) -> Report:
    """`latest` and what certainly counts with it: graphs of the same compile, and other parts of the same cut model.

    A part that is compiled again, or a reset of Dynamo, begins anew: which older parts still count is then not known.
    """
    here = latest.origin
    if here is None:
        return Report((latest,))
    graphs, numbers, frames = [latest], {here.frame: here.number}, {here.code: here.frame}
    for record in reversed(list(records)):
        origin = record.origin
        if origin is None or origin.model != here.model or not (origin.number == here.number or here.cut):
            continue
        renumbered = origin.code is not None and frames.setdefault(origin.code, origin.frame) != origin.frame
        if renumbered or numbers.setdefault(origin.frame, origin.number) != origin.number:
            break
        graphs.insert(0, record)
    return Report(tuple(graphs))


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
