"""SGLang's quantisations by groups.

Read from sgl-kernel/csrc/common_extension.cc and sgl-kernel/csrc/gemm (per_token_group_quant_8bit.cu at 9e738dbaf,
per_token_group_quant_8bit_v2.cu at 9bfd52e80) of sgl-project/sglang. Releases of sgl-kernel declare `Tensor output_q`
without the mark of a written argument: a compiler then sees a call without effect and may drop it, so nothing can be
read there. The schemas below have the mark, as builds for torch.compile declare it. The ops that SGLang compiles at run
time (`sglang::per_token_group_quant` and others) have no reader: their arithmetic was not verified.
"""

from __future__ import annotations

from fusionlib.engines.shipped import Shipped, grouped, none_of, symmetric
from fusionlib.engines.vllm import read_group
from fusionlib.match import Arguments, OpaqueQuant, Stop


def read_8bit(arguments: Arguments) -> OpaqueQuant:
    """amax = max(eps, |y|), scale = amax / fp8_max, code = clamp(y / scale); the layout by the strides of output_s.

    With scale_ue8m0 the scale is exp2(ceil(log2(max(scale, 1e-10)))) and its exponent is stored, four to an int32.
    Bytes beyond the last group are left as they were; the fused op writes zeros there.
    """
    return _packed_if(bool(arguments["scale_ue8m0"]), read_group(arguments), arguments)


def read_8bit_v2(arguments: Arguments) -> OpaqueQuant:
    """With scale_ue8m0: amax = max(1e-10, |y|), the power of two by the exponent bits of amax * (1 / 448), packed.

    Without it the value is multiplied by 448 / amax, and amax * (1 / 448) is stored: no `GroupQuant` rounds like this.
    """
    none_of(arguments, "opaque_quant", "fuse_silu_and_mul", "masked_m")
    fp8_max = symmetric(arguments, "fp8_min", "fp8_max")
    if not arguments["scale_ue8m0"]:
        raise Stop("quant_division", arguments.call, "an op that divides by the scale", "a product with 448 / amax")
    read = grouped(
        arguments,
        "input",
        arguments["group_size"],
        codes="output_q",
        scale="output_s",
        fp8_max=fp8_max,
        scale_format="ue8m0",
        floor=1e-10,
        division="reciprocal",
        scale_division="reciprocal",
    )
    return _packed_if(True, read, arguments)


def _packed_if(ue8m0: bool, read: OpaqueQuant, arguments: Arguments) -> OpaqueQuant:
    """The op stores the exponents of ue8m0 scales, and these alone, packed."""
    if ue8m0 != (read.spec.scale_layout == "packed_int32"):
        expected = "packed int32 scales for scale_ue8m0, float32 ones without it"
        raise Stop("opaque_quant", arguments.call, expected, f"{read.spec.scale_layout} scales")
    return read


_GROUP = (
    "Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, float fp8_min, float fp8_max, "
    "bool scale_ue8m0"
)
_EXTENSION = "sgl-project/sglang sgl-kernel/csrc/common_extension.cc"
_GEMM = "sgl-project/sglang sgl-kernel/csrc/gemm"

READERS = (
    Shipped(
        "quant op",
        "sgl_kernel::sgl_per_token_group_quant_8bit",
        (f"({_GROUP}) -> ()",),
        f"{_EXTENSION}; {_GEMM}/per_token_group_quant_8bit.cu, 9e738dbaf",
        read_8bit,
    ),
    Shipped(
        "quant op",
        "sgl_kernel::sgl_per_token_group_quant_fp8",
        (f"({_GROUP}) -> ()",),
        f"{_EXTENSION}; the name of the same op before it also made int8",
        read_8bit,
    ),
    Shipped(
        "quant op",
        "sgl_kernel::sgl_per_token_group_quant_8bit_v2",
        (f"({_GROUP}, bool fuse_silu_and_mul, Tensor? masked_m) -> ()",),
        f"{_EXTENSION}; {_GEMM}/per_token_group_quant_8bit_v2.cu, 9bfd52e80",
        read_8bit_v2,
    ),
)
