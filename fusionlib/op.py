"""torch.ops.fusionlib: the fused op and the unfused second half, for CPU and GPU, eager and traced.

`rms_norm_gated_group_quant` is what the rewrite puts into a graph; `group_quant` is an opaque quantisation op like the
ones serving engines use. Both are functional, carry their specs as plain scalars, and have a fake implementation with
the exact shapes and strides. On CPU they *are* the reference. On a GPU they launch the Triton kernel where `supports`
finds nothing against it, and otherwise run the reference there and warn once with the reason.
"""

from __future__ import annotations

import functools
import warnings
from math import prod

import torch

from fusionlib import reference
from fusionlib.layout import row_layout
from fusionlib.spec import GatedNorm, GroupQuant

ACTIVATION_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

#: Longest unit (elements) one program holds: 16 warps of 32 elements a thread.
MAX_UNIT = 16384

_NORM_SCHEMA = (
    "float eps, str activation, bool norm_before_gate, int weight_offset, int norm_size, str rounding, "
    "int group_size, ScalarType dtype, float? floor, str floor_on, str division, str scale_format, "
    "str scale_layout, bool round_scale, float? fp8_max"
)
_QUANT_SCHEMA = _NORM_SCHEMA.split("str rounding, ")[1]


def norm_arguments(norm: GatedNorm) -> tuple:
    """The scalars of `norm` in schema order."""
    return (
        norm.eps,
        norm.activation,
        norm.norm_before_gate,
        norm.weight_offset,
        norm.norm_size,
        norm.rounding_text,
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
    )


@functools.lru_cache(maxsize=256)
def _specs(*scalars) -> tuple[GatedNorm, GroupQuant]:
    """The specs that a call's scalars spell; cached, since a model calls with few and a launch takes microseconds."""
    eps, activation, norm_before_gate, weight_offset, norm_size, rounding, *quant = scalars
    points = frozenset(rounding.split(",")) if rounding else frozenset()
    return GatedNorm(norm_size, eps, activation, norm_before_gate, weight_offset, points), GroupQuant(*quant)


_quant_spec = functools.lru_cache(maxsize=256)(GroupQuant)


# --- What may come ---


def _differ(a: int, b: int) -> bool:
    """a != b, where a symbolic size that cannot be decided while tracing counts as equal."""
    if isinstance(a, int) and isinstance(b, int):
        return a != b
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(a != b)


