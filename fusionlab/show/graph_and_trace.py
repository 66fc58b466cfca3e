"""Nodes of a graph beside the slices of a trace that ran them, linked by lines.

A slider walks through the slices in order of time and highlights the nodes of each, even on a page without a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from fusionlab.observe.nodes import Slice
from fusionlab.show import Drawing, Table
from fusionlab.show.controls import SLIDER, room
from fusionlab.show.names import cut, short_name, us, wrapped
from fusionlab.show.theme import PALETTE

NODES, SLICES, LONGEST = (
    0.30,
    0.60,
    0.14,
)  # positions of the two columns, and length of the longest bar; the width is 1
PIXELS = 24  # per row
FADED = {"marker": {"opacity": 0.2}}


def _label(name: str, width: int = 24) -> str:
    """A slice's name for a label: what it computes, without the name of the generic kernel it instantiates."""
    return cut(short_name(name, 80).split(" (")[0], width)


def links(nodes: Sequence[str], slices: Sequence[Slice], *, what: str = "kernel") -> Drawing:
    """The graph's calls on the left, in graph order; what ran on the right, in time order, with bars for durations.

    Args:
        nodes: names of the nodes, in the order of the graph.
        slices: what ran, each with the names of its nodes.
        what: what a slice is: "kernel", or "operator" on a CPU.

    Raises:
        ValueError: if there is nothing to link, or a slice names a node that is not in `nodes`.
    """
    place = {name: row for row, name in enumerate(nodes)}
    for entry in slices:
        for name in entry.nodes:
            if name not in place:
                raise ValueError(f"{entry.name!r:.60} ran node {name!r}, which is not among the nodes given")
    if not slices:
        raise ValueError("no slice is linked to a node; give a trace of the same step as the graph")
    rows = max(len(nodes), len(slices))
    node_y = {name: (row + 0.5) * rows / len(nodes) for name, row in place.items()}
    slice_y = [(row + 0.5) * rows / len(slices) for row in range(len(slices))]

    fig = go.Figure()
    pairs = [[(node_y[name], y) for name in entry.nodes] for entry, y in zip(slices, slice_y, strict=True)]
    _lines(fig, [pair for entry in pairs for pair in entry], 1, PALETTE["grey"])
    _node_column(fig, nodes, node_y, slices)
    _slice_column(fig, slices, slice_y)
    for entry in pairs:
        _lines(fig, entry, 3, PALETTE["violet"], visible=False)
    fig.update_xaxes(visible=False, range=[0, 1], fixedrange=True)
    fig.update_yaxes(visible=False, range=[rows, 0], fixedrange=True)
    heads = ((NODES, "right", "node of the graph"), (SLICES, "left", f"{what}, µs"))
    for x, side, text in heads:
        fig.add_annotation(
            x=x, y=0, yanchor="bottom", xanchor=side, text=f"<b>{escape(text)}</b>", showarrow=False, font={"size": 14}
        )
    fig.update_layout(
        height=PIXELS * rows + 60 + SLIDER, showlegend=False, margin={"l": 8, "r": 8, "t": 40, "b": 20 + SLIDER},
        meta=room(below=SLIDER), barmode="overlay",
        bargap=0, clickmode="event+select", hovermode="closest", sliders=[_slider(nodes, place, slices)],
    )  # fmt: skip
    return Drawing(
        fig,
        caption=f"Which {what} ran which node.",
        alt=(
            f"Two columns: {len(nodes)} nodes of the graph on the left, {len(slices)} {what}s on the right as bars as "
            "long as their time. Lines join each with the nodes that it ran; a slider lights them up one by one."
        ),
        summary=_summary(nodes, slices, what),
        table=Table(
            f"Every {what} and its nodes",
            [what, "µs", "nodes"],
            [[short_name(s.name, 60), us(s.duration_us), ", ".join(s.nodes)] for s in slices],
        ),
    )


