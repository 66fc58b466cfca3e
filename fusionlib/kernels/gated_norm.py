"""The Triton kernel: gated RMS norm and FP8 group quantisation, in one pass over memory.

For each element, x and gate are read once and the code is written once. The weight is loaded before the first reduction
to hide its latency. `fusionlib.kernels.units` defines units and segments; the comments give the shapes of block values:
R rows, S segments, E elements. Nothing here knows about graphs or modules; `fusionlib.op` decides which specs and
tensors are supported.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fusionlib.kernels.activation import activated
from fusionlib.kernels.quant import _float32, _rounded
from fusionlib.kernels.units import are_units, load_units, quantise_units, root_of_mean, rows_of_program, weight_offsets


@triton.jit
def rms_norm_gated_group_quant_kernel(
    x_ptr,
    gate_ptr,
    weight_ptr,
    bias_ptr,  # x_ptr if there is no bias; then never read
    codes_ptr,  # [tokens, hidden] contiguous
    scale_ptr,
    normed_ptr,  # [tokens, hidden] contiguous; codes_ptr if it is not requested
    eps,
    floor,
    units,  # tokens * UNITS
    x_stride_token,
    x_stride_outer,
    x_stride_inner,
    gate_stride_token,
    gate_stride_outer,
    gate_stride_inner,
    scale_stride_token,
    scale_stride_group,
    UNITS: tl.constexpr,  # units in a token
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    NORM_SEGMENTS: tl.constexpr,  # segments in a norm
    GROUP_SEGMENTS: tl.constexpr,  # segments in a group
    X_OUTER: tl.constexpr,
    X_INNER: tl.constexpr,
    GATE_OUTER: tl.constexpr,
    GATE_INNER: tl.constexpr,
    WEIGHT_PER_TOKEN: tl.constexpr,  # weight is [hidden] rather than [norm_size]
    HAS_BIAS: tl.constexpr,
    STORE_NORMED: tl.constexpr,
    ACTIVATION: tl.constexpr,  # "silu" or "sigmoid"
    NORM_BEFORE_GATE: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    ROUND_ACTIVATION: tl.constexpr,
    ROUND_GATE: tl.constexpr,
    ROUND_NORM: tl.constexpr,
    ROUND_WEIGHT: tl.constexpr,
    ROUND_OUTPUT: tl.constexpr,
    OUT_DTYPE: tl.constexpr,  # what the output is rounded to; None for x's dtype
    FP8_MAX: tl.constexpr,
    FLOOR_ON: tl.constexpr,
    SCALE_RECIPROCAL: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    UE8M0: tl.constexpr,
    PACKED: tl.constexpr,
    ROUND_SCALE: tl.constexpr,
    NAN_SCALE: tl.constexpr,
    EXACT: tl.constexpr,
    PTX: tl.constexpr,  # use the inline PTX of fusionlib.kernels.ptx
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,  # no program has a row beyond the last unit
    WARPS: tl.constexpr,  # of the program if all of them share one norm and PTX can be used; else 0
    SEGMENT_IS_WARP: tl.constexpr,  # each segment is held by the threads of one warp
    BLOCK_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENT: tl.constexpr,
):
    """Norm, gate and quantise ROWS units per program; the module's docstring defines the terms."""
    NORM_SIZE: tl.constexpr = NORM_SEGMENTS * SEGMENT
    X_DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    ROUNDED_DTYPE: tl.constexpr = X_DTYPE if OUT_DTYPE is None else OUT_DTYPE
    Y_DTYPE: tl.constexpr = ROUNDED_DTYPE if ROUND_OUTPUT else tl.float32

    segment = tl.arange(0, BLOCK_SEGMENTS)[None, :, None]
    element = tl.arange(0, BLOCK_SEGMENT)[None, None, :]
    within = segment * SEGMENT + element  # [1, S, E]
    inside = (segment < SEGMENTS) & (element < SEGMENT)  # always true if all sizes are powers of two

    row = rows_of_program(ROWS)
    mask = are_units(row, units, EVEN)[:, None, None] & inside
    x = load_units(x_ptr, row, mask, x_stride_token, x_stride_outer, x_stride_inner, UNITS, X_OUTER, X_INNER,
                   SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT)  # fmt: skip
    gate = load_units(gate_ptr, row, mask, gate_stride_token, gate_stride_outer, gate_stride_inner, UNITS, GATE_OUTER,
                      GATE_INNER, SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT)  # fmt: skip
    weight_offset = weight_offsets(row, segment, element, UNITS, SEGMENTS, SEGMENT, NORM_SEGMENTS, WEIGHT_PER_TOKEN)
    # Loaded in the shape of x: a smaller tensor would get a different layout, and x would have to be converted
    # to it through shared memory.
    weight_offset = tl.broadcast_to(weight_offset, mask.shape)
    weight_mask = tl.broadcast_to(inside, mask.shape)
    weight = _float32(tl.load(weight_ptr + weight_offset, mask=weight_mask, other=0.0), PTX)
    if WEIGHT_OFFSET != 0:
        weight += WEIGHT_OFFSET
    if HAS_BIAS:
        bias = tl.load(bias_ptr + weight_offset, mask=weight_mask, other=0.0).to(tl.float32)

    value = _float32(x, PTX)
    act = activated(_float32(gate, PTX), ACTIVATION, EXACT, PTX)
    act = _rounded(act, X_DTYPE, ROUND_ACTIVATION, PTX)
    if not NORM_BEFORE_GATE:
        value = _rounded(value * act, X_DTYPE, ROUND_GATE, PTX)
    value = _rounded(
        value * root_of_mean(value * value, eps, NORM_SEGMENTS, SEGMENTS, NORM_SIZE, WARPS), X_DTYPE, ROUND_NORM, PTX
    )
    value = value * weight
    if HAS_BIAS:
        value += bias
    if NORM_BEFORE_GATE:
        value = _rounded(value, X_DTYPE, ROUND_WEIGHT, PTX) * act
    y = _rounded(value, Y_DTYPE, ROUND_OUTPUT, PTX)
    quantise_units(y, row, mask, within, codes_ptr, scale_ptr, normed_ptr, floor, units, scale_stride_token,
                   scale_stride_group, UNITS, SEGMENTS, SEGMENT, GROUP_SEGMENTS, STORE_NORMED, Y_DTYPE, FP8_MAX,
                   FLOOR_ON, SCALE_RECIPROCAL, RECIPROCAL, UE8M0, PACKED, ROUND_SCALE, NAN_SCALE, PTX,
                   EVEN, SEGMENT_IS_WARP, BLOCK_SEGMENTS, BLOCK_SEGMENT)  # fmt: skip
