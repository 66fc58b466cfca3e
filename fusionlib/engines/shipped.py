"""What a shipped reader is: the op that it reads, its schemas, where that was learnt; and what the readers share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from fusionlib.match import Arguments, OpaqueQuant, Stop
from fusionlib.match.graph import describe, dtype, numel, shape, tensor_of
from fusionlib.match.sizes import equal, same_shape
from fusionlib.reference import scale_storage
from fusionlib.spec import FP8_MAXIMA, GroupQuant, ScaleLayout

Kind = Literal["quant op", "quant kernel", "norm op", "norm kernel"]


@dataclass(frozen=True)
class Shipped:
    """A reader of one op or Triton kernel.

    Args:
        kind: what it reads.
        name: of the op, "ns::name", or of the kernel.
        schemas: those that the op is known by, "(Tensor x) -> Tensor", one for each version; none for a kernel.
        source: what it was read from: the project, the file, and the commit if it is known.
        read: what the call computes, once its schema is known.
        spec: the type of spec that a norm's reader answers with; None for a quantisation.
    """

    kind: Kind
    name: str
    schemas: tuple[str, ...]
    source: str
    read: Callable[[Arguments], Any]
    spec: type | None = None

    def __call__(self, arguments: Arguments) -> Any:
        """What the call computes. Raises Stop if the op is another than the one that was read."""
        if arguments.op is not None:
            code = "opaque_quant" if self.kind == "quant op" else "opaque_producer"
            found = _form(arguments.op._schema)
            if found not in [_form(_parsed(self.name + schema)) for schema in self.schemas]:
                raise Stop(code, arguments.call, f"{self.name}{' or '.join(self.schemas)}", str(arguments.op._schema))
        return self.read(arguments)


@functools.cache
def _parsed(schema: str) -> torch._C.FunctionSchema:
    return torch._C.parse_schema(schema)


def _form(schema: torch._C.FunctionSchema) -> tuple[object, ...]:
    """What must agree of two schemas: names, types and which arguments are written; a size is any int."""

    def kind(of: Any) -> str:
        return str(of).replace("SymInt", "int")

    arguments = [(a.name, kind(a.type), a.alias_info is not None and a.alias_info.is_write) for a in schema.arguments]
    return (*arguments, *(kind(r.type) for r in schema.returns))


# What readers of quantisations share.


def grouped(
    arguments: Arguments,
    value: str,
    group_size: int,
    *,
    codes: int | str = 0,
    scale: int | str = 1,
    fp8_max: float | None = None,
    **changes: Any,
) -> OpaqueQuant:
    """Argument `value` quantised by groups, with the scale's layout told by the tensor that it is put in.

    Args:
        codes: as in `OpaqueQuant`; so is `scale`.
        fp8_max: the largest magnitude of a code; None for the dtype's own.
        changes: fields of `GroupQuant`.
    """
    node = arguments.node(value)
    quantised, scales = _output(arguments, codes), _output(arguments, scale)
    if quantised.dtype not in FP8_MAXIMA:
        raise Stop("fp8_dtype", arguments.call, "codes in one of the FP8 dtypes", str(quantised.dtype))
    hidden = row_of(arguments, value)
    if hidden % group_size:
        expected = f"groups that divide a row's {hidden} elements"
        raise Stop("group_crosses_tokens", arguments.call, expected, f"groups of {group_size}")
    if not tensor_of(node).is_contiguous():
        raise Stop("opaque_quant", arguments.call, f"{value} contiguous, as the op demands", describe(node))
    own = None if fp8_max == FP8_MAXIMA[quantised.dtype][0] else fp8_max
    spec = GroupQuant(group_size, quantised.dtype, fp8_max=own, **changes)
    return OpaqueQuant(node, spec.with_layout(_layout(arguments, node, hidden, scales, spec)), codes, scale)


def _output(arguments: Arguments, which: int | str) -> torch.Tensor:
    found = arguments.returned[which] if isinstance(which, int) else arguments.fake(which)
    if not isinstance(found, torch.Tensor):
        raise Stop("opaque_quant", arguments.call, f"a tensor as output {which}", repr(found))
    return found


def _layout(arguments: Arguments, value: fx.Node, hidden: int, scales: torch.Tensor, spec: GroupQuant) -> ScaleLayout:
    """The layout that the tensor of scales has."""
    tokens, groups = numel(value) // hidden, hidden // spec.group_size
    layouts: tuple[ScaleLayout, ...] = ("row_major", "column_major", "column_major_padded", "vector")
    if spec.scale_format == "ue8m0":
        layouts += ("packed_int32",)
    for layout in layouts:
        if layout == "vector" and groups != 1:
            continue
        size, stride, kind = scale_storage(tokens, groups, spec.with_layout(layout))
        if scales.dtype is kind and same_shape(tuple(scales.shape), size) and same_shape(scales.stride(), stride):
            return layout
    leading = shape(value)[:-1]
    if len(leading) > 1 and scales.dtype is torch.float32 and scales.is_contiguous():
        if same_shape(tuple(scales.shape), (*leading, groups)):
            return "row_major"
        if groups == 1 and same_shape(tuple(scales.shape), leading):
            return "vector"
    found = f"{scales.dtype}, shape {list(scales.shape)}, strides {list(scales.stride())}"
    expected = f"scales of {tokens} tokens and {groups} groups in a layout of fusionlib.GroupQuant"
    raise Stop("opaque_quant", arguments.call, expected, found)


def symmetric(arguments: Arguments, low: str, high: str) -> float:
    """The largest magnitude of a code, given as both ends of its range."""
    least, most = arguments[low], arguments[high]
    if not isinstance(most, (int, float)) or least != -most:
        raise Stop("fp8_max", arguments.call, f"{low} = -{high}", f"{low} {least}, {high} {most}")
    return float(most)


def by_log2(arguments: Arguments, value: str) -> None:
    """Let a scale be rounded up by exp2(ceil(log2(s))), which is the next power of two for a value of 16 bits.

    The scale is a maximum over 448, 240 or 224: of a 16-bit value it is a power of two, or at least 1 / 2048 away from
    one, further than a float32 log2 errs. Of a float32 value it may be a last digit away.
    """
    if dtype(arguments.node(value)) not in (torch.bfloat16, torch.float16):
        expected = "a value of bfloat16 or float16, of which exp2(ceil(log2(s))) is the power of two by exponent bits"
        raise Stop("ue8m0", arguments.call, expected, describe(arguments.node(value)))


def none_of(arguments: Arguments, code: str, *names: str) -> None:
    """Refuse a call that gives one of the arguments `names`, or sets it."""
    for name in names:
        if arguments.get(name) not in (None, False):
            raise Stop(code, arguments.call, f"no {name}", f"{name}={describe(arguments[name])}")


def row_of(arguments: Arguments, value: str) -> int:
    """The elements of the last dimension of argument `value`."""
    row = shape(arguments.node(value))[-1]
    if not isinstance(row, int):
        found = describe(arguments.node(value))
        raise Stop("symbolic_group", arguments.call, "a row length known at compile time", found)
    return row


def need_contiguous(code: str, arguments: Arguments, *names: str) -> None:
    """Refuse a launch of a kernel that goes through these tensors in the order of memory, if that is not theirs."""
    for name in names:
        if not (tensor := arguments.fake(name)).is_contiguous():
            found = f"shape {list(tensor.shape)}, strides {list(tensor.stride())}"
            raise Stop(code, arguments.call, f"{name} contiguous, as the kernel reads memory", found)


def norm_size(arguments: Arguments, weight: str, x: str) -> int:
    """The elements of the last dimension of `x`, which `weight` must have one for each of, in its own last one."""
    size, given = row_of(arguments, x), arguments.given(weight)
    if given is not None and not (equal(numel(given), size) and shape(given) and equal(shape(given)[-1], size)):
        raise Stop("weight_shape", given, f"{size} elements", describe(given))
    return size
