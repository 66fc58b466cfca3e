"""Stand-ins for the kernels that transformers' FP8Linear gets from a hub: what they compute, in plain PyTorch.

DeepGEMM's quantisation is PyTorch code (`deep_gemm.utils.math.per_token_cast_to_fp8`): the value copied into zeroed
memory of whole groups, amax of at least 1e-4, a product with the reciprocal, codes cast without a clamp; ue8m0 by the
exponent's bits from 1 to 254 (`ceil_to_ue8m0`), asserted to be powers of two and four of them put in an int32
(`pack_ue8m0_to_int`). Its GEMM writes into an allocated tensor.
The Triton fallback (`kernels-community/finegrained-fp8`) is one op that takes the activation in 16 bits.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from fusionlib.block_mm import dequantised

MANTISSA = (1 << 23) - 1

LIBRARY = torch.library.Library("hub_stand_in", "DEF")
LIBRARY.define("fp8_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor(a!) out) -> ()")
LIBRARY.define("matmul_2d(Tensor a, Tensor b, Tensor b_scale, ScalarType dtype) -> Tensor")


def _unpacked(scale: torch.Tensor, groups: int) -> torch.Tensor:
    if scale.dtype is not torch.int32:
        return scale
    exponents = scale.flatten().view(torch.uint8).view(len(scale), -1)
    return (exponents.int() << 23).view(torch.float32)[:, :groups]


def _gemm(a, a_scale, b, b_scale, out) -> None:
    groups = a.shape[1] // 128
    weight = dequantised(b, _unpacked(b_scale, groups)[:: 128 if b_scale.dtype is torch.int32 else 1], 128)
    out.copy_(dequantised(a, _unpacked(a_scale, groups), 1) @ weight.t())


def _matmul(a, b, b_scale, dtype) -> torch.Tensor:
    codes, scale = per_token_cast_to_fp8(a.flatten(0, -2), use_ue8m0=False)
    return (dequantised(codes, scale, 1) @ dequantised(b, b_scale, 128).t()).to(dtype).view(*a.shape[:-1], -1)


LIBRARY.impl("fp8_gemm", _gemm, "CompositeExplicitAutograd")
LIBRARY.impl("matmul_2d", _matmul, "CPU")
torch.library.register_fake(
    "hub_stand_in::matmul_2d", lambda a, b, b_scale, dtype: a.new_empty((*a.shape[:-1], b.shape[0]), dtype=dtype)
)


def per_token_cast_to_fp8(x, use_ue8m0, gran_k=128, use_packed_ue8m0=False):
    """x [tokens, hidden] -> codes and scales: float32 [tokens, groups], or int32 with four exponents each."""
    tokens, hidden = x.shape
    whole = torch.empty((tokens, -(-hidden // gran_k) * gran_k), dtype=x.dtype, device=x.device).zero_()
    whole[:, :hidden] = x
    groups = whole.unflatten(1, (-1, gran_k))
    scale = groups.abs().float().amax(dim=2).clamp(1e-4) / 448.0
    if use_ue8m0:
        scale = power_by_bits(scale)
    codes = (groups * (1.0 / scale.unsqueeze(2))).to(torch.float8_e4m3fn).flatten(1)[:, :hidden].contiguous()
    if use_packed_ue8m0:
        assert (scale.view(torch.int32) & MANTISSA == 0).all()
        scale = (scale.view(torch.int32) >> 23).to(torch.uint8).view(torch.int32)
    return codes, scale


def power_by_bits(scale, low=1, high=254, magnitude=True, carry=torch.Tensor.bool):
    """The next power of two by the bits of the exponent: 2^127 at most, of NaN too."""
    bits = (scale.abs().float() if magnitude else scale).view(torch.int32)
    exponent = (bits >> 23 & 0xFF) + carry(bits & MANTISSA).int()
    return (exponent.clamp(low, high) << 23).view(torch.float32)


def power_by_carry(scale):
    """As transformers rounds a scale that it is given (`integrations/deepgemm.py`): of NaN it makes -0."""
    return ((scale.view(torch.int32) + MANTISSA) & ~MANTISSA).view(torch.float32)


def _fp8_gemm_nt(a, b, out, **_) -> None:
    torch.ops.hub_stand_in.fp8_gemm(*a, *b, out)


DEEPGEMM = SimpleNamespace(per_token_cast_to_fp8=per_token_cast_to_fp8, fp8_fp4_matmul=_fp8_gemm_nt)
TRITON = SimpleNamespace(
    matmul=lambda a, b, b_scale, block_size, dtype, activation_scale=None: torch.ops.hub_stand_in.matmul_2d(
        a, b, b_scale, dtype
    )
)
