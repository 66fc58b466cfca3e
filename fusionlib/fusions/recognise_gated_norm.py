"""Tells a gated norm, whether or not it can be read, from the values of other layers."""

from __future__ import annotations

from collections import deque

from torch import fx

from fusionlib.match.activation import OTHER_ACTIVATIONS, is_activation
from fusionlib.match.graph import (
    aten,
    describe,
    input_of,
    is_add,
    is_call,
    is_div,
    is_mul,
    is_narrowing,
    numel,
    operands,
    peel_exact,
    result_of,
    same,
    shape,
)
from fusionlib.match.reasons import NotMine, Stop
from fusionlib.match.root import Root, find_root
from fusionlib.match.sizes import equal

_MOST_NODES = 64  # visited in search of a gate: an unbounded search would not be linear in the graph
_REARRANGING = (
    aten.constant_pad_nd.default, aten.cat.default, aten.slice.Tensor, aten.select.int, aten.index.Tensor,
    aten.index_select.default, aten.gather.default, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.flip.default, aten.roll.default, aten.expand.default, aten.repeat.default, aten.as_strided.default,
)  # fmt: skip


def is_foreign_activation(operand: object) -> bool:
    """Whether an operand is an activation that is not ours, in one operation or in the few it decomposes to."""
    queue, seen = deque([operand]), 0
    while queue and seen < 8:
        node, seen = queue.popleft(), seen + 1
        node = peel_exact(node) if isinstance(node, fx.Node) else node
        node = peel_exact(input_of(node)) if is_narrowing(node) else node
        if is_call(node, *OTHER_ACTIVATIONS):
            return True
        if is_mul(node) or is_add(node):
            queue.extend(operands(node))
    return False


def is_rearranged(node: fx.Node) -> bool:
    """Whether `node` moves the elements of a gated norm."""
    if not is_call(node, *_REARRANGING):
        return False
    return any(find_root(source) is not None and has_gate(source, None) for source in node.all_input_nodes[:4])


def has_gate(y: fx.Node, root: Root | None) -> bool:
    """Whether a factor of `y`, or of the normalised value, is any activation or a whole tensor besides x.

    `root` is None if it could not be read: then only activations count, since x is unknown.
    """
    stack, seen = [(y, root is not None)], 0
    while stack and seen < _MOST_NODES:
        (operand, whole_counts), seen = stack.pop(), seen + 1
        node = peel_exact(operand)
        if root is not None and (node is root.node or same(node, root.value)):
            continue
        if _is_any_activation(node):
            return True
        if is_narrowing(node) or is_call(node, aten.expand.default):
            stack.append((input_of(node), whole_counts))
        elif is_mul(node) or is_div(node) or is_add(node):
            factors = (arg for arg in operands(node) if isinstance(arg, fx.Node))
            stack.extend((arg, whole_counts and not is_add(node)) for arg in factors)
        elif whole_counts and len(shape(node)) > 1 and find_root(node) is None and equal(numel(node), numel(y)):
            return True
    if root is None:
        return False
    normed = peel_exact(root.value)
    product = peel_exact(input_of(normed)) if is_narrowing(normed) else normed
    return is_mul(product) and any(_is_any_activation(arg) for arg in operands(product))


def _is_any_activation(operand: object) -> bool:
    """Whether an operand is an activation, ours or not, readable or not."""
    return (isinstance(operand, fx.Node) and is_activation(operand)) or is_foreign_activation(operand)


def why_no_root(y: fx.Node) -> Stop | NotMine:
    """Why no root was found above `y`: a gated norm that is rearranged, a LayerNorm with a gate, or something else."""
    queue, seen, layer_norm, gated = deque([y]), 0, None, False
    while queue and seen < _MOST_NODES:
        node, seen = peel_exact(queue.popleft()), seen + 1
        if is_rearranged(node):
            return Stop("rearranged", node, "the value as the norm leaves it", describe(node))
        if result_of(node, aten.native_layer_norm.default) is not None:
            layer_norm = node
        elif _is_any_activation(node):
            gated = True
        elif is_narrowing(node) or is_call(node, *_REARRANGING):
            queue.extend(node.all_input_nodes[:3])
        elif is_mul(node) or is_div(node) or is_add(node):
            queue.extend(arg for arg in operands(node) if isinstance(arg, fx.Node))
    if layer_norm is not None and gated:
        return Stop("layer_norm", input_of(layer_norm), "a mean of squares", describe(input_of(layer_norm)))
    return NotMine()
