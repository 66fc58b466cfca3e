"""Quantisation ops that hide their arithmetic: an open registry of readers, one per op.

A reader gets the call's arguments by their schema names and says what the op computes, or raises `Stop`. Mutating ops
are read through `auto_functionalized`, where Inductor keeps them until late. Readers are found by the op's name, so one
can be registered for an op of a library that is not installed.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import fx

from fusionlib.match.graph import aten, describe, is_call, listed, shape, tensor_of, value, written_arguments
from fusionlib.match.quant import read_scaled
from fusionlib.match.reasons import Stop
from fusionlib.match.result import QuantRead, Trail
from fusionlib.match.sizes import Shape, same_shape
from fusionlib.reference import scale_storage
from fusionlib.spec import GroupQuant, SpecError


@dataclass(frozen=True)
class OpaqueQuant:
    """What one call computes: `value` [tokens, hidden] quantised by `spec`.

    `codes` and `scale` name its outputs: the index of a returned tensor, or the name of an argument it writes to.
    """

    value: fx.Node
    spec: GroupQuant
    codes: int | str = 0
    scale: int | str = 1


@dataclass(frozen=True)
class OpaqueCast:
    """What one call returns under a scale that the graph computes: value / scale, clamped and cast to FP8.

    `scale` has the rank of `value` and one element for each group of its last dimension.
    """

    value: fx.Node
    scale: object


#: Ops that slice or transpose an allocation into the tensor that an op writes to.
_STRIDED_VIEWS = (
    aten.permute.default, aten.transpose.int, aten.t.default, aten.slice.Tensor, aten.as_strided.default,
    aten.view.default, aten.alias.default,
)  # fmt: skip

Reader = Callable[[dict[str, Any]], OpaqueQuant | OpaqueCast]


class Registered(NamedTuple):
    """A reader and its author's version of it; None if it is hashed instead."""

    reader: Reader
    version: str | None = None


_READERS: dict[str, Registered] = {}


def register_quant_op(target: torch._ops.OpOverload | str, reader: Reader, *, version: str | None = None) -> None:
    """Let the matcher treat calls of `target` as quantisations; `reader(arguments)` says which kind.

    Args:
        target: an overload such as torch.ops.ns.name.default, or its name: "ns::name", or "ns::name.overload" if the
            overload is not the default one.
        reader: gets the arguments by name and returns an `OpaqueQuant` or an `OpaqueCast`. Defaults are included as the
            schema stores them: a dtype is a number there.
        version: stands for the reader in the key of Inductor's caches: change it whenever the reader's answers change.
            Without one the reader's code is hashed with everything it reaches; if that cannot be done faithfully (it
            reads the environment, a file, an object made in C), nothing is cached, and a warning says so.

    Registering an op again replaces its reader.
    """
    name = target.name() if isinstance(target, torch._ops.OpOverload) else target
    if not isinstance(name, str) or "::" not in name:
        raise TypeError(
            f"target={target!r} must be an overload such as torch.ops.ns.name.default, or its name ns::name"
        )
    if version is not None and (not isinstance(version, str) or not version):
        raise TypeError(f"version={version!r} must be a text that is not empty, or None")
    _READERS[name] = Registered(reader, version)


@contextlib.contextmanager
def readers_kept() -> Iterator[None]:
    """Forget on exit the readers that were registered inside."""
    before = registered()
    try:
        yield
    finally:
        _READERS.clear()
        _READERS.update(before)


def registered() -> dict[str, Registered]:
    """The registered readers with their versions, by op name."""
    return dict(_READERS)


def functionalised(node: fx.Node) -> torch._ops.OpOverload | None:
    """The mutating op that `node` calls through `auto_functionalized`; None if it calls no such wrapper."""
    wrappers = (torch.ops.higher_order.auto_functionalized, torch.ops.higher_order.auto_functionalized_v2)
    op = node.args[0] if node.op == "call_function" and node.target in wrappers else None
    return op if isinstance(op, torch._ops.OpOverload) else None


def _read_by(node: fx.Node) -> tuple[torch._ops.OpOverload, Reader] | None:
    """(the op that `node` calls, its reader); None if it has none."""
    target = functionalised(node) or node.target
    if not isinstance(target, torch._ops.OpOverload) or (found := _READERS.get(target.name())) is None:
        return None
    return target, found.reader


def is_opaque_quant(node: fx.Node) -> bool:
    """Whether `node` calls a registered op, directly or functionalised."""
    return node.op == "call_function" and _read_by(node) is not None


