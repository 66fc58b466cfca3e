"""Whether a variant computes the right thing, before it is timed: its codes and scales against eager's."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from fusionlab.codes import code_steps
from fusionlib import reference
from fusionlib.spec import GroupQuant

#: Shares of codes and scales that summation order and two approximate instructions may change;
#: tests/kernels/test_gated_norm.py derives both.
CODE_BOUND, SCALE_BOUND = 1e-5, 2**-13
#: A variant that keeps the normed value in float32 quantises a different value, up to one bf16 step (2^-8) away: its
#: scales may differ by as much, and its codes by at most one step.
CLOSE_SCALE = 2**-7


@dataclass(frozen=True)
class Agreement:
    """How a variant's result compares with eager's on the same inputs.

    Args:
        codes_differ: share of the codes that differ, in groups whose scales agree.
        steps: the largest difference of codes anywhere, in representable FP8 values.
        scales_differ: share of the scales that differ.
        scale_error: the largest relative difference of scales.
        compared: codes compared.
    """

    codes_differ: float
    steps: int
    scales_differ: float
    scale_error: float
    compared: int

    def as_json(self) -> dict[str, float]:
        """A plain object."""
        return asdict(self)

    def problem(self, exact: bool) -> str | None:
        """Why this is not the right result, or None. `exact`: all of eager's roundings are reproduced."""
        if self.steps != self.steps or self.scale_error != self.scale_error:
            return "a scale is not a number"
        if self.steps > 1:
            return f"a code is {self.steps} FP8 steps from eager's; 1 is the most"
        if self.scale_error > CLOSE_SCALE:
            return f"a scale is {self.scale_error:.2g} (relative) from eager's; {CLOSE_SCALE:.2g} is the most"
        if exact and self.scales_differ > SCALE_BOUND:
            return f"{self.scales_differ:.2g} of the scales differ from eager's; {SCALE_BOUND:.2g} is the most"
        if exact and self.codes_differ * self.compared > max(1, CODE_BOUND * self.compared):
            return f"{self.codes_differ:.2g} of the codes differ from eager's; {CODE_BOUND:.2g} is the most"
        return None


def agreement(
    got: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor], quant: GroupQuant
) -> Agreement:
    """Compare (codes [tokens, hidden], scale in any strides [tokens, groups]) with eager's.

    Raises:
        ValueError: if shapes or the codes' dtype differ.
    """
    codes, scale = got
    for name, ours, theirs in (("codes", codes, expected[0]), ("scale", scale, expected[1])):
        if ours.shape != theirs.shape:
            raise ValueError(f"{name} have shape {list(ours.shape)}; eager's have {list(theirs.shape)}")
    if codes.dtype != expected[0].dtype:
        raise ValueError(f"codes are {codes.dtype}; eager's are {expected[0].dtype}")
    groups = codes.shape[1] // quant.group_size
    ours, theirs = (reference.unpack_scales(s, groups, quant).float() for s in (scale, expected[1]))
    same = ours == theirs
    steps = code_steps(codes, expected[0])
    within = steps.unflatten(1, (groups, quant.group_size))[same]
    return Agreement(
        codes_differ=float((within > 0).float().mean()) if within.numel() else 0.0,
        steps=int(steps.max()),
        scales_differ=float((~same).float().mean()),
        scale_error=float(((ours - theirs).abs() / theirs.abs()).max()),
        compared=codes.numel(),
    )
