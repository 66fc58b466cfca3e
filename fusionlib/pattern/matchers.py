"""The two halves of the pattern: callables that spell the norm and the quantisation as a model would.

A matcher is called while the pattern is traced, and what it does then is what will be searched for. Its native path
calls `fusionlib.reference`, as the layers do, so that pattern and layer cannot drift apart; its custom-op path calls
the opaque op that stands for the same computation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusionlib import op, reference
from fusionlib.pattern.norm_op import define_norm_op, rms_norm_gated
from fusionlib.spec import GatedNorm, GroupQuant

#: Tokens of the example inputs. No other size is 5, so a burnt-in token count shows in the traced graph.
EXAMPLE_TOKENS = 5


@dataclass(frozen=True)
class MatcherRMSNormGated:
    """The gated norm of each head.

    Args:
        norm: what to compute; one norm per head, so `norm.norm_size` is the head dimension.
        heads: number of heads of a token.
        custom_op: spell it as `torch.ops.fusionlib.rms_norm_gated` instead of plain PyTorch.
    """

    norm: GatedNorm
    heads: int
    custom_op: bool = False

    def __post_init__(self) -> None:
        if self.custom_op:
            define_norm_op()

    def __call__(self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x, gate [..., head_dim] -> [..., head_dim]; as `layers.RMSNormGated` has it."""
        x_rows, gate_rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, gate)]
        compute = rms_norm_gated if self.custom_op else reference.rms_norm_gated
        return compute(x_rows, gate_rows, weight, self.norm).view(x.shape)

    def inputs(self, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> list[torch.Tensor]:
        """Example inputs to trace with: x and gate [tokens, heads, head_dim], weight [head_dim]."""
        shape = (EXAMPLE_TOKENS, self.heads, self.norm.norm_size)
        x, gate = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        return [x, gate, torch.zeros(self.norm.norm_size, dtype=dtype, device=device)]


@dataclass(frozen=True)
class MatcherGroupQuant:
    """The FP8 group quantisation of a row.

    Args:
        quant: what to compute.
        hidden: elements of a row.
        custom_op: spell it as `torch.ops.fusionlib.group_quant` instead of plain PyTorch.
    """

    quant: GroupQuant
    hidden: int
    custom_op: bool = False

    def __call__(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """y [tokens, hidden] -> codes [tokens, hidden] and scale."""
        return op.group_quant(y, self.quant) if self.custom_op else reference.group_quant(y, self.quant)

    def inputs(self, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> list[torch.Tensor]:
        """An example input to trace with: y [tokens, hidden]."""
        return [torch.zeros(EXAMPLE_TOKENS, self.hidden, dtype=dtype, device=device)]
