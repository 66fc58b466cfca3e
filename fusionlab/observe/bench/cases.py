"""What is measured: a shape, a number of tokens, a gate, and what runs before and after the call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import lcm

import torch

from fusionlab.observe.byte_ledger import Bytes, path_bytes
from fusionlab.observe.inputs import Inputs, attention_inputs
from fusionlib.spec import GatedNorm, GroupQuant

TOKENS = (1, 4, 8, 16, 64, 256, 1024, 4096, 8192, 32768)
QUICK_TOKENS = (1, 64, 1024, 8192)
GATES = ("contiguous", "strided")
#: alone; after a kernel that writes x; after that kernel and before the FP8 GEMM.
CONTEXTS = ("alone", "producer", "chain")
OUT_FEATURES = 2048  # of the GEMM: Qwen3-Next's hidden size


@dataclass(frozen=True)
class Shape:
    """Heads, norm and quantisation of a model: rows of heads x head_dim elements, in bf16."""

    name: str
    heads: int
    head_dim: int
    norm: GatedNorm
    group_size: int
    weight_per_element: bool = False

    @property
    def hidden(self) -> int:
        """Elements per row."""
        return self.heads * self.head_dim


#: The norm's roundings are vLLM's, as in the pull request; the Mamba2 row is 8 groups of 1024, as in Codestral Mamba.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("32x128", 32, 128, GatedNorm.vllm(), 128),
        Shape("16x128", 16, 128, GatedNorm.vllm(), 128),
        Shape("48x128", 48, 128, GatedNorm.vllm(), 128),
        Shape("64x128", 64, 128, GatedNorm.vllm(), 128),
        Shape("mamba2", 128, 64, GatedNorm.mamba2(1024), 128, weight_per_element=True),
        Shape("per_token", 32, 128, GatedNorm.vllm(), 4096),
    )
}
BASE = "32x128"


@dataclass(frozen=True)
class Case:
    """One thing to measure, the same for every variant."""

    shape: Shape
    tokens: int
    gate: str = "contiguous"
    context: str = "alone"

    @property
    def name(self) -> str:
        """A one-word name, for a line of a table."""
        return f"{self.shape.name}/{self.tokens}/{self.gate}/{self.context}"

    @property
    def quant(self) -> GroupQuant:
        """The quantisation; before the GEMM its scales have the layout that `torch.nn.functional.scaled_mm` takes."""
        return GroupQuant.vllm(self.shape.group_size).with_layout(
            "column_major" if self.context == "chain" else "row_major"
        )

    @property
    def unit(self) -> int:
        """Elements per kernel row."""
        return lcm(self.shape.norm.norm_size, self.shape.group_size)

    @property
    def units(self) -> int:
        """Kernel rows per call."""
        return self.tokens * (self.shape.hidden // self.unit)

    def bytes(self) -> Bytes:
        """The bytes one fused call must move, by the ledger; the GB/s of every variant refer to these bytes."""
        weight = self.shape.hidden if self.shape.weight_per_element else self.shape.norm.norm_size
        moved = path_bytes(self.tokens, self.shape.hidden, self.shape.norm, self.quant, weight_elements=weight)
        return moved.fused

    def inputs(self, device: str | torch.device, seed: int) -> Inputs:
        """Fresh inputs of this case: x and gate [tokens, ...], weight."""
        strided = self.gate == "strided"
        heads, head_dim = self.shape.heads, self.shape.head_dim
        made = attention_inputs(self.tokens, heads, head_dim, strided_gate=strided, device=device, seed=seed)
        elements = self.shape.hidden if self.shape.weight_per_element else self.shape.norm.norm_size
        if elements == head_dim:
            return made
        weight = attention_inputs(1, 1, elements, strided_gate=False, device=device, seed=seed + 1).weight
        return Inputs(made.x, made.gate, weight)


def cases(
    tokens: Sequence[int] = TOKENS,
    shapes: Iterable[str] = tuple(SHAPES),
    gates: Iterable[str] = GATES,
    contexts: Iterable[str] = CONTEXTS,
) -> Iterator[Case]:
    """The issue's list: every shape alone; for the base shape also the strided gate and the chains."""
    shapes, gates, contexts = list(shapes), list(gates), list(contexts)
    for name in shapes:
        for count in tokens:
            for gate in gates:
                for context in contexts:
                    if name == BASE and (gate == "contiguous" or context == "alone"):
                        yield Case(SHAPES[name], count, gate, context)
                    elif name != BASE and (gate, context) == ("contiguous", "alone"):
                        yield Case(SHAPES[name], count)
