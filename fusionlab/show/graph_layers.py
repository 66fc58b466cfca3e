"""A graph in layers: each node's layer, and its horizontal position.

We assign the layers, so that a line never crosses a box: an edge that passes through a layer has its own *lane* there.
Order and horizontal positions come from graphlay (Sugiyama's method), which treats the lanes as narrow nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

#: The cost of a bend, by how many of its two ends are lanes: lowest where a line leaves or reaches a box.
BEND = (2.0, 1.0, 4.0)


class LayoutError(ImportError):
    """The package that arranges graphs is missing; the message names the extra that installs it."""


@dataclass(frozen=True)
class Layers:
    """Nodes 0 to n - 1, then one lane for each layer that an edge passes through.

    Args:
        level: the layer of each node and lane, the topmost being 0.
        paths: the nodes and lanes along each edge (source, target), downwards whatever its direction.
    """

    level: Sequence[int]
    paths: Mapping[tuple[int, int], Sequence[int]]

    def across(self, widths: Sequence[float]) -> list[float]:
        """The centre of each node and lane, in the unit of `widths`; none overlaps another in its layer.

        Raises:
            LayoutError: if graphlay is missing.
        """
        try:
            import graphlay
        except ImportError as error:
            raise LayoutError(
                f"drawing a graph needs graphlay, which cannot be imported ({error}): "
                "pip install 'fusionlib[notebooks]'"
            ) from error
        if not widths:
            return []
        graph = graphlay.Graph()
        for level, width in zip(self.level, widths, strict=True):
            graph.node(width=width, height=1.0, rank={"fixed": level})
        lanes = range(len(widths) - sum(len(path) - 2 for path in self.paths.values()), len(widths))
        for step in sorted({step for path in self.paths.values() for step in pairwise(path)}):
            graph.edge(*step, weight=BEND[sum(end in lanes for end in step)])
        gaps = dict.fromkeys(("node_gap", "dummy_gap", "port_gap", "isolated_gap"), 0.0)  # the widths include them
        made = graphlay.layout(graph, options={"direction": "topbottom", "spacing": gaps})
        middles = [node["center"]["x"] for node in made.nodes]
        left = min(middle - width / 2 for middle, width in zip(middles, widths, strict=True))
        return [middle - left for middle in middles]


def in_layers(count: int, edges: Collection[tuple[int, int]]) -> Layers:
    """Nodes 0 to count - 1 in layers, each just above the first node that needs it.

    Edges that close a cycle point upwards; an edge from a node to itself is left out.
    """
    edges = sorted({edge for edge in edges if edge[0] != edge[1]})
    below = _steps_to_the_end(count, edges)
    deepest = max(below, default=0)
    level = [deepest - steps for steps in below]
    paths = {}
    for source, target in edges:
        upper, lower = sorted((source, target), key=level.__getitem__)
        between = range(level[upper] + 1, level[lower])
        paths[source, target] = [upper, *range(len(level), len(level) + len(between)), lower]
        level += between
    return Layers(level, paths)


def _steps_to_the_end(count: int, edges: Collection[tuple[int, int]]) -> list[int]:
    """The length of the longest path down from each node; an edge that closes a cycle is reversed.

    It must not be ignored: its two ends could then end up side by side in one layer.
    """
    place = {node: at for at, node in enumerate(_downwards(count, edges))}
    lower: list[list[int]] = [[] for _ in range(count)]
    for edge in edges:
        above, beneath = sorted(edge, key=place.__getitem__)
        lower[above].append(beneath)
    below = [0] * count
    for node in reversed(place):
        below[node] = 1 + max((below[other] for other in lower[node]), default=-1)
    return below


def _downwards(count: int, edges: Collection[tuple[int, int]]) -> list[int]:
    """All nodes in an order in which every edge leads forwards, except one edge of each cycle."""
    down = set(edges)
    while True:
        sources: dict[int, list[int]] = {node: [] for node in range(count)}
        for source, target in sorted(down):
            sources[target].append(source)
        try:
            return list(TopologicalSorter(sources).static_order())
        except CycleError as error:
            source, target = error.args[1][:2]  # graphlib follows the edges from source to target
            down.discard((source, target))
