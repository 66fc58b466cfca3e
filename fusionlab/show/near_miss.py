"""One site of a report as a picture: the parts of the computation on the left, the matching nodes on the right.

Matching starts at the cast to FP8 and walks up, so the rows are in that order: the first row is where it began, the
last is how far it got. Everything drawn is in the `Site`, so a report from a compile cache can be drawn too.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from html import escape as escape_html

import plotly.graph_objects as go

from fusionlab.show.drawing import Drawing, Table
from fusionlab.show.theme import PALETTE
from fusionlib.rewrite.report import Site

escape = partial(escape_html, quote=False)  # plotly shows an escaped quotation mark literally

#: What each part is, in a few words.
PARTS = {
    "opaque quantisation": "an op known by name",
    "cast": "to FP8: here a match begins",
    "clamp": "within the FP8 range",
    "quotient": "value / scale",
    "scale": "one for each group",
    "power of two": "scale rounded up, by bits",
    "scale = amax / fp8_max": "one for each group",
    "floor": "a lower bound",
    "amax": "largest magnitude of a group",
    "normed": "the value that is quantised",
    "rsqrt": "1 / sqrt(mean + eps)",
    "mean": "of the squares",
    "square": "of the value",
    "gated x": "x * act(gate)",
    "x": "what is normed",
    "gate": "what gates it",
    "weight": "a vector",
}
QUANT = ("cast", "quotient", "scale", "amax")
NORM = ("normed", "rsqrt", "mean", "square", "x", "gate")

LEFT, RIGHT = 33, 47  # positions of the two columns of markers, in percent of the width
GAP = 1.6  # between the middle of a numbered marker and its line
ROW = 38  # pixels for two lines of text
WIDTHS = {"left": 30, "right": 54, "below": 98}  # characters in a line, for a figure 700 pixels wide


@dataclass(frozen=True)
class _SiteNode:
    """A node as described by a site."""

    name: str
    operation: str = ""
    tensor: str = ""
    source: str = ""

    @property
    def short(self) -> str:
        """Operation without namespace and overload, dtype and shape."""
        parts = self.operation.split(".")
        kind = parts[1] if len(parts) > 1 and parts[0] in ("aten", "prims") else self.operation
        if self.operation == self.name:  # an input of the graph is its own target
            kind = "input"
        return " · ".join(filter(None, (kind, self.tensor)))


@dataclass(frozen=True)
class _Pair:
    """One row: a part, and the node that matches it."""

    part: str
    what: str
    node: _SiteNode


def near_miss(site: Site) -> Drawing:
    """Draw one site of a report, whatever became of it; the module's docstring describes the layout."""
    nodes = {name: _SiteNode(name, *rest) for name, *rest in site.nodes}
    pairs = list(_pairs(site, nodes))
    end = None if site.fused else nodes.get(site.node, _SiteNode(site.node))
    return Drawing(
        _figure(site, pairs, end),
        caption=f"%{site.anchor}, {site.outcome}{f': {site.code}' if site.refused else ''}.",
        alt=_alt(site, pairs, end),
        summary=_summary(site, pairs),
        table=_table(site, pairs, end),
    )


def _pairs(site: Site, nodes: dict[str, _SiteNode]) -> Iterator[_Pair]:
    """The site's pairs; consecutive parts of the same node are merged."""
    merged: list[tuple[list[str], str]] = []
    for role, node in site.pairs:
        if merged and merged[-1][1] == node:
            merged[-1][0].append(role)
        else:
            merged.append(([role], node))
    for roles, node in merged:
        if len(roles) > 1 and roles[1].startswith(roles[0]):
            roles = roles[1:]
        part, what = ", ".join(roles), PARTS.get(roles[0], "")
        if part.startswith("product of "):
            part, what = "product", f"of {part.removeprefix('product of ')}"
        yield _Pair(part, what, nodes.get(node, _SiteNode(node)))


