"""Whether tensors fit their specs, and whether a device can run them with the kernel.

Every answer is None or one sentence that names the value, the limit and the way out. The op raises or falls back on
these answers and the rewrite refuses a site on them; nothing else decides. They work on fake tensors too.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm, prod

import torch

from fusionlib.devices import fp8_problem
from fusionlib.kernels.row_layout import row_layout
from fusionlib.spec import ActAndMul, GatedNorm, GroupQuant, RMSNorm

ACTIVATION_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

#: Dtypes of what a token's value may be multiplied by; a mask is often made of integers.
TOKEN_FACTOR_DTYPES = (
    *ACTIVATION_DTYPES, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64
)  # fmt: skip

#: Longest unit (elements) one program holds: 16 warps of 32 elements per thread.
MAX_UNIT = 16384

#: Most units of one launch: the row index has 32 bits, and the last program may count up to 63 rows past the end.
MAX_UNITS = 2**31 - 64


#: Greatest distance of neighbouring elements: interleaved halves share their cache lines, so that nothing is read in
#: vain; what lies wider is copied first.
MAX_STEP = 2


def unit_size(norm: GatedNorm | RMSNorm, quant: GroupQuant) -> int:
    """Elements of a unit, which one row of the kernel covers: the fewest that are whole norms and whole groups."""
    return lcm(norm.norm_size, quant.group_size)


def _differ(a: int, b: int) -> bool:
    """a != b; a symbolic size that cannot be decided while tracing counts as equal."""
    if isinstance(a, int) and isinstance(b, int):
        return a != b
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(a != b)


def _tensor_problem(name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...], step: int) -> str | None:
    if tensor.ndim < 2:
        return (
            f"{name} has shape {list(tensor.shape)}; it must be [tokens, ...] with at least 2 dimensions: "
            f"use {name}.unsqueeze(0) for a single token"
        )
    if tensor.dtype not in dtypes:
        listed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        return f"{name} is {tensor.dtype}; it must be one of {listed}: convert it with {name}.to(...)"
    if tensor.shape[-1] > 1 and not 1 <= tensor.stride(-1) <= step:
        allowed = (
            "contiguous (stride 1)" if step == 1 else f"contiguous (stride 1) or every other element (stride {step})"
        )
        return (
            f"{name} has strides {list(tensor.stride())}; the last dimension must be {allowed}: use {name}.contiguous()"
        )
    return None


def _division_problem(hidden: int, field: str, size: int) -> str | None:
    if hidden % size != 0 or hidden == 0:
        return f"{field}={size} does not divide the {hidden} elements of a token; choose a divisor of {hidden}"
    return None


def _stored_problem(hidden: int, y_dtype: torch.dtype, quant: GroupQuant) -> str | None:
    """Why rows of `hidden` elements of `y_dtype` cannot be quantised by `quant`, or None."""
    if quant.scale_layout == "vector" and _differ(hidden, quant.group_size):
        return (
            f"scale_layout='vector' holds one scale a token, and group_size={quant.group_size} makes several of its "
            f"{hidden} elements; use group_size={hidden} or scale_layout='row_major'"
        )
    if quant.floor_in(y_dtype) != quant.floor:
        return (
            f"floor={quant.floor:g} on amax is no floor: round_scale takes its scale to 0 in {y_dtype}; use "
            "floor=None, which computes the same, or floor_on='scale'"
        )
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
    problem = _tensor_problem("y", y, ACTIVATION_DTYPES, step=1)
    if problem is None and y.ndim != 2:
        problem = f"y has shape {list(y.shape)}; it must be [tokens, hidden]: use y.flatten(1) or y.reshape(tokens, -1)"
    return (
        problem
        or _division_problem(y.shape[1], "group_size", quant.group_size)
        or _stored_problem(y.shape[1], y.dtype, quant)
    )


def rows_problem(
    rows: Mapping[str, torch.Tensor], quant: GroupQuant, output_dtype: torch.dtype, run: tuple[str, int] | None = None
) -> str | None:
    """Why `rows`, tensors of one value's tokens by name, cannot be computed with and quantised, or None.

    Args:
        output_dtype: of the value that is quantised.
        run: a field of the spec and the number of elements it groups, such as ("norm_size", 128).
    """
    for name, tensor in rows.items():
        problem = _tensor_problem(name, tensor, ACTIVATION_DTYPES, MAX_STEP)
        if problem is not None:
            return problem
    (first, x), *others = rows.items()
    hidden = prod(x.shape[1:])
    for name, other in others:
        if _differ(x.shape[0], other.shape[0]) or _differ(hidden, prod(other.shape[1:])):
            return (
                f"{first} has shape {list(x.shape)} and {name} {list(other.shape)}; both need the same number of "
                "tokens (first dimension) and of elements per token (the others together)"
            )
    return (
        (None if run is None else _division_problem(hidden, *run))
        or _division_problem(hidden, "group_size", quant.group_size)
        or _stored_problem(hidden, output_dtype, quant)
    )


def places_problem(first: torch.Tensor, *others: torch.Tensor | None) -> str | None:
    """Why an op cannot run tensors on their device, or None if they share one that has an implementation."""
    devices = {str(tensor.device) for tensor in (first, *others) if tensor is not None}
    if len(devices) > 1:
        return f"tensors are on {', '.join(sorted(devices))}; move them to one device"
    kind = first.device.type
    if kind not in ("cpu", "cuda"):
        return f"device {kind!r} has no implementation; use 'cpu' or 'cuda' (NVIDIA and ROCm)"
    return None


def contract_problem(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: GatedNorm,
    quant: GroupQuant,
) -> str | None:
    """Why these tensors do not fit these specs on any device, or None. The op raises ValueError with this text."""
    rows, run = {"x": x, "gate": gate}, ("norm_size", norm.norm_size)
    return (
        rows_problem(rows, quant, norm.output_dtype(x.dtype), run)
        or _vectors_problem({"weight": weight, "bias": bias}, prod(x.shape[1:]), norm.norm_size)
        or places_problem(x, gate, weight, bias)
    )


def rms_norm_problem(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    token_factor: torch.Tensor | None,
    norm: RMSNorm,
    quant: GroupQuant,
) -> str | None:
    """The same for an RMS norm."""
    rows = {"x": x} if residual is None else {"x": x, "residual": residual}
    return (
        rows_problem(rows, quant, norm.output_dtype(x.dtype), ("norm_size", norm.norm_size))
        or _vectors_problem({"weight": weight}, prod(x.shape[1:]), norm.norm_size)
        or (None if token_factor is None else _token_factor_problem(token_factor, x))
        or places_problem(x, residual, weight, token_factor)
    )


def _token_factor_problem(token_factor: torch.Tensor, x: torch.Tensor) -> str | None:
    if token_factor.dtype not in TOKEN_FACTOR_DTYPES:
        listed = ", ".join(str(d).removeprefix("torch.") for d in TOKEN_FACTOR_DTYPES)
        return f"token_factor is {token_factor.dtype}; it must be one of {listed}"
    if token_factor.ndim not in (1, 2) or _differ(token_factor.numel(), x.shape[0]):
        return (
            f"token_factor has shape {list(token_factor.shape)} and x {list(x.shape)}; it must be [tokens] or "
            "[batch, sequence] with one element for each token, the first dimension of x"
        )
    return None


def act_and_mul_problem(x: torch.Tensor, gate: torch.Tensor, act: ActAndMul, quant: GroupQuant) -> str | None:
    """The same for a product with an activation."""
    return rows_problem({"x": x, "gate": gate}, quant, act.output_dtype(x.dtype)) or places_problem(x, gate)


def _vectors_problem(vectors: Mapping[str, torch.Tensor | None], hidden: int, norm_size: int) -> str | None:
    given = [(name, vector) for name, vector in vectors.items() if vector is not None]
    for name, vector in given:
        problem = _vector_problem(name, vector, hidden, norm_size)
        if problem is not None:
            return problem
    if any(vector.shape != given[0][1].shape for _, vector in given[1:]):
        listed = " and ".join(f"{name} has shape {list(vector.shape)}" for name, vector in reversed(given))
        return f"{listed}; they must have the same"
    return None


def kernel_problem(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: GatedNorm,
    quant: GroupQuant,
) -> str | None:
    """What the kernel's tiling or addressing cannot do with tensors that fit their specs, or None."""
    return _tiling_problem(x, norm, quant) or strides_problem({"x": x, "gate": gate})


