"""DeepSeek's Triton kernel for activations, which other projects carry along.

Read from inference/kernel.py of deepseek-ai/DeepSeek-V3 (06231633430c). Its copies often differ in a floor, so the
kernel is known by what it stores, and not by its name alone. Its two divisions are Triton's, which are not correctly
rounded; the fused op's are, so that a scale can differ in its last bit and a code by one step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fusionlib.engines.kernel_text import expression, stored
from fusionlib.engines.shipped import Shipped, grouped, need_contiguous
from fusionlib.match import Arguments, OpaqueQuant, Stop
from fusionlib.match.graph import numel
from fusionlib.match.sizes import Size, equal

_AT = "tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)"
_X = f"tl.load(x_ptr + ({_AT})).to(tl.float32)"
_SCALE = f"tl.max(tl.abs({_X})) / 448.0"
_STORED = {
    expression(f"y_ptr + ({_AT})"): expression(f"({_X} / ({_SCALE})).to(y_ptr.dtype.element_ty)"),
    expression("s_ptr + tl.program_id(0)"): expression(_SCALE),
}


def read_act_quant(arguments: Arguments) -> OpaqueQuant:
    """scale = max(|x|) / 448 of each block, without a floor, code = x / scale, both in the order of memory."""
    if stored(arguments.kernel) != _STORED:
        expected = "a kernel that stores max(|x|) / 448 and x / scale of each block, as in DeepSeek-V3"
        found = "one of the same name with other code: register a reader of its own for it by its module and name"
        raise Stop("opaque_quant", arguments.call, expected, found)
    codes = arguments.fake("y_ptr").dtype
    if codes is not torch.float8_e4m3fn:
        raise Stop("fp8_dtype", arguments.call, "float8_e4m3fn, whose maximum the kernel has", str(codes))
    need_contiguous("opaque_quant", arguments, "x_ptr", "y_ptr", "s_ptr")
    block, x = arguments["BLOCK_SIZE"], arguments.node("x_ptr")
    programs = _programs(arguments)
    if not equal(programs * block, numel(x)):
        found = f"{programs} programs for {numel(x)} elements"
        raise Stop("opaque_quant", arguments.call, f"one program for each {block} elements", found)
    return grouped(arguments, "x_ptr", block, codes="y_ptr", scale="s_ptr", floor=None)


def _programs(arguments: Arguments) -> Size:
    """How many programs the launch has."""
    grid: Any = arguments.call.kwargs["grid"]
    first = grid[0][0]
    return first.meta["val"] if isinstance(first, fx.Node) else first


READERS = (
    Shipped(
        "quant kernel",
        "act_quant_kernel",
        (),
        "deepseek-ai/DeepSeek-V3 inference/kernel.py, 06231633430c",
        read_act_quant,
    ),
)
