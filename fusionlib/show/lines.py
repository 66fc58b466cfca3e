"""How the lines of one figure are told apart: by colour, dash and symbol at once."""

from __future__ import annotations

from dataclasses import dataclass

from fusionlib.show.theme import PALETTE


@dataclass(frozen=True)
class Style:
    """Names of a colour in the palette, of a dash and of a marker symbol, as plotly knows them."""

    colour: str
    dash: str
    symbol: str


STYLES = (
    Style("vermillion", "solid", "circle"),
    Style("blue", "dash", "square"),
    Style("green", "dashdot", "diamond"),
    Style("purple", "longdash", "triangle-up"),
    Style("orange", "dot", "triangle-down"),
    Style("sky", "longdashdot", "cross"),
    Style("olive", "solid", "x"),
)


def style(place: int) -> Style:
    """The style of the line at `place`; after the last they repeat."""
    return STYLES[place % len(STYLES)]


def line_of(chosen: Style, width: float = 2.5) -> dict:
    """plotly's words for a line of that style."""
    return {"width": width, "color": PALETTE[chosen.colour], "dash": chosen.dash}
