"""How many codes a way of dividing changes: counted in plain PyTorch, whose float32 division and product are IEEE's.

This needs no GPU: the quotients of a correctly rounded division, of a product with the rounded reciprocal and of the
residual step are a matter of arithmetic alone. Triton's `/` is not included: its error depends on the hardware.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusionlab.codes import code_steps
from fusionlib import reference
from fusionlib.spec import GroupQuant


@dataclass(frozen=True)
class Moved:
    """How many of `codes` codes differ from those of the correctly rounded division, and by at most how many steps."""

    codes: int
    moved: int
    steps: int

    @property
    def share(self) -> float:
        """Moved codes / all codes."""
        return self.moved / self.codes


def by_reciprocal(y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Version 4's quotient, RN(y RN(1/s)); float32."""
    return y * (1.0 / scale)


def by_residual(y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Version 5's quotient. Each fused multiply-add is float64 rounded once to float32.

    A product of two float32 values is exact in float64, and so is the residual; only the last sum could be rounded
    twice, if the float64 result is halfway between two float32 values (one time in 2^29).
    """
    reciprocal = 1.0 / scale
    estimate = y * reciprocal
    residual = (y.double() - estimate.double() * scale.double()).float()
    return (estimate.double() + residual.double() * reciprocal.double()).float()


def moved_codes(y: torch.Tensor, quant: GroupQuant) -> dict[str, Moved]:
    """Codes that each way of dividing changes, for the normed value `y` [tokens, hidden].

    Returns `"reciprocal"` and `"reciprocal and residual step"`, each compared with `reference.group_quant`, whose
    scales they share.
    """
    expected, scale = reference.group_quant(y, quant)
    scale = reference.unpack_scales(scale, y.shape[1] // quant.group_size, quant)
    groups = y.unflatten(1, (-1, quant.group_size)).float()
    found = {}
    for name, divide in (("reciprocal", by_reciprocal), ("reciprocal and residual step", by_residual)):
        quotient = divide(groups, scale.unsqueeze(-1)).clamp(-quant.limit, quant.limit)
        steps = code_steps(quotient.to(quant.dtype).flatten(1), expected)
        found[name] = Moved(steps.numel(), int((steps > 0).sum()), int(steps.max()))
    return found
