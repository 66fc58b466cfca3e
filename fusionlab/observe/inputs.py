"""Seeded inputs like those of models, for the recorder and the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

    With `strided_gate` the gate is a slice of a projection as in Qwen3-Next, with two value heads per key head:
    [tokens, heads / 2, 2, head_dim], which for 32 heads of 128 has the strides (12288, 768, 128, 1). With an odd number
    of heads there is one value head per key head. Otherwise the gate is contiguous, like Qwen3.5's flat one.

    The same seed gives the same values on one kind of device, but not across kinds.
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
    # After a key head's query and key (head_dim each) and its value (width).
    projection = normal(tokens, heads // per_group, 2 * head_dim + 2 * width)
    return Inputs(x, projection[..., -width:].unflatten(-1, (per_group, head_dim)), weight)


@contextmanager
def seeded(device: str, seed: int) -> Iterator[None]:
    """A random state of its own on `device`, from `seed`; the caller's is unchanged."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(seed)
        yield
