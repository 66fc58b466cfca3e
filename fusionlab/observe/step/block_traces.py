"""Traces of one block of each kind: its kernels, and what the step would save without the quantisation's.

A trace has a replay of the linear block, then one of the full block, `REPEATS` times; on a CPU, which has no CUDA graph
and no kernels, a call of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionlab.observe.record import captured, cleaned_trace, profiled
from fusionlab.observe.step.decode_sizes import KINDS
from fusionlab.observe.step.decoder import Decoder
from fusionlab.observe.step.saved_parts import SavedParts, only_moves, quantises_only, saved_parts
from fusionlab.observe.step.step_variants import CompiledBlock
from fusionlab.observe.structure import steps
from fusionlab.observe.trace import Kernel, Trace
from fusionlab.observe.whatif import WhatIf

REPEATS = 2  # the second finds the device awake


def trace_blocks(decoder: Decoder, blocks: Mapping[str, CompiledBlock], device: str, path: Path) -> Trace:
    """Profile one compiled block of each kind on `decoder`'s states, cleaned and written to `path`."""
    calls = [_call(decoder, blocks[kind]) for kind in KINDS]
    if device == "cuda":
        calls = [captured(call) for call in calls]
    return cleaned_trace(profiled(calls * REPEATS, device), path)


def _call(decoder: Decoder, block: CompiledBlock) -> Any:
    index = decoder.first(block.kind)
    layer = decoder.weights.blocks(block.variant.native)[index]
    state, delta, residual = decoder.states[index], decoder.hidden, decoder.hidden.clone()
    return lambda: block.run(layer, delta, residual, *state)


def block_kernels(trace: Trace) -> dict[str, tuple[Kernel, ...]]:
    """The kernels of the last replay of each kind of block, in order; empty on a CPU."""
    return {kind: part.kernels for kind, part in zip(KINDS, steps(trace)[-len(KINDS) :], strict=True)}


def kernel_counts(kernels: Sequence[Kernel]) -> dict[str, int]:
    """How many kernels a block runs, and how many of them only quantise, or only copy or fill memory."""
    return {
        "kernels": len(kernels),
        "quantisations": sum(map(quantises_only, kernels)),
        "copies": sum(map(only_moves, kernels)),
    }


@dataclass(frozen=True)
class Prediction:
    """What a step would save without its quantisation kernels, by the trace of blocks; `measured_us` is what it saved.

    What does not agree is `residual_us`, which `parts` explains where both were traced: a fused kernel does not take
    as long as what it replaces besides the quantisation, which can be more kernels than one.
    """

    whatif: WhatIf
    measured_us: float
    parts: SavedParts | None = None

    @property
    def residual_us(self) -> float:
        """Measured minus predicted: negative where less was saved."""
        return self.measured_us - self.whatif.saved_us

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        return {
            "tokens": self.whatif.batch_size,
            "sites": self.whatif.layers,
            "before_us": self.whatif.before_us,
            "after_us": self.whatif.after_us,
            "step_us": self.whatif.step_us,
            "predicted_us": self.whatif.saved_us,
            "measured_us": self.measured_us,
            "residual_us": self.residual_us,
            "parts": None if self.parts is None else self.parts.as_json(),
        }


def predicted(
    opaque: Mapping[str, Sequence[Kernel]],
    fused: Mapping[str, Sequence[Kernel]],
    layers: Mapping[str, int],
    tokens: int,
    medians_us: Mapping[str, float],
) -> Prediction | None:
    """What the trace of `opaque` predicts for `fused`, beside what was measured; None if there is nothing to compare.

    Args:
        opaque, fused: kind -> kernels in order, of blocks compiled in the two ways.
        layers: how many blocks of each kind the step has.
        medians_us: time of a step by variant.

    Raises:
        WhatIfError: if the kernels' times cannot be those of the step.
    """
    whatif = without_quantisation(opaque, layers, tokens, medians_us["opaque"])
    if whatif is None or "fused" not in medians_us:
        return None
    saved = medians_us["opaque"] - medians_us["fused"]
    return Prediction(whatif, saved, saved_parts(opaque, fused, layers, saved))


def without_quantisation(
    kernels: Mapping[str, Sequence[Kernel]], layers: Mapping[str, int], tokens: int, step_us: float
) -> WhatIf | None:
    """The step of `step_us` without any quantisation kernel: each goes with the gap in front of it.

    Args:
        kernels: of one block of each kind, in order, under `opaque`.
        layers: how many blocks of each kind the step has.

    Returns:
        Per site, the time from the start of the kernel before to the end of the quantisation, and that kernel alone;
        None if there is no such kernel.
    """
    before, after, count = 0.0, 0.0, 0
    for kind, found in kernels.items():
        pairs = [(a, b) for a, b in itertools.pairwise(found) if quantises_only(b)]
        count += layers[kind] * len(pairs)
        before += layers[kind] * sum(quant.end_us - producer.start_us for producer, quant in pairs)
        after += layers[kind] * sum(producer.duration_us for producer, _ in pairs)
    if not count:
        return None
    return WhatIf("Qwen3-Next-like blocks", tokens, count, before / count, after / count, step_us)
