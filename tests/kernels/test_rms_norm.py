"""The RMS norm's kernel against the reference on the same device, and its launch heuristic."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionlib import GroupQuant, RMSNorm, op, reference, schema
from tests.kernels.agreement import QUANTS, SPECIAL_QUANTS, assert_quantised
from tests.support import codes_bytes, poisoned_outputs

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from fusionlib.kernels import constants as kernel_constants
from fusionlib.kernels import launch
from fusionlib.kernels.config import LaunchConfig, choose_row_launch

ROWS = (128, 256, 2048, 2304, 4096, 5120, 7168, 11008, 16384)


@given(rows=st.integers(1, 2**31), row=st.sampled_from(ROWS))
def test_launch_config_is_one_triton_takes(rows, row):
    for lanes in (32, 64):
        config = choose_row_launch(rows, row, lanes)
        assert config.rows == 1 and config.num_warps & (config.num_warps - 1) == 0
        assert 1 <= config.num_warps * lanes <= 1024
        assert row <= config.num_warps * lanes * 64  # values per thread


def test_pieces_hold_a_row_and_less_than_one_piece_besides():
    """A row of 5120 is not computed as one of 8192; each group and each row is whole."""
    for row in ROWS[2:]:
        for warps in (1, 2, 4, 8, 16, 32):
            config = LaunchConfig(1, warps)
            tiling = kernel_constants.in_pieces(
                row, kernel_constants.unit_constants(row, GroupQuant(), row, 1, config, ptx=True), config
            )
            elements = tiling["BLOCK_SEGMENTS"] * tiling["BLOCK_SEGMENT"]
            assert tiling["PIECES"] * elements >= row
            assert tiling["PIECES"] == 1 or tiling["PIECES"] * elements - row < elements == 256 * warps


@pytest.mark.parametrize(("norm_size", "group_size", "warps"), [(96, 128, 1), (384, 256, 1), (1536, 1024, 4)])
def test_several_norms_in_a_unit_are_in_one_piece(norm_size, group_size, warps):
    """The squares of all pieces are added up."""
    config, quant = LaunchConfig(1, warps), GroupQuant(group_size)
    tiling = kernel_constants.unit_constants(norm_size, quant, 3072, 1, config, ptx=True)
    assert kernel_constants.in_pieces(norm_size, tiling, config) == tiling | {"PIECES": 1}


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(96, 128), (384, 256), (1536, 1024), (192, 256)])
@pytest.mark.parametrize("tokens", [3, 1000])
def test_norms_and_groups_that_do_not_divide_each_other(sizes, tokens):
    norm, quant, x = RMSNorm.llama(sizes[0]), GroupQuant(sizes[1]), drawn(tokens, 3072)
    weight = drawn(1, sizes[0])[0]
    for config in (None, LaunchConfig(1, 1), LaunchConfig(1, 4)):
        assert_agrees(run_kernel(x, x, weight, norm, quant, config), x, x, weight, norm, quant)


def run_kernel(x, residual, weight, norm, quant, config=None, token_factor=None):
    """Launch into poisoned outputs; returns codes, scale, normed, and the sum or None."""
    tokens, hidden = x.shape[0], x[0].numel()
    codes, scale = poisoned_outputs(tokens, hidden, quant, "cuda")
    normed = torch.full((tokens, hidden), torch.nan, dtype=norm.output_dtype(x.dtype), device="cuda")
    total = None if residual is None else torch.full((tokens, hidden), torch.nan, dtype=residual.dtype, device="cuda")
    launch.launch_rms_norm(x, residual, weight, token_factor, norm, quant, codes, scale, normed, total, config)
    return codes, scale, normed, total


def assert_agrees(got, x, residual, weight, norm, quant, token_factor=None):
    codes, scale, normed, total = got
    expected, expected_sum = reference.rms_norm(x, weight, norm, residual, token_factor)
    assert residual is None or torch.equal(total, expected_sum)
    # A float32 sum of two 16-bit values may be the small difference of large ones; it is exact in both.
    assert_quantised((codes, scale, normed), expected, x.dtype, norm.rounding - {"sum"}, quant)


def drawn(tokens, hidden, dtype=torch.bfloat16):
    return (torch.randn(tokens, hidden, device="cuda") * 2).to(dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 3, 64, 700])
@pytest.mark.parametrize("hidden", ROWS)
@pytest.mark.parametrize("preset", [RMSNorm.qwen3_next, RMSNorm.llama, RMSNorm.vllm])
def test_agrees_with_the_reference(preset, hidden, tokens):
    norm = preset(hidden)
    x, residual, weight = drawn(tokens, hidden), drawn(tokens, hidden), drawn(1, hidden)[0] / 8 + 1 - norm.weight_offset
    for given_residual in (residual, None):
        got = run_kernel(x, given_residual, weight, norm, GroupQuant())
        assert_agrees(got, x, given_residual, weight, norm, GroupQuant())


@pytest.mark.gpu
@pytest.mark.parametrize("config", [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32), (2, 4), (2, 16), (4, 8)])
@pytest.mark.parametrize("hidden", [256, 2048, 5120])
def test_every_launch_config_is_right(hidden, config):
    if config[0] * hidden > config[1] * 32 * 128:
        pytest.skip("more than 128 values per thread")
    norm, x, residual, weight = RMSNorm.llama(hidden), drawn(77, hidden), drawn(77, hidden), drawn(1, hidden)[0]
    got = run_kernel(x, residual, weight, norm, GroupQuant(), LaunchConfig(*config))
    assert_agrees(got, x, residual, weight, norm, GroupQuant())


@pytest.mark.gpu
@pytest.mark.parametrize("quant", QUANTS, ids=str)
@pytest.mark.parametrize("hidden", [2048, 5120])
def test_every_quantisation(quant, hidden):
    norm, x, residual, weight = RMSNorm.native(hidden), drawn(65, hidden), drawn(65, hidden), drawn(1, hidden)[0]
    assert_agrees(run_kernel(x, residual, weight, norm, quant), x, residual, weight, norm, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [2048, 5120])
def test_one_scale_for_each_token(hidden):
    norm, x, weight = RMSNorm.llama(hidden), drawn(65, hidden), drawn(1, hidden)[0]
    for quant in (GroupQuant(hidden), GroupQuant(hidden, scale_layout="vector")):
        assert_agrees(run_kernel(x, None, weight, norm, quant), x, None, weight, norm, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("norm_size", [64, 96, 128, 256])
def test_norms_of_heads_with_weights_of_heads_and_of_rows(norm_size):
    norm, x = RMSNorm.llama(norm_size), drawn(130, 3072)
    for size in (norm_size, 3072):
        weight = drawn(1, size)[0]
        assert_agrees(run_kernel(x, None, weight, norm, GroupQuant()), x, None, weight, norm, GroupQuant())


@pytest.mark.gpu
@pytest.mark.parametrize("residual_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("points", [(), ("norm",), ("sum",), ("sum", "norm", "output"), ("output",)])
def test_mixed_dtypes_and_every_rounding(x_dtype, residual_dtype, points):
    norm = RMSNorm(2048, rounding=frozenset(points))
    x, residual, weight = drawn(99, 2048, x_dtype), drawn(99, 2048, residual_dtype), drawn(1, 2048, torch.float32)[0]
    assert_agrees(run_kernel(x, residual, weight, norm, GroupQuant()), x, residual, weight, norm, GroupQuant())


@pytest.mark.gpu
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_output_has_a_dtype_of_its_own_and_no_weight_is_ones(out_dtype):
    norm, x = replace(RMSNorm.native(2048), out_dtype=out_dtype), drawn(99, 2048, torch.float32)
    got = run_kernel(x, None, None, norm, GroupQuant())
    assert got[2].dtype is out_dtype
    assert_agrees(got, x, None, None, norm, GroupQuant())


@pytest.mark.gpu
@pytest.mark.parametrize("step", [1, 2])
def test_strided_inputs_are_read_in_place(step):
    norm, quant, weight = RMSNorm.llama(2048), GroupQuant(), drawn(1, 2048)[0]
    x, residual = drawn(65, 4096)[:, : 2048 * step : step], drawn(65, 6000)[:, 100 : 100 + 2048]
    strided = torch.ops.fusionlib.rms_norm_group_quant_with_sum(x, residual, weight, None, *schema.scalars(norm, quant))
    plain = run_kernel(x.contiguous(), residual.contiguous(), weight, norm, quant)
    assert torch.equal(codes_bytes(strided[0]), codes_bytes(plain[0])) and torch.equal(strided[1], plain[1])
    assert torch.equal(strided[2], plain[3])


@pytest.mark.gpu
@pytest.mark.parametrize("special", [0.0, -0.0, 1e-30, 3e38, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("quant", SPECIAL_QUANTS, ids=str)
@pytest.mark.parametrize("hidden", [256, 2048, 5120])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_not_a_number_is_what_the_reference_makes_of_it(special, quant, hidden, dtype):
    x, residual = drawn(8, hidden, dtype), drawn(8, hidden, dtype)
    x[0], residual[0], x[1, 5], residual[2, 7], x[3, :128] = special, special, special, special, special
    weight, norm = torch.ones(hidden, device="cuda"), RMSNorm.native(hidden)
    codes, scale, normed, total = run_kernel(x, residual, weight, norm, quant)
    expected, expected_sum = reference.rms_norm(x, weight, norm, residual)
    expected_codes, expected_scale = reference.group_quant(normed, quant)
    assert torch.equal(normed.isnan(), expected.isnan()) and torch.equal(normed.isinf(), expected.isinf())
    torch.testing.assert_close(total, expected_sum, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(scale, expected_scale, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(codes_bytes(codes), codes_bytes(expected_codes))


@pytest.mark.gpu
def test_offsets_beyond_32_bits():
    hidden, weight, norm = 4096, drawn(1, 4096)[0], RMSNorm.llama(4096)
    tokens = 2**31 // hidden + 3
    x = torch.empty(tokens, hidden, dtype=torch.bfloat16, device="cuda").normal_()
    codes, scale = poisoned_outputs(tokens, hidden, GroupQuant(), "cuda")
    launch.launch_rms_norm(x, None, weight, None, norm, GroupQuant(), codes, scale, None, None)
    last = reference.group_quant(reference.rms_norm(x[-8:], weight, norm)[0], GroupQuant())
    assert torch.equal(codes_bytes(codes[-8:]), codes_bytes(last[0])) and torch.equal(scale[-8:], last[1])


@pytest.mark.gpu
def test_no_tokens_launch_nothing():
    norm, quant, x = RMSNorm.llama(512), GroupQuant(), torch.empty(0, 512, device="cuda")
    results = op.RMS_NORM(x, x, None, None, norm, quant, also=("value", "sum"))
    assert [tuple(result.shape) for result in results] == [(0, 512), (0, 4), (0, 512), (0, 512)]


@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [256, 2048, 5120])
def test_what_is_stored_besides_changes_nothing(hidden):
    norm, x, residual, weight = RMSNorm.llama(hidden), drawn(77, hidden), drawn(77, hidden), drawn(1, hidden)[0]
    every = run_kernel(x, residual, weight, norm, GroupQuant())
    for kept, at in ((("value",), 2), (("sum",), 3)):
        results = op.RMS_NORM(x, residual, weight, None, norm, GroupQuant(), also=kept)
        assert torch.equal(codes_bytes(results[0]), codes_bytes(every[0])) and torch.equal(results[1], every[1])
        assert torch.equal(results[2], every[at])


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 33])
def test_opcheck_on_the_gpu(tokens):
    x, residual, weight = drawn(tokens, 2048), drawn(tokens, 2048, torch.float32), drawn(1, 2048)[0]
    mask, scalars = (
        torch.ones(tokens, dtype=torch.int64, device="cuda"),
        schema.scalars(RMSNorm.vllm(2048), GroupQuant()),
    )
    for overload in op.RMS_NORM.overloads:
        for token_factor in (None, mask):
            torch.library.opcheck(overload, (x, residual, weight, token_factor, *scalars))


FACTORS = (
    torch.int64, torch.int32, torch.uint8, torch.bool, torch.bfloat16, torch.float16, torch.float32
)  # fmt: skip


def drawn_factor(tokens, dtype):
    """Zeros, ones and, but for bool, numbers that 16 bits round: more than a mask needs."""
    factor = torch.randint(0, 3, (tokens,), device="cuda")
    factor[::5] = 0 if dtype is torch.bool else 255 if dtype is torch.uint8 else 257
    return factor.to(dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("factor_dtype", FACTORS)
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("points", [(), ("sum", "norm", "output")])
def test_a_token_is_multiplied_as_pytorch_promotes(points, x_dtype, factor_dtype):
    norm, quant, factor = RMSNorm(2048, rounding=frozenset(points)), GroupQuant(), drawn_factor(99, factor_dtype)
    x, residual, weight = drawn(99, 2048, x_dtype), drawn(99, 2048, x_dtype), drawn(1, 2048, x_dtype)[0]
    got = run_kernel(x, residual, weight, norm, quant, None, factor)
    assert_agrees(got, x, residual, weight, norm, quant, factor)
    assert (got[2][factor == 0] == 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(128, 128, 512), (64, 128, 512), (5120, 128, 5120), (2048, 2048, 2048)])
def test_a_mask_of_sequences_is_read_in_place(sizes):
    """[batch, sequence] with any strides; several units a token, norms in pieces, several rows a program."""
    norm_size, group_size, hidden = sizes
    norm, quant, x = RMSNorm.llama(norm_size), GroupQuant(group_size), drawn(7 * 33, hidden)
    weight, wide = drawn(1, norm_size)[0], torch.randint(0, 2, (40, 14), device="cuda")
    for factor in (wide[:33, ::2].t(), wide.reshape(14, 40)[::2, 5:38], wide[:33, :1].t().expand(7, 33)):
        got = run_kernel(x, None, weight, norm, quant, None, factor)
        assert_agrees(got, x, None, weight, norm, quant, factor)
        ones = run_kernel(x, None, weight, norm, quant)
        kept = factor.flatten() == 1
        assert torch.equal(codes_bytes(got[0])[kept], codes_bytes(ones[0])[kept])  # the rows that stay, to the bit


@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [256, 5120])
def test_a_masked_token_keeps_the_signs_of_its_zeros_and_what_is_not_a_number(hidden):
    x, norm = drawn(4, hidden), RMSNorm.native(hidden)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    factor = torch.tensor([0, 0, 0, 1], device="cuda")
    for quant in (GroupQuant(), GroupQuant(floor=None)):
        codes, scale, normed, _ = run_kernel(x, None, None, norm, quant, None, factor)
        expected, _ = reference.rms_norm(x, None, norm, None, factor)
        assert torch.equal(normed.isnan(), expected.isnan()) and normed[1].isnan().all()
        number = ~expected.isnan()
        assert torch.equal(normed.signbit()[number], expected.signbit()[number])
        want, want_scale = reference.group_quant(normed, quant)
        torch.testing.assert_close(scale, want_scale, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(codes_bytes(codes), codes_bytes(want))
