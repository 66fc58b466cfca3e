"""Qwen3-Next of transformers in its true sizes with random weights, its linear layers in block-FP8, and its caches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fusionlab.observe.inputs import seeded
from fusionlib.models import QuantizeReport, quantize_linears

#: What of the free memory the weights may take: the rest is for caches, activations, and the graphs' own memory.
MOST_MEMORY = 0.75
#: Layers that repeat through the model: three of linear attention and one of full attention.
TURN = 4
#: A prompt that puts a cache's states into being.
_FIRST_TOKENS = 4

#: The same structure, small, for a CPU.
SMALL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 256,
    "num_hidden_layers": TURN,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
}


@dataclass(frozen=True)
class WholeModel:
    """A model, ready to run.

    Args:
        model: transformers' `Qwen3NextForCausalLM`, in bf16 with block-FP8 linear layers.
        quantised: what `quantize_linears` did.
        layers_of_all: how many layers the whole model has.
    """

    model: Any
    quantised: QuantizeReport
    layers_of_all: int

    @property
    def config(self) -> Any:
        """Transformers' configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.lm_head.weight.device

    def layers_of(self, kind: str) -> int:
        """How many layers are of `kind`, one of transformers' `layer_types`."""
        return self.config.layer_types.count(kind)


def make_config(layers: int | None = None, experts: int | None = None, *, small: bool = False) -> Any:
    """Transformers' configuration, whose defaults are the sizes of Qwen3-Next-80B-A3B; `small` for a CPU."""
    from transformers import Qwen3NextConfig

    changes = dict(SMALL) if small else {}
    changes |= {} if layers is None else {"num_hidden_layers": layers}
    changes |= {} if experts is None else {"num_experts": experts}
    return Qwen3NextConfig(**changes)


def layers_in(free_bytes: int, config: Any) -> int:
    """How many layers of `config`, in whole turns, have weights that fit into `free_bytes` in bf16; at least one turn.

    They are counted before `quantize_linears` halves those of the linear layers: it keeps both forms while it runs.
    """
    with torch.device("meta"):
        model = _model_class()(_with_layers(config, TURN))
    turn = sum(weight.numel() for weight in model.model.layers.parameters()) * 2
    rest = sum(weight.numel() for weight in model.parameters()) * 2 - turn
    return TURN * max(1, min(config.num_hidden_layers // TURN, int(free_bytes - rest) // turn))


def make_model(config: Any, layers: int, device: str, seed: int) -> WholeModel:
    """The first `layers` layers of `config`'s model with seeded weights; the caller's random state is unchanged."""
    with seeded(device, seed), torch.device(device), _default_dtype(torch.bfloat16), torch.no_grad():
        model = _model_class()(_with_layers(config, layers)).eval().requires_grad_(False)
    return WholeModel(model, quantize_linears(model), config.num_hidden_layers)


def modelling() -> Any:
    """Transformers' modelling module."""
    from transformers.models.qwen3_next import modeling_qwen3_next

    return modeling_qwen3_next


def prompt(model: WholeModel, sequences: int, tokens: int, seed: int) -> torch.Tensor:
    """Seeded random token ids [sequences, tokens]."""
    with seeded(model.device.type, seed):
        return torch.randint(model.config.vocab_size, (sequences, tokens), device=model.device)


class Cache:
    """Transformers' static cache of `sequences` sequences that have read `context` tokens, and its first state.

    The states of the linear layers are those of a short prompt; the keys and values are random.
    """

    def __init__(self, model: WholeModel, sequences: int, context: int, seed: int) -> None:
        from transformers import StaticCache

        self.context = context
        self.cache = StaticCache(config=model.config, max_cache_len=context + 1)
        with torch.no_grad():
            model.model.model(prompt(model, sequences, _FIRST_TOKENS, seed), past_key_values=self.cache)
            with seeded(model.device.type, seed):
                for layer in self.cache.layers:
                    if hasattr(layer, "cumulative_length"):
                        layer.keys.normal_()
                        layer.values.normal_()
        self.lengths = [layer.cumulative_length for layer in self.cache.layers if hasattr(layer, "cumulative_length")]
        self._states = [
            state
            for layer in self.cache.layers
            if hasattr(layer, "recurrent_states")
            for state in (*layer.conv_states.values(), *layer.recurrent_states.values())
        ]
        self._first = [state.to("cpu", copy=True) for state in self._states]  # of many sequences they are gigabytes
        self.rewind()

    def rewind(self) -> None:
        """The cache's lengths as before the step. A replay of a captured step does it too: it writes the same token."""
        for length in self.lengths:
            length.fill_(self.context)

    def restore(self) -> None:
        """Lengths and states of the linear layers as they were first."""
        self.rewind()
        for state, first in zip(self._states, self._first, strict=True):
            state.copy_(first)


def _model_class() -> Any:
    return modelling().Qwen3NextForCausalLM


def _with_layers(config: Any, layers: int) -> Any:
    """A copy of `config` with its first `layers` layers."""
    fewer = type(config)(
        **{**config.to_dict(), "num_hidden_layers": layers, "layer_types": config.layer_types[:layers]}
    )
    fewer._attn_implementation, fewer._experts_implementation = "sdpa", "grouped_mm"
    return fewer


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
