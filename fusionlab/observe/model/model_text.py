"""A run of a whole model in words and tables."""

from __future__ import annotations

from fusionlab.observe.bench.text import aligned
from fusionlab.observe.model.expert_sums import expert_sums
from fusionlab.observe.model.model_run import MODEL_VARIANTS, OTHER_ORDER, ROUNDED
from fusionlab.observe.model.recorded_model import ModelRow, RecordedModel
from fusionlab.observe.step.recorded_text import savings_table
from fusionlab.observe.step.step_variants import STEP_VARIANTS


def model_text(recorded: RecordedModel) -> str:
    """All results of a run, for a terminal."""
    parts = [recorded.provenance, about(recorded)]
    titled = (
        ("µs of a step, and what is saved of the opaque one", times_table(recorded) if recorded.rows else ""),
        ("µs saved by all fusions: predicted from the opaque trace, measured, and why", check_table(recorded)),
        (
            "µs of the sum over a token's experts, one kernel that each compile tunes anew (calls)",
            tuning_table(recorded),
        ),
        ("logits of all tokens of a prompt; *rounded*: with eager's roundings", accuracy_table(recorded)),
    )
    parts += [f"{title}\n{table}" for title, table in titled if table]
    return "\n\n".join(parts)


def about(recorded: RecordedModel) -> str:
    """Which model it is, in which sizes, and how much of it."""
    of = recorded.sizes
    return (
        f"transformers' Qwen3-Next, {recorded.layers} of {recorded.layers_of_all} layers "
        f"({recorded.layers / recorded.layers_of_all:.0%}), hidden {of['hidden_size']}, {of['num_experts']} experts of "
        f"{of['moe_intermediate_size']} of which a token has {of['num_experts_per_tok']}, random weights\n"
        f"{recorded.linears}\nrecurrence: {recorded.recurrence}"
    )


def times_table(recorded: RecordedModel) -> str:
    """Times, savings, sites, kernels and memory, a line for each workload and variant."""
    header = ["", "variant", "µs", "10th to 90th", "saved", "sites fused", "kernels", "quantising", "MB"]
    return "\n".join(aligned([header, *(_line(row) for row in recorded.rows)]))


def _line(row: ModelRow) -> list[str]:
    return [
        str(row.workload),
        row.label,
        f"{row.median_us:.0f}",
        f"{row.p10_us:.0f} to {row.p90_us:.0f}",
        "" if row.saved is None or row.variant == "opaque" else f"{row.saved:+.1%}",
        f"{sum(row.fused.values())}, {row.refused} refused" if row.fused else "",
        "-" if row.kernels is None else str(row.kernels.kernels),
        "-" if row.kernels is None else str(row.kernels.quantisations),
        "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
    ]


def check_table(recorded: RecordedModel) -> str:
    """Predicted and measured savings, and what the traces say of the difference; empty if nothing was predicted."""
    return savings_table("", [(str(check.workload), check.saving) for check in recorded.checks]) * bool(recorded.checks)


def tuning_table(recorded: RecordedModel) -> str:
    """Microseconds of the sum over a token's experts, as each compile has tuned it; empty if no names were recorded."""
    found = expert_sums(recorded)
    columns = sorted({(MODEL_VARIANTS.index(each.variant), each.with_shared) for each in found})
    labels = [STEP_VARIANTS[MODEL_VARIANTS[place]].label + ", and shared" * shared for place, shared in columns]
    rows: dict[str, dict[tuple[int, bool], str]] = {}
    for each in found:
        column = MODEL_VARIANTS.index(each.variant), each.with_shared
        rows.setdefault(str(each.workload), {})[column] = f"{each.us:.2f} ({each.calls})"
    lines = [[workload, *(cells.get(key, "-") for key in columns)] for workload, cells in rows.items()]
    return "\n".join(aligned([["", *labels], *lines])) if lines else ""


def accuracy_table(recorded: RecordedModel) -> str:
    """Divergences, agreement and differences of logits; empty if none were compared.

    The last column is a token's root mean square difference over the logits' standard deviation, median.
    """
    lines = []
    for each in recorded.comparisons:
        found = each.distance
        cells = [f"{_words(each.name)} / {_words(each.against)}", f"{found.kl.mean:.1e}", f"{found.kl.p99:.1e}"]
        lines.append([*cells, f"{found.top1:.1%}", f"{found.difference.p50 / found.logits:.2f}"])
    header = ["compared", "KL, mean", "99th", "same word", "apart"]
    return "\n".join(aligned([header, *lines])) if lines else ""


def _words(name: str) -> str:
    """A run of a comparison in words."""
    for ending, words in ((OTHER_ORDER, ", sums in another order"), (ROUNDED, ", rounded")):
        if name.endswith(ending):
            return _words(name.removesuffix(ending)) + words
    return {"opaque": "opaque", "gated_norm": "gated norm fused", "fused": "all fused"}[name]
