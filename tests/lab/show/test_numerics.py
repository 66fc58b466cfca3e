"""The figure builders: what is drawn is the data, and the sentence beside it says what the data say."""

import pytest
import torch

pytest.importorskip("plotly", reason="the notebooks extra is not installed")

from fusionlab.show import Drawing, numerics
from fusionlib import GroupQuant, dequantise, reference
from fusionlib.spec import FP8_MAXIMA


def drawn(drawing: Drawing):
    """The figure and the conclusion; caption and alt are checked where they are made, in Drawing."""
    return drawing.fig, drawing.summary


@pytest.mark.parametrize("dtype, count", [(torch.float8_e4m3fn, 253), (torch.float8_e5m2, 247)])
def test_every_finite_value_once_and_in_order(dtype, count):
    """256 codes minus the two NaNs of e4m3fn (the eight non-finite ones of e5m2) and one of the two zeros."""
    values = numerics.fp8_values(dtype)
    assert len(values) == count
    assert (values.diff() > 0).all()
    assert values[-1] == -values[0] == FP8_MAXIMA[dtype][0]
    assert torch.equal(values.to(dtype).float(), values)


def test_number_line_draws_quotients_values_and_codes():
    quotients = torch.tensor([-448.0, -3.3, 0.0, 1.06, 17.0, 250.0])
    fig, summary = drawn(numerics.number_line(quotients))
    whole = [trace for trace in fig.data if trace.mode == "markers"][:3]
    before, values, after = (list(trace.x) for trace in whole)
    assert before == quotients.tolist()
    assert values == numerics.fp8_values().tolist()
    assert after == [-448.0, -3.25, 0.0, 1.0, 16.0, 256.0]
    assert "253 finite values" in summary and "1 on ±448" in summary and "0 had to be clamped" in summary
    near = [trace for trace in fig.data if trace.mode == "markers"][3:]
    assert max(map(abs, near[0].x)) <= numerics.NEAR_ZERO


def test_number_line_counts_what_is_clamped():
    _, summary = drawn(numerics.number_line(torch.tensor([1000.0, -500.0, 448.0, 1.0])))
    assert "3 on ±448" in summary and "2 had to be clamped" in summary


def test_number_line_speaks_of_the_values_that_exist():
    """Half of the positive values lie at or below the median, the step is the smallest and the largest gap."""
    _, summary = drawn(numerics.number_line(torch.tensor([1.0])))
    assert "About half of them lie within ±1.875" in summary
    assert "from 1/512 beside zero to 32 below 448" in summary


def errors_of(rows: torch.Tensor):
    quant = GroupQuant.vllm(rows.shape[1])
    codes, scale = reference.group_quant(rows.flatten()[None], quant)
    restored = dequantise(codes, scale, quant).view_as(rows)
    return drawn(numerics.group_errors(rows, restored, scale[0]))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_largest_error_is_the_worst_of_a_dense_sweep(dtype):
    values = torch.linspace(1.0, 2.0, 2**16, dtype=torch.double)
    worst = ((values.to(dtype).double() - values).abs() / values).max().item()
    assert numerics.largest_error(dtype) == pytest.approx(worst, rel=1e-3)


def test_group_errors_marks_the_largest_and_stays_below_half_a_step():
    rows = torch.linspace(0.5, 3.0, 128).repeat(4, 1).to(torch.bfloat16)
    fig, summary = errors_of(rows)
    drawn = {trace.name: trace for trace in fig.data}
    assert len(drawn["largest of its group"].x) == 4
    assert list(drawn["largest of its group"].x) == [127, 255, 383, 511]
    assert len(drawn["element"].x) == 4 * 127
    assert 0 < max(drawn["element"].y) <= 100 / 17 * (1 + 1e-6)
    assert len(drawn["too small for full precision"].x) == 0
    assert "1/17, or 5.88%," in summary and "512 elements with full precision" in summary
    assert "returns exactly" in errors_of(torch.full((1, 128), 7.0))[1]  # 7 / 448 and 448 * (7 / 448) are exact


def test_group_errors_draws_small_elements_on_the_edge_and_says_so():
    rows = torch.full((1, 128), 1.0)
    rows[0, 5] = 1e-6  # below half of the smallest value beside an amax of one: comes back as zero
    fig, summary = errors_of(rows)
    small = next(trace for trace in fig.data if trace.name == "too small for full precision")
    assert list(small.x) == [5]
    assert small.customdata[0][2] == pytest.approx(100.0)
    assert max(small.y) <= fig.layout.yaxis.range[1]
    assert "1 of 128 elements" in summary and "100.0% off" in summary and "drawn on it" in summary


def test_group_errors_of_zeros_are_zero():
    fig, summary = errors_of(torch.zeros(2, 128))
    assert max(y for trace in fig.data[:3] for y in trace.y) == 0
    assert "nan" not in summary


def test_rounding_costs_name_the_most_and_the_least():
    costs = {"none": numerics.Cost(0.0375, 1.0), "one": numerics.Cost(0.01, 0.25), "two": numerics.Cost(0.02, 0.5)}
    fig, summary = drawn(numerics.rounding_costs(costs, "the module"))
    scales, codes = fig.data
    assert list(scales.x) == [100.0, 25.0, 50.0] and list(codes.x) == [3.75, 1.0, 2.0]
    assert list(codes.y) == ["none", "one", "two"]
    assert "between 1.00% (“one”) and 3.75% (“none”) of the codes change" in summary
    assert "between 25.0% and 100.0% of the scales" in summary


def test_outlier_sweep_compares_the_ends():
    fig, summary = drawn(numerics.outlier_sweep([1, 16, 256], [0.02, 0.021, 0.022], [0.03, 0.1, 0.5]))
    group, tensor = fig.data
    assert list(group.x) == [1, 16, 256] and list(tensor.y) == [3.0, 10.0, 50.0]
    assert "2.00%" in summary and "3.00%" in summary and "2.20% and 50.00%" in summary


def test_error_histogram_draws_shares_and_compares_the_formats():
    fine = torch.tensor([-0.01, -0.002, 0.002, 0.01])
    fig, summary = drawn(numerics.error_histogram({"e4m3": fine, "e5m2": 2 * fine}, reach=0.02, bins=3))
    narrow, wide = fig.data
    assert list(narrow.y) == list(wide.y) == [25.0, 50.0, 25.0]  # the axis reaches to the wide one's ends
    assert narrow.x[0] == pytest.approx(-100 * 0.02 * 2 / 3, rel=1e-3)
    assert (narrow.name, wide.name) == ("e4m3", "e5m2") and narrow.line.dash != wide.line.dash
    assert "Beyond" not in summary
    assert "no more than: e4m3: 0.20%; e5m2: 0.40%." in summary and "e4m3 loses least, e5m2 2.0 times" in summary
    equal = drawn(numerics.error_histogram({"a": fine, "b": 1.005 * fine, "c": 3 * fine}, reach=0.02, bins=3))[1]
    assert "a and b lose least, c 3.0 times as much" in equal and "Beyond the ends of the axis: 50.00% of c's." in equal
