"""What is measured before its quantisation: each producer with its inputs, reference, fused call, bytes and light.

A producer computes a value [tokens, hidden] that is then quantised to FP8 by groups. One object knows all that the
benchmark asks of it, so that cases, variants, sweep and light name none in particular:

    gated_norm    an RMS norm of each head times an activation of a gate, before a linear attention's projection
    rms_norm      an RMS norm of the hidden state, alone or of its sum with the residual stream, before a projection
    act_and_mul   an activation of one tensor times another: an MLP's two halves, or an attention's output and its gate

Its tensors are *rows*, with an element for each of the value's, and at most one *vector*, the weight, which all calls
of a layer share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import lcm, prod
from typing import Any, ClassVar

import torch

from fusionlab.observe.byte_ledger import Bytes
from fusionlab.observe.inputs import attention_inputs
from fusionlib import op, reference
from fusionlib.spec import ActAndMul, GatedNorm, GroupQuant, RMSNorm

Tensors = tuple[torch.Tensor, ...]
PLAIN, STRIDED = "contiguous", "strided"


def normal(device: str | torch.device, seed: int) -> Callable[..., torch.Tensor]:
    """A function of a shape that returns seeded bf16 values of a normal distribution, new ones at each call."""
    generator = torch.Generator(device).manual_seed(seed)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.bfloat16)

    return made


class Producer(ABC):
    """One producer of a size. Subclasses are frozen dataclasses, so that a case that holds one can be a key."""

    #: Its name in reports, as of the fusion that takes it.
    name: ClassVar[str]
    #: How its rows can lie in memory; the first is what goals are judged by.
    layouts: ClassVar[tuple[str, ...]]
    #: What it computes.
    spec: Any
    #: Whether its kernel holds a long row in several blocks.
    pieces: ClassVar[bool] = False
    #: How many tensors it returns besides the value, each like the value and of x's dtype: a sum that is kept.
    further: int = 0

    @property
    @abstractmethod
    def hidden(self) -> int:
        """Elements of a token's value."""

    def run(self, quant: GroupQuant) -> int:
        """Elements that a kernel row must hold together: a norm's, or a group's."""
        return quant.group_size

    @property
    def rows(self) -> int:
        """How many of its tensors, the first ones, have an element for each of the value's."""
        return 2

    @property
    def vector(self) -> int:
        """Elements of the weight; 0 if it has none."""
        return 0

    @abstractmethod
    def inputs(self, tokens: int, layout: str, device: str | torch.device, seed: int) -> Tensors:
        """Fresh tensors in bf16: the rows, each [tokens, ...], then the vector if there is one."""

    @abstractmethod
    def reference(self, *tensors: torch.Tensor) -> Tensors:
        """The value [tokens, hidden], and what else it returns, in plain PyTorch."""

    @abstractmethod
    def fused(self, tensors: Tensors, quant: GroupQuant) -> Tensors:
        """Codes, scale, and what else it returns, by the library's op."""

    @abstractmethod
    def launch(self, tensors: Tensors, quant: GroupQuant, outputs: Tensors, config: Any) -> None:
        """Run the library's kernel with the launch configuration `config` into `outputs`, those of `fused`."""

    def choose_launch(self, units: int, unit: int) -> Any:
        """The kernel's own `LaunchConfig` for `units` units of `unit` elements."""
        from fusionlib.kernels.launch import heuristic

        return heuristic(units, unit, torch.device("cuda"))

    def unit(self, quant: GroupQuant) -> int:
        """Elements per kernel row: the fewest that are whole runs and whole groups."""
        return lcm(self.run(quant), quant.group_size)

    def empty_outputs(self, tensors: Tensors, quant: GroupQuant) -> Tensors:
        """Uninitialised codes [tokens, hidden], scale in the layout of `quant`, and what else it returns."""
        x = tensors[0]
        size, stride, dtype = reference.scale_storage(x.shape[0], self.hidden // quant.group_size, quant)
        codes = x.new_empty((x.shape[0], self.hidden), dtype=quant.dtype)
        scale = torch.empty_strided(size, stride, dtype=dtype, device=x.device)
        return codes, scale, *(x.new_empty((x.shape[0], self.hidden)) for _ in range(self.further))

    def bytes(self, tokens: int, quant: GroupQuant) -> Bytes:
        """What one fused call must move: each input once, codes, scales and what else it returns."""
        elements, groups = tokens * self.hidden, self.hidden // quant.group_size
        read = 2 * (self.rows * elements + self.vector)
        return Bytes(read, elements * (quant.dtype.itemsize + 2 * self.further) + 4 * tokens * groups)

    @property
    def writes_every_rounding(self) -> bool:
        """Whether the value is rounded only where it is written: compiled alone it is then eager's, bit for bit."""
        return self.spec.rounding == {"output"}


@dataclass(frozen=True)
class GatedNormProducer(Producer):
    """A gated RMS norm of `heads` heads. `per_element`: a weight for each of a token's elements (the Mamba2 family)."""

    heads: int
    head_dim: int
    spec: GatedNorm
    per_element: bool = False

    name: ClassVar[str] = "gated_norm"
    layouts: ClassVar[tuple[str, ...]] = (PLAIN, STRIDED)

    @property
    def hidden(self) -> int:
        """Elements of all heads."""
        return self.heads * self.head_dim

    def run(self, quant: GroupQuant) -> int:
        """Elements of one norm."""
        return self.spec.norm_size

    @property
    def vector(self) -> int:
        """Elements of the weight."""
        return self.hidden if self.per_element else self.spec.norm_size

    def inputs(self, tokens: int, layout: str, device: str | torch.device, seed: int) -> Tensors:
        """x and gate, both [tokens, ...], and the weight."""
        made = attention_inputs(
            tokens, self.heads, self.head_dim, strided_gate=layout == STRIDED, device=device, seed=seed
        )
        if self.vector == self.head_dim:
            return made.x, made.gate, made.weight
        return made.x, made.gate, attention_inputs(1, 1, self.vector, device=device, seed=seed + 1).weight

    def reference(self, *tensors: torch.Tensor) -> Tensors:
        """The normed value."""
        return (reference.rms_norm_gated(*tensors, self.spec),)

    def fused(self, tensors: Tensors, quant: GroupQuant) -> Tensors:
        """Codes and scale."""
        return op.rms_norm_gated_group_quant(*tensors, norm=self.spec, quant=quant)

    def launch(self, tensors: Tensors, quant: GroupQuant, outputs: Tensors, config: Any) -> None:
        """Into codes and scale."""
        from fusionlib.kernels.launch import launch_fused

        launch_fused(*tensors, None, self.spec, quant, *outputs, None, config)


@dataclass(frozen=True)
class RMSNormProducer(Producer):
    """An RMS norm of a whole row; with `residual`, of its sum with the residual stream, which the next layer reads."""

    spec: RMSNorm
    residual: bool = False

    name: ClassVar[str] = "rms_norm"
    pieces: ClassVar[bool] = True
    layouts: ClassVar[tuple[str, ...]] = (PLAIN,)

    @property
    def further(self) -> int:
        """The sum."""
        return int(self.residual)

    @property
    def rows(self) -> int:
        """x, and the residual."""
        return 1 + self.residual

    @property
    def hidden(self) -> int:
        """Elements of the one norm of a row."""
        return self.spec.norm_size

    def run(self, quant: GroupQuant) -> int:
        """Elements of the norm."""
        return self.spec.norm_size

    @property
    def vector(self) -> int:
        """Elements of the weight."""
        return self.spec.norm_size

    def inputs(self, tokens: int, layout: str, device: str | torch.device, seed: int) -> Tensors:
        """x and residual [tokens, hidden], and the weight [hidden]: near one, or near zero where one is added to it."""
        made = normal(device, seed)
        rows = [made(tokens, self.hidden) for _ in range(self.rows)]
        return *rows, (1 - self.spec.weight_offset) + 0.1 * made(self.hidden)

    def _parted(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        return tensors[0], tensors[1] if self.residual else None, tensors[-1]

    def reference(self, *tensors: torch.Tensor) -> Tensors:
        """The normed value, and the sum."""
        x, residual, weight = self._parted(tensors)
        normed, total = reference.rms_norm(x, weight, self.spec, residual)
        return (normed, total) if self.residual else (normed,)

    def choose_launch(self, units: int, unit: int) -> Any:
        """By the number of rows, where a row is long."""
        from fusionlib.kernels.launch import norm_heuristic

        return norm_heuristic(units, unit, torch.device("cuda"))

    def fused(self, tensors: Tensors, quant: GroupQuant) -> Tensors:
        """Codes, scale, and the sum."""
        x, residual, weight = self._parted(tensors)
        return op.rms_norm_group_quant(
            x, weight, norm=self.spec, quant=quant, residual=residual, return_sum=self.residual
        )

    def launch(self, tensors: Tensors, quant: GroupQuant, outputs: Tensors, config: Any) -> None:
        """Into codes, scale, and the sum."""
        from fusionlib.kernels.launch import launch_rms_norm

        codes, scale, *total = outputs
        launch_rms_norm(
            *self._parted(tensors), None, self.spec, quant, codes, scale, None, total[0] if total else None, config
        )


@dataclass(frozen=True)
class ActAndMulProducer(Producer):
    """An activation of a gate times x. With `heads` 0 both are halves of one projection (an MLP's gate and up).

    Otherwise x is an attention's output, and the gate the second half of each head of a projection, as in Qwen3-Next's
    q_proj.
    """

    size: int  # of a half, or of a head
    spec: ActAndMul
    heads: int = 0

    name: ClassVar[str] = "act_and_mul"
    layouts: ClassVar[tuple[str, ...]] = (STRIDED,)

    @property
    def hidden(self) -> int:
        """Elements of a half, or of all heads."""
        return self.size * (self.heads or 1)

    def inputs(self, tokens: int, layout: str, device: str | torch.device, seed: int) -> Tensors:
        """x and gate: [tokens, size], or [tokens, heads, size]."""
        made = normal(device, seed)
        if not self.heads:
            gate, x = made(tokens, 2 * self.size).chunk(2, dim=-1)
            return x, gate
        return made(tokens, self.heads, self.size), made(tokens, self.heads, 2 * self.size)[..., self.size :]

    def reference(self, *tensors: torch.Tensor) -> Tensors:
        """The product."""
        return (reference.act_and_mul(*tensors, self.spec),)

    def fused(self, tensors: Tensors, quant: GroupQuant) -> Tensors:
        """Codes and scale."""
        return op.act_and_mul_group_quant(*tensors, act=self.spec, quant=quant)

    def launch(self, tensors: Tensors, quant: GroupQuant, outputs: Tensors, config: Any) -> None:
        """Into codes and scale."""
        from fusionlib.kernels.launch import launch_act_and_mul

        launch_act_and_mul(*tensors, self.spec, quant, *outputs, None, config)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a 16-bit tensor as int16, a row per token or, of a vector, as they are."""
    flat = tensor.reshape(tensor.shape[0], prod(tensor.shape[1:])) if tensor.ndim > 1 else tensor
    return flat.view(torch.int16)
