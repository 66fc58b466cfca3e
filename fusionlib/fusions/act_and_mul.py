"""A product with an activation: what an MLP quantises between its projections, and the gate of an attention output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import fx

from fusionlib.fusions.fusion import Fusion
from fusionlib.match.activation import Activation, read_activation, with_its_gate
from fusionlib.match.graph import (
    FLOATS,
    NARROW,
    clamp_bounds,
    describe,
    dtype,
    input_of,
    is_add,
    is_mul,
    is_narrowing,
    operands,
    peel_exact,
    same,
    with_literal,
)
from fusionlib.match.reasons import NotMine, Reason, Stop
from fusionlib.match.result import Reading, Trail
from fusionlib.match.root import find_root
from fusionlib.match.tokens import need_as_many
from fusionlib.op import ACT_AND_MUL
from fusionlib.spec import ActAndMul
from fusionlib.spec import Activation as Kind

_MOST_FACTORS = 8
_KINDS: tuple[Kind, ...] = ("silu", "gelu", "gelu_tanh", "sigmoid")
_SHOULD_BE = "x * act(gate)"

_SHARED = (
    Reason(
        "product_shape",
        "The activation, or what it is multiplied with, is broadcast: it has fewer elements than the product.",
        "Expand it in the model, or multiply by it elsewhere.",
    ),
    Reason(
        "further_factor",
        "More is multiplied than an activation and one value.",
        "Multiply by it elsewhere: a weight of an expert, for example, behind the next projection.",
    ),
)


class _Product(Fusion):
    """x * act(gate) with an activation of `kinds` before FP8 group quantisation."""

    op = ACT_AND_MUL
    kinds: ClassVar[tuple[Kind, ...]]

    def read(self, value: fx.Node, trail: Trail) -> Reading:
        """The product whose value is `value`."""
        product, rounded = _top(value)
        if not is_mul(product) or _activation(product) is not None:
            raise NotMine
        factors = _factors(product)
        nodes = _nodes(factors)
        if any(find_root(node) is not None for node in nodes):
            raise NotMine  # a norm and its gate
        trail.add("product", value)
        if dtype(product) in NARROW and dtype(product) != rounded:
            raise Stop("rounding", value, f"one rounding, to {rounded}", describe(product))
        self._refuse_modified(product, nodes)
        x, act = self._split(product, factors)
        trail.add("x", x)
        trail.add("gate", act.gate)
        for node in (x, act.gate):
            need_as_many("product_shape", node, value, describe(value))
        self._refuse_changed(x, act)
        return Reading({"x": x, "gate": act.gate}, _spec(value, x, act, rounded))

    def _split(self, product: fx.Node, factors: list[object]) -> tuple[fx.Node, Activation]:
        """(x, activation) among the factors of a product. Raises NotMine if the activation is not of this fusion."""
        acts = {node: act for node in _nodes(factors) if (act := _activation(node)) is not None}
        if not acts:
            raise NotMine
        gate = next((factor for factor, act in acts.items() if act.kind != "sigmoid"), next(iter(acts)))
        others, act = list(factors), acts[gate]
        others.remove(gate)  # once: the square of an activation has it twice
        if len(others) == 2:  # z * sigmoid(z) * x may be associated as (z * x) * sigmoid(z)
            silus = [silu for factor in others if (silu := with_its_gate(act, factor)) is not None]
            if len(silus) == 1:
                others, act = [factor for factor in others if not same(factor, act.gate)], silus[0]
        if act.kind not in self.kinds:
            raise NotMine
        x, *more = others
        if more or not isinstance(x, fx.Node):
            found = f"{len(others)} factors besides {act.kind}" if more else f"{act.kind} times {x}"
            raise Stop("further_factor", product, _SHOULD_BE, found)
        return peel_exact(x), act

    def _refuse_modified(self, product: fx.Node, factors: list[fx.Node]) -> None:
        """Raise Stop for what looks like the product of this fusion but is another computation."""

    def _refuse_changed(self, x: fx.Node, act: Activation) -> None:
        """Raise Stop if x or gate are changed on their way, so that reading them from memory gains nothing."""

    def spell(self, spec: ActAndMul) -> str:
        """The product in one line."""
        return f"x * {spec.activation}(gate) ({spec.rounding_words})"


class ActAndMulQuant(_Product):
    """x * silu(gate), or by gelu, before FP8 group quantisation: an MLP's two halves, of one projection or of two."""

    name = "act_and_mul"
    kinds = ("silu", "gelu", "gelu_tanh")
    reasons = (
        *_SHARED,
        Reason(
            "modified_glu",
            "The gate is scaled or clamped, or the value clamped or offset, before they are multiplied, as in gpt-oss.",
            "Nothing, if the model needs it: the fused computation is x * act(gate) of two tensors as they are.",
        ),
    )

    def _refuse_modified(self, product: fx.Node, factors: list[fx.Node]) -> None:
        # In float32 gate and sigmoid are factors of the whole product, in 16 bits of a rounded one inside.
        inner = [node for factor in factors if is_mul(node := _top(factor).node)]
        for place, parts in [(product, factors), *((node, _nodes(operands(node))) for node in inner)]:
            for part in parts:
                scale = _scale_of_gate(part, parts)
                if scale is not None:
                    raise Stop("modified_glu", place, "gate * sigmoid(gate)", f"sigmoid of {scale:g} times the gate")

    def _refuse_changed(self, x: fx.Node, act: Activation) -> None:
        for name, node in (("x", x), ("gate", act.gate)):
            offset = with_literal(node) if is_add(node) else None
            if clamp_bounds(node) is not None or offset is not None:
                raise Stop("modified_glu", node, f"{name} as a projection leaves it", describe(node))


