"""Device code over units: addressing, the mean of squares, and what every kernel does with the values it computed.

A *unit* is what one kernel row covers: the smallest number of elements that holds whole runs and whole groups,
lcm(run, group_size), where a run is what one mean is taken over, or a group if there is no mean. It consists of
SEGMENTS segments of SEGMENT = gcd(run, group_size) elements, so that one code path serves all cases; a norm is
NORM_SEGMENTS of them and a group GROUP_SEGMENTS:

    norm == group   one segment; both reductions run over it                      (Gated DeltaNet)
    norm >  group   the mean runs over all segments, amax over each               (Mamba2, an RMS norm of a whole row)
    norm <  group   the mean runs over each segment, amax over all                (64-wide heads, per-token)
    else            both run over runs of segments: three for a head of 96, four for a group of 128

Comments give the shapes of block values: R rows, S segments, E elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fusionlib.kernels import ptx
from fusionlib.kernels.quant import _group_amax, _group_scale, _quotient, _store_scale, _to_fp8, run_of_segment


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
def is_inside(
    segment,  # [1, S, 1]
    element,  # [1, 1, E]
    FIRST: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENT: tl.constexpr,
):
    """Which elements [1, S, E] of a block that begins with segment FIRST belong to the unit."""
    if FIRST + BLOCK_SEGMENTS <= SEGMENTS and BLOCK_SEGMENT == SEGMENT:
        inside = (segment == segment) & (element == element)  # known to the compiler: loads without a mask
    else:
        inside = (segment < SEGMENTS) & (element < SEGMENT)
    return inside


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
def root_of_mean(
    squares,  # [R, S, E]
    eps,
    NORM_SEGMENTS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    NORM_SIZE: tl.constexpr,
    WARPS: tl.constexpr,  # of the program if all of them share one norm and PTX can be used; else 0
):
    """rsqrt(sum of squares / NORM_SIZE + eps) of each norm; broadcastable against [R, S, E]."""
    if WARPS:
        root = ptx.block_root_of_mean(squares, eps, squares.numel // (32 * WARPS), WARPS, NORM_SIZE)
    else:
        squares = _run_sum(squares, NORM_SEGMENTS, SEGMENTS)
        if NORM_SIZE & (NORM_SIZE - 1) == 0:
            mean = squares * (1.0 / NORM_SIZE)  # exact: the reciprocal is a power of two
        else:
            mean = tl.div_rn(squares, tl.full(squares.shape, NORM_SIZE, tl.float32))
        root = tl.rsqrt(mean + eps)
    return root


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
    FIRST: tl.constexpr = 0,
):
    """The elements [R, S, E] of units `row` from segment FIRST on, in the dtype they are stored in."""
    segment = FIRST + tl.arange(0, BLOCK_SEGMENTS)[None, :, None]
    element = tl.arange(0, BLOCK_SEGMENT)[None, None, :]
    token = (row // UNITS).to(tl.int64)[:, None, None]  # 64 bits: token * stride exceeds 2^31 in a large prefill
    unit = (row % UNITS)[:, None, None]
    offset = _element_offsets(unit, segment, element, stride_outer, stride_inner, OUTER, INNER, SEGMENTS, SEGMENT)
    return tl.load(ptr + token * stride_token + offset, mask=mask, other=0.0)


@triton.jit
def load_token_factors(
    ptr,
    row,  # [R]
    known,  # [R]
    sequence,  # tokens of one sequence
    stride_sequence,
    stride_token,
    UNITS: tl.constexpr,
    Y_DTYPE: tl.constexpr,  # of the value that is multiplied
):
    """What the tokens of units `row` are multiplied by, [R, 1, 1] in float32.

    As in PyTorch's promotion, an integer takes the dtype of the value, and a narrower or wider float keeps its own.
    """
    token = (row // UNITS).to(tl.int32)
    offset = (token // sequence).to(tl.int64) * stride_sequence + (token % sequence).to(tl.int64) * stride_token
    factor = tl.load(ptr + offset, mask=known, other=0)
    if ptr.dtype.element_ty.is_floating():
        factor = factor.to(tl.float32)
    else:
        factor = factor.to(tl.float32).to(Y_DTYPE).to(tl.float32)
    return factor[:, None, None]


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
    FIRST: tl.constexpr = 0,
):
    """Store the scales of units `row`, of their segments from FIRST on."""
    IN_UNIT: tl.constexpr = SEGMENTS // GROUP_SEGMENTS  # groups per unit
    known = are_units(row, units, EVEN)
    if IN_UNIT == 1:
        token, group = row // UNITS, row % UNITS
    else:
        in_unit = FIRST + tl.arange(0, BLOCK_SEGMENTS)[None, :]
        known = known[:, None] & (in_unit < SEGMENTS)
        if GROUP_SEGMENTS != 1:
            known = known & (in_unit % GROUP_SEGMENTS == 0)
            in_unit = in_unit // GROUP_SEGMENTS
        token = (row // UNITS)[:, None]
        group = (row % UNITS)[:, None] * IN_UNIT + in_unit
    GROUPS: tl.constexpr = UNITS * IN_UNIT
    _store_scale(scale_ptr, scale, token.to(tl.int64), group, stride_token, stride_group, known, GROUPS, PACKED, PTX)


@triton.jit
def quantise_units(
    y,  # [R, S, E] float32
    row,  # [R]
    mask,  # [R, S, E]
    within,  # [1, S, E]: the element's place in its unit
    codes_ptr,  # [tokens, hidden] contiguous
    scale_ptr,
    value_ptr,  # [tokens, hidden] contiguous; never written unless STORE_VALUE
    floor,
    units,
    scale_stride_token,
    scale_stride_group,
    UNITS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    GROUP_SEGMENTS: tl.constexpr,
    STORE_VALUE: tl.constexpr,
    Y_DTYPE: tl.constexpr,  # that y was rounded to
    FP8_MAX: tl.constexpr,
    FLOOR_ON: tl.constexpr,
    SCALE_RECIPROCAL: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    UE8M0: tl.constexpr,
    PACKED: tl.constexpr,
    ROUND_SCALE: tl.constexpr,
    NAN_SCALE: tl.constexpr,
    PTX: tl.constexpr,
    EVEN: tl.constexpr,
    SEGMENT_IS_WARP: tl.constexpr,
    BLOCK_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENT: tl.constexpr,
    FIRST: tl.constexpr = 0,  # the unit's segment that y begins with
):
    """Quantise the values of units and store codes, scales and, if asked for, the values themselves."""
    UNIT: tl.constexpr = SEGMENTS * SEGMENT
    IN_BLOCK: tl.constexpr = min(SEGMENTS, BLOCK_SEGMENTS)  # segments of the unit that y can hold
    if FIRST + BLOCK_SEGMENTS > SEGMENTS or BLOCK_SEGMENT != SEGMENT:
        y = tl.where(mask, y, 0.0)  # the padding may be anything: with eps = 0 its own norm is 0 * inf
    amax = _group_amax(y, GROUP_SEGMENTS, IN_BLOCK, SEGMENT_IS_WARP)
    scale = _group_scale(amax, floor, Y_DTYPE, FP8_MAX, FLOOR_ON, SCALE_RECIPROCAL, ROUND_SCALE, UE8M0, NAN_SCALE, PTX)
    divisor = scale[:, None, None] if GROUP_SEGMENTS == IN_BLOCK else scale[:, :, None]
    quotient = _quotient(y, divisor, RECIPROCAL, UE8M0, FLOOR_ON, PTX, Y_DTYPE, ROUND_SCALE)
    out_offset = row.to(tl.int64)[:, None, None] * UNIT + within
    # Eight codes per thread at a time, though sixteen would fit in one store: the layout follows the longest access,
    # and sixteen elements would be two loads of x, each skipping every other 16 bytes.
    codes_pointer = codes_ptr + out_offset
    if UNIT % 8 == 0 and SEGMENT % 8 == 0:
        codes_pointer = tl.multiple_of(codes_pointer, (8, 8, 8))
    tl.store(codes_pointer, _to_fp8(quotient, codes_ptr.dtype.element_ty, FP8_MAX, PTX), mask=mask)
    if STORE_VALUE:
        tl.store(value_ptr + out_offset, y.to(Y_DTYPE), mask=mask)

    store_unit_scales(scale_ptr, scale, row, units, scale_stride_token, scale_stride_group, UNITS, SEGMENTS,
                      GROUP_SEGMENTS, BLOCK_SEGMENTS, PACKED, PTX, EVEN, FIRST)  # fmt: skip
