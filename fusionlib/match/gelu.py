"""Reads gelu: one operation, or the products that it decomposes to, by erf or by tanh."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import fx

from fusionlib.match.graph import (
    aten,
    divided_by_literal,
    input_of,
    is_add,
    is_call,
    is_mul,
    literal_beside,
    numel,
    operands,
    peel_exact,
    same,
    with_literal,
)
from fusionlib.match.sizes import equal

_CUBIC = 0.044715  # Hendrycks and Gimpel, arXiv:1606.08415
_MOST_FACTORS = 4  # 0.5, the gate and 1 + erf(...), and one to see that there are too many

#: The gate, and the nodes on the way whose values must not be rounded.
Read = tuple[fx.Node, list[fx.Node]]
#: (node, gate) -> the nodes on the way from the gate to what the function is taken of; None if it is another.
Argument = Callable[[fx.Node, fx.Node], list[fx.Node] | None]


def read_gelu(node: fx.Node) -> Read | None:
    """(gate, inside) of gelu by erf."""
    if is_call(node, aten.gelu.default):
        return (input_of(node), []) if node.kwargs.get("approximate", "none") == "none" else None
    return _half_of_one_plus(node, aten.erf.default, _over_root_of_two)


def read_gelu_tanh(node: fx.Node) -> Read | None:
    """(gate, inside) of gelu by tanh."""
    if is_call(node, aten.gelu.default):
        return (input_of(node), []) if node.kwargs.get("approximate") == "tanh" else None
    return _half_of_one_plus(node, aten.tanh.default, _cubic)


def _half_of_one_plus(node: fx.Node, function: object, argument: Argument) -> Read | None:
    """(gate, inside) of 0.5 * gate * (1 + function(argument of gate)), its factors in any order."""
    found = _factors(node)
    if found is None or found[0] != 0.5 or len(found[1]) != 2:
        return None
    for gate, other in (found[1], found[1][::-1]):
        added = peel_exact(other)
        pair = with_literal(added) if is_add(added) else None
        call = peel_exact(pair[0]) if pair is not None and pair[1] == 1.0 else None
        if not is_call(call, function):
            continue
        inside = argument(peel_exact(input_of(call)), gate)
        if inside is not None and equal(numel(gate), numel(node)):
            return gate, [*found[2], added, call, *inside]
    return None


def _factors(node: fx.Node) -> tuple[float, list[fx.Node], list[fx.Node]] | None:
    """(the product of all literal factors, the others, the products) of a product in any association."""
    if not is_mul(node):
        return None
    number, others, products, stack = 1.0, [], [], [node]
    while stack:
        product = stack.pop()
        products.append(product)
        for operand, beside in (operands(product), operands(product)[::-1]):
            value = literal_beside(product, beside, operand)
            if value is not None:
                number *= value
            elif isinstance(operand, fx.Node) and is_mul(inner := peel_exact(operand)):
                stack.append(inner)
            elif isinstance(operand, fx.Node):
                others.append(operand)
        if len(others) + len(stack) > _MOST_FACTORS:
            return None
    return number, others, products[1:]


def _over_root_of_two(node: fx.Node, gate: fx.Node) -> list[fx.Node] | None:
    pair = with_literal(node) if is_mul(node) else None
    divided = divided_by_literal(node)
    scaled = pair is not None and same(pair[0], gate) and _close(pair[1], math.sqrt(0.5))
    over = divided is not None and same(divided[0], gate) and _close(divided[1], math.sqrt(2.0))
    return [node] if scaled or over else None


def _cubic(node: fx.Node, gate: fx.Node) -> list[fx.Node] | None:
    """The nodes of sqrt(2 / pi) * (gate + 0.044715 * gate^3)."""
    pair = with_literal(node) if is_mul(node) else None
    if pair is None or not _close(pair[1], math.sqrt(2.0 / math.pi)) or not is_add(total := peel_exact(pair[0])):
        return None
    for linear, cubic in (operands(total), operands(total)[::-1]):
        if not same(linear, gate) or not isinstance(cubic, fx.Node):
            continue
        term = peel_exact(cubic)
        found = _factors(term)
        if found is None or not _close(found[0], _CUBIC):
            continue
        power = found[1][0] if len(found[1]) == 1 else None
        is_power = power is not None and is_call(peel_exact(power), aten.pow.Tensor_Scalar)
        if is_power and isinstance(power, fx.Node):
            cube = peel_exact(power)
            if cube.args[1] == 3 and same(cube.args[0], gate):
                return [node, total, term, *found[2], cube]
        elif len(found[1]) == 3 and all(same(factor, gate) for factor in found[1]):
            return [node, total, term, *found[2]]
    return None


def _close(a: float, b: float) -> bool:
    return bool(torch.tensor(a) == torch.tensor(b))
