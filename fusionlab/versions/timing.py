"""Time all versions after checking them: CUDA graph replays on a GPU, or else the reason why that is impossible.

The timer is the benchmark's (`observe.bench.timer`): it rotates through so many sets of buffers that no call finds its
inputs in the cache. The versions' samples are taken in rounds, so that a warming GPU affects all of them equally.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fusionlab.observe.bench.results import percentiles
from fusionlab.observe.bench.timer import GraphTimer, Timer, copies_for, in_rounds
from fusionlab.observe.byte_ledger import Bytes
from fusionlab.versions.case import require
from fusionlab.versions.registry import VERSIONS, Version
from fusionlib.contract import amd_arch, unit_size
from fusionlib.devices import threads_per_warp
from fusionlib.spec import GatedNorm, GroupQuant

ROUNDS = 15
WARM_CALLS = 1000  # per graph, if all use one set of buffers, so that the graph's launch is negligible
LIGHT, COPY = "light", "copy"


class CannotTime(RuntimeError):
    """Nothing can be timed here; the message says what is missing."""


@dataclass(frozen=True)
class Timed:
    """One candidate's time per call, in microseconds: the median, and the 10th and 90th percentile of the rounds.

    Args:
        key: `v1` to `v7`, `light`, or `copy` for a device-to-device copy that moves as many bytes.
        median_us, low_us, high_us: the median and the percentiles.
        bytes: what it must move.
        sets: buffer sets that the calls rotate through; 1 if every call finds its inputs in the cache.
    """

    key: str
    median_us: float
    low_us: float
    high_us: float
    bytes: int
    sets: int

    @property
    def version(self) -> Version | None:
        """The version; None for the light and for the copy."""
        return next((version for version in VERSIONS if key_of(version) == self.key), None)

    @property
    def name(self) -> str:
        """Its label for readers."""
        version = self.version
        if version is None:
            return {LIGHT: "the light", COPY: "Tensor.copy_ of as many bytes"}[self.key]
        return f"{version.number} {version.title}"

    @property
    def gb_s(self) -> float:
        """Bytes that must move / median time, in 1e9 bytes per second."""
        return self.bytes / self.median_us / 1e3


def key_of(version: Version) -> str:
    """The version's key: `v4`."""
    return f"v{version.number}"


def why_not_here() -> str | None:
    """Why nothing can be timed on this machine; None if it can."""
    if not torch.cuda.is_available():
        return (
            "no GPU is visible to torch. A Triton kernel's time exists on a GPU only; how long the interpreter takes "
            "on a CPU says nothing about it"
        )
    return None


def time_all(
    tokens: int,
    heads: int,
    norm: GatedNorm,
    quant: GroupQuant,
    *,
    strided_gate: bool = False,
    warm: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    rounds: int = ROUNDS,
    timer: Timer | None = None,
    device: str = "cuda",
) -> list[Timed]:
    """Time every version, then the light and a copy, on the current GPU; check them first (`check.check_all`).

    With `strided_gate` the gate is a slice of a projection as in Qwen3-Next; versions that do not support it copy it
    inside the timed call. `warm` gives every call the same buffers, as in a careless measurement. `timer` and `device`
    replace timing with CUDA graphs.

    Raises:
        CannotTime: without a GPU, if no `timer` is given.
    """
    if timer is None:
        reason = why_not_here()
        if reason is not None:
            raise CannotTime(f"cannot be timed here: {reason}")
        timer = GraphTimer()
    generator = torch.Generator(device).manual_seed(seed)
    weight = torch.rand(norm.norm_size, generator=generator, device=device).to(dtype) + 0.5
    require(norm, quant, weight)
    moved = {key_of(version): _bytes(version, tokens, heads, norm, quant, strided_gate, dtype) for version in VERSIONS}
    moved[LIGHT] = moved[COPY] = moved[key_of(VERSIONS[-1])]
    sets = 1 if warm else copies_for(moved[LIGHT], timer.l2_bytes)
    buffers = [_buffers(tokens, heads, norm.norm_size, quant, strided_gate, dtype, generator) for _ in range(sets)]
    repeated = buffers * WARM_CALLS if warm else buffers
    calls = {key_of(version): _call(version, weight, norm, quant) for version in VERSIONS}
    calls[LIGHT] = _call(None, weight, norm, quant)
    handles = {key: timer.prepare([make(each) for each in repeated]) for key, make in calls.items()}
    halves = [_halves(moved[COPY], device) for _ in range(sets)]
    handles[COPY] = timer.prepare([_copy(*each) for each in (halves * WARM_CALLS if warm else halves)])
    timed = []
    for key, samples in in_rounds(timer, handles, rounds, random.Random(seed)).items():
        median, low, high = percentiles(samples)
        timed.append(Timed(key, median, low, high, moved[key], sets))
    return timed


def _bytes(
    version: Version, tokens: int, heads: int, norm: GatedNorm, quant: GroupQuant, strided: bool, dtype: torch.dtype
) -> int:
    parts = version.parts(tokens, heads * norm.norm_size, norm, quant, x_dtype=dtype, strided_gate=strided)
    return sum(parts.values(), Bytes()).total


def _buffers(
    tokens: int,
    heads: int,
    size: int,
    quant: GroupQuant,
    strided_gate: bool,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> tuple[torch.Tensor, ...]:
    """x, gate, codes and scale of one call."""
    device = generator.device
    x = torch.randn(tokens, heads, size, generator=generator, device=device).to(dtype)
    wide = (tokens, heads // 2, 6 * size) if strided_gate else (tokens, heads, size)
    gate = torch.randn(wide, generator=generator, device=device).to(dtype)
    if strided_gate:
        gate = gate[..., -2 * size :]
    codes = torch.empty(tokens, heads * size, dtype=quant.dtype, device=device)
    return x, gate, codes, torch.empty(tokens, heads, dtype=torch.float32, device=device)


def _halves(moved: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and source of a copy that moves `moved` bytes: half of them read, half written."""
    return tuple(torch.empty(moved // 2, dtype=torch.uint8, device=device) for _ in range(2))


def _copy(target: torch.Tensor, source: torch.Tensor) -> Callable[[], Any]:
    return lambda: target.copy_(source)


def _call(
    version: Version | None, weight: torch.Tensor, norm: GatedNorm, quant: GroupQuant
) -> Callable[[tuple[torch.Tensor, ...]], Callable[[], Any]]:
    """Buffers -> a call of `version` on them, or of the light if `version` is None."""
    if version is None:
        return _light(weight, norm, quant)

    def on(buffers: tuple[torch.Tensor, ...]) -> Callable[[], Any]:
        x, gate, codes, scale = buffers
        return lambda: version.launch_into(x, gate, weight, norm, quant, codes, scale)

    return on


def _light(
    weight: torch.Tensor, norm: GatedNorm, quant: GroupQuant
) -> Callable[[tuple[torch.Tensor, ...]], Callable[[], Any]]:
    """Buffers -> a call of the light, launched as our kernel would be."""
    from fusionlab.observe.bench.light import launch_light
    from fusionlib.kernels.config import choose_launch

    def on(buffers: tuple[torch.Tensor, ...]) -> Callable[[], Any]:
        x, gate, *outputs = buffers
        unit = unit_size(norm, quant)
        config = choose_launch(outputs[0].numel() // unit, unit, threads_per_warp(amd_arch()))
        return lambda: launch_light((x, gate), weight, norm.norm_size, quant, outputs, config)

    return on
