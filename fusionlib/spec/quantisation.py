"""FP8 quantisation by groups: what is computed, and the presets of engines and libraries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypedDict, Unpack, get_args

import torch

from fusionlib.spec.checks import SpecError, elements, flag, number, one_of

FloorOn = Literal["amax", "scale"]
Division = Literal["divide", "reciprocal"]
ScaleFormat = Literal["float32", "ue8m0"]
NanScale = Literal["nan", "largest"]
ScaleLayout = Literal["row_major", "column_major", "column_major_padded", "packed_int32", "vector"]

#: Limits of `floor`, on amax or scale: a scale between them (at least amax / 57344) and its reciprocal are normal
#: float32 numbers.
LEAST_FLOOR, GREATEST_FLOOR = 1e-30, 1e30

#: The largest magnitude a code may take, per FP8 dtype; the first is the default. 224 for e4m3fnuz is vLLM's choice on
#: MI300 (`get_fp8_min_max` in vLLM's quant_utils); the others are the formats' own maxima (OCP OFP8 1.0; the fnuz
#: variants of Noune et al., arXiv:2206.02915).
FP8_MAXIMA: dict[torch.dtype, tuple[float, ...]] = {
    torch.float8_e4m3fn: (448.0,),
    torch.float8_e4m3fnuz: (240.0, 224.0),
    torch.float8_e5m2: (57344.0,),
}


class _Changes(TypedDict, total=False):
    """What a preset of `GroupQuant` accepts besides the group size."""

    dtype: torch.dtype
    floor: float | None
    floor_on: FloorOn
    division: Division
    scale_format: ScaleFormat
    scale_layout: ScaleLayout
    round_scale: bool
    fp8_max: float | None
    scale_division: Division
    nan_scale: NanScale


@dataclass(frozen=True)
class GroupQuant:
    """FP8 quantisation with one scale per `group_size` consecutive elements of a row. All arithmetic is float32::

        amax  = max(|y|)                   [amax = max(amax, floor)    if floor_on == "amax"]
        scale = amax / fp8_max             [amax * (1 / fp8_max)       if scale_division == "reciprocal"]
                                           [rounded to y's dtype       if round_scale]
                                           [scale = max(scale, floor)  if floor_on == "scale"]
                                           [scale = next power of two  if scale_format == "ue8m0"]
        code  = cast(clamp(y / scale, -fp8_max, fp8_max))     `reciprocal`: y * (1 / scale)

    NaNs stay NaNs. A NaN in a group makes its scale and all its codes NaN; an infinity makes the scale
    infinite, its own code NaN and the codes of finite elements zero. Under `ue8m0` the scale is 2^127 at most and an
    infinity saturates; with `nan_scale="largest"` the scale of a NaN is 2^127 too, and only the NaN's own code is one.
    With no floor, a group of zeros has scale 0 and NaN codes (as in torchao), except that the least ue8m0 scale is
    2^-126. The sign of a NaN code is unspecified, that of a zero is the value's: -0 is 0x80, or plain zero in
    e4m3fnuz, which has no -0.

    `round_scale` can undo a floor on amax: 1e-10 / 448 is 0 in float16, and so is every scale that the floor would
    raise. PyTorch computes just that; if y is float16 the op refuses such a floor (`floor_in`), since None means the
    same.

    Args:
        group_size: elements per scale; the whole row for per-token quantisation.
        dtype: float8_e4m3fn, float8_e4m3fnuz (MI300) or float8_e5m2.
        floor: smallest value of amax or scale, from `LEAST_FLOOR` to `GREATEST_FLOOR`; None for no floor.
        floor_on: whether `floor` binds `amax` or `scale`.
        division: `divide` (correctly rounded) or `reciprocal` (one rounding of 1/scale, one of the product).
        scale_format: `float32`, or `ue8m0`: rounded up to a power of two 2^(e-127) with 1 <= e <= 254.
        scale_layout: of [tokens, groups] scales. `row_major`: strides (groups, 1). `column_major`: strides
            (1, tokens), what `torch.nn.functional.scaled_mm` takes for 1x128 scales. `column_major_padded`: strides
            (1, tokens rounded up to 4), so that TMA can read a column: DeepGEMM's on Hopper. `packed_int32`: four ue8m0
            exponents to an int32, lowest byte first, [tokens, ceil(groups / 4)] with strides (1, tokens rounded up to
            4), unused bytes zero: what DeepGEMM takes on Blackwell. `vector`: [tokens], if one group is a token.
        round_scale: the scale is rounded to y's dtype before it is used (torchao's primitives on bf16 input).
        fp8_max: largest magnitude of a code; None for the dtype's own. e4m3fnuz also allows vLLM's 224.
        scale_division: `divide` (correctly rounded), or `reciprocal`: a product with the float32 number 1 / fp8_max.
            That is what PyTorch makes of `amax / 448.0` on CUDA, if the divisor is a Python number or a scalar on
            the CPU (aten/native/cuda/BinaryDivTrueKernel.cu; Inductor does the same); on CPU it divides.
        nan_scale: what a NaN scale is rounded to under `ue8m0`: it stays NaN, or is the `largest` power of two, 2^127,
            as its exponent's bits alone give it.
    """

    group_size: int = 128
    dtype: torch.dtype = torch.float8_e4m3fn
    floor: float | None = 1e-10
    floor_on: FloorOn = "amax"
    division: Division = "divide"
    scale_format: ScaleFormat = "float32"
    scale_layout: ScaleLayout = "row_major"
    round_scale: bool = False
    fp8_max: float | None = None
    scale_division: Division = "divide"
    nan_scale: NanScale = "nan"

    def __post_init__(self) -> None:
        elements("group_size", self.group_size)
        one_of("dtype", self.dtype, tuple(FP8_MAXIMA))
        if self.floor is not None:
            limits = f"at least {LEAST_FLOOR:g} and at most {GREATEST_FLOOR:g}, or None for no floor"
            floor = number("floor", self.floor, limits)
            if not LEAST_FLOOR <= floor <= GREATEST_FLOOR:
                raise SpecError(
                    f"floor={floor!r} must be {limits}, so that scales and their reciprocals are normal float32 numbers"
                )
            object.__setattr__(self, "floor", floor)
        one_of("floor_on", self.floor_on, get_args(FloorOn))
        one_of("division", self.division, get_args(Division))
        one_of("scale_division", self.scale_division, get_args(Division))
        one_of("scale_format", self.scale_format, get_args(ScaleFormat))
        one_of("scale_layout", self.scale_layout, get_args(ScaleLayout))
        one_of("nan_scale", self.nan_scale, get_args(NanScale))
        flag("round_scale", self.round_scale)
        if self.fp8_max is not None:
            fp8_max = number("fp8_max", self.fp8_max, f"one of {FP8_MAXIMA[self.dtype]}, or None")
            one_of("fp8_max", fp8_max, FP8_MAXIMA[self.dtype])
            object.__setattr__(self, "fp8_max", fp8_max)
        if self.scale_layout == "packed_int32" and self.scale_format != "ue8m0":
            raise SpecError(
                f"scale_layout='packed_int32' packs exponents, so scale_format={self.scale_format!r} cannot be stored; "
                "use scale_format='ue8m0' or scale_layout='column_major'"
            )
        if self.nan_scale != "nan" and self.scale_format != "ue8m0":
            raise SpecError(
                f"nan_scale={self.nan_scale!r} rounds a NaN to a power of two, so scale_format={self.scale_format!r} "
                "keeps it; use scale_format='ue8m0' or nan_scale='nan'"
            )

    @property
    def limit(self) -> float:
        """The largest magnitude of a code: `fp8_max`, or the dtype's own maximum."""
        return FP8_MAXIMA[self.dtype][0] if self.fp8_max is None else self.fp8_max

    def floor_in(self, dtype: torch.dtype) -> float | None:
        """The floor that is in effect for a y of `dtype`: None if the scale's rounding takes the least scale to 0."""
        if self.floor is None or not self.round_scale or self.floor_on == "scale":
            return self.floor
        least = torch.finfo(dtype)
        return self.floor if self.floor / self.limit > least.tiny * least.eps / 2 else None  # half the least number

    def with_layout(self, scale_layout: ScaleLayout) -> GroupQuant:
        """The same quantisation with its scales stored in another layout."""
        return replace(self, scale_layout=scale_layout)

    # Presets. Those written in PyTorch divide by a Python number: on CUDA that is `scale_division="reciprocal"`.

    @classmethod
    def vllm(cls, group_size: int = 128, **changes: Unpack[_Changes]) -> GroupQuant:
        """vLLM's and SGLang's `per_token_group_quant_fp8`: amax >= 1e-10, division. A kernel that divides twice.

        Source: vLLM model_executor/layers/quantization/utils/fp8_utils.py, itself after SGLang PR #2575.
        """
        return cls(group_size, **changes)

    @classmethod
    def vllm_native(cls, group_size: int = 128, **changes: Unpack[_Changes]) -> GroupQuant:
        """vLLM's `QuantFP8._quantize_group_native`: scale >= 1 / (512 fp8_max), division; 224 is the fnuz maximum.

        Written in PyTorch. Source: vLLM model_executor/layers/quantization/input_quant_fp8.py.
        """
        dtype = changes.get("dtype", torch.float8_e4m3fn)
        one_of("dtype", dtype, tuple(FP8_MAXIMA))
        fp8_max = FP8_MAXIMA[dtype][-1]
        own: _Changes = {"floor": 1.0 / (fp8_max * 512.0), "floor_on": "scale", "fp8_max": fp8_max}
        return cls(group_size, **own | changes)

    @classmethod
    def aiter(cls, group_size: int = 128, **changes: Unpack[_Changes]) -> GroupQuant:
        """AITER's Triton `_fp8_quant_op`: amax >= 1e-10, multiplication by the reciprocal of the scale. A kernel.

        Source: AITER aiter/ops/triton, the quantisation inside `fused_rms_fp8_group_quant`.
        """
        own: _Changes = {"division": "reciprocal"}
        return cls(group_size, **own | changes)

    @classmethod
    def deepgemm(cls, group_size: int = 128, blackwell: bool = False, **changes: Unpack[_Changes]) -> GroupQuant:
        """DeepGEMM's `per_token_cast_to_fp8`: amax >= 1e-4, reciprocal; Blackwell takes packed ue8m0 scales.

        Those are made of the exponent's bits alone, so that the scale of a NaN is 2^127. Codes are cast without a
        clamp, which is the same where the cast itself saturates: to float8_e4m3fn it does since PyTorch 2.13.

        Written in PyTorch. Source: DeepGEMM deep_gemm/utils/math.py (`ceil_to_ue8m0`, `pack_ue8m0_to_int`) and
        csrc/jit_kernels/impls/smxx_layout.hpp.
        """
        own: _Changes = {"floor": 1e-4, "division": "reciprocal", "scale_layout": "column_major"}
        powers: _Changes = {
            "scale_format": "ue8m0",
            "scale_layout": "packed_int32",
            "nan_scale": "largest",
        }
        return cls(group_size, **own | (powers if blackwell else {}) | changes)

    @classmethod
    def torchao(cls, group_size: int = 128, **changes: Unpack[_Changes]) -> GroupQuant:
        """torchao's `_choose_scale_float8` and `_quantize_affine_float8`: no floor, scale rounded to the input's dtype.

        Written in PyTorch. Source: torchao 0.18, quantization/quant_primitives.py.
        """
        own: _Changes = {"floor": None, "round_scale": True}
        return cls(group_size, **own | changes)
