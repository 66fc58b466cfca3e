"""What a fusion is: how its producer is read from a graph, what its op needs, and what goes into the graph.

A fusion is a producer of the value that is quantised. Everything else is written once, for all of them: anchors and
opaque quantisations, scale layouts, several consumers, guards, insertion, report, cache key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import fx

from fusionlib import schema
from fusionlib.match.reasons import Reason, register_reasons
from fusionlib.match.result import Reading, Trail
from fusionlib.quant_op import VALUE as VALUE
from fusionlib.quant_op import QuantOp
from fusionlib.spec import GroupQuant


class Calls(Protocol):
    """What `emit` inserts calls with, each with its fake result and the history of what it replaces."""

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call of `target`."""

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """One result of a call that returns several."""


class Fusion(ABC):
    """A producer that the pass fuses with the quantisation of its value.

    A subclass gives `name`, `op` and `read`, and its own reasons if it has any. The default `problem` and `emit` follow
    from the op. A subclass whose producer has further results (a sum that the next layer reads) names their
    nodes in `Reading.kept`; its op declares what it can return by the same names.
    """

    #: Its name in reports and `expect=`.
    name: ClassVar[str]
    #: Its own reason codes, which its `read` raises Stop with. A code means the same in all fusions.
    reasons: ClassVar[tuple[Reason, ...]] = ()
    #: The op that computes the producer and quantises its value.
    op: ClassVar[QuantOp]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        register_reasons(cls.reasons)

    @abstractmethod
    def read(self, value: fx.Node, trail: Trail) -> Reading:
        """The producer whose value is `value`; `trail` notes the roles of nodes, for reports.

        Raises:
            NotMine: this fusion starts from something else. The site is left to others.
            Stop: it starts from this but cannot take it; the reason goes into the report.
        """

    def problem(self, tensors: Mapping[str, torch.Tensor | None], spec: Any, quant: GroupQuant) -> str | None:
        """Why the op cannot run `tensors`, fakes by the names of the reading, or None."""
        return self.op.unsupported(*tensors.values(), spec, quant)

    def emit(
        self,
        calls: Calls,
        tensors: Mapping[str, fx.Node | None],
        spec: Any,
        quant: GroupQuant,
        wanted: frozenset[str],
    ) -> dict[str, fx.Node]:
        """Insert what computes the site; returns its results by name: "codes", "scale" and all `wanted`.

        `wanted` names the results read besides codes and scale: "value", [tokens, hidden], and those of
        `Reading.kept`, whose shapes they must have.
        """
        target, names = self.op.returning(wanted)
        call = calls.call(target, *tensors.values(), *schema.scalars(spec, quant))
        return {name: calls.item(call, index) for index, name in enumerate(names)}

    def spell(self, spec: Any) -> str:
        """The spec in one line of a report."""
        return repr(spec)
