"""What is measured: a shape, a number of tokens, a layout of its inputs, and what runs before and after the call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fusionlab.observe.bench.measured_producers import (
    PLAIN,
    STRIDED,
    ActAndMulProducer,
    GatedNormProducer,
    Producer,
    RMSNormProducer,
    Tensors,
)
from fusionlab.observe.byte_ledger import Bytes
from fusionlib.spec import ActAndMul, GatedNorm, GroupQuant, RMSNorm

TOKENS = (1, 4, 8, 16, 64, 256, 1024, 4096, 8192, 32768)
QUICK_TOKENS = (1, 64, 1024, 8192)
GATES = (PLAIN, STRIDED)
#: alone; after a kernel that writes x; after that kernel and before the FP8 GEMM.
CONTEXTS = ("alone", "producer", "chain")
OUT_FEATURES = 2048  # of the GEMM: Qwen3-Next's hidden size


@dataclass(frozen=True)
class Shape:
    """A producer of a model's size and the groups that its value is quantised by, in bf16."""

    name: str
    producer: Producer
    group_size: int = 128

    @property
    def hidden(self) -> int:
        """Elements per row."""
        return self.producer.hidden


def _gated(name: str, heads: int, head_dim: int, norm: GatedNorm, group_size: int = 128, **options: Any) -> Shape:
    return Shape(name, GatedNormProducer(heads, head_dim, norm, **options), group_size)


def _norm(hidden: int, residual: bool) -> Shape:
    # The sum is rounded as in vLLM's fused_add_rms_norm, the norm as in its forward_native; 1 + w as in Qwen3-Next.
    rounding = frozenset({"sum", "output"} if residual else {"output"})
    spec = RMSNorm(hidden, weight_offset=1, rounding=rounding)
    return Shape(f"{'add_norm' if residual else 'norm'}_{hidden}", RMSNormProducer(spec, residual))


def _act(name: str, size: int, activation: Any, heads: int = 0) -> Shape:
    # As PyTorch rounds in bf16: the activation, then the product.
    spec = ActAndMul(activation, rounding=frozenset({"activation", "output"}))
    return Shape(name, ActAndMulProducer(size, spec, heads))


#: The gated norm's roundings are vLLM's, as in the pull request; the Mamba2 row is 8 groups of 1024, as in Codestral
#: Mamba. Hidden sizes are those of Qwen3-Next, Qwen3-8B, Qwen3-32B and DeepSeek-V3; intermediate ones of an expert of
#: Qwen3-Next, TinyLlama and Llama 3 8B.
SHAPES = {
    shape.name: shape
    for shape in (
        _gated("32x128", 32, 128, GatedNorm.vllm()),
        _gated("16x128", 16, 128, GatedNorm.vllm()),
        _gated("48x128", 48, 128, GatedNorm.vllm()),
        _gated("64x128", 64, 128, GatedNorm.vllm()),
        _gated("mamba2", 128, 64, GatedNorm.mamba2(1024), per_element=True),
        _gated("per_token", 32, 128, GatedNorm.vllm(), 4096),
        *(_norm(hidden, residual) for residual in (False, True) for hidden in (2048, 4096, 5120, 7168)),
        *(_act(f"silu_{size}", size, "silu") for size in (512, 5632, 14336)),
        *(_act(f"gate_{heads}x256", 256, "sigmoid", heads) for heads in (16, 32)),
    )
}
BASE = "32x128"


@dataclass(frozen=True)
class Case:
    """One thing to measure, the same for every variant. `gate` is the layout of its inputs, named after the first."""

    shape: Shape
    tokens: int
    gate: str = PLAIN
    context: str = "alone"

    @property
    def name(self) -> str:
        """A one-word name, for a line of a table."""
        return f"{self.shape.name}/{self.tokens}/{self.gate}/{self.context}"

    @property
    def producer(self) -> Producer:
        """What computes the value."""
        return self.shape.producer

    @property
    def quant(self) -> GroupQuant:
        """The quantisation; before the GEMM its scales have the layout that `torch.nn.functional.scaled_mm` takes."""
        return GroupQuant.vllm(self.shape.group_size).with_layout(
            "column_major" if self.context == "chain" else "row_major"
        )

    @property
    def unit(self) -> int:
        """Elements per kernel row."""
        return self.producer.unit(self.quant)

    @property
    def units(self) -> int:
        """Kernel rows per call."""
        return self.tokens * (self.shape.hidden // self.unit)

    def bytes(self) -> Bytes:
        """The bytes one fused call must move; the GB/s of every variant refer to these bytes."""
        return self.producer.bytes(self.tokens, self.quant)

    def inputs(self, device: str | torch.device, seed: int) -> Tensors:
        """Fresh inputs of this case, the producer's tensors in its order."""
        return self.producer.inputs(self.tokens, self.gate, device, seed)


def cases(
    tokens: Sequence[int] = TOKENS,
    shapes: Iterable[str] = tuple(SHAPES),
    gates: Iterable[str] = GATES,
    contexts: Iterable[str] = CONTEXTS,
) -> Iterator[Case]:
    """The list: every shape alone, in its first layout; for the base shape also the strided gate and the chains.

    `gates` chooses among the layouts of shapes that have several.
    """
    gates, contexts = list(gates), list(contexts)
    for name in shapes:
        layouts = SHAPES[name].producer.layouts
        for count in tokens:
            if name != BASE:
                if "alone" in contexts and (len(layouts) == 1 or layouts[0] in gates):
                    yield Case(SHAPES[name], count, layouts[0])
                continue
            for gate in gates:
                for context in contexts:
                    if gate == PLAIN or context == "alone":
                        yield Case(SHAPES[name], count, gate, context)
