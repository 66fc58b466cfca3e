"""What the fusions save of a whole model's steps: a bar for each workload and variant, and what the trace predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from fusionlab.show.drawing import Drawing, Table
from fusionlab.show.line_styles import IMPLEMENTATIONS
from fusionlab.show.theme import PALETTE

if TYPE_CHECKING:
    from fusionlab.observe.model.recorded_model import ModelRow, RecordedModel

_COLOURS = {"gated_norm": "violet", "fused": IMPLEMENTATIONS["fused"].colour}
_NAMES = {"gated_norm": "gated norm alone", "fused": "all fused"}


def model_savings(recorded: RecordedModel) -> Drawing:
    """The share of the opaque step that each variant saves, per workload, with its spread.

    Args:
        recorded: a run as `observe.model.recorded_model.recorded_models` reads it.

    Raises:
        ValueError: if no variant can be compared with the opaque one.
    """
    rows = {name: [row for row in recorded.rows if row.variant == name and row.saved is not None] for name in _NAMES}
    rows = {name: found for name, found in rows.items() if found}
    if not rows:
        raise ValueError("nothing to compare: a run needs the times of `opaque` and of another variant")
    fig = go.Figure()
    for name, found in rows.items():
        _draw(fig, recorded, name, found)
    _draw_predictions(fig, recorded)
    fig.update_yaxes(autorange="reversed")
    fig.update_xaxes(title_text="saved of the opaque step, %", zeroline=True, zerolinewidth=1.5)
    workloads = list(dict.fromkeys(str(row.workload) for found in rows.values() for row in found))
    fig.update_layout(
        height=160 + 70 * len(workloads),
        barmode="group",
        legend={"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0},
        margin={"t": 24, "b": 110},
    )
    where = f"{recorded.layers} of {recorded.layers_of_all} layers on {recorded.manifest.machine.device}"
    return Drawing(
        fig,
        caption=f"transformers' Qwen3-Next, {where}, as recorded; strokes from the 10th to the 90th percentile.",
        alt=(
            f"For each of {len(workloads)} workloads, {', '.join(workloads)}: bars of the percentage of the opaque "
            f"step's time that is saved, with strokes from the 10th to the 90th percentile, for {len(rows)} variants, "
            f"{'; '.join(_NAMES[name] for name in rows)}"
            + ("; and hollow diamonds for what the trace predicted." if recorded.checks else ".")
        ),
        summary=_summary(recorded, rows),
        table=_table(recorded, rows),
    )


def _draw(fig: go.Figure, recorded: RecordedModel, name: str, rows: list[ModelRow]) -> None:
    shares = [100 * (row.saved or 0.0) for row in rows]
    spreads = [_spread(recorded, row) for row in rows]
    fig.add_bar(
        y=[str(row.workload) for row in rows],
        x=shares,
        orientation="h",
        name=_NAMES[name],
        marker={"color": PALETTE[_COLOURS[name]]},
        error_x={
            "type": "data",
            "array": [most - share for share, (_, most) in zip(shares, spreads, strict=True)],
            "arrayminus": [share - least for share, (least, _) in zip(shares, spreads, strict=True)],
            "thickness": 1.5,
        },
        hovertext=[
            f"<b>{_NAMES[name]}</b><br>{row.workload}: {row.median_us / 1000:.3f} ms<br>saved {row.saved:.1%}"
            for row in rows
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _spread(recorded: RecordedModel, row: ModelRow) -> tuple[float, float]:
    """Per cent saved of the opaque median by the 90th and the 10th percentile."""
    opaque = recorded.find(row.workload, "opaque")
    assert opaque is not None  # a row without has no share
    least, most = (100 * (1.0 - us / opaque.median_us) for us in (row.p90_us, row.p10_us))
    return least, most


def _draw_predictions(fig: go.Figure, recorded: RecordedModel) -> None:
    if not recorded.checks:
        return
    blue = PALETTE[_COLOURS["fused"]]
    fig.add_scatter(
        y=[str(check.workload) for check in recorded.checks],
        x=[100 * check.saving.predicted_us / check.saving.step_us for check in recorded.checks],
        mode="markers",
        name="all fused, predicted",
        marker={"size": 12, "symbol": "diamond", "color": "white", "line": {"width": 2, "color": blue}},
        hovertext=[f"{check.workload}: {check.saving.predicted_us:.0f} µs predicted" for check in recorded.checks],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _summary(recorded: RecordedModel, rows: dict[str, list[ModelRow]]) -> str:
    name, found = list(rows.items())[-1]
    best, worst = (choose(found, key=lambda row: row.saved or 0.0) for choose in (max, min))
    ends = " to ".join(f"{row.saved:+.1%} ({row.workload})" for row in (worst, best))
    return f"{_NAMES[name].capitalize()}: {ends} of the opaque step."


def _table(recorded: RecordedModel, rows: dict[str, list[ModelRow]]) -> Table:
    predicted = {check.workload: check.saving for check in recorded.checks}
    columns = ["", "opaque, ms"]
    columns += [text for name in rows for text in (f"{_NAMES[name]}, ms", "saved")]
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