def _missing_parts(site: Site) -> list[str]:
    """The parts that every match has and a refused site did not find."""
    if not site.refused:
        return []
    found = {role for role, _ in site.pairs}
    wanted = NORM if "opaque quantisation" in found else (*QUANT, *NORM)
    return [part for part in wanted if part not in found]


def _figure(site: Site, pairs: list[_Pair], end: _SiteNode | None) -> go.Figure:
    fig = go.Figure()
    places: dict[str, float] = {}
    for row, pair in enumerate(pairs):
        places.setdefault(pair.node.name, float(row))
    _matched(fig, pairs, places)
    y = float(len(pairs))
    if end is not None:
        draw = _stopped if site.refused else _unclaimed
        y = draw(fig, site, end, y, places)
        y = _rest(fig, _missing_parts(site), y)
    y = _below(fig, site, y)
    fig.update_xaxes(visible=False, range=[0, 100], fixedrange=True)
    fig.update_yaxes(visible=False, range=[y, -1.3], fixedrange=True)
    for x, text, anchor in ((LEFT, "part of the computation", "right"), (RIGHT, "node that plays it", "left")):
        shift = 12 if anchor == "left" else -12
        fig.add_annotation(
            x=x, y=-1, text=f"<b>{text}</b>", showarrow=False, xanchor=anchor, xshift=shift, font={"size": 14}
        )
    fig.update_layout(height=round(ROW * (y + 1.3)), showlegend=False, margin={"l": 0, "r": 0, "t": 4, "b": 4})
    return fig


def _matched(fig: go.Figure, pairs: list[_Pair], places: dict[str, float]) -> None:
    for row, pair in enumerate(pairs):
        fig.add_scatter(
            x=[LEFT + GAP, RIGHT], y=[row, places[pair.node.name]], mode="lines", hoverinfo="skip",
            line={"color": PALETTE["blue"], "width": 2},
        )  # fmt: skip
    rows = list(range(len(pairs)))
    hover = [escape(f"{pair.part}: {pair.what}") for pair in pairs]
    _labels(fig, LEFT, rows, [_two_lines(pair.part, pair.what, "left") for pair in pairs], hover)
    _markers(fig, LEFT, rows, "circle-open", "blue", [str(row + 1) for row in rows])
    firsts = {pair.node.name: pair.node for pair in pairs}.values()
    ys = [places[node.name] for node in firsts]
    texts = [_two_lines(node.name, node.short, "right") for node in firsts]
    _labels(fig, RIGHT, ys, texts, [_hover(node) for node in firsts])
    _markers(fig, RIGHT, ys, "square", "blue")


def _stopped(fig: go.Figure, site: Site, stop: _SiteNode, y: float, places: dict[str, float]) -> float:
    """The failing pair below the matched ones; returns where the next row goes."""
    beyond = site.found.removeprefix(
        f"%{stop.name} = {stop.operation} ({stop.tensor})"
    ).strip()  # the node is shown next to it
    found = f"found: {_short(beyond)}" if beyond and not beyond.startswith(f"%{stop.name} =") else ""
    again = f"the same node as in {int(places[stop.name]) + 1}" if stop.name in places else ""
    left = ["<b>expected</b>", *_small(_short(site.expected), "left")]
    right = [f"<b>{escape(stop.name)}</b>", *_small(stop.short, "right"), *_small(again, "right")]
    right += _small(found, "right")
    middle = y + _height(left, right) / 2 - 0.5 + 0.1
    for x, lines, position in ((LEFT, left, "middle left"), (RIGHT, right, "middle right")):
        hover = _hover(stop) if x == RIGHT else escape(site.expected)
        fig.add_scatter(
            x=[x + (2 if x == RIGHT else -2)], y=[middle], mode="text", text=["<br>".join(lines)],
            textposition=position, hovertext=[hover], hoverinfo="text",
        )  # fmt: skip
    fig.add_scatter(
        x=[LEFT, RIGHT], y=[middle, middle], mode="lines", hoverinfo="skip",
        line={"color": PALETTE["vermillion"], "width": 3, "dash": "dash"},
    )  # fmt: skip
    _markers(fig, LEFT, [middle], "diamond-open", "vermillion")
    _markers(fig, RIGHT, [middle], "diamond", "vermillion")
    fig.add_scatter(
        x=[(LEFT + RIGHT) / 2], y=[middle], mode="markers", hoverinfo="skip",
        marker={"symbol": "x", "size": 15, "color": PALETTE["vermillion"]},
    )  # fmt: skip
    return y + _height(left, right) + 0.2


