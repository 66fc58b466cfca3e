"""torch.ops.fusionlib: the fused op and the unfused second half, for CPU and GPU, eager and traced.

`rms_norm_gated_group_quant` is what the rewrite puts into a graph; `group_quant` is an opaque quantisation op like the
ones serving engines use. Both are functional, carry their specs as plain scalars, and have a fake implementation with
the exact shapes and strides. On CPU they *are* the reference. On a GPU they launch the Triton kernel where
`fusionlib.contract` finds nothing against it, and otherwise run the reference there and warn once with the reason.
"""

from __future__ import annotations

import functools
import warnings
from math import prod

import torch

from fusionlib import gradient, reference
from fusionlib.contract import contract_problem, device_problem, kernel_problem, quant_problem, quant_supports
from fusionlib.spec import GatedNorm, GroupQuant

_FUSED_SCHEMA = (
    "float eps, str activation, bool norm_before_gate, int weight_offset, int norm_size, str rounding, "
    "ScalarType? out_dtype, int group_size, ScalarType dtype, float? floor, str floor_on, str division, "
    "str scale_format, str scale_layout, bool round_scale, float? fp8_max, str scale_division"
)
_QUANT_SCHEMA = _FUSED_SCHEMA.split("out_dtype, ")[1]


def norm_arguments(norm: GatedNorm) -> tuple:
    """The scalars of `norm` in schema order."""
    return (
        norm.eps,
        norm.activation,
        norm.norm_before_gate,
        norm.weight_offset,
        norm.norm_size,
        norm.rounding_text,
        norm.out_dtype,
    )


def quant_arguments(quant: GroupQuant) -> tuple:
    """The scalars of `quant` in schema order."""
    return (
        quant.group_size,
        quant.dtype,
        quant.floor,
        quant.floor_on,
        quant.division,
        quant.scale_format,
        quant.scale_layout,
        quant.round_scale,
        quant.fp8_max,
        quant.scale_division,
    )


@functools.lru_cache(maxsize=256)
def _specs(*scalars) -> tuple[GatedNorm, GroupQuant]:
    """The specs that a call's scalars spell; cached, since a model calls with few and a launch takes microseconds."""
    eps, activation, norm_before_gate, weight_offset, norm_size, rounding, out_dtype, *quant = scalars
    points = frozenset(rounding.split(",")) if rounding else frozenset()
    norm = GatedNorm(norm_size, eps, activation, norm_before_gate, weight_offset, points, out_dtype)
    return norm, GroupQuant(*quant)


_quant_spec = functools.lru_cache(maxsize=256)(GroupQuant)


def _raise(problem: str | None) -> None:
    if problem is not None:
        raise ValueError(f"fusionlib: {problem}")


_warned: set[str] = set()


def _warn_once(reason: str) -> None:
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"fusionlib runs the unfused reference: {reason}", RuntimeWarning, stacklevel=3)


