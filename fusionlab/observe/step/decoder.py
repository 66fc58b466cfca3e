"""All layers of the model with random weights and states, and the decode step over them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fusionlab.observe.inputs import seeded
from fusionlab.observe.step.blocks import Block, Result, State, make_state
from fusionlab.observe.step.decode_sizes import ORDER, Sizes
from fusionlab.observe.step.recurrence import recurrence_here
from fusionlib.layers import BlockFP8Linear

#: (block, delta, residual, *state) -> (delta, residual): a block's forward, compiled in some way.
RunBlock = Callable[..., Result]


@dataclass(frozen=True)
class Weights:
    """The blocks of a model: `opaque` quantises by an opaque op, `native` in plain PyTorch with the same weights."""

    sizes: Sizes
    opaque: tuple[Block, ...]
    native: tuple[Block, ...]
    recurrence: str

    def blocks(self, native: bool) -> tuple[Block, ...]:
        """The blocks, in order."""
        return self.native if native else self.opaque


def make_weights(sizes: Sizes, layers: int, device: str, seed: int) -> Weights:
    """Seeded weights of the first `layers` layers; the caller's random state is unchanged."""
    words, recurrence = recurrence_here(device)
    with seeded(device, seed):
        opaque = tuple(Block(ORDER[layer % len(ORDER)], sizes, recurrence, device) for layer in range(layers))
    return Weights(sizes, opaque, tuple(map(natively_quantised, opaque)), words)


def natively_quantised(block: Block) -> Block:
    """The same block on the same memory, its activations quantised in plain PyTorch."""
    shared = [
        *block.parameters(),
        *block.buffers(),
        *(m.recurrence for m in block.modules() if hasattr(m, "recurrence")),
    ]
    copied = copy.deepcopy(block, {id(each): each for each in shared})
    for module in copied.modules():
        if isinstance(module, BlockFP8Linear):
            module.native_quant = True
    return copied


@dataclass(frozen=True)
class Decoder:
    """A model with the states of `tokens` sequences, one token of each of which is a step's input."""

    weights: Weights
    tokens: int
    states: tuple[State, ...]
    hidden: torch.Tensor

    def step(self, run: Mapping[str, RunBlock], native: bool = False) -> torch.Tensor:
        """One step through all layers, each by the function of its kind: the residual stream [tokens, hidden]."""
        delta, residual = self.hidden, torch.zeros_like(self.hidden)
        for block, state in zip(self.weights.blocks(native), self.states, strict=True):
            delta, residual = run[block.kind](block, delta, residual, *state)
        return residual + delta

    def first(self, kind: str) -> int:
        """The index of the first layer of `kind`."""
        return next(index for index, block in enumerate(self.weights.opaque) if block.kind == kind)


def make_decoder(weights: Weights, tokens: int, device: str, seed: int) -> Decoder:
    """Seeded states and inputs for `tokens` sequences."""
    with seeded(device, seed):
        states = tuple(make_state(block.kind, weights.sizes, tokens, device) for block in weights.opaque)
        hidden = torch.randn(tokens, weights.sizes.hidden, device=device, dtype=torch.bfloat16)
    return Decoder(weights, tokens, states, hidden)
