"""TensorRT-LLM's quantisation by groups, which is recognised and refused: no `GroupQuant` computes what it does.

Read from cpp/tensorrt_llm/thop/fp8Quantize.cpp (0401f89f7) and `scale_1x128_kernel` in
cpp/tensorrt_llm/kernels/cutlass_kernels/fp8_blockscale_gemm/fp8_blockscale_gemm_kernel.cuh of NVIDIA/TensorRT-LLM. Its
scales are one dimension of 128 byte blocks on Hopper, group by group, each padded to four tokens, and [groups, tokens]
on Blackwell.
"""

from __future__ import annotations

from typing import NoReturn

from fusionlib.engines.shipped import Shipped
from fusionlib.match import Arguments, Stop


def read_1x128(arguments: Arguments) -> NoReturn:
    """code = y * (448 / amax), scale = 1 / (448 / amax), both 1 for a group of zeros.

    With use_ue8m0 the scale is that one rounded up to a power of two: the same as elsewhere, but for groups of zeros.
    """
    if arguments["use_ue8m0"]:
        found = "1 / (448 / amax), and 1 for a group of zeros"
        raise Stop("scale_arithmetic", arguments.call, "amax / 448 with one floor for all groups", found)
    raise Stop("quant_division", arguments.call, "an op that divides by the scale", "a product with 448 / amax")


READERS = (
    Shipped(
        "quant op",
        "trtllm::fp8_quantize_1x128",
        ("(Tensor input, bool use_ue8m0=False) -> (Tensor, Tensor)",),
        "NVIDIA/TensorRT-LLM cpp/tensorrt_llm/thop/fp8Quantize.cpp, 0401f89f7; fp8_blockscale_gemm_kernel.cuh",
        read_1x128,
    ),
)
