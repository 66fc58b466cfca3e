"""Reads a gated RMS norm from its value."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fusionlib.fusions.norm_product import (
    Form,
    Level,
    adds_to_a_norm,
    check_roundings,
    out_dtype,
    read_levels,
    rounding_points,
    weight_of,
)
from fusionlib.fusions.recognise_gated_norm import has_gate, is_foreign_activation, why_no_root
from fusionlib.match.activation import Activation, read_activation
from fusionlib.match.graph import NARROW, describe, dtype, input_of, is_mul, is_narrowing, operands, peel_exact, shape
from fusionlib.match.reasons import NotMine, Stop
from fusionlib.match.result import Reading, Trail
from fusionlib.match.root import Root, find_root, read_root
from fusionlib.match.tokens import need_as_many
from fusionlib.spec import GatedNorm

_FORM = Form("not_gated_norm", "norm(x) * weight * act(gate), or norm(x * act(gate)) * weight", gated=True)


def read_gated_norm(y: fx.Node, trail: Trail) -> Reading:
    """The gated norm whose value is `y`.

    Raises:
        NotMine: what is quantised is not a gated norm but, say, an RMS norm without a gate or another layer.
        Stop: it is a gated norm, but `GatedNorm` cannot express it.
    """
    candidate = find_root(y)
    if candidate is None:
        raise why_no_root(y)
    if adds_to_a_norm(y):
        raise NotMine
    try:
        root = read_root(candidate, trail)
    except Stop:
        if not has_gate(y, None):
            raise NotMine from None
        raise
    if not has_gate(y, root):
        raise NotMine
    levels = read_levels(y, root, _FORM, trail)
    act = next((level.act for level in levels if level.act is not None), None)
    if act is not None:
        return _norm_first(y, root, levels, act, trail)
    return _gate_first(y, root, levels, trail)


def _norm_first(y: fx.Node, root: Root, levels: list[Level], act: Activation, trail: Trail) -> Reading:
    x = peel_exact(root.value)
    points = rounding_points(levels, ("gate", "weight", "core"), {"weight": "weight", "core": "norm"}, _FORM)
    return _finish(y, x, act, root, levels, points, True, trail)


def _gate_first(y: fx.Node, root: Root, levels: list[Level], trail: Trail) -> Reading:
    gated = peel_exact(root.value)
    points = rounding_points(levels, ("weight", "core"), {"core": "norm"}, _FORM)
    product, rounded = gated, None
    if is_narrowing(gated) and dtype(gated) in NARROW:
        product, rounded = peel_exact(input_of(gated)), dtype(gated)
    x, act = _gated_product(y, product)
    if dtype(product) in NARROW:
        rounded = dtype(product)
    if rounded is not None:
        points["gate"] = rounded
    trail.add("gated x", gated)
    return _finish(y, peel_exact(x), act, root, levels, points, False, trail)


def _gated_product(y: fx.Node, product: fx.Node) -> tuple[fx.Node, Activation]:
    if is_mul(product):
        for x, other in (operands(product), operands(product)[::-1]):
            act = read_activation(other) if isinstance(other, fx.Node) else None
            if act is not None and isinstance(x, fx.Node):
                return x, act
    if is_mul(product) and any(is_foreign_activation(arg) for arg in operands(product)):
        raise Stop("activation", product, "silu or sigmoid of the gate", describe(product))
    raise Stop("not_gated_norm", y, _FORM.should_be, describe(product))


def _finish(
    y: fx.Node,
    x: fx.Node,
    act: Activation,
    root: Root,
    levels: list[Level],
    points: dict[str, torch.dtype],
    norm_before_gate: bool,
    trail: Trail,
) -> Reading:
    """Check shapes and rounding dtypes, and express what was read as a `GatedNorm`."""
    trail.add("x", x)
    trail.add("gate", act.gate)
    need_as_many("gate_shape", act.gate, y, f"a gate of shape {list(shape(y))}")
    need_as_many("mean_source", x, y, f"a value of shape {list(shape(y))}")
    if act.rounded is not None:
        points["activation"] = act.rounded
    check_roundings(y, x, points, {"activation": act.node})
    rounding: frozenset[Any] = frozenset(points)
    if dtype(x) is torch.float32:
        rounding = frozenset({"output"})  # nothing else to round: one spelling for it
    weight, offset = weight_of(levels, trail)
    bias = _bias(levels, trail)
    kind: Any = act.kind  # silu or sigmoid, the kinds that were read
    spec = GatedNorm(root.size, root.eps, kind, norm_before_gate, offset, rounding, out_dtype(x, points))
    return Reading({"x": x, "gate": act.gate}, spec, {"weight": weight, "bias": bias}, run=root.size)


def _bias(levels: list[Level], trail: Trail) -> fx.Node | None:
    """The bias, which must be added to the norm times its weight, before a gate that follows the norm."""
    biased = [(index, level.bias) for index, level in enumerate(levels) if level.bias is not None]
    if not biased:
        return None
    index, bias = biased[0]
    outside = {label for level in levels[:index] for label in level.factors}
    if len(biased) > 1 or "weight" in outside or "gate" in levels[index].factors:
        raise Stop("bias", levels[index].node, "norm(x) * weight + bias", "a bias added elsewhere")
    trail.add("bias", bias)
    return bias
