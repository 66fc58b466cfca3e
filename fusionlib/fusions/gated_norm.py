"""The gated RMS norm: the output path of Gated DeltaNet attention and of the Mamba2 family."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from fusionlib.fusions import norm_product
from fusionlib.fusions.fusion import Calls, Fusion
from fusionlib.fusions.producer_ops import read_producer
from fusionlib.fusions.read_gated_norm import read_gated_norm
from fusionlib.match.graph import aten, numel, tensor_of
from fusionlib.match.reasons import Reason
from fusionlib.match.result import Reading, Trail
from fusionlib.op import GATED_NORM
from fusionlib.spec import GatedNorm, GroupQuant


class GatedNormQuant(Fusion):
    """norm(x) * weight * act(gate), or norm(x * act(gate)) * weight, before FP8 group quantisation."""

    name = "gated_norm"
    op = GATED_NORM
    reasons = (
        Reason(
            "not_gated_norm",
            "What is quantised is not the product of a gated RMS norm.",
            "Write it as norm(x) * weight * act(gate).",
        ),
        Reason(
            "rearranged",
            "The normed value is padded, cut, joined, repeated or reordered before it is quantised.",
            "Quantise the value as the norm leaves it, reshaped at most, and rearrange the codes and scales instead.",
        ),
        Reason(
            "activation",
            "The gate goes through an activation that is not silu or sigmoid, or through none.",
            "Use silu or sigmoid.",
        ),
        Reason(
            "gate_shape",
            "The gate is broadcast: it has fewer elements than the value.",
            "Expand it in the model, or apply it to the heads elsewhere.",
        ),
        *norm_product.REASONS,
    )

    def read(self, value: fx.Node, trail: Trail) -> Reading:
        """The gated norm whose value is `value`."""
        trail.add("normed", value)
        return read_producer(value, GatedNorm, trail) or read_gated_norm(value, trail)

    def problem(self, tensors: Mapping[str, torch.Tensor | None], spec: GatedNorm, quant: GroupQuant) -> str | None:
        """Why the op cannot run these tensors, or None."""
        x = tensors["x"]
        if tensors["weight"] is None and x is not None:
            bias = tensors["bias"]
            tensors = {**tensors, "weight": x.new_ones(spec.norm_size if bias is None else bias.numel())}
        return super().problem(tensors, spec, quant)

    def emit(
        self,
        calls: Calls,
        tensors: Mapping[str, fx.Node | None],
        spec: GatedNorm,
        quant: GroupQuant,
        wanted: frozenset[str],
    ) -> dict[str, fx.Node]:
        """One call of the op; a norm without a weight is multiplied by ones, which changes nothing."""
        x, bias = tensors["x"], tensors["bias"]
        if tensors["weight"] is None and x is not None:
            size = spec.norm_size if bias is None else numel(bias)
            ones = calls.call(aten.full.default, [size], 1.0, dtype=torch.float32, device=tensor_of(x).device)
            tensors = {**tensors, "weight": ones}
        return super().emit(calls, tensors, spec, quant, wanted)

    def spell(self, spec: GatedNorm) -> str:
        """The norm in one line."""
        order = "norm, gate" if spec.norm_before_gate else "gate, norm"
        return f"{order} ({spec.activation}, {spec.norm_size} elements, eps {spec.eps:g}, {spec.rounding_words})"
