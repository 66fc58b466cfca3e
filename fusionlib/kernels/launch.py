"""From specs and tensors to a kernel launch: constants, strides, grid.

Callers (the op and the offline compiler) have already checked that specs and tensors are supported; this module only
decides how the work is divided.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton import knobs

from fusionlib.contract import amd_arch, unit_size
from fusionlib.devices import threads_per_warp
from fusionlib.kernels.act_and_mul import act_and_mul_group_quant_kernel
from fusionlib.kernels.config import LaunchConfig, choose_launch, choose_norm_launch
from fusionlib.kernels.constants import (
    act_and_mul_constants,
    fused_constants,
    may_contract,
    quant_constants,
    rms_norm_constants,
)
from fusionlib.kernels.gated_norm import rms_norm_gated_group_quant_kernel
from fusionlib.kernels.group_quant import group_quant_kernel
from fusionlib.kernels.rms_norm import rms_norm_group_quant_kernel
from fusionlib.kernels.row_layout import RowLayout, row_layout
from fusionlib.spec import ActAndMul, GatedNorm, GroupQuant, RMSNorm


def runs_ptx() -> bool:
    """Whether kernels launched here are compiled to PTX."""
    return torch.version.hip is None and not knobs.runtime.interpret


def scale_strides(scale: torch.Tensor) -> tuple[int, int]:
    """Elements from one token's scale to the next, and from one group's (or word of four) to the next."""
    return (scale.stride(0), scale.stride(1)) if scale.ndim == 2 else (scale.stride(0), 0)


def _layout(row: torch.Tensor) -> RowLayout:
    layout = row_layout(row)
    assert layout is not None  # the contract's strides_problem
    return layout


def _strides(layout: RowLayout) -> tuple[int, int, int]:
    return layout.token_stride, layout.outer_stride, layout.inner_stride


def _by_token(factor: torch.Tensor) -> tuple[int, int, int]:
    """Tokens of one sequence of a factor [tokens] or [batch, sequence], and the strides from sequence to sequence and
    from token to token."""
    return factor.shape[-1], factor.stride(0) if factor.ndim == 2 else 0, factor.stride(-1)


def heuristic(units: int, unit: int, device: torch.device) -> LaunchConfig:
    """The launch configuration for `units` units of `unit` elements on `device`."""
    return choose_launch(units, unit, threads_per_warp(amd_arch(device)))


def norm_heuristic(units: int, unit: int, device: torch.device) -> LaunchConfig:
    """The same for an RMS norm."""
    return choose_norm_launch(units, unit, threads_per_warp(amd_arch(device)))


def _run(kernel: Any, config: LaunchConfig, units: int, constants: dict[str, Any], *arguments: Any) -> None:
    """Launch a fused kernel over `units` units."""
    kernel[(triton.cdiv(units, config.rows),)](
        *arguments, **constants, num_warps=config.num_warps, enable_fp_fusion=may_contract(constants)
    )


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
    config: LaunchConfig | None = None,
) -> None:
    """Run the gated norm's kernel into `codes`, `scale` and, unless None, `normed`. `config` overrides `heuristic`."""
    tokens, hidden = codes.shape
    unit = unit_size(norm, quant)
    units = tokens * (hidden // unit)
    if units == 0:
        return
    config = config or heuristic(units, unit, codes.device)
    x_layout, gate_layout = _layout(x), _layout(gate)
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
    _run(
        rms_norm_gated_group_quant_kernel,
        config,
        units,
        constants,
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
        *_strides(x_layout),
        *_strides(gate_layout),
        *scale_strides(scale),
    )


def launch_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    token_factor: torch.Tensor | None,
    norm: RMSNorm,
    quant: GroupQuant,
    codes: torch.Tensor,
    scale: torch.Tensor,
    normed: torch.Tensor | None,
    total: torch.Tensor | None,
    config: LaunchConfig | None = None,
) -> None:
    """Run the RMS norm's kernel into `codes`, `scale` and, unless None, `normed` and the sum `total`."""
    tokens, hidden = codes.shape
    unit = unit_size(norm, quant)
    units = tokens * (hidden // unit)
    if units == 0:
        return
    config = config or norm_heuristic(units, unit, codes.device)
    x_layout, residual_layout = _layout(x), None if residual is None else _layout(residual)
    constants = rms_norm_constants(
        norm,
        quant,
        hidden,
        x_layout,
        residual_layout,
        weight_elements=None if weight is None else weight.numel(),
        has_token_factor=token_factor is not None,
        store_normed=normed is not None,
        store_sum=total is not None,
        config=config,
        units=units,
        ptx=runs_ptx(),
    )
    _run(
        rms_norm_group_quant_kernel,
        config,
        units,
        constants,
        x,
        x if residual is None else residual,
        x if weight is None else weight,
        x if token_factor is None else token_factor,
        codes,
        scale,
        codes if normed is None else normed,
        codes if total is None else total,
        norm.eps,
        quant.floor or 0.0,
        units,
        *_strides(x_layout),
        *_strides(residual_layout or x_layout),
        *((1, 0, 0) if token_factor is None else _by_token(token_factor)),
        *scale_strides(scale),
    )


def launch_act_and_mul(
    x: torch.Tensor,
    gate: torch.Tensor,
    act: ActAndMul,
    quant: GroupQuant,
    codes: torch.Tensor,
    scale: torch.Tensor,
    value: torch.Tensor | None,
    config: LaunchConfig | None = None,
) -> None:
    """Run the kernel of a product with an activation into `codes`, `scale` and, unless None, `value`."""
    tokens, hidden = codes.shape
    units = tokens * (hidden // quant.group_size)
    if units == 0:
        return
    config = config or heuristic(units, quant.group_size, codes.device)
    x_layout, gate_layout = _layout(x), _layout(gate)
    constants = act_and_mul_constants(
        act,
        quant,
        hidden,
        x_layout,
        gate_layout,
        store_value=value is not None,
        config=config,
        units=units,
        ptx=runs_ptx(),
        interpret=knobs.runtime.interpret,
    )
    _run(
        act_and_mul_group_quant_kernel,
        config,
        units,
        constants,
        x,
        gate,
        codes,
        scale,
        codes if value is None else value,
        quant.floor or 0.0,
        units,
        *_strides(x_layout),
        *_strides(gate_layout),
        *scale_strides(scale),
    )


def launch_group_quant(y: torch.Tensor, quant: GroupQuant, codes: torch.Tensor, scale: torch.Tensor) -> None:
    """Run the quantisation kernel of the two-kernel path into `codes` and `scale`."""
    tokens, hidden = codes.shape
    groups = hidden // quant.group_size
    units = tokens * groups
    if units == 0:
        return
    config = heuristic(units, quant.group_size, codes.device)
    group_quant_kernel[(triton.cdiv(units, config.rows),)](
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
        GROUP_IS_WARP=config.rows == config.num_warps,
        BLOCK_GROUP=triton.next_power_of_2(quant.group_size),
        num_warps=config.num_warps,
        enable_fp_fusion=False,
    )
