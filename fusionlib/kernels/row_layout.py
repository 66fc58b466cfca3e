"""Strided tensors as rows of elements: the layouts that a kernel can address without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True)
class RowLayout:
    """A token's row of `hidden` elements as runs of contiguous elements with two levels of strides.

    All in elements. Element h of token t is at::

        t * token_stride + (h // outer) * outer_stride + (h % outer) // inner * inner_stride + h % inner

    A contiguous row has inner == outer == hidden; [tokens, heads, head_dim] with strided heads has inner == head_dim;
    the gate of Qwen3-Next's in_proj, [tokens, groups, heads_per_group, head_dim], may need both levels.
    """

    token_stride: int
    outer: int
    outer_stride: int
    inner: int
    inner_stride: int


def row_layout(tensor: torch.Tensor) -> RowLayout | None:
    """The row layout of a [tokens, ...] tensor, or None if it needs more than two levels of strides.

    A last dimension of another stride than 1 makes every element a run of its own. Dimensions that continue each other
    are merged first, so a [tokens, 32, 128] view of contiguous memory is one run of 4096.
    """
    hidden = prod(tensor.shape[1:])
    runs: list[tuple[int, int]] = []  # (elements, stride), innermost first
    for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True):
        if size == 1:
            continue
        if runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1] = (runs[-1][0] * size, runs[-1][1])
        else:
            runs.append((size, stride))
    if not runs or runs[0][1] != 1:
        runs.insert(0, (1, 1))  # every element is its own run
    if len(runs) > 3:
        return None
    inner = runs[0][0]
    inner_count, inner_stride = runs[1] if len(runs) > 1 else (1, 0)
    outer_stride = runs[2][1] if len(runs) > 2 else 0
    outer = inner * inner_count if len(runs) > 2 else hidden
    return RowLayout(tensor.stride(0), outer, outer_stride, inner, inner_stride)
