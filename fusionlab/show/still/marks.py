"""The marks of a still picture: a trace's lines, symbols and texts, and its bars."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fusionlab.show.still.axes import Axis, numbers
from fusionlab.show.still.svg import element, number, path, stroke, text
from fusionlab.show.theme import INK

Point = tuple[float, float]

_ARM = ((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3))
_PLUS = (*_ARM, *((-x, -y) for x, y in _ARM))
#: Symbols as outlines in units of half their size; the rest of plotly's names are drawn as circles.
SYMBOLS: Mapping[str, Sequence[Point]] = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    "triangle-up": ((0, -1.1), (1, 0.7), (-1, 0.7)),
    "triangle-down": ((0, 1.1), (1, -0.7), (-1, -0.7)),
    "arrow": ((0, 0), (0.6, -1.4), (-0.6, -1.4)),  # from a launch down to what it started
    "cross": _PLUS,
    "x": tuple((0.75 * (x - y), 0.75 * (x + y)) for x, y in _PLUS),
}
#: Symbols that are lines without an inside.
STROKES: Mapping[str, Sequence[Sequence[Point]]] = {
    "line-ns": (((0, -1), (0, 1)),),
    "x-thin": (((-0.7, -0.7), (0.7, 0.7)), ((-0.7, 0.7), (0.7, -0.7))),
}
PATTERNS = {"/": "M0,7L7,0", "\\": "M0,0L7,7", "x": "M0,7L7,0M0,0L7,7", "-": "M0,3.5H7", "|": "M3.5,0V7",
            "+": "M0,3.5H7M3.5,0V7", ".": "M3.5,3.5h0.1"}  # fmt: skip


@dataclass
class Panel:
    """Where a trace is drawn: its two axes, and how far bars already reach, by position and sign."""

    x: Axis
    y: Axis
    layout: Mapping[str, Any]
    stacked: dict[tuple[float, bool], float] = field(default_factory=dict)

    def clip(self, body: str) -> str:
        """`body` clipped to the panel; its coordinates stay those of the whole picture."""
        left, right = sorted((self.x.start, self.x.end))
        top, bottom = sorted((self.y.start, self.y.end))
        view = " ".join(map(number, (left, top, right - left, bottom - top)))
        return (
            element("svg", body, x=left, y=top, width=right - left, height=bottom - top, viewBox=view) if body else ""
        )

    def inside(self, x: float, y: float, spare: float = 0.5) -> bool:
        """Whether a point is within the axes."""
        (left, right), (top, bottom) = sorted((self.x.start, self.x.end)), sorted((self.y.start, self.y.end))
        return left - spare <= x <= right + spare and top - spare <= y <= bottom + spare


def each(value: Any, count: int, default: Any) -> list[Any]:
    """An attribute for every point: plotly accepts one value for all, or a list."""
    if value is None:
        return [default] * count
    if isinstance(value, (str, int, float)):
        return [value] * count
    return [default if entry is None else entry for entry in numbers(value)]


def scatter(trace: Mapping[str, Any], panel: Panel, colour: str) -> Iterator[str]:
    """A trace of points: line, symbols and texts, according to its mode."""
    points = [
        (panel.x.pixel(x), panel.y.pixel(y)) if x is not None and y is not None else None
        for x, y in zip(trace["x"], trace["y"], strict=True)
    ]
    mode, marker = trace.get("mode", "lines+markers"), trace.get("marker", {})
    colour = trace.get("line", {}).get("color", colour)
    body = ""
    if "lines" in mode:
        body += panel.clip("".join(_line(trace, points, colour)))
    if "markers" in mode:
        body += "".join(_symbols(marker, points, panel, colour))
    if "text" in mode:
        body += "".join(_texts(trace, points, panel))
    if body:
        yield element("g", body, opacity=trace.get("opacity"))


def _line(trace: Mapping[str, Any], points: Sequence[Point | None], colour: str) -> Iterator[str]:
    line = trace.get("line", {})
    pieces: list[list[Point]] = [[]]
    for point in points:
        if point is None:
            pieces.append([])
        else:
            pieces[-1].append(point)
    pieces = [piece for piece in pieces if len(piece) > 1]
    if line.get("shape") == "hvh":
        pieces = [_steps(piece) for piece in pieces]
    if pieces:
        look = stroke(line.get("color", colour), line.get("width", 2), line.get("dash"))
        fill = trace.get("fillcolor", "none") if trace.get("fill") == "toself" else "none"
        yield element("path", d="".join(map(path, pieces)), fill=fill, stroke_linejoin="round", **look)


def _steps(piece: Sequence[Point]) -> list[Point]:
    made = [piece[0]]
    for (x0, y0), (x1, y1) in pairwise(piece):
        made += [((x0 + x1) / 2, y0), ((x0 + x1) / 2, y1)]
    return [*made, piece[-1]]


def _symbols(marker: Mapping[str, Any], points: Sequence, panel: Panel, colour: str) -> Iterator[str]:
    looks: dict[tuple, list[Point]] = {}  # points that look alike are one path
    listed = (
        each(marker.get(key), len(points), default)
        for key, default in (("symbol", "circle"), ("size", 6), ("color", colour), ("opacity", 1))
    )
    for point, *look in zip(points, *listed, strict=True):
        if point is not None and look[1] and panel.inside(*point):
            looks.setdefault(tuple(look), []).append(point)
    for (symbol, size, paint, opacity), places in looks.items():
        yield symbols(symbol, size, places, paint, marker.get("line", {}).get("width"), opacity)


def symbols(
    symbol: str,
    size: float,
    places: Sequence[Point],
    colour: str,
    width: float | None,
    opacity: float = 1,
) -> str:
    """One symbol at many places."""
    name = symbol.removesuffix("-open")
    half, see_through = size / 2, None if opacity == 1 else opacity
    if name in STROKES:
        d = "".join(path((x + half * a, y + half * b) for a, b in line) for x, y in places for line in STROKES[name])
        return element("path", d=d, fill="none", opacity=see_through, **stroke(colour, width or 1.5))
    hollow = {"fill": "none", **stroke(colour, width or 1.5)} if symbol != name else {"fill": colour}
    if name in SYMBOLS:
        outlines = ([(x + half * a, y + half * b) for a, b in SYMBOLS[name]] for x, y in places)
        return element("path", d="".join(f"{path(outline)}Z" for outline in outlines), opacity=see_through, **hollow)
    if symbol == name:  # a line of zero length with a round cap: the shortest form for many discs
        d = "".join(f"M{number(x)},{number(y)}h0" for x, y in places)
        return element("path", d=d, stroke_linecap="round", opacity=see_through, **stroke(colour, size))
    return "".join(element("circle", cx=x, cy=y, r=half, opacity=see_through, **hollow) for x, y in places)


def _texts(trace: Mapping[str, Any], points: Sequence, panel: Panel) -> Iterator[str]:
    font, marker = trace.get("textfont", {}), trace.get("marker", {})
    size = font.get("size", panel.layout["font"]["size"])
    sizes = each(marker.get("size"), len(points), 6) if "markers" in trace["mode"] else [0] * len(points)
    vertical, _, side = trace.get("textposition", "middle center").partition(" ")
    for point, source, symbol in zip(points, each(trace.get("text"), len(points), ""), sizes, strict=True):
        if point is None or source == "":
            continue
        made, away = text(source, size), symbol / 2 + (3 if symbol else 0)
        x = point[0] + {"left": -away, "right": away}.get(side, 0)
        y = point[1] + {"top": -1, "bottom": 1}.get(vertical, 0) * (made.height / 2 + away)
        yield made.at(x, y, {"left": "end", "right": "start"}.get(side, "middle"), font.get("color", INK))


@dataclass(frozen=True)
class _Bar:
    """One bar: from `base`, `length` long on the axis of values, `width` wide around `place` on the other."""

    panel: Panel
    flat: bool
    place: float
    base: float
    length: float
    width: float

    @property
    def along(self) -> Axis:
        """The axis of values."""
        return self.panel.x if self.flat else self.panel.y

    @property
    def across(self) -> Axis:
        """The axis that the bars stand on."""
        return self.panel.y if self.flat else self.panel.x

    def point(self, value: float, side: float = 0.0) -> tuple[float, float]:
        """Where `value` is, at `side` widths from the middle."""
        point = self.along.pixel(value), self.across.at(self.place + side * self.width)
        return point if self.flat else point[::-1]

    @property
    def box(self) -> dict[str, float]:
        """Its rectangle."""
        (x0, y0), (x1, y1) = self.point(self.base, -0.5), self.point(self.base + self.length, 0.5)
        return {"x": min(x0, x1), "y": min(y0, y1), "width": abs(x1 - x0), "height": abs(y1 - y0)}


def bars(trace: Mapping[str, Any], panel: Panel, colour: str) -> Iterator[str]:
    """A trace of bars, with their texts and whiskers."""
    made = list(_bars(trace, panel))
    marker = trace.get("marker", {})
    edge, pattern = marker.get("line", {}), marker.get("pattern", {})
    drawn = ""
    for bar, fill, rim in zip(
        made, each(marker.get("color"), len(made), colour), each(edge.get("color"), len(made), "none"), strict=True
    ):
        drawn += element("rect", fill=fill, **bar.box, **stroke(rim, edge.get("width", 0)))
        if pattern.get("shape"):
            drawn += _hatched(pattern["shape"], pattern.get("fgcolor", "#ffffff"), bar.box)
    yield element("g", panel.clip(drawn), opacity=marker.get("opacity"))
    error = trace.get("error_x" if trace.get("orientation") == "h" else "error_y", {})
    above, below = (each(error.get(name), len(made), 0) for name in ("array", "arrayminus"))
    for bar, high, low in zip(made, above, below, strict=True):
        if high or low:
            yield _whisker(bar, bar.base + bar.length - low, bar.base + bar.length + high)
    yield from _bar_texts(trace, made, above)


def _bars(trace: Mapping[str, Any], panel: Panel) -> Iterator[_Bar]:
    flat = trace.get("orientation") == "h"
    lengths, places = (trace[side] for side in ("xy" if flat else "yx"))
    bases = each(trace.get("base"), len(places), None)
    widths = each(trace.get("width"), len(places), 1 - panel.layout.get("bargap", 0.2))
    for length, value, base, width in zip(lengths, places, bases, widths, strict=True):
        place = (panel.y if flat else panel.x).place(value)
        if base is None:
            key = (place, length < 0)
            base = panel.stacked.get(key, 0.0) if panel.layout.get("barmode") == "stack" else 0.0
            panel.stacked[key] = base + length
        yield _Bar(panel, flat, place, base, length, width)


def _hatched(shape: str, colour: str, box: Mapping[str, float]) -> str:
    name = f"hatch-{ord(shape)}-{''.join(filter(str.isalnum, colour))}"  # the same everywhere in a page
    line = element("path", d=PATTERNS[shape], fill="none", **stroke(colour, 1.2))
    made = element("pattern", line, id=name, width=7, height=7, patternUnits="userSpaceOnUse")
    return element("defs", made) + element("rect", fill=f"url(#{name})", **box)


def _bar_texts(trace: Mapping[str, Any], made: Sequence[_Bar], past: Sequence[float]) -> Iterator[str]:
    inside = trace.get("textposition") == "inside"
    font = trace.get("insidetextfont" if inside else "textfont", {})
    for bar, source, high in zip(made, each(trace.get("text"), len(made), ""), past, strict=True):
        if source == "":
            continue
        said = text(source, font.get("size", bar.panel.layout["font"]["size"]))
        x, y = bar.point(bar.base + bar.length / 2 if inside else bar.base + bar.length + high)
        if not inside:
            dx, dy, anchor = (4, 0, "start") if bar.flat else (0, -said.height / 2 - 2, "middle")
            yield said.at(x + dx, y + dy, anchor, font.get("color", INK))
        elif said.width <= bar.box["width"] and bar.panel.inside(x, y):
            yield said.at(x, y, "middle", font.get("color", INK))


def _whisker(bar: _Bar, low: float, high: float) -> str:
    ends = [bar.point(low), bar.point(high)]
    step = (0, 4) if bar.flat else (4, 0)
    caps = ([(x - step[0], y - step[1]), (x + step[0], y + step[1])] for x, y in ends)
    return element("path", d="".join(map(path, (ends, *caps))), fill="none", **stroke(INK, 1.5))


def swatch(trace: Mapping[str, Any], x: float, y: float, colour: str) -> str:
    """A trace's symbol in the legend: 30 pixels from `x` on."""
    marker, line, mode = trace.get("marker", {}), trace.get("line", {}), trace.get("mode", "lines+markers")
    colour = line.get("color", colour)
    paint = next(iter(each(marker.get("color"), 1, colour)), colour)
    if trace["type"] == "bar":
        box = {"x": x + 6, "y": y - 6, "width": 18, "height": 12}
        shape = marker.get("pattern", {}).get("shape")
        made = element("rect", fill=paint, **box)
        return made + (_hatched(shape, marker["pattern"].get("fgcolor", "#ffffff"), box) if shape else "")
    body = ""
    if "lines" in mode:
        look = stroke(line.get("color", colour), line.get("width", 2), line.get("dash"))
        if trace.get("fill") == "toself":
            body += element("rect", x=x + 4, y=y - 6, width=22, height=12, fill=trace.get("fillcolor", "none"), **look)
        else:
            body += element("path", d=path([(x, y), (x + 30, y)]), fill="none", **look)
    if "markers" in mode:
        symbol, size = (each(marker.get(key), 1, other)[0] for key, other in (("symbol", "circle"), ("size", 6)))
        if not math.isclose(size, 0):
            body += symbols(symbol, size, [(x + 15, y)], paint, marker.get("line", {}).get("width"))
    return body
