"""The reference against things it does not share a line with: other people's modules, float64, and the FP8 table."""

import importlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionlab.codes import code_steps
from fusionlib import ActAndMul, GatedNorm, GroupQuant, RMSNorm, reference
from fusionlib.spec import FP8_MAXIMA
from tests.support import FLOAT_DTYPES, acts, norms, quants, rms_norms, same

MODULES = {
    "qwen3_next.Qwen3NextRMSNormGated": ((128,), GatedNorm.qwen3_next(eps=1e-6)),
    "qwen3_5.Qwen3_5RMSNormGated": ((128,), GatedNorm.qwen3_next(eps=1e-6)),
    "olmo_hybrid.OlmoHybridRMSNormGated": ((128,), GatedNorm.qwen3_next(eps=1e-6)),
    "kimi_linear.KimiLinearRMSNormGated": ((128,), GatedNorm.kimi_linear(eps=1e-6)),
    "bailing_hybrid.BailingHybridRMSNormGated": ((128,), GatedNorm.kimi_linear(eps=1e-6)),
    "mamba2.MambaRMSNormGated": ((512, 256), GatedNorm.mamba2(256, eps=1e-6)),
    "zamba2.Zamba2RMSNormGated": ((512, 256), GatedNorm.mamba2(256, eps=1e-6)),
    "nemotron_h.NemotronHRMSNormGated": ((512, 256), GatedNorm.mamba2(256, eps=1e-6)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_presets_equal_transformers_to_the_bit(name, dtype):
    pytest.importorskip("transformers", reason="the models extra is not installed")
    model, cls = name.split(".")
    arguments, norm = MODULES[name]
    module = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), cls)(*arguments).to(
        dtype
    )
    torch.nn.init.normal_(module.weight, 1.0, 0.2)
    x, gate = (torch.randn(2, 33, 512) * 3).to(dtype)
    shape = (-1, *arguments[:1])
    expected = module(x.view(shape), gate.view(shape)).view(33, 512)
    assert torch.equal(reference.rms_norm_gated(x, gate, module.weight, norm), expected)


def test_a_float32_weight_promotes_as_transformers_does():
    mamba2 = pytest.importorskip("transformers.models.mamba2.modeling_mamba2", reason="needs the models extra")
    module = mamba2.MambaRMSNormGated(512, 256)
    torch.nn.init.normal_(module.weight)
    x, gate = torch.randn(2, 9, 512, dtype=torch.bfloat16)
    expected = module(x, gate)
    assert expected.dtype is torch.float32
    norm = GatedNorm(256, 1e-6, norm_before_gate=False, rounding={"norm"})
    assert torch.equal(reference.rms_norm_gated(x, gate, module.weight, norm), expected)


RMS_NORMS = {
    "llama.LlamaRMSNorm": RMSNorm.llama(512),
    "qwen3.Qwen3RMSNorm": RMSNorm.llama(512),
    "deepseek_v3.DeepseekV3RMSNorm": RMSNorm.llama(512),
    "qwen3_next.Qwen3NextRMSNorm": RMSNorm.qwen3_next(512),
    "gemma3.Gemma3RMSNorm": RMSNorm.qwen3_next(512),
}


@pytest.mark.parametrize("name", RMS_NORMS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_presets_of_the_rms_norm_equal_transformers_to_the_bit(name, dtype):
    pytest.importorskip("transformers", reason="the models extra is not installed")
    model, cls = name.split(".")
    module = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), cls)(512).to(dtype)
    torch.nn.init.normal_(module.weight, 1.0, 0.2)
    x, residual = (torch.randn(2, 33, 512) * 3).to(dtype)
    norm = replace(RMS_NORMS[name], eps=getattr(module, "variance_epsilon", None) or module.eps)
    value, total = reference.rms_norm(x, module.weight, norm, residual)
    assert same(total, x + residual) and same(value, module(x + residual))


