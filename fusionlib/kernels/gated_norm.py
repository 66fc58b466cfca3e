"""The Triton kernel: gated RMS norm and FP8 group quantisation of one unit per row, in one pass over memory.

A *unit* is what one kernel row covers: the smallest number of elements that holds whole norms and whole groups,
lcm(norm_size, group_size). It consists of SEGMENTS segments of SEGMENT = gcd(norm_size, group_size) elements, so that
one code path serves all cases; a norm is NORM_SEGMENTS of them and a group GROUP_SEGMENTS:

    norm == group   one segment; both reductions run over it                      (Gated DeltaNet)
    norm >  group   the mean runs over all segments, amax over each               (the Mamba2 family)
    norm <  group   the mean runs over each segment, amax over all                (64-wide heads, per-token)
    else            both run over runs of segments: three for a head of 96, four for a group of 128

For each element, x and gate are read once and the code is written once. The weight is loaded before the first reduction
to hide its latency. Nothing here knows about graphs or modules; `fusionlib.op` decides which specs and tensors are
supported. Comments give the shapes of block values: R rows, S segments, E elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from triton.language.extra import libdevice

from fusionlib.kernels import ptx
from fusionlib.kernels.quant import (
    _float32,
    _group_amax,
    _group_scale,
    _quotient,
    _rounded,
    _store_scale,
    _to_fp8,
    run_of_segment,
)


@dataclass(frozen=True)
class LaunchConfig:
    """How the work is divided: each program has `num_warps` warps and handles `rows` units."""

    rows: int
    num_warps: int


def choose_launch(units: int, unit: int, threads_per_warp: int = 32) -> LaunchConfig:
    """The launch configuration for `units` units of `unit` elements on a GPU with `threads_per_warp` lanes.

    From `fusionlib bench --sweep` on one H200 (torch 2.11, Triton 3.6; bf16 to e4m3, 64 to 32768 tokens of 32 heads of
    128), within 1 % of the best of some twenty configurations at every size:

    - up to 8192 units (256 tokens of 32 heads): four elements per thread and one row per warp, because the length of
      one row's dependency chain dominates;
    - above that: eight elements per thread, so that loads are 16 bytes.

    Longer units use eight elements per thread, and sixteen in larger calls: above 65536 x 128 elements for units of
    1024 (the Mamba2 family), from 129 units for units of 4096 (per token). These are within 1 % too. Not measured:
    longer units, and wavefronts of 64, which get half as many warps.
    """
    block = triton.next_power_of_2(unit)
    elements = units * block // 128
    if unit > 512:
        per_thread = 8 if units <= 128 or (block < 4096 and elements <= 65536) else 16
        rows, num_warps = 1, min(16, block // (32 * per_thread))
    else:
        rows, num_warps = max(1, 1024 // block), 8 if elements <= 8192 else 4
    return LaunchConfig(rows, max(1, num_warps * 32 // threads_per_warp))


@triton.jit
def _activated(gate, SILU: tl.constexpr, EXACT: tl.constexpr, PTX: tl.constexpr):
    # An approximate division (2 ulp, results below 2^-126 become zero) is enough where the output is rounded to bf16,
    # or to FP8 with a floor. EXACT is for scales without a floor, and for the interpreter, which has no device library.
    if PTX and not EXACT:
        activated = ptx.sigmoid(gate)
        if SILU:
            activated = gate * activated
    else:
        numerator = gate if SILU else tl.full(gate.shape, 1.0, tl.float32)
        denominator = 1.0 + tl.exp(-gate)
        activated = numerator / denominator if EXACT else libdevice.fast_dividef(numerator, denominator)
    return activated


@triton.jit
def rows_of_program(ROWS: tl.constexpr):
    """The rows [R] of this program.

    Unsigned, so that a division by a power of two is a shift: the first load depends on the row's token and unit.
    """
    return (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.uint32)


@triton.jit
def are_units(row, units, EVEN: tl.constexpr):
    """Which rows are units. EVEN tells the compiler that all are: masked loads would first set registers to 0."""
    return row == row if EVEN else row < units


@triton.jit
def _run_sum(value, RUN: tl.constexpr, SEGMENTS: tl.constexpr):
    """Sum of [R, S, E] over each run of RUN segments; broadcastable against [R, S, E]."""
    total = tl.sum(value, axis=2)  # [R, S]
    if RUN == SEGMENTS:
        total = tl.sum(total, axis=1)[:, None]
    elif RUN != 1:
        run = run_of_segment(total.shape[1], RUN)
        each = total
        for i in range(SEGMENTS // RUN):
            of_run = tl.sum(tl.where(run == i, each, 0.0), axis=1)
            total = tl.where(run == i, of_run[:, None], total)
    return total[:, :, None]


@triton.jit
def _element_offsets(
    unit,  # [R, 1, 1]
    segment,  # [1, S, 1]
    element,  # [1, 1, E]
    stride_outer,
    stride_inner,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Offsets of the elements [R, S, E] of units, relative to their token's first element.

    A token's row consists of runs of INNER contiguous elements, `stride_inner` apart, in blocks of OUTER elements that
    are `stride_outer` apart (`row_layout.RowLayout`). It is cut into the largest pieces that never cross a run, and the
    divisions are on pieces: multiplying a piece index by a constant keeps the alignment that 16-byte loads need, which
    a remainder of elements would lose.
    """
    UNIT: tl.constexpr = SEGMENTS * SEGMENT
    PIECE: tl.constexpr = UNIT if INNER % UNIT == 0 else (SEGMENT if INNER % SEGMENT == 0 else 1)
    if PIECE == UNIT:
        piece = unit
        rest = segment * SEGMENT + element
    elif PIECE == SEGMENT:
        piece = unit * SEGMENTS + segment
        rest = element
    else:
        piece = unit * UNIT + segment * SEGMENT + element
        rest = 0
    offset = (piece % (INNER // PIECE)) * PIECE + rest
    offset += ((piece % (OUTER // PIECE)) // (INNER // PIECE)) * stride_inner
    offset += (piece // (OUTER // PIECE)) * stride_outer
    return offset


@triton.jit
def load_units(
    ptr,
    row,  # [R]
    mask,  # [R, S, E]
    stride_token,
    stride_outer,
    stride_inner,
    UNITS: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENT: tl.constexpr,
):
    """The elements [R, S, E] of units `row`, in the dtype they are stored in."""
    segment = tl.arange(0, BLOCK_SEGMENTS)[None, :, None]
    element = tl.arange(0, BLOCK_SEGMENT)[None, None, :]
    token = (row // UNITS).to(tl.int64)[:, None, None]  # 64 bits: token * stride exceeds 2^31 in a large prefill
    unit = (row % UNITS)[:, None, None]
    offset = _element_offsets(unit, segment, element, stride_outer, stride_inner, OUTER, INNER, SEGMENTS, SEGMENT)
    return tl.load(ptr + token * stride_token + offset, mask=mask, other=0.0)


@triton.jit
def weight_offsets(
    row,  # [R]
    segment,  # [1, S, 1]
    element,  # [1, 1, E]
    UNITS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    NORM_SEGMENTS: tl.constexpr,
    WEIGHT_PER_TOKEN: tl.constexpr,
):
    """Offsets of the weights of the elements of units `row`."""
    if WEIGHT_PER_TOKEN:
        offset = (row % UNITS)[:, None, None] * (SEGMENTS * SEGMENT) + segment * SEGMENT + element
    elif NORM_SEGMENTS == SEGMENTS:
        offset = segment * SEGMENT + element
    elif NORM_SEGMENTS == 1:
        offset = element
    else:
        offset = (segment % NORM_SEGMENTS) * SEGMENT + element
    return offset


@triton.jit
def store_unit_scales(
    scale_ptr,
    scale,  # [R] where the unit is one group, else [R, S], the same for each segment of a group
    row,  # [R]
    units,
    stride_token,
    stride_group,
    UNITS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    GROUP_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENTS: tl.constexpr,
    PACKED: tl.constexpr,
    PTX: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Store the scales of units `row`."""
    IN_UNIT: tl.constexpr = SEGMENTS // GROUP_SEGMENTS  # groups per unit
    known = are_units(row, units, EVEN)
    if IN_UNIT == 1:
        token, group = row // UNITS, row % UNITS
    else:
        in_unit = tl.arange(0, BLOCK_SEGMENTS)[None, :]
        known = known[:, None] & (in_unit < SEGMENTS)
        if GROUP_SEGMENTS != 1:
            known = known & (in_unit % GROUP_SEGMENTS == 0)
            in_unit = in_unit // GROUP_SEGMENTS
        token = (row // UNITS)[:, None]
        group = (row % UNITS)[:, None] * IN_UNIT + in_unit
    GROUPS: tl.constexpr = UNITS * IN_UNIT
    _store_scale(scale_ptr, scale, token.to(tl.int64), group, stride_token, stride_group, known, GROUPS, PACKED, PTX)


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
    SILU: tl.constexpr,
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
    EXACT: tl.constexpr,
    PTX: tl.constexpr,  # use the inline PTX of fusionlib.kernels.ptx
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,  # no program has a row beyond the last unit
    ROW_IS_WARP: tl.constexpr,  # each unit is held by the threads of one warp
    BLOCK_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENT: tl.constexpr,
):
    """Norm, gate and quantise ROWS units per program; the module's docstring defines the terms."""
    UNIT: tl.constexpr = SEGMENTS * SEGMENT
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
    activated = _activated(_float32(gate, PTX), SILU, EXACT, PTX)
    activated = _rounded(activated, X_DTYPE, ROUND_ACTIVATION, PTX)
    if not NORM_BEFORE_GATE:
        value = _rounded(value * activated, X_DTYPE, ROUND_GATE, PTX)
    squares = _run_sum(value * value, NORM_SEGMENTS, SEGMENTS)
    if NORM_SIZE & (NORM_SIZE - 1) == 0:
        mean = squares * (1.0 / NORM_SIZE)  # exact: the reciprocal is a power of two
    else:
        mean = tl.div_rn(squares, tl.full(squares.shape, NORM_SIZE, tl.float32))
    value = _rounded(value * tl.rsqrt(mean + eps), X_DTYPE, ROUND_NORM, PTX)
    value = value * weight
    if HAS_BIAS:
        value += bias
    if NORM_BEFORE_GATE:
        value = _rounded(value, X_DTYPE, ROUND_WEIGHT, PTX) * activated
    y = _rounded(value, Y_DTYPE, ROUND_OUTPUT, PTX)
    if BLOCK_SEGMENTS != SEGMENTS or BLOCK_SEGMENT != SEGMENT:
        y = tl.where(inside, y, 0.0)  # with eps = 0 the padding's own norm is 0 * inf

    amax = _group_amax(y, GROUP_SEGMENTS, SEGMENTS, ROW_IS_WARP)
    scale = _group_scale(amax, floor, Y_DTYPE, FP8_MAX, FLOOR_ON, SCALE_RECIPROCAL, ROUND_SCALE, UE8M0, PTX)
    divisor = scale[:, None, None] if GROUP_SEGMENTS == SEGMENTS else scale[:, :, None]
    quotient = _quotient(y, divisor, RECIPROCAL, UE8M0, FLOOR_ON, PTX, Y_DTYPE, ROUND_SCALE)
    out_offset = row.to(tl.int64)[:, None, None] * UNIT + within
    # Eight codes per thread at a time, though sixteen would fit in one store: the layout follows the longest access,
    # and sixteen elements would be two loads of x, each skipping every other 16 bytes.
    codes_pointer = codes_ptr + out_offset
    if UNIT % 8 == 0 and SEGMENT % 8 == 0:
        codes_pointer = tl.multiple_of(codes_pointer, (8, 8, 8))
    tl.store(codes_pointer, _to_fp8(quotient, codes_ptr.dtype.element_ty, FP8_MAX, PTX), mask=mask)
    if STORE_NORMED:
        tl.store(normed_ptr + out_offset, y.to(Y_DTYPE), mask=mask)

    store_unit_scales(scale_ptr, scale, row, units, scale_stride_token, scale_stride_group, UNITS, SEGMENTS,
                      GROUP_SEGMENTS, BLOCK_SEGMENTS, PACKED, PTX, EVEN)  # fmt: skip


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
    PTX: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    ROW_IS_WARP: tl.constexpr,
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
    amax = _group_amax(y, ROW_IS_WARP=ROW_IS_WARP)
    scale = _group_scale(amax, floor, Y_DTYPE, FP8_MAX, FLOOR_ON, SCALE_RECIPROCAL, ROUND_SCALE, UE8M0, PTX)
    quotient = _quotient(y, scale[:, None, None], RECIPROCAL, UE8M0, FLOOR_ON, PTX, Y_DTYPE, ROUND_SCALE)
    out_offset = row.to(tl.int64)[:, None, None] * GROUP + element
    tl.store(codes_ptr + out_offset, _to_fp8(quotient, codes_ptr.dtype.element_ty, FP8_MAX, PTX), mask=mask)
    _store_scale(scale_ptr, scale, (row // GROUPS).to(tl.int64), row % GROUPS, scale_stride_token, scale_stride_group,
                 known, GROUPS, PACKED, PTX)  # fmt: skip
