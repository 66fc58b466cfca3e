"""Readers of the opaque FP8 quantisation ops of torchao 0.18, by name: torchao itself is never imported.

Read: `torchao::quantize_affine_float8_non_decomposed` (quantization/quant_primitives.py). It divides by a scale that
the graph computes, clamps and casts; `choose_scale_float8`, which makes that scale, is decomposed by Inductor and read
as plain operations. Both return their results: neither writes into an argument.

Seen and refused, since no `GroupQuant` can express them: ops that multiply by fp8_max / amax and return that factor or
its reciprocal, which rounds differently from a division by the scale. They are `triton::quantize_fp8_row` of MSLK
(mslk/quantize/triton/fp8_quantize.py), which torchao's Float8Tensor calls per row if MSLK is installed, and
`torchao::triton_fp8_rowwise_2d_scale_and_cast` (prototype/moe_training/kernels/float8_rowwise.py).

Not seen: `torchao::triton_fp8_blockwise_act_quant_*` multiply the same way, but are no longer ops when a pass runs,
since torch.compile looks inside a `triton_op`. The mxfp8 and nvfp4 ops store formats other than FP8 codes with float32
scales. The `*_3d_*`, `*_transposed_*`, `*_rhs` and `*_grouped_*` ops quantise weights, gradients or columns.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from fusionlib.match.opaque import OpaqueCast, register_quant_op
from fusionlib.match.reasons import Stop

_BY_PRODUCT = ("triton::quantize_fp8_row", "torchao::triton_fp8_rowwise_2d_scale_and_cast")


def _read_affine(arguments: dict[str, Any]) -> OpaqueCast:
    return OpaqueCast(arguments["tensor"], arguments["scale"])


def _refuse_product(arguments: dict[str, Any]) -> OpaqueCast:
    value = next(argument for argument in arguments.values() if isinstance(argument, fx.Node))
    raise Stop("quant_division", value, "an op that divides by the scale", "one that multiplies by fp8_max / amax")


def register_torchao() -> None:
    """Register the readers; the names of missing ops never occur in a graph."""
    register_quant_op("torchao::quantize_affine_float8_non_decomposed", _read_affine)
    for name in _BY_PRODUCT:
        register_quant_op(name, _refuse_product)
