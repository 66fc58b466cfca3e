"""Distances between FP8 codes on the number line."""

from __future__ import annotations

import torch

#: Steps between a NaN and a number; the infinities of e5m2, the values furthest apart, differ by 248.
NAN = 256


def code_steps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How many representable FP8 values the codes `a` and `b` are apart, elementwise; int16.

    Zeros of either sign are the same value and two NaNs are 0 apart. A NaN and a number are `NAN` apart, which is more
    than any two numbers.

    Args:
        a, b: codes of one dtype and shape.
    """

    def ordered(codes: torch.Tensor) -> torch.Tensor:
        bits = codes.view(torch.uint8).short()
        return torch.where(bits >= 128, 128 - bits, bits)  # sign and magnitude -> order on the number line

    nan_a, nan_b = (torch.isnan(codes.to(torch.bfloat16)) for codes in (a, b))
    steps = torch.where(nan_a | nan_b, NAN, (ordered(a) - ordered(b)).abs())
    return torch.where(nan_a & nan_b, 0, steps).short()
