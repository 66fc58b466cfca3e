"""Producers that hide their arithmetic: norms that are an op or a Triton kernel, each with a reader that says its spec.

The matcher knows no producer: this table is the fusions' own, and each takes from it what its op can compute.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fusionlib.match.calls import Arguments, output_of
from fusionlib.match.graph import FLOATS, describe, dtype, is_call, peel_exact, peel_views
from fusionlib.match.reader_table import ReaderTable, Registered
from fusionlib.match.reasons import NotMine, Stop
from fusionlib.match.result import Reading, Trail
from fusionlib.match.tokens import need_as_many
from fusionlib.spec import GatedNorm, RMSNorm


@dataclass(frozen=True)
class OpaqueProducer:
    """What one call computes: a value, by `spec`, of tensors of the graph.

    Args:
        spec: a `GatedNorm` for the fusion `gated_norm`, an `RMSNorm` for `rms_norm`.
        rows: the tensors with an element for each of the value's, by the fused op's names and in its order: `x` and
            `gate`, or `x` and `residual` (None if there is none).
        vectors: those with one element per element of a norm or of a token: `weight`, and `bias` of a gated norm.
        output: the index of the returned value, or the name of the argument that it is written to.
        kept: further outputs that the fused op can return: `{"sum": 1}`, the sum of x and the residual.
    """

    spec: Any
    rows: Mapping[str, fx.Node | None]
    vectors: Mapping[str, fx.Node | None] = field(default_factory=dict)
    output: int | str = 0
    kept: Mapping[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, vectors = _TENSORS.get(type(self.spec), (tuple(self.rows), tuple(self.vectors)))
        for what, given, names in (("rows", self.rows, rows), ("vectors", self.vectors, vectors)):
            if missing := [name for name in names if name not in given]:
                raise TypeError(f"{what} of a {type(self.spec).__name__} must have {missing}; None if there is none")
            if wrong := {name: t for name, t in given.items() if t is not None and not isinstance(t, fx.Node)}:
                raise TypeError(f"{what} must be tensors of the graph, not {wrong}")
        if not self.rows:
            raise TypeError("rows must have the tensor that the value is made of")


#: The names of the rows and vectors of each spec.
_TENSORS: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    GatedNorm: (("x", "gate"), ("weight", "bias")),
    RMSNorm: (("x", "residual"), ("weight",)),
}

ProducerReader = Callable[[Arguments], OpaqueProducer]

_PRODUCERS = ReaderTable(unreadable="opaque_producer")


def register_producer_op(
    target: torch._ops.OpOverload | str,
    reader: ProducerReader,
    *,
    version: str | None = None,
    spec: type | None = None,
) -> None:
    """Let the fusions take calls of `target` for producers; `reader(arguments)` says which, or raises `Stop`.

    Args:
        target: an overload such as torch.ops.ns.name.default, or its name, "ns::name" or "ns::name.overload".
        reader: gets the `fusionlib.match.Arguments` by name and returns an `OpaqueProducer`.
        version: stands for the reader in the key of Inductor's caches, as in `fusionlib.match.register_quant_op`.
        spec: the type of spec that the reader answers with, `RMSNorm` or `GatedNorm`. A call that it refuses then
            counts for the fusion of that spec alone, and not for every fusion that asks.
    """
    _PRODUCERS.add_op(target, Registered(reader, version, spec))


def register_producer_kernel(
    kernel: object, reader: ProducerReader, *, version: str | None = None, spec: type | None = None
) -> None:
    """The same for launches of a Triton kernel: what `triton.jit` or `triton.autotune` made, or its name.

    `output` and `kept` then name parameters that the kernel writes to.
    """
    _PRODUCERS.add_kernel(kernel, Registered(reader, version, spec))


def producers_kept() -> AbstractContextManager[None]:
    """Forget on exit the producers that were registered inside."""
    return _PRODUCERS.kept()


def registered_producers() -> dict[str, Registered]:
    """The readers of producers with their versions, by the name of the op or kernel."""
    return _PRODUCERS.registered()


def read_producer(value: fx.Node, spec: type, trail: Trail) -> Reading | None:
    """The opaque producer whose value is `value`, if it has a reader; None if it has none.

    Args:
        spec: the type of spec that the asking fusion computes.

    Raises:
        NotMine: the producer is of another kind, or `value` is not its value.
        Stop: the reader refuses the call, or it does not return what the spec says.
    """
    value = peel_exact(value)
    call = value.args[0] if is_call(value, operator.getitem) else value
    found = _PRODUCERS.find(call) if isinstance(call, fx.Node) else None
    if found is None or not isinstance(call, fx.Node):
        return None
    if not issubclass(found[1].spec or spec, spec):
        raise NotMine
    read: OpaqueProducer = _PRODUCERS.read(call, OpaqueProducer)
    if not isinstance(read.spec, spec) or output_of(call, read.output) is not value:
        raise NotMine
    trail.add("opaque producer", call)
    first = next(iter(read.rows.values()))
    if first is None or dtype(first) not in FLOATS:
        raise Stop("opaque_producer", call, "a first tensor of float32, bfloat16 or float16", describe(first))
    for name, node in read.rows.items():
        if node is not None:
            trail.add(name, node)
            need_as_many("opaque_producer", node, value, f"{name} with an element for each of the value's")
    made: Any = read.spec
    if dtype(value) != (kind := made.output_dtype(dtype(first))):
        raise Stop("opaque_producer", call, f"a value of {kind}, as its reader says", describe(value))
    rows = {name: None if node is None else peel_views(node) for name, node in read.rows.items()}
    kept = {name: node for name, which in read.kept.items() if (node := output_of(call, which)) is not None}
    return Reading(rows, made, dict(read.vectors), run=made.norm_size, kept=kept)
