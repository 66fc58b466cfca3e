"""Modules for the walkthrough and for tests: the gated norm, an FP8 linear layer, and both as an attention output.

They write the computation as a model would, unfused; only the rewrite puts in the fused op.
"""

from __future__ import annotations

import torch
from torch import nn

from fusionlib import op, reference
from fusionlib.block_mm import BLOCK, block_scaled_mm, dequantised
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


class BlockFP8Linear(nn.Module):
    """A linear layer in FP8: one scale per 1x128 activation group, one per 128x128 weight block.

    The activation is quantised by `torch.ops.fusionlib.group_quant`, opaque as in serving engines, or in plain PyTorch
    with `native_quant=True`. The product is `fusionlib.block_mm.block_scaled_mm` on GPUs with block-wise scaling
    (compute capability 9.0), and elsewhere the float32 product of the dequantised operands, which the hardware
    approximates.

    Buffers: `codes` [out, in] FP8; `scale` [out / 128, in / 128 rounded up to a multiple of 4] float32, the extra
    columns zero, as cuBLAS lays out 128x128 block scales.
    """

    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        quant: GroupQuant | None = None,
        *,
        native_quant: bool = False,
    ) -> None:
        super().__init__()
        self.quant = quant or GroupQuant.vllm(BLOCK).with_layout(
            "column_major" if native_quant else "column_major_padded"
        )
        self.native_quant = native_quant
        if any(size % BLOCK for size in codes.shape):
            raise ValueError(f"weight has shape {list(codes.shape)}; both sizes must be multiples of {BLOCK}: pad it")
        expected = [size // BLOCK for size in codes.shape]
        if list(scale.shape) != expected:
            raise ValueError(f"scale has shape {list(scale.shape)}; a weight {list(codes.shape)} takes {expected}")
        self.register_buffer("codes", codes)
        self.register_buffer("scale", torch.nn.functional.pad(scale, (0, -scale.shape[1] % 4)))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, quant: GroupQuant | None = None, *, native_quant: bool = False
    ) -> BlockFP8Linear:
        """Quantise the weight of `linear` by 128x128 blocks (amax / 448, floor 1e-10 on amax). A bias is refused."""
        if linear.bias is not None:
            raise ValueError("linear has a bias; BlockFP8Linear has none: out_proj of Gated DeltaNet is bias-free")
        codes, scale = quantise_blocks(linear.weight.detach(), (quant or GroupQuant.vllm()).dtype)
        return cls(codes, scale, quant, native_quant=native_quant)

    def quantise(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [tokens, in] -> codes [tokens, in] and scale in the layout of `quant`."""
        return reference.group_quant(x, self.quant) if self.native_quant else op.group_quant(x, self.quant)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out], of x's dtype."""
        codes, scale = self.quantise(x.reshape(-1, x.shape[-1]))
        return self.product(codes, scale, x.dtype).view(*x.shape[:-1], -1)

    def product(self, codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The product of quantised activations [tokens, in] with the weight: [tokens, out] of `dtype`."""
        if self._has_block_scaled_mm(codes, dtype):
            return block_scaled_mm(codes, scale, self.codes, self.scale, dtype)
        activation = reference.dequantise(codes, scale, self.quant)
        return (activation @ self.dequantised_weight().t()).to(dtype)

    def dequantised_weight(self) -> torch.Tensor:
        """The weight [out, in] in float32."""
        return dequantised(self.codes, self.scale, BLOCK)

    def _has_block_scaled_mm(self, codes: torch.Tensor, dtype: torch.dtype) -> bool:
        quant = self.quant
        return (
            codes.is_cuda
            and not torch.version.hip
            and torch.cuda.get_device_capability(codes.device) == (9, 0)
            and dtype is torch.bfloat16
            and (quant.dtype, quant.group_size) == (torch.float8_e4m3fn, BLOCK)
            and quant.scale_layout in ("column_major", "column_major_padded")
        )


def quantise_blocks(
    weight: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise `weight` [out, in] by 128x128 blocks: codes [out, in] and scale [out / 128, in / 128] float32.

    Each block is flattened to one row with one group, so that `reference.group_quant` does the arithmetic.
    """
    if weight.ndim != 2 or any(size % BLOCK for size in weight.shape):
        raise ValueError(f"weight has shape {list(weight.shape)}; both sizes must be multiples of {BLOCK}: pad it")
    blocks = weight.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(1, 2)  # [out/128, in/128, 128, 128]
    codes, scale = reference.group_quant(blocks.flatten(1).contiguous(), GroupQuant(BLOCK * BLOCK, dtype))
    return codes.view(blocks.shape).transpose(1, 2).reshape(weight.shape).contiguous(), scale


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