@pytest.mark.parametrize("name", ["LlamaMLP", "Qwen3NextMLP", "Gemma3MLP"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_presets_of_the_product_equal_transformers_to_the_bit(name, dtype):
    """The input of the last projection, which is what a quantisation reads."""
    transformers = pytest.importorskip("transformers", reason="the models extra is not installed")
    model = {"LlamaMLP": "llama", "Qwen3NextMLP": "qwen3_next", "Gemma3MLP": "gemma3"}[name]
    config = {
        "llama": transformers.LlamaConfig,
        "qwen3_next": transformers.Qwen3NextConfig,
        "gemma3": transformers.Gemma3TextConfig,
    }[model](hidden_size=32, intermediate_size=64)
    module = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name)(config).to(dtype)
    x, seen = torch.randn(5, 32).to(dtype) * 3, []
    module.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(x)
    act = ActAndMul.geglu() if model == "gemma3" else ActAndMul.swiglu()
    assert same(reference.act_and_mul(module.up_proj(x), module.gate_proj(x), act), seen[0])


@given(norm=rms_norms(32), seed=st.integers(0, 2**16), form=st.sampled_from(["none", "norm", "hidden"]))
def test_the_rms_norm_agrees_with_float64(norm, seed, form):
    """Without rounding points the float32 value is within 2^-18 of float64; the sum is one addition."""
    norm = RMSNorm(32, norm.eps, norm.weight_offset, frozenset())
    torch.manual_seed(seed)
    x, residual = torch.randn(2, 3, 4, 32)
    weight = None if form == "none" else torch.rand(32 if form == "norm" else 128) + 0.5
    value = (x + residual).double()
    value = value / (value.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    if weight is not None:
        value = (value.flatten(1).unflatten(1, (-1, len(weight))) * (weight.double() + norm.weight_offset)).flatten(1)
    got, total = reference.rms_norm(x, weight, norm, residual)
    assert got.dtype is torch.float32 and same(total, (x + residual).flatten(1))
    torch.testing.assert_close(got.double(), value.flatten(1), rtol=2**-18, atol=2**-20)


@given(norm=rms_norms(16), seed=st.integers(0, 2**16))
def test_every_rounding_point_of_the_rms_norm_rounds(norm, seed):
    """Leaving one point out changes some bf16 results, or the dtype."""
    torch.manual_seed(seed)
    x, residual = torch.randn(2, 64, 64, dtype=torch.bfloat16) * 2
    weight = torch.rand(16, dtype=torch.bfloat16) + 0.5
    full, total = reference.rms_norm(x, weight, norm, residual)
    assert same(total, x + residual)  # rounded for the next layer, whatever the norm goes on with
    for point in norm.rounding:
        if point == "output" and norm.out_dtype is torch.float32:
            continue
        fewer = replace(norm, rounding=norm.rounding - {point}, out_dtype=None if point == "output" else norm.out_dtype)
        value = reference.rms_norm(x, weight, fewer, residual)[0]
        assert value.dtype != full.dtype or not torch.equal(value, full), point


@pytest.mark.parametrize("residual_dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_the_sum_has_the_residuals_dtype_and_the_value_that_of_x(dtype, residual_dtype):
    x, residual = torch.randn(9, 64).to(dtype), torch.randn(9, 64).to(residual_dtype)
    wide = x.float() + residual.float()
    for rounding in ({"sum", "output"}, {"output"}):
        value, total = reference.rms_norm(x, None, RMSNorm(64, rounding=frozenset(rounding)), residual)
        assert same(total, wide.to(residual_dtype)) and value.dtype is dtype
        read = total.float() if "sum" in rounding else wide
        root = torch.rsqrt(read.pow(2).mean(-1, keepdim=True) + 1e-6)
        assert same(value, (read * root).to(dtype))


@pytest.mark.parametrize("factor_dtype", [torch.int64, torch.bool, *FLOAT_DTYPES])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_a_token_is_masked_as_transformers_does_it(dtype, factor_dtype):
    """To the bit: a number that 16 bits round, zeros of either sign, and zero times what is not a number."""
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2", reason="the models extra is missing")
    x, norm = torch.randn(2, 6, 64).to(dtype), RMSNorm.llama(64)
    x[0, 0, 3], x[1, 0, 5] = torch.nan, torch.inf
    mask = torch.tensor([[0, 0, 1, 1, 257, 3], [0, 1, 1, 1, 0, 70001]]).to(factor_dtype)
    plain, total = reference.rms_norm(x.flatten(0, 1), None, norm)
    got, same_total = reference.rms_norm(x.flatten(0, 1), None, norm, None, mask)
    want = modeling.apply_mask_to_padding_states(plain.view(2, 6, 64), mask)
    assert same(got, want.flatten(0, 1)) and same(total, same_total) and got.dtype is dtype
    assert got[0].isnan().any() and (got[:2] == 0).any() and got[1].signbit().any()
    assert same(reference.rms_norm(x.flatten(0, 1), None, norm, None, mask.flatten())[0], got)


def test_without_a_residual_the_sum_is_another_tensor_of_xs_values():
    """An op must not return its input."""
    x = torch.randn(5, 64)
    _, total = reference.rms_norm(x, None, RMSNorm(64))
    assert same(total, x) and total.data_ptr() != x.data_ptr()


@given(act=acts(), seed=st.integers(0, 2**16))
def test_the_product_agrees_with_float64_and_every_point_rounds(act, seed):
    torch.manual_seed(seed)
    x, gate = torch.randn(2, 64, 32, dtype=torch.bfloat16) * 2
    z = gate.double()
    erf, tanh = torch.erf(z / 2**0.5), torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))
    formulas = {
        "silu": z / (1 + (-z).exp()), "sigmoid": 1 / (1 + (-z).exp()), "gelu": z * (1 + erf) / 2,
        "gelu_tanh": z * (1 + tanh) / 2,
    }  # fmt: skip
    plain = reference.act_and_mul(x, gate, ActAndMul(act.activation, frozenset()))
    assert plain.dtype is torch.float32
    expected = x.double() * formulas[act.activation]
    # 1 + erf and 1 + tanh of negative gates keep few digits: half a float32 step of one, times gate and x, is left.
    torch.testing.assert_close(plain.double(), expected, rtol=2**-16, atol=2**-16)
    full = reference.act_and_mul(x, gate, act)
    for point in act.rounding:
        if point == "output" and act.out_dtype is torch.float32:
            continue
        fewer = replace(act, rounding=act.rounding - {point}, out_dtype=None if point == "output" else act.out_dtype)
        value = reference.act_and_mul(x, gate, fewer)
        assert value.dtype != full.dtype or not torch.equal(value, full), point


@given(norm=norms(32), seed=st.integers(0, 2**16), biased=st.booleans())
def test_norm_agrees_with_float64(norm, seed, biased):
    """Without rounding points the float32 value is within 2^-18 of float64: some 30 roundings of 2^-24 each."""
    norm = GatedNorm(32, norm.eps, norm.activation, norm.norm_before_gate, norm.weight_offset, frozenset())
    torch.manual_seed(seed)
    x, gate = torch.randn(2, 3, 4, 32)
    weight, bias = torch.rand(2, 128) + 0.5
    value, g = x.double(), gate.double()
    act = g * torch.sigmoid(g) if norm.activation == "silu" else torch.sigmoid(g)
    if not norm.norm_before_gate:
        value = value * act
    value = value / (value.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    value = value.flatten(1) * (weight.double() + norm.weight_offset)
    if biased:
        value = value + bias.double()
    if norm.norm_before_gate:
        value = value * act.flatten(1)
    got = reference.rms_norm_gated(x, gate, weight, norm, bias if biased else None)
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), value, rtol=2**-18, atol=2**-20)


