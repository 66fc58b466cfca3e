"""The values of a block that are quantised, each written as transformers' Qwen3-Next writes it, with its roundings."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

EPS = 1e-6


class Norm(nn.Module):
    """transformers' `Qwen3NextRMSNorm`: float32, the weight stored as its difference from one, rounded at the end."""

    def __init__(self, size: int, device: torch.device | str) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(size, device=device).bfloat16(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., size] -> the same shape and dtype."""
        value = x.float()
        value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + EPS)
        return (value * (1.0 + self.weight.float())).type_as(x)


class GatedNormOfHeads(nn.Module):
    """transformers' `Qwen3NextRMSNormGated`, on rows of one head each."""

    def __init__(self, size: int, device: torch.device | str) -> None:
        super().__init__()
        self.weight = nn.Parameter((1 + 0.1 * torch.randn(size, device=device)).bfloat16(), requires_grad=False)

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """x, gate [tokens * heads, size] -> the same shape and dtype."""
        value = x.float()
        value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + EPS)
        value = self.weight * value.to(x.dtype)
        return (value * functional.silu(gate.float())).to(x.dtype)


def add_and_norm(norm: Norm, delta: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual stream with `delta` added, normed and as it is; both [tokens, hidden]."""
    residual = residual + delta
    return norm(residual), residual


def norm_and_gate(norm: GatedNormOfHeads, core: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The linear attention's output [tokens, heads, dim], normed by head and gated: [tokens, heads * dim].

    `z` [tokens, key_heads, heads / key_heads * dim] is a slice of the projection.
    """
    tokens, _, size = core.shape
    z = z.reshape(tokens, -1, size)
    return norm(core.reshape(-1, size), z.reshape(-1, size)).reshape(tokens, -1)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """The MLP's activation: [tokens, 2 * intermediate] -> [tokens, intermediate]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gate_heads(attended: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """The attention's output times the sigmoid of its gate, both [tokens, heads, dim]: [tokens, heads * dim]."""
    tokens = attended.shape[0]
    return attended.reshape(tokens, -1) * torch.sigmoid(gate.reshape(tokens, -1))