def _summary(nodes: Sequence[str], slices: Sequence[Slice], what: str) -> str:
    ran = {name for entry in slices for name in entry.nodes}
    longest = max(slices, key=lambda entry: entry.duration_us)
    total = sum(entry.duration_us for entry in slices)
    text = f"{len(slices)} {what}{'s' * (len(slices) != 1)} ran {len(ran)} of {len(nodes)} nodes in {us(total)} µs."
    if total > 0:
        text += f" The longest, {_label(longest.name, 40)}, took {us(longest.duration_us)} µs of it"
        text += f" ({longest.duration_us / total:.0%}) for {', '.join(longest.nodes)}."
    if len(ran) < len(nodes):
        left = len(nodes) - len(ran)
        text += f" {left} node{'s' * (left != 1)} launched nothing, as views do."
    return text


def _lines(
    fig: go.Figure, pairs: Sequence[tuple[float, float]], width: float, colour: str, *, visible: bool = True
) -> None:
    gap = 0.008
    fig.add_scatter(
        x=[x for _ in pairs for x in (NODES + 2 * gap, SLICES - gap, None)],
        y=[y for left, right in pairs for y in (left, right, None)],
        mode="lines", line={"width": width, "color": colour}, hoverinfo="skip", visible=visible,
    )  # fmt: skip


def _node_column(fig: go.Figure, nodes: Sequence[str], node_y: dict[str, float], slices: Sequence[Slice]) -> None:
    ran_by = {name: [short_name(entry.name) for entry in slices if name in entry.nodes] for name in nodes}
    fig.add_scatter(
        x=[NODES] * len(nodes), y=[node_y[name] for name in nodes], mode="markers+text",
        text=[escape(cut(name, 24)) + "  " for name in nodes], textposition="middle left", textfont={"size": 12},
        marker={
            "size": 9, "color": PALETTE["grey"],
            "symbol": ["circle" if ran_by[name] else "circle-open" for name in nodes],
        },
        ids=list(nodes), meta={"search": True},
        hovertext=[
            f"<b>{wrapped(name)}</b><br>{wrapped(', '.join(ran_by[name])) if ran_by[name] else 'launched nothing'}"
            for name in nodes
        ],
        hovertemplate="%{hovertext}<extra></extra>", selected={"marker": {"opacity": 1}}, unselected=FADED,
    )  # fmt: skip


def _slice_column(fig: go.Figure, slices: Sequence[Slice], slice_y: Sequence[float]) -> None:
    longest = max(entry.duration_us for entry in slices) or 1.0
    fig.add_bar(
        orientation="h", base=[SLICES] * len(slices), x=[LONGEST * entry.duration_us / longest for entry in slices],
        y=list(slice_y), width=[0.6] * len(slices), marker={"color": PALETTE["violet"], "line": {"width": 0}},
        text=[f"{_label(entry.name)} {us(entry.duration_us)}" for entry in slices],
        textposition="outside", textfont={"size": 12}, cliponaxis=False,
        ids=[f"slice {row + 1}" for row in range(len(slices))], meta={"search": True},
        customdata=[", ".join(entry.nodes) for entry in slices],
        hovertext=[
            f"<b>{wrapped(entry.name)}</b><br>{us(entry.duration_us)} µs<br>nodes: {wrapped(', '.join(entry.nodes))}"
            for entry in slices
        ],
        hovertemplate="%{hovertext}<extra></extra>", selected={"marker": {"opacity": 1}}, unselected=FADED,
    )  # fmt: skip
    texts = [escape(text) for text in fig.data[-1].text]
    fig.data[-1].text = texts


def _slider(nodes: Sequence[str], place: dict[str, int], slices: Sequence[Slice]) -> dict:
    """All links first; then one slice after the other. The traces are: links, nodes, slices, then one per slice."""

    def step(label: str, chosen: int | None) -> dict:
        shown = [True, True, True, *(row == chosen for row in range(len(slices)))]
        points: list = [None] * len(shown)
        if chosen is not None:
            points[1:3] = [place[name] for name in slices[chosen].nodes], [chosen]
        return {"label": label, "method": "restyle", "args": [{"visible": shown, "selectedpoints": points}]}

    names = [f"{row + 1}: {escape(_label(entry.name))}" for row, entry in enumerate(slices)]
    steps = [step("all", None), *(step(name, row) for row, name in enumerate(names))]
    return {
        "active": 0, "steps": steps, "pad": {"t": 30}, "x": 0, "len": 1, "minorticklen": 0, "ticklen": 0,
        "currentvalue": {"prefix": "lit up: "}, "font": {"size": 12},
    }  # fmt: skip
