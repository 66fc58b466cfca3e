"""The kernel's figures: what is drawn is the data, and the sentence beside it says what the data say."""

import pytest

pytest.importorskip("plotly", reason="the notebooks extra is not installed")
pytest.importorskip("triton", reason="Triton is not installed on this platform")

from fusionlab.observe.census import Census
from fusionlab.show import kernel_figures, kernel_speed
from fusionlab.versions import VERSIONS
from fusionlab.versions.dependency_chain import Chain
from fusionlab.versions.timing import Timed
from fusionlab.versions.watch import Access, View


def view() -> View:
    accesses = []
    for program in (0, 1, 2):
        accesses += [
            Access("k", program, "load", "x", 2, ((256 * program, 256),)),
            Access("k", program, "load", "gate<b>", 2, ((768 * program, 128), (768 * program + 384, 128))),
            Access("k", program, "store", "scale", 4, ((2 * program, 1),)),
        ]
    return View(VERSIONS[5], 1, 3, tuple(accesses), (), 768, 0)


def visible(fig, flags):
    """(name, argument's place, runs) of the program's traces that `flags` leave visible."""
    chosen = [trace for trace, flag in zip(fig.data, flags, strict=True) if flag and trace.name.startswith("program")]
    return [(trace.name, list(zip(trace.base, trace.x, strict=True))) for trace in chosen]


def test_a_touch_map_shows_one_program_and_the_slider_the_others():
    drawing = kernel_figures.touch_map(view(), where="a <gate>")
    flags = [trace.visible for trace in drawing.fig.data]
    assert visible(drawing.fig, flags) == [
        ("program 1", [(256, 256)]),
        ("program 1", [(768, 128), (1152, 128)]),
        ("program 1", [(2, 1)]),
    ]
    steps = drawing.fig.layout.sliders[0].steps
    assert [step.label for step in steps] == ["0", "1", "2"] and drawing.fig.layout.sliders[0].active == 1
    assert visible(drawing.fig, steps[2].args[0]["visible"])[1] == ("program 2", [(1536, 128), (1920, 128)])
    assert "loads 256 elements of gate<b> from 768 on, in 2 runs, 384 apart" in drawing.summary
    assert "stores 1 element of scale from 2 on, in one run" in drawing.summary
    assert drawing.caption.endswith("touches, a <gate>.")  # escaped where it is shown
    labels = [axis.ticktext[0] for axis in drawing.fig.select_yaxes()]
    assert labels == ["x<br>(load)", "gate&lt;b&gt;<br>(load)", "scale<br>(store)"]
    assert len(drawing.table.rows) == 9 and drawing.table.rows[4][3:] == ("256", "512", "768+128, 1152+128")


def test_a_program_that_does_not_exist_is_not_drawn():
    with pytest.raises(ValueError, match="program=3 does not exist; choose 0 to 2"):
        kernel_figures.touch_map(view(), 3)


def test_bytes_are_stacked_and_summed():
    cases = {
        "near gate": {"two": {"x": 2.0, "nothing": 0.0, "copy": 0.0}, "one": {"x": 1.0, "nothing": 0.0, "copy": 0.0}},
        "far gate": {"two": {"x": 2.0, "nothing": 0.0, "copy": 4.0}, "one": {"x": 1.0, "nothing": 0.0, "copy": 0.0}},
    }
    drawing = kernel_figures.bytes_per_version(cases)
    bars = [(trace.name, list(trace.x)) for trace in drawing.fig.data if trace.type == "bar"]
    assert bars == [
        ("x", [2, 1]),
        ("copy", [0, 0]),
        ("x", [2, 1]),
        ("copy", [4, 0]),
    ]  # what is zero everywhere is left out
    totals = [list(trace.text) for trace in drawing.fig.data if trace.type == "scatter"]
    assert totals == [[" 2.00 B", " 1.00 B"], [" 6.00 B", " 1.00 B"]]
    assert "With a far gate: 6.00 bytes per element in “two”, 1.00 in “one”, 6.00 times fewer." in drawing.summary
    assert drawing.table.rows[2] == ("far gate", "two", "2.000", "4.000", "6.000")


