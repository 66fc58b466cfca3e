"""The capstone, worked: silu(gate) * up and FP8 group quantisation as one op, from the reference to the pass.

The activation of almost every MLP: gate and up [tokens, hidden] come from projections, their product is quantised for
the next one. fusionlib reads the quantisation and the activation from a graph, and inserts calls.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as with_changes
from types import FunctionType, ModuleType

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from fusionlib import GroupQuant, reference
from fusionlib.match import QuantRead, Stop
from fusionlib.match.activation import read_activation
from fusionlib.match.graph import (
    describe,
    dtype,
    is_mul,
    is_narrowing,
    literal,
    operands,
    peel_exact,
    shape,
    value,
)
from fusionlib.match.quant import is_fp8_cast, read_fp8_cast
from fusionlib.match.result import Trail
from fusionlib.match.sizes import equal, same_shape
from fusionlib.rewrite.cache_key import source_hash
from fusionlib.rewrite.journal import Journal
from fusionlib.rewrite.replace import Editor


@dataclass(frozen=True)
class SiluAndMul:
    """y = silu(gate) * up in float32; at two points the value may be rounded to the dtype of gate.

    Args:
        round_activation: silu(gate) is rounded before it is multiplied.
        round_output: the product is rounded; else y is float32.
    """

    round_activation: bool = True
    round_output: bool = True

    def output_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of y for a gate of `dtype`."""
        return dtype if self.round_output else torch.float32


@dataclass(frozen=True)
class Found:
    """What was read from a graph: the nodes of both inputs, and the spec."""

    gate: fx.Node
    up: fx.Node
    spec: SiluAndMul


class Refused(Exception):
    """A site that must be left alone; the message says why."""


def silu_and_mul(gate: torch.Tensor, up: torch.Tensor, spec: SiluAndMul) -> torch.Tensor:
    """gate, up [tokens, hidden] -> y [tokens, hidden], of gate's dtype if the output is rounded, else float32."""
    activated = torch.nn.functional.silu(gate.float())
    if spec.round_activation:
        activated = activated.to(gate.dtype).float()
    y = activated * up.float()
    return y.to(gate.dtype) if spec.round_output else y


def moved_bytes(tokens: int, hidden: int, group_size: int) -> tuple[int, int]:
    """(bytes of two kernels, bytes of one) for bf16 in, FP8 out and one float32 scale per group."""
    elements = tokens * hidden
    inputs, product = 2 * 2 * elements, 2 * elements
    outputs = elements + 4 * elements // group_size
    return inputs + product + product + outputs, inputs + outputs


def quantise(gate, up, round_activation, round_output, group_size, floor):
    """What the op computes: codes [tokens, hidden] and scale [tokens, hidden / group_size], both contiguous."""
    y = silu_and_mul(gate, up, SiluAndMul(round_activation, round_output))
    codes, scale = reference.group_quant(y, GroupQuant(group_size, floor=floor))
    return codes.contiguous(), scale.contiguous()  # transposed inputs would give transposed results


