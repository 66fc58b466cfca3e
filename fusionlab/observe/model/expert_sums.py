"""One kernel in several compiles: the sum over a token's experts, which Inductor tunes anew in each, by the clock."""

from __future__ import annotations

from dataclasses import dataclass

from fusionlab.observe.model.recorded_model import RecordedModel
from fusionlab.observe.model.workload import Workload


@dataclass(frozen=True)
class ExpertSum:
    """The kernel that sums the outputs of a token's experts, in one variant's step.

    Args:
        workload, variant: what was run, and how it was compiled.
        with_shared: whether it also adds the shared expert; otherwise a later kernel does.
        calls: how many of them the step runs.
        us: microseconds of one call.
    """

    workload: Workload
    variant: str
    with_shared: bool
    calls: int
    us: float


def expert_sums(recorded: RecordedModel) -> list[ExpertSum]:
    """Every such kernel of a run, by workload and variant; none where no names were recorded.

    Inductor names a kernel after the ops in it, in alphabetical order: this one gathers each token's rows (`index`) and
    sums them (`sum`), and the gate of the shared expert is the one `sigmoid` that it can have.
    """
    return [
        ExpertSum(row.workload, row.variant, "sigmoid" in name.split("_"), calls, us / calls)
        for row in recorded.rows
        for name, (calls, us) in sorted(row.by_name.items())
        if name.startswith("triton_per_fused_") and {"index", "sum"} <= set(name.split("_"))
    ]
