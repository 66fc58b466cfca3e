"""Reads the product that a norm's value is: x, the root of its mean of squares, and a weight or an activation.

It may be in an unusual order and rounded along the way. `read_levels` cuts it at its roundings: the factors of one
level are multiplied in float32, where their order changes only the last bit. Which factor is on which side of a cut
says where the computation rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from fusionlib.fusions.recognise_gated_norm import is_foreign_activation, is_rearranged
from fusionlib.match.activation import Activation, read_activation, with_its_gate
from fusionlib.match.graph import (
    NARROW,
    aten,
    describe,
    dtype,
    input_of,
    is_add,
    is_call,
    is_div,
    is_mul,
    is_narrowing,
    is_vector_of,
    literal,
    numel,
    operands,
    peel_exact,
    same,
    shape,
    with_literal,
)
from fusionlib.match.reasons import Reason, Stop
from fusionlib.match.result import Trail
from fusionlib.match.root import Root, find_root, repeats_along
from fusionlib.match.sizes import Shape, equal, same_shape

_MOST_FACTORS = 16  # a gated norm has five; a value squared k times is a product of 2^k

#: The reasons of a norm's product that do not depend on whether it has a gate.
REASONS = (
    Reason(
        "bias",
        "A bias is added where the fused computation has none.",
        "Add it to norm(x) * weight: before a gate that comes behind the norm, after one that comes first.",
    ),
    Reason(
        "order",
        "Norm, weight and gate are applied in an order that the fused computation does not have.",
        "Use norm * weight * act(gate), or norm(x * act(gate)) * weight.",
    ),
)


@dataclass(frozen=True)
class Form:
    """The product that a fusion reads: the reason code of another one, what it should be, and whether it has a gate."""

    code: str
    should_be: str
    gated: bool


@dataclass
class Level:
    """Factors multiplied in float32, a bias added to their product, and the dtype that it is rounded to.

    `rounded` is None if it is not rounded: at the top, or if the level ends at a bias inside a larger product.
    """

    rounded: torch.dtype | None
    node: fx.Node
    factors: dict[str, fx.Node] = field(default_factory=dict)
    act: Activation | None = None
    inner: fx.Node | None = None
    bias: fx.Node | None = None


def read_levels(y: fx.Node, root: Root, form: Form, trail: Trail) -> list[Level]:
    """The product `y` cut at its roundings, outermost first."""
    levels: list[Level] = []
    node: fx.Node | None = y
    while node is not None:
        if len(levels) > 4:
            raise Stop("rounding", node, "at most three roundings and a bias on the way", "more of them")
        level = _level(node, root, form, trail, {label for done in levels for label in done.factors})
        if levels and not levels[-1].factors:
            if levels[-1].bias is not None:
                raise Stop("bias", node, "one bias, added to norm(x) * weight", "another one on top of it")
            raise Stop("rounding", node, "one rounding of a product", "two in a row")
        levels.append(level)
        node = level.inner
    if not levels[-1].factors:
        raise Stop(form.code, y, form.should_be, describe(y))
    needed = {label for level in levels for label in level.factors}
    if not {"root", "x"} <= needed:
        raise Stop("mean_source", root.node, "the value times the root of its own mean of squares", describe(y))
    return levels


def _level(node: fx.Node, root: Root, form: Form, trail: Trail, taken: set[str]) -> Level:
    top, rounded = peel_exact(node), None
    while is_narrowing(top) and dtype(top) in NARROW:
        if rounded not in (None, dtype(top)):
            raise Stop("rounding", top, f"one rounding, to {rounded}", f"another to {dtype(top)}")
        rounded, top = dtype(top), peel_exact(input_of(top))
    if dtype(top) in NARROW:
        if rounded not in (None, dtype(top)):
            raise Stop("rounding", top, f"one rounding, to {rounded}", f"another to {dtype(top)}")
        rounded = dtype(top)
    level = Level(rounded, peel_exact(node))
    if (added := _biased(top)) is not None:
        value, level.bias = added
        top = peel_exact(value)
        if dtype(top) in NARROW:
            raise Stop("rounding", top, "no rounding between the product and the bias", describe(top))
    spare: list[fx.Node] = []
    for operand, target in _factors(top, root, form):
        _place(level, operand, target, root, form, spare, taken | set(level.factors))
    _resolve_spare(level, spare, root, form)
    if level.factors:
        names = ("rsqrt" if label == "root" else label for label in level.factors)
        trail.add(f"product of {', '.join(names)}", level.node)
    return level


def _factors(top: fx.Node, root: Root, form: Form) -> list[tuple[fx.Node, Shape]]:
    """The operands of a product in float32, whatever its association, each with the shape it is used at."""
    found: list[tuple[fx.Node, Shape]] = []
    stack: list[tuple[fx.Node, Shape, bool]] = [(top, shape(top), True)]
    while stack:
        if len(found) + len(stack) > _MOST_FACTORS:
            raise Stop(form.code, top, form.should_be, f"a product of more than {_MOST_FACTORS} factors")
        operand, target, is_top = stack.pop()
        node = peel_exact(operand)
        leaf = _is_root(operand, node, root) or same(node, root.value) or (not is_top and dtype(node) in NARROW)
        if leaf or (not is_top and _is_part(operand, node, target)):
            found.append((operand, target))
        elif is_mul(node) and len(both := [arg for arg in operands(node) if isinstance(arg, fx.Node)]) == 2:
            if root.divides and any(_is_root(arg, peel_exact(arg), root) for arg in both):
                raise Stop(form.code, node, "a division by the root of the mean", "a product with it")
            stack.extend((arg, shape(node), False) for arg in reversed(both))
        elif root.divides and _divides_by(node, root):
            stack.append((input_of(node, 1), shape(node), False))
            stack.append((input_of(node), shape(node), False))
        else:
            found.append((operand, target))
    return found


def _divides_by(node: fx.Node, root: Root) -> bool:
    operand = node.args[1] if is_div(node) and isinstance(node.args[0], fx.Node) else None
    return isinstance(operand, fx.Node) and _is_root(operand, peel_exact(operand), root)


def _is_root(operand: fx.Node, node: fx.Node, root: Root) -> bool:
    return node is root.node or (is_call(node, aten.expand.default) and peel_exact(input_of(node)) is root.node)


def _is_part(operand: fx.Node, node: fx.Node, target: Shape) -> bool:
    """Whether a factor is one part of the norm, although it may itself be a product."""
    return is_vector_of(operand, target) or read_activation(node) is not None


def _place(
    level: Level, operand: fx.Node, target: Shape, root: Root, form: Form, spare: list[fx.Node], taken: set[str]
) -> None:
    """Assign a factor to a part of the norm, or keep it in `spare` or as the next level."""
    node = peel_exact(operand)
    label: str | None = None
    if _is_root(operand, node, root):
        label = "root"
        if not repeats_along(root, operand, target):
            raise Stop("mean_axis", root.node, f"one root for each run of {root.size} elements", f"used at {target}")
    elif same(node, root.value):
        label = "x"
    elif (act := read_activation(node)) is not None:
        label = "gate"
    elif is_vector_of(operand, target):
        label = "weight"
    if label is None and ((dtype(node) in NARROW and _holds(node)) or _biased(node) is not None):
        if level.inner is not None:
            raise Stop("rounding", node, "one rounded or biased factor", "two of them")
        level.inner = node
    elif label is None:
        spare.append(operand)
    elif label in taken:
        raise Stop("order", node, form.should_be, f"a second {label}: {describe(node)}")
    else:
        level.factors[label] = node
        level.act = act if label == "gate" else level.act


def _holds(node: fx.Node) -> bool:
    """Whether a norm's root is a factor somewhere below `node`."""
    return (is_narrowing(node) or is_mul(node) or is_div(node) or is_add(node)) and find_root(node) is not None