def fake(gate, up, round_activation, round_output, group_size, floor):
    """Empty tensors with the shapes, strides and dtypes of `quantise`'s results."""
    tokens, hidden = gate.shape
    codes = gate.new_empty((tokens, hidden), dtype=torch.float8_e4m3fn)
    return codes, gate.new_empty((tokens, hidden // group_size), dtype=torch.float32)


@dataclass(frozen=True)
class _Made:
    """What an op was made of."""

    implementation: Callable
    fake: Callable
    kernel: ModuleType | None = None  # with `launch`; None: the implementation runs on a GPU too


_numbers = itertools.count()
_made: dict[str, _Made] = {}  # by the name of the op's overload


def define_op(implementation: Callable, fake: Callable) -> torch._ops.OpOverload:
    """Define a new op from these two functions; every call defines another one, so that a cell can be rerun.

    Until `connect_kernel`, `implementation` runs on every device.
    """
    name = f"silu_and_mul_quant_{next(_numbers)}"
    arguments = "Tensor gate, Tensor up, bool round_activation, bool round_output, int group_size, float floor"
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    torch.library.define(f"capstone::{name}", f"({arguments}) -> (Tensor codes, Tensor scale)", tags=tags)
    op = getattr(torch.ops.capstone, name).default
    _made[str(op)] = _Made(implementation, fake)
    torch.library.impl(f"capstone::{name}", "cpu", implementation)
    torch.library.impl(f"capstone::{name}", "cuda", functools.partial(_on_gpu, str(op)))
    torch.library.register_fake(f"capstone::{name}", fake)
    return op


def _on_gpu(name: str, gate: torch.Tensor, up: torch.Tensor, *scalars: bool | int | float) -> tuple[torch.Tensor, ...]:
    """The op on a GPU: its kernel, if one is connected, into tensors such as its fake promises."""
    made = _made[name]
    if made.kernel is None:
        return made.implementation(gate, up, *scalars)
    gate, up = (half if half.stride(-1) == 1 else half.contiguous() for half in (gate, up))
    codes, scale = made.fake(gate, up, *scalars)
    made.kernel.launch(gate, up, codes, scale, *scalars)
    return codes, scale


def connect_kernel(op: torch._ops.OpOverload, kernel: ModuleType) -> None:
    """From now on `op` launches `kernel.launch` on a GPU; on a CPU it is what it was."""
    _made[str(op)] = with_changes(_made[str(op)], kernel=kernel)


def op_source(op: torch._ops.OpOverload) -> str:
    """The name of `op` and the source of all that it was made of: implementation, fake, and kernel if it has one.

    Functions that these call are included, except fusionlib's own, which `source_hash` covers.
    """
    made = _made[str(op)]
    functions = dict.fromkeys([*_with_helpers(made.implementation), *_with_helpers(made.fake)])
    sources = [str(op), *map(inspect.getsource, functions)]
    if made.kernel is not None:
        sources.append(inspect.getsource(made.kernel))
    return "\0".join(sources)


def _with_helpers(function: Callable) -> list[FunctionType]:
    """`function` and the Python functions that it calls by a global name, not those of fusionlib."""
    found: list[FunctionType] = []
    stack = [function]
    while stack:
        current = stack.pop()
        if isinstance(current, FunctionType) and current not in found and not _is_library(current):
            found.append(current)
            stack += [current.__globals__.get(name) for name in current.__code__.co_names]
    return found


def _is_library(function: FunctionType) -> bool:
    return function.__module__.partition(".")[0] in ("fusionlib", "torch")


def read_silu_and_mul(y: fx.Node) -> Found:
    """Inputs and spec of the product `y`. Raises Refused if it is not one that the spec can express."""
    product, rounds = peel_exact(y), dtype(y)
    if is_narrowing(product):
        product = peel_exact(product.args[0])
    if not is_mul(product):
        raise Refused(f"not a product: {describe(product)}")
    for left, right in (operands(product), operands(product)[::-1]):
        activation = read_activation(left) if isinstance(left, fx.Node) else None
        if activation is None or activation.kind != "silu" or not isinstance(right, fx.Node):
            continue
        gate, up = activation.gate, peel_exact(right)
        if dtype(up) != dtype(gate) or activation.rounded not in (None, dtype(gate)):
            raise Refused(f"other dtypes than the gate's: {describe(up)}")
        if rounds not in (torch.float32, dtype(gate)):
            raise Refused(f"rounded to another dtype than the gate's: {describe(y)}")
        if len(shape(gate)) != 2 or not same_shape(shape(gate), shape(up)):
            raise Refused(f"gate and up are not both [tokens, hidden]: {describe(up)}")
        if value(gate).stride(-1) != 1 or value(up).stride(-1) != 1:
            raise Refused("the elements of a row are not side by side")
        return Found(gate, up, SiluAndMul(activation.rounded is not None, rounds == dtype(gate)))
    raise Refused(f"no factor is silu of something: {describe(product)}")


def check_site(quant: QuantRead, found: Found) -> None:
    """Raise Refused if one call cannot replace this site."""
    spec = quant.spec
    if spec != GroupQuant(spec.group_size, floor=spec.floor) or spec.floor is None:
        raise Refused(f"the op has no such quantisation: {spec}")
    hidden = shape(found.gate)[-1]
    if not isinstance(hidden, int) or hidden % spec.group_size:
        raise Refused(f"groups of {spec.group_size} do not divide a row of {hidden}")
    if spec.group_size & (spec.group_size - 1):
        raise Refused(f"the kernel needs groups of a power of two: {spec.group_size}")
    for node in inside(quant, found):
        is_result = node in (quant.codes, quant.scale)
        if is_result or peel_exact(node) in (found.gate, found.up) or literal(node) is not None:
            continue
        if others := [user for user in node.users if user not in inside(quant, found)]:
            raise Refused(f"%{node.name} is needed by %{others[0].name} too")


def inside(quant: QuantRead, found: Found) -> set[fx.Node]:
    """The nodes between the inputs and codes and scale."""
    nodes, stack = set(), [quant.codes, quant.scale]
    while stack:
        node = stack.pop()
        if node not in nodes and node not in (found.gate, found.up) and node.op == "call_function":
            nodes.add(node)
            stack.extend(node.all_input_nodes)
    return nodes


def same_layout(new: fx.Node, old: fx.Node) -> bool:
    """Whether `new` can replace `old`: same dtype, shape, and strides of dimensions with more than one element."""
    if dtype(new) != dtype(old) or not same_shape(shape(new), shape(old)):
        return False
    steps = zip(shape(new), value(new).stride(), value(old).stride(), strict=True)
    return all(equal(size, 1) or equal(mine, theirs) for size, mine, theirs in steps)


def replace(graph: fx.Graph, quant: QuantRead, found: Found, op: torch._ops.OpOverload) -> None:
    """Insert one call of `op` after y, redirect all users of codes and scale to its results, and drop dead nodes.

    Raises Refused, with the graph unchanged, if a result's memory layout would differ from what it replaces.
    """
    journal = Journal(graph)
    editor = Editor(journal, quant.y.next, quant.anchor, value(quant.y).fake_mode)
    scalars = (found.spec.round_activation, found.spec.round_output, quant.spec.group_size, quant.spec.floor)
    call = editor.call(op, found.gate, found.up, *scalars)
    olds = (quant.codes, quant.scale)
    news = [editor.reshape(editor.item(call, index), [-1, *shape(old)[1:]]) for index, old in enumerate(olds)]
    if different := [old for new, old in zip(news, olds, strict=True) if not same_layout(new, old)]:
        journal.undo()
        raise Refused(f"the op's result would lie otherwise in memory than {describe(different[0])}")
    for new, old in zip(news, olds, strict=True):
        journal.replace(old, new)
    graph.eliminate_dead_code()


class SiluAndMulPass(CustomGraphPass):
    """The pass: every cast to FP8 is a site, fused or refused with a reason; `sites` lists them as text."""

    def __init__(self, op: torch._ops.OpOverload, read: Callable = read_silu_and_mul, swap: Callable = replace) -> None:
        self.op, self.read, self.swap = op, read, swap
        self.sites: list[str] = []

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite every site of `graph` that can be fused, in place."""
        training = any(str(node.target).startswith("primals_") for node in graph.nodes if node.op == "placeholder")
        for anchor in [node for node in graph.nodes if is_fp8_cast(node)]:
            try:
                if training:
                    raise Refused("gradients are taken of this graph")
                quant = read_fp8_cast(anchor, Trail())
                found = self.read(quant.y)
                check_site(quant, found)
                self.swap(graph, quant, found, self.op)
                self.sites.append(f"fused %{anchor.name}: {found.spec}")
            except (Refused, Stop) as reason:
                self.sites.append(f"refused %{anchor.name}: {reason}")
        graph.lint()

    def uuid(self) -> str:
        """A hash of everything that decides the result: fusionlib's sources, this pass, its parts and its op."""
        parts = [source_hash(), op_source(self.op)]
        code = (
            type(self).__call__,
            self.read,
            self.swap,
            check_site,
            inside,
            same_layout,
        )  # in a notebook only functions have sources
        parts += [inspect.getsource(part) for part in code]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
