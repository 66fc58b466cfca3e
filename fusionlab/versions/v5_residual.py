"""Version 5: the division's exact bits for two instructions per element.

With r = RN(1/s) and the estimate q = RN(y r), the residual y - q s is exact in one fused multiply-add, and a second one
corrects the estimate by it: RN(q + residual r) is the correctly rounded y / s (Markstein, "Computation of elementary
functions on the IBM RISC System/6000 processor", 1990). It requires s and r to be normal numbers, which the floor on
amax ensures, and a finite s, which version 7 ensures. The code computes q s - y and subtracts, so that -0 keeps its
sign.

It costs two fused multiply-adds per element: negligible beside the 5.03 bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

from fusionlab.versions.case import Launch, require, roundings
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
    gate = tl.load(gate_ptr + offset, mask=mask, other=0.0).to(tl.float32)
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
    """Sixteen rows per program on eight warps."""
    require(norm, quant, weight)
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
            },
            constants={
                "ROWS": ROWS,
                "SIZE": norm.norm_size,
                **roundings(norm),
                "FP8_MAX": quant.limit,
                "INTERPRETED": knobs.runtime.interpret,
            },
            num_warps=WARPS,
        )
    ]