def _resolve_spare(level: Level, spare: list[fx.Node], root: Root, form: Form) -> None:
    """A spare factor is the z of z * sigmoid(z) taken apart by association; anything else is refused."""
    for operand in spare:
        silu = None if level.act is None else with_its_gate(level.act, operand)
        if silu is not None:
            level.act = silu
            continue
        if "root" in level.factors and "x" not in level.factors:
            raise Stop(
                "mean_source", root.node, f"the root of the mean of {describe(peel_exact(operand))}", "another's"
            )
        raise _foreign(operand, level, form)


def _foreign(operand: fx.Node, level: Level, form: Form) -> Stop:
    """The reason for a factor that does not belong to the product."""
    node = peel_exact(operand)
    if is_rearranged(node):
        return Stop("rearranged", node, "the value as the norm leaves it", describe(node))
    scaled = is_mul(node) and with_literal(node) is not None
    if scaled or literal(operand) is not None or numel(node) == 1:
        return Stop(form.code, node, form.should_be, f"a further factor: {describe(node)}")
    if dtype(node) in NARROW and (is_mul(node) or is_add(node)):
        return Stop("rounding", node, "factors multiplied in float32", f"a product that is rounded: {describe(node)}")
    if form.gated and (is_foreign_activation(operand) or "gate" not in level.factors):
        if equal(shape(operand)[-1], 1):
            return Stop("gate_shape", node, "a gate with an element for each of the value's", describe(node))
        return Stop("activation", node, "silu or sigmoid of the gate", describe(node))
    return Stop(form.code, node, form.should_be, f"a further factor: {describe(node)}")


