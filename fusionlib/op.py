"""torch.ops.fusionlib: the fused op and the unfused second half, for CPU and GPU, eager and traced.

`rms_norm_gated_group_quant` is what the rewrite puts into a graph; `group_quant` is an opaque quantisation op like the
ones serving engines use. Both are functional, carry their specs as plain scalars, and have a fake implementation with
the exact shapes and strides. On CPU they *are* the reference. On a GPU they launch the Triton kernel where
`fusionlib.contract` finds no problem, and otherwise run the reference there and warn once with the reason.
"""

from __future__ import annotations

import functools

import torch

from fusionlib import gradient, reference, schema
from fusionlib.contract import contract_problem, kernel_problem, quant_kernel_problem, quant_problem
from fusionlib.quant_op import TAGS, QuantOp, empty_quantised, warn_once
from fusionlib.spec import GatedNorm, GroupQuant


def _launch_fused(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: GatedNorm,
    quant: GroupQuant,
    codes: torch.Tensor,
    scale: torch.Tensor,
    normed: torch.Tensor | None,
) -> None:
    from fusionlib.kernels.launch import launch_fused

    launch_fused(x, gate, weight, bias, norm, quant, codes, scale, normed)


GATED_NORM = QuantOp(
    "fusionlib::rms_norm_gated_group_quant",
    "Tensor x, Tensor gate, Tensor weight, Tensor? bias",
    GatedNorm,
    value=lambda x, gate, weight, bias, norm: reference.rms_norm_gated(x, gate, weight, norm, bias),
    problem=contract_problem,
    kernel_problem=kernel_problem,
    launch=_launch_fused,
    suffix="_with_norm",
)

_quant_spec = functools.lru_cache(maxsize=256)(GroupQuant)


def _quant_checked(y: torch.Tensor, scalars: tuple[object, ...]) -> GroupQuant:
    quant = _quant_spec(*scalars)
    problem = quant_problem(y, quant)
    if problem is not None:
        raise ValueError(f"fusionlib: {problem}")
    return quant


def _quant_fake(y: torch.Tensor, *scalars: object) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_quantised(y, _quant_checked(y, scalars))


def _quant_reference(y: torch.Tensor, *scalars: object) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.group_quant(y, _quant_checked(y, scalars))


def _quant_cuda(y: torch.Tensor, *scalars: object) -> tuple[torch.Tensor, torch.Tensor]:
    quant = _quant_checked(y, scalars)
    reason = quant_kernel_problem(y, quant)
    if reason is not None:
        warn_once(reason)
        return reference.group_quant(y, quant)
    from fusionlib.kernels.launch import launch_group_quant

    codes, scale = empty_quantised(y, quant)
    with torch.cuda.device(y.device):
        launch_group_quant(y, quant, codes, scale)
    return codes, scale


def _register_group_quant() -> None:
    """Define the op once per process, however often this module is imported or reloaded."""
    name, scalars = "fusionlib::group_quant", schema.declared(GroupQuant)
    if hasattr(torch.ops.fusionlib, "group_quant"):
        return
    torch.library.define(name, f"(Tensor y, {scalars}) -> (Tensor codes, Tensor scale)", tags=TAGS)
    torch.library.impl(name, "cpu", _quant_reference)
    torch.library.impl(name, "cuda", _quant_cuda)
    torch.library.register_fake(name, _quant_fake)
    gradient.register(name, _quant_reference)


_register_group_quant()


def rms_norm_gated_group_quant(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: GatedNorm,
    quant: GroupQuant,
    bias: torch.Tensor | None = None,
    return_normed: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Gated RMS norm and FP8 group quantisation in one pass.

    Args:
        x: [tokens, hidden], [tokens, heads, head_dim] or [tokens, groups, heads_per_group, head_dim]; bf16, fp16 or
            fp32. Any strides with a contiguous last dimension; the dimensions after the first are one row of `hidden`.
        gate: as many tokens and elements per token as x, in its own shape, strides and dtype.
        weight: [norm.norm_size] or [hidden]; bf16, fp16 or fp32.
        norm, quant: what to compute.
        bias: like weight, added after it.
        return_normed: also return the normalised value, for a second consumer.

    Returns:
        codes [tokens, hidden] of `quant.dtype`; scale in `quant.scale_layout`; and, if asked for, the normalised value
        [tokens, hidden] of `norm.output_dtype(x.dtype)`.

    Raises:
        ValueError: if tensors and specs do not fit; the message names the value, the limit and the way out.
    """
    return GATED_NORM(x, gate, weight, bias, norm, quant, return_value=return_normed)


def unsupported(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    norm: GatedNorm,
    quant: GroupQuant,
    bias: torch.Tensor | None = None,
) -> str | None:
    """Why `rms_norm_gated_group_quant` cannot run these tensors with these specs on their device, or None if it can.

    On CPU only the tensor contract counts; on a GPU the kernel and the device must also be able to do it. The rewrite
    refuses a site on this answer, and the op falls back to the reference on the kernel and device part.
    """
    return GATED_NORM.unsupported(x, gate, weight, bias, norm, quant)


def group_quant(y: torch.Tensor, quant: GroupQuant) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 group quantisation of `y` [tokens, hidden] as one opaque op: the unfused second half.

    Returns codes [tokens, hidden] and scale in `quant.scale_layout`. Raises ValueError if `y` does not fit `quant`.
    """
    return torch.ops.fusionlib.group_quant(y, *schema.scalars(quant))