def _empty_quantised(y: torch.Tensor, quant: GroupQuant) -> tuple[torch.Tensor, torch.Tensor]:
    """Unwritten codes and scales for the rows of `y` [tokens, ...], in their exact shapes and strides."""
    tokens, hidden = y.shape[0], prod(y.shape[1:])
    size, stride, dtype = reference.scale_storage(tokens, hidden // quant.group_size, quant)
    codes = y.new_empty((tokens, hidden), dtype=quant.dtype)
    return codes, torch.empty_strided(size, stride, dtype=dtype, device=y.device)


def _fused_fake(x, gate, weight, bias, *scalars) -> tuple:
    norm, quant = _specs(*scalars)
    _raise(contract_problem(x, gate, weight, norm, quant, bias))
    codes, scale = _empty_quantised(x, quant)
    return codes, scale, torch.empty_like(codes, dtype=norm.output_dtype(x.dtype))


def _fused_reference(x, gate, weight, bias, *scalars) -> tuple:
    norm, quant = _specs(*scalars)
    _raise(contract_problem(x, gate, weight, norm, quant, bias))
    normed = reference.rms_norm_gated(x, gate, weight, norm, bias)
    return *reference.group_quant(normed, quant), normed


def _fused_cuda(x, gate, weight, bias, *scalars, want_normed: bool) -> tuple:
    norm, quant = _specs(*scalars)
    _raise(contract_problem(x, gate, weight, norm, quant, bias))
    reason = kernel_problem(x, gate, norm, quant) or device_problem(x.device, quant.dtype)
    if reason is not None:
        _warn_once(reason)
        return _fused_reference(x, gate, weight, bias, *scalars)
    from fusionlib.kernels.launch import launch_fused

    codes, scale = _empty_quantised(x, quant)
    normed = torch.empty_like(codes, dtype=norm.output_dtype(x.dtype)) if want_normed else None
    with torch.cuda.device(x.device):
        launch_fused(x, gate, weight, bias, norm, quant, codes, scale, normed)
    return codes, scale, normed


def _quant_fake(y, *scalars) -> tuple:
    quant = _quant_spec(*scalars)
    _raise(quant_problem(y, quant))
    return _empty_quantised(y, quant)


def _quant_reference(y, *scalars) -> tuple:
    quant = _quant_spec(*scalars)
    _raise(quant_problem(y, quant))
    return reference.group_quant(y, quant)


def _quant_cuda(y, *scalars) -> tuple:
    quant = _quant_spec(*scalars)
    _raise(quant_problem(y, quant))
    reason = quant_supports(y, quant)
    if reason is not None:
        _warn_once(reason)
        return _quant_reference(y, *scalars)
    from fusionlib.kernels.launch import launch_group_quant

    codes, scale = _empty_quantised(y, quant)
    with torch.cuda.device(y.device):
        launch_group_quant(y, quant, codes, scale)
    return codes, scale


def _register() -> None:
    """Define the ops once a process, however often this module is imported or reloaded."""
    if hasattr(torch.ops.fusionlib, "group_quant"):
        return
    fused, with_norm = "rms_norm_gated_group_quant", "rms_norm_gated_group_quant_with_norm"
    inputs = f"(Tensor x, Tensor gate, Tensor weight, Tensor? bias, {_FUSED_SCHEMA})"
    # Strided gates are the point: Inductor must hand them over as they are.
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    torch.library.define(f"fusionlib::{fused}", f"{inputs} -> (Tensor codes, Tensor scale)", tags=tags)
    torch.library.define(
        f"fusionlib::{with_norm}", f"{inputs} -> (Tensor codes, Tensor scale, Tensor normed)", tags=tags
    )
    torch.library.define(
        "fusionlib::group_quant", f"(Tensor y, {_QUANT_SCHEMA}) -> (Tensor codes, Tensor scale)", tags=tags
    )
    implementations = {
        "cpu": (_fused_reference, _quant_reference),
        "cuda": (_fused_cuda, _quant_cuda),
    }
    for device, (fused_impl, quant_impl) in implementations.items():
        extra = {"want_normed": False} if device == "cuda" else {}
        torch.library.impl(f"fusionlib::{fused}", device, lambda *a, f=fused_impl, e=extra: f(*a, **e)[:2])
        extra = {"want_normed": True} if device == "cuda" else {}
        torch.library.impl(f"fusionlib::{with_norm}", device, lambda *a, f=fused_impl, e=extra: f(*a, **e))
        torch.library.impl("fusionlib::group_quant", device, quant_impl)
    torch.library.register_fake(f"fusionlib::{fused}", lambda *a: _fused_fake(*a)[:2])
    torch.library.register_fake(f"fusionlib::{with_norm}", _fused_fake)
    torch.library.register_fake("fusionlib::group_quant", _quant_fake)
    gradient.register(f"fusionlib::{fused}", lambda *a: _fused_reference(*a)[:2])
    gradient.register(f"fusionlib::{with_norm}", _fused_reference)
    gradient.register("fusionlib::group_quant", _quant_reference)


_register()


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
            fp32. Any strides with a contiguous last dimension; the dimensions behind the first are one row of `hidden`.
        gate: as many tokens and elements per token as x, in its own shape, strides and dtype.
        weight: [norm.norm_size] or [hidden]; bf16, fp16 or fp32.
        norm, quant: what to compute.
        bias: like weight, added behind it.
        return_normed: also return the normed value, for a second consumer.

    Returns:
        codes [tokens, hidden] of `quant.dtype`; scale in `quant.scale_layout`; and, if asked for, the normed value
        [tokens, hidden] of `norm.output_dtype(x.dtype)`.

    Raises:
        ValueError: where tensors and specs do not fit; the message names the value, the limit and the way out.
    """
    name = "rms_norm_gated_group_quant_with_norm" if return_normed else "rms_norm_gated_group_quant"
    return getattr(torch.ops.fusionlib, name)(x, gate, weight, bias, *norm_arguments(norm), *quant_arguments(quant))


def group_quant(y: torch.Tensor, quant: GroupQuant) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 group quantisation of `y` [tokens, hidden] as one opaque op: the unfused second half.

    Returns codes [tokens, hidden] and scale in `quant.scale_layout`. Raises ValueError where `y` does not fit `quant`.
    """
    return torch.ops.fusionlib.group_quant(y, *quant_arguments(quant))
