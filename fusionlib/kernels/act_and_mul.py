"""The Triton kernel: x * act(gate) and FP8 group quantisation in one pass.

A unit is a group: there is no mean. x and gate may be the two halves of one projection, in any layout that
`row_layout` can express. `fusionlib.kernels.units` defines units; the comments give the shapes of block values: R rows,
S segments (here one), E elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fusionlib.kernels.activation import activated
from fusionlib.kernels.quant import _float32, _rounded
from fusionlib.kernels.units import are_units, load_units, quantise_units, rows_of_program


@triton.jit
def act_and_mul_group_quant_kernel(
    x_ptr,
    gate_ptr,
    codes_ptr,  # [tokens, hidden] contiguous
    scale_ptr,
    value_ptr,  # [tokens, hidden] contiguous; codes_ptr if it is not requested
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
    UNITS: tl.constexpr,  # groups in a token
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    GROUP_SEGMENTS: tl.constexpr,
    X_OUTER: tl.constexpr,
    X_INNER: tl.constexpr,
    GATE_OUTER: tl.constexpr,
    GATE_INNER: tl.constexpr,
    STORE_VALUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROUND_ACTIVATION: tl.constexpr,
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
    SEGMENT_IS_WARP: tl.constexpr,  # each segment is held by the threads of one warp
    BLOCK_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENT: tl.constexpr,
):
    """Activate, multiply and quantise ROWS units per program."""
    X_DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    ACT_DTYPE: tl.constexpr = gate_ptr.dtype.element_ty if tl.float32 == X_DTYPE else X_DTYPE
    ROUNDED_DTYPE: tl.constexpr = X_DTYPE if OUT_DTYPE is None else OUT_DTYPE
    Y_DTYPE: tl.constexpr = ROUNDED_DTYPE if ROUND_OUTPUT else tl.float32

    segment = tl.arange(0, BLOCK_SEGMENTS)[None, :, None]
    element = tl.arange(0, BLOCK_SEGMENT)[None, None, :]
    within = segment * SEGMENT + element  # [1, S, E]
    inside = (segment < SEGMENTS) & (element < SEGMENT)  # always true if the group is a power of two

    row = rows_of_program(ROWS)
    mask = are_units(row, units, EVEN)[:, None, None] & inside
    gate = load_units(gate_ptr, row, mask, gate_stride_token, gate_stride_outer, gate_stride_inner, UNITS, GATE_OUTER,
                      GATE_INNER, SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT)  # fmt: skip
    x = load_units(x_ptr, row, mask, x_stride_token, x_stride_outer, x_stride_inner, UNITS, X_OUTER, X_INNER,
                   SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT)  # fmt: skip
    act = activated(_float32(gate, PTX), ACTIVATION, EXACT, PTX)
    act = _rounded(act, ACT_DTYPE, ROUND_ACTIVATION, PTX)
    y = _rounded(_float32(x, PTX) * act, Y_DTYPE, ROUND_OUTPUT, PTX)
    quantise_units(y, row, mask, within, codes_ptr, scale_ptr, value_ptr, floor, units, scale_stride_token,
                   scale_stride_group, UNITS, SEGMENTS, SEGMENT, GROUP_SEGMENTS, STORE_VALUE, Y_DTYPE, FP8_MAX,
                   FLOOR_ON, SCALE_RECIPROCAL, RECIPROCAL, UE8M0, PACKED, ROUND_SCALE, NAN_SCALE, PTX,
                   EVEN, SEGMENT_IS_WARP, BLOCK_SEGMENTS, BLOCK_SEGMENT)  # fmt: skip
