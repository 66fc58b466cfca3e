"""The light: a kernel with our kernel's grid, loads and stores that computes nothing.

It reads x, gate and weight at the same addresses as our kernel, and writes as many codes and scales to the same places;
in between is one exclusive-or, without which the compiler would drop the loads. There is no reduction: the scale it
stores is a constant. Any extra time of our kernel is arithmetic and its latency, so time(light) / time(ours) is the
share of the possible speed that ours reaches. The light's launch is tuned over the same sweep as ours.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fusionlib.contract import amd_arch, unit_size
from fusionlib.devices import threads_per_warp
from fusionlib.kernels import launch
from fusionlib.kernels.config import LaunchConfig, choose_launch
from fusionlib.kernels.row_layout import row_layout
from fusionlib.kernels.units import (
    are_units,
    load_units,
    rows_of_program,
    store_unit_scales,
    weight_offsets,
)
from fusionlib.spec import GatedNorm, GroupQuant

_POINTEE = {"x_ptr": "i16", "gate_ptr": "i16", "weight_ptr": "i16", "codes_ptr": "u8", "scale_ptr": "fp32"}


@triton.jit
def light_kernel(
    x_ptr,  # the bf16 bits, as int16
    gate_ptr,
    weight_ptr,
    codes_ptr,  # [tokens, hidden] uint8, contiguous
    scale_ptr,
    constant,
    units,
    x_stride_token,
    x_stride_outer,
    x_stride_inner,
    gate_stride_token,
    gate_stride_outer,
    gate_stride_inner,
    scale_stride_token,
    scale_stride_group,
    UNITS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    NORM_SEGMENTS: tl.constexpr,
    GROUP_SEGMENTS: tl.constexpr,
    X_OUTER: tl.constexpr,
    X_INNER: tl.constexpr,
    GATE_OUTER: tl.constexpr,
    GATE_INNER: tl.constexpr,
    WEIGHT_PER_TOKEN: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENT: tl.constexpr,
    PTX: tl.constexpr,
    WAIT: tl.constexpr,  # for the previous kernel to end, as a dependent launch must
):
    """Move the bytes of ROWS units per program; names and addresses are those of the fused kernel."""
    UNIT: tl.constexpr = SEGMENTS * SEGMENT
    segment = tl.arange(0, BLOCK_SEGMENTS)[None, :, None]
    element = tl.arange(0, BLOCK_SEGMENT)[None, None, :]
    within = segment * SEGMENT + element  # [1, S, E]
    inside = (segment < SEGMENTS) & (element < SEGMENT)
    row = rows_of_program(ROWS)
    mask = are_units(row, units, EVEN)[:, None, None] & inside
    if WAIT:
        tl.extra.cuda.gdc_wait()
    x = load_units(x_ptr, row, mask, x_stride_token, x_stride_outer, x_stride_inner, UNITS, X_OUTER, X_INNER,
                   SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT)  # fmt: skip
    gate = load_units(gate_ptr, row, mask, gate_stride_token, gate_stride_outer, gate_stride_inner, UNITS, GATE_OUTER,
                      GATE_INNER, SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT)  # fmt: skip
    weight_offset = weight_offsets(row, segment, element, UNITS, SEGMENTS, SEGMENT, NORM_SEGMENTS, WEIGHT_PER_TOKEN)
    weight_offset = tl.broadcast_to(weight_offset, mask.shape)
    weight = tl.load(weight_ptr + weight_offset, mask=tl.broadcast_to(inside, mask.shape), other=0)
    codes_pointer = codes_ptr + row.to(tl.int64)[:, None, None] * UNIT + within
    if UNIT % 8 == 0 and SEGMENT % 8 == 0:
        codes_pointer = tl.multiple_of(codes_pointer, (8, 8, 8))
    tl.store(codes_pointer, (x ^ gate ^ weight).to(tl.uint8), mask=mask)

    scale = tl.zeros([ROWS] if GROUP_SEGMENTS == SEGMENTS else [ROWS, BLOCK_SEGMENTS], tl.float32) + constant
    store_unit_scales(scale_ptr, scale, row, units, scale_stride_token, scale_stride_group, UNITS, SEGMENTS,
                      GROUP_SEGMENTS, BLOCK_SEGMENTS, False, PTX, EVEN)  # fmt: skip


def light_constants(fused: dict[str, Any], wait: bool = False) -> dict[str, Any]:
    """The light's compile-time constants, taken from the fused kernel's (`launch.fused_constants`)."""
    names = [name for name in light_kernel.arg_names if name in fused]
    return {name: fused[name] for name in names} | {"WAIT": wait}


def launch_light(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    norm: GatedNorm,
    quant: GroupQuant,
    codes: torch.Tensor,
    scale: torch.Tensor,
    config: LaunchConfig | None = None,
    *,
    constant: float = 1.0,
    dependent: bool = False,
) -> None:
    """Move the bytes of one fused call: read x, gate and weight (16-bit), fill `codes` (8-bit) and `scale` (float32).

    `config` overrides our kernel's heuristic. `dependent` is for NVIDIA GPUs of compute capability 9.0 and newer: the
    kernel may start while the previous one is finishing, and waits for it before its first load.

    Raises:
        ValueError: for packed scales, or inputs that are not 16 bits wide.
    """
    if quant.scale_layout == "packed_int32":
        raise ValueError("the light moves float32 scales; scale_layout='packed_int32' is not measured")
    for name, tensor in (("x", x), ("gate", gate), ("weight", weight)):
        if tensor.element_size() != 2:
            raise ValueError(f"{name} is {tensor.dtype}; the light moves 16-bit inputs: use bfloat16 or float16")
    tokens, hidden = codes.shape
    unit = unit_size(norm, quant)
    units = tokens * (hidden // unit)
    config = config or choose_launch(units, unit, threads_per_warp(amd_arch()))
    x_layout, gate_layout = row_layout(x), row_layout(gate)
    constants = light_constants(
        launch.fused_constants(
            norm,
            quant,
            hidden,
            x_layout,
            gate_layout,
            weight_elements=weight.numel(),
            has_bias=False,
            store_normed=False,
            config=config,
            units=units,
            ptx=launch.runs_ptx(),
        ),
        wait=dependent,
    )
    light_kernel[(triton.cdiv(units, config.rows),)](
        x.view(torch.int16),
        gate.view(torch.int16),
        weight.view(torch.int16),
        codes.view(torch.uint8),
        scale,
        constant,
        units,
        x_layout.token_stride,
        x_layout.outer_stride,
        x_layout.inner_stride,
        gate_layout.token_stride,
        gate_layout.outer_stride,
        gate_layout.inner_stride,
        *launch.scale_strides(scale),
        **constants,
        num_warps=config.num_warps,
        **({"launch_pdl": True} if dependent else {}),
    )


def compile_light(
    target: str, norm: GatedNorm, quant: GroupQuant, config: LaunchConfig, hidden: int = 4096, *, wait: bool = False
):
    """Compile the light for `target` without a GPU, as `codegen.compile_fused` compiles ours.

    Inputs are contiguous, pointers and token strides divisible by 16. Returns a `codegen.Listing`.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fusionlab.observe.codegen import TARGETS, Listing
    from fusionlib.kernels.row_layout import RowLayout

    contiguous = RowLayout(hidden, hidden, 0, hidden, 0)
    per_element = not norm.norm_before_gate
    fused = launch.fused_constants(
        norm,
        quant,
        hidden,
        contiguous,
        contiguous,
        weight_elements=hidden if per_element else norm.norm_size,
        has_bias=False,
        store_normed=False,
        config=config,
        units=config.rows,
        ptx=TARGETS[target][0] == "cuda",
    )
    constants = light_constants(fused, wait)
    signature = {
        name: "constexpr"
        if name in constants
        else f"*{_POINTEE[name]}"
        if name in _POINTEE
        else "fp32"
        if name == "constant"
        else "i32"
        for name in light_kernel.arg_names
    }
    names = list(signature)
    aligned = [*_POINTEE, *(name for name in names if name.startswith(("x_stride", "gate_stride")))]
    source = ASTSource(
        fn=light_kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"num_warps": config.num_warps})
    text = {name: stage for name, stage in compiled.asm.items() if isinstance(stage, str)}
    return Listing(target, text, compiled.asm["cubin" if "cubin" in compiled.asm else "hsaco"])
