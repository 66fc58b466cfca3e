"""The kernel compiles offline for four GPUs, and its listings confirm the kernel's claims."""

from collections import Counter

import pytest
import torch

from fusionlab.observe.codegen import TARGETS, compile_fused
from fusionlab.observe.machine_code import machine_code
from fusionlib import GatedNorm, GroupQuant
from fusionlib.kernels.row_layout import RowLayout

triton = pytest.importorskip("triton", reason="Triton is not installed on this platform")
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])

#: norm size, group size, hidden: the fast path, 64-wide heads, Mamba2, per-token
SHAPES = {
    "norm = group": (GatedNorm.qwen3_next(), 128, 4096),
    "norm < group": (GatedNorm.vllm(64), 128, 4096),
    "norm > group": (GatedNorm.mamba2(1024), 128, 4096),
    "largest mamba2": (GatedNorm.mamba2(8192), 128, 8192),
    "per token": (GatedNorm.vllm(), 4096, 4096),
}
GATES = {
    "contiguous": None,
    "Qwen3-Next's in_proj": RowLayout(12288, 4096, 0, 256, 768),
    "strided heads in groups": RowLayout(12288, 256, 768, 128, 160),
}


def fp8(target: str) -> torch.dtype:
    return torch.float8_e4m3fnuz if target == "gfx942" else torch.float8_e4m3fn


def is_cuda(target: str) -> bool:
    return TARGETS[target][0] == "cuda"


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("target", TARGETS)
def test_instructions(target, shape, gate):
    """16-byte loads of x, gate and weight; the hardware's cast (on gfx950 from Triton 3.7); no spills."""
    norm, group_size, hidden = SHAPES[shape]
    if gate != "contiguous" and hidden != 4096:
        pytest.skip("these gates have rows of 4096 elements")
    listing = compile_fused(target, norm, GroupQuant(group_size, fp8(target)), hidden=hidden, gate=GATES[gate])
    if is_cuda(target):
        wide, loads = r"ld\.global[.\w]*\.v4\.b32", r"ld\.global"
        conversion = r"cvt\.rn\.satfinite\.e4m3x2\.f32"
    else:
        wide, loads = r"(?:global|buffer)_load_dwordx4", r"(?:global|buffer)_load"
        conversion = r"v_cvt_(?:scalef32_)?pk_fp8_f32"
    assert listing.count(wide) >= 3  # x, gate and weight
    assert listing.count(loads) == listing.count(wide)
    if target == "gfx950" and TRITON < (3, 7):
        assert listing.count(conversion) == 0  # emulated in integer arithmetic: right, and slower
    else:
        assert listing.count(conversion) >= 2
    assert listing.resources().spills == 0


@pytest.mark.parametrize("target", [t for t in TARGETS if is_cuda(t)])
def test_no_multiply_and_add_is_contracted(target):
    """One fused multiply-add per element is its quotient's last step, and those per row are known.

    A row has one for each square but the first, one for eps (its product is exact), two for the division by the largest
    FP8 value, and one for the residual of the scale's approximate reciprocal, or two if that must be exact. Any other
    would skip a rounding. The assembler may contract too; the machine code shows that it did not.
    """
    listing = compile_fused(target, GatedNorm.qwen3_next(), GroupQuant(), rows=16, num_warps=8)
    elements_a_thread = 16 * 128 // (8 * 32)
    a_row = (elements_a_thread - 1) + 1 + 2
    assert listing.count(r"fma\.rn\.f32") == elements_a_thread + a_row + 1
    assert sum(name.startswith("FFMA") for name in machine_code(listing)) == elements_a_thread + a_row + 1
    reciprocal = compile_fused(target, GatedNorm.qwen3_next(), GroupQuant.aiter(), rows=16, num_warps=8)
    assert reciprocal.count(r"fma\.rn\.f32") == a_row + 2
    assert sum(name.startswith("FFMA") for name in machine_code(reciprocal)) == a_row + 2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "quant",
    [
        GroupQuant.torchao(),
        GroupQuant.vllm_native(),
        GroupQuant.deepgemm(),
        GroupQuant.deepgemm(blackwell=True),
        GroupQuant(96, scale_format="ue8m0", scale_layout="packed_int32"),
        GroupQuant.vllm_native(scale_division="reciprocal"),
        GroupQuant(scale_layout="column_major_padded"),
    ],
)
def test_every_contract_compiles(target, quant):
    norm = GatedNorm.kimi_linear(quant.group_size)
    quant = GroupQuant(**{**vars(quant), "dtype": fp8(target), "fp8_max": None})
    listing = compile_fused(target, norm, quant, hidden=32 * quant.group_size, store_normed=True)
    assert listing.resources().spills == 0


@pytest.mark.parametrize("sizes", [(96, 128), (192, 128), (72, 128), (384, 256), (20, 24)])
@pytest.mark.parametrize("target", TARGETS)
def test_norms_and_groups_that_do_not_divide_each_other_compile(target, sizes):
    norm_size, group_size = sizes
    quant = GroupQuant(group_size, fp8(target))
    listing = compile_fused(target, GatedNorm.qwen3_next(norm_size), quant, hidden=8 * norm_size * group_size)
    assert listing.resources().spills == 0


def test_a_scale_by_reciprocal_takes_fewer_instructions_and_no_division():
    divided, multiplied = (
        compile_fused("sm_90", GatedNorm.qwen3_next(), GroupQuant(scale_division=way))
        for way in ("divide", "reciprocal")
    )
    assert len(machine_code(multiplied)) < len(machine_code(divided))
    assert multiplied.count(r"fma\.rn\.f32") == divided.count(r"fma\.rn\.f32") - 2


@pytest.mark.parametrize("quant", [GroupQuant(), GroupQuant.vllm_native()], ids=["two parts", "residual step"])
def test_the_sign_of_zero_costs_an_element_nothing(quant):
    """A product keeps it anyway; the correctly rounded quotients need no bit operation and no negation for it."""
    product, quotient = (
        Counter(machine_code(compile_fused("sm_90", GatedNorm.vllm(), each, rows=16, num_warps=8)))
        for each in (GroupQuant.aiter(), quant)
    )
    assert quotient["LOP3.LUT"] == product["LOP3.LUT"]
    assert quotient["FADD"] <= product["FADD"] + 1  # of a row


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float16,) * 2, (torch.float32,) * 2])
def test_other_dtypes_compile(dtypes):
    """Mixed inputs: activations of the first dtype, gate and weight of the second."""
    x_dtype, other = dtypes
    listing = compile_fused(
        "sm_90", GatedNorm.qwen3_next(), GroupQuant(), x_dtype=x_dtype, gate_dtype=other, weight_dtype=other
    )
    assert listing.resources().spills == 0


def test_fnuz_flushes_minus_zero():
    """On gfx942 a value at or below half the smallest code is set to zero before the cast."""
    listing = compile_fused("gfx942", GatedNorm.vllm(), GroupQuant(dtype=torch.float8_e4m3fnuz))
    assert listing.count(r"v_cndmask_b32") >= 8
    assert "f8E4M3FNUZ" in listing.stages["ttgir"]


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match=r"target 'sm_70' is unknown.*sm_90"):
        compile_fused("sm_70", GatedNorm.vllm(), GroupQuant())


def test_the_listing_keeps_every_stage():
    assert list(compile_fused("sm_90", GatedNorm.vllm(), GroupQuant()).stages)[-4:] == ["ttir", "ttgir", "llir", "ptx"]
    assert "amdgcn" in compile_fused("gfx950", GatedNorm.vllm(), GroupQuant()).stages
