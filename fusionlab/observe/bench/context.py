"""The call's surroundings: after a kernel that writes x, and before the FP8 GEMM.

Replaying a kernel alone a thousand times hides what it costs between others: its launch, the wait for the previous one,
the state of the cache. So each variant is also timed in a chain, beside the same chain without it (`baseline`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fusionlab.observe.bench.cases import OUT_FEATURES, Case
from fusionlab.observe.bench.measured_producers import Tensors
from fusionlab.observe.bench.variants import Call, Unavailable
from fusionlib.layers import BlockFP8Linear

BASELINE = "baseline"


@dataclass(frozen=True)
class Buffers:
    """One set of a case's tensors. `source` is what the kernel before reads, None if the call stands alone."""

    tensors: Tensors
    source: torch.Tensor | None = None

    @property
    def x(self) -> torch.Tensor:
        """The first tensor, which the kernel before writes."""
        return self.tensors[0]


def gemm_problem(device: torch.device) -> str | None:
    """Why there is no block-scaled FP8 GEMM on `device` to follow the call, or None."""
    if device.type != "cuda":
        return "torch.nn.functional.scaled_mm with 1x128 scales needs a GPU"
    if torch.version.hip or torch.cuda.get_device_capability(device) != (9, 0):
        return "torch.nn.functional.scaled_mm takes 1x128 and 128x128 scales on compute capability 9.0 only"
    return None


def projection(case: Case, device: torch.device, seed: int) -> BlockFP8Linear:
    """The FP8 GEMM after the call: [tokens, hidden] x [hidden, 2048]."""
    generator = torch.Generator(device).manual_seed(seed)
    linear = torch.nn.Linear(case.shape.hidden, OUT_FEATURES, bias=False, device=device, dtype=torch.bfloat16)
    linear.weight.data.normal_(0, case.shape.hidden**-0.5, generator=generator)
    return BlockFP8Linear.from_linear(linear, case.quant).requires_grad_(False)


def in_context(case: Case, call: Call, linear: BlockFP8Linear | None) -> Callable[[Buffers], Any]:
    """`call` with what runs before and after it in `case.context`, as a function of one set of buffers."""
    if case.context == "chain" and linear is None:
        raise Unavailable("no FP8 GEMM to stand behind it")

    def run(buffers: Buffers) -> Any:
        if buffers.source is not None:
            torch.mul(buffers.source, 1.0, out=buffers.x)
        outputs = call(*buffers.tensors)
        if linear is None:
            return outputs
        return *outputs, linear.product(*outputs[:2], torch.bfloat16)

    return run


def baseline(case: Case, outputs: Any, linear: BlockFP8Linear | None) -> Callable[[Buffers], Any]:
    """The same chain without the call: the producer, and the GEMM of precomputed codes and scale (`outputs`)."""

    def run(buffers: Buffers) -> Any:
        torch.mul(buffers.source, 1.0, out=buffers.x)
        return linear.product(*outputs[:2], torch.bfloat16) if linear is not None else None

    return run
