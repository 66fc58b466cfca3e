"""Stand-ins for engines' ops: the schemas that the readers know them by, and what they compute, in PyTorch on a CPU.

They are written after the sources that the readers name; NaN is left out, which the CUDA kernels lose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from fusionlib.engines import SHIPPED

FP8 = torch.float8_e4m3fn


def power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """As the CUDA kernels round a scale up."""
    return torch.exp2(torch.ceil(torch.log2(scale.clamp(min=1e-10))))


def by_groups(y: torch.Tensor, size: int, eps: float, low: float, high: float, ue8m0: bool, kind: torch.dtype):
    """(codes, float32 scales [..., groups]) of vLLM's and SGLang's kernels."""
    groups = y.unflatten(-1, (-1, size)).float()
    scale = groups.abs().amax(-1).clamp(min=eps) / torch.tensor(high)
    scale = power_of_two(scale) if ue8m0 else scale
    codes = (groups / scale.unsqueeze(-1)).clamp(low, high)
    return codes.to(kind).flatten(-2), scale


def put_exponents(words: torch.Tensor, scale: torch.Tensor) -> None:
    """Write the exponents of `scale` [tokens, groups] into int32 words, the lowest byte first, then zeros."""
    exponents = F.pad(torch.log2(scale).int() + 127, (0, -scale.shape[1] % 4)).to(torch.uint8)
    words.copy_(exponents.contiguous().view(torch.int32))


def group(input, output_q, output_s, group_size, eps, fp8_min, fp8_max, scale_ue8m0, *dummies):
    codes, scale = by_groups(input, group_size, eps, fp8_min, fp8_max, scale_ue8m0, output_q.dtype)
    output_q.copy_(codes)
    output_s.copy_(scale)


def group_packed(input, output_q, output_s_packed, group_size, eps, fp8_min, fp8_max):
    codes, scale = by_groups(input, group_size, eps, fp8_min, fp8_max, True, output_q.dtype)
    output_q.copy_(codes)
    put_exponents(output_s_packed, scale)


def sgl(input, output_q, output_s, group_size, eps, fp8_min, fp8_max, scale_ue8m0):
    codes, scale = by_groups(input, group_size, eps, fp8_min, fp8_max, scale_ue8m0, output_q.dtype)
    output_q.copy_(codes)
    put_exponents(output_s, scale) if scale_ue8m0 else output_s.copy_(scale)


def sgl_v2(input, output_q, output_s, group_size, eps, fp8_min, fp8_max, scale_ue8m0, fuse_silu_and_mul, masked_m):
    groups = input.unflatten(-1, (-1, group_size)).float()
    amax = groups.abs().amax(-1).clamp(min=1e-10)
    scale = torch.exp2(torch.frexp(amax * torch.tensor(1 / 448.0)).exponent.float())
    exact = amax * torch.tensor(1 / 448.0) == scale / 2  # frexp's mantissa is in [0.5, 1): 2^k is 0.5 * 2^(k + 1)
    scale = torch.where(exact, scale / 2, scale)
    output_q.copy_((groups * (1 / scale).unsqueeze(-1)).clamp(fp8_min, fp8_max).to(FP8).flatten(-2))
    put_exponents(output_s, scale)


def per_token(result, input, scale, scale_ub):
    most = {torch.float8_e4m3fnuz: 224.0}.get(result.dtype, torch.finfo(result.dtype).max)
    made = (input.float().abs().amax(-1, keepdim=True) / torch.tensor(most)).clamp(min=1.0 / (most * 512.0))
    scale.copy_(made.view(scale.shape))
    result.copy_((input.float() / made).clamp(-most, most).to(result.dtype))


def aiter(x, group_size):
    groups = x.unflatten(-1, (-1, 128)).float()
    scale = groups.abs().amax(-1).clamp(min=1e-10) * torch.tensor(1 / 448.0)
    return (groups * (1 / scale).unsqueeze(-1)).to(FP8).flatten(-2), scale


def triton_group(x, group_size):
    return by_groups(x, group_size, 1e-10, -448.0, 448.0, False, FP8)


def per_row(input, bs=None, scale_ub=None, output_dtype=None, stochastic_rounding=False):
    kind = output_dtype or FP8
    most = torch.finfo(kind).max
    scale = (input.float().abs().amax(-1) / torch.tensor(most)).clamp(min=1.0 / (most * 512.0))
    return [(input.float() / scale.unsqueeze(-1)).clamp(-most, most).to(kind), scale]


def trtllm(input, use_ue8m0=False):
    padded = (input.shape[0] + 3) // 4 * 4 * (input.shape[1] // 128)
    return input.to(FP8), input.new_zeros((padded + 31) // 32 * 32, dtype=torch.float32)


def normed(x, epsilon):
    value = x.float()
    return value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + epsilon)


def ir_norm(x, weight, epsilon, variance_size=None):
    value = normed(x, epsilon)
    return (value if weight is None else value.to(weight.dtype) * weight).to(x.dtype)


def ir_add_norm(x, x_residual, weight, epsilon, variance_size=None):
    total = x.float() + x_residual.float()
    value = normed(total, epsilon)
    value = value if weight is None else value.to(weight.dtype) * weight
    return value.to(x.dtype), total.to(x.dtype)


def ir_gated_norm(x, z, weight, epsilon, group_size=None, norm_before_gate=True):
    value, gate = x.float(), F.silu(z.float())
    value = value if norm_before_gate else value * gate
    value = normed(value.unflatten(-1, (-1, group_size or x.shape[-1])), epsilon).flatten(-2) * weight.float()
    return (value * gate if norm_before_gate else value).to(x.dtype)


def c_norm(result, input, weight, epsilon):
    result.copy_(normed(input, epsilon).to(input.dtype) * weight)


def c_add_norm(input, residual, weight, epsilon):
    total = input + residual
    residual.copy_(total)
    input.copy_(normed(total, epsilon).to(input.dtype) * weight)


COMPUTES: dict[str, Callable] = {
    "_C::per_token_group_fp8_quant": group,
    "_C::per_token_group_fp8_quant_packed": group_packed,
    "_C::dynamic_per_token_scaled_fp8_quant": per_token,
    "vllm::rocm_aiter_group_fp8_quant": aiter,
    "vllm::triton_per_token_group_quant_fp8": triton_group,
    "sgl_kernel::sgl_per_token_group_quant_8bit": sgl,
    "sgl_kernel::sgl_per_token_group_quant_fp8": sgl,
    "sgl_kernel::sgl_per_token_group_quant_8bit_v2": sgl_v2,
    "trtllm::fp8_quantize_1x128": trtllm,
    "fbgemm::quantize_fp8_per_row": per_row,
    "mslk::quantize_fp8_per_row": per_row,
    "vllm_ir::rms_norm": ir_norm,
    "vllm_ir::fused_add_rms_norm": ir_add_norm,
    "vllm_ir::rms_norm_gated": ir_gated_norm,
    "_C::rms_norm": c_norm,
    "_C::fused_add_rms_norm": c_add_norm,
}


@contextlib.contextmanager
def defined(name: str, schema: str | None = None, compute: Callable | None = None) -> Iterator[torch._ops.OpOverload]:
    """The op `name` with its first schema, or another version of it, for as long as it takes."""
    namespace, own = name.split("::")
    with torch.library._scoped_library(namespace, "FRAGMENT") as library:
        library.define(own + (schema or SHIPPED[name].schemas[0]))
        compute = compute or COMPUTES[name]
        library.impl(own, compute, "CompositeExplicitAutograd")
        op = getattr(getattr(torch.ops, namespace), own).default
        writes = op._schema.is_mutable
        torch.library.register_fake(name, (lambda *_, **__: None) if writes else compute, lib=library)
        yield op


def rows_of(tokens: int, groups: int, layout: str) -> torch.Tensor:
    """Room for scales, as vLLM and SGLang allocate it."""
    if layout == "row_major":
        return torch.empty(tokens, groups)
    if layout == "column_major":
        return torch.empty(groups, tokens).permute(-1, -2)
    padded = (tokens + 3) // 4 * 4
    if layout == "column_major_padded":
        return torch.empty_strided((tokens, groups), (1, padded))
    return torch.empty_strided((tokens, (groups + 3) // 4), (1, padded), dtype=torch.int32)
