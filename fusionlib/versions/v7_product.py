"""Version 7: the library's own kernel, `fusionlib.kernel`. Not a copy: this file only calls it.

The arithmetic is version 5's and the addresses are version 6's. What it adds is everything that a model may come with:
any norm and group size of which one divides the other, gates first (Mamba2), sigmoid gates, every rounding point, every
floor and scale format, column-major and packed scales, two levels of strides, rows that end inside a block, NaN and
infinity that arrive where eager's do; and a launch heuristic (`fusionlib.kernel.choose_launch`), because sixteen rows a
program is right for a prefill and wrong for one token.

Napkin: 5.03 bytes an element, as before. From here on the time is the memory's, or, for few tokens, the chain's.
"""

from __future__ import annotations

import torch

from fusionlib.launch import launch_fused
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
    """Run `fusionlib.launch.launch_fused` with its own choice of rows and warps."""
    launch_fused(x, gate, weight, None, norm, quant, codes, scale, None)
