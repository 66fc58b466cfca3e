"""Where the nodes of a graph go: Graphviz' `dot`, and folding away what is far from the place of interest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CHARACTER = 7.0  # pixels of one character at 12 px, on the safe side for the fonts of the pages
LINE = 16.0  # pixels of a line of text
PADDING = (30.0, 10.0)  # pixels beside the text, the symbol included, and above and below together
MOST_BOXES = 150  # beyond, a figure as wide as a page cannot be read, and its data grow past what a page should load
CURVE_STEPS = 4  # straight pieces for each piece of dot's curves


class LayoutError(ImportError):
    """Graphviz' Python package is not there; the message names the extra that brings it."""


@dataclass(frozen=True)
class Box:
    """A node's rectangle in pixels of the least width; `y` grows upwards. (x, y) is its centre."""

    x: float
    y: float
    width: float
    height: float

    @property
    def outline(self) -> list[tuple[float, float]]:
        """Its corners, the first again at the end."""
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
        LayoutError: where pygraphviz is missing.
        ValueError: for more boxes than a figure can hold.
    """
    if len(labels) > MOST_BOXES:
        raise ValueError(
            f"{len(labels)} boxes are more than the {MOST_BOXES} that can be read in one figure; draw a part of the "
            "graph: fewer hops around fewer nodes"
        )
    try:
        import pygraphviz
    except ImportError as error:
        raise LayoutError(
            "drawing a graph needs pygraphviz, which is not installed: pip install 'fusionlib[notebooks]'"
        ) from error
    # Names come from anywhere: dot gets numbers instead. An empty label keeps it from looking for fonts.
    number = {name: str(position) for position, name in enumerate(labels)}
    names = {text: name for name, text in number.items()}
    graph = pygraphviz.AGraph(directed=True, strict=True, rankdir="TB", nodesep=0.16, ranksep=0.2)
    for name, lines in labels.items():
        width, height = box_size(lines)
        graph.add_node(number[name], label="", shape="box", fixedsize=True, width=width / 72, height=height / 72)
    for source, target in sorted(set(edges), key=lambda edge: (int(number[edge[0]]), int(number[edge[1]]))):
        graph.add_edge(number[source], number[target])
    graph.layout("dot")
    boxes = {}
    for node in graph.nodes():
        x, y = map(float, node.attr["pos"].split(","))
        boxes[names[str(node)]] = Box(x, y, *box_size(labels[names[str(node)]]))
    lines = {(names[str(e[0])], names[str(e[1])]): _curve(e.attr["pos"]) for e in graph.edges()}
    width = max((box.x + box.width / 2 for box in boxes.values()), default=0.0)
    height = max((box.y + box.height / 2 for box in boxes.values()), default=0.0)
    return Layout(boxes, lines, width, height)


def box_size(lines: Sequence[str]) -> tuple[float, float]:
    """Width and height of the box around lines of text, in pixels."""
    return max(map(len, lines), default=1) * CHARACTER + PADDING[0], len(lines) * LINE + PADDING[1]


def _curve(text: str) -> list[tuple[float, float]]:
    """The points of one of dot's splines: `e,x,y` is its end, then control points of cubic pieces."""
    words = text.split()
    ends = [tuple(map(float, word[2:].split(","))) for word in words if word.startswith("e,")]
    control = [tuple(map(float, word.split(","))) for word in words if word[:2] not in ("e,", "s,")]
    points = [control[0]]
    for start in range(0, len(control) - 3, 3):
        points += [_bezier(control[start : start + 4], step / CURVE_STEPS) for step in range(1, CURVE_STEPS + 1)]
    return [(round(x, 1), round(y, 1)) for x, y in points + ends]


def _bezier(points: Sequence[tuple[float, float]], t: float) -> tuple[float, float]:
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    return tuple(sum(w * p[axis] for w, p in zip(weights, points, strict=True)) for axis in (0, 1))


@dataclass(frozen=True)
class Focus:
    """Which nodes are drawn, and which stand together behind a stub.

    `stubs` gives the hidden nodes of each stub by its name; `apart` counts hidden nodes that touch nothing drawn.
    """

    shown: frozenset[str]
    stubs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    apart: int = 0

    def edges(self, edges: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """`edges` between what is drawn, hidden ends moved to their stubs."""
        stub = {name: key for key, names in self.stubs.items() for name in names}
        ends = ((a if a in self.shown else stub.get(a), b if b in self.shown else stub.get(b)) for a, b in edges)
        return {(a, b) for a, b in ends if a is not None and b is not None and a != b}


def focus(
    names: Sequence[str], edges: Collection[tuple[str, str]], centre: Collection[str] | None, hops: int = 1
) -> Focus:
    """Show `centre` and what is at most `hops` edges away; all of the rest that hangs together is one stub.

    Args:
        names: all nodes, in order.
        edges: (source, target) pairs.
        centre: what must be seen; None shows everything.
        hops: 0 shows the centre alone.
    """
    if centre is None:
        return Focus(frozenset(names))
    near: dict[str, set[str]] = {name: set() for name in names}
    for a, b in edges:
        near[a].add(b)
        near[b].add(a)
    shown = set(centre)
    for _ in range(hops):
        shown |= {other for name in shown for other in near[name]}
    above = _reached(shown, {(b, a) for a, b in edges})
    stubs, apart = {}, 0
    for hidden in (above, set(names) - above):
        for part in connected([name for name in names if name in hidden - shown], edges):
            if any(near[name] & shown for name in part):
                stubs[f"stub {len(stubs) + 1}"] = frozenset(part)
            else:
                apart += len(part)
    return Focus(frozenset(shown), stubs, apart)


def _reached(start: Collection[str], edges: Collection[tuple[str, str]]) -> set[str]:
    follow: dict[str, list[str]] = {}
    for a, b in edges:
        follow.setdefault(a, []).append(b)
    seen, stack = set(start), list(start)
    while stack:
        new = [name for name in follow.get(stack.pop(), ()) if name not in seen]
        seen.update(new)
        stack += new
    return seen


def connected(names: Iterable[str], edges: Iterable[tuple[str, str]]) -> list[set[str]]:
    """The connected parts of what `names` span, whichever way the edges point, in order of their first name."""
    names = dict.fromkeys(names)
    inside = {(a, b) for a, b in edges if a in names and b in names}
    both_ways, parts, seen = inside | {(b, a) for a, b in inside}, [], set()
    for name in names:
        if name not in seen:
            parts.append(_reached([name], both_ways))
            seen |= parts[-1]
    return parts


def stub_label(count: int) -> list[str]:
    """What stands in a stub."""
    return [f"… {count} more node{'s' * (count != 1)}"]
