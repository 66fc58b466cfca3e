"""The results as plain text: a table for each shape and context, the ratios, the goals, and what was not measured."""

from __future__ import annotations

from collections.abc import Sequence

from fusionlab.observe.bench.cases import BASE, SHAPES
from fusionlab.observe.bench.context import BASELINE
from fusionlab.observe.bench.measured_producers import PLAIN
from fusionlab.observe.bench.results import Results, Row
from fusionlab.observe.bench.sweep import KERNELS, best_of, words
from fusionlab.observe.bench.variants import VARIANTS
from fusionlab.observe.manifest import Manifest

_RATIOS = (("light", "fused"), ("two_kernel", "fused"), ("inductor", "fused"), ("aiter", "fused"), ("fla", "fused"))


def text(results: Results, manifest: Manifest) -> str:
    """All results of a run, for a terminal."""
    machine = manifest.machine
    head = f"{machine.device}, driver {machine.driver}, torch {machine.torch}, triton {machine.triton}, {manifest.date}"
    parts = [head]
    parts += [_table(results, *group) for group in _groups(results)]
    parts += [_sweep(results), *_thresholds(results), _dependent(results), _verdicts(results), skipped(results)]
    return "\n\n".join(part for part in parts if part)


def _groups(results: Results) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys((row.shape, row.gate, row.context) for row in results.rows))


def _table(results: Results, shape: str, gate: str, context: str) -> str:
    """Median and spread in us, GB/s of ours, and the ratios, one line per number of tokens."""
    rows = [row for row in results.rows if (row.shape, row.gate, row.context) == (shape, gate, context)]
    present = dict.fromkeys(row.variant for row in rows)
    known = [name for name in (*VARIANTS, BASELINE) if name in present]
    names = [*known, *(name for name in present if name not in known)]
    ratios = [pair for pair in _RATIOS if set(pair) <= set(names)] if context == "alone" else []
    header = ["tokens", *names, *(f"{a}/{b}" for a, b in ratios)]
    if context == "alone" and "fused" in names:
        header.append("fused GB/s")
    lines = []
    for tokens in dict.fromkeys(row.tokens for row in rows):
        here = {row.variant: row for row in rows if row.tokens == tokens}
        line = [str(tokens), *(_time(here.get(name)) for name in names)]
        line += [f"{here[a].median_us / here[b].median_us:.2f}" if {a, b} <= set(here) else "-" for a, b in ratios]
        if "fused GB/s" in header:
            line.append(f"{here['fused'].gb_s:.0f}" if "fused" in here else "-")
        lines.append(line)
    layout = f"{'gate' if shape not in SHAPES or len(SHAPES[shape].producer.layouts) > 1 else 'inputs'} {gate}"
    title = f"{shape}, {layout}, {context}: us, median (p10-p90)"
    return "\n".join([title, *aligned([header, *lines])])


def _time(row: Row | None) -> str:
    return "-" if row is None else f"{row.median_us:.2f} ({row.p10_us:.2f}-{row.p90_us:.2f})"


def _verdicts(results: Results) -> str:
    if not results.verdicts:
        return ""
    states = {True: "met", False: "missed", None: "not measured"}
    lines = [
        [v["target"], str(v["tokens"]), v["goal"], "-" if v["value"] is None else f"{v['value']:.3g}", states[v["met"]]]
        for v in results.verdicts
    ]
    return "\n".join(["goals", *aligned([["", "tokens", "goal", "measured", ""], *lines])])


def _sweep(results: Results) -> str:
    """For each case the best launch, the heuristic's, and what the heuristic loses."""
    lines = []
    for case in dict.fromkeys(row.case for row in results.sweep):
        for kernel in KERNELS:
            rows = [row for row in results.sweep if (row.case, row.kernel) == (case, kernel)]
            best, own = best_of(rows, kernel), next((row for row in rows if row.heuristic), None)
            if best:
                mine = [f"{own.median_us:.2f}", f"{best.median_us / own.median_us:.2f}"] if own else ["-", "-"]
                lines.append([case, kernel, words(best.launch), f"{best.median_us:.2f}", *mine])
    if not lines:
        return ""
    return "\n".join(["sweep", *aligned([["case", "kernel", "best", "us", "heuristic us", "best/heuristic"], *lines])])


def _thresholds(results: Results) -> list[str]:
    """For each unit length: the share of the best that each of our configurations reaches, by units of the call.

    The heuristic's thresholds are read from this: a line that stays near 1 over several columns can serve them all. The
    steadiest lines come first.
    """
    parts = []
    ours = [row for row in results.sweep if row.kernel == "fused" and _in_first_layout(row.case)]
    for kind, unit in dict.fromkeys((_kind(row.case), row.unit) for row in ours):
        rows = [row for row in ours if (_kind(row.case), row.unit) == (kind, unit)]
        columns = sorted({row.units for row in rows})
        best = {units: min(row.median_us for row in rows if row.units == units) for units in columns}
        shares: dict[str, dict[int, float]] = {}
        for row in rows:
            shares.setdefault(words(row.launch), {})[row.units] = best[row.units] / row.median_us
        order = sorted(shares, key=lambda launch: -min(shares[launch].get(units, 0.0) for units in columns))
        lines = [
            [launch, *(f"{shares[launch][u]:.2f}" if u in shares[launch] else "-" for u in columns)] for launch in order
        ]
        title = f"sweep, {kind}units of {unit}: share of the best launch, by units of the call"
        parts.append("\n".join([title, *aligned([["", *map(str, columns)], *lines])]))
    return parts


def _in_first_layout(case: str) -> bool:
    shape = case.split("/")[0]
    return f"/{SHAPES[shape].producer.layouts[0] if shape in SHAPES else PLAIN}/" in case


def _kind(case: str) -> str:
    """The kernel of a case in words, for what has launches of its own; none for the gated norm."""
    producer = SHAPES[case.split("/")[0]].producer if case.split("/")[0] in SHAPES else None
    if producer is None or producer.name == SHAPES[BASE].producer.name:
        return ""
    return f"{producer.name}{' of a sum' * bool(producer.further)}, "


def _dependent(results: Results) -> str:
    if not results.dependent:
        return ""
    lines = [[str(d["tokens"]), *(f"{d[key]:.2f}" for key in ("plain_us", "dependent_us"))] for d in results.dependent]
    title = "programmatic dependent launch: producer + the light, us"
    return "\n".join([title, *aligned([["tokens", "plain", "dependent"], *lines])])


def skipped(results: Results) -> str:
    """Each reason once, with the variants and the number of cases it applies to."""
    reasons: dict[tuple[str, str, bool], int] = {}
    for entry in results.skipped:
        key = (entry.variant, entry.why, entry.wrong)
        reasons[key] = reasons.get(key, 0) + 1
    lines = [
        f"  {variant} ({count} case{'s' if count > 1 else ''}): {'wrong: ' if wrong else ''}{why}"
        for (variant, why, wrong), count in reasons.items()
    ]
    return "\n".join(["not measured", *lines]) if lines else ""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell, all but the first right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
