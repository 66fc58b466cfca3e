"""transformers' FP8Linear as it stands: on its DeepGEMM path, and on its Triton fallback that quantises inside."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import rms_norm, silu

from fusionlib import GroupQuant, explain, schema
from fusionlib.models import quantize_linears
from tests.models.finegrained import (
    DEEPGEMM,
    MANTISSA,
    TRITON,
    per_token_cast_to_fp8,
    power_by_bits,
    power_by_carry,
)
from tests.models.test_quantize import checkpoint_layer
from tests.spellings import run_rewritten

pytest.importorskip("transformers")

DEEPGEMM_ON_BLACKWELL = schema.scalars(GroupQuant.deepgemm(blackwell=True))


#: Before, the cast made NaN of infinities.
SATURATES = torch.tensor(torch.inf).to(torch.float8_e4m3fn) == 448
since_2_13 = pytest.mark.skipif(not SATURATES, reason="this PyTorch's cast to FP8 does not saturate")


def refused(fn, *tensors):
    report = explain(fn, *tensors, devices="cpu")
    assert not report.fused
    return report.refused[0]


@pytest.fixture
def kernels(monkeypatch):
    """(deepgemm, sm100) -> transformers finds such kernels, and such a GPU."""
    from transformers.integrations import deepgemm, finegrained_fp8

    def install(has_deepgemm: bool, sm100: bool) -> None:
        monkeypatch.setattr(finegrained_fp8, "is_deepgemm_loadable", lambda: has_deepgemm)
        for module in (finegrained_fp8, deepgemm):
            monkeypatch.setattr(module, "is_sm100", lambda: sm100)
        monkeypatch.setattr(deepgemm, "_DEEPGEMM", DEEPGEMM)
        monkeypatch.setattr(finegrained_fp8, "_FINEGRAINED_FP8", TRITON)

    return install


class Normed(nn.Module):
    """A norm and the layer behind it."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.weight = layer, nn.Parameter(torch.rand(512).bfloat16())
        self.requires_grad_(False)

    def forward(self, x):
        return self.layer(rms_norm(x, (512,), self.weight, 1e-6))


def test_the_quantisation_of_deepgemm_fuses_as_it_stands(kernels):
    """Hopper: float32 scales of amax >= 1e-4, by the reciprocal."""
    kernels(True, False)
    model, x = Normed(checkpoint_layer(512, 256)), torch.randn(4, 512).bfloat16()
    got, report, _ = run_rewritten(model, x)
    (site,) = report.fused
    assert not report.refused and site.fusion == "rms_norm" and "amax >= 0.0001, reciprocal" in site.what
    assert torch.equal(got, model(x))


@since_2_13
def test_deepgemms_scales_on_blackwell_fuse_as_they_stand(kernels):
    """Powers of two by the exponent's bits, packed by the op: no assertion, packing or copy of words is left."""
    kernels(True, True)
    model, x = Normed(checkpoint_layer(512, 256, "ue8m0")), torch.randn(6, 512).bfloat16()
    x[1, 3], x[2] = torch.nan, 0.0
    got, report, graphs = run_rewritten(model, x)
    (site,) = report.fused
    assert not report.refused and site.fusion == "rms_norm"
    (call,) = (node for node in graphs[0].nodes if "rms_norm_group_quant" in str(node.target))
    assert call.args[-len(DEEPGEMM_ON_BLACKWELL) :] == DEEPGEMM_ON_BLACKWELL
    left = " ".join(str(node.target) for node in graphs[0].nodes)
    assert not any(name in left for name in ("assert", "shift", "bitwise", "clamp"))
    assert left.count("aten.copy.default") == 1  # of the words of the weight's scales
    assert torch.equal(got.view(torch.int16), model(x).view(torch.int16)) and got[1].isnan().all()
    quantize_linears(model, quant=GroupQuant.deepgemm(blackwell=True))  # the same by our op
    assert [site.what for site in explain(model, x, devices="cpu").fused] == [site.what]


def product_then(cast):
    """A product before a quantisation: unlike a norm's, its infinities stay."""
    return lambda x, gate: cast(silu(gate) * x)


def with_what_is_not_finite():
    x, gate = torch.randn(6, 512).bfloat16(), torch.full((6, 512), 9.0).bfloat16()
    x[0, 3], x[1, 4], x[2, 5], x[2, 130], x[3, 6], x[4] = torch.nan, torch.inf, -torch.inf, torch.nan, 3e38, 0.0
    return x, gate


def same_bits(got, want):
    """But for the signs of NaN codes."""
    codes, wanted = (each.view(torch.uint8) & 0x7F for each in (got[0], want[0]))
    kept = got[0].float().nan_to_num(0.0).equal(want[0].float().nan_to_num(0.0))
    return kept and torch.equal(codes, wanted) and torch.equal(got[1], want[1]) and got[1].stride() == want[1].stride()


@since_2_13
@pytest.mark.parametrize("packed", [False, True])
def test_its_codes_and_scales_are_equal_also_of_what_is_not_finite(packed):
    fn = product_then(partial(per_token_cast_to_fp8, use_ue8m0=True, use_packed_ue8m0=packed))
    x, gate = with_what_is_not_finite()
    got, report, _ = run_rewritten(fn, x, gate)
    assert len(report.fused) == 1 and not report.refused and "(NaN: the largest)" in report.fused[0].what
    codes, scale = fn(x, gate)
    assert same_bits(got, (codes, scale))
    assert codes[1, 4] == 448 and codes[2, 5] == -448 and codes[0, 3].isnan() and not codes.float()[0, 4:].isnan().any()
    if not packed:
        assert scale[0, 0] == scale[1, 0] == scale[2, 1] == 2.0**127


