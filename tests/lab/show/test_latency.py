"""Times over tokens and over the light, against numbers worked out by hand."""

import pytest

pytest.importorskip("plotly", reason="the notebooks extra is not installed")

from fusionlab.show.latency import latency

SERIES = {"slow": {1: 4.0, 64: 6.0}, "fast": {64: 3.0, 1: 3.0, 8192: 50.0}, "light": {1: 2.0, 64: 2.0, 8192: 40.0}}


def draw(series=SERIES, floor="light"):
    return latency(series, floor=floor, where="made up")


def test_both_panels():
    drawn = draw().fig.data
    assert [(t.name, list(t.x), list(t.y)) for t in drawn if t.yaxis == "y"] == [
        ("slow", [1, 64], [4.0, 6.0]),
        ("fast", [1, 64, 8192], [3.0, 3.0, 50.0]),
        ("light", [1, 64, 8192], [2.0, 2.0, 40.0]),
    ]
    assert [list(t.y) for t in drawn if t.yaxis == "y2"] == [[2.0, 3.0], [1.5, 1.5, 1.25], [1.0, 1.0, 1.0]]


def test_words_and_table():
    drawing = draw()
    assert "For 1 token “fast” is the fastest, 3.00 µs or 1.50 times light; “slow” takes 1.33 times" in drawing.summary
    assert "For 8192 tokens “fast” is the fastest, 50.00 µs or 1.25 times light." in drawing.summary
    assert list(drawing.table.columns) == ["tokens", "slow", "fast", "light"]
    assert [list(row) for row in drawing.table.rows][2] == ["8192", "–", "50.00", "40.00"]


def test_what_undercuts_the_floor_is_named():
    assert "bounds nothing there: fast, slow." in draw(floor="light", series=SERIES | {"light": {64: 9.0}}).summary
    assert "floor is none" not in draw().summary


def test_series_that_are_none():
    with pytest.raises(ValueError, match="floor='x' is none of slow, fast, light"):
        draw(floor="x")
    for times in ({}, {1: 0.0}, {1: float("inf")}):
        with pytest.raises(ValueError, match="bad: needs finite times"):
            draw(SERIES | {"bad": times})


def test_names_are_escaped():
    drawing = draw({"<i>a": {1: 1.0}, "light": {1: 1.0}})
    assert "<i>a" not in [trace.name for trace in drawing.fig.data]


def test_a_line_looks_the_same_on_every_card_and_the_axis_is_read_between_tens():
    few = draw({"AITER's Triton kernel": {1: 2.0}, "light": {1: 1.0}}).fig
    many = draw({"two kernels": {1: 4.0}, "one kernel": {1: 2.0}, "AITER's Triton kernel": {1: 2.0}, "light": {1: 1.0}})
    looks = [(t.line, t.marker.symbol) for fig in (few, many.fig) for t in fig.data if t.name.startswith("AITER")]
    assert len(looks) == 4 and all(look == looks[0] for look in looks)
    assert few.layout.yaxis.dtick == "D2"  # 1, 2 and 5, not only 1, 10, 100
