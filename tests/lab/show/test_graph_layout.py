"""Boxes do not overlap, data flows downwards, and lines begin and end at boxes."""

import itertools
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusionlab.show.graph_layers import LayoutError
from fusionlab.show.graph_layout import lay_out

DIAMOND = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "e")]
LABELS = {name: [name * 4, "16×128"] for name in "abcde"}


@pytest.fixture
def layout():
    pytest.importorskip("graphlay", reason="the notebooks extra is not installed")
    return lay_out(LABELS, DIAMOND)


def touches(box, point, side):
    """Whether `point` is on the upper (1) or lower (-1) side of `box`."""
    return abs(point[0] - box.x) <= box.width / 2 and abs(point[1] - (box.y + side * box.height / 2)) < 0.1


def enters(line, box):
    """Whether a segment of `line` has its midpoint, or a point, inside `box`."""
    points = [*line, *(((a + c) / 2, (b + d) / 2) for (a, b), (c, d) in itertools.pairwise(line))]
    return any(abs(x - box.x) < box.width / 2 - 0.1 and abs(y - box.y) < box.height / 2 - 0.1 for x, y in points)


def assert_can_be_read(layout, edges):
    """Boxes do not overlap, every line leads from its source to its target and through no box, all within the plane."""
    for p, q in itertools.combinations(layout.boxes.values(), 2):
        apart_x = abs(p.x - q.x) >= (p.width + q.width) / 2
        apart_y = abs(p.y - q.y) >= (p.height + q.height) / 2
        assert apart_x or apart_y
    assert set(layout.lines) == {(source, target) for source, target in edges if source != target}
    for (source, target), line in layout.lines.items():
        one, other = layout.boxes[source], layout.boxes[target]
        side = 1 if one.y < other.y else -1  # an edge that closes a cycle goes up
        assert touches(one, line[0], side) and touches(other, line[-1], -side)
        assert not any(enters(line, box) for box in layout.boxes.values())
    for outline in (*layout.lines.values(), *(box.outline for box in layout.boxes.values())):
        assert all(-0.1 <= x <= layout.width + 0.1 and -0.1 <= y <= layout.height + 0.1 for x, y in outline)


NODES = st.integers(0, 11)
EDGES = st.sets(st.tuples(NODES, NODES), max_size=24)


@settings(max_examples=100)
@given(EDGES, st.lists(st.integers(1, 4), min_size=12, max_size=12))
@example({(0, 2), (0, 4)}, [1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1, 1])
@example({(0, 1), (2, 1), (0, 3), (2, 0), (2, 3), (3, 2)}, [1] * 12)  # (3, 2) closes a cycle
def test_any_graph_can_be_read(edges, lines):
    pytest.importorskip("graphlay", reason="the notebooks extra is not installed")
    names = [f"n{number}" for number in range(12)]
    labels = {name: ["x" * (3 * count)] * count for name, count in zip(names, lines, strict=True)}
    edges = [(names[source], names[target]) for source, target in edges]
    assert_can_be_read(lay_out(labels, edges), edges)


def test_lines_leave_a_box_in_the_order_of_where_they_go(layout):
    left, right = sorted("bc", key=lambda name: layout.boxes[name].x)
    assert layout.lines["a", left][0][0] < layout.lines["a", right][0][0]
    assert layout.lines[left, "d"][-1][0] < layout.lines[right, "d"][-1][0]
    # Any arrangement without crossings reverses the order of the targets of one of the upper two.
    zigzag = [("a", "c"), ("a", "e"), ("b", "c"), ("b", "d")]
    made = lay_out(LABELS, zigzag)
    for pair in (zigzag[:2], zigzag[2:]):
        one, other = (made.lines[edge][0][0] for edge in pair)
        assert (one < other) == (made.boxes[pair[0][1]].x < made.boxes[pair[1][1]].x)


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


def test_without_graphlay_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "graphlay", None)
    with pytest.raises(LayoutError, match=r"fusionlib\[notebooks\]"):
        lay_out(LABELS, DIAMOND)
