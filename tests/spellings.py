"""The ways that real code spells a gated RMS norm and its quantisation, as functions to compose in tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx

from fusionlab.codes import code_steps
from fusionlib import reference
from fusionlib.rewrite import FusionPass, Report
from fusionlib.testing.run_edited import run_edited

FP8 = torch.float8_e4m3fn


def run_rewritten(fn: Callable, *args, dynamic: bool = False, fusion: FusionPass | None = None):
    """(outputs of the rewritten graphs, report, rewritten graphs) without code generation, as `run_edited` runs them.

    `dynamic` leaves the number of tokens open.
    """
    fusion, graphs = fusion or FusionPass(("cpu",)), []

    def edit(graph: fx.Graph) -> None:
        fusion(graph)
        graphs.append(graph)

    outputs = run_edited(edit, fn, *args, dynamic=range(len(args[:2])) if dynamic else ())
    return outputs, Report(tuple(fusion._records)), graphs


# silu and sigmoid


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "z*sigmoid(z)": lambda z: z * torch.sigmoid(z),
    "sigmoid(z)*z": lambda z: torch.sigmoid(z) * z,
    "z/(1+exp(-z))": lambda z: z / (1 + torch.exp(-z)),
    "z*(1/(1+exp(-z)))": lambda z: z * (1 / (1 + torch.exp(-z))),
    "sigmoid": torch.sigmoid,
    "1/(1+exp(-z))": lambda z: 1.0 / (1.0 + (-z).exp()),
}

SQUARES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pow(2)": lambda x: x.pow(2),
    "x*x": lambda x: x * x,
    "square": torch.square,
}

MEANS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda s: s.mean(-1, keepdim=True),
    "mean then unsqueeze": lambda s: s.mean(-1).unsqueeze(-1),
    "sum/n": lambda s: s.sum(-1, keepdim=True) / s.shape[-1],
}

ROOTS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "x*rsqrt": lambda x, v: x * torch.rsqrt(v),
    "rsqrt*x": lambda x, v: torch.rsqrt(v) * x,
    "pow(-0.5)": lambda x, v: x * v.pow(-0.5),
    "1/sqrt": lambda x, v: x * (1.0 / torch.sqrt(v)),
    "x/sqrt": lambda x, v: x / torch.sqrt(v),
}


@dataclass(frozen=True)
class NormSpelling:
    """One way to write the norm; the defaults are vLLM's."""

    activation: str = "silu"
    square: str = "pow(2)"
    mean: str = "mean"
    root: str = "x*rsqrt"
    eps: float = 1e-6
    gate_first: bool = False
    round_norm: bool = False
    round_activation: bool = False
    weight_float: bool = True
    weight_first: bool = False
    gate_inside: bool = False  # (weight * gate) multiplied first, in float32
    offset: bool = False
    no_weight: bool = False
    round_output: bool = True

    def __call__(self, x: torch.Tensor, z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """x, z [..., n] normed over the last dimension."""
        dtype = x.dtype
        value = x.float()
        act = ACTIVATIONS[self.activation](z if self.round_activation else z.float())
        weight = w.float() if self.weight_float else w
        weight = 1 + weight if self.offset else weight
        if self.gate_first:
            value = value * act
        variance = MEANS[self.mean](SQUARES[self.square](value))
        value = ROOTS[self.root](value, variance + self.eps)
        if self.round_norm:
            value = value.to(dtype)
        if self.gate_inside and not self.gate_first and not self.no_weight:
            value = value * (weight * act)
        else:
            if not self.no_weight:
                value = weight * value if self.weight_first else value * weight
            if not self.gate_first:
                value = value * act
        return value.to(dtype) if self.round_output else value


@dataclass(frozen=True)
class QuantSpelling:
    """One way to write the quantisation of [tokens, hidden]; the defaults are vLLM's."""

    group: int = 128
    floor: float | None = 1e-10
    floor_on: str = "amax"
    reciprocal: bool = False
    in_activation_dtype: bool = False  # torchao: amax and scale in y's dtype
    repeat: str = "broadcast"
    ue8m0: bool = False
    nan_scale: str = "nan"
    clamp: bool = True
    layout: str = "row_major"
    dtype: torch.dtype = FP8

    def __call__(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        limit = torch.finfo(self.dtype).max
        groups = y.view(y.shape[0], -1, self.group)
        wide = groups.float()
        amax = (groups if self.in_activation_dtype else wide).abs().amax(-1, keepdim=True)
        if self.floor is not None and self.floor_on == "amax":
            amax = amax.clamp(min=self.floor)
        scale = (amax / limit).float()
        if self.floor is not None and self.floor_on == "scale":
            scale = scale.clamp(min=self.floor)
        if self.ue8m0:
            scale = reference.power_of_two_at_least(scale, self.nan_scale)
        spread, value = scale, wide
        if self.repeat == "repeat_interleave":
            spread, value = scale.squeeze(-1).repeat_interleave(self.group, dim=1), y.float()
        elif self.repeat == "expand":
            spread = scale.expand_as(wide)
        scaled = value * (1.0 / spread) if self.reciprocal else value / spread
        codes = (scaled.clamp(-limit, limit) if self.clamp else scaled).to(self.dtype).view(y.shape[0], -1)
        scale = scale.squeeze(-1)
        if self.layout == "column_major":
            scale = scale.t().contiguous().t()
        return codes, scale


#: From [tokens, heads, head_dim] to the shape that the norm sees; all end in `reshape(tokens, -1)`.
LAYOUTS = {
    "3-D": lambda t, d: t,
    "flattened heads": lambda t, d: t.reshape(-1, d),
    "2-D viewed in groups": lambda t, d: t.reshape(t.shape[0], -1).view(t.shape[0], -1, d),
    "4-D": lambda t, d: t.view(1, t.shape[0], -1, d),
    "reshape chain": lambda t, d: t.reshape(1, t.shape[0], -1).reshape(-1, d).reshape(t.shape[0], -1, d).clone(),
}


def inputs(tokens: int = 6, heads: int = 4, head_dim: int = 128, dtype=torch.bfloat16, gate_dtype=None, strided=False):
    """x, z [tokens, heads, head_dim] and w [head_dim]; `strided` takes z out of a wider projection."""
    x = torch.randn(tokens, heads, head_dim).to(dtype)
    z = torch.randn(tokens, 3 * heads if strided else heads, head_dim).to(gate_dtype or dtype)
    return x, z[:, heads : 2 * heads] if strided else z, (torch.rand(head_dim) + 0.5).to(dtype)


def site(norm: Callable, quant: Callable, layout: str = "3-D") -> Callable:
    """The whole path: layout, norm, flatten, quantisation."""
    enter = LAYOUTS[layout]

    def path(x, z, w):
        y = norm(enter(x, x.shape[-1]), enter(z, x.shape[-1]), w)
        return quant(y.reshape(x.shape[0], -1))

    return path


def agree(got, want, group: int, exact: bool = True, in_float32: bool = False) -> None:
    """Codes and scales equal. Where float32 was spelled in another order, not `exact`: two codes may be a step away,
    and one group may have another scale, since a last bit may cross a rounding to 16 bits; a value that stays
    `in_float32` keeps that last bit in its scale."""
    (codes, scale), (eager_codes, eager_scale) = got[:2], want[:2]
    assert codes.dtype == eager_codes.dtype and codes.shape == eager_codes.shape
    assert scale.shape == eager_scale.shape and scale.stride() == eager_scale.stride()
    steps = code_steps(codes.contiguous(), eager_codes.contiguous()).reshape(-1, group)
    equal = (scale == eager_scale) | (scale.isnan() & eager_scale.isnan())
    if exact:
        assert equal.all() and not steps.any()
        return
    other = ~(torch.isclose(scale, eager_scale, rtol=1e-6, equal_nan=True) if in_float32 else equal)
    assert other.sum() <= 1
    steps = steps[~other.reshape(-1)]
    assert steps.max() <= 1 and steps.sum() <= 2
