"""torch.ops.fusionlib.block_scaled_mm: the FP8 product with 1x128 and 128x128 scales, as one op that can be traced.

`torch.nn.functional.scaled_mm` breaks the graph under `torch.compile` in PyTorch 2.11, and a graph break separates the
norm from its quantisation. On CPU the op is the float32 product of the dequantised operands, which the hardware
approximates; on every device it has the gradient of that product.
"""

from __future__ import annotations

import torch

from fusionlib import gradient
from fusionlib.reference import by_fours

BLOCK = 128


def in_blocks(size: int) -> int:
    """How many blocks of 128 a size takes."""
    return -(-size // BLOCK)


def dequantised(codes: torch.Tensor, scale: torch.Tensor, rows: int) -> torch.Tensor:
    """codes [m, k] times scale, one per `rows` x 128 block: float32 [m, k]. Extra columns of scale are ignored."""
    wide = scale[:, : in_blocks(codes.shape[1])].repeat_interleave(rows, 0).repeat_interleave(BLOCK, 1)
    return codes.float() * wide[: codes.shape[0], : codes.shape[1]]


def laid_out_weight(weight: torch.Tensor) -> torch.Tensor:
    """`weight` [out, in] in memory for whole blocks of 128x128, zeros behind it; itself if it lies so already."""
    return _in_room(weight, *(in_blocks(size) * BLOCK for size in weight.shape))


def laid_out_scale(scale: torch.Tensor) -> torch.Tensor:
    """`scale` [out / 128, in / 128] in memory for a multiple of 4 columns, as cuBLAS reads it."""
    return _in_room(scale, scale.shape[0], by_fours(scale.shape[1]))


def _in_room(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """`tensor` as the corner of a [rows, columns] that lies in its memory, which is copied only if it has no room."""
    if _corner_of(tensor, rows, columns):
        return tensor
    room = tensor.new_zeros((rows, columns))
    room[: tensor.shape[0], : tensor.shape[1]] = tensor
    return room[: tensor.shape[0], : tensor.shape[1]]


def _whole(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The [rows, columns] whose corner `tensor` is."""
    return _in_room(tensor, rows, columns).as_strided((rows, columns), (columns, 1))


def _corner_of(tensor: torch.Tensor, rows: int, columns: int) -> bool:
    # The stride of a single row says nothing: views and casts set it as they like.
    strided = tensor.stride(1) == 1 and (tensor.stride(0) == columns or tensor.shape[0] == 1)
    return strided and (tensor.shape == (rows, columns) or _holds(tensor, rows * columns))


def block_scaled_mm(
    codes: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The product of FP8 activations with an FP8 weight.

    Args:
        codes: [tokens, in] float8_e4m3fn.
        scale: [tokens, in / 128] float32, strides (1, tokens), or (1, tokens rounded up to 4).
        weight: [out, in] float8_e4m3fn, or the bytes of it. A view as FP8 in a graph would be a copy, which Inductor
            makes in front of an op. Sizes that 128 does not divide are copied unless `laid_out_weight` made room.
        weight_scale: [out / 128, in / 128] float32, each rounded up; copied unless it is what `laid_out_scale` returns.
        dtype: of the result; on a GPU bfloat16.

    Returns:
        [tokens, out] of `dtype`. On a GPU it requires compute capability 9.0.
    """
    return torch.ops.fusionlib.block_scaled_mm(codes, scale, weight, weight_scale, dtype)


def _cpu(
    codes: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    weight = _as_fp8(weight)
    activation = dequantised(codes, scale, 1)[:, : weight.shape[1]]
    return (activation @ dequantised(weight, weight_scale, BLOCK).t()).to(dtype)


def _as_fp8(weight: torch.Tensor) -> torch.Tensor:
    return weight.view(torch.float8_e4m3fn) if weight.dtype is torch.uint8 else weight


def _cuda(
    codes: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    tokens, recipe = codes.shape[0], torch.nn.functional.ScalingType
    codes, scale = rows_of_four(codes, scale)
    blocks = _whole(weight, *(in_blocks(size) * BLOCK for size in weight.shape))
    weight_scale = _whole(weight_scale, weight_scale.shape[0], by_fours(weight_scale.shape[1]))
    product = torch.nn.functional.scaled_mm(
        codes,
        _as_fp8(blocks).t(),
        scale_a=scale,
        scale_recipe_a=recipe.BlockWise1x128,
        scale_b=weight_scale.t(),
        scale_recipe_b=recipe.BlockWise128x128,
        output_dtype=dtype,
    )
    product = product if product.shape[0] == tokens else product.resize_(tokens, product.shape[1])
    return product if product.shape[1] == weight.shape[0] else product[:, : weight.shape[0]].contiguous()


def rows_of_four(codes: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same rows and others, to a multiple of 4 tokens: cuBLAS needs column-major scales 16 bytes apart.

    The others are what lies behind the rows, if both storages have room for them (`quant_op.room_for_quantised`), or
    zeros in a copy. They make rows of the product that nobody reads.
    """
    tokens, rows = codes.shape[0], by_fours(codes.shape[0])
    missing = rows - tokens
    if not missing:
        return codes, scale
    if _holds(codes, rows * codes.shape[1]) and scale.stride(1) == rows and _holds(scale, rows * scale.shape[1]):
        codes = codes.as_strided((rows, codes.shape[1]), codes.stride())
        return codes, scale.as_strided((rows, scale.shape[1]), scale.stride())
    filled = torch.nn.functional.pad(codes.view(torch.uint8), (0, 0, 0, missing)).view(codes.dtype)
    return filled, torch.nn.functional.pad(scale.t(), (0, missing)).t()


def _holds(tensor: torch.Tensor, elements: int) -> bool:
    """Whether the storage has `elements` from the tensor's first one on."""
    return tensor.untyped_storage().nbytes() >= (tensor.storage_offset() + elements) * tensor.element_size()


def _fake(
    codes: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    return codes.new_empty((codes.shape[0], weight.shape[0]), dtype=dtype)


def _register() -> None:
    """Define the op once per process."""
    if hasattr(torch.ops.fusionlib, "block_scaled_mm"):
        return
    torch.library.define(
        "fusionlib::block_scaled_mm",
        "(Tensor codes, Tensor scale, Tensor weight, Tensor weight_scale, ScalarType dtype) -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
    )
    torch.library.impl("fusionlib::block_scaled_mm", "cpu", _cpu)
    torch.library.impl("fusionlib::block_scaled_mm", "cuda", _cuda)
    torch.library.register_fake("fusionlib::block_scaled_mm", _fake)
    gradient.register("fusionlib::block_scaled_mm", _cpu)


_register()
