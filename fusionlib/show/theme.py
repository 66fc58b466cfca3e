"""One plotly template, legible on a light and on a dark page, for every figure."""

from __future__ import annotations

import functools

import plotly.graph_objects as go

# Okabe and Ito's colours, told apart with any of the common colour-blindnesses, in their order of hue. Each is moved in
# lightness until it stands out by 3:1 at least from white and from #14171a; their yellow and black cannot, so the one
# became an olive and the other a grey.
PALETTE = {
    "blue": "#2b7fbf",
    "vermillion": "#d55e00",
    "green": "#009670",
    "purple": "#b8679a",
    "orange": "#b87f00",
    "sky": "#3b95cc",
    "olive": "#8f8a1f",
    "grey": "#7d7d7d",
}
TEXT = "#787878"
GRID = "rgba(128, 128, 128, 0.28)"
CLEAR = "rgba(0, 0, 0, 0)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@functools.cache
def template() -> go.layout.Template:
    """Return the template. Text is the grey that both pages bear; the site's script replaces it by the page's own."""
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zerolinecolor": GRID,
        "automargin": True,
        "title": {"standoff": 12, "font": {"size": 14}},
    }
    control = {"bgcolor": CLEAR, "bordercolor": TEXT, "borderwidth": 1, "font": {"size": 13}}
    return go.layout.Template(
        layout={
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "colorway": list(PALETTE.values()),
            "font": {"family": FONT, "size": 14, "color": TEXT},
            "title": {"x": 0, "xref": "paper", "font": {"size": 16}},
            "margin": {"l": 56, "r": 24, "t": 48, "b": 52},
            "height": 420,
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
            "hoverlabel": {"font": {"family": FONT}},
            # plotly fills the handle with `bgcolor`; it must stand out, since the rail hardly does.
            "sliderdefaults": control
            | {
                "bgcolor": PALETTE["blue"],
                "activebgcolor": PALETTE["sky"],
                "tickcolor": TEXT,
                "ticklen": 4,
                "len": 1.0,
            },
            "updatemenudefaults": control | {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
            "colorscale": {"sequential": "Cividis", "diverging": "RdBu"},
        }
    )