def rms_norm_kernel_problem(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    token_factor: torch.Tensor | None,
    norm: RMSNorm,
    quant: GroupQuant,
) -> str | None:
    """The same for the kernel of an RMS norm."""
    rows = {"x": x} if residual is None else {"x": x, "residual": residual}
    return _tiling_problem(x, norm, quant) or strides_problem(rows)


def act_and_mul_kernel_problem(x: torch.Tensor, gate: torch.Tensor, act: ActAndMul, quant: GroupQuant) -> str | None:
    """The same for the kernel of a product with an activation."""
    return _units_problem(x, quant.group_size, quant) or strides_problem({"x": x, "gate": gate})


def _tiling_problem(x: torch.Tensor, norm: GatedNorm | RMSNorm, quant: GroupQuant) -> str | None:
    unit = unit_size(norm, quant)
    if unit > MAX_UNIT:
        return (
            f"norm_size={norm.norm_size} and group_size={quant.group_size} have {unit} elements as their least common "
            f"multiple, above the {MAX_UNIT} that one program of the kernel holds; choose sizes with a smaller one"
        )
    return _units_problem(x, unit, quant)


def _units_problem(x: torch.Tensor, unit: int, quant: GroupQuant) -> str | None:
    if unit > MAX_UNIT:
        return f"group_size={quant.group_size} is above the {MAX_UNIT} that one program of the kernel holds"
    units = x.shape[0] * (prod(x.shape[1:]) // unit)
    if isinstance(units, int) and units > MAX_UNITS:
        return f"{units} units are more than the kernel's 32-bit row index holds ({MAX_UNITS}); split the tokens"
    return None


def strides_problem(rows: Mapping[str, torch.Tensor]) -> str | None:
    """Which of `rows`, by name, a kernel cannot address with two strides per token, or None."""
    for name, tensor in rows.items():
        if row_layout(tensor) is None:
            return (
                f"{name} with shape {list(tensor.shape)} and strides {list(tensor.stride())} takes more than two "
                f"levels of strides in a token; use {name}.contiguous()"
            )
    return None


def device_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """What the GPU, or this process's access to it, lacks for codes of `dtype`, or None."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error}); install triton>=3.6"
    if not torch.cuda.is_available():
        return "no CUDA or ROCm device is visible to this process"
    name = str(dtype).removeprefix("torch.")
    arch = amd_arch(device)
    return fp8_problem(name, (0, 0) if arch else torch.cuda.get_device_capability(device), arch)


def amd_arch(device: torch.device | int | None = None) -> str | None:
    """The architecture of an AMD GPU, such as gfx942; None if torch is built for NVIDIA."""
    if not torch.version.hip:
        return None
    return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]


def quant_kernel_problem(y: torch.Tensor, quant: GroupQuant) -> str | None:
    """Why the quantisation kernel cannot take `y`, which fits `quant`, on its GPU, or None."""
    return _units_problem(y, quant.group_size, quant) or device_problem(y.device, quant.dtype)
