"""transformers' FP8Linear as it stands: on its DeepGEMM path, and on its Triton fallback that quantises inside."""

import pytest
import torch
from torch import nn
from torch.nn.functional import rms_norm

from fusionlib import GroupQuant, explain
from fusionlib.models import quantize_linears
from tests.models.finegrained import DEEPGEMM, TRITON
from tests.models.test_quantize import checkpoint_layer
from tests.spellings import run_rewritten

pytest.importorskip("transformers")


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


def test_deepgemms_scales_on_blackwell_are_refused_with_the_reason(kernels):
    """ue8m0 by a carry into the exponent's bits: equal to ours but for NaN, of which it makes a number."""
    kernels(True, True)
    model, x = Normed(checkpoint_layer(512, 256, "ue8m0")), torch.randn(4, 512).bfloat16()
    got, report, _ = run_rewritten(model, x)
    assert [site.code for site in report.refused] == ["ue8m0_nan"] and not report.fused
    assert torch.equal(got, model(x))
    quantize_linears(model, quant=GroupQuant.deepgemm(blackwell=True))  # the same scales by our op
    assert [site.fusion for site in explain(model, x, devices="cpu").fused] == ["rms_norm"]


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
