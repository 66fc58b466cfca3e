"""Comparing an answer's result with the expected one: to the bit, or within what another spelling explains."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

#: How far float32 arithmetic in another spelling may be from the exact value, before rounding to 16 bits.
SPELLING = 1e-5


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as integers, so that NaN equals itself and -0 is not 0."""
    return tensor.contiguous().view(_BITS[tensor.element_size()])


def same_bits(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Whether dtype, shape and every bit are the same."""
    return got.dtype == want.dtype and got.shape == want.shape and torch.equal(bits(got), bits(want))


def strides_that_count(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides of all dimensions with more than one element; those of the others mean nothing."""
    return tuple(step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def same_result(got: object, want: torch.Tensor) -> bool:
    """Whether `got` is a tensor with the same bits and the same memory layout."""
    return (
        isinstance(got, torch.Tensor) and same_bits(got, want) and strides_that_count(got) == strides_that_count(want)
    )


def same_results(got: object, want: Sequence[torch.Tensor]) -> bool:
    """`same_result` for each of several."""
    return (
        isinstance(got, tuple | list) and len(got) == len(want) and all(map(same_result, got, want))
    )  # fmt: skip


def silu_and_mul_bounds(gate: torch.Tensor, up: torch.Tensor, spec) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and the largest value that silu(gate) * up may have with the roundings of `spec`.

    Rounding is monotone, so the result of another spelling of silu lies between the roundings of the two bounds, and
    may be a step away only if the exact value is next to a tie. NaN where the result is NaN.
    """
    exact = gate.double() / (1.0 + torch.exp(-gate.double()))
    products = []
    for end in (exact * (1 - SPELLING), exact * (1 + SPELLING)):
        activated = end.float()
        if spec.round_activation:
            activated = activated.to(gate.dtype).float()
        products += [activated.double() * up.double() * (1 + sign * SPELLING) for sign in (-1, 1)]
    dtype = gate.dtype if spec.round_output else torch.float32
    ends = torch.stack(products)
    return ends.amin(0).float().to(dtype), ends.amax(0).float().to(dtype)


def outside(got: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Which elements are not within [low, high]: not a number, infinite or a negative zero where the bounds are not."""
    within = (got >= low) & (got <= high)
    zero = (low == 0) & (high == 0) & ~low.isnan()
    signs = torch.signbit(got) == torch.signbit(low)
    return torch.where(low.isnan(), ~got.isnan(), ~within | (zero & ~signs))
