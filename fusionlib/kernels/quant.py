"""Device code for the quantisation, from values to scales and codes, shared by every kernel that quantises.

Comments give the shapes of block values: R rows, S segments, E elements, G groups.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fusionlib.kernels import ptx

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


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
def _over_fp8_max(amax, FP8_MAX: tl.constexpr):
    """amax / FP8_MAX, correctly rounded, for normal quotients: multiply by the reciprocal, then one residual step."""
    RECIPROCAL: tl.constexpr = 1.0 / FP8_MAX
    estimate = amax * RECIPROCAL
    residual = tl.fma(estimate, -FP8_MAX, amax)
    return tl.where(amax == float("inf"), amax, tl.fma(residual, RECIPROCAL, estimate))


@triton.jit
def run_of_segment(BLOCK_SEGMENTS: tl.constexpr, RUN: tl.constexpr):
    """The run [1, S] of RUN neighbouring segments that each segment belongs to."""
    return (tl.arange(0, BLOCK_SEGMENTS) // RUN)[None, :]


@triton.jit
def _run_amax(amax, RUN: tl.constexpr, SEGMENTS: tl.constexpr):
    """Maximum of [R, S] over each run of RUN segments, repeated for every segment of the run."""
    run = run_of_segment(amax.shape[1], RUN)
    largest = tl.zeros_like(amax)
    for i in range(SEGMENTS // RUN):
        of_run = tl.reduce(tl.where(run == i, amax, tl.zeros_like(amax)), 1, _larger)
        largest = tl.where(run == i, of_run[:, None], largest)
    return largest


@triton.jit
def _group_amax(
    y,  # [R, S, E] float32
    RUN: tl.constexpr = 1,  # segments in a group
    SEGMENTS: tl.constexpr = 1,  # segments in a unit
    SEGMENT_IS_WARP: tl.constexpr = False,  # each segment is held by the threads of one warp
):
    """Largest magnitude of each group; NaN if the group contains one.

    [R] if the unit is one group, else [R, S] with the group's value repeated for each of its segments.
    """
    magnitude = tl.abs(y)
    if SEGMENT_IS_WARP:
        # Compared as integers, which have the same order, with NaN above infinity. The maximum integer of a warp takes
        # one instruction (redux.sync); the maximum float takes five exchanges between threads.
        magnitude = magnitude.to(tl.int32, bitcast=True)
    amax = tl.reduce(magnitude, 2, _larger)
    if RUN == SEGMENTS:
        amax = tl.reduce(amax, 1, _larger)
    elif RUN != 1:
        amax = _run_amax(amax, RUN, SEGMENTS)
    return amax.to(tl.float32, bitcast=True)


@triton.jit
def _group_scale(
    amax,
    floor,
    Y_DTYPE: tl.constexpr,
    FP8_MAX: tl.constexpr,
    FLOOR_ON: tl.constexpr,  # 0 none, 1 amax, 2 scale
    SCALE_RECIPROCAL: tl.constexpr = False,  # amax * (1 / FP8_MAX) instead of amax / FP8_MAX
    ROUND_SCALE: tl.constexpr = False,
    UE8M0: tl.constexpr = False,
    NAN_SCALE: tl.constexpr = True,  # a NaN scale stays NaN under UE8M0, instead of the largest power of two
    PTX: tl.constexpr = False,
):
    """Scale of each group, in the shape of `amax`."""
    if FLOOR_ON == 1:
        amax = _larger(amax, floor)
    if SCALE_RECIPROCAL:
        scale = amax * (1.0 / FP8_MAX)
    elif PTX and FLOOR_ON == 1:
        scale = _over_fp8_max(amax, FP8_MAX)  # above the floor, quotients are normal
    else:
        scale = tl.div_rn(amax, tl.full(amax.shape, FP8_MAX, tl.float32))
    scale = _rounded(scale, Y_DTYPE, ROUND_SCALE, PTX)
    if FLOOR_ON == 2:
        scale = _larger(scale, floor)
    if UE8M0:
        bits = scale.to(tl.int32, bitcast=True)
        exponent = ((bits >> 23) & 0xFF) + ((bits & 0x7FFFFF) != 0).to(tl.int32)
        power = (tl.minimum(tl.maximum(exponent, 1), 254) << 23).to(tl.float32, bitcast=True)
        if NAN_SCALE:
            power = tl.where(scale == scale, power, scale)
        scale = power
    return scale


@triton.jit
def _quotient(
    y,
    scale,
    RECIPROCAL: tl.constexpr,
    UE8M0: tl.constexpr,
    FLOOR_ON: tl.constexpr,
    PTX: tl.constexpr = False,
    Y_DTYPE: tl.constexpr = tl.float32,
    ROUND_SCALE: tl.constexpr = False,
):
    """y / scale, correctly rounded (or y * (1 / scale) if the spec says so); a zero has the sign of y.

    scale is [R, S, 1] or [R, 1, 1].
    """
    # y holds bf16 values, and the scale is one of them, or a floor, divided by FP8_MAX.
    TWO_PARTS: tl.constexpr = (
        PTX and FLOOR_ON == 1 and tl.bfloat16 == Y_DTYPE and not ROUND_SCALE and not RECIPROCAL and not UE8M0
    )
    if TWO_PARTS:
        reciprocal = ptx.reciprocal_from_below(scale)
    elif PTX and FLOOR_ON != 0 and not UE8M0:  # the floor keeps the scale and its reciprocal normal
        reciprocal = ptx.reciprocal(scale)
    else:
        reciprocal = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
    finite = tl.minimum(scale, LARGEST)  # an infinite scale must not meet its reciprocal, which is zero
    if RECIPROCAL or UE8M0:  # the reciprocal of a power of two is exact
        quotient = y * reciprocal
    elif FLOOR_ON == 0:  # a scale may be zero or denormal, which the full division handles
        quotient = tl.div_rn(y, scale)
    elif TWO_PARTS:
        # The reciprocal to twice the precision, as the sum of two parts; the first may be any float32 near it. Before
        # rounding, the quotient's error is less than 2^-41, and no bf16 value over such a scale is that close to a tie
        # (tests/kernels/test_quant.py checks them all). The rest is never negative, so for y = -0 both products are -0,
        # and so is their sum.
        rest = tl.fma(-reciprocal, finite, 1.0) * reciprocal
        quotient = tl.fma(y, reciprocal, y * rest)
    else:
        # Markstein: with r = RN(1/s), one residual step turns q = y*r into the correctly rounded quotient, with two
        # instructions per element instead of a division. The floor keeps s and r normal. The residual is computed as
        # q*s - y and subtracted: for y = -0, y - q*s is +0, and adding it would lose the sign. Multiplied by -1 rather
        # than negated, because Triton negates as 0 - x: for the reciprocal of an infinite scale, that would be +0.
        estimate = y * reciprocal
        excess = tl.fma(estimate, finite, y * -1.0)
        quotient = tl.fma(excess, reciprocal * -1.0, estimate)
    return quotient


@triton.jit
def _to_fp8(quotient, dtype: tl.constexpr, FP8_MAX: tl.constexpr, PTX: tl.constexpr = False):
    # NVIDIA's conversion saturates at the format's own maximum and keeps NaN; elsewhere a clamp does so.
    SATURATES: tl.constexpr = PTX and (dtype == tl.float8e4nv or dtype == tl.float8e5)
    clamped = quotient
    if not SATURATES:
        clamped = tl.clamp(quotient, -FP8_MAX, FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    if dtype == tl.float8e4b8:
        # e4m3fnuz has no -0: its bit pattern is NaN. Half the smallest code (2^-10) and below becomes unsigned zero.
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
    """Store the scales of groups `group` of tokens `token`, in float32 or as packed ue8m0 exponents; equal shapes."""
    if PACKED:  # byte `group % 4` of int32 word (token, group // 4); stride_group counts words
        byte_ptr = scale_ptr.to(tl.pointer_type(tl.uint8), bitcast=True)
        exponent = (scale.to(tl.int32, bitcast=True) >> 23) & 0xFF
        word = token * stride_token + (group // 4).to(tl.int64) * stride_group
        tl.store(byte_ptr + word * 4 + group % 4, exponent.to(tl.uint8), mask=mask)
        for pad in tl.static_range((4 - GROUPS % 4) % 4):  # the unused bytes after the last group
            zero = tl.zeros_like(exponent).to(tl.uint8)
            tl.store(byte_ptr + word * 4 + group % 4 + 1 + pad, zero, mask=mask & (group == GROUPS - 1))
    else:
        pointer = scale_ptr + token * stride_token + group.to(tl.int64) * stride_group
        if PTX:
            ptx.store_float32(pointer, scale, mask)
        else:
            tl.store(pointer, scale, mask=mask)
