"""A run of a whole model in words and tables."""

from __future__ import annotations

from fusionlab.observe.bench.text import aligned
from fusionlab.observe.model.model_run import OTHER_ORDER, ROUNDED
from fusionlab.observe.model.recorded_model import ModelRow, RecordedModel
from fusionlab.observe.step.step_variants import STEP_VARIANTS


def model_text(recorded: RecordedModel) -> str:
    """All results of a run, for a terminal."""
    parts = [recorded.provenance, about(recorded)]
    titled = (
        ("µs of a step, and what is saved of the opaque one", times_table(recorded) if recorded.rows else ""),
        ("µs saved by all fusions: predicted from the opaque trace, measured, and why", savings_table(recorded)),
        ("logits of all tokens of a prompt", accuracy_table(recorded)),
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


def savings_table(recorded: RecordedModel) -> str:
    """Predicted and measured savings, and what the traces say of the difference; empty if nothing was predicted."""
    lines = []
    for check in recorded.checks:
        saving, parts = check.saving, check.saving.parts
        found = (
            (parts.replaced_us - parts.fused_us, parts.shared_us, parts.other_gaps_us, parts.unseen_us) if parts else ()
        )
        cells = [f"{value:.0f}" for value in (saving.predicted_us, saving.measured_us)]
        cells += [f"{value:+.0f}" for value in (saving.residual_us, *found)]
        lines.append([str(check.workload), *cells, *["-"] * (4 - len(found))])
    header = ["", "predicted", "measured", "residual", "shorter", "same kernels", "gaps", "not in traces"]
    return "\n".join(aligned([header, *lines])) if lines else ""


def accuracy_table(recorded: RecordedModel) -> str:
    """Divergences, agreement and differences of logits; empty if none were compared."""
    lines = []
    for each in recorded.comparisons:
        kl, difference = each.distance.kl, each.distance.difference
        lines.append(
            [
                f"{_words(each.name)} beside {_words(each.against)}",
                *(f"{value:.1e}" for value in (kl.mean, kl.p50, kl.p99)),
                f"{each.distance.top1:.1%}",
                *(f"{value:.1e}" for value in (difference.p50, difference.p99, each.distance.logits)),
            ]
        )
    header = ["", "KL, mean", "median", "99th", "same first word", "apart, median", "99th", "logits"]
    return "\n".join(aligned([header, *lines])) if lines else ""


def _words(name: str) -> str:
    """A run of a comparison in words."""
    if name == OTHER_ORDER:
        return "the opaque one, its sums in another order,"
    if name.endswith(ROUNDED):
        return f"{_words(name.removesuffix(ROUNDED))} with eager's roundings"
    return STEP_VARIANTS[name].label
