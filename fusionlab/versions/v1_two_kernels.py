"""Version 1: two kernels, the norm and then the quantisation, as they are before any fusion.

Bytes per element in bf16, one scale per 128:

    norm   reads x 2 + gate 2, writes y 2               6.00
    quant  reads y 2, writes codes 1 + scale 4/128      3.03
                                                        9.03

and two launches. y goes to memory only because the second kernel reads it from there.

Each program takes one row: the 128 elements that share a mean and a scale. Sums and maxima stay inside a program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fusionlab.versions.case import Launch, require, roundings
from fusionlib.spec import GatedNorm, GroupQuant


@triton.jit
def norm_kernel(
    x_ptr,
    gate_ptr,
    weight_ptr,
    normed_ptr,  # its dtype is the last rounding
    eps,
    SIZE: tl.constexpr,
    ROUND_NORM: tl.constexpr,
    ROUND_WEIGHT: tl.constexpr,
):
    """The gated norm of one row, written to memory."""
    row = tl.program_id(0).to(tl.int64)
    element = tl.arange(0, SIZE)  # [E]
    x = tl.load(x_ptr + row * SIZE + element)
    gate = tl.load(gate_ptr + row * SIZE + element).to(tl.float32)
    weight = tl.load(weight_ptr + element).to(tl.float32)

    value = x.to(tl.float32)
    mean = tl.sum(value * value, axis=0) * (1.0 / SIZE)
    value = value * tl.rsqrt(mean + eps)
    if ROUND_NORM:
        value = value.to(x.dtype).to(tl.float32)
    value = value * weight
    if ROUND_WEIGHT:
        value = value.to(x.dtype).to(tl.float32)
    y = value * (gate * tl.sigmoid(gate))
    tl.store(normed_ptr + row * SIZE + element, y.to(normed_ptr.dtype.element_ty))


@triton.jit
def quant_kernel(normed_ptr, codes_ptr, scale_ptr, floor, SIZE: tl.constexpr, FP8_MAX: tl.constexpr):
    """Codes and scale of one row, read from memory."""
    row = tl.program_id(0).to(tl.int64)
    element = tl.arange(0, SIZE)  # [E]
    y = tl.load(normed_ptr + row * SIZE + element).to(tl.float32)
    amax = tl.maximum(tl.max(tl.abs(y), axis=0), floor)
    scale = amax / FP8_MAX
    quotient = tl.clamp(y / scale, -FP8_MAX, FP8_MAX)
    tl.store(codes_ptr + row * SIZE + element, quotient.to(codes_ptr.dtype.element_ty))
    tl.store(scale_ptr + row, scale)


def launches(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    norm: GatedNorm,
    quant: GroupQuant,
    codes: torch.Tensor,
    scale: torch.Tensor,
) -> list[Launch]:
    """One program per row in each kernel, with Triton's default of four warps: not tuned yet."""
    require(norm, quant, weight)
    rows = x.numel() // norm.norm_size
    normed = torch.empty(codes.shape, dtype=norm.output_dtype(x.dtype), device=x.device)
    points = roundings(norm)
    return [
        Launch(
            kernel=norm_kernel,
            programs=rows,
            arguments={"x_ptr": x, "gate_ptr": gate, "weight_ptr": weight, "normed_ptr": normed, "eps": norm.eps},
            constants={
                "SIZE": norm.norm_size,
                "ROUND_NORM": points["ROUND_NORM"],
                "ROUND_WEIGHT": points["ROUND_WEIGHT"],
            },
            num_warps=4,
        ),
        Launch(
            kernel=quant_kernel,
            programs=rows,
            arguments={"normed_ptr": normed, "codes_ptr": codes, "scale_ptr": scale, "floor": quant.floor},
            constants={"SIZE": norm.norm_size, "FP8_MAX": quant.limit},
            num_warps=4,
        ),
    ]
