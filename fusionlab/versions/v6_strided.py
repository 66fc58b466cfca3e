"""Version 6: the gate is read in place.

A model's gate is part of a larger projection. Qwen3-Next interleaves the projection per key head, so its gate is
[tokens, 16, 256] with strides (12288, 768, 1): two adjacent heads of 128, then 512 elements of something else.
Versions 1 to 5 support only contiguous rows, so the gate must be copied first, and the bytes per element are those of
two kernels:

    copy   reads 2, writes 2                            4.00
    fused  as before                                    5.03
                                                        9.03, as if nothing had been fused

Two more strides in the address avoid the copy. Each row is still 256 contiguous bytes, so the loads stay wide.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

from fusionlab.versions.case import Launch, require, roundings, runs_of_heads
from fusionlib.spec import GatedNorm, GroupQuant

ROWS, WARPS = 16, 8


@triton.jit
def fused_kernel(
    x_ptr,
    gate_ptr,
    weight_ptr,
    codes_ptr,
    scale_ptr,
    eps,
    floor,
    rows,
    gate_stride_token,
    gate_stride_run,
    HEADS: tl.constexpr,  # rows per token
    HEADS_A_RUN: tl.constexpr,  # adjacent whole heads in the gate's memory
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    ROUND_NORM: tl.constexpr,
    ROUND_WEIGHT: tl.constexpr,
    ROUND_OUTPUT: tl.constexpr,
    FP8_MAX: tl.constexpr,
    INTERPRETED: tl.constexpr,  # the interpreter has no device library
):
    """Norm and quantise ROWS rows."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)  # [R]
    element = tl.arange(0, SIZE)  # [E]
    offset = row[:, None] * SIZE + element[None, :]  # [R, E]
    mask = (row < rows)[:, None]
    x = tl.load(x_ptr + offset, mask=mask, other=0.0)
    head = row % HEADS
    gate_start = (row // HEADS) * gate_stride_token + (head // HEADS_A_RUN) * gate_stride_run
    gate_offset = (gate_start + (head % HEADS_A_RUN) * SIZE)[:, None] + element[None, :]
    gate = tl.load(gate_ptr + gate_offset, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + element).to(tl.float32)[None, :]

    value = x.to(tl.float32)
    mean = tl.sum(value * value, axis=1)[:, None] * (1.0 / SIZE)  # [R, 1]
    value = value * tl.rsqrt(mean + eps)
    if ROUND_NORM:
        value = value.to(x.dtype).to(tl.float32)
    value = value * weight
    if ROUND_WEIGHT:
        value = value.to(x.dtype).to(tl.float32)
    denominator = 1.0 + tl.exp2(gate * -1.4426950408889634)  # exp(-g) = 2^(-g log2 e)
    y = value * (gate / denominator if INTERPRETED else libdevice.fast_dividef(gate, denominator))
    if ROUND_OUTPUT:
        y = y.to(x.dtype).to(tl.float32)

    amax = tl.maximum(tl.max(tl.abs(y), axis=1), floor)  # [R]
    scale = tl.div_rn(amax, tl.full(amax.shape, FP8_MAX, tl.float32))
    reciprocal = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)[:, None]  # one division per row
    estimate = y * reciprocal
    residual = tl.fma(estimate, scale[:, None], y * -1.0)  # estimate * scale - y, rounded once
    quotient = tl.fma(residual, -reciprocal, estimate)  # this way round a -0 keeps its sign
    quotient = tl.clamp(quotient, -FP8_MAX, FP8_MAX)
    tl.store(codes_ptr + offset, quotient.to(codes_ptr.dtype.element_ty), mask=mask)
    tl.store(scale_ptr + row, scale, mask=row < rows)


def launches(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    norm: GatedNorm,
    quant: GroupQuant,
    codes: torch.Tensor,
    scale: torch.Tensor,
) -> list[Launch]:
    """Sixteen rows per program on eight warps; the gate is read in place."""
    require(norm, quant, weight)
    layout = runs_of_heads(gate, norm.norm_size)
    rows = x.numel() // norm.norm_size
    return [
        Launch(
            kernel=fused_kernel,
            programs=triton.cdiv(rows, ROWS),
            arguments={
                "x_ptr": x,
                "gate_ptr": gate,
                "weight_ptr": weight,
                "codes_ptr": codes,
                "scale_ptr": scale,
                "eps": norm.eps,
                "floor": quant.floor,
                "rows": rows,
                "gate_stride_token": layout.token_stride,
                "gate_stride_run": layout.inner_stride,
            },
            constants={
                "HEADS": codes.shape[1] // norm.norm_size,
                "HEADS_A_RUN": layout.inner // norm.norm_size,
                "ROWS": ROWS,
                "SIZE": norm.norm_size,
                **roundings(norm),
                "FP8_MAX": quant.limit,
                "INTERPRETED": knobs.runtime.interpret,
            },
            num_warps=WARPS,
        )
    ]
