"""The two blocks of Qwen3-Next for one decode step, with FP8 projections: each token is a sequence of its own.

Each block takes what the one before adds to the residual stream, and the stream: (delta, residual, *state) ->
(delta, residual). The states are updated in place. The MLP is dense (`Sizes.intermediate` says what for).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from fusionlab.observe.step import sites
from fusionlab.observe.step.decode_sizes import FULL, LINEAR, Sizes
from fusionlab.observe.step.recurrence import Recurrence
from fusionlib.layers import BlockFP8Linear, quantise_blocks

State = tuple[torch.Tensor, ...]
Result = tuple[torch.Tensor, torch.Tensor]


def fp8_linear(inputs: int, outputs: int, device: torch.device | str) -> BlockFP8Linear:
    """A linear layer with random weights that keep the variance of its input."""
    weight = torch.randn(outputs, inputs, device=device) * inputs**-0.5
    return BlockFP8Linear(*quantise_blocks(weight.bfloat16()))


class MLP(nn.Module):
    """Gate and up as one projection, SiluAndMul, down."""

    def __init__(self, sizes: Sizes, device: torch.device | str) -> None:
        super().__init__()
        self.gate_up = fp8_linear(sizes.hidden, 2 * sizes.intermediate, device)
        self.down = fp8_linear(sizes.intermediate, sizes.hidden, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [tokens, hidden] -> the same shape."""
        return self.down(sites.silu_and_mul(self.gate_up(x)))


