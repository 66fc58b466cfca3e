"""Time all, after all were checked: CUDA graph replays, where there is a GPU; the reason why not, where there is none.

Several sets of buffers are walked through, so that a call does not find its inputs in the L2 cache because the call
before it left them there. How many is limited: for the shortest calls part of the bytes still comes from L2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusionlib.observe.ledger import Bytes
from fusionlib.spec import GatedNorm, GroupQuant
from fusionlib.versions.case import require
from fusionlib.versions.registry import VERSIONS, Version

MOST_SETS = 64
QUANTILES = (0.5, 0.2, 0.8)


class CannotTime(RuntimeError):
    """There is nothing here to time on; the message says what is missing."""


@dataclass(frozen=True)
class Timed:
    """One version's time for one call, in microseconds: median, and the quantiles 0.2 and 0.8 of the replays.

    `bytes` are the ones that it must move, `sets` the number of buffer sets that were walked through.
    """

    version: Version
    median_us: float
    low_us: float
    high_us: float
    bytes: Bytes
    sets: int

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
) -> list[Timed]:
    """Time every version on the current GPU; check them first (`check.check_all`).

    `strided_gate` takes the gate out of a projection as Qwen3-Next does; versions that cannot follow it copy it inside
    the timed call.

    Raises:
        CannotTime: without a GPU.
    """
    reason = why_not_here()
    if reason is not None:
        raise CannotTime(f"cannot be timed here: {reason}")
    size = norm.norm_size
    generator = torch.Generator("cuda").manual_seed(seed)
    per_call = sum((part for part in _parts(VERSIONS[-1], tokens, heads, norm, quant, dtype, strided_gate)), Bytes())
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    sets = max(2, min(MOST_SETS, -(-2 * cache // per_call.total)))
    weight = torch.rand(size, generator=generator, device="cuda").to(dtype) + 0.5
    require(norm, quant, weight)
    buffers = [_buffers(tokens, heads, size, quant, strided_gate, dtype, generator) for _ in range(sets)]
    timed = []
    for version in VERSIONS:
        low, median, high = _replay(version, buffers, weight, norm, quant)
        moved = sum(_parts(version, tokens, heads, norm, quant, dtype, strided_gate), Bytes())
        timed.append(Timed(version, median, low, high, moved, sets))
    return timed


def _parts(version, tokens, heads, norm, quant, dtype, strided_gate) -> list[Bytes]:
    hidden = heads * norm.norm_size
    return list(version.parts(tokens, hidden, norm, quant, x_dtype=dtype, strided_gate=strided_gate).values())


def _buffers(tokens, heads, size, quant, strided_gate, dtype, generator) -> tuple[torch.Tensor, ...]:
    x = torch.randn(tokens, heads, size, generator=generator, device="cuda").to(dtype)
    wide = (tokens, heads // 2, 6 * size) if strided_gate else (tokens, heads, size)
    gate = torch.randn(wide, generator=generator, device="cuda").to(dtype)
    if strided_gate:
        gate = gate[..., -2 * size :]
    codes = torch.empty(tokens, heads * size, dtype=quant.dtype, device="cuda")
    return x, gate, codes, torch.empty(tokens, heads, dtype=torch.float32, device="cuda")


def _replay(version: Version, buffers, weight, norm, quant) -> tuple[float, float, float]:
    """Low, median and high of one call, in microseconds."""
    from triton.testing import do_bench_cudagraph

    def call() -> None:
        for x, gate, codes, scale in buffers:
            version.launch_into(x, gate, weight, norm, quant, codes, scale)

    median, low, high = do_bench_cudagraph(call, rep=50, quantiles=list(QUANTILES))
    return tuple(1e3 * milliseconds / len(buffers) for milliseconds in (low, median, high))
