"""Quantisations by ops and Triton kernels without a registered reader: they are known to quantise, but not how.

Such a call takes a float tensor, reads no FP8, and returns FP8 or writes it into a freshly allocated tensor. Scaled
products and conversions between FP8 formats read FP8; a cache that is written into is an input of the graph and larger
than what is put there; PyTorch's own ops quantise only by casts, which are read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils._pytree import tree_iter

from fusionlib.match.calls import (
    Written,
    arguments_of,
    called_op,
    is_fresh,
    kernel_names,
    launched_kernel,
    writes_are_known,
)
from fusionlib.match.graph import aten, describe, dtype, is_call, listed, numel, peel_views, shape, tensor_text, value
from fusionlib.match.quant import FP8_DTYPES
from fusionlib.match.reasons import Stop
from fusionlib.match.sizes import equal

#: Namespaces of ops that do what their names say, move data, or are read directly.
_KNOWN = {"aten", "prims", "inductor", "_c10d_functional", "fusionlib"}
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class _Call(NamedTuple):
    """A call of third-party code: its name, the nodes it reads, those it writes into, and what else it makes."""

    name: str
    reads: tuple[fx.Node, ...]
    writes: tuple[fx.Node, ...]
    returned: Any


def is_unknown_quant(node: fx.Node) -> bool:
    """Whether `node` makes FP8 codes from a float tensor and is neither a cast nor a call that has a reader."""
    return _quantises(node) is not None


def product_input(node: fx.Node) -> fx.Node | None:
    """The float tensor that `node` takes beside an FP8 weight of the graph's inputs, if it takes one as it is.

    Such a product quantises inside, as the Triton kernel of transformers' FP8Linear does, or not at all: nothing is
    beside it that could be fused. The weight is [out, in] and the only FP8 tensor; a scaled product of codes reads
    two, and a cache of keys and values has more dimensions.
    """
    call = _call(node)
    if call is None or any(kind in FP8_DTYPES for kind in _made(call)):
        return None
    weights = [read for read in call.reads if dtype(read) in FP8_DTYPES]
    if len(weights) != 1 or len(shape(weights[0])) != 2 or peel_views(weights[0]).op not in ("placeholder", "get_attr"):
        return None
    inner = shape(weights[0])[1]
    takes = (read for read in call.reads if dtype(read) in _FLOATS[:2] and len(shape(read)) > 1)
    return next((read for read in takes if equal(shape(read)[-1], inner)), None)


def call_name(node: fx.Node) -> str:
    """The name of the op or the Triton kernel that `node` calls, below PyTorch's wrappers."""
    if (op := called_op(node)) is not None:
        return str(op)
    kernel = launched_kernel(node)
    return str(node.target) if kernel is None else f"the Triton kernel {kernel_names(kernel)[0]}"


def unknown_quant(node: fx.Node) -> Stop:
    """Why the quantisation by `node` is refused."""
    read = _quantises(node)
    if read is None:
        raise TypeError(f"{describe(node)} is no quantisation")
    name, codes, source = read
    found = f"{name}, which makes {str(codes).removeprefix('torch.')} codes of %{source.name} ({tensor_text(source)})"
    return Stop("unknown_quant_op", node, "an op or a Triton kernel that a reader is registered for", found)


def _quantises(node: fx.Node) -> tuple[str, torch.dtype, fx.Node] | None:
    """(the op's name, the FP8 dtype it makes, the float tensor it makes it from) of an unknown quantisation."""
    call = _call(node)
    if call is None or any(dtype(read) in FP8_DTYPES for read in call.reads):
        return None
    sources = [read for read in call.reads if dtype(read) in _FLOATS and not equal(numel(read), 1)]
    made: list[torch.dtype | None] = [v.dtype for v in tree_iter(call.returned) if isinstance(v, torch.Tensor)]
    made += [dtype(written) for written in call.writes if not _is_cache(written, sources)]
    codes = [kind for kind in made if kind is not None and kind in FP8_DTYPES]
    return (call.name, codes[0], sources[0]) if codes and sources else None


def _made(call: _Call) -> list[torch.dtype | None]:
    """The dtypes of what a call returns and of what it writes into."""
    made: list[torch.dtype | None] = [v.dtype for v in tree_iter(call.returned) if isinstance(v, torch.Tensor)]
    return made + [dtype(written) for written in call.writes]


def _is_cache(written: fx.Node, sources: list[fx.Node]) -> bool:
    """Whether a call writes into part of one of the graph's inputs."""
    given = peel_views(written).op in ("placeholder", "get_attr")
    return given and not any(equal(numel(written), numel(source)) for source in sources)


def _call(node: fx.Node) -> _Call | None:
    """What a call of an op from outside PyTorch, or of a Triton kernel, reads and writes; None for all others."""
    if is_call(node, aten.copy.default):  # into FP8 it is a cast that the readers of casts do not see
        return _Call("aten::copy", _nodes(node.args[1]), (), node.meta.get("val"))
    if (op := called_op(node)) is not None:
        if op.namespace in _KNOWN:
            return None
        name = op.name()
    elif (kernel := launched_kernel(node)) is not None:
        name = f"the Triton kernel {kernel_names(kernel)[0]}"
    else:
        return None
    arguments = arguments_of(node)
    if arguments.kernel is not None and not writes_are_known(node):
        return _Call(name, *_likely(_nodes(node.kwargs["kwargs"])), ())
    into = [argument.before for argument in arguments.values() if isinstance(argument, Written)]
    into += listed(node.kwargs.get("_all_bases", []))
    reads = [argument for argument in arguments.values() if not isinstance(argument, Written)]
    return _Call(name, _nodes(reads), _nodes(into), arguments.returned)


def _likely(tensors: tuple[fx.Node, ...]) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]:
    """(what is read, what is written) of the tensors of a launch of which PyTorch does not know this.

    Allocations are written. So is FP8 of as many elements as a float tensor has: the room for its codes, unless an
    allocation in 16 bits is that of a product, whose weight this is.
    """
    fresh = [tensor for tensor in tensors if is_fresh(tensor)]
    given = [tensor for tensor in tensors if tensor not in fresh]
    codes: list[fx.Node] = []
    if not any(dtype(tensor) in _FLOATS[:2] for tensor in fresh):
        sizes = [numel(tensor) for tensor in given if dtype(tensor) in _FLOATS]
        codes = [each for each in given if dtype(each) in FP8_DTYPES and any(equal(numel(each), n) for n in sizes)]
    filled = {each for code in codes for each in given if equal(numel(each), numel(code))}
    reads = sorted((each for each in given if each not in codes), key=lambda each: each not in filled)
    return tuple(reads), (*fresh, *codes)


def _nodes(arguments: Any) -> tuple[fx.Node, ...]:
    """The tensor nodes among arguments, each once."""
    found: dict[fx.Node, None] = {}
    fx.map_arg(arguments, lambda node: found.setdefault(node))
    return tuple(node for node in found if value(node) is not None)
