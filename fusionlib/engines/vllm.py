"""vLLM's quantisations and norms.

Read from csrc/libtorch_stable/torch_bindings.cpp, csrc/libtorch_stable/quantization/w8a8/fp8 (common.cu at db702fc8d,
per_token_group_quant.cu at 8b54a8d98), csrc/layernorm_kernels.cu, vllm/_aiter_ops.py, vllm/ir/ops/layernorm.py and
vllm/model_executor/layers/quantization/utils/fp8_utils.py (007d50058) of vllm-project/vllm. AITER's own quantisation,
csrc/kernels/quant_kernels.cu, was read from a comment that repeats it in AITER's fused kernels.
"""

from __future__ import annotations

from typing import Any

import torch

from fusionlib.engines.shipped import Shipped, by_log2, grouped, none_of, norm_size, row_of, symmetric
from fusionlib.fusions import OpaqueProducer
from fusionlib.match import Arguments, OpaqueQuant, Stop
from fusionlib.match.graph import dtype
from fusionlib.spec import FP8_MAXIMA, GatedNorm, RMSNorm

_LEAST_UE8M0 = 1e-10  # a scale is no smaller before it is rounded to a power of two


def group_floor(eps: float, fp8_max: float, ue8m0: bool) -> dict[str, Any]:
    """The floor of vLLM's and SGLang's CUDA kernels: amax >= eps, and a scale that is rounded up is at least 1e-10."""
    if ue8m0 and eps / fp8_max <= _LEAST_UE8M0:
        return {"floor": _LEAST_UE8M0, "floor_on": "scale"}
    return {"floor": eps or None}


def read_group(arguments: Arguments) -> OpaqueQuant:
    """amax = max(eps, |y|), scale = amax / fp8_max, code = clamp(y / scale); the layout by the strides of output_s.

    With scale_ue8m0 the scale is exp2(ceil(log2(max(scale, 1e-10)))), stored as float32.
    """
    return _by_group(arguments, "output_s", bool(arguments["scale_ue8m0"]))


def read_group_packed(arguments: Arguments) -> OpaqueQuant:
    """The same with scale_ue8m0, four exponents to an int32, as DeepGEMM takes them on Blackwell."""
    return _by_group(arguments, "output_s_packed", True)


def _by_group(arguments: Arguments, scale: str, ue8m0: bool) -> OpaqueQuant:
    fp8_max = symmetric(arguments, "fp8_min", "fp8_max")
    if ue8m0:
        by_log2(arguments, "input")
    return grouped(
        arguments,
        "input",
        arguments["group_size"],
        codes="output_q",
        scale=scale,
        fp8_max=fp8_max,
        scale_format="ue8m0" if ue8m0 else "float32",
        **group_floor(arguments["eps"], fp8_max, ue8m0),
    )


def read_per_token(arguments: Arguments) -> OpaqueQuant:
    """scale = max(amax / fp8_max, 1 / (512 fp8_max)) of a row, code = clamp(y / scale)."""
    none_of(arguments, "scale_bound", "scale_ub")
    fp8_max = _fp8_max(arguments.fake("result"))
    floor = {"floor": 1.0 / (fp8_max * 512.0), "floor_on": "scale"}
    row = row_of(arguments, "input")
    return grouped(arguments, "input", row, codes="result", scale="scale", fp8_max=fp8_max, **floor)


def read_aiter_group(arguments: Arguments) -> OpaqueQuant:
    """AITER's per_1x128: scale = max(1e-10, amax) * (1 / fp8_max), code = y * (1 / scale), whatever group_size says."""
    if arguments["group_size"] != 128:
        raise Stop("opaque_quant", arguments.call, "group_size=128", f"group_size={arguments['group_size']}")
    return grouped(arguments, "x", 128, division="reciprocal", scale_division="reciprocal")


def read_triton_group(arguments: Arguments) -> OpaqueQuant:
    """amax = max(1e-10, |y|), scale = amax / fp8_max, code = clamp(y / scale), row-major.

    On CUDA the op calls `_C::per_token_group_fp8_quant`; elsewhere it is a Triton kernel, whose divisions are not
    correctly rounded.
    """
    return grouped(arguments, "x", arguments["group_size"], fp8_max=_fp8_max(arguments.returned[0]))


def _fp8_max(codes: torch.Tensor) -> float:
    """vLLM's largest code: 224 on MI300, else the dtype's own."""
    return FP8_MAXIMA.get(codes.dtype, FP8_MAXIMA[torch.float8_e4m3fn])[-1]


