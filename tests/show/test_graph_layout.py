"""Boxes do not overlap, data flows downwards, and lines begin and end at boxes."""

import itertools
import sys

import pytest

from fusionlib.show.graph_layout import lay_out
from fusionlib.show.layers import LayoutError

DIAMOND = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "e")]
LABELS = {name: [name * 4, "16×128"] for name in "abcde"}


@pytest.fixture
def layout():
    pytest.importorskip("igraph", reason="the notebooks extra is not installed")
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


def test_without_igraph_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(LayoutError, match=r"fusionlib\[notebooks\]"):
        lay_out(LABELS, DIAMOND)
