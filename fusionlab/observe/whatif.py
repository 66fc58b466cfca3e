"""What a faster kernel is worth to a model: time saved per layer x layers / time of a step.

This computes the "1-3 %" that a fusion is said to gain. The step's time comes from a measurement or, in reverse, from a
claim (`implied_step_us`), which shows what the claim assumes. Other people's measurements are in data/reference, each
file with its source; `references.read_reference` reads them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fusionlab.observe.byte_ledger import path_bytes
from fusionlib.spec import GatedNorm, GroupQuant


class WhatIfError(ValueError):
    """Numbers that cannot be a what-if: the message says which and why."""


@dataclass(frozen=True)
class Model:
    """How often a model runs the path: `layers` times per step, with rows of heads x head_dim elements per token.

    Args:
        layers: layers with the fused path (linear attention).
        total_layers: all of them.
        heads, head_dim: of the linear attention's value.
        source: where the numbers come from.
    """

    name: str
    layers: int
    total_layers: int
    heads: int
    head_dim: int
    source: str


MODELS = {
    "qwen3_next": Model("Qwen3-Next-80B-A3B", 36, 48, 32, 128, "transformers 5.23, Qwen3NextConfig's defaults"),
}


def _positive(**values: float) -> None:
    for field, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise WhatIfError(f"{field}={value!r} must be a finite number > 0")


def _count(**values: int) -> None:
    for field, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise WhatIfError(f"{field}={value!r} must be a positive integer")


@dataclass(frozen=True)
class WhatIf:
    """A model's step with one path of every layer made faster.

    Args:
        model: its name.
        batch_size: tokens of a decode step, for which the times hold.
        layers: how often a step runs the path.
        before_us, after_us: time of the path in one layer, microseconds.
        step_us: time of the whole step before, microseconds; at least layers x before_us.

    Raises:
        WhatIfError: for counts below 1, times that are not finite and > 0, or a step shorter than the path in it.
    """

    model: str
    batch_size: int
    layers: int
    before_us: float
    after_us: float
    step_us: float

    def __post_init__(self) -> None:
        _count(batch_size=self.batch_size, layers=self.layers)
        _positive(before_us=self.before_us, after_us=self.after_us, step_us=self.step_us)
        if self.layers * self.before_us > self.step_us:
            raise WhatIfError(
                f"step_us={self.step_us} is shorter than its {self.layers} layers of before_us={self.before_us}; "
                "give the time of the whole step, in microseconds"
            )

    @property
    def saved_us(self) -> float:
        """Time saved per step; negative if `after_us` is longer."""
        return (self.before_us - self.after_us) * self.layers

    @property
    def share(self) -> float:
        """Saved time / step time: the reduction of time per output token (TPOT), 0.025 being 2.5 %."""
        return self.saved_us / self.step_us

    @property
    def throughput_gain(self) -> float:
        """The increase of output throughput if nothing else changes: 1 / (1 - share) - 1."""
        return 1.0 / (1.0 - self.share) - 1.0


def implied_step_us(saved_us: float, layers: int, share: float) -> float:
    """The step time for which `saved_us` in each of `layers` is `share` of the step (0 < share < 1)."""
    _positive(saved_us=saved_us, share=share)
    _count(layers=layers)
    if share >= 1:
        raise WhatIfError(f"share={share!r} must be below 1; it is a fraction of the step, 0.025 for 2.5 %")
    return layers * saved_us / share


def share_of_throughput_gain(gain: float) -> float:
    """The share of the step that corresponds to a throughput gain: 1 - 1 / (1 + gain)."""
    _positive(gain=gain)
    return 1.0 - 1.0 / (1.0 + gain)


def from_bandwidth(
    model: Model,
    batch_size: int,
    step_us: float,
    bandwidth_gb_s: float,
    norm: GatedNorm | None = None,
    quant: GroupQuant | None = None,
) -> WhatIf:
    """The fusion's maximum gain from memory traffic alone: the ledger's bytes before and after, at a bandwidth.

    `bandwidth_gb_s` is in 1e9 bytes per second. For few tokens the saved launches matter more than the bytes; measure.
    """
    _count(batch_size=batch_size)
    norm, quant = norm or GatedNorm.vllm(model.head_dim), quant or GroupQuant.vllm()
    moved = path_bytes(batch_size, model.heads * model.head_dim, norm, quant)
    before, after = moved.unfused.time_us(bandwidth_gb_s), moved.fused.time_us(bandwidth_gb_s)
    return WhatIf(model.name, batch_size, model.layers, before, after, step_us)