def read_opaque_quant(node: fx.Node, trail: Trail) -> QuantRead:
    """The quantisation that `node` computes, according to its reader."""
    trail.add("opaque quantisation", node)
    known = _read_by(node)
    if known is None:
        raise TypeError(f"{describe(node)} has no reader")
    target, reader = known
    arguments = _arguments(node, target)
    try:
        read = reader(arguments)
    except SpecError as error:
        raise Stop("opaque_quant", node, "arguments that fusionlib.GroupQuant can spell", str(error)) from error
    if isinstance(read, OpaqueCast):
        return read_scaled(node, read.value, read.scale, trail)
    if len(shape(read.value)) != 2:
        raise Stop("opaque_quant", node, "a value of [tokens, hidden]", describe(read.value))
    row = shape(read.value)[1]
    if not isinstance(row, int):
        raise Stop("symbolic_group", node, "a row length known at compile time", describe(read.value))
    codes, scale = (_output(node, target, which) for which in (read.codes, read.scale))
    if codes is None:
        raise Stop("opaque_quant", node, "codes that are used", "an output that nobody reads")
    _check_outputs(node, read, codes, scale)
    spec = read.spec
    if tensor_of(read.value).dtype is torch.float32:  # rounding the scale to float32 changes nothing
        spec = replace(spec, round_scale=False)
    spec = replace(spec, floor=spec.floor_in(tensor_of(read.value).dtype))
    return QuantRead(node, read.value, spec, codes, scale, row)


def _check_outputs(node: fx.Node, read: OpaqueQuant, codes: fx.Node, scale: fx.Node | None) -> None:
    """What the call returns must match what the fused op would put there, including the strides of the scale."""
    tokens, hidden = shape(read.value)
    wanted: list[tuple[fx.Node, Shape, Shape | None, torch.dtype]] = [(codes, (tokens, hidden), None, read.spec.dtype)]
    if scale is not None:
        wanted.append((scale, *scale_storage(tokens, hidden // read.spec.group_size, read.spec)))
    for output, size, stride, kind in wanted:
        found = value(output)
        alike = found is not None and found.dtype == kind and same_shape(tuple(found.shape), size)
        if found is None or not alike or (stride is not None and not same_shape(tuple(found.stride()), stride)):
            expected = f"an output of {kind}, shape {list(size)}" + (f", strides {list(stride)}" if stride else "")
            raise Stop("opaque_quant", node, expected, describe(output))


def _arguments(node: fx.Node, target: torch._ops.OpOverload) -> dict[str, Any]:
    names = [argument.name for argument in target._schema.arguments]
    given: dict[str, Any] = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    if target is node.target:
        given.update(zip(names, node.args, strict=False))
    given.update(node.kwargs)
    return given


def _output(node: fx.Node, target: torch._ops.OpOverload, which: int | str) -> fx.Node | None:
    """The node that holds an output of the call, or None if nothing reads it."""
    if isinstance(which, int):
        return _taken(node, which)
    if target is node.target:
        raise Stop("opaque_quant", node, "a functionalised call of this mutating op", "a call that writes in place")
    mutated = written_arguments(target)
    # A functionalised op without returns yields a leading None.
    first = max(len(target._schema.returns), 1)
    if "_all_bases" not in node.kwargs:
        return _taken(node, first + mutated.index(which))
    index = node.kwargs[f"_{which}_base_index"]
    base = _taken(node, first + index) if isinstance(index, int) else None
    return base if base is None or _is_whole(node, which) else _written_view(node, which, base)


def _taken(node: fx.Node, index: int) -> fx.Node | None:
    """The getitem that takes a result from the call, or None if there is none."""
    found = [user for user in node.users if user.target is operator.getitem and user.args[1] == index]
    if len(found) > 1:
        raise Stop("opaque_quant", node, "each output taken once", f"output {index} taken {len(found)} times")
    return found[0] if found else None


def _is_whole(node: fx.Node, name: str) -> bool:
    """Whether a written argument is the whole tensor that comes back, strides included, and not a view of it."""
    return not any(key.startswith(f"_{name}_") and not key.endswith(("_base_index", "_alias")) for key in node.kwargs)


def _written_view(node: fx.Node, name: str, base: fx.Node) -> fx.Node | None:
    """The one view of `base` that recreates the written argument, as tracing adds it after the call.

    Scales are allocated transposed, or padded to whole vectors after the last token: what comes back is the allocation.
    If anything reads it other than through this view, the site is not rewritten.
    """
    size, stride, offset = (node.kwargs.get(f"_{name}_{what}") for what in ("size", "stride", "storage_offset"))
    if size is None or offset != 0:
        raise Stop("opaque_quant", node, f"a view for {name} that starts where its tensor does", "a slice of one")
    size, stride = (tuple(s.meta["val"] if isinstance(s, fx.Node) else s for s in listed(a)) for a in (size, stride))
    found, stack = [], [base]
    while stack:
        view = stack.pop()
        val = tensor_of(view)
        if same_shape(tuple(val.shape), size) and same_shape(val.stride(), stride) and val.storage_offset() == 0:
            found.append(view)
            continue
        stack.extend(user for user in view.users if is_call(user, *_STRIDED_VIEWS))
    if len(found) != 1:
        raise Stop("opaque_quant", node, f"one view of the tensor that {name} is written to", f"{len(found)} of them")
    return found[0]


def _read_own(arguments: dict[str, Any]) -> OpaqueQuant:
    names = ["group_size", "dtype", "floor", "floor_on", "division"]
    names += ["scale_format", "scale_layout", "round_scale", "fp8_max", "scale_division"]
    return OpaqueQuant(arguments["y"], GroupQuant(*(arguments[name] for name in names)))


def register_own() -> None:
    """Register fusionlib's own opaque op; importing `fusionlib.op` defined it."""
    register_quant_op(torch.ops.fusionlib.group_quant.default, _read_own)
