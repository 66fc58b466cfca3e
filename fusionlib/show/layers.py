"""A graph in layers: which layer a node is in, in which order, and where across.

Order and alignment are igraph's (Sugiyama's method), which thinks of nodes as points. Their widths come in afterwards:
the columns that igraph found keep their order and move apart as far as the boxes in them need.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


class LayoutError(ImportError):
    """The package that arranges graphs is not there; the message names the extra that brings it."""


@dataclass(frozen=True)
class Layers:
    """Nodes 0 to n - 1, then one *lane* for each layer that an edge passes through.

    Args:
        level: the layer of each node and lane, the topmost 0.
        column: where igraph puts them across; no two of a layer in one.
        paths: the nodes and lanes along each edge (source, target), downwards whichever way it points.
    """

    level: Sequence[int]
    column: Sequence[float]
    paths: Mapping[tuple[int, int], Sequence[int]]

    def positions(self, widths: Sequence[float]) -> list[float]:
        """The middle of each node and lane, in the unit of `widths`; none overlaps another in its layer.

        Each column is put as far left as it can be, then as far right, and stands in the middle of both: a sum of two
        arrangements without overlaps is one, and what has room on both sides is centred.
        """
        columns = sorted(set(self.column))
        place = {column: position for position, column in enumerate(columns)}
        apart = self._apart(place, widths)
        margin = [0.0] * len(columns)  # half the widest node of a column
        for node, column in enumerate(self.column):
            margin[place[column]] = max(margin[place[column]], widths[node] / 2)
        left = list(margin)
        for right in range(len(columns)):
            for other, need in apart[right]:
                left[right] = max(left[right], left[other] + need)
        end = max((x + half for x, half in zip(left, margin, strict=True)), default=0.0)
        latest = [end - half for half in margin]
        for right in reversed(range(len(columns))):
            for other, need in apart[right]:
                latest[other] = min(latest[other], latest[right] - need)
        middle = [(a + b) / 2 for a, b in zip(left, latest, strict=True)]
        return [middle[place[column]] for column in self.column]

    def _apart(self, place: Mapping[float, int], widths: Sequence[float]) -> list[list[tuple[int, float]]]:
        """For each column the columns left of it, and how far from theirs its middle must be at least."""
        rows: dict[int, list[int]] = {}
        for node in sorted(range(len(self.level)), key=self.column.__getitem__):
            rows.setdefault(self.level[node], []).append(node)
        apart: list[list[tuple[int, float]]] = [[] for _ in place]
        for row in rows.values():
            for a, b in pairwise(row):
                apart[place[self.column[b]]].append((place[self.column[a]], (widths[a] + widths[b]) / 2))
        return apart


def in_layers(count: int, edges: Collection[tuple[int, int]]) -> Layers:
    """Nodes 0 to count - 1 in layers, every one just above the first that needs it.

    Edges that close a cycle point upwards; an edge from a node to itself is left out.

    Raises:
        LayoutError: where igraph is missing.
    """
    try:
        import igraph
    except ImportError as error:
        raise LayoutError(
            f"drawing a graph needs igraph, which cannot be imported ({error}): pip install 'fusionlib[notebooks]'"
        ) from error
    edges = sorted({edge for edge in edges if edge[0] != edge[1]})
    graph = igraph.Graph(count, edges, directed=True)
    graph.delete_edges(graph.feedback_arc_set())
    below = [0] * count
    for node in graph.topological_sorting(mode="in"):
        below[node] = 1 + max((below[after] for after in graph.successors(node)), default=-1)
    deepest = max(below, default=0)
    level = [deepest - steps for steps in below]
    paths = {}
    for source, target in edges:
        upper, lower = sorted((source, target), key=level.__getitem__)
        between = range(level[upper] + 1, level[lower])
        paths[source, target] = [upper, *range(len(level), len(level) + len(between)), lower]
        level += between
    steps = [step for path in paths.values() for step in pairwise(path)]
    arranged = igraph.Graph(len(level), steps, directed=True).layout_sugiyama(layers=level, hgap=1, vgap=1)
    return Layers(level, _columns([x for x, _ in arranged.coords], level), paths)


def _columns(xs: Sequence[float], level: Sequence[int]) -> list[float]:
    """`xs`, rounded so that what is in line shares a column; igraph may put two of a layer at one place."""
    columns, taken = [], set()
    for x, layer in zip(xs, level, strict=True):
        column = round(x, 3)
        while (layer, column) in taken:
            column = round(column + 0.001, 3)
        taken.add((layer, column))
        columns.append(column)
    return columns
