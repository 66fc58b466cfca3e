"""The sliders, menus and buttons inside a figure, and the room that they take.

A notebook has only plotly's own, drawn into the figure. The site turns them into page elements that are accessible by
keyboard, and a still picture has none: both reclaim the room, which the figure's layout states in `meta.controls`, in
pixels above and below the plot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SLIDER = 84  # pixels that a slider takes below the axis: its value, its rail, its labels


def room(*, above: int = 0, below: int = 0) -> dict[str, Any]:
    """A layout's `meta` for the pixels in its height and margins that are reserved for controls."""
    return {"controls": {"above": above, "below": below}}


def room_of(layout: Mapping[str, Any]) -> tuple[int, int]:
    """The pixels above and below the plot that a layout reserves for controls."""
    said = (layout["meta"] or {}).get("controls", {}) if "meta" in layout else {}
    return said.get("above", 0), said.get("below", 0)


def without_controls(fig: Figure) -> Figure:
    """A copy of `fig` in its initial state, without controls and their room."""
    import plotly.graph_objects as go

    plain = go.Figure(fig)
    above, below = room_of(plain.layout.to_plotly_json())
    plain.layout.sliders = plain.layout.updatemenus = plain.layout.meta = None
    plain.layout.height -= above + below
    plain.layout.margin.t = (plain.layout.margin.t or 0) - above if above else plain.layout.margin.t
    plain.layout.margin.b = (plain.layout.margin.b or 0) - below if below else plain.layout.margin.b
    return plain