@given(norm=norms(16), seed=st.integers(0, 2**16))
def test_every_rounding_point_rounds(norm, seed):
    """The value of each spec is its own: leaving one point out changes some bf16 results, or the dtype."""
    torch.manual_seed(seed)
    x, gate = torch.randn(2, 64, 64, dtype=torch.bfloat16) * 2
    weight = torch.rand(16, dtype=torch.bfloat16) + 0.5
    full = reference.rms_norm_gated(x, gate, weight, norm)
    for point in norm.rounding:
        if point == "output" and norm.out_dtype is torch.float32:
            continue  # what has been float32 all along
        fewer = replace(norm, rounding=norm.rounding - {point}, out_dtype=None if point == "output" else norm.out_dtype)
        value = reference.rms_norm_gated(x, gate, weight, fewer)
        assert value.dtype != full.dtype or not torch.equal(value, full), point


@pytest.mark.parametrize("per_element", [False, True])
def test_a_bias_is_added_behind_the_weight_and_before_the_next_rounding(per_element):
    """Both orders written out: the point `weight` of norm-first, and `output` of gate-first, round the sum once."""
    x, gate = torch.randn(2, 33, 64, dtype=torch.bfloat16) * 2
    weight, bias = torch.randn(2, 64 if per_element else 16, dtype=torch.bfloat16)
    wide_weight, wide_bias = (v.float().view(-1, 16) for v in (weight, bias))

    def normed(value):
        value = value.view(33, 4, 16)
        return (value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)).bfloat16().float()

    act = torch.nn.functional.silu(gate.float())
    first = (normed(x.float()) * wide_weight + wide_bias).bfloat16().float().flatten(1)
    got = reference.rms_norm_gated(x, gate, weight, GatedNorm.qwen3_next(16), bias)
    assert torch.equal(got, (first * act).bfloat16())
    behind = (normed(x.float() * act) * wide_weight + wide_bias).flatten(1)
    got = reference.rms_norm_gated(x, gate, weight, GatedNorm.mamba2(16, 1e-6), bias)
    assert torch.equal(got, behind.bfloat16())