def one_census(target: str, loads: tuple, divisions: int, spills: int = 0) -> Census:
    return Census(target, 300, loads, ((8, 1),), 2, 4, 8, 1, divisions, 8, 16, 32, spills)


def test_a_census_names_what_is_the_same_on_all():
    drawing = kernel_figures.census_bars(
        [one_census("a", ((16, 3),), 2), one_census("b", ((2, 4), (16, 1)), 3)], of="it"
    )
    panels = dict(zip([note.text for note in drawing.fig.layout.annotations], drawing.fig.data, strict=True))
    assert list(panels["16-byte loads"].x) == [3, 1] and list(panels["other loads"].x) == [0, 4]
    assert list(panels["correctly rounded divisions"].x) == [2, 3]
    assert "registers per thread (32)" in drawing.summary and "divisions (2)" not in drawing.summary
    assert "None of them spills" in drawing.summary
    spilling = kernel_figures.census_bars([one_census("a", (), 2, spills=5), one_census("b", (), 2)])
    assert "they spill 5 registers" in spilling.summary


def test_chains_are_told_by_kind_and_length():
    chains = {
        "short": Chain(("ld.global.b32", "add.rn.f32", "st.global.b32"), 9),
        "long": Chain(("ld.global.b32", "shfl.sync.bfly.b32", "add.rn.f32", "div.rn.f32", "st.global.b32"), 40),
    }
    drawing = kernel_figures.chain_bars(chains)
    drawn = {trace.name: list(trace.x) for trace in drawing.fig.data if trace.type == "bar"}
    assert drawn["exchanges between lanes"] == [0, 1] and drawn["arithmetic and addresses"] == [2, 2]
    assert "From 3 links (“short”) to 5 (“long”). In “long” 5 of 40 instructions" in drawing.summary


def test_timings_say_which_is_fastest():
    moved = 5_000_000
    timed = [Timed("v1", 9.0, 8.5, 9.9, moved, 4), Timed("v2", 9.5, 9.4, 9.9, moved, 4)]
    timed += [Timed("v7", 4.5, 4.4, 4.8, moved, 4), Timed("light", 3.6, 3.5, 3.7, moved, 4)]
    drawing = kernel_speed.timings(timed, "Measured here on a GPU", 64)
    (bars,) = drawing.fig.data
    assert list(bars.x) == [9.0, 9.5, 4.5, 3.6] and bars.text[2] == "\u20034.50 µs, 1111 GB/s"
    assert list(bars.error_x.array) == pytest.approx([0.9, 0.4, 0.3, 0.1])
    assert bars.y[3] == "the light" and bars.marker.color[3] != bars.marker.color[2]
    assert drawing.summary == (
        "Version 7 takes 4.50 µs, version 1 9.00 µs: 2.00 times as long. The largest step is from version 2 to 7, 2.11 "
        "times as fast. The light takes 3.60 µs: version 7 is at 80% of it."
    )
    assert drawing.caption == "Measured here on a GPU, 64 tokens."
    slower = [timed[0], Timed("v2", 10.0, 9.95, 10.1, moved, 4), timed[3]]
    slower = kernel_speed.timings(slower, "Measured here on a GPU", 1)
    assert "largest step" not in slower.summary and slower.caption == "Measured here on a GPU, 1 token."
    assert "Version 2 takes 1.11 times as long as version 1." in slower.summary


def test_our_record_is_told_by_case():
    drawing = kernel_speed.recorded_shares({"a <gate>": {8192: 0.97, 1: 0.88}, "b": {1: 0.9}}, "measured on a GPU")
    first, second = drawing.fig.data
    assert first.name == "a &lt;gate&gt;" and list(first.x) == [1, 8192] and list(first.y) == [88, 97]
    assert list(second.x) == [1]
    assert drawing.summary.startswith("A <gate>: 88% of the light at 1 token, the least, and 97% at 8192, the most. B")
    assert drawing.table.rows[1] == ("b", "0.900", "–")
    with pytest.raises(ValueError, match="no shares"):
        kernel_speed.recorded_shares({"a": {}}, "nowhere")
