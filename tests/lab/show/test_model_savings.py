"""The figure of a model's savings: marks where they belong, their spreads, what was predicted, and its words."""

import pytest

pytest.importorskip("plotly", reason="the notebooks extra is not installed")

from dataclasses import replace

from fusionlab.observe.manifest import Machine, make_manifest
from fusionlab.observe.model.recorded_model import ModelCheck, ModelRow, RecordedModel
from fusionlab.observe.model.workload import DECODE, PREFILL, Workload
from fusionlab.observe.step.recorded_step import SavingCheck
from fusionlab.show.figure import SVG_MIME, figure_bundle
from fusionlab.show.model_savings import model_savings

STEP, PROMPT = Workload(DECODE, 4), Workload(PREFILL, 1024)
#: workload -> variant -> 10th percentile, median, 90th, in us.
TIMES = {
    STEP: {"opaque": (990, 1000, 1020), "gated_norm": (970, 980, 990), "fused": (895, 900, 910)},
    PROMPT: {"opaque": (1990, 2000, 2010), "fused": (2020, 2040, 2050)},
}


def row(workload, variant):
    low, median, high = TIMES[workload][variant]
    saved = 1 - median / TIMES[workload]["opaque"][1]
    return ModelRow(workload, variant, median, low, high, saved, None, None, {}, 0)


@pytest.fixture
def recorded():
    manifest = make_manifest("x", 0, machine=Machine("NVIDIA H100", "gpu", "580.1", "2.11.0", "3.6.0", "13.0"))
    rows = tuple(row(workload, name) for workload, times in TIMES.items() for name in times)
    checks = (ModelCheck(STEP, SavingCheck(4, 22, 1000.0, 70.0, 100.0, None)),)
    return RecordedModel(manifest, {}, {}, 20, 48, "", "", rows, checks, ())


def named(drawing, name):
    (found,) = [trace for trace in drawing.fig.data if trace.name == name]
    return found


def test_marks_are_shares_of_the_opaque_step_at_their_workload(recorded):
    drawing = model_savings(recorded)
    axis = drawing.fig.layout.yaxis
    lines = dict(zip(axis.ticktext, axis.tickvals, strict=True))
    assert lines == {str(STEP): 0, str(PROMPT): -1} and axis.range[0] < -1.4 and axis.range[1] > 0.4
    alone, fused = named(drawing, "gated norm alone"), named(drawing, "all fused")
    assert list(alone.x) == pytest.approx([2.0]) and 0 < alone.y[0] < 0.4
    assert list(fused.x) == pytest.approx([10.0, -2.0]) and list(fused.y) == [0, -1]
    assert alone.marker.color != fused.marker.color and alone.marker.symbol != fused.marker.symbol


def test_a_stroke_goes_from_the_10th_to_the_90th_percentile(recorded):
    stroke = named(model_savings(recorded), "all fused, 10th to 90th percentile")
    assert list(stroke.x) == [
        pytest.approx(9.0),
        pytest.approx(10.5),
        None,
        pytest.approx(-2.5),
        pytest.approx(-1.0),
        None,
    ]
    assert list(stroke.y) == [0, 0, None, -1, -1, None]


def test_the_prediction_is_a_mark_at_its_workload(recorded):
    marks = named(model_savings(recorded), "all fused, predicted")
    assert list(marks.x) == pytest.approx([7.0]) and -0.4 < marks.y[0] < 0 and marks.marker.symbol == "diamond-open"
    without = model_savings(replace(recorded, checks=()))
    assert "diamonds" not in without.alt and not any("predicted" in trace.name for trace in without.fig.data)


def test_words_and_table_are_of_this_data(recorded):
    drawing = model_savings(recorded)
    assert "20 of 48 layers on NVIDIA H100" in drawing.caption and "hollow diamonds" in drawing.alt
    assert drawing.summary == (
        "All fused: -2.0% (prefill of 1024 tokens) to +10.0% (decode of 4 sequences) of the opaque step."
    )
    step, reading = drawing.table.rows
    assert step[0] == "decode of 4 sequences" and step[1].startswith("1.000 (0.990") and step[-1] == "+7.0%"
    assert step[3] == "+2.0%" and step[5] == "+10.0%"
    assert reading[2:4] == ["–", "–"] and reading[5] == "-2.0%" and reading[-1] == "–"


def test_a_still_picture_shows_all_of_it(recorded):
    data, _ = figure_bundle(model_savings(recorded))
    assert all(name in data[SVG_MIME] for name in ("all fused, predicted", "gated norm alone", str(STEP), str(PROMPT)))


def test_a_run_without_an_opaque_step_cannot_be_compared(recorded):
    alone = tuple(replace(each, saved=None) for each in recorded.rows if each.variant == "fused")
    with pytest.raises(ValueError, match="nothing to compare"):
        model_savings(replace(recorded, rows=alone))