def test_a_float32_x_gives_a_result_of_another_dtype():
    """The point `output` alone rounds to `out_dtype`; the others round to x's dtype, which float32 values are of."""
    x, gate, weight = torch.randn(9, 64), torch.randn(9, 64), torch.randn(16)
    plain = reference.rms_norm_gated(x, gate, weight, GatedNorm(16, rounding=()))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for rounding in ({"output"}, {"norm", "weight", "output"}):
            norm = GatedNorm(16, rounding=rounding, out_dtype=dtype)
            assert torch.equal(reference.rms_norm_gated(x, gate, weight, norm), plain.to(dtype))
    half = x.bfloat16()
    norm = GatedNorm(16, out_dtype=torch.float16)
    wide = reference.rms_norm_gated(half, gate, weight, GatedNorm(16, rounding=()))
    assert torch.equal(reference.rms_norm_gated(half, gate, weight, norm), wide.half())


@pytest.mark.parametrize("dtype", FP8_MAXIMA)
def test_a_scale_by_reciprocal_is_one_product(dtype):
    """By the float32 number 1 / fp8_max, then rounded; in its last bit unlike the division."""
    y = torch.randn(257, 256, dtype=torch.bfloat16)
    amax = y.float().view(257, 2, 128).abs().amax(-1)
    factor = torch.tensor(1.0) / torch.tensor(torch.finfo(dtype).max)
    _, scale = reference.group_quant(y, GroupQuant(128, dtype, scale_division="reciprocal"))
    assert torch.equal(scale, amax * factor)
    assert not torch.equal(scale, reference.group_quant(y, GroupQuant(128, dtype))[1])
    _, rounded = reference.group_quant(y, GroupQuant(128, dtype, scale_division="reciprocal", round_scale=True))
    assert torch.equal(rounded, (amax * factor).bfloat16().float())


def nearest_code(value: float, dtype: torch.dtype) -> int:
    """The code nearest to a value within the format's range, ties to the even code, by looking at all of them."""
    table = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    distance = (table - value).abs().nan_to_num(torch.inf, posinf=torch.inf)
    best = [c for c in range(256) if distance[c] == distance.min()]
    return min(best, key=lambda c: (c % 2, c))


@given(
    value=st.floats(-500, 500, width=32),
    other=st.floats(2**-10, 500, width=32),
    dtype=st.sampled_from(list(FP8_MAXIMA)),
)
def test_a_code_is_the_nearest_value_of_the_format(value, other, dtype):
    quant = GroupQuant(2, dtype)
    codes, scale = reference.group_quant(torch.tensor([[value, other]]), quant)
    amax = max(abs(value), other)
    assert scale.item() == torch.tensor(amax).div(quant.limit).item()
    quotient = (torch.tensor(value) / scale.squeeze()).clamp(-quant.limit, quant.limit).item()
    expected = torch.tensor([nearest_code(quotient, dtype)], dtype=torch.uint8).view(dtype)
    assert codes[0, 0].float() == expected.float()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_zero_keeps_its_sign(dtype):
    codes, _ = reference.group_quant(torch.tensor([[240.0, -0.0, 0.0, -1e-9]]), GroupQuant(4, dtype))
    assert codes.view(torch.uint8)[0, 1:].tolist() == [0x80, 0, 0x80]