def _tensor_problem(name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> str | None:
    if tensor.ndim < 2:
        return (
            f"{name} has shape {list(tensor.shape)}; it must be [tokens, ...] with at least 2 dimensions: "
            f"use {name}.unsqueeze(0) for a single token"
        )
    if tensor.dtype not in dtypes:
        listed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        return f"{name} is {tensor.dtype}; it must be one of {listed}: convert it with {name}.to(...)"
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        return (
            f"{name} has strides {list(tensor.stride())}; the last dimension must be contiguous (stride 1): "
            f"use {name}.contiguous()"
        )
    return None


def _division_problem(hidden: int, field: str, size: int) -> str | None:
    if hidden % size != 0 or hidden == 0:
        return f"{field}={size} does not divide the {hidden} elements of a token; choose a divisor of {hidden}"
    return None


def _vector_problem(name: str, vector: torch.Tensor, hidden: int, norm_size: int) -> str | None:
    if vector.dtype not in ACTIVATION_DTYPES:
        return f"{name} is {vector.dtype}; it must be bfloat16, float16 or float32"
    if vector.ndim != 1 or vector.shape[0] not in (norm_size, hidden) or vector.stride(0) != 1:
        return (
            f"{name} has shape {list(vector.shape)} and strides {list(vector.stride())}; it must be a contiguous "
            f"[{norm_size}] (norm_size) or [{hidden}] (one per element of a token)"
        )
    return None


def quant_problem(y: torch.Tensor, quant: GroupQuant) -> str | None:
    """Why `group_quant` cannot take `y`, or None."""
    problem = _tensor_problem("y", y, ACTIVATION_DTYPES)
    if problem is None and y.ndim != 2:
        problem = f"y has shape {list(y.shape)}; it must be [tokens, hidden]: use y.flatten(1) or y.reshape(tokens, -1)"
    return problem or _division_problem(y.shape[1], "group_size", quant.group_size)


def contract_problem(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    norm: GatedNorm,
    quant: GroupQuant,
    bias: torch.Tensor | None = None,
) -> str | None:
    """Why these tensors do not fit these specs on any device, or None. The op raises ValueError with it."""
    for name, tensor in (("x", x), ("gate", gate)):
        problem = _tensor_problem(name, tensor, ACTIVATION_DTYPES)
        if problem is not None:
            return problem
    hidden = prod(x.shape[1:])
    if _differ(x.shape[0], gate.shape[0]) or _differ(hidden, prod(gate.shape[1:])):
        return (
            f"x has shape {list(x.shape)} and gate {list(gate.shape)}; both need the same number of tokens (first "
            "dimension) and of elements per token (the others together)"
        )
    problem = (
        _division_problem(hidden, "norm_size", norm.norm_size)
        or _division_problem(hidden, "group_size", quant.group_size)
        or _vector_problem("weight", weight, hidden, norm.norm_size)
    )
    if problem is None and bias is not None:
        problem = _vector_problem("bias", bias, hidden, norm.norm_size)
        if problem is None and bias.shape != weight.shape:
            problem = f"bias has shape {list(bias.shape)} and weight {list(weight.shape)}; they must be the same"
    devices = {str(t.device) for t in (x, gate, weight, bias) if t is not None}
    if problem is None and len(devices) > 1:
        problem = f"tensors are on {', '.join(sorted(devices))}; move them to one device"
    return problem


def supports(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    norm: GatedNorm,
    quant: GroupQuant,
    bias: torch.Tensor | None = None,
) -> str | None:
    """None if the fused op can run these tensors with these specs where they are, else the reason in words.

    On CPU that is the tensor contract alone; on a GPU also whether the kernel and the device can do it. The one place
    that decides: the op falls back to the reference, and the rewrite refuses a site, by this answer.
    """
    problem = contract_problem(x, gate, weight, norm, quant, bias)
    if problem is not None or x.device.type == "cpu":
        return problem
    if x.device.type != "cuda":
        return f"device {x.device.type!r} has no implementation; use 'cpu' or 'cuda' (NVIDIA and ROCm)"
    return _kernel_problem(x, gate, norm, quant) or _device_problem(x.device, quant.dtype)


def _kernel_problem(x: torch.Tensor, gate: torch.Tensor, norm: GatedNorm, quant: GroupQuant) -> str | None:
    unit, part = max(norm.norm_size, quant.group_size), min(norm.norm_size, quant.group_size)
    if unit % part != 0:
        return f"norm_size={norm.norm_size} and group_size={quant.group_size}: one must divide the other"
    if unit > MAX_UNIT:
        return f"a unit of {unit} elements (max of norm_size and group_size) is above the kernel's {MAX_UNIT}"
    units = x.shape[0] * (prod(x.shape[1:]) // unit)
    if isinstance(units, int) and units > 2**31 - 64:
        return f"{units} units are more than the kernel's 32-bit row index holds (2^31 - 64); split the tokens"
    for name, tensor in (("x", x), ("gate", gate)):
        if row_layout(tensor) is None:
            return (
                f"{name} with shape {list(tensor.shape)} and strides {list(tensor.stride())} takes more than two "
                f"levels of strides in a token; use {name}.contiguous()"
            )
    return None


def _device_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error}); install triton>=3.6"
    if not torch.cuda.is_available():
        return "no CUDA or ROCm device is visible to this process"
    if torch.version.hip:
        arch = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        native = torch.float8_e4m3fnuz if arch.startswith("gfx94") else torch.float8_e4m3fn
        if dtype not in (native, torch.float8_e5m2):
            return f"{arch} has no conversion to {dtype}; use {native}"
        return None
    capability = torch.cuda.get_device_capability(device)
    if dtype is torch.float8_e4m3fnuz:
        return "NVIDIA GPUs have no conversion to torch.float8_e4m3fnuz; use torch.float8_e4m3fn"
    if capability < (8, 9):
        return f"compute capability {capability[0]}.{capability[1]} has no FP8 conversion; 8.9 or newer does"
    return None


def _quant_gap(y: torch.Tensor, quant: GroupQuant) -> str | None:
    """Why the quantisation kernel cannot take a valid `y` on its GPU, or None."""
    if quant.group_size > MAX_UNIT:
        return f"group_size={quant.group_size} is above the kernel's {MAX_UNIT}"
    if y.shape[0] * (y.shape[1] // quant.group_size) > 2**31 - 64:
        return "more groups than the kernel's 32-bit row index holds (2^31 - 64); split the tokens"
    return _device_problem(y.device, quant.dtype)


def _raise(problem: str | None) -> None:
    if problem is not None:
        raise ValueError(f"fusionlib: {problem}")


_warned: set[str] = set()


def _warn_once(reason: str) -> None:
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"fusionlib runs the unfused reference: {reason}", RuntimeWarning, stacklevel=3)


