"""Inputs as models have them, seeded: what the recorder and the benchmark measure with."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Inputs:
    """x, gate and weight of one call; shapes as in `fusionlib.rms_norm_gated_group_quant`."""

    x: torch.Tensor
    gate: torch.Tensor
    weight: torch.Tensor


def attention_inputs(
    tokens: int,
    heads: int = 32,
    head_dim: int = 128,
    *,
    strided_gate: bool = True,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Inputs:
    """x [tokens, heads, head_dim] contiguous, its gate, and a weight [head_dim] near one.

    With `strided_gate` the gate is cut out of a projection as Qwen3-Next cuts it, two value heads to a key head:
    [tokens, heads / 2, 2, head_dim], which for 32 heads of 128 has the strides (12288, 768, 128, 1). An odd number of
    heads has one value head to a key head. Otherwise the gate is contiguous, as Qwen3.5's is flat.

    The same seed gives the same values on one kind of device, not across kinds.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    x = normal(tokens, heads, head_dim)
    weight = (1.0 + 0.1 * torch.randn(head_dim, generator=generator, device=device)).to(dtype)
    if not strided_gate:
        return Inputs(x, normal(tokens, heads, head_dim), weight)
    per_group = 2 if heads % 2 == 0 else 1
    width = per_group * head_dim
    # Behind a key head's query and key (head_dim each) and its value (width).
    projection = normal(tokens, heads // per_group, 2 * head_dim + 2 * width)
    return Inputs(x, projection[..., -width:].unflatten(-1, (per_group, head_dim)), weight)