# Norms. vLLM lowers those of its IR behind all passes, also those of a user.


def _norm_roundings(arguments: Arguments, value: torch.dtype, x: str, weight: str) -> frozenset[Any]:
    """Where `x.to(weight.dtype) * weight` rounds, or `x.to(orig_dtype) * weight`: the same for equal dtypes."""
    given, own = arguments.given(weight), dtype(arguments.node(x))
    output = {"output"} if value is own else set()
    if given is None or own is dtype(given) is torch.float32:
        return frozenset({"output"})
    if dtype(given) is own:
        return frozenset({"norm", *output})
    if dtype(given) is torch.float32:  # rounded at the end by versions that return x's dtype, else before the weight
        return frozenset({"output"} if output else {"norm"})
    raise Stop("rounding", given, "a weight of x's dtype or float32", str(dtype(given)))


def _of_one_dtype(arguments: Arguments, x: str, *others: str) -> None:
    """Refuse tensors of other dtypes than `x`: the CUDA kernels take all of them for its."""
    own = dtype(arguments.node(x))
    for name in others:
        if arguments.get(name) is not None and (found := arguments.fake(name).dtype) is not own:
            raise Stop("rounding", arguments.call, f"{name} of {x}'s dtype {own}", str(found))


def read_ir_norm(arguments: Arguments) -> OpaqueProducer:
    """norm(x) * weight over the last dimension: float32, rounded before the weight and after it."""
    none_of(arguments, "opaque_producer", "variance_size")
    rounding = _norm_roundings(arguments, arguments.returned[0].dtype, "x", "weight")
    spec = RMSNorm(norm_size(arguments, "weight", "x"), arguments["epsilon"], rounding=rounding)
    return OpaqueProducer(spec, {"x": arguments.node("x"), "residual": None}, {"weight": arguments.given("weight")})


def read_ir_add_norm(arguments: Arguments) -> OpaqueProducer:
    """norm(x + residual) * weight and the sum: the norm is taken of the sum in float32, the next layer gets it rounded.

    That is the op's own definition. vLLM's CUDA kernel for it rounds the sum first, so codes can differ from the
    unfused model's where that kernel was its choice.
    """
    none_of(arguments, "opaque_producer", "variance_size")
    rounding = _norm_roundings(arguments, arguments.returned[0].dtype, "x", "weight")
    spec = RMSNorm(norm_size(arguments, "weight", "x"), arguments["epsilon"], rounding=rounding)
    rows = {"x": arguments.node("x"), "residual": arguments.node("x_residual")}
    return OpaqueProducer(spec, rows, {"weight": arguments.given("weight")}, kept={"sum": 1})


def read_ir_gated_norm(arguments: Arguments) -> OpaqueProducer:
    """norm(x) * weight * silu(z), or norm(x * silu(z)) * weight: float32 throughout, rounded once.

    Of a branch of vLLM (`vllm/ir/ops/layernorm.py`). A variant with an optional z rounds elsewhere and is refused by
    its schema. Whether a release has the op was not verified.
    """
    size = norm_size(arguments, "weight", "x")
    group = arguments["group_size"] or size
    first = bool(arguments["norm_before_gate"])
    spec = GatedNorm(group, arguments["epsilon"], "silu", first, rounding=frozenset({"output"}))
    rows = {"x": arguments.node("x"), "gate": arguments.node("z")}
    return OpaqueProducer(spec, rows, {"weight": arguments.node("weight"), "bias": None})


def read_c_norm(arguments: Arguments) -> OpaqueProducer:
    """norm(x) * weight over the last dimension: float32, rounded before the weight and after it."""
    _of_one_dtype(arguments, "input", "result", "weight")
    rounding = _norm_roundings(arguments, arguments.fake("result").dtype, "input", "weight")
    spec = RMSNorm(norm_size(arguments, "weight", "input"), arguments["epsilon"], rounding=rounding)
    rows = {"x": arguments.node("input"), "residual": None}
    return OpaqueProducer(spec, rows, {"weight": arguments.given("weight")}, output="result")


def read_c_add_norm(arguments: Arguments) -> OpaqueProducer:
    """norm(input + residual) * weight, into input, and the sum, into residual: the norm is taken of the rounded sum."""
    _of_one_dtype(arguments, "input", "residual", "weight")
    points = _norm_roundings(arguments, arguments.fake("input").dtype, "input", "weight")
    rounding: frozenset[Any] = points | {"sum"}
    spec = RMSNorm(norm_size(arguments, "weight", "input"), arguments["epsilon"], rounding=rounding)
    rows = {"x": arguments.node("input"), "residual": arguments.node("residual")}
    vectors = {"weight": arguments.given("weight")}
    return OpaqueProducer(spec, rows, vectors, output="input", kept={"sum": "residual"})


