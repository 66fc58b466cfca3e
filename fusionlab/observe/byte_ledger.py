"""The byte ledger: the bytes every node of a graph must move, and how long that takes at a given bandwidth.

A kernel that only moves memory cannot be faster than its bytes divided by the bandwidth. A node's bytes follow from its
shapes: every distinct input is read once and every output written once; a view moves nothing. The same sum over a group
of nodes, without what stays inside the group, is what one fused kernel for them must move. The closed form for a gated
norm and its quantisation is `path_bytes`; a test checks that both agree.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.multiprocessing.reductions import StorageWeakRef

from fusionlib.spec import GatedNorm, GroupQuant

#: Ops that return the memory they are given, for graphs whose `val`s no longer share storage.
_VIEWS = {"view", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "expand", "permute", "select", "slice"}
_VIEWS |= {"split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "lift_fresh"}
_ALLOCATIONS = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}
_OVERWRITES = {"copy_", "fill_", "zero_"}  # in place, without reading the old values

BYTES_KEY = "fusionlib_bytes"


class LedgerError(ValueError):
    """A graph or number that the ledger cannot use; the message names the node or value and how to fix it."""


@dataclass(frozen=True)
class Bytes:
    """Bytes read and bytes written."""

    read: int = 0
    written: int = 0

    @property
    def total(self) -> int:
        """Bytes read plus bytes written."""
        return self.read + self.written

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.read + other.read, self.written + other.written)

    def time_us(self, bandwidth_gb_s: float) -> float:
        """Microseconds at `bandwidth_gb_s` (1e9 bytes per second): the minimum time of a memory-bound kernel."""
        if not (math.isfinite(bandwidth_gb_s) and bandwidth_gb_s > 0):
            raise LedgerError(f"bandwidth_gb_s={bandwidth_gb_s!r} must be finite and > 0, such as 4800 for an H200")
        return self.total / bandwidth_gb_s / 1e3


@dataclass(frozen=True)
class Residual:
    """A measured time and its prediction: `residual_us` is what bytes do not explain, `share` the part they do."""

    measured_us: float
    predicted_us: float

    @property
    def residual_us(self) -> float:
        """Measured minus predicted: launch latency, tails and arithmetic; negative if part came from a cache."""
        return self.measured_us - self.predicted_us

    @property
    def share(self) -> float:
        """Predicted / measured: 1 is the speed of light, more means that a cache served part of the bytes."""
        return self.predicted_us / self.measured_us


def residual(moved: Bytes, bandwidth_gb_s: float, measured_us: float) -> Residual:
    """How much of `measured_us` the bytes `moved` explain at `bandwidth_gb_s`."""
    if not (math.isfinite(measured_us) and measured_us > 0):
        raise LedgerError(f"measured_us={measured_us!r} must be finite and > 0")
    return Residual(measured_us, moved.time_us(bandwidth_gb_s))


@dataclass(frozen=True)
class Entry:
    """One node: its name and target as text, the bytes it moves as a separate kernel, and whether it is a view."""

    node: str
    target: str
    bytes: Bytes
    view: bool


def ledger(graph: fx.Graph | fx.GraphModule) -> list[Entry]:
    """The entries of every call in `graph`, in order, each node counted as a separate kernel.

    `graph` is an aten graph captured by `make_fx`, `torch.export` or AOTAutograd, with tensors in `meta["val"]`.
    Symbolic sizes count as the values they were traced with.

    Raises:
        LedgerError: for a node without `val`, or with a size without a value.
    """
    graph = graph.graph if isinstance(graph, fx.GraphModule) else graph
    entries = []
    for node in graph.nodes:
        if node.op in ("call_function", "call_method", "call_module"):
            view = is_view(node)
            moved = Bytes() if view else group_bytes([node])
            entries.append(Entry(node.name, str(node.target), moved, view))
    return entries


def annotate(graph: fx.Graph | fx.GraphModule) -> Bytes:
    """Write each call's `Bytes` into `node.meta["fusionlib_bytes"]`; returns their sum."""
    graph = graph.graph if isinstance(graph, fx.GraphModule) else graph
    entries = {entry.node: entry for entry in ledger(graph)}
    for node in graph.nodes:
        if node.name in entries:
            node.meta[BYTES_KEY] = entries[node.name].bytes
    return sum((entry.bytes for entry in entries.values()), Bytes())


def group_bytes(nodes: Iterable[fx.Node]) -> Bytes:
    """What one kernel for all of `nodes` must move: each input from outside once, and outputs used outside.

    Views inside and before the group are traced to their base: two views of one tensor count as one read, of at most
    the whole tensor. A single node writes all its outputs, used or not.
    """
    group = list(dict.fromkeys(nodes))
    inside = set(group)
    read: dict[fx.Node, dict[tuple, int]] = {}
    written = 0
    for node in group:
        if is_view(node) or _name(node) in _ALLOCATIONS:
            continue
        overwritten, mutated = _mutations(node)
        written += sum(_size(argument) for argument in mutated)
        for argument in node.all_input_nodes:
            base = _base(argument)
            if base not in inside and argument not in overwritten:
                pieces = read.setdefault(base, {})
                pieces.update(_pieces(argument))
        if not mutated and (len(group) == 1 or _escapes(node, inside)):
            written += _size(node)
    whole = {base: _size(base) for base in read}
    return Bytes(sum(min(whole[base], sum(read[base].values())) for base in read), written)


