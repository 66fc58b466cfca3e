"""Modules for the walkthrough and for tests: the gated norm, and with an FP8 linear layer an attention output.

They write the computation as a model would, unfused; only the rewrite puts in the fused op.
"""

from __future__ import annotations

import torch
from torch import nn

from fusionlib import reference
from fusionlib.block_linear import BlockFP8Linear as BlockFP8Linear
from fusionlib.block_linear import quantise_blocks as quantise_blocks
from fusionlib.spec import GatedNorm, GroupQuant

#: Where a module's tensors are made; None for PyTorch's default.
Device = torch.device | str | None


class RMSNormGated(nn.Module):
    """Gated RMS norm over the last dimension; values and roundings are those of `reference.rms_norm_gated`.

    Args:
        hidden: size of the last dimension; a multiple of `norm.norm_size`.
        norm: the norm's spec. With one norm per head, `hidden` is the head dimension.
    """

    def __init__(
        self, hidden: int, norm: GatedNorm, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if hidden % norm.norm_size != 0:
            raise ValueError(
                f"hidden={hidden} is not a multiple of norm_size={norm.norm_size}; choose a divisor of hidden"
            )
        self.norm = norm
        self.weight = nn.Parameter(torch.full((hidden,), 1.0 - norm.weight_offset, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """x, gate [..., hidden] -> [..., hidden]."""
        x_rows, gate_rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, gate)]
        return reference.rms_norm_gated(x_rows, gate_rows, self.weight, self.norm).view(x.shape)


class AttentionOutput(nn.Module):
    """The output path of a Gated DeltaNet layer: gated norm, reshape to one row per token, FP8 linear.

    Args:
        heads, head_dim: of the attention's value.
        out_features: of the projection; must be a multiple of 128, like heads * head_dim.
        norm: the gated norm, `GatedNorm.vllm(head_dim)` by default.
        quant, native_quant: as in `BlockFP8Linear`.
    """

    def __init__(
        self,
        heads: int = 32,
        head_dim: int = 128,
        out_features: int = 2048,
        norm: GatedNorm | None = None,
        quant: GroupQuant | None = None,
        *,
        native_quant: bool = False,
        device: Device = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        self.norm = RMSNormGated(head_dim, norm or GatedNorm.vllm(head_dim), device=device, dtype=dtype)
        projection = nn.Linear(heads * head_dim, out_features, bias=False, device=device, dtype=dtype)
        self.out_proj = BlockFP8Linear.from_linear(projection, quant, native_quant=native_quant)

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """x, gate [tokens, heads, head_dim] -> [tokens, out_features]."""
        return self.out_proj(self.norm(x, gate).flatten(1))
