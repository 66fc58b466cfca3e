"""Where a step saved more or less than its quantisation kernels' time: the traces of opaque and fused blocks, compared.

Kernels of the two are matched in order, by name. A quantisation goes with the gap in front of it; what else only the
opaque block runs was replaced by what only the fused block runs; all others are the same kernel in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any

from fusionlab.observe.trace import Kernel

QUANT_KERNEL = "group_quant_kernel"
#: What copies or fills memory and computes nothing: a graph's own nodes, and PyTorch's kernels for it.
_MOVES = re.compile(r"\b(FillFunctor|direct_copy_kernel)")


def quantises_only(kernel: Kernel) -> bool:
    """Whether it is a quantisation by itself; a fused kernel is named after its producer first."""
    return kernel.name.startswith(QUANT_KERNEL)


def only_moves(kernel: Kernel) -> bool:
    """Whether it is a copy or a fill."""
    return kernel.category != "kernel" or bool(_MOVES.search(kernel.name))


@dataclass(frozen=True)
class SavedParts:
    """What a step saved, in parts that add up to the measured saving; microseconds of a whole step, negative if lost.

    Args:
        quantised_us: quantisation kernels; gaps_us: the gaps in front of them. Together they are what is predicted.
        replaced_us, replaced: other kernels that only the opaque blocks run, and how many a step runs.
        fused_us, fused: kernels that only the fused blocks run; they do the replaced ones' work, and quantise.
        shared_us: kernels that both run, the opaque blocks' time minus the fused ones'.
        other_gaps_us: all other gaps, in the same way.
        unseen_us: what was measured of the step and is not in the traces: the gaps between blocks, and whatever varies
            from replay to replay, since a trace stands for all blocks of a kind with one.
    """

    quantised_us: float
    gaps_us: float
    replaced_us: float
    fused_us: float
    shared_us: float
    other_gaps_us: float
    unseen_us: float
    replaced: int
    fused: int

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        return asdict(self)


Blocks = Mapping[str, Sequence[Kernel]]


def saved_parts(opaque: Blocks, fused: Blocks, layers: Mapping[str, int], measured_us: float) -> SavedParts | None:
    """The parts of `measured_us`, from the kernels of one block of each kind.

    Args:
        opaque, fused: kind -> kernels in order, of blocks compiled in the two ways.
        layers: how many blocks of each kind a step has.
        measured_us: how much faster the fused step is.

    Returns:
        None if a trace has no kernels.
    """
    if not all(blocks.get(kind) for blocks in (opaque, fused) for kind in layers):
        return None
    sums = dict.fromkeys(("quantised", "gaps", "replaced", "fused", "shared", "other_gaps"), 0.0)
    counts = {"replaced": 0, "fused": 0}
    for kind, count in layers.items():
        before, after = opaque[kind], fused[kind]
        removed = [index for index in range(1, len(before)) if quantises_only(before[index])]
        replaced, made = _unmatched([k for i, k in enumerate(before) if i not in removed], after)
        quantised = sum(before[index].duration_us for index in removed)
        gaps = sum(before[index].start_us - _end(before[index - 1]) for index in removed)
        shared = _busy(before) - quantised - _busy(replaced) - (_busy(after) - _busy(made))
        other_gaps = _gaps(before) - gaps - _gaps(after)
        found = (quantised, gaps, _busy(replaced), _busy(made), shared, other_gaps)
        for name, value in zip(sums, found, strict=True):
            sums[name] += count * value
        counts["replaced"] += count * len(replaced)
        counts["fused"] += count * len(made)
    seen = sum(sums.values()) - 2 * sums["fused"]
    named = {f"{name}_us": value for name, value in sums.items()}
    return SavedParts(**named, unseen_us=measured_us - seen, **counts)


def _unmatched(before: Sequence[Kernel], after: Sequence[Kernel]) -> tuple[list[Kernel], list[Kernel]]:
    """The kernels of each that have no counterpart of the same name in the other, in order."""
    names = [[re.sub(r"_\d+$", "", kernel.name) for kernel in kernels] for kernels in (before, after)]
    removed, added = [], []
    for tag, i, j, k, m in SequenceMatcher(None, *names, autojunk=False).get_opcodes():
        if tag != "equal":
            removed += before[i:j]
            added += after[k:m]
    return removed, added


def _end(kernel: Kernel) -> float:
    return kernel.start_us + kernel.duration_us


def _busy(kernels: Sequence[Kernel]) -> float:
    return sum(kernel.duration_us for kernel in kernels)


def _gaps(kernels: Sequence[Kernel]) -> float:
    """From the first start to the last end, without the kernels themselves."""
    return _end(kernels[-1]) - kernels[0].start_us - _busy(kernels)