def _unclaimed(fig: go.Figure, site: Site, producer: _SiteNode, y: float, places: dict[str, float]) -> float:
    """What produced the value, below the matched pairs, without a cross; returns where the next row goes."""
    again = f"the same node as in {int(places[producer.name]) + 1}" if producer.name in places else ""
    left = ["<b>what is quantised</b>", *_small("no fusion starts from it", "left")]
    right = [f"<b>{escape(producer.name)}</b>", *_small(producer.short, "right"), *_small(again, "right")]
    middle = y + _height(left, right) / 2 - 0.5 + 0.1
    fig.add_scatter(
        x=[LEFT, RIGHT], y=[middle, middle], mode="lines", hoverinfo="skip",
        line={"color": PALETTE["grey"], "width": 2, "dash": "dot"},
    )  # fmt: skip
    for x, lines, hover in ((LEFT, left, escape(site.what)), (RIGHT, right, _hover(producer))):
        _labels(fig, x, [middle], ["<br>".join(lines)], [hover])
    _markers(fig, LEFT, [middle], "circle-open", "grey")
    _markers(fig, RIGHT, [middle], "square-open", "grey")
    return y + _height(left, right) + 0.2


def _rest(fig: go.Figure, parts: list[str], y: float) -> float:
    """The parts that were not found, one line each."""
    if not parts:
        return y
    rows = [y + 0.62 * index for index in range(len(parts))]
    _labels(fig, LEFT, rows, [escape(part) for part in parts], [escape(PARTS[part]) for part in parts])
    _markers(fig, LEFT, rows, "circle-open", "grey")
    _labels(fig, RIGHT, rows[:1], ["<i>not found</i>"], ["matching stopped before"])
    return rows[-1] + 0.8


def _below(fig: go.Figure, site: Site, y: float) -> float:
    """What concerns the whole site: its line, what was read, what would help, or what a fusion would save."""
    texts = {name: text for name, *_, text in site.nodes}
    source = texts.get(site.node) or texts.get(site.anchor, "")
    where = ": ".join(filter(None, (site.line or "", source)))
    if site.unclaimed:
        rows = [("at", where), ("worth", site.what), ("also unread", site.sentence)]
    else:
        rows = [("at", where), ("read as", site.what), ("meaning", site.sentence), ("fix", site.fix)]
    lines: list[str] = []
    for head, text in rows:
        wrapped = _small(text, "below")
        if wrapped:
            lines += [f"<b>{head}</b>  {wrapped[0]}", *wrapped[1:]]
    height = 0.48 * len(lines) + 0.3
    fig.add_annotation(
        x=1, y=y + height / 2 - 0.3, text="<br>".join(lines), showarrow=False, xanchor="left", align="left",
        font={"size": 13},
    )  # fmt: skip
    return y + height


def _labels(fig: go.Figure, x: int, ys: list[float], texts: list[str], hover: list[str]) -> None:
    position, shift = ("middle left", -2) if x == LEFT else ("middle right", 2)
    fig.add_scatter(
        x=[x + shift] * len(ys), y=ys, mode="text", text=texts, textposition=position, hovertext=hover,
        hoverinfo="text",
    )  # fmt: skip


