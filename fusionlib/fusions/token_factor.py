"""Reads what a norm's value is multiplied by behind its own rounding: one number per token, such as a padding mask.

transformers' `apply_mask_to_padding_states` is `(hidden_states * attention_mask[:, :, None]).to(dtype)` between a norm
and the projections of a layer of linear attention or Mamba; the mask is most often of int64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import fx

from fusionlib.contract import TOKEN_FACTOR_DTYPES
from fusionlib.match.graph import (
    FLOATS,
    below,
    broadcast_last,
    describe,
    dtype,
    input_of,
    is_mul,
    is_narrowing,
    operands,
    peel_exact,
    shape,
)
from fusionlib.match.reasons import Stop
from fusionlib.match.root import find_root
from fusionlib.match.sizes import same_shape


class Masked(NamedTuple):
    """A product with one number per token: what is multiplied, by what, and the node that multiplies."""

    value: fx.Node
    factor: fx.Node
    product: fx.Node

    @property
    def unmasked(self) -> fx.Node:
        """The node that computed what is multiplied, below reshapes and lossless casts."""
        return peel_exact(self.value)

    @property
    def is_shared(self) -> bool:
        """Whether others read what is multiplied too, in this form or another."""
        node: fx.Node | None = self.value
        while node is not None:
            if len(node.users) > 1:
                return True
            node = below(node)
        return False


def read_masked(value: fx.Node) -> Masked | None:
    """The product with one number per token that `value` is, rounded or not; None if it is another computation.

    The root of a norm is such a number as well, and is none of these.
    """
    product = peel_exact(value)
    product = peel_exact(input_of(product)) if is_narrowing(product) else product
    if not is_mul(product):
        return None
    for wide, narrow in (operands(product), operands(product)[::-1]):
        if not isinstance(wide, fx.Node) or not isinstance(narrow, fx.Node):
            continue
        repeated = broadcast_last(narrow, shape(product))
        if repeated is not None and same_shape(shape(wide), shape(product)) and find_root(narrow) is None:
            return Masked(wide, repeated[0], product)
    return None


def check_promotion(masked: Masked, value: fx.Node) -> None:
    """Raise Stop unless `value` is rounded where the op rounds: to the dtype of what is multiplied.

    The op multiplies in the dtype that PyTorch promotes both to: an integer is rounded to the value's dtype first.
    """
    kind, own, final = dtype(masked.unmasked), dtype(masked.factor), dtype(peel_exact(value))
    if own not in TOKEN_FACTOR_DTYPES:
        raise Stop("rounding", masked.factor, "a factor of float32, 16 bits or integers", describe(masked.factor))
    if final != kind:
        raise Stop("rounding", value, f"a masked value of {kind}, the dtype of the norm's", describe(peel_exact(value)))
    if dtype(masked.product) not in ((kind, torch.float32) if own in FLOATS else (kind,)):
        raise Stop(
            "rounding", masked.product, f"a product in {kind}, which integers promote to", describe(masked.product)
        )
