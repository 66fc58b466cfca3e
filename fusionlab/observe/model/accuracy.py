"""How far the logits of two runs are apart: divergence, agreement on the likeliest token, and differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

#: Tokens whose logits are in memory at a time: of 150 thousand words each, in float32.
_CHUNK = 512
_PLACES = (0.1, 0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Spread:
    """How a number is distributed over tokens: its mean, four percentiles and the largest."""

    mean: float
    p10: float
    p50: float
    p90: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: torch.Tensor) -> Spread:
        """Of one value per token."""
        values = values.double()
        places = torch.quantile(values, torch.tensor(_PLACES, dtype=values.dtype, device=values.device))
        return cls(float(values.mean()), *map(float, places), float(values.max()))


@dataclass(frozen=True)
class Distance:
    """How far one run's logits are from another's, over `tokens` tokens.

    Args:
        kl: the Kullback-Leibler divergence KL(one || other) of the distributions of the next token, in nats.
        top1: the share of tokens at which both find the same word likeliest.
        difference: a token's root mean square difference of logits; logits: their standard deviation, for scale.
    """

    tokens: int
    kl: Spread
    top1: float
    difference: Spread
    logits: float

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        return asdict(self)


def distance(head: Callable[[torch.Tensor], torch.Tensor], one: torch.Tensor, other: torch.Tensor) -> Distance:
    """The distance between the logits of two runs.

    Args:
        head: hidden state [tokens, hidden] -> logits [tokens, words].
        one, other: the runs' last hidden states [tokens, hidden], of the same tokens.
    """
    kl, same, difference, spread = [], [], [], []
    for ours, theirs in zip(one.split(_CHUNK), other.split(_CHUNK), strict=True):
        first, second = head(ours).float(), head(theirs).float()
        spread.append(first.var(-1))
        difference.append((first - second).square().mean(-1).sqrt())
        same.append(first.argmax(-1) == second.argmax(-1))
        log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
        # Rounding makes the divergence of nearly equal distributions a little less than nothing.
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0.0))
    return Distance(
        one.shape[0],
        Spread.of(torch.cat(kl)),
        float(torch.cat(same).double().mean()),
        Spread.of(torch.cat(difference)),
        float(torch.cat(spread).double().mean().sqrt()),
    )
