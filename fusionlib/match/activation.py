"""Reads the activation of a gate, in every spelling that rounds once at most, at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import fx

from fusionlib.match.gelu import read_gelu, read_gelu_tanh
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
    numel,
    one_over,
    operands,
    peel_exact,
    same,
    with_literal,
)
from fusionlib.match.reasons import Stop
from fusionlib.match.sizes import equal
from fusionlib.spec import Activation as ActivationKind

#: The activations of a gated norm.
GATES: tuple[ActivationKind, ...] = ("silu", "sigmoid")

#: Elementwise activations that a gated norm has not, listed so that a refusal can name them.
OTHER_ACTIVATIONS = {
    aten.relu.default, aten.gelu.default, aten.tanh.default, aten.softplus.default, aten.hardswish.default,
    aten.hardsigmoid.default, aten.mish.default, aten.elu.default, aten.leaky_relu.default, aten.exp.default,
    aten.erf.default, aten.abs.default, aten.hardtanh.default, aten.clamp_min.default, aten.log_sigmoid_forward.default,
}  # fmt: skip


@dataclass(frozen=True)
class Activation:
    """An activation of `gate`; `rounded` is the 16-bit dtype its value is rounded to, if any."""

    kind: ActivationKind
    gate: fx.Node
    rounded: torch.dtype | None
    node: fx.Node


def read_activation(node: fx.Node, kinds: Iterable[ActivationKind] = GATES) -> Activation | None:
    """The activation of `kinds` that `node` computes, or None. Raises Stop for one that rounds inside."""
    top = peel_exact(node)
    inner, rounded = top, None
    if is_narrowing(top) and dtype(top) in NARROW:
        inner, rounded = peel_exact(input_of(top)), dtype(top)
    for kind in kinds:
        read = _READERS[kind](inner)
        if read is None:
            continue
        gate, inside = read
        for part in inside:
            _keep_float32(part, kind)
        if dtype(inner) in NARROW:
            # Only single operations reach this: spelled out in 16 bits, a part rounds and was stopped above.
            if rounded not in (None, dtype(inner)):
                raise _rounds(inner, kind)
            rounded = dtype(inner)
        return Activation(kind, peel_exact(gate), rounded, top)
    return None


def with_its_gate(act: Activation, operand: object) -> Activation | None:
    """silu, if `operand` is the z of z * sigmoid(z) that association took from its sigmoid; else None."""
    if act.kind != "sigmoid" or act.rounded is not None or not same(operand, act.gate):
        return None
    return Activation("silu", act.gate, None, act.node)


def is_activation(node: fx.Node) -> bool:
    """Whether `node` computes silu or sigmoid, also one that rounds inside and cannot be read."""
    try:
        return read_activation(node) is not None
    except Stop:
        return True


def _silu(node: fx.Node) -> tuple[fx.Node, list[fx.Node]] | None:
    """(gate, nodes whose value must not be rounded) of silu."""
    if is_call(node, aten.silu.default):
        return input_of(node), []
    if is_mul(node):
        for gate, other in (operands(node), operands(node)[::-1]):
            if not isinstance(gate, fx.Node) or not isinstance(other, fx.Node):
                continue
            read = _sigmoid(peel_exact(other))
            if read is not None and same(gate, read[0]) and equal(numel(gate), numel(node)):
                return gate, [peel_exact(other), *read[1]]
    if is_div(node) and isinstance(numerator := node.args[0], fx.Node):
        read = _one_plus_exp_neg(node.args[1])
        if read is not None and same(numerator, read[0]) and equal(numel(numerator), numel(node)):
            return read
    return None


def _sigmoid(node: fx.Node) -> tuple[fx.Node, list[fx.Node]] | None:
    if is_call(node, aten.sigmoid.default):
        return input_of(node), []
    return _one_plus_exp_neg(one_over(node))


_READERS: dict[ActivationKind, Callable[[fx.Node], tuple[fx.Node, list[fx.Node]] | None]] = {
    "silu": _silu,
    "sigmoid": _sigmoid,
    "gelu": read_gelu,
    "gelu_tanh": read_gelu_tanh,
}


def _one_plus_exp_neg(node: object) -> tuple[fx.Node, list[fx.Node]] | None:
    """(z, nodes) of 1 + exp(-z)."""
    if not isinstance(node, fx.Node) or not is_add(node := peel_exact(node)):
        return None
    pair = with_literal(node)
    exp = peel_exact(pair[0]) if pair is not None and pair[1] == 1.0 else None
    if not is_call(exp, aten.exp.default):
        return None
    negated = peel_exact(input_of(exp))
    if is_call(negated, aten.neg.default):
        return input_of(negated), [node, exp]
    scaled = with_literal(negated) if is_mul(negated) else None
    return (scaled[0], [node, exp]) if scaled is not None and scaled[1] == -1.0 else None


def _keep_float32(node: fx.Node, kind: str) -> None:
    if dtype(node) in NARROW:
        raise _rounds(node, kind)


def _rounds(node: fx.Node, kind: str) -> Stop:
    return Stop("rounding", node, f"{kind} computed in float32 and rounded once at most", describe(node))
