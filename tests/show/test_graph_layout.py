"""Boxes do not overlap, data flows downwards, and what is folded is counted."""

import itertools
import sys

import pytest

from fusionlib.show.graph_layout import LayoutError, focus, lay_out, stub_label

DIAMOND = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "e")]
LABELS = {name: [name * 4, "16×128"] for name in "abcde"}


@pytest.fixture
def layout():
    pytest.importorskip("pygraphviz", reason="the notebooks extra is not installed")
    return lay_out(LABELS, DIAMOND)


def test_boxes_do_not_overlap(layout):
    for p, q in itertools.combinations(layout.boxes.values(), 2):
        apart_x = abs(p.x - q.x) >= (p.width + q.width) / 2
        apart_y = abs(p.y - q.y) >= (p.height + q.height) / 2
        assert apart_x or apart_y


def test_a_source_is_above_its_target_and_the_line_joins_both(layout):
    for (source, target), line in layout.lines.items():
        top, bottom = layout.boxes[source], layout.boxes[target]
        assert top.y > bottom.y
        assert abs(line[0][1] - (top.y - top.height / 2)) < 2 and abs(line[-1][1] - (bottom.y + bottom.height / 2)) < 2
    assert set(layout.lines) == set(DIAMOND)


def test_everything_is_inside(layout):
    for box in layout.boxes.values():
        assert all(0 <= x <= layout.width + 1 and 0 <= y <= layout.height + 1 for x, y in box.outline)


def test_the_same_graph_is_laid_out_the_same(layout):
    assert lay_out(LABELS, reversed(DIAMOND)) == layout


def test_names_with_markup_and_quotes_are_only_names(layout):
    names = {'"];evil [label="x': ["1"], "<b>&": ["2"]}
    made = lay_out(names, [tuple(names)])
    assert set(made.boxes) == set(names) and set(made.lines) == {tuple(names)}


def test_no_nodes_is_no_error(layout):
    assert lay_out({}, []).boxes == {}


def test_more_boxes_than_can_be_read_are_refused():
    with pytest.raises(ValueError, match="151 boxes are more than the 150"):
        lay_out({str(number): ["x"] for number in range(151)}, [])


def test_without_pygraphviz_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(LayoutError, match=r"fusionlib\[notebooks\]"):
        lay_out(LABELS, DIAMOND)


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
