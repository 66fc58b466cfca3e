"""The same model with the channels of its hidden state in another order: the same function, its sums in another order.

Every sum over the hidden state, in norms and products, adds the same terms in another order, and nothing else changes:
blocks of 128 channels move as a whole, so that each quantisation sees the same groups and each weight the same blocks.
What two such runs differ by is rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fusionlib.block_mm import BLOCK
from fusionlib.layers import BlockFP8Linear


@contextmanager
def other_order(model: Any, order: Sequence[int]) -> Iterator[torch.Tensor]:
    """Within, the hidden state's block `i` is what block `order[i]` was, in transformers' `Qwen3NextForCausalLM`.

    The embedding, all layers and the last norm are reordered in place, and put back after; the language-model head is
    left.

    Yields:
        index [hidden] that puts a hidden state of the reordered model back: `hidden[..., index]`.

    Raises:
        ValueError: if `order` is no order of the hidden state's blocks.
    """
    blocks = model.config.hidden_size // BLOCK
    if sorted(order) != list(range(blocks)):
        raise ValueError(f"order={list(order)} must have each of the {blocks} blocks of the hidden state once")
    forth = torch.tensor(order)
    back = forth.argsort()
    _reorder(model, forth)
    try:
        yield _channels(back, model.lm_head.weight.device)
    finally:
        _reorder(model, back)


def _channels(blocks: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The channels of `blocks`, in order."""
    return (blocks[:, None] * BLOCK + torch.arange(BLOCK)).flatten().to(device)


def _reorder(model: Any, blocks: torch.Tensor) -> None:
    base = model.model
    _take(base.embed_tokens.weight, 1, blocks)
    _take(base.norm.weight, 0, blocks)
    for layer in base.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            _take(norm.weight, 0, blocks)
        readers, writers = _mixer(layer)
        mlp = layer.mlp
        readers += [mlp.shared_expert.gate_proj, mlp.shared_expert.up_proj, mlp.shared_expert_gate, mlp.gate]
        writers += [mlp.shared_expert.down_proj]
        for module in readers:
            _take_of(module, 1, blocks)
        for module in writers:
            _take_of(module, 0, blocks)
        _take(mlp.experts.gate_up_proj, 2, blocks)
        _take(mlp.experts.down_proj, 1, blocks)


def _mixer(layer: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    """The layers that read the normed hidden state, and those that write to the residual stream."""
    if layer.block_type == "linear_attention":
        mixer = layer.linear_attn
        return [mixer.in_proj_qkvz, mixer.in_proj_ba], [mixer.out_proj]
    mixer = layer.self_attn
    return [mixer.q_proj, mixer.k_proj, mixer.v_proj], [mixer.o_proj]


def _take_of(module: nn.Module, dim: int, blocks: torch.Tensor) -> None:
    """Reorder a layer's weight [out, in], and where it is block-FP8 its scales."""
    assert isinstance(module.weight, torch.Tensor)
    _take(module.weight, dim, blocks)
    if isinstance(module, BlockFP8Linear):
        scale = module.weight_scale_inv
        scale.copy_(scale.index_select(dim, blocks.to(scale.device)))


def _take(weight: torch.Tensor, dim: int, blocks: torch.Tensor) -> None:
    with torch.no_grad():
        weight.copy_(weight.index_select(dim, _channels(blocks, weight.device)))