def with_scales(power, clamp=True):
    """A quantisation whose scales are rounded by `power`."""

    def cast(y):
        groups = y.float().unflatten(1, (-1, 128))
        scale = power(groups.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 448.0)
        quotient = groups * (1.0 / scale)
        quotient = quotient.clamp(-448.0, 448.0) if clamp else quotient
        return quotient.to(torch.float8_e4m3fn).flatten(1), scale.squeeze(-1)

    return product_then(cast)


OURS = {
    "by bool": {},
    "no magnitude": {"magnitude": False},
    "unequal to zero": {"carry": lambda bits: bits != 0},
}
OTHERS = {
    "no clamp of the exponent": {"low": None, "high": 255},
    "from 0": {"low": 0},
    "to 255": {"high": 255},
    "no lower bound": {"low": None},
    "no upper bound": {"high": None},
}


@since_2_13
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("name", OURS)
def test_the_power_by_bits_in_other_words(name, clamp):
    fn, tensors = with_scales(partial(power_by_bits, **OURS[name]), clamp), with_what_is_not_finite()
    got, report, _ = run_rewritten(fn, *tensors)
    assert len(report.fused) == 1, str(report)
    assert same_bits(got, fn(*tensors))
    assert got[0][1, 4] == 448 and got[1][0, 0] == 2.0**127


@pytest.mark.parametrize("power", [*(partial(power_by_bits, **changes) for changes in OTHERS.values()), power_by_carry])
def test_another_power_is_refused(power):
    site = refused(with_scales(power), *with_what_is_not_finite())
    assert site.code == "ue8m0" and (power is not power_by_carry or "-0 of NaN" in site.found)


def test_without_a_clamp_where_the_cast_does_not_saturate():
    def cast(y):
        groups = y.float().unflatten(1, (-1, 128))
        scale = power_by_bits(groups.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 57344.0)
        return (groups * (1.0 / scale)).to(torch.float8_e5m2).flatten(1), scale.squeeze(-1)

    site = refused(product_then(cast), *with_what_is_not_finite())
    assert site.code == "clamp" and "float8_e5m2 does not saturate" in site.expected


@since_2_13
def test_bits_that_are_read_otherwise_are_those_of_the_ops_scale():
    """Tracing leaves out the view as int32 of a scale made of bits: what reads them reads what the scale is made of."""

    def cast(y):
        codes, scale = per_token_cast_to_fp8(y, True)
        return codes, scale, scale.view(torch.int32) >> 20

    fn, tensors = product_then(cast), with_what_is_not_finite()
    got, report, _ = run_rewritten(fn, *tensors)
    assert len(report.fused) == 1 and "row_major" in report.fused[0].what
    want = fn(*tensors)
    assert same_bits(got, want) and torch.equal(got[2], want[2])


ASSERTIONS = {
    "other bits": lambda bits: (bits & (MANTISSA >> 1) == 0).all(),
    "unequal to one": lambda bits: ((bits & MANTISSA) != 1).all(),
    "equal to zero or not": lambda bits: (bits & MANTISSA == 0).any(),
    "of more scales": lambda bits: (torch.cat([bits, bits]) & MANTISSA == 0).all(),
}


@since_2_13
@pytest.mark.parametrize("asserted", ASSERTIONS)
def test_another_assertion_is_kept(asserted):
    """What may fail is asked as before, of scales in float32, and the packing is kept with it."""

    def cast(y):
        codes, scale = per_token_cast_to_fp8(y, True)
        bits = scale.view(torch.int32)
        torch._assert_async(ASSERTIONS[asserted](bits), "no power of two")
        words = torch.empty_strided((6, 1), (1, 8), dtype=torch.int32)
        return codes, words.copy_((bits >> 23).to(torch.uint8).view(torch.int32))

    fn, tensors = product_then(cast), with_what_is_not_finite()
    got, report, graphs = run_rewritten(fn, *tensors)
    assert len(report.fused) == 1 and "row_major" in report.fused[0].what
    assert any("_assert_async" in str(node.target) for node in graphs[0].nodes)
    assert same_bits(got, fn(*tensors))


def test_a_product_that_quantises_inside_is_told(kernels):
    """Nothing can be fused there, which is said in words and not by silence; our own layer in its place fuses."""
    kernels(False, False)
    model, x = Normed(checkpoint_layer(512, 256)), torch.randn(4, 512).bfloat16()
    report = explain(model, x, devices="cpu")
    assert not report.fused and not report.refused
    (told,) = report.unclaimed
    assert "hub_stand_in.matmul_2d" in str(told) and "quantises it inside" in str(told)
    assert "no fusion starts" not in str(told) and "quantize_linears" in report._repr_html_()
    quantize_linears(model)
    assert [site.fusion for site in explain(model, x, devices="cpu").fused] == ["rms_norm"]


def test_a_scaled_product_is_not_taken_for_one(kernels):
    """Codes and weight are both FP8 there, and their quantisation is a site of its own."""
    kernels(True, False)
    report = explain(Normed(checkpoint_layer(512, 256)), torch.randn(4, 512).bfloat16(), devices="cpu")
    assert len(list(report)) == 1
