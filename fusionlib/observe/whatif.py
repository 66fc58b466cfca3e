"""What a faster kernel is worth to a model: time saved in a layer x layers / time of a step.

The "1-3 %" of a fusion, made computable. The step's time must come from somewhere: a measurement, or, backwards, from a
claim (`implied_step_us`), which shows what the claim takes for granted. What others measured lies in data/reference,
each file with its source; `read_reference` checks their form.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionlib.observe.ledger import path_bytes
from fusionlib.spec import GatedNorm, GroupQuant


class WhatIfError(ValueError):
    """Numbers that cannot be a what-if, or a reference file of the wrong form: the message says which and why."""


@dataclass(frozen=True)
class Model:
    """How often a model walks the path: `layers` times a step, over rows of heads x head_dim elements a token.

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
        layers: how often a step takes the path.
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
        """Time saved a step; negative if `after_us` is the longer."""
        return (self.before_us - self.after_us) * self.layers

    @property
    def share(self) -> float:
        """Saved time over the step's: by how much time per output token (TPOT) falls, 0.025 being 2.5 %."""
        return self.saved_us / self.step_us

    @property
    def throughput_gain(self) -> float:
        """By how much output throughput rises if nothing else changes: 1 / (1 - share) - 1."""
        return 1.0 / (1.0 - self.share) - 1.0


def implied_step_us(saved_us: float, layers: int, share: float) -> float:
    """The step time for which `saved_us` in each of `layers` is `share` of the step (0 < share < 1)."""
    _positive(saved_us=saved_us, share=share)
    _count(layers=layers)
    if share >= 1:
        raise WhatIfError(f"share={share!r} must be below 1; it is a fraction of the step, 0.025 for 2.5 %")
    return layers * saved_us / share


def share_of_throughput_gain(gain: float) -> float:
    """The share of the step that a throughput gain stands for: 1 - 1 / (1 + gain)."""
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
    """The most that memory traffic alone lets the fusion gain: the ledger's bytes before and after, at a bandwidth.

    `bandwidth_gb_s` is in 1e9 bytes a second. For few tokens the launches saved count for more than the bytes; measure.
    """
    _count(batch_size=batch_size)
    norm, quant = norm or GatedNorm.vllm(model.head_dim), quant or GroupQuant.vllm()
    moved = path_bytes(batch_size, model.heads * model.head_dim, norm, quant)
    before, after = moved.unfused.time_us(bandwidth_gb_s), moved.fused.time_us(bandwidth_gb_s)
    return WhatIf(model.name, batch_size, model.layers, before, after, step_us)


@dataclass(frozen=True)
class Reference:
    """Numbers that somebody else published.

    Args:
        title, url: the source.
        measured_by_this_project: always False; a measurement of ours belongs elsewhere, with its own provenance.
        hardware: as the source names it.
        note: what a reader must know before using a number.
        values: name -> number; the name ends in the unit.
    """

    title: str
    url: str
    measured_by_this_project: bool
    hardware: str
    note: str
    values: dict[str, float]


_FORM = {"title": str, "url": str, "measured_by_this_project": bool, "hardware": str, "note": str, "values": dict}
UNITS = ("_us", "_percent", "_percentage_points", "_count", "_requests")


def read_reference(path: str | Path) -> Reference:
    """Read and check a file of data/reference.

    Raises:
        WhatIfError: if it cannot be read, or a field is missing, unknown or of the wrong form.
    """
    try:
        data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WhatIfError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict) or set(data) != set(_FORM):
        raise WhatIfError(f"{path}: must be an object of exactly {', '.join(_FORM)}")
    for field, kind in _FORM.items():
        if not isinstance(data[field], kind) or (kind is str and not data[field].strip()):
            raise WhatIfError(f"{path}: {field} must be a {kind.__name__} and not empty")
    if data["measured_by_this_project"]:
        raise WhatIfError(f"{path}: measured_by_this_project must be false; a measurement of ours is no reference")
    if not data["url"].startswith("https://"):
        raise WhatIfError(f"{path}: url={data['url']!r} must begin with https://")
    for name, value in data["values"].items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not name.endswith(UNITS) or not number:
            raise WhatIfError(
                f"{path}: {name}={value!r} must be a number, its name ending in one of {', '.join(UNITS)}"
            )
    return Reference(**data)
