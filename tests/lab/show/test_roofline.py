"""Achieved bandwidth and the part that bytes explain, against numbers worked out by hand."""

import pytest

pytest.importorskip("plotly", reason="the notebooks extra is not installed")

from fusionlab.observe.byte_ledger import Bytes
from fusionlab.show.roofline import Point, roofline

POINTS = [
    Point("one", 8, Bytes(3_000_000, 1_000_000), 2.0),  # 2000 GB/s; 1 µs at 4000 GB/s
    Point("one", 1, Bytes(400_000, 0), 1.1),  # 0.1 µs predicted, 1 µs left
    Point("two", 8, Bytes(8_000_000, 0), 8.0),  # 1000 GB/s; 2 µs predicted
]


def draw(points=POINTS, bandwidth=4000.0):
    return roofline(points, bandwidth, roof="copies", where="made up")


def test_lines_are_the_points_in_order_of_bytes():
    drawn = [trace for trace in draw().fig.data if trace.name in ("one", "two")]
    assert [(t.name, list(t.x), list(t.y)) for t in drawn if t.yaxis == "y"] == [
        ("one", [400_000, 4_000_000], pytest.approx([363.636, 2000.0], abs=1e-3)),
        ("two", [8_000_000], [1000.0]),
    ]
    assert [list(t.y) for t in drawn if t.yaxis == "y2"] == [[1.1, 2.0], [8.0]]


def test_the_roof_is_the_bandwidth_and_the_time_that_bytes_take():
    above, below = (trace for trace in draw().fig.data if trace.name.startswith("copies"))
    assert list(above.y) == [4000, 4000]
    assert [t * 4000 * 1e3 for t in below.y] == pytest.approx(list(below.x))


def test_words_and_table():
    drawing = draw()
    assert (
        "At 8 tokens bytes explain 25.0% to 50.0% of the time, most of it for “one”; 1.00 to 6.00 µs" in drawing.summary
    )
    assert "At 1 token bytes explain 9.1% of the time; 1.00 µs are left." in drawing.summary
    assert "cache" not in drawing.summary
    assert [list(row) for row in drawing.table.rows] == [
        ["one", "1", "400 kB", "0.10", "1.10", "1.00", "9.1%"],
        ["one", "8", "4 MB", "1.00", "2.00", "1.00", "50.0%"],
        ["two", "8", "8 MB", "2.00", "8.00", "6.00", "25.0%"],
    ]


def test_a_point_above_the_roof_is_named_and_drawn():
    drawing = draw(bandwidth=1500.0)
    assert "Above the roof (copies), where a cache must have served part of the bytes: “one”." in drawing.summary
    assert drawing.fig.layout.yaxis.range[1] > 2000


def test_points_that_are_none():
    with pytest.raises(ValueError, match="bytes > 0"):
        Point("x", 1, Bytes(), 1.0)
    with pytest.raises(ValueError, match="finite time"):
        Point("x", 1, Bytes(1, 0), float("nan"))
    with pytest.raises(ValueError, match="no points"):
        draw([])
    with pytest.raises(ValueError, match="bandwidth"):
        draw(bandwidth=0.0)


def test_names_are_escaped():
    drawing = draw([Point("<b>x", 1, Bytes(1, 0), 1.0)])
    assert "<b>x" not in [trace.name for trace in drawing.fig.data] and "<b>x" not in drawing.table.html()
