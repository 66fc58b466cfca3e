"""FP8 codes on the number line: how far apart two of them are."""

from __future__ import annotations

import torch


def code_steps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How many representable values lie between the FP8 codes `a` and `b`, elementwise; int16.

    Zeros of either sign are the same value and two NaN are 0 apart. A NaN against a number is as far as its bits are,
    which is at least 1 but in the `fnuz` formats, whose one NaN has the bits of a negative zero.

    Args:
        a, b: codes of one dtype and shape.
    """

    def ordered(codes: torch.Tensor) -> torch.Tensor:
        bits = codes.view(torch.uint8).short()
        return torch.where(bits >= 128, 128 - bits, bits)  # sign and magnitude -> order on the number line

    both_nan = torch.isnan(a.to(torch.bfloat16)) & torch.isnan(b.to(torch.bfloat16))
    return torch.where(both_nan, 0, (ordered(a) - ordered(b)).abs())
