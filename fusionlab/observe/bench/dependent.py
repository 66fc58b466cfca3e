"""Programmatic dependent launch in a chain: what starting the next kernel early can save after an ordinary producer.

An experiment: the consumer is the light, so it shows what the launch alone can save. It waits for the producer
(`griddepcontrol.wait`) before its first load; the producer lets it start once each of its programs has begun
(`griddepcontrol.launch_dependents`). Both are in `tl.extra.cuda` of Triton 3.6 and 3.7, and the launch option is
`launch_pdl=True`: NVIDIA, compute capability 9.0 and newer. A kernel that follows *itself* looks much faster this way,
which says nothing about a model, where another kernel precedes it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from fusionlab.observe.bench.cases import BASE, SHAPES, Case
from fusionlab.observe.bench.results import percentiles
from fusionlab.observe.bench.run import Settings, make_buffers
from fusionlab.observe.bench.timer import Timer, copies_for, in_rounds
from fusionlab.observe.bench.variants import light_call

BLOCK = 2048


@triton.jit
def producer_kernel(source_ptr, target_ptr, elements, BLOCK: tl.constexpr, SIGNAL: tl.constexpr):
    """Copy `elements` 16-bit values: an ordinary kernel that writes x."""
    if SIGNAL:
        tl.extra.cuda.gdc_launch_dependents()
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < elements
    tl.store(target_ptr + offset, tl.load(source_ptr + offset, mask=mask), mask=mask)


def launch_producer(source: torch.Tensor, target: torch.Tensor, *, signal: bool = False) -> None:
    """Copy `source` to `target` (both contiguous, 16-bit); with `signal` the next kernel may start in the meantime."""
    grid = (triton.cdiv(source.numel(), BLOCK),)
    producer_kernel[grid](
        source.view(torch.int16), target.view(torch.int16), source.numel(), BLOCK=BLOCK, SIGNAL=signal, num_warps=4
    )


def dependent_problem() -> str | None:
    """Why programmatic dependent launch is unavailable here, or None."""
    if not torch.cuda.is_available():
        return "programmatic dependent launch needs a GPU"
    if torch.version.hip or torch.cuda.get_device_capability() < (9, 0):
        return "programmatic dependent launch needs an NVIDIA GPU of compute capability 9.0 or newer"
    return None


def measure(timer: Timer, settings: Settings, tokens: Sequence[int] = (1, 64, 256)) -> list[dict[str, Any]]:
    """Time producer and light with and without dependent launch, interleaved; microseconds per pair, by tokens."""
    found = []
    for count in tokens:
        case = Case(SHAPES[BASE], count, context="producer")
        buffers = make_buffers(case, copies_for(case.bytes().total, timer.l2_bytes), settings)
        handles = {
            name: timer.prepare([_pair(case, buffer, dependent) for buffer in buffers])
            for name, dependent in (("plain", False), ("dependent", True))
        }
        samples = in_rounds(timer, handles, settings.rounds, random.Random(settings.seed))
        entry: dict[str, Any] = {"tokens": count}
        for name, taken in samples.items():
            entry[f"{name}_us"], entry[f"{name}_p10_us"], entry[f"{name}_p90_us"] = percentiles(taken)
        found.append(entry)
        handles.clear()
        timer.release()
    return found


def _pair(case: Case, buffer: Any, dependent: bool):
    light = light_call(case, dependent=dependent)

    def pair():
        launch_producer(buffer.source, buffer.x, signal=dependent)
        return light(buffer.x, buffer.gate, buffer.weight)

    return pair
