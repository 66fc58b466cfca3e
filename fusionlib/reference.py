"""The reference: the producers and FP8 group quantisation in plain PyTorch, every rounding written out.

Everything else in the library is compared with these functions: the layers call them, they are the CPU implementation
of the ops, and the kernels must agree with them bit for bit up to summation order. Shapes: rows such as `x` and `gate`
are [tokens, ...]; the dimensions after the first are flattened to one row of `hidden` elements, so
[tokens, heads, head_dim] and [tokens, hidden] are equivalent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import overload

import torch

from fusionlib.spec import ActAndMul, GatedNorm, GroupQuant, NanScale, RMSNorm

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
}


def rms_norm_gated(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    norm: GatedNorm,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gated RMS norm of each run of `norm.norm_size` elements; see `GatedNorm` for the formula.

    Args:
        x: [tokens, ...], bf16, fp16 or fp32; its dtype is the one that the rounding points round to.
        gate: [tokens, ...] with as many elements per token, any floating dtype.
        weight: [norm_size], or [hidden] if every element of the row has its own (the Mamba2 family).
        bias: shaped like weight, added after multiplying by it.

    Returns:
        [tokens, hidden] contiguous, of `norm.output_dtype(x.dtype)`.
    """

    def rounded(value: torch.Tensor, point: str) -> torch.Tensor:
        return value.to(x.dtype).float() if point in norm.rounding else value

    def runs(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten(1).unflatten(1, (-1, norm.norm_size)).float()  # [tokens, runs, norm_size]

    def scaled(value: torch.Tensor) -> torch.Tensor:
        factor = weight.float() + norm.weight_offset if norm.weight_offset else weight.float()
        value = value * factor.view(-1, norm.norm_size)
        return value if bias is None else value + bias.float().view(-1, norm.norm_size)

    value = runs(x)
    activated = rounded(_ACTIVATIONS[norm.activation](runs(gate)), "activation")
    if not norm.norm_before_gate:
        value = rounded(value * activated, "gate")
    variance = value.pow(2).mean(-1, keepdim=True)
    value = rounded(value * torch.rsqrt(variance + norm.eps), "norm")
    value = scaled(value)
    if norm.norm_before_gate:
        value = rounded(value, "weight") * activated
    return _fresh(value.to(norm.output_dtype(x.dtype)).flatten(1))


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    norm: RMSNorm,
    residual: torch.Tensor | None = None,
    token_factor: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm of each run of `norm.norm_size` elements of x, or of x + residual; see `RMSNorm` for the formula.

    Args:
        x: [tokens, ...], bf16, fp16 or fp32; its dtype is the one that the points `norm` and `output` round to.
        weight: [norm_size], or [hidden] if every element of the row has its own; None for ones.
        residual: [tokens, ...] with as many elements per token; its dtype is that of the sum.
        token_factor: one number per token, [tokens] or [batch, sequence], of any integer dtype, bool, bf16, fp16 or
            fp32: what the normalised value is multiplied by once it is rounded, such as a padding mask. The product is
            taken in the dtype that PyTorch promotes both to, and rounded to the value's.

    Returns:
        The normalised value [tokens, hidden] of `norm.output_dtype(x.dtype)`, times the token's factor if there is one,
        and the sum [tokens, hidden] of the residual's dtype: x itself if there is no residual. Both contiguous.
    """
    value = x.flatten(1).float()
    if residual is not None:
        value = value + residual.flatten(1).float()
    total = value.to(x.dtype if residual is None else residual.dtype)
    if "sum" in norm.rounding:
        value = total.float()
    value = value.unflatten(1, (-1, norm.norm_size))  # [tokens, runs, norm_size]
    variance = value.pow(2).mean(-1, keepdim=True)
    value = value * torch.rsqrt(variance + norm.eps)
    if "norm" in norm.rounding:
        value = value.to(x.dtype).float()
    if weight is not None:
        factor = weight.float() + norm.weight_offset if norm.weight_offset else weight.float()
        value = value * factor.view(-1, norm.norm_size)
    value = value.to(norm.output_dtype(x.dtype)).flatten(1)
    if token_factor is not None:
        value = (value * token_factor.reshape(-1, 1)).to(value.dtype)
    # An op must not return its input: without a residual, and in float32, the sum is x itself.
    return _fresh(value), _fresh(total.clone() if residual is None else total)


def act_and_mul(x: torch.Tensor, gate: torch.Tensor, act: ActAndMul) -> torch.Tensor:
    """x * act(gate); see `ActAndMul` for the formula.

    Args:
        x: [tokens, ...], bf16, fp16 or fp32; its dtype is the one that the output is rounded to.
        gate: [tokens, ...] with as many elements per token, any floating dtype; the activation is rounded to it if x is
            float32, and otherwise to x's.

    Returns:
        [tokens, hidden] contiguous, of `act.output_dtype(x.dtype)`.
    """
    activated = _ACTIVATIONS[act.activation](gate.flatten(1).float())
    if "activation" in act.rounding:
        activated = activated.to(gate.dtype if x.dtype is torch.float32 else x.dtype).float()
    return _fresh((x.flatten(1).float() * activated).to(act.output_dtype(x.dtype)))


def group_quant(y: torch.Tensor, quant: GroupQuant) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each run of `quant.group_size` elements to FP8; see `GroupQuant` for the formula.

    Args:
        y: [tokens, hidden], bf16, fp16 or fp32.

    Returns:
        codes [tokens, hidden] contiguous of `quant.dtype`, and scales in `quant.scale_layout`: float32
        [tokens, groups] or [tokens], or packed int32 [tokens, ceil(groups / 4)].
    """
    groups = y.unflatten(1, (-1, quant.group_size)).float()  # [tokens, groups, group_size]
    amax = groups.abs().amax(-1, keepdim=True)
    if quant.floor is not None and quant.floor_on == "amax":
        amax = amax.clamp(min=quant.floor)
    if quant.scale_division == "reciprocal":
        scale = amax * (1.0 / quant.limit)
    else:
        # The divisor is a tensor: to divide by a Python number, PyTorch on CUDA multiplies by its reciprocal.
        scale = amax / amax.new_full((), quant.limit)
    if quant.round_scale:
        scale = scale.to(y.dtype).float()
    if quant.floor is not None and quant.floor_on == "scale":
        scale = scale.clamp(min=quant.floor)
    if quant.scale_format == "ue8m0":
        scale = power_of_two_at_least(scale, quant.nan_scale)
    quotient = groups / scale if quant.division == "divide" else groups * (1.0 / scale)
    codes = quotient.clamp(-quant.limit, quant.limit).to(quant.dtype)
    return _fresh(codes.flatten(1)), lay_out_scales(scale.squeeze(-1), quant)


def _fresh(rows: torch.Tensor) -> torch.Tensor:
    """`rows` [tokens, elements] with a fresh tensor's strides; results inherit x's, arbitrary where a size is 1."""
    return rows if rows.stride() == (rows.shape[1], 1) else rows.clone(memory_format=torch.contiguous_format)


def dequantise(codes: torch.Tensor, scale: torch.Tensor, quant: GroupQuant) -> torch.Tensor:
    """The float32 values [tokens, hidden] represented by `codes` and `scale` (in any layout): code * scale."""
    scale = unpack_scales(scale, codes.shape[1] // quant.group_size, quant)
    return (codes.float().unflatten(1, (-1, quant.group_size)) * scale.unsqueeze(-1)).flatten(1)


def power_of_two_at_least(scale: torch.Tensor, nan_scale: NanScale = "nan") -> torch.Tensor:
    """The smallest power of two 2^(e-127) >= scale with 1 <= e <= 254, computed from the exponent bits.

    `exp2(ceil(log2(scale)))` is off by a factor of two if log2 rounds onto or past an integer; the bits are exact.
    Infinity gives 2^127; NaN stays NaN, or with `nan_scale="largest"` gives 2^127.
    """
    bits = scale.view(torch.int32)
    exponent = ((bits >> 23) & 0xFF) + ((bits & 0x7FFFFF) != 0).int()
    power = (exponent.clamp(1, 254) << 23).view(torch.float32)
    return torch.where(scale.isnan(), scale, power) if nan_scale == "nan" else power


@overload
def by_fours(tokens: int) -> int: ...
@overload
def by_fours(tokens: int | torch.SymInt) -> int | torch.SymInt: ...
def by_fours(tokens: int | torch.SymInt) -> int | torch.SymInt:
    """`tokens` rounded up to a multiple of 4; it may be symbolic."""
    return (tokens + 3) // 4 * 4


def scale_storage(
    tokens: int | torch.SymInt, groups: int, quant: GroupQuant
) -> tuple[tuple[int | torch.SymInt, ...], tuple[int | torch.SymInt, ...], torch.dtype]:
    """Shape, strides and dtype of the scale tensor in `quant.scale_layout`; sizes may be symbolic."""
    if quant.scale_layout == "row_major":
        return (tokens, groups), (groups, 1), torch.float32
    if quant.scale_layout == "column_major":
        return (tokens, groups), (1, tokens), torch.float32
    if quant.scale_layout == "vector":
        return (tokens,), (1,), torch.float32
    # TMA requires columns aligned to 16 bytes: four elements of 32 bits (DeepGEMM's get_tma_aligned_size).
    column = by_fours(tokens)
    if quant.scale_layout == "column_major_padded":
        return (tokens, groups), (1, column), torch.float32
    return (tokens, (groups + 3) // 4), (1, column), torch.int32


def lay_out_scales(scale: torch.Tensor, quant: GroupQuant) -> torch.Tensor:
    """Store float32 scales [tokens, groups] in `quant.scale_layout`."""
    scale = _fresh(scale)
    if quant.scale_layout == "row_major":
        return scale
    size, stride, dtype = scale_storage(scale.shape[0], scale.shape[1], quant)
    if quant.scale_layout == "packed_int32":
        scale = torch.nn.functional.pad(scale, (0, -scale.shape[1] % 4))
        exponent = (scale.view(torch.int32) >> 23) & 0xFF
        scale = (exponent.to(torch.uint8)).view(torch.int32)
    return torch.empty_strided(size, stride, dtype=dtype, device=scale.device).copy_(scale.view(size))


def unpack_scales(scale: torch.Tensor, groups: int, quant: GroupQuant) -> torch.Tensor:
    """Float32 scales [tokens, groups] from any layout; a packed exponent of 255 means NaN."""
    if quant.scale_layout != "packed_int32":
        return scale.view(-1, 1) if quant.scale_layout == "vector" else scale
    shifts = torch.tensor([0, 8, 16, 24], dtype=torch.int32, device=scale.device)
    exponent = ((scale.unsqueeze(-1) >> shifts) & 0xFF).flatten(1)[:, :groups]
    power = (exponent << 23).view(torch.float32)
    return torch.where(exponent == 255, torch.nan, power)