def _markers(
    fig: go.Figure, x: int, ys: list[float], symbol: str, colour: str, numbers: list[str] | None = None
) -> None:
    size = 23 if numbers else 13
    fig.add_scatter(
        x=[x] * len(ys), y=ys, mode="markers+text" if numbers else "markers", text=numbers, hoverinfo="skip",
        textposition="middle center", textfont={"size": 12}, cliponaxis=False,
        marker={"symbol": symbol, "size": size, "color": PALETTE[colour], "line": {"width": 2}},
    )  # fmt: skip


def _two_lines(head: str, detail: str, side: str) -> str:
    second = f"<br><span style='font-size:12px'>{escape(_cut(detail, WIDTHS[side] + 4))}</span>" if detail else ""
    return f"<b>{escape(_cut(head, WIDTHS[side] - 6))}</b>{second}"


def _small(text: str, side: str) -> list[str]:
    return [f"<span style='font-size:12px'>{escape(line)}</span>" for line in textwrap.wrap(text, WIDTHS[side])]


def _short(text: str) -> str:
    """Operations without namespace and overload, as beside the nodes."""
    return re.sub(r"\b(?:aten|prims)\.(\w+)\.\w+", r"\1", text)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _height(*columns: list[str]) -> float:
    """Rows needed by the longest of some columns of lines."""
    return max(1.0, 0.48 * max(map(len, columns)) + 0.1)


def _hover(node: _SiteNode) -> str:
    return "<br>".join(escape(line) for line in (f"%{node.name} = {node.operation}", node.tensor, node.source) if line)


def _alt(site: Site, pairs: list[_Pair], end: _SiteNode | None) -> str:
    last = ""
    if end is not None and site.refused:
        last = f" A dashed line with a cross ends at %{end.name}, where matching stopped."
    elif end is not None:
        last = f" A dotted line ends at %{end.name}, which made what is quantised; no fusion starts from it."
    return (
        f"Two columns: {len(pairs)} numbered parts of the computation on the left, on the right the nodes of the graph "
        f"that play them, each pair joined by a line.{last}"
    )


def _summary(site: Site, pairs: list[_Pair]) -> str:
    nodes = len({pair.node.name for pair in pairs})
    if site.fused:
        return f"{len(pairs)} parts were found in {nodes} nodes, and nothing prevents the rewrite: {site.what}."
    where = f" ({site.line})" if site.line else ""
    if site.unclaimed:
        unread = f" Its quantisation cannot be read either: {site.sentence}" if site.code else ""
        return (
            f"{_count(len(pairs), 'part')} found in {_count(nodes, 'node')}. No fusion starts from what is quantised: "
            f"{site.found}{where}; {site.what}.{unread}"
        )
    got = (
        f"{_count(len(pairs), 'part')} found in {_count(nodes, 'node')}, the last one “{pairs[-1].part}”; then it"
        if pairs
        else "Nothing was found; it"
    )
    return (
        f"{got} stopped at %{site.node}{where}. Expected: {site.expected}; found: {site.found}. {site.sentence} "
        f"The way out: {site.fix}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _table(site: Site, pairs: list[_Pair], end: _SiteNode | None) -> Table:
    rows = [
        (str(number), pair.part, pair.node.name, pair.node.operation, pair.node.tensor, pair.node.source)
        for number, pair in enumerate(pairs, start=1)
    ]
    if end is not None:
        head, part = ("stop", "") if site.refused else ("", "what is quantised")
        rows.append((head, part, end.name, end.operation, end.tensor, end.source))
        if site.refused:
            words = (("expected", site.expected), ("found", site.found), ("fix", site.fix))
        else:
            words = (("worth", site.what),)
        rows += [("", head, "", "", "", text) for head, text in words]
        rows += [("", part, "not found", "", "", "") for part in _missing_parts(site)]
    columns = ("", "part", "node", "operation", "dtype and shape", "source, or in words")
    return Table("The pairs, one by one", columns, rows)
