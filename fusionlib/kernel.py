"""The Triton kernel: gated RMS norm and FP8 group quantisation of one unit a row, in one pass over memory.

A *unit* is what one kernel row covers: max(norm_size, group_size) elements, the smaller dividing the larger. It is laid
out as SEGMENTS segments of SEGMENT = min(norm_size, group_size) elements, so that one code path serves all three cases:

    norm == group   one segment; both reductions run over it                      (Gated DeltaNet)
    norm >  group   the mean runs over all segments, amax over each               (the Mamba2 family)
    norm <  group   the mean runs over each segment, amax over all                (64-wide heads, per-token)

Per element x and gate are read once, the code is written once; the weight is loaded before the first reduction so that
its latency hides behind it. Nothing here knows of graphs or modules; which specs and tensors may come is decided in
`fusionlib.op`. Block values are named after what they hold, with shapes in comments: R rows, S segments, E elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from triton.language.extra import libdevice

from fusionlib import ptx


@dataclass(frozen=True)
class LaunchConfig:
    """How the kernel is cut: `rows` units per program on `num_warps` warps."""

    rows: int
    num_warps: int


def choose_launch(units: int, unit: int, threads_per_warp: int = 32) -> LaunchConfig:
    """The launch configuration for `units` units of `unit` elements on a GPU with `threads_per_warp` lanes.

    Measured on an H200 with a kernel of this shape (bf16, 32 heads of 128, CUDA-graph replay, swept rows x warps): a
    single token is fastest on 1-2 rows and 1-2 warps, since spreading 32 rows over many SMs shortens the longest
    dependent chain; 64-256 tokens on 8 rows and 8 warps; more on 16 rows and 8 warps, where each thread's loads are 16
    bytes and enough of them are in flight. Not measured: units longer than 512 get a program of their own with 16
    elements a thread, which keeps x, gate, weight and the value in registers; wavefronts of 64 take half as many.
    """
    fewer = max(1, triton.next_power_of_2(unit) // 128)
    if unit > 512:
        rows, num_warps = 1, min(16, max(4, triton.next_power_of_2(unit) // 512))
    elif units <= 1024:  # up to 32 tokens of 32 heads
        rows, num_warps = max(1, 2 // fewer), 1
    elif units <= 8192:  # up to 256 tokens of 32 heads
        rows, num_warps = max(1, 8 // fewer), 8
    else:
        rows, num_warps = max(1, 16 // fewer), 8
    return LaunchConfig(rows, max(1, num_warps * 32 // threads_per_warp))


@triton.jit
def _larger(a, b):
    # A NaN anywhere in a group must reach its scale; tl.max would drop it.
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _float32(value, PTX: tl.constexpr):
    return ptx.widened(value) if PTX and value.dtype == tl.bfloat16 else value.to(tl.float32)


@triton.jit
def _rounded(value, dtype: tl.constexpr, ROUND: tl.constexpr, PTX: tl.constexpr = False):
    if ROUND:
        value = ptx.rounded_to_bf16(value) if PTX and dtype == tl.bfloat16 else value.to(dtype).to(tl.float32)
    return value


@triton.jit
def _activated(gate, SILU: tl.constexpr, EXACT: tl.constexpr, PTX: tl.constexpr):
    # An approximate division (2 ulp, results below 2^-126 become zero) is enough where the output is rounded to bf16 or
    # FP8 over a floor. EXACT is for scales without a floor, and for the interpreter, which has no device library.
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
def _span_sum(value, SPANS: tl.constexpr):
    """Sum of [R, S, E] over each segment, or over the whole unit if SPANS; broadcastable against [R, S, E]."""
    total = tl.sum(value, axis=2)  # [R, S]
    return tl.sum(total, axis=1)[:, None, None] if SPANS else total[:, :, None]


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
    """Where the elements [R, S, E] of units lie, relative to their token's first element.

    A token's row is runs of INNER contiguous elements, `stride_inner` apart, in blocks of OUTER elements that are
    `stride_outer` apart (`fusionlib.layout.RowLayout`). It is cut into the largest pieces that never leave a run, and
    only whole pieces are divided: a product with a constant keeps the alignment that 16-byte loads need, a remainder
    of elements would lose it.
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
def _over_fp8_max(amax, FP8_MAX: tl.constexpr):
    """amax / FP8_MAX, correctly rounded, for normal quotients: the product with the reciprocal and a residual step."""
    RECIPROCAL: tl.constexpr = 1.0 / FP8_MAX
    estimate = amax * RECIPROCAL
    residual = tl.fma(estimate, -FP8_MAX, amax)
    return tl.where(amax == float("inf"), amax, tl.fma(residual, RECIPROCAL, estimate))


