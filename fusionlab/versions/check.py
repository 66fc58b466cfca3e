"""Check all, then time all: every version against the reference, on any machine.

On a GPU the versions run in the given dtype and are compared with the reference on the same device. On a CPU they run
in Triton's interpreter, in float32 and in a separate process: this shows that addresses, masks, reductions and scales
are right, but says nothing about the hardware's roundings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from fusionlab.codes import code_steps
from fusionlab.versions.case import require
from fusionlab.versions.registry import VERSIONS, Version
from fusionlab.versions.subprocess_interpreter import ask
from fusionlib import reference
from fusionlib.spec import GatedNorm, GroupQuant


@dataclass(frozen=True)
class Agreement:
    """One version against the reference.

    Args:
        version: its name.
        where: `GPU` or `interpreter`.
        codes, moved, steps: codes compared, how many differ, and by at most how many FP8 steps. On a GPU only codes of
            groups whose scales agree are compared.
        scales, scales_moved: the same for scales; in the interpreter, relative differences from 2^-20.
    """

    version: Version
    where: str
    codes: int
    moved: int
    steps: int
    scales: int
    scales_moved: int


def check_all(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, norm: GatedNorm, quant: GroupQuant
) -> list[Agreement]:
    """Compare every version with `fusionlib.reference` on these inputs: x and gate [tokens, heads, head_dim].

    Raises:
        ValueError: for specs beyond the teaching case.
        InterpreterError: if the interpreter's process fails.
    """
    require(norm, quant, weight)
    if x.is_cuda:
        return [_on_gpu(version, x, gate, weight, norm, quant) for version in VERSIONS]
    results = ask("check", x, gate, weight, norm, quant)
    return [Agreement(version, "interpreter", **result) for version, result in zip(VERSIONS, results, strict=True)]


def scales_of_spoilt_groups(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, norm: GatedNorm, quant: GroupQuant
) -> dict[Version, tuple[float, float]]:
    """What each version makes of values that are not finite: the scale of a group with a NaN, and of one with infinity.

    On a GPU they run there, else in the interpreter, in float32; codes are not returned, because the interpreter's
    conversion to FP8 has no NaN.

    Raises:
        ValueError: for specs beyond the teaching case, or a token of less than two heads.
        InterpreterError: if the interpreter's process fails.
    """
    require(norm, quant, weight)
    if x[0].numel() < 2 * norm.norm_size:
        raise ValueError(f"a head for the NaN and one for the infinity are needed; a token has {x[0].numel()} elements")
    run = partial(ask, "spoilt") if not x.is_cuda else spoilt
    found = run(x, gate, weight, norm, quant)
    return {version: (of_nan, of_inf) for version, (of_nan, of_inf) in zip(VERSIONS, found, strict=True)}


def spoilt(x, gate, weight, norm: GatedNorm, quant: GroupQuant) -> list[list[float]]:
    """Run every version on a gate with a NaN in its first head and an infinity in its second: the two heads' scales."""
    gate = gate.contiguous().clone()
    gate[0].view(-1)[[5, norm.norm_size + 5]] = gate.new_tensor([torch.nan, torch.inf])
    scales = []
    for version in VERSIONS:
        codes = torch.zeros(x.shape[0], x[0].numel(), dtype=torch.uint8, device=x.device).view(quant.dtype)
        scale = torch.zeros(x.shape[0], codes.shape[1] // quant.group_size, device=x.device)
        version.launch_into(x, gate, weight, norm, quant, codes, scale)
        scales.append(scale[0, :2].tolist())
    return scales


def _on_gpu(version: Version, x, gate, weight, norm: GatedNorm, quant: GroupQuant) -> Agreement:
    expected, expected_scale = reference.group_quant(reference.rms_norm_gated(x, gate, weight, norm), quant)
    codes = torch.full(expected.shape, 0x7E, dtype=torch.uint8, device=x.device).view(quant.dtype)
    scale = torch.full_like(expected_scale, torch.nan)
    version.launch_into(x, gate, weight, norm, quant, codes, scale)
    same = scale == expected_scale
    steps = code_steps(codes, expected)[same.repeat_interleave(quant.group_size, 1)]
    return Agreement(
        version=version,
        where="GPU",
        codes=steps.numel(),
        moved=int((steps > 0).sum()),
        steps=int(steps.max()) if steps.numel() else 0,
        scales=scale.numel(),
        scales_moved=int((~same).sum()),
    )
