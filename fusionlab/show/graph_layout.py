"""The layout of a graph in pixels: boxes in layers, lines between them, data flowing downwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fusionlab.show.graph_layers import Layers, in_layers

CHARACTER = 7.7  # pixels per character at 12 px: a digit of DejaVu Sans, the widest font of the pages
LINE = 16.0  # pixels per line of text
PADDING = (30.0, 10.0)  # pixels beside the text, including the symbol, and above and below together
MOST_BOXES = 150  # with more, a figure as wide as a page is unreadable, and its data too large for a page to load
APART = (12.0, 22.0)  # pixels between neighbouring boxes, and between layers
LANE = APART[0]  # pixels that a line takes where it passes through a layer
PORTS = 14.0  # maximum pixels between the ends of lines at one box
CURVE_STEPS = 6  # straight pieces of a curve between two layers


@dataclass(frozen=True)
class Box:
    """A node's rectangle in pixels at the minimum width; `y` grows upwards. (x, y) is its centre."""

    x: float
    y: float
    width: float
    height: float

    @property
    def outline(self) -> list[tuple[float, float]]:
        """Its corners, with the first repeated at the end."""
        w, h = self.width / 2, self.height / 2
        return [(round(self.x + a * w, 1), round(self.y + b * h, 1)) for a, b in _CORNERS]


_CORNERS = ((-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1))


@dataclass(frozen=True)
class Layout:
    """Boxes by node and lines by edge, in a plane of `width` times `height` pixels."""

    boxes: Mapping[str, Box]
    lines: Mapping[tuple[str, str], Sequence[tuple[float, float]]]
    width: float
    height: float


def lay_out(labels: Mapping[str, Sequence[str]], edges: Iterable[tuple[str, str]]) -> Layout:
    """Boxes for `labels` (the lines of text of each node) and lines for `edges`, data flowing downwards.

    Raises:
        graph_layers.LayoutError: if graphlay is missing.
        ValueError: for more boxes than a figure can hold.
    """
    if len(labels) > MOST_BOXES:
        raise ValueError(
            f"{len(labels)} boxes are more than the {MOST_BOXES} that can be read in one figure; draw a part of the "
            "graph: fewer hops around fewer nodes"
        )
    names = list(labels)
    number = {name: position for position, name in enumerate(names)}
    layers = in_layers(len(names), {(number[source], number[target]) for source, target in edges})
    sizes = [box_size(labels[name]) for name in names]
    widths = [width + APART[0] for width, _ in sizes] + [LANE] * (len(layers.level) - len(names))
    middles = [x - APART[0] / 2 for x in layers.across(widths)]
    bands = _bands(layers, [height for _, height in sizes])
    centres = [(x, sum(bands[level]) / 2) for x, level in zip(middles, layers.level, strict=True)]
    placed = [Box(x, y, *size) for (x, y), size in zip(centres, sizes, strict=False)]  # lanes come last
    lines = _lines(layers, placed, middles, bands)
    return Layout(
        dict(zip(names, placed, strict=True)),
        {(names[source], names[target]): line for (source, target), line in lines.items()},
        max((x for outline in (*lines.values(), *(box.outline for box in placed)) for x, _ in outline), default=0.0),
        max((box.y + box.height / 2 for box in placed), default=0.0),
    )


def box_size(lines: Sequence[str]) -> tuple[float, float]:
    """Width and height of the box around lines of text, in pixels."""
    return max(map(len, lines), default=1) * CHARACTER + PADDING[0], len(lines) * LINE + PADDING[1]


def _bands(layers: Layers, heights: Sequence[float]) -> list[tuple[float, float]]:
    """Top and bottom of each layer; the last one ends at 0."""
    tallest = [0.0] * (max(layers.level, default=-1) + 1)
    for node, height in enumerate(heights):
        tallest[layers.level[node]] = max(tallest[layers.level[node]], height)
    bands, bottom = [], 0.0
    for height in reversed(tallest):
        bands.append((bottom + height, bottom))
        bottom += height + APART[1]
    return bands[::-1]


def _lines(
    layers: Layers, boxes: Sequence[Box], middles: Sequence[float], bands: Sequence[tuple[float, float]]
) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """A line for each edge: from box to box, straight down through the layers in between, curved between layers."""
    leaves, arrives = _ports(layers, boxes, middles)
    lines = {}
    for edge, path in layers.paths.items():
        upper, lower = boxes[path[0]], boxes[path[-1]]
        # Sideways only between layers: inside a layer there may be taller boxes.
        points = [(leaves[edge], upper.y - upper.height / 2), (leaves[edge], bands[layers.level[path[0]]][1])]
        for lane in path[1:-1]:
            points += [(middles[lane], side) for side in bands[layers.level[lane]]]
        points.append((arrives[edge], bands[layers.level[path[-1]]][0]))
        points.append((arrives[edge], lower.y + lower.height / 2))
        line = [points[0]]
        for start, (end_x, end_y) in pairwise(points):
            line += _curve(start, (end_x, end_y))
        lines[edge] = line if path[0] == edge[0] else line[::-1]
    return lines


def _ports(
    layers: Layers, boxes: Sequence[Box], middles: Sequence[float]
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
    """Where the upper and the lower end of each edge's line touch their boxes: side by side, in order."""
    ends: tuple[dict[tuple[int, int], float], ...] = ({}, {})
    for at, (own, other) in enumerate(((0, 1), (-1, -2))):
        at_box: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for edge, path in layers.paths.items():
            at_box[path[own]].append(edge)
        for node, edges in at_box.items():
            edges.sort(key=lambda edge: middles[layers.paths[edge][other]])
            step = min(PORTS, boxes[node].width / (len(edges) + 1))
            for place, edge in enumerate(edges):
                ends[at][edge] = boxes[node].x + step * (place - (len(edges) - 1) / 2)
    return ends


def _curve(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """The points after `start` of a curve to `end` that leaves and arrives vertically."""
    (x0, y0), (x1, y1) = start, end
    if abs(x1 - x0) < 1:
        return [(round(x1, 1), round(y1, 1))] if y1 != y0 else []
    points = []
    for step in range(1, CURVE_STEPS + 1):
        t = step / CURVE_STEPS
        ease = t * t * (3 - 2 * t)  # a cubic with level ends
        points.append((round(x0 + (x1 - x0) * ease, 1), round(y0 + (y1 - y0) * t, 1)))
    return points