# --- The implementations ---


def _empty_quantised(y: torch.Tensor, quant: GroupQuant) -> tuple[torch.Tensor, torch.Tensor]:
    """Unwritten codes and scales for the rows of `y` [tokens, ...], in their exact shapes and strides."""
    tokens, hidden = y.shape[0], prod(y.shape[1:])
    size, stride, dtype = reference.scale_storage(tokens, hidden // quant.group_size, quant)
    codes = y.new_empty((tokens, hidden), dtype=quant.dtype)
    return codes, torch.empty_strided(size, stride, dtype=dtype, device=y.device)


def _empty_outputs(x: torch.Tensor, norm: GatedNorm, quant: GroupQuant) -> tuple[torch.Tensor, ...]:
    normed = x.new_empty((x.shape[0], prod(x.shape[1:])), dtype=norm.output_dtype(x.dtype))
    return *_empty_quantised(x, quant), normed


def _fused_fake(x, gate, weight, bias, *scalars) -> tuple:
    norm, quant = _specs(*scalars)
    _raise(contract_problem(x, gate, weight, norm, quant, bias))
    return _empty_outputs(x, norm, quant)


def _fused_reference(x, gate, weight, bias, norm: GatedNorm, quant: GroupQuant) -> tuple:
    if x.shape[0] == 0:  # reductions of nothing have strides of their own
        return _empty_outputs(x, norm, quant)
    normed = reference.rms_norm_gated(x, gate, weight, norm, bias)
    return *reference.group_quant(normed, quant), normed


def _fused_cpu(x, gate, weight, bias, *scalars) -> tuple:
    norm, quant = _specs(*scalars)
    _raise(contract_problem(x, gate, weight, norm, quant, bias))
    return _fused_reference(x, gate, weight, bias, norm, quant)


def _fused_cuda(x, gate, weight, bias, *scalars, want_normed: bool) -> tuple:
    norm, quant = _specs(*scalars)
    _raise(contract_problem(x, gate, weight, norm, quant, bias))
    reason = supports(x, gate, weight, norm, quant, bias)
    if reason is not None:
        _warn_once(reason)
        return _fused_reference(x, gate, weight, bias, norm, quant)
    from fusionlib.launch import launch_fused

    codes, scale = _empty_quantised(x, quant)
    normed = torch.empty_like(codes, dtype=norm.output_dtype(x.dtype)) if want_normed else None
    with torch.cuda.device(x.device):
        launch_fused(x, gate, weight, bias, norm, quant, codes, scale, normed)
    return codes, scale, normed


def _quant_fake(y, *scalars) -> tuple:
    quant = _quant_spec(*scalars)
    _raise(quant_problem(y, quant))
    return _empty_quantised(y, quant)


def _quant_reference(y: torch.Tensor, quant: GroupQuant) -> tuple:
    return reference.group_quant(y, quant) if y.shape[0] else _empty_quantised(y, quant)


def _quant_cpu(y, *scalars) -> tuple:
    quant = _quant_spec(*scalars)
    _raise(quant_problem(y, quant))
    return _quant_reference(y, quant)


def _quant_cuda(y, *scalars) -> tuple:
    quant = _quant_spec(*scalars)
    _raise(quant_problem(y, quant))
    reason = _quant_gap(y, quant)
    if reason is not None:
        _warn_once(reason)
        return _quant_reference(y, quant)
    from fusionlib.launch import launch_group_quant

    codes, scale = _empty_quantised(y, quant)
    with torch.cuda.device(y.device):
        launch_group_quant(y, quant, codes, scale)
    return codes, scale


def _register() -> None:
    """Define the ops once a process, however often this module is imported or reloaded."""
    if hasattr(torch.ops.fusionlib, "group_quant"):
        return
    fused, with_norm = "rms_norm_gated_group_quant", "rms_norm_gated_group_quant_with_norm"
    inputs = f"(Tensor x, Tensor gate, Tensor weight, Tensor? bias, {_NORM_SCHEMA})"
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
        "cpu": (_fused_cpu, _quant_cpu),
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


_register()


# --- The public functions ---


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
