"""A whole figure as SVG: margins, panels, traces in order, legend, lines and annotations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fusionlab.show.controls import room_of
from fusionlab.show.still.axes import Axis, numbers
from fusionlab.show.still.marks import Panel, bars, scatter, swatch
from fusionlab.show.still.svg import document, element, path, stroke, text
from fusionlab.show.theme import GROUND, INK, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

WIDTH = 760.0  # pixels: a figure's full width on a page
AWAY = 8.0  # pixels between an axis and its labels
ENTRY = 22.0  # height of a legend line
KINDS = {"scatter": scatter, "bar": bars}


class StillError(ValueError):
    """A figure contains something that a still picture cannot show; the message says what."""


def picture(fig: Figure, title: str, alt: str, width: float = WIDTH) -> str:
    """`fig` as an SVG document, in its initial state without controls.

    Args:
        fig: made of scatter traces and bars.
        title, alt: its name, and what is drawn, for readers who cannot see it.
        width: in pixels; the height is the figure's own, without the room for controls.

    Raises:
        StillError: for a kind of trace or of shape that is unknown here.
    """
    whole = fig.to_plotly_json()
    for trace in whole["data"]:
        if trace["type"] not in KINDS:
            raise StillError(f"a still picture has no {trace['type']}; it has {', '.join(KINDS)}")
    return _Still(whole["data"], _themed(whole["layout"]), width).document(title, alt)


def _themed(layout: Mapping[str, Any]) -> dict[str, Any]:
    """The layout with the project's template under it."""
    themed = template().to_plotly_json()["layout"]
    return merged(themed, {key: value for key, value in layout.items() if key != "template"})


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings merged; `over` takes precedence."""
    both = dict(under)
    for key, value in over.items():
        inner = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if inner else value
    return both


class _Still:
    def __init__(self, traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], width: float) -> None:
        self.layout, self.width = layout, width
        colours = layout["colorway"]
        self.traces = [
            (_complete(trace), colours[place % len(colours)])
            for place, trace in enumerate(traces)
            if trace.get("visible", True) is True
        ]
        self.axes = {name: self._axis(name) for name in self._names()}
        for trace, _ in self.traces:
            for side in "xy":
                self.axis(trace, side).values += trace[side]
                if side == "x" and trace.get("base") is not None:  # as only horizontal bars have one here
                    ends = zip(numbers(trace["base"]), trace["x"], strict=True)
                    self.axis(trace, side).values += [base + length for base, length in ends]
        self._fit()
        self.margin = dict(layout["margin"])
        above, below = room_of(layout)
        self.margin["t"] -= above
        self.margin["b"] -= below
        self.height = layout["height"] - above - below
        self._make_room()
        self._lay()

    def _names(self) -> list[str]:
        used = {trace.get(f"{side}axis", side) for trace, _ in self.traces for side in "xy"} | {"x", "y"}
        return sorted(used)

    def _axis(self, name: str) -> Axis:
        own = self.layout.get(f"{name[0]}axis{name[1:]}", {})
        return Axis(name, merged(template().to_plotly_json()["layout"][f"{name[0]}axis"], own))

    def axis(self, trace: Mapping[str, Any], side: str) -> Axis:
        """The axis that a trace is drawn on."""
        return self.axes[trace.get(f"{side}axis", side)]

    def _fit(self) -> None:
        groups: dict[str, list[Axis]] = {}
        for axis in self.axes.values():
            groups.setdefault(axis.layout.get("matches", axis.name), []).append(axis)
        barred = {
            self.axis(trace, "x" if trace.get("orientation") == "h" else "y").name
            for trace, _ in self.traces
            if trace["type"] == "bar"
        }
        for group in groups.values():
            given = [axis.layout["range"] for axis in group if axis.layout.get("range") is not None]
            values = [value for axis in group for value in axis.values]
            for axis in group:
                if given:
                    axis.layout["range"] = given[0]
                axis.fit(values, bool(barred & {other.name for other in group}))

    def _make_room(self) -> None:
        """Set margins that fit the axis labels and the legend, as plotly does."""
        size = self.layout["font"]["size"]
        for axis in filter(lambda axis: axis.shown, self.axes.values()):
            labels = [text(label, size) for _, label in axis.ticks()] if _labelled(axis) else []
            if axis.name[0] == "y" and self._edge(axis, "x") == 0:
                need = max((label.width for label in labels), default=0) + 2 * AWAY + 24 * bool(_title(axis))
                self.margin["l"] = max(self.margin["l"], need)
            elif axis.name[0] == "x" and self._edge(axis, "y") == 0:
                need = max((label.height for label in labels), default=0) + AWAY + 28 * bool(_title(axis))
                self.margin["b"] = max(self.margin["b"], need)
        self.legend = self._legend_lines()
        if self.legend and self.layout["legend"].get("yanchor") == "bottom":
            named = 22 * bool(self.layout.get("title", {}).get("text"))
            needed = ENTRY * len(self.legend) + 34 + named
            self.height += max(0, needed - self.margin["t"])
            self.margin["t"] = max(self.margin["t"], needed)

    def _edge(self, axis: Axis, side: str) -> float:
        """The position of an axis along the other side, as a share of the whole plot."""
        other = self.axes.get(axis.layout.get("anchor") or side)
        return _domain(other)[0] if other is not None else 0.0

    def _lay(self) -> None:
        left, right = self.margin["l"], self.width - self.margin["r"]
        top, bottom = self.margin["t"], self.height - self.margin["b"]
        self.area = (left, top, right - left, bottom - top)
        self.height = max(self.height, self._legend_top() + ENTRY * len(self.legend) + AWAY)
        for axis in self.axes.values():
            low, high = _domain(axis)
            if axis.name[0] == "x":
                axis.start, axis.end = left + low * (right - left), left + high * (right - left)
            else:
                axis.start, axis.end = bottom - low * (bottom - top), bottom - high * (bottom - top)

    def paper(self, x: float, y: float) -> tuple[float, float]:
        """The pixels of a point in the whole plot, (0, 0) being its lower left."""
        left, top, width, height = self.area
        return left + x * width, top + (1 - y) * height

    def document(self, title: str, alt: str) -> str:
        """The picture."""
        panels = {}
        for trace, _ in self.traces:
            pair = self.axis(trace, "x"), self.axis(trace, "y")
            panels.setdefault((pair[0].name, pair[1].name), Panel(*pair, self.layout))
        parts = [part for panel in panels.values() for part in self._grid(panel)]
        for trace, colour in sorted(self.traces, key=lambda entry: _depth(entry[0])):
            panel = panels[self.axis(trace, "x").name, self.axis(trace, "y").name]
            parts += KINDS[trace["type"]](trace, panel, colour)
        parts += self._shapes()
        parts += self._annotations()
        parts += self._drawn_legend()
        parts += self._headline()
        return document(parts, self.width, self.height, title, alt, GROUND)

    def _grid(self, panel: Panel) -> Iterator[str]:
        size = self.layout["font"]["size"]
        for axis, other in ((panel.x, panel.y), (panel.y, panel.x)):
            if not axis.shown:
                continue
            flat = axis.name[0] == "y"
            for place, label in axis.ticks():
                at = axis.at(place)
                ends = [(other.start, at), (other.end, at)] if flat else [(at, other.start), (at, other.end)]
                zero = place == 0 and not axis.log and not axis.categories and axis.layout.get("zeroline", True)
                if axis.layout.get("showgrid", True) or zero:
                    yield element(
                        "path", d=path(ends), fill="none", **stroke(axis.layout["gridcolor"], 2 if zero else 1)
                    )
                if _labelled(axis):
                    made = text(label, size)
                    yield (made.at(other.start - AWAY, at, "end") if flat
                           else made.at(at, other.start + AWAY + made.height / 2, "middle"))  # fmt: skip
            if title := _title(axis):
                yield self._axis_title(axis, other, title, flat)

    def _axis_title(self, axis: Axis, other: Axis, title: str, flat: bool) -> str:
        made = text(title, axis.layout["title"].get("font", {}).get("size", 14))
        middle = (axis.start + axis.end) / 2
        if not flat:
            labels = max((text(label, 14).height for _, label in axis.ticks()), default=0)
            return made.at(middle, other.start + AWAY + labels + made.height / 2 + 4, "middle")
        labels = max((text(label, 14).width for _, label in axis.ticks()), default=0)
        x = other.start - 2 * AWAY - labels - made.height / 2
        return element("g", made.at(0, 0, "middle"), transform=f"translate({x:.1f} {middle:.1f}) rotate(-90)")

    def _reference(self, ref: str, value: float, across: bool) -> float:
        """A coordinate of a line or an annotation in pixels: of the paper, of an axis, or of a share of an axis."""
        if ref == "paper":
            return self.paper(value, 0)[0] if across else self.paper(0, value)[1]
        name, _, domain = ref.partition(" ")
        axis = self.axes[name]
        return axis.start + (axis.end - axis.start) * value if domain else axis.pixel(value)

    def _shapes(self) -> Iterator[str]:
        for shape in self.layout.get("shapes", ()):
            if shape["type"] != "line":
                raise StillError(f"a still picture has no shape {shape['type']!r}")
            ends = [
                (self._reference(shape.get("xref", "x"), shape[f"x{end}"], True),
                 self._reference(shape.get("yref", "y"), shape[f"y{end}"], False))
                for end in (0, 1)
            ]  # fmt: skip
            line = shape.get("line", {})
            yield element("path", d=path(ends), fill="none",
                          **stroke(line.get("color", INK), line.get("width", 1), line.get("dash")))  # fmt: skip

    def _annotations(self) -> Iterator[str]:
        for said in self.layout.get("annotations", ()):
            made = text(said["text"], said.get("font", {}).get("size", self.layout["font"]["size"]))
            x = self._reference(said.get("xref", "x"), said["x"], True) + said.get("xshift", 0)
            y = self._reference(said.get("yref", "y"), said["y"], False) - said.get("yshift", 0)
            y += {"bottom": -1, "top": 1}.get(said.get("yanchor", "middle"), 0) * made.height / 2
            anchor = {"left": "start", "right": "end"}.get(said.get("xanchor", "center"), "middle")
            if anchor == "middle" and said.get("align") == "left":
                x, anchor = x - made.width / 2, "start"
            yield made.at(x, y, anchor)

    def _entries(self) -> list[tuple[Mapping[str, Any], str]]:
        """The legend's entries: one per group, and none if a single trace needs no name."""
        shown = self.layout.get("showlegend", len(self.traces) > 1)
        groups: dict[Any, tuple[Mapping[str, Any], str]] = {}
        for place, (trace, colour) in enumerate(self.traces):
            if shown and trace.get("showlegend", True) and trace.get("name"):
                groups.setdefault(trace.get("legendgroup", place), (trace, colour))
        return list(groups.values())

    def _legend_lines(self) -> list[list[tuple[Mapping[str, Any], str]]]:
        lines: list[list[tuple[Mapping[str, Any], str]]] = []
        room = 0.0
        for entry in self._entries():
            need = 52 + text(entry[0]["name"], self._legend_size()).width
            if need > room:
                lines.append([])
                room = self.width - self.margin["l"] - self.margin["r"]
            lines[-1].append(entry)
            room -= need
        return lines

    def _legend_size(self) -> float:
        return self.layout["legend"].get("font", {}).get("size", self.layout["font"]["size"])

    def _legend_top(self) -> float:
        legend = self.layout["legend"]
        _, y = self.paper(0, legend.get("y", 1))
        return y - ENTRY * len(self.legend) * (legend.get("yanchor") == "bottom")

    def _drawn_legend(self) -> Iterator[str]:
        y = self._legend_top()
        for place, line in enumerate(self.legend):
            x, middle = self.area[0], y + ENTRY * (place + 0.5)
            for trace, colour in line:
                made = text(trace["name"], self._legend_size())
                yield swatch(trace, x, middle, colour) + made.at(x + 36, middle)
                x += 52 + made.width

    def _headline(self) -> Iterator[str]:
        """The title; if it belongs to the controls and was in their room, just above the plot."""
        title = self.layout.get("title", {})
        if title.get("text"):
            made = text(title["text"], title.get("font", {}).get("size", 16))
            yield made.at(self.area[0], AWAY + made.height / 2)


def _complete(trace: Mapping[str, Any]) -> dict[str, Any]:
    """A trace with both coordinates: if one is missing, it is the index of each point."""
    there = {side: numbers(trace[side]) for side in "xy" if trace.get(side) is not None}
    count = range(len(next(iter(there.values()), ())))
    return {**trace, "x": list(count), "y": list(count), **there}


def _depth(trace: Mapping[str, Any]) -> tuple[bool, int]:
    return trace["type"] != "bar", trace.get("zorder", 0)


def _domain(axis: Axis) -> Sequence[float]:
    return axis.layout.get("domain", (0.0, 1.0))


def _labelled(axis: Axis) -> bool:
    return axis.shown and axis.layout.get("showticklabels", True)


def _title(axis: Axis) -> str:
    title = axis.layout.get("title", {})
    return (title.get("text") or "") if axis.shown else ""