class SigmoidGateQuant(_Product):
    """x * sigmoid(gate) before FP8 group quantisation: the gated output of an attention layer."""

    name = "sigmoid_gate"
    kinds = ("sigmoid",)
    reasons = _SHARED


class _Top(NamedTuple):
    """A value below its rounding: the node that computes it, and the dtype it is rounded to, None for float32."""

    node: fx.Node
    rounded: torch.dtype | None


def _top(value: fx.Node) -> _Top:
    node = peel_exact(value)
    rounded = dtype(node) if dtype(node) in NARROW else None
    return _Top(peel_exact(input_of(node)) if is_narrowing(node) and rounded is not None else node, rounded)


def _activation(node: fx.Node) -> Activation | None:
    return read_activation(node, _KINDS)


def _nodes(operands_: Iterable[object]) -> list[fx.Node]:
    return [operand for operand in operands_ if isinstance(operand, fx.Node)]


def _scale_of_gate(part: fx.Node, parts: list[fx.Node]) -> float | None:
    """The number by which another of `parts` is multiplied in the sigmoid that `part` is, or None."""
    act = _activation(part)
    scaled = act.gate if act is not None and act.kind == "sigmoid" else None
    if is_narrowing(scaled):
        scaled = peel_exact(input_of(scaled))
    pair = with_literal(scaled) if is_mul(scaled) else None
    return pair[1] if pair is not None and any(same(pair[0], other) for other in parts) else None


def _factors(product: fx.Node) -> list[object]:
    """What is multiplied in float32, tensors and numbers, in any association.

    A rounded factor and an activation are whole.
    """
    found: list[object] = []
    stack: list[object] = [*reversed(operands(product))]
    while stack and len(found) + len(stack) <= _MOST_FACTORS:
        operand = stack.pop()
        if not isinstance(operand, fx.Node):
            found.append(operand)
            continue
        node = peel_exact(operand)
        if not is_mul(node) or dtype(node) in NARROW or _activation(node) is not None:
            found.append(node)
        else:
            stack.extend(reversed(operands(node)))
    return [*found, *stack]


def _spec(value: fx.Node, x: fx.Node, act: Activation, rounded: torch.dtype | None) -> ActAndMul:
    """What was read, as a spec. Raises Stop if it rounds to another dtype than the op does, or computes in float64."""
    for node in (x, act.gate):
        if dtype(node) not in FLOATS:
            raise Stop("rounding", node, "a float tensor of 16 or 32 bits", describe(node))
    rounds_to = dtype(act.gate) if dtype(x) is torch.float32 else dtype(x)
    if act.rounded not in (None, rounds_to):
        whose = "the gate" if dtype(x) is torch.float32 else "x"
        raise Stop("rounding", act.node, f"roundings to {rounds_to}, the dtype of {whose}", describe(act.node))
    points: set[Any] = {"output"} if rounded is not None or dtype(x) is torch.float32 else set()
    if act.rounded is not None:
        points.add("activation")
    return ActAndMul(act.kind, frozenset(points), None if rounded in (None, dtype(x)) else rounded)
