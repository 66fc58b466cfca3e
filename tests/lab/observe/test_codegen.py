"""The kernel compiles offline for four GPUs, and its listings confirm the kernel's claims."""

from collections import Counter

import pytest
import torch

from fusionlab.observe.codegen import TARGETS, compile_act_and_mul, compile_fused, compile_rms_norm
from fusionlab.observe.machine_code import machine_code
from fusionlib import ActAndMul, GatedNorm, GroupQuant, RMSNorm
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


@pytest.mark.parametrize("hidden", [2048, 2304, 5120, 7168])
@pytest.mark.parametrize("target", TARGETS)
def test_the_rms_norm_compiles_without_spills_and_with_wide_loads(target, hidden):
    """16-byte loads of x, residual and weight alone, for few tokens and for many."""
    for tokens in (1, 1 << 20):
        listing = compile_rms_norm(target, RMSNorm.llama(hidden), GroupQuant(128, fp8(target)), tokens=tokens)
        assert listing.resources().spills == 0
        if is_cuda(target):
            assert listing.count(r"ld\.global") == listing.count(r"ld\.global[.\w]*\.v4\.b32") >= 3


@pytest.mark.parametrize("hidden", [2048, 4096, 5120, 7168])
def test_the_warps_of_a_row_meet_once(hidden):
    """One barrier, in the root of the mean; no value changes its place among the threads."""
    listing = compile_rms_norm("sm_90", RMSNorm.qwen3_next(hidden), GroupQuant())
    assert listing.count(r"bar\.sync") == 1
    assert "convert_layout" not in listing.stages["ttgir"]


@pytest.mark.parametrize("num_warps", [1, 2, 4, 8, 16])
def test_a_row_of_one_warp_needs_no_barrier_and_more_need_one(num_warps):
    listing = compile_rms_norm("sm_90", RMSNorm.native(2048), GroupQuant(), num_warps=num_warps)
    assert listing.count(r"bar\.sync") == (num_warps > 1)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float16, None), (torch.float32,) * 2])
def test_residuals_of_other_dtypes_and_none_compile(dtypes, target):
    x_dtype, residual = dtypes
    quant = GroupQuant(128, fp8(target))
    for norm, hidden in ((RMSNorm.vllm(2048), 2048), (RMSNorm.llama(128), 2048), (RMSNorm.native(96), 3072)):
        listing = compile_rms_norm(
            target, norm, quant, hidden=hidden, x_dtype=x_dtype, residual_dtype=residual, store_normed=True
        )
        assert listing.resources().spills == 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_padding_mask_is_one_more_load(dtype, target):
    """In front of the row's own loads, which stay as wide, and without another barrier."""
    norm, quant = RMSNorm.llama(5120), GroupQuant(128, fp8(target))
    masked, plain = (compile_rms_norm(target, norm, quant, token_factor_dtype=kind) for kind in (dtype, None))
    assert masked.resources().spills == 0
    if is_cuda(target):
        loads = [line for line in masked.assembly.splitlines() if "ld.global" in line]
        wide = [line for line in loads if ".v4.b32" in line]
        assert len(wide) == plain.count(r"ld\.global") and len(loads) == len(wide) + 1 and loads[0] not in wide
        assert masked.count(r"bar\.sync") == plain.count(r"bar\.sync") == 1


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "sigmoid"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_product_compiles_without_spills_and_with_wide_loads(target, kind):
    """Of halves that are one after the other, and of interleaved ones, which are no such loads."""
    halves = RowLayout(8192, 4096, 0, 4096, 0)
    listing = compile_act_and_mul(target, ActAndMul(kind), GroupQuant(128, fp8(target)), layout=halves)
    assert listing.resources().spills == 0
    if is_cuda(target):
        assert listing.count(r"ld\.global") == listing.count(r"ld\.global[.\w]*\.v4\.b32") >= 2
        assert listing.count(r"bar\.sync") == 0
    interleaved = RowLayout(8192, 4096, 0, 1, 2)
    quant = GroupQuant(128, fp8(target), scale_format="ue8m0", scale_layout="packed_int32")
    listing = compile_act_and_mul(target, ActAndMul(kind), quant, layout=interleaved, store_value=True)
    assert listing.resources().spills == 0


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match=r"target 'sm_70' is unknown.*sm_90"):
        compile_fused("sm_70", GatedNorm.vllm(), GroupQuant())


def test_the_listing_keeps_every_stage():
    assert list(compile_fused("sm_90", GatedNorm.vllm(), GroupQuant()).stages)[-4:] == ["ttir", "ttgir", "llir", "ptx"]
    assert "amdgcn" in compile_fused("gfx950", GatedNorm.vllm(), GroupQuant()).stages