@triton.jit
def _group_scale(
    y,  # [R, S, E] float32
    floor,
    Y_DTYPE: tl.constexpr,
    FP8_MAX: tl.constexpr,
    FLOOR_ON: tl.constexpr,  # 0 none, 1 amax, 2 scale
    ROUND_SCALE: tl.constexpr,
    UE8M0: tl.constexpr,
    SPANS: tl.constexpr,
    PTX: tl.constexpr = False,
):
    """Scale of each segment [R, S, 1], or of the unit [R, 1, 1] if SPANS."""
    amax = tl.reduce(tl.abs(y), 2, _larger)
    if SPANS:
        amax = tl.reduce(amax, 1, _larger)[:, None]
    amax = amax[:, :, None]
    if FLOOR_ON == 1:
        amax = _larger(amax, floor)
    if PTX and FLOOR_ON == 1:
        scale = _over_fp8_max(amax, FP8_MAX)  # over the floor, quotients are normal
    else:
        scale = tl.div_rn(amax, tl.full(amax.shape, FP8_MAX, tl.float32))
    scale = _rounded(scale, Y_DTYPE, ROUND_SCALE, PTX)
    if FLOOR_ON == 2:
        scale = _larger(scale, floor)
    if UE8M0:
        bits = scale.to(tl.int32, bitcast=True)
        exponent = ((bits >> 23) & 0xFF) + ((bits & 0x7FFFFF) != 0).to(tl.int32)
        power = (tl.minimum(tl.maximum(exponent, 1), 254) << 23).to(tl.float32, bitcast=True)
        scale = tl.where(scale == scale, power, scale)
    return scale


@triton.jit
def _quotient(
    y, scale, RECIPROCAL: tl.constexpr, UE8M0: tl.constexpr, FLOOR_ON: tl.constexpr, PTX: tl.constexpr = False
):
    """y / scale, correctly rounded (or y * (1 / scale) where the spec says so); scale is [R, S, 1] or [R, 1, 1]."""
    if PTX and FLOOR_ON != 0 and not UE8M0:  # the floor keeps the scale and its reciprocal normal
        reciprocal = ptx.reciprocal(scale)
    else:
        reciprocal = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
    if RECIPROCAL or UE8M0:  # the reciprocal of a power of two is exact
        quotient = y * reciprocal
    elif FLOOR_ON == 0:  # a scale may be zero or denormal: let the full division see to it
        quotient = tl.div_rn(y, scale)
    else:
        # Markstein: with r = RN(1/s), one residual step makes y*r the correctly rounded quotient, at two instructions
        # an element instead of a division. The floor keeps s and r normal; an infinite scale must not meet its
        # residual.
        minus = tl.where(scale == float("inf"), 0.0, -scale)
        estimate = y * reciprocal
        residual = tl.fma(estimate, minus, y)
        quotient = tl.fma(residual, reciprocal, estimate)
    return quotient


