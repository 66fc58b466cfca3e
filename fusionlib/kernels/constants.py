"""From specs and row layouts to the compile-time constants of a kernel, by name."""

from __future__ import annotations

from math import gcd, lcm
from typing import Any

import torch
import triton
import triton.language as tl

from fusionlib.kernels.config import LaunchConfig
from fusionlib.kernels.row_layout import RowLayout
from fusionlib.spec import ActAndMul, GatedNorm, GroupQuant, RMSNorm

_FLOOR_ON = {"amax": 1, "scale": 2}
_DTYPES = {None: None, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


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
        "NAN_SCALE": quant.nan_scale == "nan",
    }


def unit_constants(
    run: int, quant: GroupQuant, hidden: int, units: int, config: LaunchConfig, *, ptx: bool
) -> dict[str, Any]:
    """The compile-time constants of the tiling, for a launch over `units` units of runs of `run` elements."""
    segment, unit = gcd(run, quant.group_size), lcm(run, quant.group_size)
    block_segments = triton.next_power_of_2(unit // segment)
    return quant_constants(quant) | {
        "UNITS": hidden // unit,
        "SEGMENTS": unit // segment,
        "SEGMENT": segment,
        "GROUP_SEGMENTS": quant.group_size // segment,
        "PTX": ptx,
        "ROWS": config.rows,
        "EVEN": units % config.rows == 0,
        "SEGMENT_IS_WARP": block_segments * config.rows == config.num_warps,
        "BLOCK_SEGMENTS": block_segments,
        "BLOCK_SEGMENT": triton.next_power_of_2(segment),
    }


def in_pieces(run: int, tiling: dict[str, Any], config: LaunchConfig) -> dict[str, Any]:
    """A tiling by `unit_constants` whose units are held in several blocks of eight elements a thread.

    That is not possible unless one norm, of `run` elements, is the whole unit: the squares of all blocks are added. Nor
    if a block is not a whole number of groups, or there are several rows.
    """
    segment, segments = tiling["SEGMENT"], tiling["SEGMENTS"]
    block = 8 * 32 * config.num_warps // segment
    whole = config.rows == 1 and run == segment * segments
    fits = whole and tiling["PTX"] and segment == tiling["BLOCK_SEGMENT"] and block < segments
    if not fits or block < 1 or block % tiling["GROUP_SEGMENTS"] or block & (block - 1):
        return tiling | {"PIECES": 1}
    is_warp = block == config.num_warps
    return tiling | {"PIECES": -(-segments // block), "BLOCK_SEGMENTS": block, "SEGMENT_IS_WARP": is_warp}


def norm_constants(run: int, tiling: dict[str, Any], config: LaunchConfig) -> dict[str, Any]:
    """The compile-time constants of means over `run` elements, for a tiling by `unit_constants`."""
    segments = run // tiling["SEGMENT"]
    elements = tiling["BLOCK_SEGMENTS"] * tiling["BLOCK_SEGMENT"]
    shared = config.rows == 1 and segments == tiling["SEGMENTS"] and elements >= 32 * config.num_warps > 32
    return {
        "NORM_SEGMENTS": segments,
        "WARPS": config.num_warps if shared and tiling["PTX"] else 0,
    }


def row_constants(**rows: RowLayout) -> dict[str, int]:
    """The compile-time constants of rows by name: X_OUTER and X_INNER for x."""
    return {
        f"{name.upper()}_{part.upper()}": getattr(layout, part)
        for name, layout in rows.items()
        for part in ("outer", "inner")
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
    config: LaunchConfig,
    units: int,
    ptx: bool,
    interpret: bool = False,
) -> dict[str, Any]:
    """Every compile-time constant of the gated norm's kernel, by name, for a launch over `units` units."""
    constants = unit_constants(norm.norm_size, quant, hidden, units, config, ptx=ptx)
    return (
        constants
        | norm_constants(norm.norm_size, constants, config)
        | row_constants(x=x, gate=gate)
        | {
            "WEIGHT_PER_TOKEN": weight_elements != norm.norm_size,
            "HAS_BIAS": has_bias,
            "STORE_NORMED": store_normed,
            "ACTIVATION": norm.activation,
            "NORM_BEFORE_GATE": norm.norm_before_gate,
            "WEIGHT_OFFSET": float(norm.weight_offset),
            "ROUND_ACTIVATION": "activation" in norm.rounding,
            "ROUND_GATE": "gate" in norm.rounding,
            "ROUND_NORM": "norm" in norm.rounding,
            "ROUND_WEIGHT": "weight" in norm.rounding,
            "ROUND_OUTPUT": "output" in norm.rounding,
            "OUT_DTYPE": _DTYPES[norm.out_dtype],
            "EXACT": interpret or quant.floor is None,
        }
    )


def rms_norm_constants(
    norm: RMSNorm,
    quant: GroupQuant,
    hidden: int,
    x: RowLayout,
    residual: RowLayout | None,
    *,
    weight_elements: int | None,
    has_token_factor: bool = False,
    store_normed: bool,
    store_sum: bool,
    config: LaunchConfig,
    units: int,
    ptx: bool,
) -> dict[str, Any]:
    """Every compile-time constant of the RMS norm's kernel, by name; `weight_elements` is None without a weight."""
    run = norm.norm_size
    constants = in_pieces(run, unit_constants(run, quant, hidden, units, config, ptx=ptx), config)
    return (
        constants
        | norm_constants(run, constants, config)
        | row_constants(x=x, residual=residual or x)
        | {
            "HAS_RESIDUAL": residual is not None,
            "HAS_WEIGHT": weight_elements is not None,
            "WEIGHT_PER_TOKEN": weight_elements not in (None, norm.norm_size),
            "HAS_TOKEN_FACTOR": has_token_factor,
            "STORE_NORMED": store_normed,
            "STORE_SUM": store_sum,
            "WEIGHT_OFFSET": float(norm.weight_offset),
            "ROUND_SUM": "sum" in norm.rounding,
            "ROUND_NORM": "norm" in norm.rounding,
            "ROUND_OUTPUT": "output" in norm.rounding,
            "OUT_DTYPE": _DTYPES[norm.out_dtype],
        }
    )


def act_and_mul_constants(
    act: ActAndMul,
    quant: GroupQuant,
    hidden: int,
    x: RowLayout,
    gate: RowLayout,
    *,
    store_value: bool,
    config: LaunchConfig,
    units: int,
    ptx: bool,
    interpret: bool = False,
) -> dict[str, Any]:
    """Every compile-time constant of the kernel of a product with an activation, by name."""
    constants = unit_constants(quant.group_size, quant, hidden, units, config, ptx=ptx)
    return (
        constants
        | row_constants(x=x, gate=gate)
        | {
            "STORE_VALUE": store_value,
            "ACTIVATION": act.activation,
            "ROUND_ACTIVATION": "activation" in act.rounding,
            "ROUND_OUTPUT": "output" in act.rounding,
            "OUT_DTYPE": _DTYPES[act.out_dtype],
            "EXACT": interpret or quant.floor is None,
        }
    )


def may_contract(constants: dict[str, Any]) -> bool:
    """Whether the compiler may contract a multiplication and an addition into one multiply-add in a fused kernel.

    A contracted multiply-add skips a rounding that eager performs. On NVIDIA, unless a bias is added to a product, the
    only candidates are in the sum of squares, whose order eager does not fix either. Other vendors were not checked.
    """
    return constants["PTX"] and not constants.get("HAS_BIAS", False)