def test_no_code_of_fnuz_is_minus_zero():
    """0x80 is NaN there, so a small negative value must become plain zero."""
    y = torch.tensor([[240.0, -1e-6, -0.0, -(2.0**-11)]])
    codes, _ = reference.group_quant(y, GroupQuant(4, torch.float8_e4m3fnuz))
    assert codes.view(torch.uint8)[0, 1:].tolist() == [0, 0, 0]


@given(st.integers(-126, 127), st.floats(1.0, 2.0, exclude_max=True, width=32))
def test_power_of_two_is_the_least_not_below(exponent, mantissa):
    value = mantissa * 2.0**exponent
    expected = 2.0**exponent if mantissa == 1.0 else 2.0 ** min(exponent + 1, 127)
    assert reference.power_of_two_at_least(torch.tensor([value], dtype=torch.float32)).item() == expected


def test_power_of_two_at_the_ends():
    values = torch.tensor([0.0, 2.0**-149, 2.0**-127, 2.0**-126, torch.inf, torch.nan])
    result = reference.power_of_two_at_least(values)
    assert result[:5].tolist() == [2.0**-126, 2.0**-126, 2.0**-126, 2.0**-126, 2.0**127]
    assert result[5].isnan()


def test_log2_would_be_wrong_where_the_bits_are_right():
    value = torch.tensor([1.0 + 2.0**-23])  # just above one: its power of two is 2
    assert torch.exp2(torch.ceil(torch.log2(value - 2.0**-24))).item() in (1.0, 2.0)
    assert reference.power_of_two_at_least(value).item() == 2.0


@given(quant=quants(8), seed=st.integers(0, 2**16), tokens=st.integers(1, 5), groups=st.integers(1, 9))
def test_scales_survive_their_layout(quant, seed, tokens, groups):
    torch.manual_seed(seed)
    y = torch.randn(tokens, groups * 8) * 10
    codes, scale = reference.group_quant(y, quant)
    size, stride, dtype = reference.scale_storage(tokens, groups, quant)
    assert (tuple(scale.shape), scale.stride(), scale.dtype) == (size, stride, dtype)
    plain_codes, plain_scale = reference.group_quant(y, quant.with_layout("row_major"))
    assert torch.equal(codes.view(torch.uint8), plain_codes.view(torch.uint8))
    assert torch.equal(reference.unpack_scales(scale, groups, quant), plain_scale)


def test_packed_scales_are_deepgemms_bytes():
    """Lowest byte first, columns padded to four tokens, unused bytes zero."""
    y = torch.zeros(3, 6 * 4)
    y[:, ::4] = 448.0 * 2.0 ** torch.tensor([[0, 1, 2, 3, 4, 5]] * 3) * torch.tensor([[1.0], [2.0], [4.0]])
    quant = GroupQuant(4, scale_format="ue8m0", scale_layout="packed_int32")
    _, scale = reference.group_quant(y, quant)
    assert (scale.shape, scale.stride()) == ((3, 2), (1, 4))
    assert scale[1].tolist() == [int.from_bytes(bytes([128, 129, 130, 131]), "little", signed=True), 132 + 133 * 256]


def test_padded_columns_and_vectors_are_as_engines_allocate_them():
    """A column begins every 16 bytes; what one scale a token needs is one dimension."""
    y = torch.randn(6, 24)
    plain = reference.group_quant(y, GroupQuant(8))[1]
    _, padded = reference.group_quant(y, GroupQuant(8, scale_layout="column_major_padded"))
    assert (padded.shape, padded.stride()) == ((6, 3), (1, 8)) and torch.equal(padded, plain)
    codes, vector = reference.group_quant(y, GroupQuant(24, scale_layout="vector"))
    assert (vector.shape, vector.stride()) == ((6,), (1,))
    assert torch.equal(vector, y.abs().amax(-1) / 448)
    back = reference.dequantise(codes, vector, GroupQuant(24, scale_layout="vector"))
    assert torch.equal(back, codes.float() * vector[:, None])


