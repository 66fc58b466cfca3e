"""From specs and tensors to a kernel launch: compile-time constants, strides, grid.

Callers (the op and the offline compiler) have already checked that specs and tensors are supported; this module only
decides how the work is divided.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs

from fusionlib.contract import amd_arch, unit_size
from fusionlib.devices import threads_per_warp
from fusionlib.kernels import gated_norm
from fusionlib.kernels.row_layout import RowLayout, row_layout
from fusionlib.spec import GatedNorm, GroupQuant

_FLOOR_ON = {"amax": 1, "scale": 2}
_DTYPES = {None: None, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def runs_ptx() -> bool:
    """Whether kernels launched here are compiled to PTX."""
    return torch.version.hip is None and not knobs.runtime.interpret


def quant_constants(quant: GroupQuant) -> dict[str, Any]:
    """The compile-time constants of the quantisation."""
    return {
        "FP8_MAX": quant.limit,
        "FLOOR_ON": 0 if quant.floor is None else _FLOOR_ON[quant.floor_on],
        "SCALE_RECIPROCAL": quant.scale_division == "reciprocal",
        "RECIPROCAL": quant.division == "reciprocal",
        "UE8M0": quant.scale_format == "ue8m0",
        "PACKED": quant.scale_layout == "packed_int32",
        "ROUND_SCALE": quant.round_scale,
    }


def fused_constants(
    norm: GatedNorm,
    quant: GroupQuant,
    hidden: int,
    x: RowLayout,
    gate: RowLayout,
    *,
    weight_elements: int,
    has_bias: bool,
    store_normed: bool,
    config: gated_norm.LaunchConfig,
    units: int,
    ptx: bool,
    interpret: bool = False,
) -> dict[str, Any]:
    """Every compile-time constant of the fused kernel, by name, for a launch over `units` units."""
    segment = gcd(norm.norm_size, quant.group_size)
    unit = unit_size(norm, quant)
    return quant_constants(quant) | {
        "UNITS": hidden // unit,
        "SEGMENTS": unit // segment,
        "SEGMENT": segment,
        "NORM_SEGMENTS": norm.norm_size // segment,
        "GROUP_SEGMENTS": quant.group_size // segment,
        "X_OUTER": x.outer,
        "X_INNER": x.inner,
        "GATE_OUTER": gate.outer,
        "GATE_INNER": gate.inner,
        "WEIGHT_PER_TOKEN": weight_elements != norm.norm_size,
        "HAS_BIAS": has_bias,
        "STORE_NORMED": store_normed,
        "SILU": norm.activation == "silu",
        "NORM_BEFORE_GATE": norm.norm_before_gate,
        "WEIGHT_OFFSET": float(norm.weight_offset),
        "ROUND_ACTIVATION": "activation" in norm.rounding,
        "ROUND_GATE": "gate" in norm.rounding,
        "ROUND_NORM": "norm" in norm.rounding,
        "ROUND_WEIGHT": "weight" in norm.rounding,
        "ROUND_OUTPUT": "output" in norm.rounding,
        "OUT_DTYPE": _DTYPES[norm.out_dtype],
        "EXACT": interpret or quant.floor is None,
        "PTX": ptx,
        "ROWS": config.rows,
        "EVEN": units % config.rows == 0,
        "ROW_IS_WARP": segment == unit and config.rows == config.num_warps,
        "BLOCK_SEGMENTS": triton.next_power_of_2(unit // segment),
        "BLOCK_SEGMENT": triton.next_power_of_2(segment),
    }


def may_contract(constants: dict[str, Any]) -> bool:
    """Whether the compiler may contract a multiplication and an addition into one multiply-add in the fused kernel.

    A contracted multiply-add skips a rounding that eager performs. On NVIDIA, unless a bias is added to a product, the
    only candidates are in the sum of squares, whose order eager does not fix either. Other vendors were not checked.
    """
    return constants["PTX"] and not constants["HAS_BIAS"]


def scale_strides(scale: torch.Tensor) -> tuple[int, int]:
    """Elements from one token's scale to the next, and from one group's (or word of four) to the next."""
    return (scale.stride(0), scale.stride(1)) if scale.ndim == 2 else (scale.stride(0), 0)


def launch_fused(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: GatedNorm,
    quant: GroupQuant,
    codes: torch.Tensor,
    scale: torch.Tensor,
    normed: torch.Tensor | None,
    config: gated_norm.LaunchConfig | None = None,
) -> None:
    """Run the fused kernel into `codes`, `scale` and, unless None, `normed`. `config` overrides the heuristic."""
    tokens, hidden = codes.shape
    unit = unit_size(norm, quant)
    units = tokens * (hidden // unit)
    if units == 0:
        return
    config = config or gated_norm.choose_launch(units, unit, threads_per_warp(amd_arch(codes.device)))
    x_layout, gate_layout = row_layout(x), row_layout(gate)
    assert x_layout is not None and gate_layout is not None  # the contract's strides_problem
    constants = fused_constants(
        norm,
        quant,
        hidden,
        x_layout,
        gate_layout,
        weight_elements=weight.numel(),
        has_bias=bias is not None,
        store_normed=normed is not None,
        config=config,
        units=units,
        ptx=runs_ptx(),
        interpret=knobs.runtime.interpret,
    )
    gated_norm.rms_norm_gated_group_quant_kernel[(triton.cdiv(units, config.rows),)](
        x,
        gate,
        weight,
        x if bias is None else bias,
        codes,
        scale,
        codes if normed is None else normed,
        norm.eps,
        quant.floor or 0.0,
        units,
        x_layout.token_stride,
        x_layout.outer_stride,
        x_layout.inner_stride,
        gate_layout.token_stride,
        gate_layout.outer_stride,
        gate_layout.inner_stride,
        *scale_strides(scale),
        **constants,
        num_warps=config.num_warps,
        enable_fp_fusion=may_contract(constants),
    )


def launch_group_quant(y: torch.Tensor, quant: GroupQuant, codes: torch.Tensor, scale: torch.Tensor) -> None:
    """Run the quantisation kernel of the two-kernel path into `codes` and `scale`."""
    tokens, hidden = codes.shape
    groups = hidden // quant.group_size
    units = tokens * groups
    if units == 0:
        return
    config = gated_norm.choose_launch(units, quant.group_size, threads_per_warp(amd_arch(codes.device)))
    gated_norm.group_quant_kernel[(triton.cdiv(units, config.rows),)](
        y,
        codes,
        scale,
        quant.floor or 0.0,
        units,
        y.stride(0),
        *scale_strides(scale),
        GROUPS=groups,
        GROUP=quant.group_size,
        **quant_constants(quant),
        PTX=runs_ptx(),
        ROWS=config.rows,
        EVEN=units % config.rows == 0,
        ROW_IS_WARP=config.rows == config.num_warps,
        BLOCK_GROUP=triton.next_power_of_2(quant.group_size),
        num_warps=config.num_warps,
        enable_fp_fusion=False,
    )
