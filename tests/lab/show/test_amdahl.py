"""The curve is saved x layers / step, the slider shows one saving at a time, and the words say what is drawn."""

import pytest

pytest.importorskip("plotly", reason="the notebooks extra is not installed")

from fusionlab.observe.whatif import WhatIf
from fusionlab.show.amdahl import SAVINGS_US, Claim, share_of_step, worth


def shown(fig) -> list:
    return [trace for trace in fig.data if trace.visible is not False]


def test_the_share_is_the_what_ifs():
    found = WhatIf("m", 4, 36, 9.0, 4.5, 6480.0)
    assert share_of_step(4.5, 36, 6480.0) == pytest.approx(found.share) == pytest.approx(0.025)


def test_every_point_of_the_curve_is_the_law():
    fig = worth(4.5, 36, 6.48).fig
    (curve,) = [trace for trace in shown(fig) if trace.mode == "lines" and trace.fill is None]
    assert len(curve.x) == 121 and (curve.x[0], curve.x[-1]) == (1.0, pytest.approx(100.0))
    for x, y in zip(curve.x, curve.y, strict=True):
        assert x * y == pytest.approx(4.5 * 36 / 1000 * 100)
    (mark,) = [trace for trace in shown(fig) if trace.mode == "markers+text"]
    assert (mark.x[0], mark.y[0], mark.text[0]) == (6.48, pytest.approx(2.5), "2.50%")


def test_each_position_of_the_slider_shows_its_own_curve_and_all_that_is_fixed():
    claims = [Claim("a", 6480.0, 0.025), Claim("b", 7206.0, 0.0225)]
    fig = worth(4.5, 36, 6.48, claims).fig
    (slider,) = fig.layout.sliders
    assert [float(step.label) for step in slider.steps] == list(SAVINGS_US)
    assert slider.steps[slider.active].label == "4.5"
    for saving, step in zip(SAVINGS_US, slider.steps, strict=True):
        assert step.method == "restyle"
        visible = step.args[0]["visible"]
        assert len(visible) == len(fig.data)
        names = [trace.name for trace, on in zip(fig.data, visible, strict=True) if on]
        assert names == ["1 to 3 %", "a", "b", f"{saving:g} µs × 36 layers", "at 6.48 ms"]
    assert [trace.visible is not False for trace in fig.data] == list(slider.steps[slider.active].args[0]["visible"])


def test_a_saving_of_ones_own_joins_the_slider():
    slider = worth(1.25, 36, 10.0).fig.layout.sliders[0]
    assert [float(step.label) for step in slider.steps] == sorted([*SAVINGS_US, 1.25])
    assert slider.steps[slider.active].label == "1.25"


def test_the_words_are_of_this_data():
    claims = [Claim("TPOT", 6480.0, 0.025)]
    summary = worth(4.5, 36, 6.48, claims).summary
    assert "162 µs per step: 2.50% of 6.48 ms" in summary
    assert "16.2 down to 5.4 ms" in summary
    assert "The published statements lie on the curve of 4.5 µs" in summary
    other = worth(1.0, 36, 6.48, claims).summary
    assert "36 µs per step: 0.56%" in other
    assert "1 of 1 published statements lie off the curve of 1 µs" in other
    assert "published" not in worth(1.0, 36, 6.48).summary


def test_the_caption_holds_wherever_the_slider_stands():
    drawn = worth(4.5, 36, 6.48)
    assert drawn.caption == worth(0.5, 36, 6.48).caption == "What a saving in each of 36 layers is worth."
    assert drawn.summary.startswith("If each saves 4.5 µs, ")


def test_a_share_above_the_frame_is_still_told():
    (mark,) = [trace for trace in shown(worth(9.0, 48, 1.0).fig) if trace.mode == "markers+text"]
    assert mark.text[0] == "43.20%" and mark.y[0] < 6


def test_the_table_says_the_same():
    table = worth(4.5, 36, 6.48).table
    row = next(row for row in table.rows if row[0] == "4.5 µs")
    assert row == ["4.5 µs", "162 µs", "5.40%", "2.50%", "1.62%", "0.54%"]
    assert table.columns[2:] == ["of 3 ms", "of 6.48 ms", "of 10 ms", "of 30 ms"]


@pytest.mark.parametrize("numbers", [(0, 36, 6.0), (4.5, 0, 6.0), (4.5, 36, 0.5), (4.5, 36, 101.0)])
def test_numbers_that_cannot_be(numbers):
    with pytest.raises(ValueError, match="must"):
        worth(*numbers)
