"""What the versions share: the one case that they support, and the description of a launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fusionlib.kernels.row_layout import RowLayout, row_layout
from fusionlib.spec import GatedNorm, GroupQuant


@dataclass(frozen=True)
class Launch:
    """One kernel launch: `programs` programs of `num_warps` warps, arguments and compile-time constants by name."""

    kernel: Any  # a function under @triton.jit
    programs: int
    arguments: dict[str, torch.Tensor | int | float]
    constants: dict[str, Any]
    num_warps: int

    def run(self) -> None:
        """Launch it on the current device, or run it in this process's interpreter."""
        self.kernel[(self.programs,)](
            **self.arguments,
            **self.constants,
            num_warps=self.num_warps,
            enable_fp_fusion=False,  # a contracted multiply-add would skip a rounding that eager performs
        )


Launches = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, GatedNorm, GroupQuant, torch.Tensor, torch.Tensor], list[Launch]
]


def unsupported(norm: GatedNorm, quant: GroupQuant, weight_elements: int) -> str | None:
    """Why the versions do not support these specs; None if they do. The library's kernel has no such limits."""
    size = norm.norm_size
    wanted = (
        (size == quant.group_size, f"norm_size={size} and group_size={quant.group_size} must be the same"),
        (size & (size - 1) == 0 and size >= 16, f"norm_size={size} must be a power of two of 16 or more"),
        (weight_elements == size, f"weight has {weight_elements} elements, and norm_size={size} asks for as many"),
        (norm.norm_before_gate, "norm_before_gate=False"),
        (norm.activation == "silu", f"activation={norm.activation!r}"),
        (norm.weight_offset == 0, f"weight_offset={norm.weight_offset}"),
        ("activation" not in norm.rounding, "rounding of the activation"),
        (quant.dtype is torch.float8_e4m3fn, f"dtype={quant.dtype}"),
        (quant.floor is not None and quant.floor_on == "amax", f"floor={quant.floor} on {quant.floor_on}"),
        (quant.division == "divide", f"division={quant.division!r}"),
        (quant.scale_format == "float32", f"scale_format={quant.scale_format!r}"),
        (quant.scale_layout == "row_major", f"scale_layout={quant.scale_layout!r}"),
        (not quant.round_scale, "round_scale=True"),
    )
    for fits, what in wanted:
        if not fits:
            return f"{what} is beyond the teaching versions; version 7 (fusionlib.kernels.launch) takes it"
    return None


def require(norm: GatedNorm, quant: GroupQuant, weight: torch.Tensor) -> None:
    """Raise ValueError with the reason if `unsupported` has one."""
    reason = unsupported(norm, quant, weight.numel())
    if reason is not None:
        raise ValueError(f"fusionlab.versions: {reason}")


def roundings(norm: GatedNorm) -> dict[str, bool]:
    """The rounding points as compile-time constants, named as in every version's kernel."""
    return {f"ROUND_{point.upper()}": point in norm.rounding for point in ("norm", "weight", "output")}


def runs_of_heads(gate: torch.Tensor, size: int) -> RowLayout:
    """The layout of a gate whose runs hold whole heads of `size` elements, one stride apart, as version 6 supports.

    Raises:
        ValueError: for a gate that needs two levels of strides, or whose runs split a head.
    """
    layout = row_layout(gate)
    if layout is None or layout.outer_stride or layout.inner % size:
        raise ValueError(
            f"fusionlab.versions: a gate of shape {list(gate.shape)} with strides {gate.stride()} is not runs of whole "
            f"heads of {size}, one stride apart; version 7 (fusionlib.kernels.launch) follows two levels of strides"
        )
    return layout