_GROUP = "Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, float fp8_min, float fp8_max"
_BINDINGS = "vllm-project/vllm csrc/libtorch_stable/torch_bindings.cpp"
_GROUP_KERNEL = "vllm-project/vllm csrc/libtorch_stable/quantization/w8a8/fp8/per_token_group_quant.cu, 8b54a8d98"
_IR = "vllm-project/vllm vllm/ir/ops/layernorm.py"

READERS = (
    Shipped(
        "quant op",
        "_C::per_token_group_fp8_quant",
        (
            f"({_GROUP}, bool scale_ue8m0, bool dummy_is_scale_transposed, bool dummy_is_tma_aligned) -> ()",
            f"({_GROUP}, bool scale_ue8m0) -> ()",
        ),
        f"{_BINDINGS}; {_GROUP_KERNEL}",
        read_group,
    ),
    Shipped(
        "quant op",
        "_C::per_token_group_fp8_quant_packed",
        (f"({_GROUP.replace('output_s', 'output_s_packed')}) -> ()",),
        f"{_BINDINGS}; {_GROUP_KERNEL}",
        read_group_packed,
    ),
    Shipped(
        "quant op",
        "_C::dynamic_per_token_scaled_fp8_quant",
        ("(Tensor! result, Tensor input, Tensor! scale, Tensor? scale_ub) -> ()",),
        f"{_BINDINGS}; vllm-project/vllm csrc/libtorch_stable/quantization/w8a8/fp8/common.cu, db702fc8d",
        read_per_token,
    ),
    Shipped(
        "quant op",
        "vllm::rocm_aiter_group_fp8_quant",
        ("(Tensor x, int group_size) -> (Tensor, Tensor)",),
        "vllm-project/vllm vllm/_aiter_ops.py; ROCm/aiter csrc/kernels/quant_kernels.cu, by a comment that repeats it",
        read_aiter_group,
    ),
    Shipped(
        "quant op",
        "vllm::triton_per_token_group_quant_fp8",
        ("(Tensor x, int group_size) -> (Tensor, Tensor)",),
        "vllm-project/vllm vllm/model_executor/layers/quantization/utils/fp8_utils.py, 007d50058",
        read_triton_group,
    ),
    Shipped(
        "norm op",
        "vllm_ir::rms_norm",
        ("(Tensor x, Tensor? weight, float epsilon, int? variance_size=None) -> Tensor",),
        f"{_IR}, e8757cc88 and later",
        read_ir_norm,
        RMSNorm,
    ),
    Shipped(
        "norm op",
        "vllm_ir::fused_add_rms_norm",
        ("(Tensor x, Tensor x_residual, Tensor? weight, float epsilon, int? variance_size=None) -> (Tensor, Tensor)",),
        f"{_IR}, after e8757cc88",
        read_ir_add_norm,
        RMSNorm,
    ),
    Shipped(
        "norm op",
        "vllm_ir::rms_norm_gated",
        (
            "(Tensor x, Tensor z, Tensor weight, float epsilon, int? group_size=None, bool norm_before_gate=True)"
            " -> Tensor",
        ),
        "vllm/ir/ops/layernorm.py of a branch of vLLM; not verified in a release",
        read_ir_gated_norm,
        GatedNorm,
    ),
    Shipped(
        "norm op",
        "_C::rms_norm",
        (
            "(Tensor! result, Tensor input, Tensor? weight, float epsilon) -> ()",
            "(Tensor! result, Tensor input, Tensor weight, float epsilon) -> ()",
        ),
        f"{_BINDINGS}; vllm-project/vllm csrc/layernorm_kernels.cu",
        read_c_norm,
        RMSNorm,
    ),
    Shipped(
        "norm op",
        "_C::fused_add_rms_norm",
        (
            "(Tensor! input, Tensor! residual, Tensor? weight, float epsilon) -> ()",
            "(Tensor! input, Tensor! residual, Tensor weight, float epsilon) -> ()",
        ),
        f"{_BINDINGS}; vllm-project/vllm csrc/layernorm_kernels.cu",
        read_c_add_norm,
        RMSNorm,
    ),
)
