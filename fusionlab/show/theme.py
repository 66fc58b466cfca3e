"""One plotly template, legible on a light and on a dark page, for every figure."""

from __future__ import annotations

import functools

import plotly.graph_objects as go

# Based on Okabe and Ito's colours: each has a contrast of at least 3:1 with white and with #14171a, and all are clearly
# distinct. With some kinds of colour blindness two are similar, so a dash, symbol or hatching is used as well.
# `line_styles.IMPLEMENTATIONS` assigns them in all figures; in graphs blue means new and vermillion removed.
PALETTE = {
    "blue": "#1f77c4",
    "vermillion": "#d55e00",
    "green": "#00936b",
    "purple": "#c062a0",
    "ochre": "#a98400",
    "violet": "#7d63c9",
    "brown": "#8d5a3c",
    "grey": "#7d7d7d",
}
#: A figure's own background and text, in a notebook and in a picture: no grey is legible on light and on dark pages.
GROUND, INK = "#ffffff", "#1c2024"
HEIGHT = 420  # default height of a figure in pixels
GRID = "rgba(128, 128, 128, 0.28)"
CLEAR = "rgba(0, 0, 0, 0)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


#: How dark and how light a colour can be: black text is legible on the first, and the second is visible on white.
_SHADES = (0.18, 0.298)


def shades(name: str) -> tuple[str, str]:
    """A darker and a lighter variant of a palette colour, for touching neighbours of one kind."""
    digits = PALETTE[name].removeprefix("#")
    linear = [_linear(int(digits[at : at + 2], 16) / 255) for at in (0, 2, 4)]
    now = sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    made = []
    for wanted in _SHADES:
        grey = max(0.0, (wanted - now) / (1 - now))  # share of white to add
        part = min(1.0, wanted / now)  # or share of the existing light to keep
        made.append("#" + "".join(f"{round(255 * _shown(part * c + grey * (1 - c))):02x}" for c in linear))
    return made[0], made[1]


def _linear(share: float) -> float:
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4


def _shown(light: float) -> float:
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


@functools.cache
def template() -> go.layout.Template:
    """Return the template. Background and text are for light pages; the site's script replaces them by the page's."""
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zerolinecolor": GRID,
        "automargin": True,
        "title": {"standoff": 12, "font": {"size": 14}},
    }
    control = {"bgcolor": CLEAR, "bordercolor": PALETTE["grey"], "borderwidth": 1, "font": {"size": 13}}
    return go.layout.Template(
        layout={
            "paper_bgcolor": GROUND,
            "plot_bgcolor": CLEAR,
            "colorway": list(PALETTE.values()),
            "font": {"family": FONT, "size": 14, "color": INK},
            "title": {"x": 0, "xref": "paper", "font": {"size": 16}},
            "margin": {"l": 56, "r": 24, "t": 48, "b": 52},
            "height": HEIGHT,
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
            "hoverlabel": {"font": {"family": FONT}},
            # plotly fills the handle with `bgcolor`; it must stand out, since the rail is barely visible.
            "sliderdefaults": control
            | {
                "bgcolor": PALETTE["blue"],
                "activebgcolor": PALETTE["violet"],
                "tickcolor": PALETTE["grey"],
                "ticklen": 4,
                "len": 1.0,
            },
            "updatemenudefaults": control | {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
            "colorscale": {"sequential": "Cividis", "diverging": "RdBu"},
        }
    )
