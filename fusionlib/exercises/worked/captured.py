"""Graphs as the pass gets them, and the spellings they are made of: for the judges of the capstone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fusionlib import GroupQuant, reference
from fusionlib.rewrite.run import run_edited

GROUP = 128


def capture(fn: Callable, *args: torch.Tensor) -> fx.Graph:
    """The graph of `fn(*args)` as the pass would get it."""
    graphs: list[fx.Graph] = []
    run_edited(graphs.append, fn, *args)
    return graphs[0]


def halves(tokens: int = 6, hidden: int = 256, dtype: torch.dtype = torch.bfloat16, seed: int = 0):
    """gate and up [tokens, hidden] as views of one projection's output: the rows are strided."""
    wide = (3 * torch.randn(tokens, 2 * hidden, generator=torch.Generator().manual_seed(seed))).to(dtype)
    return wide[:, :hidden], wide[:, hidden:]


def quant(y: torch.Tensor, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The quantisation behind the product, written in plain PyTorch."""
    return reference.group_quant(y, GroupQuant(GROUP, **changes))


#: Ways to write silu(gate) * up that must be read: function, and (round_activation, round_output).
SPELLINGS: dict[str, tuple[Callable, tuple[bool, bool]]] = {
    "F.silu(gate) * up": (lambda g, u: quant(F.silu(g) * u), (True, True)),
    "up * F.silu(gate)": (lambda g, u: quant(u * F.silu(g)), (True, True)),
    "the product in float32": (lambda g, u: quant((F.silu(g.float()) * u.float()).to(g.dtype)), (False, True)),
    "silu rounded, the product in float32": (lambda g, u: quant(F.silu(g).float() * u.float()), (True, False)),
    "float32 throughout": (lambda g, u: quant(F.silu(g.float()) * u.float()), (False, False)),
    "gate * sigmoid(gate) in float32, rounded at the end": (
        lambda g, u: quant((g.float() * torch.sigmoid(g.float()) * u.float()).to(g.dtype)),
        (False, True),
    ),
}

#: Neighbours that must be left alone.
MUST_NOT: dict[str, Callable] = {
    "gelu in place of silu": lambda g, u: quant(F.gelu(g) * u),
    "sigmoid in place of silu": lambda g, u: quant(torch.sigmoid(g) * u),
    "a sum in place of the product": lambda g, u: quant(F.silu(g) + u),
    "silu without a product": lambda g, u: quant(F.silu(g)),
    "up broadcast over the row": lambda g, u: quant(F.silu(g) * u[:, :1]),
    "up in float32 beside a gate in bf16": lambda g, u: quant((F.silu(g) * (u.float() + 1.0)).to(g.dtype)),
}
