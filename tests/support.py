"""What several tests share: inputs, poisoned outputs, and what counts as the same."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from fusionlib import reference
from fusionlib.spec import FP8_MAXIMA, ActAndMul, GatedNorm, GroupQuant, RMSNorm

POISON_CODE = 0x7E  # a finite e4m3fn code (448): an unwritten byte is neither NaN nor zero, and shows as a wrong value

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shapes, strides, dtypes and bits (-0 is not 0); NaN equals NaN whatever its bits."""
    if a.shape != b.shape or a.stride() != b.stride() or a.dtype != b.dtype:
        return False
    nan = a.float().isnan() & b.float().isnan()
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return bool(((a.view(bits) == b.view(bits)) | nan).all())


def poisoned_outputs(tokens: int, hidden: int, quant: GroupQuant, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of 0x7E and scales of NaN (packed: -1) in the right shapes and strides."""
    codes = torch.full((tokens, hidden), POISON_CODE, dtype=torch.uint8, device=device).view(quant.dtype)
    size, stride, dtype = reference.scale_storage(tokens, hidden // quant.group_size, quant)
    poison = -1 if dtype is torch.int32 else torch.nan
    return codes, torch.empty_strided(size, stride, dtype=dtype, device=device).fill_(poison)


def codes_bytes(codes: torch.Tensor) -> torch.Tensor:
    """The bytes of FP8 codes with one byte for all NaN, whose sign is unspecified; -0 and 0 are two bytes."""
    return torch.where(codes.float().isnan(), 0xFF, codes.view(torch.uint8))


def norms(norm_size: int) -> st.SearchStrategy[GatedNorm]:
    """Any valid GatedNorm of `norm_size`."""

    @st.composite
    def build(draw) -> GatedNorm:
        before = draw(st.booleans())
        points = [p for p in GatedNorm.POINTS if p != ("gate" if before else "weight")]
        rounding = draw(st.frozensets(st.sampled_from(points)))
        return GatedNorm(
            norm_size,
            draw(st.sampled_from([0.0, 1e-6, 1e-5, 1e-2])),
            draw(st.sampled_from(["silu", "sigmoid"])),
            before,
            draw(st.sampled_from([0, 1])),
            rounding,
            draw(st.sampled_from((None, *FLOAT_DTYPES))) if "output" in rounding else None,
        )

    return build()


def rms_norms(norm_size: int) -> st.SearchStrategy[RMSNorm]:
    """Any valid RMSNorm of `norm_size`."""

    @st.composite
    def build(draw) -> RMSNorm:
        rounding = draw(st.frozensets(st.sampled_from(RMSNorm.POINTS)))
        out_dtype = draw(st.sampled_from((None, *FLOAT_DTYPES))) if "output" in rounding else None
        eps, offset = draw(st.sampled_from([0.0, 1e-6, 1e-5, 1e-2])), draw(st.sampled_from([0, 1]))
        return RMSNorm(norm_size, eps, offset, rounding, out_dtype)

    return build()


@st.composite
def acts(draw) -> ActAndMul:
    """Any valid ActAndMul."""
    rounding = draw(st.frozensets(st.sampled_from(ActAndMul.POINTS)))
    out_dtype = draw(st.sampled_from((None, *FLOAT_DTYPES))) if "output" in rounding else None
    return ActAndMul(draw(st.sampled_from(["silu", "sigmoid", "gelu", "gelu_tanh"])), rounding, out_dtype)


def strided_rows(draw, tokens: int, hidden: int, magnitude: float = 1.0) -> torch.Tensor:
    """[tokens, ...] of `hidden` elements a token: contiguous, cut from wider rows, every other element, or in heads."""
    dtype, form = draw(st.sampled_from(FLOAT_DTYPES)), draw(st.sampled_from(["rows", "slice", "every other", "heads"]))
    wide = (torch.randn(tokens, 2 * hidden) * magnitude).to(dtype)
    special = draw(st.sampled_from([None, 0.0, -0.0, torch.inf, torch.nan]))
    if special is not None and tokens:
        wide[0, : hidden // 2] = special
    cut = {
        "rows": lambda: wide[:, :hidden].contiguous(),
        "slice": lambda: wide[:, hidden // 2 : hidden // 2 + hidden],
        "every other": lambda: wide[:, 1::2],
        "heads": lambda: wide.view(tokens, 2, 2, hidden // 2)[:, :, 1],
    }
    return cut[form]()


def quants(
    group_size: int, dtypes: tuple[torch.dtype, ...] = tuple(FP8_MAXIMA), *, per_token: bool = False
) -> st.SearchStrategy[GroupQuant]:
    """Any valid GroupQuant of `group_size`, for rows of one group only if `per_token`."""

    @st.composite
    def build(draw) -> GroupQuant:
        dtype = draw(st.sampled_from(dtypes))
        ue8m0 = draw(st.booleans())
        layouts = ["row_major", "column_major", "column_major_padded"] + ["packed_int32"] * ue8m0
        layouts += ["vector"] * per_token
        return GroupQuant(
            group_size,
            dtype,
            draw(st.sampled_from([None, 1e-10, 1e-4, 1.0 / (448 * 512)])),
            draw(st.sampled_from(["amax", "scale"])),
            draw(st.sampled_from(["divide", "reciprocal"])),
            "ue8m0" if ue8m0 else "float32",
            draw(st.sampled_from(layouts)),
            draw(st.booleans()),
            draw(st.sampled_from((None, *FP8_MAXIMA[dtype]))),
            draw(st.sampled_from(["divide", "reciprocal"])),
            draw(st.sampled_from(["nan", "largest"])) if ue8m0 else "nan",
        )

    return build()


def grouped_gate(tokens: int, groups: int, per_group: int, head_dim: int, dtype: torch.dtype, device: str = "cpu"):
    """A gate cut out of a projection as Qwen3-Next cuts it: [tokens, groups, per_group, head_dim], not contiguous.

    For 16 groups of 2 heads of 128, behind a query, key and value of 128, 128 and 256, the strides are
    (12288, 768, 128, 1).
    """
    width = per_group * head_dim
    projection = torch.randn(tokens, groups, 2 * head_dim + 2 * width, device=device).to(dtype)
    gate = projection[..., -width:].unflatten(-1, (per_group, head_dim))
    assert tokens == 0 or gate.stride() == (groups * (2 * head_dim + 2 * width), 2 * head_dim + 2 * width, head_dim, 1)
    return gate


def good() -> dict:
    """The arguments of a small call that nothing is wrong with, to spoil one of."""
    return {
        "x": torch.randn(3, 4, 128),
        "gate": torch.randn(3, 4, 128),
        "weight": torch.randn(128),
        "norm": GatedNorm(128),
        "quant": GroupQuant(128),
    }
