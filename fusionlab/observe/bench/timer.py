"""How long a call takes on a GPU: CUDA-graph replays over rotating buffers.

A call is captured once for each set of buffers, and a *cycle* replays them all. The sets together are `ROTATION` times
the L2 cache, so that no call finds its inputs, or its outputs' lines, in the cache. Outputs are kept while a graph
lives: a freed block would be reused by the next call, and its stores would hit the cache.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)

ROTATION = 2.0  # size of the buffers not in use, in multiples of L2
CALLS_PER_GRAPH = 2000
MOST_COPIES = 20_000
LEAST_SAMPLE_US = 500.0  # a thousand times the resolution of an event

#: How often a variant's step is captured, each time into memory of its own. A product is a per cent or two faster or
#: slower by where its operands lie, which a single capture would give to one variant and not to another.
CAPTURES = 5


def copies_for(bytes_per_call: int, l2_bytes: int) -> int:
    """How many sets of buffers a cycle needs: all but one together are `ROTATION` times L2; at least 2.

    Raises:
        ValueError: for bytes that are not positive.
    """
    if bytes_per_call < 1:
        raise ValueError(f"bytes_per_call={bytes_per_call} must be positive")
    return min(MOST_COPIES, max(2, math.ceil(ROTATION * l2_bytes / bytes_per_call) + 1))


def last_level_cache(properties: Any) -> int:
    """Bytes of the largest cache in front of memory, from torch's device properties.

    AMD's CDNA3 and CDNA4 have 256 MB of Infinity Cache behind the L2 that torch reports (AMD's CDNA3 white paper).
    """
    arch = getattr(properties, "gcnArchName", "")
    return max(properties.L2_cache_size, 256 << 20) if arch.startswith(("gfx94", "gfx95")) else properties.L2_cache_size


class Timer(Protocol):
    """What the benchmark needs from a device; tests have their own implementation."""

    #: Size of the last-level cache, bytes.
    l2_bytes: int

    def prepare(self, calls: Sequence[Callable[[], Any]]) -> Any:
        """Prepare to run `calls`, one for each set of buffers, in order; returns a handle."""

    def sample(self, handle: Any) -> float:
        """Microseconds of one call, averaged over one cycle (or several, if a cycle is too short to time)."""

    def release(self) -> None:
        """Called between cases, when prepared handles are no longer needed."""


def in_rounds(timer: Timer, handles: Mapping[Key, Any], rounds: int, order: random.Random) -> dict[Key, list[float]]:
    """`rounds` samples of each handle, in a new order each round, so that a warming GPU affects all equally."""
    samples: dict[Key, list[float]] = {key: [] for key in handles}
    keys = list(handles)
    for _ in range(rounds):
        order.shuffle(keys)
        for key in keys:
            samples[key].append(timer.sample(handles[key]))
    return samples


def samples_of_captures(
    timer: Timer,
    steps: Mapping[str, Callable[[], Any]],
    captures: int,
    rounds: int,
    order: random.Random,
    failed: Callable[[str, Exception], None],
) -> dict[str, list[float]]:
    """Samples of each step of a model, interleaved, from `captures` captures of it.

    Args:
        steps: variant -> a step; one that cannot be captured is given to `failed` and left out.
    """
    handles: dict[tuple[str, int], Any] = {}
    for name, step in steps.items():
        try:
            handles |= {(name, number): timer.prepare([step]) for number in range(captures)}
        except (RuntimeError, torch.OutOfMemoryError) as error:
            failed(name, error)
    samples: dict[str, list[float]] = {}
    for (name, _), taken in in_rounds(timer, handles, rounds, order).items():
        samples.setdefault(name, []).extend(taken)
    return samples


@dataclass
class _Cycle:
    """The captured graphs of one variant, the outputs they write, and how often a sample replays them."""

    graphs: list[torch.cuda.CUDAGraph]
    outputs: list[Any]
    calls: int
    repeats: int = 1


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python from freeing CUDA objects during a graph capture, which would abort it.

    `torch.cuda.graph` instead collects garbage and empties the allocator's cache before each capture; a run captures
    thousands of times.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class GraphTimer:
    """Times on the current GPU with CUDA graphs; ROCm's PyTorch has them under the same names."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.l2_bytes: int = last_level_cache(properties)
        self.stream = torch.cuda.Stream()

    def prepare(self, calls: Sequence[Callable[[], Any]]) -> _Cycle:
        """Warm up, capture, and determine how many cycles make a sample."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(self.stream):
            for call in calls[:3]:  # compiles
                call()
        self.stream.synchronize()
        cycle = _Cycle([], [], len(calls))
        with torch.no_grad(), torch.cuda.stream(self.stream), _without_collection():
            for first in range(0, len(calls), CALLS_PER_GRAPH):
                graph = torch.cuda.CUDAGraph()
                graph.capture_begin()
                try:
                    cycle.outputs += [call() for call in calls[first : first + CALLS_PER_GRAPH]]
                except BaseException:
                    with suppress(RuntimeError):  # the aborted capture is a consequence; the original error is raised
                        graph.capture_end()
                    raise
                graph.capture_end()
                cycle.graphs.append(graph)
        self._run(cycle)
        elapsed = max(self._run(cycle), 1e-3)
        cycle.repeats = max(1, math.ceil(LEAST_SAMPLE_US / elapsed))
        return cycle

    def sample(self, handle: _Cycle) -> float:
        """Microseconds per call over `handle.repeats` cycles."""
        return self._run(handle) / (handle.repeats * handle.calls)

    def release(self) -> None:
        """Release the memory of deleted graphs; each has its own pool."""
        gc.collect()
        torch.cuda.empty_cache()

    def _run(self, cycle: _Cycle) -> float:
        """Microseconds of `cycle.repeats` cycles."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self.stream):
            # The clock must not start before the launch queue is filled. This replays the last graph, because the cycle
            # reaches its buffers last: no timed call finds them in the cache.
            cycle.graphs[-1].replay()
            start.record()
            for _ in range(cycle.repeats):
                for graph in cycle.graphs:
                    graph.replay()
            end.record()
        self.stream.synchronize()
        return start.elapsed_time(end) * 1e3
