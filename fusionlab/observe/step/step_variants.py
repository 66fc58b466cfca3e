"""The ways of compiling a block that a step is measured with, and whether each fused what it should.

    opaque      what an engine has: Inductor, and the quantisation an opaque op that it cannot see into
    inductor    the quantisation in plain PyTorch, all of it left to Inductor
    gated_norm  `opaque` with the gated norm's fusion alone
    fused       `opaque` with all built-in fusions: `FusionPass()` as it is

A block of each kind is compiled once, and the same code runs for all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fusionlab.observe.record import own_code
from fusionlab.observe.step.blocks import Block, Result
from fusionlab.observe.step.decode_sizes import FULL, LINEAR
from fusionlib.fusions import BUILT_IN, Fusion
from fusionlib.rewrite import FusionPass
from fusionlib.testing.roundings import roundings_kept

DEVICES = ("cpu", "cuda")

#: The sites of a block that each fusion can take, by the fusion's name.
SITES = {
    LINEAR: {"gated_norm": 1, "rms_norm": 2, "act_and_mul": 1},
    FULL: {"rms_norm": 2, "act_and_mul": 1, "sigmoid_gate": 1},
}


@dataclass(frozen=True)
class StepVariant:
    """One way of compiling a block.

    Args:
        name: the key of `STEP_VARIANTS`; label: what a table calls it.
        native: the quantisation is plain PyTorch.
        fusions: of the pass; None for no pass.
    """

    name: str
    label: str
    native: bool = False
    fusions: tuple[Fusion, ...] | None = None

    def make_pass(self) -> FusionPass | None:
        """A new pass, None for a variant without."""
        return None if self.fusions is None else FusionPass(devices=DEVICES, fusions=self.fusions)

    def expected(self, kind: str) -> dict[str, int]:
        """How many sites of a block of `kind` each of its fusions must fuse."""
        names = {fusion.name for fusion in self.fusions or ()}
        return {name: count for name, count in SITES[kind].items() if name in names}


STEP_VARIANTS = {
    variant.name: variant
    for variant in (
        StepVariant("opaque", "quantisation opaque"),
        StepVariant("inductor", "Inductor alone", native=True),
        StepVariant(
            "gated_norm",
            "gated norm fused",
            fusions=tuple(fusion for fusion in BUILT_IN if fusion.name == "gated_norm"),
        ),
        StepVariant("fused", "all fused", fusions=BUILT_IN),
    )
}


@dataclass(frozen=True)
class CompiledBlock:
    """A compiled block of one kind, and the pass that saw its graph."""

    variant: StepVariant
    kind: str
    run: Callable[..., Result]
    fusion: FusionPass | None

    def problem(self) -> str | None:
        """Why the pass did not do what it must, after the first call; None if it did or there is none."""
        if self.fusion is None:
            return None
        report, expected = self.fusion.report(), self.variant.expected(self.kind)
        if len(report.compiles) != 1 and expected:
            return f"{len(report.compiles)} graphs of a {self.kind} block came to the pass, where 1 was expected"
        if report.fused_by != expected:
            return f"a {self.kind} block fused {report.fused_by}, where {expected} was expected:\n{report}"
        return None


def compile_block(variant: StepVariant, kind: str) -> CompiledBlock:
    """A block's forward under `variant`, compiled at its first call."""

    def run(block: Block, delta: torch.Tensor, residual: torch.Tensor, *state: torch.Tensor) -> Result:
        return block(delta, residual, *state)

    fusion = variant.make_pass()
    return CompiledBlock(variant, kind, compiled(run, fusion), fusion)


@contextmanager
def eager_roundings() -> Iterator[None]:
    """Compile with every rounding to bf16 that eager performs: Inductor otherwise computes on in float32."""
    from torch._inductor import config

    with roundings_kept(), config.patch(emulate_precision_casts=True):
        yield


def compiled(function: Any, fusion: FusionPass | None) -> Callable[..., Any]:
    """`function` compiled as one graph for the sizes that it is called with, and `fusion` in the compile."""
    options = {} if fusion is None else {"post_grad_custom_pre_pass": fusion}
    return torch.compile(own_code(function), dynamic=False, fullgraph=True, options=options)
