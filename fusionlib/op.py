"""torch.ops.fusionlib: the fused ops and the unfused second half, for CPU and GPU, eager and traced.

One op for each producer is what the rewrite puts into a graph; `group_quant` is an opaque quantisation op like the
ones serving engines use. All are functional, carry their specs as plain scalars, and have a fake implementation with
the exact shapes and strides. On CPU they *are* the reference. On a GPU they launch the Triton kernel where
`fusionlib.contract` finds no problem, and otherwise run the reference there and warn once with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fusionlib import contract, gradient, reference, schema
from fusionlib.quant_op import TAGS, VALUE, QuantOp, empty_quantised, room_for_quantised, warn_once
from fusionlib.spec import ActAndMul, GatedNorm, GroupQuant, RMSNorm


def _launch(name: str) -> Callable[..., None]:
    """The function `name` of `fusionlib.kernels.launch`, which imports Triton at the first launch."""

    def launch(*arguments: Any) -> None:
        from fusionlib.kernels import launch as launches

        getattr(launches, name)(*arguments)

    return launch


GATED_NORM = QuantOp(
    "fusionlib::rms_norm_gated_group_quant",
    "Tensor x, Tensor gate, Tensor weight, Tensor? bias",
    GatedNorm,
    value=lambda x, gate, weight, bias, norm: reference.rms_norm_gated(x, gate, weight, norm, bias),
    problem=contract.contract_problem,
    kernel_problem=contract.kernel_problem,
    launch=_launch("launch_fused"),
)

RMS_NORM = QuantOp(
    "fusionlib::rms_norm_group_quant",
    "Tensor x, Tensor? residual, Tensor? weight, Tensor? token_factor",
    RMSNorm,
    value=lambda x, residual, weight, token_factor, norm: reference.rms_norm(x, weight, norm, residual, token_factor),
    problem=contract.rms_norm_problem,
    kernel_problem=contract.rms_norm_kernel_problem,
    launch=_launch("launch_rms_norm"),
    kept={"sum": lambda x, residual, *others: x.dtype if residual is None else residual.dtype},
)

ACT_AND_MUL = QuantOp(
    "fusionlib::act_and_mul_group_quant",
    "Tensor x, Tensor gate",
    ActAndMul,
    value=reference.act_and_mul,
    problem=contract.act_and_mul_problem,
    kernel_problem=contract.act_and_mul_kernel_problem,
    launch=_launch("launch_act_and_mul"),
)

_quant_spec = functools.lru_cache(maxsize=256)(GroupQuant)


def _quant_checked(y: torch.Tensor, scalars: tuple[object, ...]) -> GroupQuant:
    quant = _quant_spec(*scalars)
    problem = contract.quant_problem(y, quant)
    if problem is not None:
        raise ValueError(f"fusionlib: {problem}")
    return quant


def _quant_fake(y: torch.Tensor, *scalars: object) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_quantised(y, _quant_checked(y, scalars))


def _quant_reference(y: torch.Tensor, *scalars: object) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.group_quant(y, _quant_checked(y, scalars))


def _quant_cuda(y: torch.Tensor, *scalars: object) -> tuple[torch.Tensor, torch.Tensor]:
    quant = _quant_checked(y, scalars)
    reason = contract.quant_kernel_problem(y, quant)
    if reason is not None:
        warn_once(reason)
        return reference.group_quant(y, quant)
    from fusionlib.kernels.launch import launch_group_quant

    codes, scale = room_for_quantised(y, quant)
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
    return GATED_NORM(x, gate, weight, bias, norm, quant, also=(VALUE,) if return_normed else ())


def rms_norm_group_quant(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    norm: RMSNorm,
    quant: GroupQuant,
    residual: torch.Tensor | None = None,
    token_factor: torch.Tensor | None = None,
    return_normed: bool = False,
    return_sum: bool = False,
) -> tuple[torch.Tensor, ...]:
    """RMS norm, of x + residual if there is one, and FP8 group quantisation in one pass.

    Args:
        x: [tokens, hidden], or [tokens, ...] as for `rms_norm_gated_group_quant`; bf16, fp16 or fp32.
        weight: [norm.norm_size] or [hidden]; bf16, fp16 or fp32; None for ones.
        norm, quant: what to compute.
        residual: as many tokens and elements per token as x, in its own shape, strides and dtype.
        token_factor: what each token's normalised value is multiplied by, such as a padding mask: [tokens] or
            [batch, sequence] in any strides; bool, an integer dtype, bf16, fp16 or fp32. As in PyTorch the product is
            taken in the dtype that both promote to; it is then rounded to the value's.
        return_normed: also return the value that is quantised, for a second consumer.
        return_sum: also return the sum, for the next residual.

    Returns:
        codes [tokens, hidden] of `quant.dtype`; scale in `quant.scale_layout`; then, if asked for, the value [tokens,
        hidden] of `norm.output_dtype(x.dtype)` and the sum [tokens, hidden] of the residual's dtype.

    Raises:
        ValueError: if tensors and specs do not fit; the message names the value, the limit and the way out.
    """
    if return_sum and residual is None:
        raise ValueError("return_sum=True needs a residual: without one the sum is x; pass residual= or leave it out")
    also = [name for name, wanted in ((VALUE, return_normed), ("sum", return_sum)) if wanted]
    return RMS_NORM(x, residual, weight, token_factor, norm, quant, also=also)


def act_and_mul_group_quant(
    x: torch.Tensor, gate: torch.Tensor, *, act: ActAndMul, quant: GroupQuant, return_value: bool = False
) -> tuple[torch.Tensor, ...]:
    """x * act(gate) and FP8 group quantisation in one pass.

    Args:
        x: [tokens, hidden], or [tokens, ...] as for `rms_norm_gated_group_quant`; bf16, fp16 or fp32. Half of a
            projection may be passed as the view it is, also every other element of it.
        gate: as many tokens and elements per token as x, in its own shape, strides and dtype.
        act, quant: what to compute.
        return_value: also return the product, for a second consumer.

    Returns:
        codes [tokens, hidden] of `quant.dtype`; scale in `quant.scale_layout`; and, if asked for, the product
        [tokens, hidden] of `act.output_dtype(x.dtype)`.

    Raises:
        ValueError: if tensors and specs do not fit; the message names the value, the limit and the way out.
    """
    return ACT_AND_MUL(x, gate, act, quant, also=(VALUE,) if return_value else ())


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
