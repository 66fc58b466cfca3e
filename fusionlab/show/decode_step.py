"""What the fusions save of a decode step: measured shares over the number of tokens, and what a trace predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from fusionlab.observe.step.recorded_text import linear_kernels, padded
from fusionlab.show.drawing import Drawing, Table
from fusionlab.show.line_styles import STEP_NAMES, STEP_STYLES, line_of
from fusionlab.show.theme import PALETTE

if TYPE_CHECKING:
    from fusionlab.observe.step.recorded_step import RecordedStep, SavingCheck, StepRow

_PREDICTED = "all fused, predicted"
_APART = 1.09  # neighbours of one number of tokens stand apart by this factor, or their spreads would cover each other
_SPREAD_WIDTH = 5


def decode_step(recorded: RecordedStep) -> Drawing:
    """The share of the opaque step that each variant saves, with its spread, and the predicted one.

    Args:
        recorded: a step as `observe.step.recorded_step.recorded_steps` reads it.

    Raises:
        ValueError: if no variant can be compared with the opaque step.
    """
    found = {name: _rows(recorded, name) for name in STEP_STYLES}
    found = {name: rows for name, rows in found.items() if rows}
    if "opaque" not in found or len(found) == 1:
        raise ValueError("nothing to compare: a step needs the times of `opaque` and of another variant")
    fig, copying = go.Figure(), _copying(recorded)
    inside = {name: [row for row in rows if (row.tokens, name) not in copying] for name, rows in found.items()}
    for name, rows in inside.items():
        _draw(fig, name, rows)
    beyond = [row for name, rows in found.items() for row in rows if row not in inside[name]]
    _draw_beyond(fig, beyond, [row for rows in inside.values() for row in rows])
    _draw_predictions(fig, recorded.checks)
    sizes = recorded.tokens
    fig.update_xaxes(type="log", tickvals=list(sizes), ticktext=list(map(str, sizes)), title_text="tokens")
    fig.update_yaxes(title_text="saved of the opaque step, %", zeroline=True, zerolinewidth=1.5)
    fig.update_layout(
        height=500, legend={"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0}, margin={"t": 24, "b": 160}
    )
    where = f"{_layers(recorded)} on {recorded.manifest.machine.device}"
    return Drawing(
        fig,
        caption=f"A decode step of {where}, as recorded; strokes from the 10th to the 90th percentile.",
        alt=(
            f"Over {_listed(list(map(str, sizes)))} tokens, the percentage of the opaque step's time that is saved: "
            f"marks on a line, with strokes from the 10th to the 90th percentile, for each of {len(found)} variants, "
            f"{'; '.join(STEP_NAMES[name] for name in found)}"
            + ("; and hollow diamonds for what the trace predicted." if recorded.checks else ".")
        ),
        summary=_summary(recorded, found),
        table=_table(recorded, found),
    )


def _rows(recorded: RecordedStep, name: str) -> list[StepRow]:
    return [row for row in recorded.rows if row.variant == name and row.saved is not None]


def _place(name: str) -> float:
    """The factor by which marks of `name` stand beside their number of tokens."""
    order = list(STEP_STYLES)
    return _APART ** (order.index(name) - (len(order) - 1) / 2)


def _draw(fig: go.Figure, name: str, rows: Sequence[StepRow]) -> None:
    """Two traces: the spreads as strokes, and the medians as a line with marks."""
    style, label = STEP_STYLES[name], STEP_NAMES[name]
    at = [row.tokens * _place(name) for row in rows]
    strokes_x = [x for place in at for x in (place, place, None)]
    strokes_y = [y for row in rows for y in (_percent(row.saved_least), _percent(row.saved_most), None)]
    fig.add_scatter(
        x=strokes_x, y=strokes_y, mode="lines", name=f"{label}, 10th to 90th percentile", legendgroup=name,
        showlegend=False, line={"width": _SPREAD_WIDTH, "color": PALETTE[style.colour]}, opacity=0.45,
        hoverinfo="skip",
    )  # fmt: skip
    fig.add_scatter(
        x=at, y=[_percent(row.saved) for row in rows], mode="lines+markers", name=label, legendgroup=name,
        line=line_of(style, 2), marker={"size": 9, "symbol": style.symbol},
        hovertext=[
            f"<b>{label}</b><br>{row.tokens} tokens: {row.median_us:.0f} µs ({row.p10_us:.0f} to {row.p90_us:.0f})"
            f"<br>saved {row.saved:.1%}"
            for row in rows
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip


def _draw_beyond(fig: go.Figure, rows: Sequence[StepRow], inside: Sequence[StepRow]) -> None:
    """Marks at the lower edge, with their numbers: to their scale all else would be one line."""
    if not rows:
        return
    shares = [100 * share for row in inside for share in (row.saved_least or 0.0, row.saved_most or 0.0)]
    edge = min(shares) - 0.1 * (max(shares) - min(shares))
    style = STEP_STYLES["inductor"]
    fig.add_scatter(
        x=[row.tokens * _place(row.variant) for row in rows], y=[edge] * len(rows), mode="markers+text",
        name=f"{STEP_NAMES['inductor']}, off the scale", legendgroup="inductor", showlegend=False,
        text=[f"{_percent(row.saved):.1f} %, off the scale" for row in rows], textposition="middle right",
        marker={"size": 11, "symbol": "triangle-down", "color": PALETTE[style.colour]},
        hovertext=[f"{row.tokens} tokens: {row.median_us:.0f} µs, saved {row.saved:.1%}" for row in rows],
        hovertemplate="%{hovertext}<extra></extra>", cliponaxis=False,
    )  # fmt: skip


def _copying(recorded: RecordedStep) -> set[tuple[int, str]]:
    """(tokens, "inductor") where Inductor's blocks copy codes and scales into rows of four, and opaque ones do not."""
    found = padded(linear_kernels(recorded))
    return {(tokens, "inductor") for tokens, names in found.items() if "inductor" in names and "opaque" not in names}


