"""The Triton kernel of the quantisation alone: the second of the two kernels that a fusion replaces."""

from __future__ import annotations

import triton
import triton.language as tl

from fusionlib.kernels.quant import _float32, _group_amax, _group_scale, _quotient, _store_scale, _to_fp8
from fusionlib.kernels.units import are_units, rows_of_program


@triton.jit
def group_quant_kernel(
    y_ptr,
    codes_ptr,  # [tokens, hidden] contiguous
    scale_ptr,
    floor,
    units,  # tokens * GROUPS
    y_stride_token,
    scale_stride_token,
    scale_stride_group,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    FP8_MAX: tl.constexpr,
    FLOOR_ON: tl.constexpr,
    SCALE_RECIPROCAL: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    UE8M0: tl.constexpr,
    PACKED: tl.constexpr,
    ROUND_SCALE: tl.constexpr,
    NAN_SCALE: tl.constexpr,
    PTX: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    GROUP_IS_WARP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
):
    """Quantisation alone: what a serving engine's opaque quantisation op does after a separate norm."""
    row = rows_of_program(ROWS)
    element = tl.arange(0, BLOCK_GROUP)[None, None, :]
    token = (row // GROUPS).to(tl.int64)[:, None, None]
    group = (row % GROUPS)[:, None, None]
    known = are_units(row, units, EVEN)
    mask = known[:, None, None] & (element < GROUP)
    y = tl.load(y_ptr + token * y_stride_token + group * GROUP + element, mask=mask, other=0.0)
    y = _float32(y, PTX)  # [R, 1, E]
    Y_DTYPE: tl.constexpr = y_ptr.dtype.element_ty
    amax = _group_amax(y, SEGMENT_IS_WARP=GROUP_IS_WARP)
    scale = _group_scale(amax, floor, Y_DTYPE, FP8_MAX, FLOOR_ON, SCALE_RECIPROCAL, ROUND_SCALE, UE8M0, NAN_SCALE, PTX)
    quotient = _quotient(y, scale[:, None, None], RECIPROCAL, UE8M0, FLOOR_ON, PTX, Y_DTYPE, ROUND_SCALE)
    out_offset = row.to(tl.int64)[:, None, None] * GROUP + element
    tl.store(codes_ptr + out_offset, _to_fp8(quotient, codes_ptr.dtype.element_ty, FP8_MAX, PTX), mask=mask)
    _store_scale(scale_ptr, scale, (row // GROUPS).to(tl.int64), row % GROUPS, scale_stride_token, scale_stride_group,
                 known, GROUPS, PACKED, PTX)  # fmt: skip
