"""One decode step of the gated delta rule: flash-linear-attention's kernel where installed, or plain PyTorch.

The state of a value head, [key_dim, value_dim] in float32, decays, forgets what it knew of the key, and takes the new
value. Inductor compiles the PyTorch form; the kernel reads and writes the state once.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch

FLA, TORCH = "flash-linear-attention's fused_recurrent_gated_delta_rule", "PyTorch, compiled by Inductor"

#: (query, key [tokens, key_heads, key_dim], value [tokens, value_heads, value_dim], decay (log), beta
#: [tokens, value_heads], state [tokens, value_heads, key_dim, value_dim]) -> [tokens, value_heads, value_dim]
Recurrence = Callable[..., torch.Tensor]


def has_kernels(device: str) -> bool:
    """Whether flash-linear-attention computes the recurrence on `device`."""
    return device == "cuda" and importlib.util.find_spec("fla") is not None


def recurrence_here(device: str) -> tuple[str, Recurrence]:
    """The recurrence to use on `device` and what it is, in words."""
    if has_kernels(device):
        return FLA, fla_step()
    return TORCH, torch_step


def torch_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> torch.Tensor:
    """As transformers' `torch_recurrent_gated_delta_rule` for one token; `state` is updated in place.

    The output is read from the old state and the change, which is the same as from the new one: Inductor then reads the
    state twice and writes it once, where it would otherwise keep a copy of the new one.
    """
    tokens, key_heads, key_dim = key.shape
    grouped = (tokens, key_heads, value.shape[1] // key_heads)
    query, key = _normalised(query.float()) * key_dim**-0.5, _normalised(key.float())
    attended = (query * key).sum(-1).view(tokens, key_heads, 1, 1)
    query, key = (heads[:, :, None, :, None] for heads in (query, key))
    memory = state.view(*grouped, *state.shape[2:]) * decay.float().exp().view(*grouped, 1, 1)
    known, read = (memory * key).sum(-2), (memory * query).sum(-2)  # [tokens, key_heads, values_per_key, value_dim]
    change = (value.float().view(known.shape) - known) * beta.float().view(*grouped, 1)
    state.copy_((memory + key * change.unsqueeze(-2)).view(state.shape))
    return (read + attended * change).view(value.shape).to(value.dtype)


def _normalised(heads: torch.Tensor) -> torch.Tensor:
    return heads * torch.rsqrt((heads * heads).sum(-1, keepdim=True) + 1e-6)


@functools.cache
def fla_step() -> Recurrence:
    """flash-linear-attention's kernel as an opaque op.

    It writes the new state to memory of its own, which is not carried over: a replay reads the first state again.
    """
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule

    def step(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        decay: torch.Tensor,
        beta: torch.Tensor,
        state: torch.Tensor,
    ) -> torch.Tensor:
        rows = (tensor.unsqueeze(1).contiguous() for tensor in (query, key, value, decay, beta))
        q, k, v, g, b = rows
        out, _ = fused_recurrent_gated_delta_rule(
            q,
            k,
            v,
            g=g,
            beta=b,
            initial_state=state,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        return out.squeeze(1).contiguous()

    op = torch.library.custom_op("fusionlab::gated_delta_step", step, mutates_args=())
    op.register_fake(lambda query, key, value, decay, beta, state: value.new_empty(value.shape))
    return torch.ops.fusionlab.gated_delta_step.default
