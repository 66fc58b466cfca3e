"""Which spellings of one computation each of two matchers finds, as a board of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape as escape_html

import plotly.graph_objects as go

from fusionlab.show.drawing import Drawing, Table
from fusionlab.show.theme import GRID, PALETTE

escape = partial(escape_html, quote=False)  # plotly shows an escaped quotation mark literally

#: Positions of the two columns of answers, in percent of the width, by the field that they show.
COLUMNS = {"traced": (62, "traced pattern"), "semantic": (82, "semantic matcher")}
ROW, HEAD = 22, 30  # pixels of a spelling, and of the line above a class
WORDS = {True: "fuses", False: "missed"}
NAME = 46  # characters of a spelling's name that fit beside the answers


@dataclass(frozen=True)
class Answer:
    """What both matchers did with one spelling.

    Args:
        kind: the class of the difference.
        name: the spelling.
        traced, semantic: whether each would replace it.
    """

    kind: str
    name: str
    traced: bool
    semantic: bool


def scoreboard(answers: Sequence[Answer]) -> Drawing:
    """Draw the answers grouped by class, in the given order. Raises ValueError if there are none."""
    if not answers:
        raise ValueError("no answers: a scoreboard needs at least one spelling")
    fig, height = go.Figure(), 0
    kinds = list(dict.fromkeys(answer.kind for answer in answers))
    for kind in kinds:
        group = [answer for answer in answers if answer.kind == kind]
        _head(fig, kind, group, height + HEAD // 2)
        ys = [height + HEAD + ROW // 2 + ROW * index for index in range(len(group))]
        _group(fig, group, ys)
        height += HEAD + ROW * len(group) + 8
    for x, title in COLUMNS.values():
        fig.add_annotation(x=x, y=-14, text=f"<b>{title}</b>", showarrow=False, xanchor="center")
    fig.update_xaxes(visible=False, range=[0, 100], fixedrange=True)
    fig.update_yaxes(visible=False, range=[height, -28], fixedrange=True)
    fig.update_layout(height=height + 36, showlegend=False, margin={"l": 0, "r": 0, "t": 4, "b": 4})
    return Drawing(
        fig,
        caption="Ways to write one computation, and who finds them.",
        alt=(
            f"{len(answers)} spellings in {len(kinds)} groups, with the answers of the traced pattern and of "
            "the semantic matcher: a filled circle and “fuses”, or a cross and “missed”."
        ),
        summary=_summary(answers, kinds),
        table=Table(
            "The answers as a table",
            ("what differs", "spelling", "traced pattern", "semantic matcher"),
            [(a.kind, a.name, WORDS[a.traced], WORDS[a.semantic]) for a in answers],
        ),
    )


def _head(fig: go.Figure, kind: str, group: Sequence[Answer], y: float) -> None:
    fig.add_scatter(
        x=[0.5], y=[y], mode="text", text=[f"<b>{escape(kind)}</b>"], textposition="middle right", hoverinfo="skip"
    )
    for field, (x, _) in COLUMNS.items():
        fig.add_annotation(x=x, y=y, text=f"<b>{_count(group, field)}</b>", showarrow=False, xanchor="center")
    fig.add_shape(type="line", x0=0, x1=100, y0=y + HEAD / 2, y1=y + HEAD / 2, line={"color": GRID, "width": 1})


def _group(fig: go.Figure, group: Sequence[Answer], ys: list[int]) -> None:
    names = [answer.name if len(answer.name) <= NAME else f"{answer.name[: NAME - 1]}…" for answer in group]
    fig.add_scatter(
        x=[2] * len(ys), y=ys, mode="text", text=[escape(name) for name in names], textposition="middle right",
        textfont={"size": 13}, hovertext=[escape(answer.name) for answer in group], hoverinfo="text",
    )  # fmt: skip
    for field, (x, title) in COLUMNS.items():
        for fuses, symbol, colour in ((True, "circle", "green"), (False, "x-thin", "vermillion")):
            chosen = [(y, answer) for y, answer in zip(ys, group, strict=True) if getattr(answer, field) is fuses]
            if not chosen:
                continue
            line = {"width": 0 if fuses else 2.5, "color": PALETTE[colour]}
            fig.add_scatter(
                x=[x - 5] * len(chosen), y=[y for y, _ in chosen], mode="markers",
                marker={"symbol": symbol, "size": 11, "color": PALETTE[colour], "line": line},
                hovertext=[escape(f"{answer.name}: {title} {WORDS[fuses]}") for _, answer in chosen],
                hoverinfo="text",
            )  # fmt: skip
            fig.add_scatter(
                x=[x - 3.4] * len(chosen), y=[y for y, _ in chosen], mode="text", text=[WORDS[fuses]] * len(chosen),
                textposition="middle right", textfont={"size": 13}, hoverinfo="skip",
            )  # fmt: skip


def _count(answers: Sequence[Answer], field: str) -> str:
    return f"{sum(getattr(answer, field) for answer in answers)} of {len(answers)}"


def _summary(answers: Sequence[Answer], kinds: Sequence[str]) -> str:
    groups = {kind: [answer for answer in answers if answer.kind == kind] for kind in kinds}
    each = ", ".join(f"{kind} {_count(group, 'traced')}" for kind, group in groups.items())
    lost = [answer.name for answer in answers if answer.traced and not answer.semantic]
    only = f" It misses what the pattern finds: {', '.join(lost)}." if lost else ""
    return (
        f"The traced pattern finds {_count(answers, 'traced')} ({each}); "
        f"the semantic matcher {_count(answers, 'semantic')}.{only}"
    )
