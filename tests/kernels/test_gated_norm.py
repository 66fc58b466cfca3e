"""The gated norm's kernel against the reference on the same device, and its launch heuristic."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionlib import GatedNorm, GroupQuant, op, reference, schema
from tests.kernels.agreement import SPECIAL_QUANTS, assert_quantised
from tests.support import POISON_CODE, codes_bytes, grouped_gate, poisoned_outputs

pytest.importorskip("triton", reason="Triton is not installed on this platform")

import triton
import triton.language as tl

from fusionlib.kernels import launch, ptx
from fusionlib.kernels import quant as kernel_quant
from fusionlib.kernels.config import LaunchConfig, choose_launch


def spelled(quant: GroupQuant) -> str:
    """A test id from what distinguishes `quant`."""
    plain = GroupQuant()
    return ",".join(str(value) for name, value in vars(quant).items() if value != getattr(plain, name)) or "vllm"


SHAPES = {  # norm, group size, [heads, head_dim]
    "norm = group": (GatedNorm.qwen3_next(), 128, (32, 128)),
    "48 heads": (GatedNorm.vllm(), 128, (48, 128)),
    "64-wide heads": (GatedNorm.vllm(64), 128, (64, 64)),
    "Mamba2": (GatedNorm.mamba2(1024), 128, (1, 4096)),
    "largest Mamba2": (GatedNorm.mamba2(8192), 128, (1, 8192)),
    "per token": (GatedNorm.kimi_linear(), 4096, (32, 128)),
    "per token, no power of two": (GatedNorm.vllm(), 6144, (48, 128)),
    "head_dim 96": (GatedNorm.vllm(96), 96, (32, 96)),
    "heads of 96, groups of 128": (GatedNorm.qwen3_next(96), 128, (32, 96)),
    "heads of 192, groups of 128": (GatedNorm.vllm(192), 128, (16, 192)),
    "heads of 72, groups of 128": (GatedNorm.kimi_linear(72), 128, (16, 72)),
    "Mamba2, groups that cross its own": (GatedNorm.mamba2(384), 256, (1, 3072)),
}


@given(units=st.integers(1, 2**31), unit=st.sampled_from([16, 64, 96, 128, 256, 512, 1024, 6144, 8192, 16384]))
def test_launch_config_is_one_triton_takes(units, unit):
    for lanes in (32, 64):
        config = choose_launch(units, unit, lanes)
        assert config.rows & (config.rows - 1) == 0 and config.num_warps & (config.num_warps - 1) == 0
        assert 1 <= config.num_warps * lanes <= 1024
        assert config.rows * unit <= config.num_warps * lanes * 64  # values per thread


def run_kernel(x, gate, weight, norm, quant, config=None, bias=None):
    """Launch into poisoned outputs; returns codes, scale, normed."""
    tokens, hidden = x.shape[0], x[0].numel()
    codes, scale = poisoned_outputs(tokens, hidden, quant, "cuda")
    normed = torch.full((tokens, hidden), torch.nan, dtype=norm.output_dtype(x.dtype), device="cuda")
    launch.launch_fused(x, gate, weight, bias, norm, quant, codes, scale, normed, config)
    return codes, scale, normed


def assert_agrees(got, x, gate, weight, norm, quant, bias=None):
    expected = reference.rms_norm_gated(x, gate, weight, norm, bias)
    assert_quantised(got, expected, x.dtype, norm.rounding, quant, cancels=bias is not None)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 3, 64, 4096])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(shape, tokens):
    norm, group_size, row = SHAPES[shape]
    x, gate = torch.randn(2, tokens, *row, dtype=torch.bfloat16, device="cuda") * 2
    weight = torch.rand(norm.norm_size, dtype=torch.bfloat16, device="cuda") + 0.5
    quant = GroupQuant(group_size)
    assert_agrees(run_kernel(x, gate, weight, norm, quant), x, gate, weight, norm, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gate_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_mixed_dtypes(x_dtype, gate_dtype, weight_dtype):
    x = torch.randn(333, 32, 128, device="cuda").to(x_dtype)
    gate = torch.randn(333, 32, 128, device="cuda").to(gate_dtype)
    weight = torch.randn(4096, device="cuda").to(weight_dtype)
    bias = torch.randn(4096, device="cuda").to(weight_dtype)
    norm, quant = GatedNorm.qwen3_next(), GroupQuant.vllm()
    assert_agrees(run_kernel(x, gate, weight, norm, quant, bias=bias), x, gate, weight, norm, quant, bias)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "quant",
    [
        GroupQuant.vllm(),
        GroupQuant.vllm().with_layout("column_major"),
        GroupQuant.vllm(dtype=torch.float8_e5m2),
        GroupQuant.vllm_native(),
        GroupQuant.aiter(),
        GroupQuant.deepgemm(),
        GroupQuant.deepgemm(blackwell=True),
        GroupQuant.torchao(),
        GroupQuant.vllm().with_layout("column_major_padded"),
        *(
            replace(quant, scale_division="reciprocal")
            for quant in (
                GroupQuant.vllm(),
                GroupQuant.vllm(dtype=torch.float8_e5m2),
                GroupQuant.vllm_native(),
                GroupQuant.deepgemm(),
                GroupQuant.deepgemm(blackwell=True),
                GroupQuant.torchao(),
            )
        ),
    ],
    ids=spelled,
)
@pytest.mark.parametrize("heads", [6, 32])
def test_every_contract(quant, heads):
    x, gate = torch.randn(2, 517, heads, 128, dtype=torch.bfloat16, device="cuda")
    weight, norm = torch.randn(128, device="cuda"), GatedNorm.vllm()
    got = run_kernel(x, gate, weight, norm, quant)
    assert_agrees(got, x, gate, weight, norm, quant)
    codes, scale = poisoned_outputs(517, heads * 128, quant, "cuda")
    launch.launch_group_quant(got[2], quant, codes, scale)  # the unfused half, on the same normed value: bit for bit
    expected_codes, expected_scale = reference.group_quant(got[2], quant)
    assert torch.equal(scale, expected_scale)
    assert torch.equal(codes_bytes(codes), codes_bytes(expected_codes))


def eager_quant(y: torch.Tensor, quant: GroupQuant, divisor) -> tuple[torch.Tensor, torch.Tensor]:
    """As models write it, in eager PyTorch ops: `quant` with a floor on amax, with the given divisor."""
    groups = y.unflatten(1, (-1, quant.group_size)).float()
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=quant.floor) / divisor
    return (groups / scale).clamp(-quant.limit, quant.limit).to(quant.dtype).flatten(1), scale.squeeze(-1)


@pytest.mark.gpu
@pytest.mark.parametrize("y_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_division_by_a_number_is_what_eager_makes_of_it(dtype, y_dtype):
    """On CUDA, dividing by a Python number or a CPU scalar multiplies by its reciprocal; a CUDA tensor divides."""
    y = (torch.randn(257, 4096, device="cuda") * 3).to(y_dtype)
    limit = torch.finfo(dtype).max
    divisors = {
        "reciprocal": [limit, torch.tensor(limit)],
        "divide": [torch.tensor(limit, device="cuda"), torch.full((1,), limit, device="cuda")],
    }
    scales = {}
    for scale_division, ways in divisors.items():
        quant = GroupQuant(128, dtype, scale_division=scale_division)
        codes, scale = op.group_quant(y, quant)
        for divisor in ways:
            expected_codes, expected_scale = eager_quant(y, quant, divisor)
            assert torch.equal(scale, expected_scale)
            assert torch.equal(codes_bytes(codes), codes_bytes(expected_codes))
        scales[scale_division] = scale
    assert not torch.equal(scales["divide"], scales["reciprocal"])


@pytest.mark.gpu
@pytest.mark.parametrize(
    "quant", [GroupQuant.vllm(), GroupQuant.vllm_native(), GroupQuant.aiter(), GroupQuant.torchao()]
)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32])  # each way to compute a quotient
def test_zeros_have_eagers_signs(x_dtype, dtype, quant):
    """After a relu, half of the values are zeros, with signs from gate and weight."""
    quant = replace(quant, dtype=dtype, fp8_max=None, floor=quant.floor and 1e-4)
    x = torch.relu(torch.randn(130, 16, 128, device="cuda")).to(x_dtype)
    gate = torch.randn(130, 16, 128, device="cuda").to(x_dtype)
    weight, norm = torch.randn(128, device="cuda").to(x_dtype), GatedNorm.vllm()
    codes, _, normed = run_kernel(x, gate, weight, norm, quant)
    expected = reference.rms_norm_gated(x, gate, weight, norm)
    zeros = (expected == 0) & (codes.float() == 0)
    assert zeros.float().mean() > 0.3
    assert torch.equal(normed.signbit()[zeros], expected.signbit()[zeros])
    assert torch.equal(codes.view(torch.uint8)[zeros] == 0x80, expected.signbit()[zeros])
    unfused, _ = op.group_quant(expected, quant)
    assert torch.equal(codes_bytes(unfused), codes_bytes(reference.group_quant(expected, quant)[0]))


@pytest.mark.gpu
@pytest.mark.skipif(torch.version.hip is None, reason="NVIDIA GPUs have no conversion to e4m3fnuz")
def test_no_zero_of_fnuz_is_the_byte_of_nan():
    x = torch.relu(torch.randn(130, 16, 128, device="cuda")).bfloat16()
    gate = torch.randn_like(x)
    codes, *_ = run_kernel(
        x, gate, torch.ones(128, device="cuda"), GatedNorm.vllm(), GroupQuant(dtype=torch.float8_e4m3fnuz)
    )
    assert not (codes.view(torch.uint8) == 0x80).any()


@pytest.mark.gpu
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("norm", [GatedNorm.vllm(), GatedNorm.qwen3_next(), GatedNorm.mamba2(128)])
def test_the_output_has_a_dtype_of_its_own(norm, x_dtype, out_dtype):
    norm = replace(norm, out_dtype=out_dtype)
    x, gate = (torch.randn(2, 333, 32, 128, device="cuda") * 2).to(x_dtype)
    weight = torch.rand(128, device="cuda") + 0.5
    got = run_kernel(x, gate, weight, norm, GroupQuant())
    assert got[2].dtype is out_dtype
    assert_agrees(got, x, gate, weight, norm, GroupQuant())


@pytest.mark.gpu
def test_a_vector_of_scales_is_the_column_of_its_matrix():
    x, gate = torch.randn(2, 77, 32, 128, dtype=torch.bfloat16, device="cuda")
    weight, norm = torch.randn(128, device="cuda"), GatedNorm.vllm()
    quant = GroupQuant(4096, scale_layout="vector")
    codes, scale, normed = run_kernel(x, gate, weight, norm, quant)
    matrix = run_kernel(x, gate, weight, norm, quant.with_layout("row_major"))
    assert (
        scale.shape == (77,)
        and torch.equal(scale, matrix[1][:, 0])
        and torch.equal(codes_bytes(codes), codes_bytes(matrix[0]))
    )
    unfused = op.group_quant(normed, quant)
    assert torch.equal(unfused[1], scale) and torch.equal(codes_bytes(unfused[0]), codes_bytes(codes))


@pytest.mark.gpu
@pytest.mark.parametrize("norm", [GatedNorm.qwen3_next(), GatedNorm.mamba2(1024), GatedNorm.vllm(96)])
@pytest.mark.parametrize("per_element", [False, True])
def test_a_bias_is_added_behind_the_weight_in_both_orders(norm, per_element):
    x, gate = torch.randn(2, 130, 3072, dtype=torch.bfloat16, device="cuda")
    size = 3072 if per_element else norm.norm_size
    weight, bias = torch.randn(2, size, dtype=torch.bfloat16, device="cuda")
    got = run_kernel(x, gate, weight, norm, GroupQuant(), bias=bias)
    assert_agrees(got, x, gate, weight, norm, GroupQuant(), bias)


@pytest.mark.gpu
@pytest.mark.parametrize("config", [(1, 1), (2, 1), (4, 4), (8, 2), (8, 8), (16, 8), (4, 1), (32, 8)])
@pytest.mark.parametrize("groups", [16, 5])  # 2464 rows, a multiple of every program's; 770, of few
def test_every_launch_config_is_right(config, groups):
    x = torch.randn(77, 2 * groups, 128, dtype=torch.bfloat16, device="cuda")
    gate = grouped_gate(77, groups, 2, 128, torch.bfloat16, "cuda")
    weight, norm, quant = torch.randn(128, device="cuda"), GatedNorm.qwen3_next(), GroupQuant.vllm()
    got = run_kernel(x, gate, weight, norm, quant, LaunchConfig(*config))
    assert_agrees(got, x, gate, weight, norm, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["norm = group", "Mamba2", "per token"])
def test_strided_inputs_read_in_place(shape):
    norm, group_size, _ = SHAPES[shape]
    x = torch.randn(65, 32, 256, dtype=torch.bfloat16, device="cuda")[..., :128]
    gate = grouped_gate(65, 16, 2, 128, torch.bfloat16, "cuda")
    assert x.stride() == (8192, 256, 1) and gate.stride() == (12288, 768, 128, 1)
    weight, quant = torch.randn(norm.norm_size, device="cuda"), GroupQuant(group_size)
    strided = torch.ops.fusionlib.rms_norm_gated_group_quant(x, gate, weight, None, *schema.scalars(norm, quant))
    plain = run_kernel(x.contiguous(), gate.contiguous(), weight, norm, quant)
    assert torch.equal(strided[0].view(torch.uint8), plain[0].view(torch.uint8))
    assert torch.equal(strided[1], plain[1])


@pytest.mark.gpu
@pytest.mark.parametrize("special", [0.0, -0.0, 1e-30, 3e38, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("quant", SPECIAL_QUANTS, ids=str)
@pytest.mark.parametrize("config", [(8, 8), (8, 4)])  # magnitudes compared as integers, and as floats
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])  # a quotient in two parts, and with a residual step
def test_what_is_not_a_number_is_what_the_reference_makes_of_it(special, quant, config, dtype):
    x, gate = torch.randn(2, 64, 4, 128, device="cuda", dtype=dtype)
    x[0, 0], x[1, 1, 5], gate[2, 2, 7], gate[3] = special, special, special, special
    weight, norm = torch.ones(128, device="cuda"), GatedNorm.vllm()
    codes, scale, normed = run_kernel(x, gate, weight, norm, quant, LaunchConfig(*config))
    expected = reference.rms_norm_gated(x, gate, weight, norm)
    expected_codes, expected_scale = reference.group_quant(normed, quant)
    assert torch.equal(normed.isnan(), expected.isnan()) and torch.equal(normed.isinf(), expected.isinf())
    torch.testing.assert_close(scale, expected_scale, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(codes_bytes(codes), codes_bytes(expected_codes))


@triton.jit
def _divide_all_mantissas(below_ptr, reciprocal_ptr, scale_ptr, exponent, FP8_MAX: tl.constexpr, BLOCK: tl.constexpr):
    mantissa = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = (mantissa | (exponent << 23)).to(tl.float32, bitcast=True)
    tl.store(below_ptr + mantissa, ptx.reciprocal_from_below(value))
    tl.store(reciprocal_ptr + mantissa, ptx.reciprocal(value))
    tl.store(scale_ptr + mantissa, kernel_quant._over_fp8_max(value, FP8_MAX))


@pytest.mark.gpu
@pytest.mark.skipif(torch.version.hip is not None, reason="NVIDIA's instructions")
@pytest.mark.parametrize("fp8_max", [448.0, 57344.0])
@pytest.mark.parametrize("exponent", [94, 127, 200, 245])  # from 2^-33, a smallest amax, to 2^118, a largest scale
def test_the_divisions_of_a_row_are_correctly_rounded_for_every_mantissa(exponent, fp8_max):
    """Both depend on the mantissa alone while nothing is denormal; in float64 a quotient of float32 rounds once."""
    below, reciprocal, scale = torch.full((3, 2**23), torch.nan, device="cuda")
    _divide_all_mantissas[(2**23 // 1024,)](below, reciprocal, scale, exponent, FP8_MAX=fp8_max, BLOCK=1024)
    value = (torch.arange(2**23, dtype=torch.int32, device="cuda") | exponent << 23).view(torch.float32).double()
    assert torch.equal(reciprocal, (1 / value).float())
    rest = 1 - below.double() * value  # exact: 48 bits of a product near 1
    assert (rest >= 0).all() and (rest <= 7 * 2**-24).all()  # assumed by tests/kernels/test_quant.py
    assert torch.equal(scale, (value / fp8_max).float())


@pytest.mark.gpu
def test_no_tokens_launch_nothing():
    codes, scale = torch.ops.fusionlib.rms_norm_gated_group_quant(
        *(torch.empty(0, 4, 128, device="cuda") for _ in range(2)),
        torch.ones(128, device="cuda"),
        None,
        *schema.scalars(GatedNorm.vllm(), GroupQuant.vllm()),
    )
    assert codes.shape == (0, 512) and scale.shape == (0, 4)


@pytest.mark.gpu
def test_offsets_beyond_int32():
    """2^31 elements and more: a 32-bit row * stride would overflow and access the wrong address."""
    tokens = 2**31 // 4096 + 100
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    x = torch.zeros(tokens, 32, 128, dtype=torch.bfloat16, device="cuda")
    x[-100:] = torch.randn(100, 32, 128, dtype=torch.bfloat16, device="cuda")
    weight, norm, quant = torch.ones(128, device="cuda"), GatedNorm.vllm(), GroupQuant.vllm()
    codes, scale, _ = run_kernel(x, x, weight, norm, quant)
    few = run_kernel(x[-100:], x[-100:], weight, norm, quant)
    assert torch.equal(codes[-100:].view(torch.uint8), few[0].view(torch.uint8))
    assert torch.equal(scale[-100:], few[1])
    assert not (codes[:-100].view(torch.uint8) == POISON_CODE).any()


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 33])
def test_opcheck_on_the_gpu(tokens):
    x = torch.randn(tokens, 32, 128, dtype=torch.bfloat16, device="cuda")
    gate = grouped_gate(tokens, 16, 2, 128, torch.bfloat16, "cuda")
    spelled = schema.scalars(GatedNorm.qwen3_next(), GroupQuant.vllm())
    for fused in ("rms_norm_gated_group_quant", "rms_norm_gated_group_quant_with_value"):
        overload = getattr(torch.ops.fusionlib, fused).default
        torch.library.opcheck(overload, (x, gate, torch.ones(128, device="cuda"), None, *spelled))
