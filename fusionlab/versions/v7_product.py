"""Version 7: the library's own kernel, `fusionlib.kernels.gated_norm`. Not a copy: this file only calls it.

The results are version 5's and the addresses version 6's. It adds everything that a model may come with: any norm and
group size of which one divides the other, gates first (Mamba2), sigmoid gates, every rounding point, every floor and
scale format, column-major and packed scales, two levels of strides, rows that end inside a block, NaN and infinity that
arrive where eager's do.

And it adds what the listing of version 6 taught. On NVIDIA the kernel asks for some instructions by name
(`fusionlib.kernels.ptx`): two values rounded to bf16 in one conversion, a sigmoid without guards against what cannot
matter, a quotient of one product and one fused multiply-add. The weight is loaded in the shape of x and the scale
stored from where it is, so that threads exchange nothing through shared memory and wait at no barrier. AMD's compiler
gets the portable spelling of the same.

Some of it is for one token, where nothing hides a thread's waiting: rows are unsigned numbers, so that the first load
waits for shifts and not for a division; a warp takes a whole row and finds its largest magnitude in one instruction,
as an integer; the quotient starts from an approximate reciprocal. Loads are masked only where rows and programs do not
come out even.

The launch follows the number of rows (`choose_launch` beside the kernel), because what suits a prefill does not suit
one token.

5.03 bytes per element, as before. With many tokens the memory takes all of the time; with few it is the chain of
instructions that wait for each other.
"""

from __future__ import annotations

import torch

from fusionlib.kernels.launch import launch_fused
from fusionlib.spec import GatedNorm, GroupQuant


def launch(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    norm: GatedNorm,
    quant: GroupQuant,
    codes: torch.Tensor,
    scale: torch.Tensor,
) -> None:
    """Run `fusionlib.kernels.launch.launch_fused` with its own choice of rows and warps."""
    launch_fused(x, gate, weight, None, norm, quant, codes, scale, None)
