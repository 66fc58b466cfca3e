"""Folded nodes are counted, separately on each side."""

import pytest

from fusionlab.show.graph_focus import focus, stub_label

CHAIN = [(f"n{i}", f"n{i + 1}") for i in range(9)]
NAMES = [f"n{i}" for i in range(10)] + ["x", "y"]
EDGES = {*CHAIN, ("x", "y")}


def test_focus_shows_the_neighbourhood_and_folds_each_side():
    found = focus(NAMES, EDGES, ["n4"], hops=1)
    assert found.shown == {"n3", "n4", "n5"}
    assert sorted(sorted(names) for names in found.stubs.values()) == [["n0", "n1", "n2"], ["n6", "n7", "n8", "n9"]]
    assert found.apart == 2
    before, after = sorted(found.stubs, key=lambda stub: min(found.stubs[stub]))
    assert found.edges(EDGES) == {(before, "n3"), ("n3", "n4"), ("n4", "n5"), ("n5", after)}


def test_focus_counts_every_node_once():
    for hops in (0, 1, 3, 20):
        found = focus(NAMES, EDGES, ["n4"], hops)
        assert len(found.shown) + sum(map(len, found.stubs.values())) + found.apart == len(NAMES)


def test_no_centre_shows_all():
    found = focus(NAMES, EDGES, None)
    assert found.shown == set(NAMES) and not found.stubs and found.edges(EDGES) == EDGES


def test_unconnected_parts_are_stubs_of_their_own():
    edges = {("a", "m"), ("b", "m"), ("m", "z")}
    found = focus(["a", "b", "m", "z"], edges, ["m"], hops=0)
    assert sorted(map(sorted, found.stubs.values())) == [["a"], ["b"], ["z"]]


@pytest.mark.parametrize(("count", "text"), [(1, "… 1 more node"), (12, "… 12 more nodes")])
def test_a_stub_says_how_many(count, text):
    assert stub_label(count) == [text]
