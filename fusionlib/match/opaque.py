"""Quantisations that hide their arithmetic: an open table of readers, one per op or Triton kernel.

A reader gets the call's arguments by their names and says what the call computes, or raises `Stop`. Readers are found
by name, so one can be registered for an op or a kernel of a library that is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import fx

from fusionlib.match.calls import Arguments, output_of
from fusionlib.match.graph import describe, shape, tensor_of, value
from fusionlib.match.quant import read_scaled
from fusionlib.match.reader_table import ReaderTable, Registered
from fusionlib.match.reasons import Stop
from fusionlib.match.result import QuantRead, Trail
from fusionlib.match.sizes import Shape, same_shape
from fusionlib.reference import scale_storage
from fusionlib.spec import GroupQuant


@dataclass(frozen=True)
class OpaqueQuant:
    """What one call computes: `value` [..., hidden] quantised by `spec`.

    `codes` and `scale` name its outputs: the index of a returned tensor, or the name of an argument it writes to. Codes
    have the shape of the value. If that has more than two dimensions, the scales are row-major, [..., groups], or a
    vector, [...].
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


Reader = Callable[[Arguments], OpaqueQuant | OpaqueCast]

_READERS = ReaderTable(unreadable="opaque_quant")


def register_quant_op(target: torch._ops.OpOverload | str, reader: Reader, *, version: str | None = None) -> None:
    """Let the matcher treat calls of `target` as quantisations; `reader(arguments)` says which kind.

    Args:
        target: an overload such as torch.ops.ns.name.default, or its name: "ns::name", or "ns::name.overload" if the
            overload is not the default one.
        reader: gets the `Arguments` by name and returns an `OpaqueQuant` or an `OpaqueCast`. A tensor that is read is
            a node, one that the op writes to a `Written`, with its shape and strides. Defaults are included as the
            schema stores them: a dtype is a number there.
        version: stands for the reader in the key of Inductor's caches: change it whenever the reader's answers change.
            Without one the reader's code is hashed with everything it reaches; if that cannot be done faithfully (it
            reads the environment, a file, an object made in C), nothing is cached, and a warning says so.

    Registering an op again replaces its reader.
    """
    _READERS.add_op(target, Registered(reader, version))


def register_quant_kernel(kernel: object, reader: Reader, *, version: str | None = None) -> None:
    """Let the matcher treat launches of a Triton kernel as quantisations; `reader(arguments)` says which kind.

    Args:
        kernel: what `triton.jit` or `triton.autotune` made, or its name, "package.module.kernel" or "kernel". A name
            with the module wins over one without.
        reader: gets the `Arguments` by the names of the kernel's parameters, constants included, and returns an
            `OpaqueQuant` whose `codes` and `scale` are names of parameters.
        version: as for `register_quant_op`.
    """
    _READERS.add_kernel(kernel, Registered(reader, version))


def readers_kept() -> AbstractContextManager[None]:
    """Forget on exit the readers that were registered inside."""
    return _READERS.kept()


def registered() -> dict[str, Registered]:
    """The registered readers with their versions, by the name of the op or kernel."""
    return _READERS.registered()


def is_opaque_quant(node: fx.Node) -> bool:
    """Whether `node` calls a registered op or kernel, through whatever wrapper."""
    return _READERS.find(node) is not None


def read_opaque_quant(node: fx.Node, trail: Trail) -> QuantRead:
    """The quantisation that `node` computes, according to its reader."""
    trail.add("opaque quantisation", node)
    read = _READERS.read(node, OpaqueQuant, OpaqueCast)
    if isinstance(read, OpaqueCast):
        return read_scaled(node, read.value, read.scale, trail)
    if len(shape(read.value)) < 2:
        raise Stop("opaque_quant", node, "a value of [..., hidden]", describe(read.value))
    row = shape(read.value)[-1]
    if not isinstance(row, int):
        raise Stop("symbolic_group", node, "a row length known at compile time", describe(read.value))
    codes, scale = (output_of(node, which) for which in (read.codes, read.scale))
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
    *lead, hidden = shape(read.value)
    if hidden % read.spec.group_size:
        expected = f"groups that divide a row's {hidden} elements"
        raise Stop("group_crosses_tokens", node, expected, f"groups of {read.spec.group_size}")
    wanted: list[tuple[fx.Node, Shape, Shape | None, torch.dtype]] = [(codes, (*lead, hidden), None, read.spec.dtype)]
    if scale is not None:
        wanted.append((scale, *_scale_storage(node, tuple(lead), hidden // read.spec.group_size, read.spec)))
    for output, size, stride, kind in wanted:
        found = value(output)
        alike = found is not None and found.dtype == kind and same_shape(tuple(found.shape), size)
        if found is None or not alike or (stride is not None and not same_shape(tuple(found.stride()), stride)):
            expected = f"an output of {kind}, shape {list(size)}" + (f", strides {list(stride)}" if stride else "")
            raise Stop("opaque_quant", node, expected, describe(output))


def _scale_storage(node: fx.Node, lead: Shape, groups: int, spec: GroupQuant) -> tuple[Shape, Shape, torch.dtype]:
    """Shape, strides and dtype of the scales of a value [*lead, hidden]."""
    if len(lead) == 1:
        return scale_storage(lead[0], groups, spec)
    if spec.scale_layout not in ("row_major", "vector"):
        expected = f"a value of two dimensions, where scales are {spec.scale_layout}"
        raise Stop("opaque_quant", node, expected, f"one of {len(lead) + 1}")
    size = (*lead, groups) if spec.scale_layout == "row_major" else lead
    stride: Shape = ()
    for index in reversed(range(len(size))):
        stride = (size[index + 1] * stride[0] if stride else 1, *stride)
    return size, stride, torch.float32


def _read_own(arguments: Arguments) -> OpaqueQuant:
    names = ["group_size", "dtype", "floor", "floor_on", "division"]
    names += ["scale_format", "scale_layout", "round_scale", "fp8_max", "scale_division", "nan_scale"]
    return OpaqueQuant(arguments["y"], GroupQuant(*(arguments[name] for name in names)))


def register_own() -> None:
    """Register fusionlib's own opaque op; importing `fusionlib.op` defined it."""
    register_quant_op(torch.ops.fusionlib.group_quant.default, _read_own)
