"""The kernel's two ways to divide by a scale, in exact arithmetic: hardware roundings are computed from fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from fusionlib.spec import FP8_MAXIMA

pytest.importorskip("triton", reason="Triton is not installed on this platform")


def rounded(exact: Fraction) -> Fraction:
    """The nearest float32 of any exponent, ties to even."""
    if exact == 0:
        return exact
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length() - 24
    unit = Fraction(2) ** exponent
    while size / unit >= 2**24:
        unit *= 2
    nearest = round(size / unit) * unit  # round() of a fraction goes to even
    return nearest if exact > 0 else -nearest


def as_fractions(values: torch.Tensor) -> list[Fraction]:
    return [Fraction(value) for value in values.double().tolist()]


def test_rounded_is_what_float32_does():
    values = torch.randn(1000, dtype=torch.float64)
    assert [rounded(value) for value in as_fractions(values)] == as_fractions(values.float())


def test_the_residual_step_is_the_correctly_rounded_division():
    """`_quotient`'s Markstein step: no float32 value is closer to y / s than its result."""
    y = torch.randn(2000).bfloat16().float() * 10.0 ** torch.randint(-6, 4, (2000,))
    scale = (torch.rand(2000) + 0.01) / 448
    plain_differs = 0
    for value, s in zip(as_fractions(y), as_fractions(scale), strict=True):
        reciprocal = rounded(1 / s)
        estimate = rounded(value * reciprocal)
        excess = rounded(estimate * s - value)
        quotient = rounded(estimate + excess * -reciprocal)
        assert quotient == rounded(value / s)
        plain_differs += estimate != quotient
    assert plain_differs > 0  # the step is needed: the reciprocal alone would often be off by one


def _float32(exact: torch.Tensor) -> torch.Tensor:
    """float64 rounded to float32 once, as float64 again."""
    return exact.float().double()


@pytest.mark.parametrize("scale_division", ["divide", "reciprocal"])
@pytest.mark.parametrize("fp8_max", [448.0, 57344.0])
def test_the_two_part_reciprocal_is_the_correctly_rounded_division_for_all_that_bf16_can_be(fp8_max, scale_division):
    """Every bf16 value over every scale made from one, or from a floor: exponents do not matter, so these are all.

    And every float32 that `ptx.reciprocal_from_below` may return. In float64 each product here is exact, as is the sum
    of the two, and a quotient of two float32 rounds to float32 like the exact one. Over another floor's scale the
    quotient may be off by one float32 step, but that changes no code: only bf16 values over bf16 values get so close to
    a tie.
    """
    amax = torch.cat([torch.arange(128.0, 256.0), torch.tensor([1e-10, 1e-4, 1e-12, 1e-8, 1e-6, 1e-5])]).double()
    y = torch.arange(128.0, 256.0).double().view(-1, 1, 1)
    factor = _float32(torch.tensor(1 / fp8_max, dtype=torch.float64))
    scale = _float32(amax / fp8_max if scale_division == "divide" else amax * factor).view(-1, 1)
    exact = (1 / scale).float().view(torch.int32)
    reciprocal = (exact + torch.arange(-8, 1, dtype=torch.int32)).view(torch.float32).double()
    assert ((1 - reciprocal * scale).amax(1) >= 7 * 2**-24).all()  # the steps cover the hardware's range
    rest = _float32(_float32(1 - reciprocal * scale) * reciprocal)
    quotient = _float32(y * reciprocal + _float32(y * rest))
    assert torch.equal(quotient, _float32(y / scale).expand_as(quotient))
    assert not torch.equal(_float32(y * reciprocal), quotient)  # the second part is needed


def test_a_two_part_quotient_keeps_the_sign_of_zero_where_the_rest_is_not_negative():
    """-0 times both parts gives -0 twice, and their sum is -0; a negative rest would make it +0. +0 stays +0."""
    reciprocal = torch.tensor(3.0)
    for zero in (torch.tensor(0.0), torch.tensor(-0.0)):
        kept, lost = (zero * reciprocal + zero * torch.tensor(rest) for rest in (1e-7, -1e-7))
        assert kept.signbit() == zero.signbit() and not lost.signbit()


def test_a_residual_step_from_the_other_side_keeps_the_sign_of_zero():
    """For y = -0, `_quotient`'s excess q*s - y is +0, and times -r it is -0; the residual y - q*s loses the sign."""
    reciprocal, scale = torch.tensor(3.0), torch.tensor(0.33)
    for zero in (torch.tensor(0.0), torch.tensor(-0.0)):
        estimate = zero * reciprocal
        excess = estimate * scale + zero * -1.0
        assert (excess * -reciprocal + estimate).signbit() == zero.signbit()
        assert not ((zero - estimate * scale) * reciprocal + estimate).signbit()


@pytest.mark.parametrize("fp8_max", sorted({limit for limits in FP8_MAXIMA.values() for limit in limits}))
def test_the_factor_of_a_reciprocal_scale_is_the_float32_reciprocal(fp8_max):
    """Triton and the reference round 1 / fp8_max from float64, PyTorch divides in float32: the same number."""
    assert torch.tensor(1 / fp8_max) == torch.tensor(1.0) / torch.tensor(fp8_max)
