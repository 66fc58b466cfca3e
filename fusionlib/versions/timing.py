"""Time all, after all were checked: CUDA graph replays, where there is a GPU; the reason why not, where there is none.

The clock is the benchmark's (`observe.bench.timer`): so many sets of buffers that no call finds its inputs in the cache
because the call before it left them there. The versions' samples are taken in rounds, so that a GPU that warms up does
so for all of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from fusionlib.observe.bench.timer import GraphTimer, Timer, copies_for, in_rounds
from fusionlib.observe.ledger import Bytes
from fusionlib.spec import GatedNorm, GroupQuant
from fusionlib.versions.case import require
from fusionlib.versions.registry import VERSIONS, Version

ROUNDS = 15


class CannotTime(RuntimeError):
    """There is nothing here to time on; the message says what is missing."""


@dataclass(frozen=True)
class Timed:
    """One version's time for one call, in microseconds: median, and the quantiles 0.2 and 0.8 of the rounds.

    `bytes` are the ones that it must move, `sets` the number of buffer sets that were walked through. Where `version`
    is None, it is the light's time.
    """

    version: Version | None
    median_us: float
    low_us: float
    high_us: float
    bytes: Bytes
    sets: int

    @property
    def name(self) -> str:
        """Number and title of the version."""
        return "the light" if self.version is None else f"{self.version.number} {self.version.title}"

    @property
    def gb_s(self) -> float:
        """Bytes that must move over the median, in 1e9 bytes a second."""
        return self.bytes.total / self.median_us / 1e3


def why_not_here() -> str | None:
    """Why nothing can be timed on this machine; None where it can."""
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
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    timer: Timer | None = None,
    device: str = "cuda",
) -> list[Timed]:
    """Time every version, and the light last, on the current GPU; check them first (`check.check_all`).

    `strided_gate` takes the gate out of a projection as Qwen3-Next does; versions that cannot follow it copy it inside
    the timed call. `timer` and `device` are for another clock than CUDA graphs.

    Raises:
        CannotTime: without a GPU, where no `timer` is given.
    """
    if timer is None:
        reason = why_not_here()
        if reason is not None:
            raise CannotTime(f"cannot be timed here: {reason}")
        timer = GraphTimer()
    contenders = (*VERSIONS, None)
    moved = {
        version: _bytes(version or VERSIONS[-1], tokens, heads, norm, quant, strided_gate, dtype)
        for version in contenders
    }
    sets = copies_for(moved[None].total, timer.l2_bytes)
    generator = torch.Generator(device).manual_seed(seed)
    weight = torch.rand(norm.norm_size, generator=generator, device=device).to(dtype) + 0.5
    require(norm, quant, weight)
    buffers = [_buffers(tokens, heads, norm.norm_size, quant, strided_gate, dtype, generator) for _ in range(sets)]
    handles = {
        version: timer.prepare([_call(version, each, weight, norm, quant) for each in buffers])
        for version in contenders
    }
    quantiles = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    timed = []
    for version, samples in in_rounds(timer, handles, ROUNDS, random.Random(seed)).items():
        low, median, high = torch.tensor(samples, dtype=torch.float64).quantile(quantiles).tolist()
        timed.append(Timed(version, median, low, high, moved[version], sets))
    return timed


def _bytes(
    version: Version, tokens: int, heads: int, norm: GatedNorm, quant: GroupQuant, strided: bool, dtype: torch.dtype
) -> Bytes:
    parts = version.parts(tokens, heads * norm.norm_size, norm, quant, x_dtype=dtype, strided_gate=strided)
    return sum(parts.values(), Bytes())


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


def _call(version: Version | None, buffers: tuple[torch.Tensor, ...], weight, norm: GatedNorm, quant: GroupQuant):
    from fusionlib.observe.bench.light import launch_light

    x, gate, codes, scale = buffers
    launch = launch_light if version is None else version.launch_into
    return lambda: launch(x, gate, weight, norm, quant, codes, scale)
