"""What a model is asked to do: a decode step of some sequences, or to read a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fusionlab.observe.model.whole_model import Cache, WholeModel, prompt

DECODE, PREFILL = "decode", "prefill"

#: (ids, positions, cache) -> hidden state [sequences, tokens, hidden]: the model in some way.
RunModel = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Workload:
    """One of `DECODE`, with `tokens` sequences of one new token each, and `PREFILL`, with one prompt of `tokens`."""

    phase: str
    tokens: int

    def __str__(self) -> str:
        if self.phase == DECODE:
            return f"decode of {self.tokens} sequence{'s' * (self.tokens != 1)}"
        return f"prefill of {self.tokens} tokens"


class Work:
    """The inputs of a workload. A prompt is read without a cache, which no layer then writes."""

    def __init__(self, model: WholeModel, workload: Workload, context: int, seed: int) -> None:
        self.model, self.workload = model, workload
        decode = workload.phase == DECODE
        sequences, tokens = (workload.tokens, 1) if decode else (1, workload.tokens)
        self.cache = Cache(model, sequences, context, seed) if decode else None
        self.ids = prompt(model, sequences, tokens, seed + 1)
        start = context if decode else 0
        self.positions = torch.arange(start, start + tokens, device=model.device)[None]

    def hidden(self, run: RunModel) -> torch.Tensor:
        """The last hidden state of every token [sequences, tokens, hidden]."""
        if self.cache is not None:
            self.cache.rewind()
        return run(self.ids, self.positions, None if self.cache is None else self.cache.cache)

    def step(self, run: RunModel) -> torch.Tensor:
        """The logits of the last token [sequences, 1, words]; what is timed."""
        return self.model.model.lm_head(self.hidden(run)[:, -1:])

    def first(self, run: RunModel) -> torch.Tensor:
        """The last token's logits from the first state; what is compared."""
        if self.cache is not None:
            self.cache.restore()
        return self.step(run)


def forward(model: WholeModel) -> RunModel:
    """The model up to its head, as a function of tensors and cache."""
    base = model.model.model

    def hidden(ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """[sequences, tokens] ids and positions -> [sequences, tokens, hidden]."""
        found = base(ids, position_ids=positions, past_key_values=cache, use_cache=cache is not None)
        return found.last_hidden_state

    return hidden
