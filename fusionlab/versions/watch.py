"""One program at work: what it reads and writes, and what its variables hold, line by line.

Triton's interpreter runs a kernel as Python, one program after the other, so its loads and stores can be recorded and
its variables read. It teaches the algorithm, but does not give the hardware's bits: it truncates float32 to bf16 where
the hardware rounds to nearest, some of its FP8 casts differ, and its sums have another order. `View` counts how many
codes differ because of this, so that nobody confuses the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusionlab.versions.registry import VERSIONS, Version
from fusionlab.versions.subprocess_interpreter import ask
from fusionlib.spec import GatedNorm, GroupQuant


@dataclass(frozen=True)
class Access:
    """One load or store of one program: which elements of an argument it touches.

    Args:
        kernel, program: which program of which kernel.
        kind: `load` or `store`.
        argument: `x`, `gate`, `weight`, `codes` or `scale` (`normed` in version 1).
        element_bytes: bytes per element.
        runs: (first offset, length) in elements of the argument, ascending; adjacent ones are merged.
    """

    kernel: str
    program: int
    kind: str
    argument: str
    element_bytes: int
    runs: tuple[tuple[int, int], ...]

    @property
    def elements(self) -> int:
        """The number of distinct elements."""
        return sum(length for _, length in self.runs)

    @property
    def first(self) -> int:
        """The lowest offset."""
        return self.runs[0][0]


@dataclass(frozen=True)
class Step:
    """An assignment to a variable: the line and function, and the value, flattened, if it is small."""

    line: int
    source: str
    function: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    values: tuple[float, ...] | None

    def tensor(self) -> torch.Tensor:
        """The value in its shape: float32, or int64 for integers."""
        if self.values is None:
            raise ValueError(f"{self.name} of shape {self.shape} was not kept; it is a pointer or too large")
        return torch.tensor(self.values, dtype=torch.float32 if self.dtype.startswith(("fp", "bf")) else None).view(
            self.shape
        )


@dataclass(frozen=True)
class View:
    """A launch seen from inside: the accesses of all programs, and the steps of one.

    `unlike_the_reference` of `codes` codes differ from the reference, because of the interpreter.
    """

    version: Version
    program: int
    programs: int
    accesses: tuple[Access, ...]
    steps: tuple[Step, ...]
    codes: int
    unlike_the_reference: int

    def of(self, program: int | None = None) -> tuple[Access, ...]:
        """The accesses of one program, in order; by default the one whose steps were kept."""
        chosen = self.program if program is None else program
        return tuple(access for access in self.accesses if access.program == chosen)

    def last(self, name: str) -> Step:
        """The last assignment to a variable of this name, in any function."""
        found = [step for step in self.steps if step.name == name]
        if not found:
            names = ", ".join(dict.fromkeys(step.name for step in self.steps))
            raise KeyError(f"no variable {name!r}; there are {names}")
        return found[-1]


def watch(
    version: Version,
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    norm: GatedNorm,
    quant: GroupQuant,
    *,
    program: int = 0,
    rows: int = 16,
    num_warps: int = 8,
) -> View:
    """Run `version` in the interpreter and record `program`; of version 1, both kernels.

    Args:
        version: one of `VERSIONS`.
        x, gate, weight, norm, quant: as in `Version.run`; a few tokens are enough and fast.
        program: whose variables are kept.
        rows, num_warps: the launch of version 7; the other versions have their own.

    Raises:
        InterpreterError: if the interpreter's process fails, for example for a program that does not exist.
    """
    if version not in VERSIONS:
        raise ValueError(f"version={version!r} is none of VERSIONS")
    told = ask(
        "watch",
        x,
        gate,
        weight,
        norm,
        quant,
        version=version.name,
        program=program,
        rows=rows,
        num_warps=num_warps,
    )
    accesses = tuple(Access(**{**access, "runs": tuple(map(tuple, access["runs"]))}) for access in told.pop("accesses"))
    steps = tuple(
        Step(**{**s, "shape": tuple(s["shape"]), "values": None if s["values"] is None else tuple(s["values"])})
        for s in told.pop("steps")
    )
    return View(
        version=version,
        program=program,
        programs=told["programs"],
        accesses=accesses,
        steps=steps,
        codes=told["codes"],
        unlike_the_reference=told["codes_unlike_the_reference"],
    )
