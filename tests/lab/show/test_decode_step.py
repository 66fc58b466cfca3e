"""The figure of a decode step: shares of the opaque step where they belong, their spreads, and what was predicted."""

import pytest

pytest.importorskip("plotly", reason="the notebooks extra is not installed")

from fusionlab.show.decode_step import decode_step
from fusionlab.show.figure import SVG_MIME, figure_bundle
from tests.lab.observe.step import recorded


@pytest.fixture
def drawing(tmp_path):
    return decode_step(recorded.write(tmp_path))


def named(drawing, name):
    (found,) = [trace for trace in drawing.fig.data if trace.name == name]
    return found


def test_each_variant_is_drawn_as_its_share_of_the_opaque_step(drawing):
    shown = [trace.name for trace in drawing.fig.data if trace.showlegend is not False]
    assert shown == ["quantisation opaque", "Inductor, whole", "gated norm alone", "all fused", "all fused, predicted"]
    assert list(named(drawing, "quantisation opaque").y) == [0, 0]
    assert list(named(drawing, "Inductor, whole").y) == pytest.approx([-4, -4])
    assert list(named(drawing, "gated norm alone").y) == pytest.approx([2])  # at 2 tokens only
    assert list(named(drawing, "all fused").y) == pytest.approx([10, 5])


def test_marks_of_one_number_of_tokens_stand_apart_and_nearer_to_it_than_to_the_next(drawing):
    places = {trace.name: list(trace.x) for trace in drawing.fig.data if "markers" in trace.mode}
    for at, tokens in enumerate((2, 16)):
        here = [x[at] for x in places.values() if len(x) > at]
        assert sorted(set(here)) == sorted(here) and all(0.6 * tokens < x < 1.6 * tokens for x in here)
    assert list(drawing.fig.layout.xaxis.tickvals) == [2, 16] and drawing.fig.layout.xaxis.type == "log"


def test_a_stroke_goes_from_the_10th_to_the_90th_percentile(drawing):
    stroke, line = named(drawing, "all fused, 10th to 90th percentile"), named(drawing, "all fused")
    low, high, gap, *_ = stroke.y
    assert (low, high, gap) == (pytest.approx(9.0), pytest.approx(10.5), None)
    assert stroke.x[0] == stroke.x[1] == line.x[0] and stroke.x[3] == line.x[1]
    assert (stroke.legendgroup, stroke.showlegend) == (line.legendgroup, False)


def test_the_prediction_is_a_mark_of_its_own(drawing):
    marks = named(drawing, "all fused, predicted")
    assert (marks.mode, list(marks.y)) == ("markers", pytest.approx([7.0, 6.0]))
    assert marks.marker.symbol == "diamond-open"


def test_no_two_lines_look_alike(drawing):
    looks = [(t.line.color, t.line.dash, t.marker.symbol) for t in drawing.fig.data if t.mode == "lines+markers"]
    assert all(len(set(column)) == 4 for column in zip(*looks, strict=True))


def test_words_and_table_are_of_this_data(drawing):
    assert "8 of 48 layers on NVIDIA H200" in drawing.caption
    assert "2 and 16 tokens" in drawing.alt and "hollow diamonds" in drawing.alt
    assert drawing.summary == (
        "All fused saves 10.0 % of the opaque step at 2 tokens, the most, and 5.0 % at 16, the least. "
        "The gated norm alone saves 2.0 %. "
        "With the quantisation left to Inductor as well the step takes 4.0 % longer. "
        "Measured minus what the opaque blocks' trace predicted for all fused is -1.0 to +3.0 percentage points."
    )
    few, many = drawing.table.rows
    assert list(few[:4]) == ["2", "1000 (995 to 1010)", "1040 (1030 to 1050)", "-4.0% (-5.0% to -3.0%)"]
    assert many[4:6] == ["–", "–"] and (few[-1], many[-1]) == ("7.0%", "6.0%")


def test_a_step_that_inductor_makes_faster_is_not_called_longer(tmp_path):
    results = recorded.results()
    results.rows = [row for row in results.rows if row.variant in ("opaque", "fused")]
    results.rows += [type(row)(**vars(row) | {"variant": "inductor"}) for row in results.rows if row.variant == "fused"]
    results.step["predictions"] = []
    drawn = decode_step(recorded.write(tmp_path, results))
    assert "With the quantisation left to Inductor as well the step saves 5.0 to 10.0 %." in drawn.summary
    assert "predicted" not in drawn.summary + drawn.alt and len(drawn.fig.data) == 6


def test_without_the_opaque_step_there_is_nothing_to_draw(tmp_path):
    results = recorded.results()
    results.rows = [row for row in results.rows if row.variant != "opaque"]
    with pytest.raises(ValueError, match="nothing to compare"):
        decode_step(recorded.write(tmp_path, results))


def test_a_still_picture_shows_all_of_it(drawing):
    data, _ = figure_bundle(drawing)
    assert all(name in data[SVG_MIME] for name in ("all fused, predicted", "gated norm alone", "tokens"))
