"""Axes of a still picture: mapping values to pixels, ticks, and what is drawn of an axis."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))


@dataclass
class Axis:
    """One axis: its plotly layout, the categories or values on it, and its ends in pixels.

    `low` and `high` are its range in its own unit: exponents of ten on a logarithmic axis, indices on a category axis.
    """

    name: str
    layout: dict[str, Any]
    values: list[Any] = field(default_factory=list)
    low: float = 0.0
    high: float = 1.0
    start: float = 0.0
    end: float = 1.0

    @property
    def log(self) -> bool:
        """Whether it is logarithmic."""
        return self.layout.get("type") == "log"

    @property
    def categories(self) -> list[str]:
        """The names on it, in order of appearance; empty on a numeric axis."""
        return list(dict.fromkeys(value for value in self.values if isinstance(value, str)))

    @property
    def shown(self) -> bool:
        """Whether any part of it is drawn."""
        return self.layout.get("visible", True)

    def place(self, value: Any) -> float:
        """`value` in the axis's own unit."""
        if isinstance(value, str):
            return float(self.categories.index(value))
        return math.log10(value) if self.log else float(value)

    def pixel(self, value: Any) -> float:
        """Where `value` is."""
        return self.at(self.place(value))

    def at(self, place: float) -> float:
        """Where a place in the axis's own unit is."""
        return self.start + (self.end - self.start) * (place - self.low) / (self.high - self.low)

    def fit(self, shared: Iterable[Any], bars: bool) -> None:
        """Choose the range: the layout's own, or one around the values that axes with this one share."""
        given, values = self.layout.get("range"), list(shared)
        if given is not None:
            self.low, self.high = map(float, given)
        elif any(isinstance(value, str) for value in values):
            self.values = values
            self.low, self.high = -0.5, len(self.categories) - 0.5
        else:
            places = [self.place(v) for v in values if v is not None and math.isfinite(v) and (v > 0 or not self.log)]
            low, high = (min(places), max(places)) if places else (0.0, 1.0)
            anchored = not self.log and (bars or self.layout.get("rangemode") == "tozero")
            if anchored:
                low, high = min(low, 0.0), max(high, 0.0)
            spare = 0.06 * (high - low) or 0.5
            self.low = low if anchored and low == 0.0 < high else low - spare
            self.high = high if anchored and high == 0.0 > low else high + spare
        if self.layout.get("autorange") == "reversed":
            self.low, self.high = self.high, self.low

    def ticks(self) -> list[tuple[float, str]]:
        """Places with their labels, within the range."""
        low, high = sorted((self.low, self.high))
        labelled = self._ticks(low, high)
        return [(place, label) for place, label in labelled if low - 1e-9 <= place <= high + 1e-9]

    def _ticks(self, low: float, high: float) -> list[tuple[float, str]]:
        given = self.layout.get("tickvals")
        if given is not None:
            labels = self.layout.get("ticktext", given)
            return [(self.place(value), str(label)) for value, label in zip(given, labels, strict=True)]
        if self.categories:
            return [(float(place), name) for place, name in enumerate(self.categories)]
        if self.log:
            return [(math.log10(value), self._label(value)) for value in self._decades(low, high)]
        return [(value, self._label(value)) for value in self._steps(low, high)]

    def _decades(self, low: float, high: float) -> list[float]:
        digits = (1,) if self.layout.get("dtick") == 1 else (1, 2, 5)
        powers = range(math.floor(low), math.ceil(high) + 1)
        return [digit * 10.0**power for power in powers for digit in digits]

    def _steps(self, low: float, high: float) -> list[float]:
        many = self.layout.get("nticks", max(2.0, abs(self.end - self.start) / 70))
        apart = self.layout.get("dtick") or _nice((high - low) / many)
        first = math.ceil(low / apart - 1e-9)
        return [round(step * apart, 12) for step in range(first, math.floor(high / apart + 1e-9) + 1)]

    def _label(self, value: float) -> str:
        if self.layout.get("exponentformat") == "SI" and value:
            size, unit = next((s, u) for s, u in SI if abs(value) >= s * (1 - 1e-12) or s == SI[-1][0])
            return f"{value / size:g}{unit}"
        text = f"{value:.0f}" if abs(value) >= 1e5 else f"{value:g}"
        return text.replace("-", "−") + self.layout.get("ticksuffix", "")


def _nice(step: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))


def numbers(values: Any) -> Sequence[Any]:
    """A trace's values as a list: plotly keeps tuples and arrays, or an array's bytes."""
    if values is None:
        return []
    if isinstance(values, Mapping):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()
    return values.tolist() if hasattr(values, "tolist") else list(values)