def adds_to_a_norm(value: fx.Node) -> bool:
    """Whether `value` is a norm plus another whole tensor: a residual behind the norm, as in OLMo, and no bias."""
    node = peel_exact(value)
    node = peel_exact(input_of(node)) if is_narrowing(node) else node
    if not is_add(node):
        return False
    whole = [isinstance(arg, fx.Node) and same_shape(shape(arg), shape(node)) for arg in operands(node)]
    return all(whole) and not any(_is_widened_vector(arg, shape(node)) for arg in operands(node))


def _is_widened_vector(operand: object, target: Shape) -> bool:
    """Whether an expand made a vector as large as what it is added to."""
    node = peel_exact(operand) if isinstance(operand, fx.Node) else None
    return is_call(node, aten.expand.default) and is_vector_of(input_of(node), target)


def _biased(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(value, bias) if `node` adds a vector to every row of a norm."""
    if not is_add(node):
        return None
    for value, vector in (operands(node), operands(node)[::-1]):
        if not isinstance(value, fx.Node) or not isinstance(vector, fx.Node):
            continue
        if is_vector_of(vector, shape(node)) and find_root(value) is not None:
            return value, peel_exact(vector)
    return None


def rounding_points(
    levels: list[Level], order: tuple[str, ...], names: dict[str, str], form: Form
) -> dict[str, torch.dtype]:
    """The rounding points and their dtypes, from which factors are on which side of each rounding."""
    rank = {"root": "core", "x": "core"}
    points: dict[str, torch.dtype] = {}
    if levels[0].rounded is not None:
        points["output"] = levels[0].rounded
    seen = -1
    for index, level in enumerate(levels):
        ranks = sorted(order.index(rank.get(label, label)) for label in level.factors)
        if ranks[0] <= seen:
            raise Stop("order", level.node, form.should_be, f"{'/'.join(level.factors)} inside another rounding")
        seen = ranks[-1]
        if index and level.rounded is not None:
            first = order[ranks[0]]
            if first not in names:
                raise Stop("rounding", level.node, "a rounding point of the fused computation", describe(level.node))
            points[names[first]] = level.rounded
    return points


def weight_of(levels: Sequence[Level], trail: Trail) -> tuple[fx.Node | None, int]:
    """(weight, 0), or (weight, 1) for 1 + weight in float32: any other vector, also a sum in 16 bits, is the weight."""
    weight = next((level.factors["weight"] for level in levels if "weight" in level.factors), None)
    if weight is None:
        return None, 0
    offset = 0
    if is_add(weight) and dtype(weight) is torch.float32:
        pair = with_literal(weight)
        if pair is not None and pair[1] == 1.0:
            weight, offset = peel_exact(pair[0]), 1
    trail.add("weight", weight)
    return weight, offset


def check_roundings(y: fx.Node, x: fx.Node, points: dict[str, torch.dtype], nodes: dict[str, fx.Node]) -> None:
    """Raise Stop unless all points but the output round to x's dtype; `nodes` are those that a point has of its own."""
    for point, rounded in points.items():
        if rounded != dtype(x) and point != "output":
            node = nodes.get(point, y)
            raise Stop("rounding", node, f"roundings to {dtype(x)}, the dtype of x", f"{point} rounded to {rounded}")


def out_dtype(x: fx.Node, points: dict[str, torch.dtype]) -> torch.dtype | None:
    """What the output is rounded to, if that is not x's dtype."""
    return None if points.get("output") in (None, dtype(x)) else points["output"]
