"""Sizes of tensors, which may be symbolic: what is equal for every value of the symbols. Nothing here adds a guard."""

from __future__ import annotations

from math import lcm

import sympy
import torch
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, statically_known_true
from torch.utils._sympy.functions import FloorDiv

#: A size that is a number, or is known only at run time.
Size = int | torch.SymInt
Shape = tuple[Size, ...]


def equal(a: Size, b: Size) -> bool:
    """Whether two sizes are equal for every value of the symbols in them."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if statically_known_true(a == b):
        return True
    difference = a - b
    return isinstance(difference, torch.SymInt) and _without_divisions(difference) == 0


def same_shape(a: Shape, b: Shape) -> bool:
    """Whether two shapes are equal for every value of the symbols in them."""
    return len(a) == len(b) and all(equal(p, q) for p, q in zip(a, b, strict=True))


def plain(size: Size) -> Size:
    """A size as a number if it is the same for every value of its symbols.

    `reshape(-1, 128)` of [tokens, 64] has a last dimension of `64 * (tokens // (tokens // 2))`: 128 for all even
    numbers, the only ones that the reshape accepts.
    """
    if isinstance(size, int):
        return size
    expression = _without_divisions(size)
    return int(expression) if expression.is_Integer else size


def times(count: int | torch.SymInt) -> int:
    """The number itself, or the constant factor of a symbolic size: 512 for 512 * tokens."""
    return count if isinstance(count, int) else int(count.node.expr.as_content_primitive()[0])


def _without_divisions(size: torch.SymInt) -> sympy.Expr:
    """The expression of `size` with every symbol that has a known divisor as that divisor times a new symbol."""
    expression, env = size.node.expr, size.node.shape_env
    divisors: dict[sympy.Symbol, int] = {}
    for division in expression.atoms(FloorDiv):
        base, divisor = division.args
        if base.is_Symbol and divisor.is_Integer and _holds(sympy.Eq(base, divisor * division), env):
            divisors[base] = lcm(divisors.get(base, 1), int(divisor))
    multiples = {
        base: divisor * sympy.Symbol(f"{base}_over_{divisor}", integer=True, positive=True)
        for base, divisor in divisors.items()
    }
    return sympy.expand(expression.xreplace(multiples)) if multiples else expression


def _holds(condition: sympy.Basic, env: ShapeEnv) -> bool:
    return statically_known_true(torch.SymBool(SymNode(condition, env, bool, None)))
