"""Codes that a way of dividing changes, compared with exact fractions."""

from fractions import Fraction

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from fusionlab.versions.count import by_reciprocal, by_residual, moved_codes
from fusionlib import GatedNorm, GroupQuant, reference


def nearest(exact: Fraction) -> float:
    near = torch.tensor(float(exact), dtype=torch.float64).float()
    around = [near, *(torch.nextafter(near, torch.tensor(d)) for d in (-torch.inf, torch.inf))]
    return min(around, key=lambda v: (abs(Fraction(v.item()) - exact), v.view(torch.int32).item() & 1)).item()


def test_the_residual_step_is_the_exact_quotient_rounded_once():
    y = torch.randn(300).bfloat16().float()
    scale = (torch.rand(300) + 0.01).bfloat16().float() / 448
    exact = torch.tensor([nearest(Fraction(a.item()) / Fraction(b.item())) for a, b in zip(y, scale, strict=True)])
    assert torch.equal(by_residual(y, scale), exact)
    assert torch.equal(y / scale, exact)
    assert not torch.equal(by_reciprocal(y, scale), exact)


def test_a_reciprocal_moves_codes_and_the_residual_step_moves_none():
    """About 5e-4 of the codes with Qwen3-Next's roundings on random input; the bounds are five standard deviations."""
    x, gate = torch.randn(2, 512, 32, 128).bfloat16()
    y = reference.rms_norm_gated(x, gate, (torch.rand(128) + 0.5).bfloat16(), GatedNorm.qwen3_next())
    found = moved_codes(y, GroupQuant.vllm())
    assert found["reciprocal"].codes == 512 * 4096
    assert 3e-4 < found["reciprocal"].share < 7e-4 and found["reciprocal"].steps == 1
    assert found["reciprocal and residual step"].moved == 0


def test_without_ties_a_reciprocal_hardly_matters():
    """The same in float32, whose quotients are not biased towards the midpoint of two codes."""
    found = moved_codes(torch.randn(512, 4096), GroupQuant.vllm())
    assert found["reciprocal"].share < 2e-5
