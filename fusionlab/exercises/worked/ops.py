"""The ops that the judges of graph work insert."""

from __future__ import annotations

import functools

import torch

from fusionlab.exercises.worked import silu_and_mul as worked


def _marked(gate, up, act, out, group, floor):
    codes, scale = worked.quantise(gate, up, act, out, group, floor)
    return mark(codes), mark(scale)


def mark(result: torch.Tensor) -> torch.Tensor:
    """A distinguishable tensor of the same layout: one bit of each code flipped, or each scale doubled."""
    if result.dtype is torch.float8_e4m3fn:
        return (result.view(torch.uint8) ^ 1).view(result.dtype)
    return result * 2.0


@functools.cache
def marked_op() -> torch._ops.OpOverload:
    """An op that marks its results, so that they cannot be mistaken for the old ones."""
    return worked.define_op(_marked, worked.fake)


@functools.cache
def other_op() -> torch._ops.OpOverload:
    """Another op, with correct results."""
    return worked.define_op(worked.quantise, worked.fake)
