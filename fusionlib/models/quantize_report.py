"""What `quantize_linears` did with each layer, in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fusionlib.module_paths import numberless


@dataclass(frozen=True)
class Replaced:
    """A layer that is block-FP8 now: its name, sizes, the class that it had, and what was padded, if anything was."""

    name: str
    in_features: int
    out_features: int
    was: str
    padded: str = ""

    def __str__(self) -> str:
        note = f"; {self.padded}" if self.padded else ""
        return f"[{self.out_features}, {self.in_features}] from {self.was}{note}"


@dataclass(frozen=True)
class Left:
    """A layer that was left as it is, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class QuantizeReport:
    """All layers of a model, in its order. `str(report)` has one line for the same layer of all blocks.

    `bytes_before` and `bytes_after` are those of the weights and scales of the replaced layers.
    """

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    bytes_before: int = 0
    bytes_after: int = 0

    @property
    def summary(self) -> str:
        """One line: how many layers, and their memory."""
        memory = f"{self.bytes_before / 2**20:,.1f} MiB are {self.bytes_after / 2**20:,.1f} MiB now"
        layers = f"{len(self.replaced)} linear layer{'s' * (len(self.replaced) != 1)}"
        return f"{layers} in block-FP8, {len(self.left)} left; {memory}"

    def __str__(self) -> str:
        lines = [self.summary]
        for word, entries in (("block-FP8", self.replaced), ("left", self.left)):
            counted = Counter((numberless(entry.name), str(entry)) for entry in entries)
            lines += [
                f"{word:<9} {name}{f' x {count}' * (count > 1)}: {text}" for (name, text), count in counted.items()
            ]
        return "\n".join(lines)
