"""Reads the root of an RMS norm: rsqrt(mean(v * v) + eps), its value v, size and eps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import fx

from fusionlib.match.activation import is_activation
from fusionlib.match.graph import (
    FLOAT32_MAX,
    aten,
    broadcast_last,
    describe,
    divided_by_literal,
    dtype,
    input_of,
    is_add,
    is_call,
    is_div,
    is_mul,
    is_narrowing,
    listed,
    literal,
    numel,
    one_over,
    operands,
    peel_exact,
    result_of,
    same,
    shape,
    shortest,
    with_literal,
)
from fusionlib.match.reasons import Stop
from fusionlib.match.result import Trail
from fusionlib.match.sizes import Shape, Size, equal
from fusionlib.spec import LEAST_EPS

_LIMIT = 64  # nodes visited: a norm has a dozen, and an unbounded search would not be linear in the graph


@dataclass(frozen=True)
class Root:
    """`node` is rsqrt(mean(value * value) + eps), or the square root if `divides`; over `size` elements."""

    node: fx.Node
    value: fx.Node
    size: int
    eps: float
    divides: bool


def find_root(y: fx.Node) -> fx.Node | None:
    """The nearest reciprocal root (or divided-by root) that is a factor of `y`: breadth first, so the norm's own."""
    queue, seen = deque([y]), 0
    while queue and seen < _LIMIT:
        node, seen = peel_exact(queue.popleft()), seen + 1
        if _is_reciprocal_root(node):
            return node
        if is_narrowing(node) or is_call(node, aten.expand.default):
            queue.append(input_of(node))
        elif is_div(node) and _is_square_root(node.args[1]):
            return peel_exact(input_of(node, 1))
        elif (is_mul(node) or is_div(node) or is_add(node)) and not is_activation(node):
            factors = operands(node)[:1] if is_div(node) else operands(node)
            queue.extend(arg for arg in factors if isinstance(arg, fx.Node))
    return None


def _is_square_root(arg: object) -> bool:
    return isinstance(arg, fx.Node) and is_call(peel_exact(arg), aten.sqrt.default)


def _is_reciprocal_root(node: fx.Node) -> bool:
    if is_call(node, aten.rsqrt.default):
        return True
    if is_call(node, aten.pow.Tensor_Scalar) and literal(node.args[1]) == -0.5:
        return True
    return _is_square_root(one_over(node))


def read_root(node: fx.Node, trail: Trail) -> Root:
    """Read the mean of squares below a root found by `find_root`. Raises Stop if it is not an RMS norm."""
    # The root is one operation, or a reciprocal and a square root together.
    inverted = one_over(node)
    root = peel_exact(inverted) if inverted is not None else node
    below = peel_exact(input_of(root))
    trail.add("rsqrt", node)
    mean, eps = _below_eps(below)
    squared, size = _mean(mean, trail)
    if any(dtype(part) is not torch.float32 for part in (node, root, below, mean, squared)):
        raise Stop("rounding", node, "the mean of squares and its root in float32", describe(mean))
    value = _square(squared, trail)
    return Root(node, value, size, eps, is_call(node, aten.sqrt.default))


def _below_eps(node: fx.Node) -> tuple[fx.Node, float]:
    if is_call(node, aten.sub.Tensor) and literal(node.args[1]) is not None:
        raise Stop("eps", node, "an epsilon that is added", describe(node))
    if not is_add(node):
        return node, 0.0
    pair = with_literal(node)
    if pair is not None:
        eps = shortest(pair[1])
        if eps != 0 and not LEAST_EPS <= eps <= FLOAT32_MAX:
            raise Stop("eps", node, "an epsilon of 0, or a normal float32 number above it", f"{eps:g}")
        return peel_exact(pair[0]), eps
    for mean, other in (operands(node), operands(node)[::-1]):
        if isinstance(mean, fx.Node) and is_call(peel_exact(mean), aten.mean.dim, aten.sum.dim_IntList):
            raise Stop("scalar_not_literal", node, "a literal epsilon", describe(other))
    return node, 0.0


def _mean(node: fx.Node, trail: Trail) -> tuple[fx.Node, int]:
    """(what is averaged, over how many elements)."""
    taken = result_of(node, aten.var_mean.correction, aten.native_layer_norm.default)
    if taken is not None or is_call(node, aten.var.correction, aten.var.dim):
        raise Stop("layer_norm", node, "a mean of squares", describe(node if taken is None else taken[0]))
    divided, total = None, node
    if (pair := divided_by_literal(node)) is not None:
        total, divided = peel_exact(pair[0]), pair[1]
    elif is_mul(node) and (pair := with_literal(node)) is not None and pair[1] > 0:
        # sum * (1 / n) is the mean only if 1 / n is exact.
        total, divided = peel_exact(pair[0]), 1.0 / pair[1]
        divided = divided if divided.is_integer() and int(divided) & (int(divided) - 1) == 0 else -1.0
    wanted = aten.mean.dim if divided is None else aten.sum.dim_IntList
    if not is_call(total, wanted):
        raise Stop("mean_of_squares", node, "the mean of squares over the last dimension", describe(node))
    size = _trailing(total)
    if divided is not None and divided != size:
        raise Stop("mean_axis", node, f"a sum of {size} squares divided by {size}", f"divided by {divided:g}")
    trail.add("mean", total)
    return peel_exact(input_of(total)), size


def _trailing(mean: fx.Node) -> int:
    """The number of elements that a reduction over trailing dimensions covers."""
    sizes = shape(input_of(mean))
    rank = len(sizes)
    reduced = sorted(d % rank for d in listed(mean.args[1] or range(rank)))
    if reduced != list(range(rank - len(reduced), rank)):
        raise Stop("mean_axis", mean, "a mean over the last dimension", f"over dimensions {reduced} of {rank}")
    if len(reduced) == rank:
        raise Stop("mean_axis", mean, "a mean over the last dimension", "over all elements")
    size: Size = 1
    for d in reduced:
        size = size * sizes[d]
    if not isinstance(size, int):
        raise Stop("symbolic_group", mean, "a norm size known at compile time", f"{size} elements")
    return size


def _square(node: fx.Node, trail: Trail) -> fx.Node:
    squares = is_call(node, aten.pow.Tensor_Scalar) and literal(node.args[1]) == 2.0
    if squares or is_call(node, aten.square.default) or (is_mul(node) and same(*operands(node))):
        trail.add("square", node)
        value = input_of(node)
        if not equal(numel(value), numel(node)):  # v[:, None] * v[None] has the same v twice but is not a square
            raise Stop("mean_of_squares", node, "squares of single elements", describe(node))
        if _is_centred(peel_exact(value)):
            raise Stop("layer_norm", peel_exact(value), "squares of the value itself", "squares of x - mean(x)")
        return value
    raise Stop("mean_of_squares", node, "squares: x * x or pow(x, 2)", describe(node))


def _is_centred(node: fx.Node) -> bool:
    if not is_call(node, aten.sub.Tensor):
        return False
    return any(isinstance(arg, fx.Node) and is_call(peel_exact(arg), aten.mean.dim) for arg in operands(node))


def repeats_along(root: Root, operand: fx.Node, target: Shape) -> bool:
    """Whether the root, used with a value of shape `target`, scales each run of `root.size` elements by its own."""
    read = broadcast_last(operand, target)
    return read is not None and read[1] == root.size