def is_view(node: fx.Node) -> bool:
    """Whether `node` moves nothing: it returns no tensor, or only memory of one of its inputs."""
    outputs = list(_tensors(_value(node)))
    if node.op != "call_function" or not outputs or str(node.target).startswith("<built-in function getitem"):
        return node.op == "call_function"
    if _mutations(node)[1]:
        return False
    inputs = {_storage(t) for argument in node.all_input_nodes for t in _tensors(_value(argument))}
    return _name(node) in _VIEWS or all(_storage(output) in inputs for output in outputs)


def _name(node: fx.Node) -> str:
    return node.target._schema.name.split("::")[-1] if isinstance(node.target, torch._ops.OpOverload) else ""


def _value(node: fx.Node) -> Any:
    if node.op in ("output", "get_attr") and "val" not in node.meta:
        return None
    if "val" not in node.meta:
        raise LedgerError(
            f"node {node.name!r} has no meta['val']; capture the graph with make_fx(..., tracing_mode='fake'), "
            "torch.export or AOTAutograd"
        )
    return node.meta["val"]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _storage(tensor: torch.Tensor) -> int:
    return StorageWeakRef(tensor.untyped_storage()).cdata


def _integer(size: Any, node: fx.Node) -> int:
    if isinstance(size, torch.SymInt):
        size = size.node.hint
    if size is None:
        raise LedgerError(f"node {node.name!r} has a size without a value (unbacked); capture it with concrete sizes")
    return int(size)


def _pieces(node: fx.Node) -> dict[tuple, int]:
    """Bytes of every tensor of `node`, by memory location; an expanded dimension (stride 0) is read once."""
    pieces = {}
    for tensor in _tensors(_value(node)):
        place = tuple(_integer(part, node) for part in (tensor.storage_offset(), *tensor.shape, *tensor.stride()))
        sizes = zip(tensor.shape, tensor.stride(), strict=True)
        elements = math.prod(_integer(size, node) if _integer(stride, node) else 1 for size, stride in sizes)
        pieces[place, tensor.dtype, _storage(tensor)] = elements * tensor.element_size() if tensor.numel() else 0
    return pieces


def _size(node: fx.Node) -> int:
    return sum(_pieces(node).values())


def _base(node: fx.Node) -> fx.Node:
    """The node whose memory `node` is a view of, itself if it is no view; getitem is followed for a single output."""
    while node.op == "call_function" and is_view(node) and len(node.all_input_nodes) > 0:
        source = node.all_input_nodes[0]
        if len(list(_tensors(_value(source)))) != 1:
            break
        node = source
    return node


def _mutations(node: fx.Node) -> tuple[set[fx.Node], list[fx.Node]]:
    """Arguments that `node` overwrites without reading, and all arguments that it writes in place."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return set(), []
    mutated = []
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.kwargs.get(argument.name, node.args[position] if position < len(node.args) else None)
            mutated += [part for part in (value if isinstance(value, list | tuple) else [value]) if part is not None]
    return set(mutated) if _name(node) in _OVERWRITES else set(), mutated


def _escapes(node: fx.Node, inside: Collection[fx.Node]) -> bool:
    """Whether a value of `node` is used outside the group, possibly through views; using its size does not count."""
    users = [user for user in node.users if user.op == "output" or list(_tensors(_value(user)))]
    views = [user for user in users if user in inside and is_view(user) and user.all_input_nodes[0] is node]
    return any(user not in inside for user in users) or any(_escapes(view, inside) for view in views)


@dataclass(frozen=True)
class PathBytes:
    """The bytes of one call: `norm` and `quant` as two kernels, and `fused` as one."""

    norm: Bytes
    quant: Bytes
    fused: Bytes

    @property
    def unfused(self) -> Bytes:
        """The two kernels together."""
        return self.norm + self.quant


def path_bytes(
    tokens: int,
    hidden: int,
    norm: GatedNorm,
    quant: GroupQuant,
    *,
    x_dtype: torch.dtype = torch.bfloat16,
    gate_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    weight_elements: int | None = None,
    with_norm: bool = False,
) -> PathBytes:
    """Bytes of norm, quantisation and both fused, in closed form: x + gate + weight, normed, codes + scale.

    Args:
        tokens, hidden: rows, and elements per row; `hidden` is a multiple of norm_size and group_size.
        x_dtype, gate_dtype, weight_dtype: of the inputs; the last two default to x's.
        weight_elements: `norm.norm_size` by default; 0 leaves the weight out, as it is negligible for many tokens.
        with_norm: the fused kernel also stores the normed value.

    Raises:
        LedgerError: for sizes that do not divide.
    """
    for field, value, least in (("tokens", tokens, 0), ("hidden", hidden, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise LedgerError(f"{field}={value!r} must be an integer >= {least}")
    for field, part in (("norm_size", norm.norm_size), ("group_size", quant.group_size)):
        if hidden % part:
            raise LedgerError(f"hidden={hidden} is not a multiple of {field}={part}; choose a divisor of hidden")
    elements, groups = tokens * hidden, hidden // quant.group_size
    weight = norm.norm_size if weight_elements is None else weight_elements
    inputs = elements * (x_dtype.itemsize + (gate_dtype or x_dtype).itemsize)
    inputs += weight * (weight_dtype or x_dtype).itemsize
    normed = elements * norm.output_dtype(x_dtype).itemsize
    # Packed ue8m0 scales are words of four groups, the last padded; `reference.scale_storage` has the shapes.
    words = (groups + 3) // 4 if quant.scale_layout == "packed_int32" else groups
    outputs = elements * quant.dtype.itemsize + tokens * words * 4
    return PathBytes(Bytes(inputs, normed), Bytes(normed, outputs), Bytes(inputs, outputs + with_norm * normed))
