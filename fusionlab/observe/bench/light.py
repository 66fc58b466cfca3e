"""The light: a kernel with our kernel's grid, loads and stores that computes nothing.

It reads a producer's rows and weight at the same addresses as our kernel, and writes as many codes, scales and sums to
the same places; in between is one exclusive-or, without which the compiler would drop the loads. There is no reduction:
the scale it stores is a constant. Any extra time of our kernel is arithmetic and its latency, so time(light) /
time(ours) is the share of the possible speed that ours reaches. Its launch is tuned over the same sweep as ours.

One kernel serves every producer: what a producer lacks (a second tensor of rows, a weight, a sum) is compiled out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

import torch
import triton
import triton.language as tl

from fusionlib.kernels import constants as kernel_constants
from fusionlib.kernels import launch
from fusionlib.kernels.config import LaunchConfig
from fusionlib.kernels.row_layout import RowLayout, row_layout
from fusionlib.kernels.units import (
    are_units,
    is_inside,
    load_units,
    rows_of_program,
    store_unit_scales,
    weight_offsets,
)
from fusionlib.spec import GroupQuant

_POINTEE = {
    "x_ptr": "i16",
    "gate_ptr": "i16",
    "weight_ptr": "i16",
    "codes_ptr": "u8",
    "scale_ptr": "fp32",
    "sum_ptr": "i16",
}


@triton.jit
def light_kernel(
    x_ptr,  # the bf16 bits, as int16
    gate_ptr,
    weight_ptr,
    codes_ptr,  # [tokens, hidden] uint8, contiguous
    scale_ptr,
    sum_ptr,  # [tokens, hidden] int16, contiguous; codes_ptr if there is none
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
    HAS_GATE: tl.constexpr,  # a second tensor of rows: a gate, or a residual
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_PER_TOKEN: tl.constexpr,
    STORE_SUM: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENT: tl.constexpr,
    PTX: tl.constexpr,
    WAIT: tl.constexpr,  # for the previous kernel to end, as a dependent launch must
):
    """Move the bytes of ROWS units per program; names and addresses are those of the fused kernel."""
    UNIT: tl.constexpr = SEGMENTS * SEGMENT
    row = rows_of_program(ROWS)
    element = tl.arange(0, BLOCK_SEGMENT)[None, None, :]
    constants = tl.zeros([ROWS] if GROUP_SEGMENTS == SEGMENTS else [ROWS, BLOCK_SEGMENTS], tl.float32) + constant
    if WAIT:
        tl.extra.cuda.gdc_wait()
    values = ()
    for piece in tl.static_range(PIECES):  # all loads come first, as in our kernels
        segment = piece * BLOCK_SEGMENTS + tl.arange(0, BLOCK_SEGMENTS)[None, :, None]
        inside = is_inside(segment, element, piece * BLOCK_SEGMENTS, SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT)
        mask = are_units(row, units, EVEN)[:, None, None] & inside
        value = load_units(x_ptr, row, mask, x_stride_token, x_stride_outer, x_stride_inner, UNITS, X_OUTER, X_INNER,
                           SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT, piece * BLOCK_SEGMENTS)  # fmt: skip
        if HAS_GATE:
            gate = load_units(gate_ptr, row, mask, gate_stride_token, gate_stride_outer, gate_stride_inner, UNITS,
                              GATE_OUTER, GATE_INNER, SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT,
                              piece * BLOCK_SEGMENTS)  # fmt: skip
        if HAS_WEIGHT:
            offset = weight_offsets(row, segment, element, UNITS, SEGMENTS, SEGMENT, NORM_SEGMENTS, WEIGHT_PER_TOKEN)
            offset = tl.broadcast_to(offset, mask.shape)
            value = value ^ tl.load(weight_ptr + offset, mask=tl.broadcast_to(inside, mask.shape), other=0)
        if HAS_GATE:
            value = value ^ gate
        values = values + (value,)  # noqa: RUF005
    for piece in tl.static_range(PIECES):
        segment = piece * BLOCK_SEGMENTS + tl.arange(0, BLOCK_SEGMENTS)[None, :, None]
        inside = is_inside(segment, element, piece * BLOCK_SEGMENTS, SEGMENTS, SEGMENT, BLOCK_SEGMENTS, BLOCK_SEGMENT)
        mask = are_units(row, units, EVEN)[:, None, None] & inside
        out_offset = row.to(tl.int64)[:, None, None] * UNIT + (segment * SEGMENT + element)
        if STORE_SUM:
            tl.store(sum_ptr + out_offset, values[piece], mask=mask)
        codes_pointer = codes_ptr + out_offset
        if UNIT % 8 == 0 and SEGMENT % 8 == 0:
            codes_pointer = tl.multiple_of(codes_pointer, (8, 8, 8))
        tl.store(codes_pointer, values[piece].to(tl.uint8), mask=mask)
        store_unit_scales(scale_ptr, constants, row, units, scale_stride_token, scale_stride_group, UNITS, SEGMENTS,
                          GROUP_SEGMENTS, BLOCK_SEGMENTS, False, PTX, EVEN, piece * BLOCK_SEGMENTS)  # fmt: skip


def light_constants(
    run: int,
    quant: GroupQuant,
    hidden: int,
    rows: tuple[RowLayout, ...],
    *,
    weight_elements: int,
    store_sum: bool,
    config: LaunchConfig,
    units: int,
    ptx: bool,
    pieces: bool = False,
    wait: bool = False,
) -> dict[str, Any]:
    """Every compile-time constant of the light, by name: tiling and addresses are our kernels' own.

    `run` is the number of elements of a norm, or of a group; `rows` the layouts of one or two tensors of rows. With
    `pieces` a long unit is held in several blocks, as in the kernel of the RMS norm.
    """
    constants = kernel_constants.unit_constants(run, quant, hidden, units, config, ptx=ptx)
    constants = kernel_constants.in_pieces(run, constants, config) if pieces else constants | {"PIECES": 1}
    constants |= kernel_constants.row_constants(x=rows[0], gate=rows[-1]) | {
        "NORM_SEGMENTS": run // constants["SEGMENT"],
        "HAS_GATE": len(rows) > 1,
        "HAS_WEIGHT": weight_elements > 0,
        "WEIGHT_PER_TOKEN": weight_elements not in (0, run),
        "STORE_SUM": store_sum,
        "WAIT": wait,
    }
    return {name: constants[name] for name in light_kernel.arg_names if name in constants}


def launch_light(
    rows: Sequence[torch.Tensor],
    weight: torch.Tensor | None,
    run: int,
    quant: GroupQuant,
    outputs: Sequence[torch.Tensor],
    config: LaunchConfig,
    *,
    pieces: bool = False,
    constant: float = 1.0,
    dependent: bool = False,
) -> None:
    """Move the bytes of one fused call.

    Args:
        rows: one or two tensors [tokens, ...] of 16 bits: x, and a gate or a residual.
        weight: [run] or [hidden] of 16 bits, or None.
        run: elements of a norm, which a kernel row holds whole; of a group if there is none.
        outputs: codes [tokens, hidden] (8-bit), scale (float32), and a sum [tokens, hidden] (16-bit) if one is written.
        config: the launch.
        pieces: whether a long unit is held in several blocks, as in the kernel of the RMS norm.
        dependent: for NVIDIA GPUs of compute capability 9.0 and newer: the kernel may start while the previous one is
            finishing, and waits for it before its first load.

    Raises:
        ValueError: for packed scales, or inputs that are not 16 bits wide.
    """
    if quant.scale_layout == "packed_int32":
        raise ValueError("the light moves float32 scales; scale_layout='packed_int32' is not measured")
    for tensor in (*rows, *([] if weight is None else [weight])):
        if tensor.element_size() != 2:
            raise ValueError(f"an input is {tensor.dtype}; the light moves 16-bit inputs: use bfloat16 or float16")
    codes, scale, *total = outputs
    tokens, hidden = codes.shape
    units = tokens * (hidden // lcm(run, quant.group_size))
    layouts = tuple(_layout(tensor) for tensor in rows)
    constants = light_constants(
        run,
        quant,
        hidden,
        layouts,
        weight_elements=0 if weight is None else weight.numel(),
        store_sum=bool(total),
        config=config,
        units=units,
        ptx=launch.runs_ptx(),
        pieces=pieces,
        wait=dependent,
    )
    x, gate = rows[0].view(torch.int16), rows[-1].view(torch.int16)
    light_kernel[(triton.cdiv(units, config.rows),)](
        x,
        gate,
        x if weight is None else weight.view(torch.int16),
        codes.view(torch.uint8),
        scale,
        total[0].view(torch.int16) if total else codes.view(torch.uint8),
        constant,
        units,
        layouts[0].token_stride,
        layouts[0].outer_stride,
        layouts[0].inner_stride,
        layouts[-1].token_stride,
        layouts[-1].outer_stride,
        layouts[-1].inner_stride,
        *launch.scale_strides(scale),
        **constants,
        num_warps=config.num_warps,
        **({"launch_pdl": True} if dependent else {}),
    )


def _layout(tensor: torch.Tensor) -> RowLayout:
    found = row_layout(tensor)
    if found is None:
        raise ValueError(f"strides {list(tensor.stride())} take more than two levels in a token; use .contiguous()")
    return found


def compile_light(
    target: str,
    run: int,
    quant: GroupQuant,
    config: LaunchConfig,
    hidden: int = 4096,
    *,
    rows: int = 2,
    weight_elements: int | None = None,
    store_sum: bool = False,
    pieces: bool = False,
    wait: bool = False,
):
    """Compile the light for `target` without a GPU, as `codegen.compile_fused` compiles ours.

    Inputs are contiguous, pointers and token strides divisible by 16. `weight_elements` is `run` if None. Returns a
    `codegen.Listing`.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fusionlab.observe.codegen import TARGETS, Listing

    contiguous = RowLayout(hidden, hidden, 0, hidden, 0)
    constants = light_constants(
        run,
        quant,
        hidden,
        (contiguous,) * rows,
        weight_elements=run if weight_elements is None else weight_elements,
        store_sum=store_sum,
        config=config,
        units=config.rows,
        ptx=TARGETS[target][0] == "cuda",
        pieces=pieces,
        wait=wait,
    )
    kinds = dict.fromkeys(constants, "constexpr") | {name: f"*{kind}" for name, kind in _POINTEE.items()}
    kinds["constant"] = "fp32"
    signature = {name: kinds.get(name, "i32") for name in light_kernel.arg_names}
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
