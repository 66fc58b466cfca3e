"""Layers of any graph: edges go down, nothing in a layer overlaps, and cycles are handled."""

from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionlab.show.graph_layers import in_layers

pytest.importorskip("graphlay", reason="the notebooks extra is not installed")

NODES = st.integers(0, 11)
EDGES = st.sets(st.tuples(NODES, NODES), max_size=30)
DOWNWARDS = EDGES.map(lambda edges: {(min(e), max(e)) for e in edges if e[0] != e[1]})


@settings(max_examples=60)
@given(DOWNWARDS)
def test_without_cycles_every_node_is_just_above_the_first_that_needs_it(edges):
    layers = in_layers(12, edges)
    assert layers.paths.keys() == edges
    deepest = max(layers.level)
    for node in range(12):
        readers = [layers.level[target] for source, target in edges if source == node]
        assert layers.level[node] == min(readers, default=deepest + 1) - 1


@settings(max_examples=60)
@given(EDGES, st.randoms(use_true_random=False))
def test_nothing_overlaps_and_paths_go_down_one_layer_at_a_time(edges, random):
    layers = in_layers(12, edges)
    assert layers.paths.keys() == {edge for edge in edges if edge[0] != edge[1]}
    assert all(layers.level[a] != layers.level[b] for a, b in layers.paths)  # nor does an edge lead sideways
    for edge, path in layers.paths.items():
        assert {path[0], path[-1]} == set(edge)
        assert all(layers.level[b] - layers.level[a] == 1 for a, b in pairwise(path))
    lanes = [lane for path in layers.paths.values() for lane in path[1:-1]]
    assert sorted(lanes) == list(range(12, len(layers.level)))  # each belongs to one edge

    widths = [random.uniform(5, 200) for _ in layers.level]
    middles = layers.across(widths)
    rows = defaultdict(list)
    for node, middle in enumerate(middles):
        assert middle >= widths[node] / 2 - 1e-6
        rows[layers.level[node]].append((middle, widths[node]))
    for row in rows.values():
        for (a, wide_a), (b, wide_b) in pairwise(sorted(row)):
            assert b - a >= (wide_a + wide_b) / 2 - 1e-6


def test_a_chain_is_straight_and_so_is_a_long_line_beside_it():
    layers = in_layers(5, {(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)})
    first, *boxes, last, one, two, three = layers.across([10.0, 60.0, 20.0, 30.0, 40.0, 12.0, 12.0, 12.0])
    assert len({first, last, *boxes}) == 1
    assert one == two == three and abs(one - first) >= 36.0  # half of the widest box, and of the line


def test_no_nodes():
    assert in_layers(0, set()).across([]) == []
