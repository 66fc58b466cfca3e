"""Graphs as the pass gets them, and the spellings they come from, for the judges of the capstone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fusionlib import GroupQuant, reference
from fusionlib.testing.run_edited import run_edited

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


def quant(y: torch.Tensor, group_size: int = GROUP, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The quantisation after the product, in plain PyTorch."""
    return reference.group_quant(y, GroupQuant(group_size, **changes))


def _rounded_before(value: torch.Tensor) -> torch.Tensor:
    """Rounded by its producer, which is not one of the fusion's rounding points."""
    return (2.0 * value.float()).to(value.dtype)


def _in_threes(value: torch.Tensor) -> torch.Tensor:
    """[1, tokens, hidden], computed and not a view of two dimensions."""
    return 2.0 * value.unsqueeze(0)


#: Ways to write silu(gate) * up that must be recognised: function, and (round_activation, round_output).
SPELLINGS: dict[str, tuple[Callable, tuple[bool, bool]]] = {
    "F.silu(gate) * up": (lambda g, u: quant(F.silu(g) * u), (True, True)),
    "up * F.silu(gate)": (lambda g, u: quant(u * F.silu(g)), (True, True)),
    "silu of what is computed last": (lambda g, u: quant(u * F.silu(2.0 * g)), (True, True)),
    "the product in float32": (lambda g, u: quant((F.silu(g.float()) * u.float()).to(g.dtype)), (False, True)),
    "silu rounded, the product in float32": (lambda g, u: quant(F.silu(g).float() * u.float()), (True, False)),
    "float32 throughout": (lambda g, u: quant(F.silu(g.float()) * u.float()), (False, False)),
    "gate * sigmoid(gate) in float32, rounded at the end": (
        lambda g, u: quant((g.float() * torch.sigmoid(g.float()) * u.float()).to(g.dtype)),
        (False, True),
    ),
    "inputs that were rounded where they were made": (
        lambda g, u: quant((F.silu(_rounded_before(g).float()) * _rounded_before(u).float()).to(g.dtype)),
        (False, True),
    ),
    "in float16": (lambda g, u: quant(F.silu(g.to(torch.float16)) * u.to(torch.float16)), (True, True)),
}

#: Similar computations that must be left alone.
MUST_NOT: dict[str, Callable] = {
    "gelu in place of silu": lambda g, u: quant(F.gelu(g) * u),
    "sigmoid in place of silu": lambda g, u: quant(torch.sigmoid(g) * u),
    "a sum in place of the product": lambda g, u: quant(F.silu(g) + u),
    "silu without a product": lambda g, u: quant(F.silu(g)),
    "a third factor": lambda g, u: quant(F.silu(g) * 3.0 * u),
    "up broadcast over the row": lambda g, u: quant(F.silu(g) * u[:, :1]),
    "one up for all tokens": lambda g, u: quant(F.silu(g) * u[:1]),
    "one gate for all tokens": lambda g, u: quant(F.silu(g[:1]) * u),
    "one gate for a whole row": lambda g, u: quant(F.silu(g[:, :1]) * u),
    "three dimensions": lambda g, u: quant((F.silu(_in_threes(g)) * _in_threes(u)).flatten(0, 1)),
    "a gate that lies column by column": lambda g, u: quant(F.silu(g.t().contiguous().t()) * u),
    "an up that lies column by column": lambda g, u: quant(F.silu(g) * u.t().contiguous().t()),
    "both column by column": lambda g, u: in_columns(g, u),
    "up in float32 beside a gate in bf16": lambda g, u: quant((F.silu(g) * (u.float() + 1.0)).to(g.dtype)),
    "up in float16 beside a gate in bf16": lambda g, u: quant((F.silu(g) * u.to(torch.float16).float()).to(g.dtype)),
    "silu of a gate in bf16, rounded to float16": lambda g, u: quant(
        (F.silu(g.float()).to(torch.float16).float() * u.float()).to(g.dtype)
    ),
    "the product of bf16, rounded to float16": lambda g, u: quant((F.silu(g.float()) * u.float()).to(torch.float16)),
}


def scale_in_two_shapes(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The scale is used in two shapes, one of them before the codes are made."""
    y = (F.silu(gate) * up).view(gate.shape[0], -1, GROUP).float()
    scale = y.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448.0
    doubled = scale.squeeze(-1) * 2.0
    return (y / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale, doubled


def in_columns(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same values, stored column by column: what is computed from them has strides (1, tokens) as well."""
    y = F.silu(gate.t().contiguous().t()) * up.t().contiguous().t()
    groups = y.unflatten(1, (-1, GROUP)).float()  # not by `quant`, which writes row by row
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448.0
    codes = (groups / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return codes.flatten(1), scale.squeeze(-1)


#: What a replacement must also be right for, besides the spellings: function, tokens, hidden.
REPLACED: dict[str, tuple[Callable, int, int]] = {
    "a scale that is used in two shapes": (scale_in_two_shapes, 6, 256),
    "groups of 64, a floor of 16": (lambda g, u: quant(F.silu(g) * u, 64, floor=16.0), 5, 192),
    "groups of 32, a floor of 20, one token": (lambda g, u: quant(F.silu(g) * u, 32, floor=20.0), 1, 96),
    "one group per row": (lambda g, u: quant((F.silu(g.float()) * u.float()).to(g.dtype), 512), 9, 512),
}

#: Sites that quantise the product but that one call of the op cannot replace, by what is said of a pass that tries.
NOT_FOR_ONE_CALL: dict[str, Callable] = {
    "the product is returned as well": lambda g, u: (*quant(y := F.silu(g) * u), y),
    "silu of the gate is returned as well": lambda g, u: (*quant((a := F.silu(g)) * u), a),
    "the codes have another format": lambda g, u: quant(F.silu(g) * u, dtype=torch.float8_e5m2),
    "there is no floor": lambda g, u: quant(F.silu(g) * u, floor=None),
    "the floor is one of the scale": lambda g, u: quant(F.silu(g) * u, floor_on="scale"),
    "the values are multiplied by the reciprocal of the scale": lambda g, u: quant(
        F.silu(g) * u, division="reciprocal"
    ),
    "the scales are powers of two": lambda g, u: quant(F.silu(g) * u, scale_format="ue8m0"),
    "the scales are rounded": lambda g, u: quant(F.silu(g) * u, round_scale=True),
    "a group reaches over two tokens": lambda g, u: quant((F.silu(g) * u).view(g.shape[0] // 2, -1), 512),
    "everything lies in memory column by column": in_columns,
}


def no_site(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A graph without a site."""
    return F.silu(gate) * up, gate.float().sum(-1)
