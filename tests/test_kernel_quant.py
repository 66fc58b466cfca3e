"""The kernel's two ways to divide by a scale, in exact arithmetic: what hardware rounds is rounded from fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed on this platform")


def rounded(exact: Fraction) -> Fraction:
    """The nearest float32 of any exponent, to even in the middle."""
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
    """`_quotient`'s Markstein step: no float32 value lies nearer to y / s than its result."""
    y = torch.randn(2000).bfloat16().float() * 10.0 ** torch.randint(-6, 4, (2000,))
    scale = (torch.rand(2000) + 0.01) / 448
    plain_differs = 0
    for value, s in zip(as_fractions(y), as_fractions(scale), strict=True):
        reciprocal = rounded(1 / s)
        estimate = rounded(value * reciprocal)
        residual = rounded(value - estimate * s)
        quotient = rounded(estimate + residual * reciprocal)
        assert quotient == rounded(value / s)
        plain_differs += estimate != quotient
    assert plain_differs > 0  # the step is not idle: the reciprocal alone would often be one off


@pytest.mark.parametrize("fp8_max", [448, 57344])
def test_the_two_part_reciprocal_is_the_correctly_rounded_division_for_all_that_bf16_can_be(fp8_max):
    """Every bf16 value over every scale made of one, or of a floor: exponents do not matter, so these are all.

    And every float32 near the reciprocal that an approximate instruction may start from. Over another floor's scale the
    quotient may miss by one float32 step, and no code by that: only ties of bf16 values over bf16 values are so near.
    """
    amaxima = [Fraction(significand) for significand in range(128, 256)]
    amaxima += as_fractions(torch.tensor([1e-10, 1e-4, 1e-12, 1e-8, 1e-6, 1e-5]))  # floors in use
    plain_differs = 0
    for amax in amaxima:
        s = rounded(amax / fp8_max)
        exact = rounded(1 / s)
        ulp = rounded(exact * (1 + Fraction(1, 2**23))) - exact
        for reciprocal in (exact + step * ulp for step in range(-3, 4)):  # the hardware's is within 2^-23
            rest = rounded(rounded(1 - s * reciprocal) * reciprocal)
            for y in range(128, 256):
                quotient = rounded(y * reciprocal + rounded(y * rest))
                assert quotient == rounded(y / s), (y, amax, reciprocal)
                plain_differs += rounded(y * reciprocal) != quotient
    assert plain_differs > 0
