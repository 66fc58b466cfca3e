"""A decode step's results as text: times and gains, kernels, memory, predictions, codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fusionlab.observe.bench.results import Results
from fusionlab.observe.bench.text import aligned, skipped
from fusionlab.observe.manifest import Manifest
from fusionlab.observe.step.recorded_step import block_counts, saving_check
from fusionlab.observe.step.recorded_text import check_text, why_more_kernels
from fusionlab.observe.step.step_variants import STEP_VARIANTS


def step_text(results: Results, manifest: Manifest) -> str:
    """All results of a run, for a terminal."""
    machine, step = manifest.machine, results.step
    head = f"{machine.device}, driver {machine.driver}, torch {machine.torch}, triton {machine.triton}, {manifest.date}"
    of = step["sizes"]
    about = (
        f"a decode step of {step['layers']} of {of['layers']} layers ({step['share_of_layers']:.0%}), hidden "
        f"{of['hidden']}, a dense MLP of {of['intermediate']}, {of['context']} tokens of context\n"
        f"recurrence: {step['recurrence']}"
    )
    parts = [
        head,
        about,
        _times(results),
        _kernels(step),
        _memory(step),
        _predictions(step),
        outputs(step),
        codes(step),
    ]
    return "\n\n".join(part for part in (*parts, skipped(results)) if part)


def _by_tokens(title: str, entries: Sequence[dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> str:
    """A table with a line for each number of tokens and a column for each variant."""
    names = [name for name in STEP_VARIANTS if any(entry["variant"] == name for entry in entries)]
    lines = []
    for tokens in dict.fromkeys(entry["tokens"] for entry in entries):
        here: dict[str, list[str]] = {}
        for entry in entries:
            if entry["tokens"] == tokens:
                here.setdefault(entry["variant"], []).append(cell(entry))
        lines.append([str(tokens), *(" + ".join(here.get(name, ["-"])) for name in names)])
    return "\n".join([title, *aligned([["tokens", *names], *lines])]) if lines else ""


def _times(results: Results) -> str:
    gains = {(gain["tokens"], gain["variant"]): gain["share"] for gain in results.step["gains"]}

    def cell(entry: dict[str, Any]) -> str:
        gain = gains.get((entry["tokens"], entry["variant"]))
        shown = "" if gain is None or entry["variant"] == "opaque" else f" {gain:+.1%}"
        return f"{entry['median_us']:.1f} ({entry['p10_us']:.1f}-{entry['p90_us']:.1f}){shown}"

    title = "us per step, median (p10-p90), and what is saved of the opaque step"
    return _by_tokens(title, [vars(row) for row in results.rows], cell)


def _kernels(step: dict[str, Any]) -> str:
    def cell(entry: dict[str, Any]) -> str:
        return f"{entry['kernels']} ({entry['quantisations']})"

    title = "kernels of a linear + a full block (of them quantising only)"
    opaque = [entry for entry in step["blocks"] if entry["variant"] == "opaque"]
    counts = [(entry["tokens"], {entry["kind"]: block_counts(entry)}) for entry in opaque]
    return "\n".join(part for part in (_by_tokens(title, step["blocks"], cell), why_more_kernels(counts)) if part)


def _memory(step: dict[str, Any]) -> str:
    known = [entry for entry in step["memory"] if entry["peak_bytes"] is not None]
    title = "most memory beyond weights and states, MB"
    return _by_tokens(title, known, lambda entry: f"{entry['peak_bytes'] / 1e6:.1f}")


def _predictions(step: dict[str, Any]) -> str:
    lines = [
        [
            str(p["tokens"]),
            str(p["sites"]),
            *(f"{p[key]:.1f}" for key in ("predicted_us", "measured_us", "residual_us")),
        ]
        for p in step["predictions"]
    ]
    checks = [saving_check(entry) for entry in step["predictions"]]
    explained = [check_text(check) for check in checks if check.parts is not None]
    title = "us saved by all fusions: predicted from the opaque blocks' trace without quantisation kernels, measured"
    return (
        "\n".join([title, *aligned([["tokens", "sites", "predicted", "measured", "residual"], *lines]), *explained])
        if lines
        else ""
    )


def outputs(step: dict[str, Any]) -> str:
    """How far the blocks' results are from the opaque variant's."""
    title = "a linear + a full block's result: distance to the opaque one's, relative"
    tables = [
        _by_tokens(heading, [entry for entry in entries if entry["variant"] != "opaque"], _relative)
        for heading, entries in (
            (title, step["outputs"]),
            (f"{title}, both compiled with eager's roundings", step["with_roundings"]),
        )
    ]
    return "\n\n".join(table for table in tables if table)


def _relative(entry: dict[str, Any]) -> str:
    return f"{entry['relative']:.1e}"


def codes(step: dict[str, Any]) -> str:
    """Shares of codes and scales that differ, by site and by what is compared."""
    lines = [
        [
            entry["site"],
            f"{entry['variant']} / {entry['against']}",
            "yes" if entry["fused"] else "no",
            f"{entry['codes_differ']:.1e}",
            f"{entry['scales_differ']:.1e}",
            str(entry["steps"]),
        ]
        for entry in step["codes"]
    ]
    header = ["site", "compared", "fused", "codes differ", "scales differ", "steps"]
    title = "codes on the same inputs; fused / eager where the graph keeps every rounding"
    return "\n".join([title, *aligned([header, *lines])]) if lines else ""
