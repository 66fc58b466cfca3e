"""The ops that the judges of graph work put in."""

from __future__ import annotations

import functools

import torch

from fusionlab.exercises.worked import silu_and_mul as worked


def _marked(gate, up, act, out, group, floor):
    codes, scale = worked.quantise(gate, up, act, out, group, floor)
    return mark(codes), mark(scale)


def mark(result: torch.Tensor) -> torch.Tensor:
    """Another tensor of the same layout, that the right one can be told from: a bit of a code, twice a scale."""
    if result.dtype is torch.float8_e4m3fn:
        return (result.view(torch.uint8) ^ 1).view(result.dtype)
    return result * 2.0


@functools.cache
def marked_op() -> torch._ops.OpOverload:
    """An op whose results bear a mark, so that they cannot be taken for the old ones."""
    return worked.define_op(_marked, worked.fake)


@functools.cache
def other_op() -> torch._ops.OpOverload:
    """Another op: the right one."""
    return worked.define_op(worked.quantise, worked.fake)
