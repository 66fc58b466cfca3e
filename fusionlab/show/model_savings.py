"""What the fusions save of a whole model's steps: a mark for each workload and variant, and what was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from fusionlab.show.drawing import Drawing, Table
from fusionlab.show.line_styles import STEP_NAMES, STEP_STYLES
from fusionlab.show.theme import PALETTE

if TYPE_CHECKING:
    from fusionlab.observe.model.recorded_model import ModelRow, RecordedModel
    from fusionlab.observe.model.workload import Workload

#: Above and below a workload's line, so that no mark covers another.
_PLACES = {"gated_norm": 0.22, "fused": 0.0, "predicted": -0.22}
_SPREAD_WIDTH = 5


def model_savings(recorded: RecordedModel) -> Drawing:
    """The share of the opaque step that each variant saves, a line for each workload, with its spread.

    Args:
        recorded: a run as `observe.model.recorded_model.recorded_models` reads it.

    Raises:
        ValueError: if no variant can be compared with the opaque one.
    """
    rows = {
        name: [row for row in recorded.rows if row.variant == name and row.saved is not None]
        for name in ("gated_norm", "fused")
    }
    rows = {name: found for name, found in rows.items() if found}
    if not rows:
        raise ValueError("nothing to compare: a run needs the times of `opaque` and of another variant")
    workloads = list(dict.fromkeys(row.workload for found in rows.values() for row in found))
    lines = {workload: -place for place, workload in enumerate(workloads)}  # the first one on top
    fig = go.Figure()
    fig.add_vline(x=0, line={"width": 1.5, "color": PALETTE["grey"]})
    for name, found in rows.items():
        _draw(fig, recorded, name, found, lines)
    _draw_predictions(fig, recorded, lines)
    ends = [1 - len(workloads) - 0.6, 0.6]
    fig.update_yaxes(tickvals=list(lines.values()), ticktext=[str(each) for each in workloads], range=ends)
    fig.update_xaxes(title_text="saved of the opaque step, %")
    fig.update_layout(
        height=180 + 60 * len(workloads),
        legend={"orientation": "h", "yanchor": "top", "y": -0.25, "x": 0},
        margin={"t": 24, "b": 120},
    )
    where = f"{recorded.layers} of {recorded.layers_of_all} layers on {recorded.manifest.machine.device}"
    return Drawing(
        fig,
        caption=f"transformers' Qwen3-Next, {where}, as recorded; strokes from the 10th to the 90th percentile.",
        alt=(
            f"For each of {len(workloads)} workloads, {', '.join(map(str, workloads))}: marks at the percentage of the "
            f"opaque step's time that is saved, with strokes from the 10th to the 90th percentile, for {len(rows)} "
            f"variants, {'; '.join(STEP_NAMES[name] for name in rows)}"
            + ("; and hollow diamonds for what the trace predicted." if recorded.checks else ".")
        ),
        summary=_summary(recorded, rows),
        table=_table(recorded, rows),
    )


def _draw(
    fig: go.Figure, recorded: RecordedModel, name: str, rows: list[ModelRow], lines: Mapping[Workload, int]
) -> None:
    """Two traces: the spreads as strokes, and the medians as marks."""
    style, label = STEP_STYLES[name], STEP_NAMES[name]
    at = [lines[row.workload] + _PLACES[name] for row in rows]
    spreads = [_spread(recorded, row) for row in rows]
    fig.add_scatter(
        x=[x for ends in spreads for x in (*ends, None)], y=[y for place in at for y in (place, place, None)],
        mode="lines", name=f"{label}, 10th to 90th percentile", legendgroup=name, showlegend=False,
        line={"width": _SPREAD_WIDTH, "color": PALETTE[style.colour]}, opacity=0.45, hoverinfo="skip",
    )  # fmt: skip
    fig.add_scatter(
        x=[100 * (row.saved or 0.0) for row in rows], y=at, mode="markers", name=label, legendgroup=name,
        marker={"size": 11, "symbol": style.symbol, "color": PALETTE[style.colour]},
        hovertext=[
            f"<b>{label}</b><br>{row.workload}: {row.median_us / 1000:.3f} ms<br>saved {row.saved:.1%}" for row in rows
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip


def _spread(recorded: RecordedModel, row: ModelRow) -> tuple[float, float]:
    """Per cent saved of the opaque median by the 90th and the 10th percentile."""
    opaque = recorded.find(row.workload, "opaque")
    assert opaque is not None  # a row without has no share
    return 100 * (1.0 - row.p90_us / opaque.median_us), 100 * (1.0 - row.p10_us / opaque.median_us)


def _draw_predictions(fig: go.Figure, recorded: RecordedModel, lines: Mapping[Workload, int]) -> None:
    checks = [check for check in recorded.checks if check.workload in lines]
    if not checks:
        return
    blue = PALETTE[STEP_STYLES["fused"].colour]
    fig.add_scatter(
        x=[100 * check.saving.predicted_us / check.saving.step_us for check in checks],
        y=[lines[check.workload] + _PLACES["predicted"] for check in checks],
        mode="markers", name="all fused, predicted",
        marker={"size": 12, "symbol": "diamond-open", "color": blue, "line": {"width": 2, "color": blue}},
        hovertext=[f"{check.workload}: {check.saving.predicted_us:.0f} µs predicted" for check in checks],
        hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip


def _summary(recorded: RecordedModel, rows: dict[str, list[ModelRow]]) -> str:
    name, found = list(rows.items())[-1]
    best, worst = (choose(found, key=lambda row: row.saved or 0.0) for choose in (max, min))
    ends = " to ".join(f"{row.saved:+.1%} ({row.workload})" for row in (worst, best))
    return f"{STEP_NAMES[name].capitalize()}: {ends} of the opaque step."


def _table(recorded: RecordedModel, rows: dict[str, list[ModelRow]]) -> Table:
    predicted = {check.workload: check.saving for check in recorded.checks}
    columns = ["", "opaque, ms"]
    columns += [text for name in rows for text in (f"{STEP_NAMES[name]}, ms", "saved")]
    lines = []
    for workload in dict.fromkeys(row.workload for found in rows.values() for row in found):
        cells = [str(workload), _time(recorded.find(workload, "opaque"))]
        for name in rows:
            row = recorded.find(workload, name)
            cells += [_time(row), "–" if row is None or row.saved is None else f"{row.saved:+.1%}"]
        saving = predicted.get(workload)
        lines.append([*cells, "–" if saving is None else f"{saving.predicted_us / saving.step_us:+.1%}"])
    return Table("Times of a step, and what is saved of the opaque one", [*columns, "predicted, all fused"], lines)


def _time(row: ModelRow | None) -> str:
    if row is None:
        return "–"
    return f"{row.median_us / 1000:.3f} ({row.p10_us / 1000:.3f} to {row.p90_us / 1000:.3f})"
