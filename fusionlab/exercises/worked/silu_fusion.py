"""The capstone as a fusion of the library's own pass: silu(gate) * up and FP8 group quantisation."""

from __future__ import annotations

import torch
from torch import fx

from fusionlab.exercises.worked.silu_and_mul import SiluAndMul, silu_and_mul
from fusionlib.fusions import (
    Fusion,
    GroupQuant,
    NotMine,
    QuantOp,
    Reading,
    Reason,
    Stop,
    Trail,
    describe,
    dtype,
    equal,
    find_root,
    is_mul,
    is_narrowing,
    numel,
    operands,
    peel_exact,
    places_problem,
    read_activation,
    rows_problem,
)


def _value(gate: torch.Tensor, up: torch.Tensor, spec: SiluAndMul) -> torch.Tensor:
    return silu_and_mul(gate.flatten(1), up.flatten(1), spec).contiguous()


def _problem(gate: torch.Tensor, up: torch.Tensor, spec: SiluAndMul, quant: GroupQuant) -> str | None:
    return rows_problem({"gate": gate, "up": up}, quant, spec.output_dtype(gate.dtype)) or places_problem(gate, up)


class SiluAndMulQuant(Fusion):
    """silu(gate) * up before FP8 group quantisation: both halves of an MLP's first projection, or two tensors."""

    name = "silu_and_mul"
    op = QuantOp(
        "capstone::silu_and_mul_group_quant", "Tensor gate, Tensor up", SiluAndMul, value=_value, problem=_problem
    )
    reasons = (
        Reason(
            "up",
            "What silu(gate) is multiplied with is no tensor of gate's dtype with an element for each of gate's.",
            "Multiply two halves of one projection, or two tensors of one dtype and shape.",
        ),
    )

    def read(self, value: fx.Node, trail: Trail) -> Reading:
        """Gate, up and the rounding points of the product whose value is `value`."""
        product, rounded = peel_exact(value), dtype(value)
        if is_narrowing(product):
            product = peel_exact(product.args[0])
        if not is_mul(product):
            raise NotMine
        for left, right in (operands(product), operands(product)[::-1]):
            act = read_activation(left) if isinstance(left, fx.Node) else None
            if act is None or act.kind != "silu" or not isinstance(right, fx.Node):
                continue
            if find_root(right) is not None:
                raise NotMine  # a norm and its gate
            gate, up = act.gate, peel_exact(right)
            trail.add("gate", gate)
            trail.add("up", up)
            if dtype(up) != dtype(gate) or not (equal(numel(up), numel(gate)) and equal(numel(up), numel(value))):
                raise Stop("up", up, f"a tensor like the gate, {describe(gate)}", describe(up))
            if act.rounded not in (None, dtype(gate)) or rounded not in (torch.float32, dtype(gate)):
                raise Stop("rounding", product, f"roundings to {dtype(gate)}, the dtype of gate", describe(value))
            spec = SiluAndMul(round_activation=act.rounded is not None, round_output=rounded == dtype(gate))
            return Reading({"gate": gate, "up": up}, spec)
        raise NotMine