def _draw_predictions(fig: go.Figure, checks: Sequence[SavingCheck]) -> None:
    if not checks:
        return
    blue = PALETTE[STEP_STYLES["fused"].colour]
    fig.add_scatter(
        x=[check.tokens * _place("fused") * _APART for check in checks],
        y=[100 * check.predicted_us / check.step_us for check in checks],
        mode="markers", name=_PREDICTED,
        marker={
            "size": 12, "symbol": "diamond-open", "color": blue, "line": {"width": 2, "color": blue}
        },
        hovertext=[f"{check.tokens} tokens: {check.predicted_us:.0f} µs predicted" for check in checks],
        hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _layers(recorded: RecordedStep) -> str:
    layers, of = recorded.layers, recorded.sizes.layers
    return f"all {of} layers" if layers == of else f"{layers} of {of} layers"


def _summary(recorded: RecordedStep, found: dict[str, list[StepRow]]) -> str:
    sentences = []
    if rows := found.get("fused"):
        best, least = (choose(rows, key=lambda row: row.saved or 0.0) for choose in (max, min))
        text = f"All fused saves {_percent(best.saved):.1f} % of the opaque step at {_tokens(best.tokens)}"
        text += "." if best is least else f", the most, and {_percent(least.saved):.1f} % at {least.tokens}, the least."
        sentences.append(text)
    if rows := found.get("gated_norm"):
        sentences.append(f"The gated norm alone saves {_range(rows)}.")
    if rows := found.get("inductor"):
        sentences.append(_of_inductor(recorded, rows))
    apart = [check.residual_us / check.step_us for check in recorded.checks]
    if apart:
        low, high = 100 * min(apart), 100 * max(apart)
        sentences.append(
            "Measured minus what the opaque blocks' trace predicted for all fused is "
            f"{_between(low, high, signed=True)} percentage points."
        )
    return " ".join(sentences)


def _of_inductor(recorded: RecordedStep, rows: Sequence[StepRow]) -> str:
    """What Inductor saves or loses; apart, where its blocks also copy rows, and the opaque ones do not."""
    copying = _copying(recorded)
    apart = [row for row in rows if (row.tokens, row.variant) in copying]
    others = [row for row in rows if row not in apart] or rows
    longer = all((row.saved or 0.0) < 0 for row in others)
    change = f"takes {_range(others, -1)} longer" if longer else f"saves {_range(others)}"
    text = f"With the quantisation left to Inductor as well the step {change}"
    for row in apart if others is not rows else ():
        text += f", {_range([row], -1)} at {_tokens(row.tokens)}, where codes and scales are copied into rows of four"
    return f"{text}."


def _range(rows: Sequence[StepRow], sign: int = 1) -> str:
    shares = [100 * sign * (row.saved or 0.0) for row in rows]
    return f"{_between(min(shares), max(shares))} %"


def _between(low: float, high: float, *, signed: bool = False) -> str:
    """Two numbers, or one where they read the same."""
    words = [f"{value:+.1f}" if signed else f"{value:.1f}" for value in (low, high)]
    return " to ".join(dict.fromkeys(words))


def _table(recorded: RecordedStep, found: dict[str, list[StepRow]]) -> Table:
    compared = [name for name in found if name != "opaque"]
    predicted = {check.tokens: check.predicted_us / check.step_us for check in recorded.checks}
    columns = ["tokens", "opaque, µs"]
    columns += [text for name in compared for text in (f"{STEP_NAMES[name]}, µs", "saved (90th to 10th percentile)")]
    rows = []
    for tokens in recorded.tokens:
        by_name = {name: row for name, rows in found.items() for row in rows if row.tokens == tokens}
        cells = [str(tokens), _time(by_name.get("opaque"))]
        for name in compared:
            cells += [_time(by_name.get(name)), _saved(by_name.get(name))]
        rows.append([*cells, f"{predicted[tokens]:.1%}" if tokens in predicted else "–"])
    return Table("Times of a step, and what is saved of the opaque one", [*columns, "predicted, all fused"], rows)


def _time(row: StepRow | None) -> str:
    return "–" if row is None else f"{row.median_us:.0f} ({row.p10_us:.0f} to {row.p90_us:.0f})"


def _saved(row: StepRow | None) -> str:
    return "–" if row is None else f"{row.saved:.1%} ({row.saved_least:.1%} to {row.saved_most:.1%})"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"