@triton.jit
def _to_fp8(quotient, dtype: tl.constexpr, FP8_MAX: tl.constexpr, PTX: tl.constexpr = False):
    # NVIDIA's conversion saturates at the format's own maximum and keeps NaN, as the clamp before it does elsewhere.
    SATURATES: tl.constexpr = PTX and (dtype == tl.float8e4nv or dtype == tl.float8e5)
    clamped = quotient
    if not SATURATES:
        clamped = tl.clamp(quotient, -FP8_MAX, FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    if dtype == tl.float8e4b8:
        # e4m3fnuz has no -0: its bit pattern is NaN. Half the least code (2^-10) and below is zero, without a sign.
        clamped = tl.where(tl.abs(clamped) <= 0.00048828125, 0.0, clamped)
    return clamped.to(dtype)


@triton.jit
def _store_scale(
    scale_ptr,
    scale,
    token,
    group,
    stride_token,
    stride_group,
    mask,
    GROUPS: tl.constexpr,
    PACKED: tl.constexpr,
    PTX: tl.constexpr,
):
    """Store scales [R, G, 1] of groups `group` of their tokens, in float32 or as packed ue8m0 exponents."""
    if PACKED:  # byte `group % 4` of int32 word (token, group // 4); stride_group counts words
        byte_ptr = scale_ptr.to(tl.pointer_type(tl.uint8), bitcast=True)
        exponent = (scale.to(tl.int32, bitcast=True) >> 23) & 0xFF
        word = token * stride_token + (group // 4).to(tl.int64) * stride_group
        tl.store(byte_ptr + word * 4 + group % 4, exponent.to(tl.uint8), mask=mask)
        for pad in tl.static_range((4 - GROUPS % 4) % 4):  # the unused bytes behind the last group
            zero = tl.zeros_like(exponent).to(tl.uint8)
            tl.store(byte_ptr + word * 4 + group % 4 + 1 + pad, zero, mask=mask & (group == GROUPS - 1))
    else:
        pointer = scale_ptr + token * stride_token + group.to(tl.int64) * stride_group
        if PTX:
            ptx.store_float32(pointer, scale, mask)
        else:
            tl.store(pointer, scale, mask=mask)


@triton.jit
def rms_norm_gated_group_quant_kernel(
    x_ptr,
    gate_ptr,
    weight_ptr,
    bias_ptr,  # x_ptr again where there is no bias; never read then
    codes_ptr,  # [tokens, hidden] contiguous
    scale_ptr,
    normed_ptr,  # [tokens, hidden] contiguous; codes_ptr again where it is not wanted
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
    NORM_SPANS: tl.constexpr,  # the mean runs over the whole unit
    QUANT_SPANS: tl.constexpr,  # the group is the whole unit
    X_OUTER: tl.constexpr,
    X_INNER: tl.constexpr,
    GATE_OUTER: tl.constexpr,
    GATE_INNER: tl.constexpr,
    WEIGHT_PER_TOKEN: tl.constexpr,  # weight is [hidden] and not [norm_size]
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
    FP8_MAX: tl.constexpr,
    FLOOR_ON: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    UE8M0: tl.constexpr,
    PACKED: tl.constexpr,
    ROUND_SCALE: tl.constexpr,
    EXACT: tl.constexpr,
    PTX: tl.constexpr,  # NVIDIA's own instructions, fusionlib.ptx
    ROWS: tl.constexpr,
    BLOCK_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENT: tl.constexpr,
):
    """Norm, gate and quantise ROWS units a program; the module's docstring has the words."""
    UNIT: tl.constexpr = SEGMENTS * SEGMENT
    NORM_SIZE: tl.constexpr = UNIT if NORM_SPANS else SEGMENT
    X_DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    Y_DTYPE: tl.constexpr = X_DTYPE if ROUND_OUTPUT else tl.float32

    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [R]
    segment = tl.arange(0, BLOCK_SEGMENTS)[None, :, None]
    element = tl.arange(0, BLOCK_SEGMENT)[None, None, :]
    within = segment * SEGMENT + element  # [1, S, E]
    live = (row < units)[:, None, None]
    inside = (segment < SEGMENTS) & (element < SEGMENT)  # always true unless a size is no power of two
    mask = live & inside

    token = (row // UNITS).to(tl.int64)[:, None, None]  # 64 bits: token * stride passes 2^31 in a large prefill
    unit = (row % UNITS)[:, None, None]

    x_offset = _element_offsets(
        unit, segment, element, x_stride_outer, x_stride_inner, X_OUTER, X_INNER, SEGMENTS, SEGMENT
    )
    gate_offset = _element_offsets(
        unit, segment, element, gate_stride_outer, gate_stride_inner, GATE_OUTER, GATE_INNER, SEGMENTS, SEGMENT
    )
    x = tl.load(x_ptr + token * x_stride_token + x_offset, mask=mask, other=0.0)
    gate = tl.load(gate_ptr + token * gate_stride_token + gate_offset, mask=mask, other=0.0)
    if WEIGHT_PER_TOKEN:
        weight_offset = unit * UNIT + within
        weight_mask = mask
    elif NORM_SPANS:
        weight_offset = within
        weight_mask = inside
    else:
        weight_offset = element
        weight_mask = element < SEGMENT
    # In the shape of x and not in its own: a smaller tensor would get another layout, and x would have to follow it
    # through shared memory.
    weight_offset = tl.broadcast_to(weight_offset, mask.shape)
    weight_mask = tl.broadcast_to(weight_mask, mask.shape)
    weight = _float32(tl.load(weight_ptr + weight_offset, mask=weight_mask, other=0.0), PTX)
    if WEIGHT_OFFSET != 0:
        weight += WEIGHT_OFFSET

    value = _float32(x, PTX)
    activated = _activated(_float32(gate, PTX), SILU, EXACT, PTX)
    activated = _rounded(activated, X_DTYPE, ROUND_ACTIVATION, PTX)
    if not NORM_BEFORE_GATE:
        value = _rounded(value * activated, X_DTYPE, ROUND_GATE, PTX)
    squares = _span_sum(value * value, NORM_SPANS)
    if NORM_SIZE & (NORM_SIZE - 1) == 0:
        mean = squares * (1.0 / NORM_SIZE)  # exact: the reciprocal is a power of two
    else:
        mean = tl.div_rn(squares, tl.full(squares.shape, NORM_SIZE, tl.float32))
    value = _rounded(value * tl.rsqrt(mean + eps), X_DTYPE, ROUND_NORM, PTX)
    value = value * weight
    if HAS_BIAS:
        value += tl.load(bias_ptr + weight_offset, mask=weight_mask, other=0.0).to(tl.float32)
    if NORM_BEFORE_GATE:
        value = _rounded(value, X_DTYPE, ROUND_WEIGHT, PTX) * activated
    y = _rounded(value, X_DTYPE, ROUND_OUTPUT, PTX)
    if BLOCK_SEGMENTS != SEGMENTS or BLOCK_SEGMENT != SEGMENT:
        y = tl.where(inside, y, 0.0)  # with eps = 0 the padding's own norm is 0 * inf

    scale = _group_scale(y, floor, Y_DTYPE, FP8_MAX, FLOOR_ON, ROUND_SCALE, UE8M0, QUANT_SPANS, PTX)
    quotient = _quotient(y, scale, RECIPROCAL, UE8M0, FLOOR_ON, PTX)
    out_offset = row.to(tl.int64)[:, None, None] * UNIT + within
    tl.store(codes_ptr + out_offset, _to_fp8(quotient, codes_ptr.dtype.element_ty, FP8_MAX, PTX), mask=mask)
    if STORE_NORMED:
        tl.store(normed_ptr + out_offset, y.to(Y_DTYPE), mask=mask)

    GROUPS_PER_UNIT: tl.constexpr = 1 if QUANT_SPANS else SEGMENTS
    in_unit = tl.arange(0, 1 if QUANT_SPANS else BLOCK_SEGMENTS)[None, :, None]
    _store_scale(
        scale_ptr,
        scale,
        token,
        unit * GROUPS_PER_UNIT + in_unit,  # [R, G, 1]
        scale_stride_token,
        scale_stride_group,
        live & (in_unit < GROUPS_PER_UNIT),
        UNITS * GROUPS_PER_UNIT,
        PACKED,
        PTX,
    )


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
    RECIPROCAL: tl.constexpr,
    UE8M0: tl.constexpr,
    PACKED: tl.constexpr,
    ROUND_SCALE: tl.constexpr,
    PTX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
):
    """The second half alone: what a serving engine's opaque quantisation op does behind a separate norm."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    element = tl.arange(0, BLOCK_GROUP)[None, None, :]
    token = (row // GROUPS).to(tl.int64)[:, None, None]
    group = (row % GROUPS)[:, None, None]
    mask = (row < units)[:, None, None] & (element < GROUP)
    y = tl.load(y_ptr + token * y_stride_token + group * GROUP + element, mask=mask, other=0.0)
    y = _float32(y, PTX)  # [R, 1, E]
    scale = _group_scale(y, floor, y_ptr.dtype.element_ty, FP8_MAX, FLOOR_ON, ROUND_SCALE, UE8M0, False, PTX)
    quotient = _quotient(y, scale, RECIPROCAL, UE8M0, FLOOR_ON, PTX)
    out_offset = row.to(tl.int64)[:, None, None] * GROUP + element
    tl.store(codes_ptr + out_offset, _to_fp8(quotient, codes_ptr.dtype.element_ty, FP8_MAX, PTX), mask=mask)
    _store_scale(
        scale_ptr,
        scale,
        token,
        group,
        scale_stride_token,
        scale_stride_group,
        (row < units)[:, None, None],
        GROUPS,
        PACKED,
        PTX,
    )
