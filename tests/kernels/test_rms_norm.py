"""The RMS norm's kernel against the reference on the same device, within the bounds of the gated norm's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionlib import GroupQuant, RMSNorm, op, reference, schema
from tests.kernels.agreement import CONTRACTS, SCALE_BOUND, STEPS, assert_near, assert_quantised, spelled
from tests.support import POISON_CODE, poisoned_outputs, same

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from fusionlib.kernels import launch
from fusionlib.kernels.config import LaunchConfig, choose_row_launch

SHAPES = {  # norm, group size, [..., last]
    "smallest": (RMSNorm.native(128), 128, (128,)),
    "Qwen3-Next": (RMSNorm.qwen3_next(2048), 128, (2048,)),
    "2304": (RMSNorm.llama(2304), 128, (2304,)),
    "Llama": (RMSNorm.llama(4096), 128, (4096,)),
    "5120": (RMSNorm.vllm(5120), 128, (5120,)),
    "DeepSeek": (RMSNorm.llama(7168), 128, (7168,)),
    "11008": (RMSNorm.native(11008), 128, (11008,)),
    "largest": (RMSNorm.vllm(16384), 128, (16384,)),
    "groups of 32": (RMSNorm.native(4096), 32, (4096,)),
    "groups of 64": (RMSNorm.native(5120), 64, (5120,)),
    "groups of 256": (RMSNorm.llama(7168), 256, (7168,)),
    "per token": (RMSNorm.native(4096), 4096, (4096,)),
    "per token, 5120": (RMSNorm.vllm(5120), 5120, (5120,)),
    "heads": (RMSNorm.qwen3_next(128), 128, (16, 128)),
    "64-wide heads": (RMSNorm.llama(64), 128, (32, 64)),
    "heads of 96": (RMSNorm.llama(96), 128, (32, 96)),
    "heads, per token": (RMSNorm.native(128), 2048, (16, 128)),
}


@given(rows=st.integers(1, 2**31), row=st.sampled_from([1152, 2048, 2304, 4096, 5120, 7168, 8192, 11008, 16384]))
def test_launch_config_is_one_triton_takes(rows, row):
    for lanes in (32, 64):
        config = choose_row_launch(rows, row, lanes)
        assert config.rows == 1 and config.num_warps & (config.num_warps - 1) == 0
        assert 1 <= config.num_warps * lanes <= 1024


def test_pieces_hold_the_row_and_no_more_than_a_piece_besides():
    """Every element once: a row of 5120 is not computed as one of 8192."""
    for row in (2048, 2304, 4096, 5120, 7168, 11008, 16384):
        for warps in (1, 2, 4, 8, 16, 32):
            config = LaunchConfig(1, warps)
            quant = GroupQuant()
            tiling = launch.in_pieces(launch.unit_constants(row, quant, row, 1, config, ptx=True), config)
            elements = tiling["BLOCK_SEGMENTS"] * tiling["BLOCK_SEGMENT"]
            assert tiling["PIECES"] * elements >= row
            assert tiling["PIECES"] == 1 or tiling["PIECES"] * elements - row < elements == 256 * warps


def made(shape, tokens, dtype=torch.bfloat16, residual_dtype=None):
    norm, group_size, row = SHAPES[shape]
    x = (torch.randn(tokens, *row, device="cuda") * 2).to(dtype)
    residual = torch.randn(tokens, *row, device="cuda").to(residual_dtype or dtype)
    weight = (torch.rand(norm.norm_size, device="cuda") + 0.5).to(dtype)
    return norm, GroupQuant(group_size), x, residual, weight


def run_kernel(x, residual, weight, norm, quant, config=None, store=True):
    """Launch into poisoned outputs; codes, scale, normed and the sum, None for those that are not stored."""
    tokens, hidden = x.shape[0], x[0].numel()
    codes, scale = poisoned_outputs(tokens, hidden, quant, "cuda")
    normed = total = None
    if store:
        normed = torch.full((tokens, hidden), torch.nan, dtype=norm.output_dtype(x.dtype), device="cuda")
        total = torch.full_like(normed, torch.nan, dtype=(x if residual is None else residual).dtype)
    launch.launch_rms_norm(x, residual, weight, norm, quant, codes, scale, normed, total, config)
    return codes, scale, normed, total


def check(got, x, residual, weight, norm, quant):
    codes, scale, normed, total = got
    expected, expected_total = reference.rms_norm(x, weight, norm, residual)
    assert torch.equal(total, expected_total)  # one addition and one rounding: to the bit
    in_float32 = torch.float32 in (x.dtype, normed.dtype)
    rounded = [normed.dtype, *([x.dtype] if "norm" in norm.rounding else [])]
    assert_near(
        (codes, scale, normed),
        expected,
        quant,
        exact_scales=not in_float32,
        scale_bound=2**-10 if torch.float16 in (x.dtype, normed.dtype) else SCALE_BOUND,
        tolerance=max(STEPS[dtype] for dtype in rounded) * len(rounded),
    )
    assert_quantised(codes, scale, normed, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 3, 64, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(shape, tokens):
    norm, quant, *tensors = made(shape, tokens)
    got = run_kernel(*tensors, norm, quant)
    check(got, *tensors, norm, quant)
    alone = run_kernel(*tensors, norm, quant, store=False)  # what is stored besides changes nothing
    assert same(alone[0].view(torch.uint8), got[0].view(torch.uint8)) and same(alone[1], got[1])


@pytest.mark.gpu
@pytest.mark.parametrize("weight", ["none", "hidden", "float32"])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", ["Qwen3-Next", "5120", "heads", "64-wide heads"])
def test_with_and_without_residual_and_weight(shape, with_residual, weight):
    norm, quant, x, residual, given = made(shape, 130)
    hidden = x[0].numel()
    given = {
        "none": None,
        "hidden": torch.rand(hidden, device="cuda", dtype=x.dtype) + 0.5,
        "float32": given.float() * 1.001,
    }[weight]
    residual = residual if with_residual else None
    check(run_kernel(x, residual, given, norm, quant), x, residual, given, norm, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("residual_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rounding", ["", "sum", "norm", "output", "sum,output", "norm,output", "sum,norm,output"])
def test_every_rounding_and_mixture_of_dtypes(rounding, dtype, residual_dtype):
    norm, quant, *tensors = made("Qwen3-Next", 333, dtype, residual_dtype)
    norm = replace(norm, rounding=frozenset(filter(None, rounding.split(","))))
    check(run_kernel(*tensors, norm, quant), *tensors, norm, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_output_has_a_dtype_of_its_own(out_dtype):
    norm, quant, *tensors = made("Qwen3-Next", 65, torch.float32)
    norm = replace(norm, out_dtype=out_dtype)
    got = run_kernel(*tensors, norm, quant)
    assert got[2].dtype is out_dtype
    check(got, *tensors, norm, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("quant", CONTRACTS, ids=spelled)
@pytest.mark.parametrize("shape", ["Qwen3-Next", "2304", "5120"])
def test_every_contract(quant, shape):
    norm, _, *tensors = made(shape, 257)
    check(run_kernel(*tensors, norm, quant), *tensors, norm, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["vector", "row_major", "column_major_padded"])
def test_one_scale_a_token(layout):
    norm, _, *tensors = made("Qwen3-Next", 77)
    quant = GroupQuant(2048, scale_layout=layout)
    check(run_kernel(*tensors, norm, quant), *tensors, norm, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("warps", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("shape", ["Qwen3-Next", "2304", "5120", "heads"])
def test_every_launch_config_is_right(shape, rows, warps):
    norm, quant, *tensors = made(shape, 77)
    check(run_kernel(*tensors, norm, quant, LaunchConfig(rows, warps)), *tensors, norm, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["Qwen3-Next", "5120", "heads", "per token"])
@pytest.mark.parametrize("form", ["slice", "every other", "interleaved heads", "one row for all"])
def test_strided_inputs_read_in_place(shape, form):
    norm, quant, x, residual, weight = made(shape, 65)
    hidden = x[0].numel()
    forms = {
        "slice": lambda: torch.randn(65, 3 * hidden, device="cuda").bfloat16()[:, hidden : 2 * hidden],
        "every other": lambda: torch.randn(65, 2 * hidden, device="cuda").bfloat16()[:, 1::2],
        "interleaved heads": lambda: torch.randn(65, hidden // 128, 256, device="cuda").bfloat16()[..., :128],
        "one row for all": lambda: torch.randn(1, hidden, device="cuda").bfloat16().expand(65, -1),
    }
    strided = forms[form]()
    for tensors in ((strided, residual), (x, strided)):
        got = torch.ops.fusionlib.rms_norm_group_quant_with_value_and_sum(
            *tensors, weight, *schema.scalars(norm, quant)
        )
        plain = run_kernel(*(tensor.contiguous() for tensor in tensors), weight, norm, quant)
        for a, b in zip(got, plain, strict=True):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.gpu
@pytest.mark.parametrize("special", [0.0, -0.0, 1e-30, 3e38, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("quant", [GroupQuant.vllm(), GroupQuant.torchao(), GroupQuant(scale_format="ue8m0")])
@pytest.mark.parametrize("shape", ["Qwen3-Next", "5120", "heads"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_not_a_number_is_what_the_reference_makes_of_it(special, quant, shape, dtype):
    norm, _, x, residual, weight = made(shape, 64, dtype)
    norm = replace(norm, eps=0.0)
    x[0], residual[0], x[1, ..., 5], residual[2, ..., 7], weight[9] = special, special, special, special, special
    codes, scale, normed, total = run_kernel(x, residual, weight, norm, quant)
    expected, expected_total = reference.rms_norm(x, weight, norm, residual)
    assert same(total, expected_total)
    assert torch.equal(normed.isnan(), expected.isnan()) and torch.equal(normed.isinf(), expected.isinf())
    assert torch.equal(normed.signbit()[expected == 0], expected.signbit()[expected == 0])
    assert_quantised(codes, scale, normed, quant)


@pytest.mark.gpu
def test_no_tokens_launch_nothing():
    x = torch.empty(0, 2048, device="cuda", dtype=torch.bfloat16)
    norm, quant = RMSNorm.native(2048), GroupQuant()
    codes, scale, value, total = op.RMS_NORM(x, x, None, norm, quant, also=("value", "sum"))
    assert codes.shape == value.shape == total.shape == (0, 2048) and scale.shape == (0, 16)


@pytest.mark.gpu
def test_offsets_beyond_int32():
    """2^31 elements and more, of each tensor that is read or written."""
    tokens = 2**31 // 4096 + 100
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    x = torch.zeros(tokens, 4096, dtype=torch.bfloat16, device="cuda")
    x[-100:] = torch.randn(100, 4096, dtype=torch.bfloat16, device="cuda")
    weight, norm, quant = torch.ones(4096, device="cuda"), RMSNorm.llama(4096), GroupQuant()
    got = run_kernel(x, x, weight, norm, quant)
    few = run_kernel(x[-100:], x[-100:], weight, norm, quant, LaunchConfig(1, 4))
    for a, b in zip(got, few, strict=True):
        assert torch.equal(a[-100:].contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
    assert not (got[0][:-100].view(torch.uint8) == POISON_CODE).any()


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 33])
def test_opcheck_on_the_gpu(tokens):
    norm, quant, x, residual, weight = made("Qwen3-Next", tokens)
    for overload in op.RMS_NORM.overloads:
        torch.library.opcheck(overload, (x, residual, weight, *schema.scalars(norm, quant)))