class LinearAttention(nn.Module):
    """Gated DeltaNet's decode step, in transformers' order: z is interleaved per key head in the projection."""

    def __init__(self, sizes: Sizes, recurrence: Recurrence, device: torch.device | str) -> None:
        super().__init__()
        self.sizes, self.recurrence = sizes, recurrence
        self.in_proj_qkvz = fp8_linear(sizes.hidden, sizes.qkvz, device)
        ba = torch.randn(2 * sizes.value_heads, sizes.hidden, device=device) * sizes.hidden**-0.5
        self.in_proj_ba = nn.Parameter(ba.bfloat16(), requires_grad=False)
        taps = torch.randn(sizes.channels, sizes.conv_width, device=device) * sizes.conv_width**-0.5
        self.conv = nn.Parameter(taps.bfloat16(), requires_grad=False)
        rates = torch.empty(sizes.value_heads, device=device).uniform_(0.01, 16)
        self.rate_log = nn.Parameter(rates.log(), requires_grad=False)
        self.step_bias = nn.Parameter(torch.ones(sizes.value_heads, device=device), requires_grad=False)
        self.norm = sites.GatedNormOfHeads(sizes.value_dim, device)
        self.out_proj = fp8_linear(sizes.value_heads * sizes.value_dim, sizes.hidden, device)

    def forward(self, x: torch.Tensor, conv_state: torch.Tensor, recurrent_state: torch.Tensor) -> torch.Tensor:
        """x [tokens, hidden] -> the same shape."""
        sizes, tokens = self.sizes, x.shape[0]
        values = sizes.values_per_key * sizes.value_dim
        qkvz = self.in_proj_qkvz(x).view(tokens, sizes.key_heads, -1)
        ba = functional.linear(x, self.in_proj_ba).view(tokens, sizes.key_heads, -1)
        query, key, value, z = qkvz.split([sizes.key_dim, sizes.key_dim, values, values], dim=-1)
        b, a = (part.reshape(tokens, -1) for part in ba.chunk(2, dim=-1))
        mixed = torch.cat([part.reshape(tokens, -1) for part in (query, key, value)], dim=-1)
        mixed = self.convolved(mixed, conv_state)
        keys = sizes.key_heads * sizes.key_dim
        query, key, value = mixed.split([keys, keys, sizes.value_heads * sizes.value_dim], dim=-1)
        decay = -self.rate_log.exp() * functional.softplus(a.float() + self.step_bias)
        core = self.recurrence(
            query.view(tokens, sizes.key_heads, sizes.key_dim),
            key.view(tokens, sizes.key_heads, sizes.key_dim),
            value.view(tokens, sizes.value_heads, sizes.value_dim),
            decay,
            b.sigmoid(),
            recurrent_state,
        )
        return self.out_proj(sites.norm_and_gate(self.norm, core, z))

    def convolved(self, mixed: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The causal convolution's newest value and its SiLU; `state` [tokens, channels, taps] moves on by one."""
        window = torch.cat([state[..., 1:], mixed.unsqueeze(-1)], dim=-1)
        state.copy_(window)
        return functional.silu((window.float() * self.conv.float()).sum(-1)).to(mixed.dtype)


class FullAttention(nn.Module):
    """Qwen3-Next's gated attention over a cache, for the last of `context` positions."""

    position: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, sizes: Sizes, device: torch.device | str) -> None:
        super().__init__()
        self.sizes = sizes
        self.qkv_proj = fp8_linear(sizes.hidden, sizes.qkv, device)
        self.q_norm, self.k_norm = sites.Norm(sizes.head_dim, device), sites.Norm(sizes.head_dim, device)
        self.o_proj = fp8_linear(sizes.heads * sizes.head_dim, sizes.hidden, device)
        steps = torch.arange(0, sizes.rotary, 2, device=device) / sizes.rotary
        angles = (sizes.context - 1) * 1e7**-steps
        angles = torch.cat([angles, angles])
        self.register_buffer("position", torch.tensor([sizes.context - 1], device=device))
        self.register_buffer("cos", angles.cos().bfloat16())
        self.register_buffer("sin", angles.sin().bfloat16())

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """x [tokens, hidden] -> the same shape; the caches are [tokens, kv_heads, context, head_dim]."""
        sizes, tokens = self.sizes, x.shape[0]
        kv = sizes.kv_heads * sizes.head_dim
        query, key, value = self.qkv_proj(x).split([2 * sizes.heads * sizes.head_dim, kv, kv], dim=-1)
        query, gate = query.view(tokens, sizes.heads, 2 * sizes.head_dim).chunk(2, dim=-1)
        query = self.rotated(self.q_norm(query))
        key = self.rotated(self.k_norm(key.view(tokens, sizes.kv_heads, sizes.head_dim)))
        keys[:, :, self.position] = key.unsqueeze(2)
        values[:, :, self.position] = value.view(tokens, sizes.kv_heads, 1, sizes.head_dim)
        # The query heads that share a key head are rows of one attention: no key is repeated, none is masked.
        rows = query.view(tokens, sizes.kv_heads, sizes.heads // sizes.kv_heads, sizes.head_dim)
        attended = functional.scaled_dot_product_attention(rows, keys, values)
        return self.o_proj(sites.gate_heads(attended.reshape(tokens, sizes.heads, sizes.head_dim), gate))

    def rotated(self, heads: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of the first `rotary` elements of each head [tokens, heads, head_dim]."""
        turned, rest = heads.split([self.sizes.rotary, self.sizes.head_dim - self.sizes.rotary], dim=-1)
        first, second = turned.chunk(2, dim=-1)
        return torch.cat([turned * self.cos + torch.cat([-second, first], dim=-1) * self.sin, rest], dim=-1)


class Block(nn.Module):
    """Norm, attention, norm, MLP, with the additions to the residual stream in front of the norms."""

    def __init__(self, kind: str, sizes: Sizes, recurrence: Recurrence, device: torch.device | str) -> None:
        super().__init__()
        self.kind, self.sizes = kind, sizes
        self.input_norm, self.post_norm = sites.Norm(sizes.hidden, device), sites.Norm(sizes.hidden, device)
        attention = LinearAttention(sizes, recurrence, device) if kind == LINEAR else FullAttention(sizes, device)
        self.attention, self.mlp = attention, MLP(sizes, device)

    def forward(self, delta: torch.Tensor, residual: torch.Tensor, *state: torch.Tensor) -> Result:
        """delta, residual [tokens, hidden] -> both of the next block."""
        normed, residual = sites.add_and_norm(self.input_norm, delta, residual)
        delta = self.attention(normed, *state)
        normed, residual = sites.add_and_norm(self.post_norm, delta, residual)
        return self.mlp(normed), residual


def make_state(kind: str, sizes: Sizes, tokens: int, device: torch.device | str) -> State:
    """Random states of `tokens` sequences: of the convolution and the recurrence, or keys and values."""
    if kind == FULL:
        shape = (tokens, sizes.kv_heads, sizes.context, sizes.head_dim)
        return tuple(torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
    conv = torch.randn(tokens, sizes.channels, sizes.conv_width, device=device, dtype=torch.bfloat16)
    return conv, 0.1 * torch.randn(tokens, sizes.value_heads, sizes.key_dim, sizes.value_dim, device=device)
