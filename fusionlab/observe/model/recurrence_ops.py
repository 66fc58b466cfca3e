"""The recurrences of a linear attention as opaque ops, as engines have them: the model is then one graph.

flash-linear-attention's kernels are hidden from Dynamo by their own decorators, so that each layer would break the
graph; transformers' PyTorch forms are unrolled over the prompt's chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from fusionlab.observe.step.recurrence import has_kernels

FLA = "flash-linear-attention's fused_recurrent_gated_delta_rule and chunk_gated_delta_rule, as opaque ops"
TORCH = "transformers' PyTorch forms, compiled by Inductor"

#: What transformers' modelling modules call, and the function of `fla.ops.gated_delta_rule` that computes it.
_NAMES = {
    "torch_recurrent_gated_delta_rule": "fused_recurrent_gated_delta_rule",
    "torch_chunk_gated_delta_rule": "chunk_gated_delta_rule",
}


@contextmanager
def recurrences(modelling: ModuleType, device: str) -> Iterator[str]:
    """Within, the recurrences of a modelling module are opaque ops where their kernels are installed.

    Yields:
        what computes them, in words.
    """
    if not has_kernels(device):
        yield TORCH
        return
    before = {name: getattr(modelling, name) for name in _NAMES}
    try:
        for name, kernel in _NAMES.items():
            setattr(modelling, name, _as_transformers_calls_it(_op(kernel)))
        yield FLA
    finally:
        for name, function in before.items():
            setattr(modelling, name, function)


def _as_transformers_calls_it(op: Callable[..., Any]) -> Callable[..., Any]:
    def recurrence(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        g: torch.Tensor,
        beta: torch.Tensor,
        initial_state: torch.Tensor | None,
        output_final_state: bool,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        out, state = op(query, key, value, g, beta, initial_state)
        return out, state if output_final_state else None

    return recurrence


@functools.cache
def _op(name: str) -> Callable[..., Any]:
    """The op over [batch, tokens, heads, dim], g and beta [batch, tokens, value heads]: output and final state."""
    from fla.ops import gated_delta_rule

    kernel = getattr(gated_delta_rule, name)

    def run(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        state: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, final = kernel(
            *(tensor.contiguous() for tensor in (query, key, value)),
            g=g.contiguous(),
            beta=beta.contiguous(),
            initial_state=state,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        return out.contiguous(), final.contiguous()

    def fake(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, _, heads, value_dim = value.shape
        final = value.new_empty((batch, heads, key.shape[-1], value_dim), dtype=torch.float32)
        return value.new_empty(value.shape), final

    op = torch.library.custom_op(f"fusionlab::{name}", run, mutates_args=())
    op.register_fake(fake)
    return getattr(torch.ops.fusionlab, name).default
