"""Version 7: the library's own kernel, `fusionlib.kernels.gated_norm`. Not a copy: this file only calls it.

The results are version 5's and the addresses version 6's. It adds support for everything that models use: any norm and
group size, gating before the norm (Mamba2), sigmoid gates, every rounding point, every floor and scale format,
column-major and packed scales, two levels of strides, rows that end inside a block, NaN and infinity in the same places
as in eager.

It also applies the lessons of version 6's listing. On NVIDIA the kernel uses some instructions explicitly
(`fusionlib.kernels.ptx`): two values rounded to bf16 in one conversion, a sigmoid without unnecessary guards, a
quotient of one product and one fused multiply-add. The weight is loaded in the shape of x and the scale is stored from
the threads that hold it, so that threads exchange nothing through shared memory and wait at no barrier. AMD's compiler
gets the portable form of the same.

Some of this is for one token, where nothing hides a thread's latency: row numbers are unsigned, so that the first load
waits for shifts rather than a division; a warp handles a whole row and finds its largest magnitude in one instruction,
as an integer; the quotient starts from an approximate reciprocal. Loads are masked only if the number of rows is not a
multiple of a program's.

The launch depends on the number of rows (`choose_launch` in the kernel's module), because what suits a prefill does not
suit one token.

5.03 bytes per element, as before. With many tokens memory takes all of the time; with few, the chain of dependent
instructions does.
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