@given(quant=quants(16, (torch.float8_e4m3fn,)), seed=st.integers(0, 2**16))
def test_dequantised_is_within_half_a_step(quant, seed):
    """|y - code * scale| <= 2^-4 |y| + 2^-10 scale: half a mantissa step of e4m3 and half its least subnormal, 2^-9.

    The half step is taken with a margin of 2^-7 for a scale that was itself rounded, and saturation at 448.
    """
    torch.manual_seed(seed)
    y = torch.randn(4, 64) * 5
    codes, scale = reference.group_quant(y, quant)
    back = reference.dequantise(codes, scale, quant)
    each = reference.unpack_scales(scale, 4, quant).repeat_interleave(16, 1)
    assert ((y - back).abs() <= y.abs() * (2**-4 + 2**-7) + each * 2**-10 * 1.01).all()


class TestWhatIsNotANumber:
    """The behaviour that GroupQuant's docstring defines."""

    def quantise(self, row, **changes):
        codes, scale = reference.group_quant(torch.tensor([row]), GroupQuant(len(row), **changes))
        return codes.float()[0], scale[0, 0]

    def test_nan_poisons_its_group(self):
        codes, scale = self.quantise([1.0, torch.nan, 2.0])
        assert codes.isnan().all() and scale.isnan()

    def test_infinity_makes_the_scale_infinite_and_the_finite_codes_zero(self):
        codes, scale = self.quantise([1.0, torch.inf, -2.0])
        assert codes[1].isnan() and codes[[0, 2]].tolist() == [0.0, 0.0] and scale.isinf()

    def test_infinity_saturates_under_ue8m0(self):
        codes, scale = self.quantise([1.0, -torch.inf], scale_format="ue8m0")
        assert codes.tolist() == [0.0, -448.0] and scale == 2.0**127

    def test_only_the_nan_is_one_under_the_largest_scale(self):
        """2^127 times the codes is near what finite values of such a size are."""
        row = [1.0, torch.nan, 2.0**127, -torch.inf]
        codes, scale = self.quantise(row, scale_format="ue8m0", nan_scale="largest")
        assert codes[[0, 2, 3]].tolist() == [0.0, 1.0, -448.0] and codes[1].isnan() and scale == 2.0**127

    def test_a_packed_exponent_of_nan_is_255_or_254(self):
        y = torch.tensor([[torch.nan, 1.0], [torch.nan, 1.0]])
        for nan_scale, byte in (("nan", 255), ("largest", 254)):
            quant = GroupQuant(2, scale_format="ue8m0", scale_layout="packed_int32", nan_scale=nan_scale)
            _, scale = reference.group_quant(y, quant)
            assert scale.tolist() == [[byte], [byte]]
            unpacked = reference.unpack_scales(scale, 1, quant)
            assert unpacked.isnan().all() if byte == 255 else unpacked.eq(2.0**127).all()

    def test_zeros_take_the_floor(self):
        codes, scale = self.quantise([0.0, 0.0])
        assert codes.tolist() == [0.0, 0.0] and scale == torch.tensor(1e-10) / 448

    def test_zeros_without_a_floor_are_nan(self):
        codes, scale = self.quantise([0.0, 0.0], floor=None)
        assert codes.isnan().all() and scale == 0

    def test_a_huge_gate_gives_nothing_or_everything(self):
        x, gate = torch.ones(1, 4), torch.tensor([[-1e4, 1e4, -torch.inf, torch.nan]])
        y = reference.rms_norm_gated(x, gate, torch.ones(4), GatedNorm(4, 0.0))
        assert y[0, 0] == 0 and y[0, 1] == 1e4 and y[0, 2:].isnan().all()


def test_torchaos_contract_by_hand():
    """Scale = bf16(amax / 448) with no floor: written out from torchao's primitives, not from the reference."""
    y = torch.randn(7, 256, dtype=torch.bfloat16)
    groups = y.view(7, 2, 128)
    scale = groups.abs().amax(-1) / 448.0
    assert scale.dtype is torch.bfloat16
    expected = (groups.float() / scale.float().unsqueeze(-1)).clamp(-448, 448).to(torch.float8_e4m3fn)
    codes, got = reference.group_quant(y, GroupQuant.torchao())
    assert torch.equal(got, scale.float())
    assert code_steps(codes, expected.view(7, 256)).max() == 0
