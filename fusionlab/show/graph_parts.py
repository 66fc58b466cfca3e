"""The traces that draw a graph: boxes, edges, node texts. Dash, weight and symbol distinguish the kinds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusionlab.show.graph_layout import Box, Layout

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEAST_WIDTH = 620.0  # pixels of the plane on a narrow page; a small graph is not stretched beyond it
HEAD = {"symbol": "triangle-down", "size": 7, "color": "#7d7d7d"}  # of an arrow; the theme's grey
MARGIN = 12.0  # pixels around the plane
GAP = "\u00a0"  # between the symbol and the text
SYMBOL = 12.0  # pixels from a box's left edge to its symbol's centre


@dataclass(frozen=True)
class Look:
    """How the boxes of one kind look: colour, and what distinguishes them without it."""

    name: str
    colour: str
    dash: str
    width: float
    symbol: str
    size: float
    fill: float = 0.08

    def rgba(self) -> str:
        """The fill colour."""
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red}, {green}, {blue}, {self.fill})"


def looks() -> dict[str, Look]:
    """All looks by kind, in the order of the legend."""
    from fusionlab.show.theme import PALETTE

    return {
        "kept": Look("stays", PALETTE["grey"], "solid", 1.0, "circle", 6),
        "removed": Look("✕ removed", PALETTE["vermillion"], "dash", 2.0, "x", 9),
        "added": Look("✚ added", PALETTE["blue"], "solid", 4.0, "cross", 10, 0.16),
        "view": Look("◇ moves nothing", PALETTE["grey"], "dash", 1.0, "diamond-open", 9, 0.0),
        "call": Look("■ moves bytes", PALETTE["blue"], "solid", 2.5, "square", 8, 0.12),
        "plain": Look("■ call", PALETTE["blue"], "solid", 1.5, "square", 8, 0.12),
        "value": Look("● input or output", PALETTE["green"], "solid", 1.5, "circle", 7),
        "stub": Look("… folded", PALETTE["grey"], "dot", 1.5, "circle-open", 7, 0.0),
        "touched": Look("this step", PALETTE["ochre"], "solid", 5.0, "circle", 6, 0.0),
        "gone": Look("gone", PALETTE["grey"], "dot", 1.0, "circle", 6, 0.0),
    }


#: A line in pieces: coordinates with None between one piece and the next.
Line = tuple[list[float | None], list[float | None]]


def outlines(boxes: Iterable[Box], grow: float = 0.0) -> Line:
    """The boxes' outlines as one line, each `grow` pixels larger on every side."""
    grown = (Box(box.x, box.y, box.width + 2 * grow, box.height + 2 * grow) for box in boxes)
    return _joined([box.outline for box in grown])


def curves(layout: Layout, edges: Collection[tuple[str, str]]) -> Line:
    """The edges as one line."""
    return _joined([line for edge, line in layout.lines.items() if edge in edges])


def heads(layout: Layout, edges: Collection[tuple[str, str]]) -> Line:
    """The points where the edges end."""
    ends = [line[-1] for edge, line in layout.lines.items() if edge in edges]
    return [x for x, _ in ends], [round(y + 3, 1) for _, y in ends]


def _joined(pieces: Sequence[Sequence[tuple[float, float]]]) -> Line:
    points = [point for piece in pieces for point in (*piece, (None, None))]
    return [x for x, _ in points], [y for _, y in points]


def box_trace(look: Look, line: Line) -> go.Scatter:
    """The boxes of one look, with a legend entry."""
    import plotly.graph_objects as go

    return go.Scatter(
        x=line[0], y=line[1], mode="lines", fill="toself", fillcolor=look.rgba(), name=look.name, hoverinfo="skip",
        line={"color": look.colour, "dash": look.dash, "width": look.width},
    )  # fmt: skip


def edge_trace(look: Look, line: Line) -> go.Scatter:
    """The edges of one look."""
    import plotly.graph_objects as go

    width = 2.5 if look.width > 3 else 1.25
    return go.Scatter(
        x=line[0], y=line[1], mode="lines", hoverinfo="skip", showlegend=False, opacity=0.8,
        line={"color": look.colour, "dash": look.dash, "width": width},
    )  # fmt: skip


def head_trace(line: Line) -> go.Scatter:
    """The arrow heads, for the direction of the data."""
    import plotly.graph_objects as go

    return go.Scatter(x=line[0], y=line[1], mode="markers", hoverinfo="skip", showlegend=False, marker=HEAD)


def node_trace(layout: Layout, labels: Mapping[str, Sequence[str]], hovers: Mapping[str, str], kinds: Mapping) -> Any:
    """Symbols and texts, one point per node, found by hovering and by search. Absent nodes have no kind."""
    import plotly.graph_objects as go

    from fusionlab.show.theme import PALETTE

    points = node_points(layout, labels, kinds)
    return go.Scatter(
        **points, mode="markers+text", showlegend=False,
        text=["<br>".join(GAP + line for line in lines) for lines in labels.values()],
        textposition="middle right", textfont={"size": 12},
        ids=_each_once(hovers[name].partition("</b>")[0].removeprefix("<b>") for name in labels),
        hovertext=[hovers[name] for name in labels], hoverinfo="text", meta={"search": True},
        selected={"marker": {"opacity": 1, "size": 17, "color": PALETTE["ochre"]}},
        unselected={"marker": {"opacity": 0.25}},
    )  # fmt: skip


def _each_once(names: Iterable[str]) -> list[str]:
    """`names`, with repeated ones numbered: plotly draws only the first point of each id."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return numbered


def node_points(layout: Layout, labels: Mapping[str, Sequence[str]], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Positions and kinds of the symbols; a node without a kind is not drawn, but keeps its place in the list.

    It must keep its place because a search marks points by index.
    """
    table = looks()
    at = [table[kinds[name]] if name in kinds else None for name in labels]
    left = [layout.boxes[name].x - layout.boxes[name].width / 2 + SYMBOL for name in labels]
    return {
        "x": [None if look is None else round(x, 1) for x, look in zip(left, at, strict=True)],
        "y": [round(layout.boxes[name].y, 1) for name in labels],
        "marker": {
            "symbol": [look.symbol if look else "circle" for look in at],
            "size": [look.size if look else 1 for look in at],
            "color": [look.colour if look else "#7d7d7d" for look in at],
        },
    }


def plane(layout: Layout, above: float, **rest: Any) -> dict[str, Any]:
    """The figure's layout: no axes, a pixel per unit upwards, at least one sideways; `above` pixels for controls."""
    spare = max(0.0, LEAST_WIDTH - layout.width) / 2
    hidden = {"visible": False, "fixedrange": True, "automargin": False}
    return {
        "height": round(layout.height + 2 * MARGIN + above),
        "margin": {"l": 6, "r": 6, "t": above, "b": 6},
        "xaxis": hidden | {"range": [-spare - MARGIN, layout.width + spare + MARGIN]},
        "yaxis": hidden | {"range": [-MARGIN, layout.height + MARGIN]},
        "hovermode": "closest",
        "hoverdistance": 45,
        "legend": {
            "y": 1.0, "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False, "font": {"size": 13},
        },
        **rest,
    }  # fmt: skip
