"""The Triton kernel: RMS norm, of a sum with a residual if there is one, and FP8 group quantisation in one pass.

A unit is usually a whole row of the hidden size, and the work of one program: its mean of squares is the one thing that
all its warps have to exchange. A long row is held in several pieces, so that one of 5120 elements issues no
instructions for the padding to 8192. The sum and the normed value are written only if somebody else reads them.
`fusionlib.kernels.units` defines units and segments; the comments give the shapes of block values: R rows, S segments,
E elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fusionlib.kernels.quant import _float32, _rounded
from fusionlib.kernels.units import (
    are_units,
    is_inside,
    load_token_factors,
    load_units,
    quantise_units,
    root_of_mean,
    rows_of_program,
    weight_offsets,
)


@triton.jit
def rms_norm_group_quant_kernel(
    x_ptr,
    residual_ptr,  # x_ptr if there is none; then never read
    weight_ptr,  # x_ptr if there is none; then never read
    token_factor_ptr,  # x_ptr if there is none; then never read
    codes_ptr,  # [tokens, hidden] contiguous
    scale_ptr,
    normed_ptr,  # [tokens, hidden] contiguous; codes_ptr if it is not requested
    sum_ptr,  # [tokens, hidden] contiguous; codes_ptr if it is not requested
    eps,
    floor,
    units,  # tokens * UNITS
    x_stride_token,
    x_stride_outer,
    x_stride_inner,
    residual_stride_token,
    residual_stride_outer,
    residual_stride_inner,
    token_factor_sequence,  # tokens of one sequence
    token_factor_stride_sequence,
    token_factor_stride_token,
    scale_stride_token,
    scale_stride_group,
    UNITS: tl.constexpr,  # units in a token
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    NORM_SEGMENTS: tl.constexpr,  # segments in a norm
    GROUP_SEGMENTS: tl.constexpr,  # segments in a group
    X_OUTER: tl.constexpr,
    X_INNER: tl.constexpr,
    RESIDUAL_OUTER: tl.constexpr,
    RESIDUAL_INNER: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_PER_TOKEN: tl.constexpr,  # weight is [hidden] rather than [norm_size]
    HAS_TOKEN_FACTOR: tl.constexpr,
    STORE_NORMED: tl.constexpr,
    STORE_SUM: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    ROUND_SUM: tl.constexpr,
    ROUND_NORM: tl.constexpr,
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
    PTX: tl.constexpr,  # use the inline PTX of fusionlib.kernels.ptx
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,  # no program has a row beyond the last unit
    WARPS: tl.constexpr,  # of the program if all of them share one norm and PTX can be used; else 0
    SEGMENT_IS_WARP: tl.constexpr,  # each segment is held by the threads of one warp
    PIECES: tl.constexpr,  # blocks of BLOCK_SEGMENTS segments that hold a unit
    BLOCK_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENT: tl.constexpr,
):
    """Add, norm and quantise ROWS units per program."""
    UNIT: tl.constexpr = SEGMENTS * SEGMENT
    NORM_SIZE: tl.constexpr = NORM_SEGMENTS * SEGMENT
    X_DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    SUM_DTYPE: tl.constexpr = residual_ptr.dtype.element_ty
    ROUNDED_DTYPE: tl.constexpr = X_DTYPE if OUT_DTYPE is None else OUT_DTYPE
    Y_DTYPE: tl.constexpr = ROUNDED_DTYPE if ROUND_OUTPUT else tl.float32

    row = rows_of_program(ROWS)
    element = tl.arange(0, BLOCK_SEGMENT)[None, None, :]
    known = are_units(row, units, EVEN)
    whole = known[:, None, None]
    # All loads come first: the compiler must not move one across a store, and a row's loads should all be on their way.
    if HAS_TOKEN_FACTOR:
        token_factor = load_token_factors(token_factor_ptr, row, known, token_factor_sequence,
                                          token_factor_stride_sequence, token_factor_stride_token, UNITS,
                                          Y_DTYPE)  # fmt: skip
    rows = ()
    residuals = ()
    weights = ()
    for piece in tl.static_range(PIECES):
        segment = piece * BLOCK_SEGMENTS + tl.arange(0, BLOCK_SEGMENTS)[None, :, None]
        inside = is_inside(segment, element, piece * BLOCK_SEGMENTS, SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT)
        mask = whole & inside  # [R, S, E]
        x = load_units(x_ptr, row, mask, x_stride_token, x_stride_outer, x_stride_inner, UNITS, X_OUTER, X_INNER,
                       SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT, piece * BLOCK_SEGMENTS)  # fmt: skip
        rows = rows + (x,)  # noqa: RUF005 (what Triton compiles)
        if HAS_RESIDUAL:
            residual = load_units(residual_ptr, row, mask, residual_stride_token, residual_stride_outer,
                                  residual_stride_inner, UNITS, RESIDUAL_OUTER, RESIDUAL_INNER, SEGMENTS, SEGMENT,
                                  BLOCK_SEGMENTS, BLOCK_SEGMENT, piece * BLOCK_SEGMENTS)  # fmt: skip
            residuals = residuals + (residual,)  # noqa: RUF005
        if HAS_WEIGHT:  # in the shape of x, for the reason given in `gated_norm`
            offset = weight_offsets(row, segment, element, UNITS, SEGMENTS, SEGMENT, NORM_SEGMENTS, WEIGHT_PER_TOKEN)
            offset = tl.broadcast_to(offset, mask.shape)
            weight = tl.load(weight_ptr + offset, mask=tl.broadcast_to(inside, mask.shape), other=0.0)
            weights = weights + (weight,)  # noqa: RUF005

    squares = tl.zeros([ROWS, BLOCK_SEGMENTS, BLOCK_SEGMENT], tl.float32)
    values = ()
    for piece in tl.static_range(PIECES):
        value = _float32(rows[piece], PTX)
        if HAS_RESIDUAL:
            value = _rounded(value + _float32(residuals[piece], PTX), SUM_DTYPE, ROUND_SUM, PTX)
        if STORE_SUM:  # while the threads wait for each other's squares
            segment = piece * BLOCK_SEGMENTS + tl.arange(0, BLOCK_SEGMENTS)[None, :, None]
            inside = is_inside(segment, element, piece * BLOCK_SEGMENTS, SEGMENTS, SEGMENT, BLOCK_SEGMENTS,
                               BLOCK_SEGMENT)  # fmt: skip
            offset = row.to(tl.int64)[:, None, None] * UNIT + segment * SEGMENT + element
            tl.store(sum_ptr + offset, value.to(SUM_DTYPE), mask=whole & inside)
        squares += value * value
        values = values + (value,)  # noqa: RUF005
    root = root_of_mean(squares, eps, NORM_SEGMENTS, SEGMENTS, NORM_SIZE, WARPS)

    for piece in tl.static_range(PIECES):
        segment = piece * BLOCK_SEGMENTS + tl.arange(0, BLOCK_SEGMENTS)[None, :, None]
        within = segment * SEGMENT + element  # [1, S, E]
        inside = is_inside(segment, element, piece * BLOCK_SEGMENTS, SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT)
        mask = whole & inside
        y = _rounded(values[piece] * root, X_DTYPE, ROUND_NORM, PTX)
        if HAS_WEIGHT:
            weight = _float32(weights[piece], PTX)
            if WEIGHT_OFFSET != 0:
                weight += WEIGHT_OFFSET
            y = y * weight
        y = _rounded(y, Y_DTYPE, ROUND_OUTPUT, PTX)
        if HAS_TOKEN_FACTOR:
            y = _rounded(y * token_factor, Y_DTYPE, ROUND_OUTPUT, PTX)
        quantise_units(y, row, mask, within, codes_ptr, scale_ptr, normed_ptr, floor, units, scale_stride_token,
                       scale_stride_group, UNITS, SEGMENTS, SEGMENT, GROUP_SEGMENTS, STORE_NORMED, Y_DTYPE, FP8_MAX,
                       FLOOR_ON, SCALE_RECIPROCAL, RECIPROCAL, UE8M0, PACKED, ROUND_SCALE, NAN_SCALE, PTX,
                       EVEN, SEGMENT_IS_WARP, BLOCK_SEGMENTS, BLOCK_SEGMENT, piece * BLOCK_SEGMENTS)  # fmt: skip
