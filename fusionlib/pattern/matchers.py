"""The two halves of the pattern: callables that write the norm and the quantisation as a model would.

A matcher is called while the pattern is traced, and the operations it runs are what is searched for. Its native path
calls `fusionlib.reference`, as the layers do, so that pattern and layer cannot drift apart; its custom-op path calls
the opaque op for the same computation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusionlib import op, reference
from fusionlib.pattern.norm_op import define_norm_op, rms_norm_gated
from fusionlib.spec import GatedNorm, GroupQuant

#: Tokens of the example inputs. No other size is 5, so a hard-coded token count is visible in the traced graph.
EXAMPLE_TOKENS = 5


@dataclass(frozen=True)
class MatcherRMSNormGated:
    """The gated norm of each head.

    Args:
        norm: the norm's spec; one norm per head, so `norm.norm_size` is the head dimension.
        heads: number of heads per token.
        custom_op: call `torch.ops.fusionlib.rms_norm_gated` instead of plain PyTorch.
    """

    norm: GatedNorm
    heads: int
    custom_op: bool = False

    def __post_init__(self) -> None:
        if self.custom_op:
            define_norm_op()

    def __call__(self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x, gate [..., head_dim] -> [..., head_dim]; like `layers.RMSNormGated`."""
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
        quant: the quantisation's spec.
        hidden: elements per row.
        custom_op: call `torch.ops.fusionlib.group_quant` instead of plain PyTorch.
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
