"""Stand-ins for the kernels that transformers' FP8Linear gets from a hub: what they compute, in plain PyTorch.

DeepGEMM's quantisation is PyTorch code (`deep_gemm.utils.math.per_token_cast_to_fp8`): amax of at least 1e-4, a product
with the reciprocal, ue8m0 by the exponent's bits, four of them in an int32. Its GEMM writes into an allocated tensor.
The Triton fallback (`kernels-community/finegrained-fp8`) is one op that takes the activation in 16 bits.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from fusionlib.block_mm import dequantised

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
    groups = x.view(x.shape[0], -1, gran_k)
    scale = groups.abs().float().amax(dim=2).clamp(1e-4) / 448.0
    if use_ue8m0:
        bits = scale.view(torch.int32)
        scale = ((bits + ((1 << 23) - 1)) & ~((1 << 23) - 1)).view(torch.float32)
    codes = (groups * (1.0 / scale.unsqueeze(2))).to(torch.float8_e4m3fn).view_as(x).contiguous()
    if use_packed_ue8m0:
        scale = (scale.view(torch.int32) >> 23).to(torch.uint8).view(torch.int32)
    return codes, scale


def _fp8_gemm_nt(a, b, out, **_) -> None:
    torch.ops.hub_stand_in.fp8_gemm(*a, *b, out)


DEEPGEMM = SimpleNamespace(per_token_cast_to_fp8=per_token_cast_to_fp8, fp8_fp4_matmul=_fp8_gemm_nt)
TRITON = SimpleNamespace(
    matmul=lambda a, b, b_scale, block_size, dtype, activation_scale=None: torch.ops.hub_stand_in.matmul_2d(
        a, b, b_scale, dtype
    )
)
