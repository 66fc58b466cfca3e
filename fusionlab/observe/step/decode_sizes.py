"""The sizes of the blocks, and the bytes that a step must move at least."""

from __future__ import annotations

from dataclasses import dataclass

LINEAR, FULL = "linear", "full"
KINDS = (LINEAR, FULL)
ORDER = (LINEAR, LINEAR, LINEAR, FULL)  # repeated through the model


@dataclass(frozen=True)
class Sizes:
    """A model's sizes; the defaults are those of Qwen3-Next-80B-A3B (transformers' Qwen3NextConfig).

    Args:
        layers: of the whole model, three of linear attention and one of full attention in turn.
        hidden: elements of the hidden state.
        key_heads, value_heads, key_dim, value_dim: of the linear attention.
        conv_width: taps of its causal convolution.
        heads, kv_heads, head_dim, rotary: of the full attention; `rotary` elements of a head are rotated.
        intermediate: of the dense MLP. It stands in for ten routed experts of 512: the same bytes of weights for one
            token, fewer than a model of experts reads for many.
        context: tokens in each sequence's key and value cache.
    """

    layers: int = 48
    hidden: int = 2048
    key_heads: int = 16
    value_heads: int = 32
    key_dim: int = 128
    value_dim: int = 128
    conv_width: int = 4
    heads: int = 16
    kv_heads: int = 2
    head_dim: int = 256
    rotary: int = 64
    intermediate: int = 5120
    context: int = 1024

    @property
    def values_per_key(self) -> int:
        """Value heads that share a key head."""
        return self.value_heads // self.key_heads

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def qkvz(self) -> int:
        """Outputs of the linear attention's projection."""
        return self.channels + self.value_heads * self.value_dim

    @property
    def qkv(self) -> int:
        """Outputs of the full attention's projections, merged as engines do: query and gate, key, value."""
        return 2 * (self.heads + self.kv_heads) * self.head_dim

    def weight_bytes(self, kind: str) -> int:
        """FP8 weights of a block of `kind`, and the bf16 projection of the linear attention."""
        mlp = 3 * self.hidden * self.intermediate
        if kind == LINEAR:
            own = self.hidden * (self.qkvz + self.value_heads * self.value_dim + 2 * 2 * self.value_heads)
        else:
            own = self.hidden * (self.qkv + self.heads * self.head_dim)
        return own + mlp

    def state_bytes(self, kind: str, tokens: int) -> int:
        """What a block of `kind` keeps for `tokens` sequences."""
        if kind == LINEAR:
            recurrent = 4 * self.value_heads * self.key_dim * self.value_dim
            return tokens * (recurrent + 2 * self.channels * self.conv_width)
        return tokens * 2 * 2 * self.kv_heads * self.context * self.head_dim

    def step_bytes(self, layers: int, tokens: int) -> int:
        """What a step must move at least: each weight once, the linear states in and out, the caches in."""
        moved = 0
        for layer in range(layers):
            kind = ORDER[layer % len(ORDER)]
            moved += self.weight_bytes(kind) + self.state_bytes(kind, tokens) * (2 if kind == LINEAR else 1)
        return moved

    def layers_in(self, free_bytes: int, tokens: int) -> int:
        """How many layers, in whole turns of the order, fit into `free_bytes`; at most all, at least one turn."""
        turn = sum(self.weight_bytes(kind) + self.state_bytes(kind, tokens) for kind in ORDER)
        return len(ORDER) * max(1, min(self.layers // len(ORDER), free_bytes // turn))


QWEN3_NEXT = Sizes()
#: For a CPU, which multiplies in float32: the same structure, small.
SMALL = Sizes(
    layers=4, hidden=256, key_heads=2, value_heads=4, heads=2, kv_heads=1, head_dim=128, rotary=32, intermediate=256,
    context=16,
)  # fmt: skip
