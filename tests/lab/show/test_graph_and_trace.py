"""Nodes and slices side by side: every link is drawn, and the slider highlights what belongs together."""

import pytest

pytest.importorskip("plotly", reason="the notebooks extra is not installed")

from fusionlab.observe.nodes import Slice
from fusionlab.show.graph_and_trace import links

NODES = ["view", "mul", "rsqrt", "amax"]
SLICES = [Slice("first", 10.0, 2.0, ("mul", "rsqrt")), Slice("second<b>", 13.0, 6.0, ("amax", "rsqrt"))]


def test_every_link_is_drawn_once():
    fig = links(NODES, SLICES).fig
    ends = [y for y in fig.data[0].y if y is not None]
    nodes, slices = fig.data[1].y, fig.data[2].y
    assert list(zip(ends[::2], ends[1::2], strict=True)) == [
        (nodes[1], slices[0]), (nodes[2], slices[0]), (nodes[3], slices[1]), (nodes[2], slices[1]),
    ]  # fmt: skip
    assert fig.data[2].x[1] == pytest.approx(3 * fig.data[2].x[0])  # bars are as long as their time


def test_the_slider_selects_a_slice_with_its_nodes():
    fig = links(NODES, SLICES).fig
    (slider,) = fig.layout.sliders
    everything, first, second = (step.args[0] for step in slider.steps)
    assert everything["visible"] == [True, True, True, False, False] and set(everything["selectedpoints"]) == {None}
    assert first["visible"] == [True, True, True, True, False]
    assert list(first["selectedpoints"][1]) == [1, 2] and list(first["selectedpoints"][2]) == [0]
    assert list(second["selectedpoints"][1]) == [3, 2] and list(second["selectedpoints"][2]) == [1]
    assert all(step.method == "restyle" for step in slider.steps)
    assert [trace.visible for trace in fig.data[3:]] == [False, False]


def test_words_table_and_marks():
    drawing = links(NODES, SLICES)
    assert "2 kernels ran 3 of 4 nodes in 8.00 µs" in drawing.summary
    assert links(NODES, SLICES[:1]).summary.startswith("1 kernel ran ")
    assert "took 6.00 µs of it (75%) for amax, rsqrt" in drawing.summary
    assert "1 node launched nothing, as views do." in drawing.summary
    assert drawing.table.rows[0] == ["first", "2.00", "mul, rsqrt"]
    assert list(drawing.fig.data[1].marker.symbol) == ["circle-open", "circle", "circle", "circle"]
    assert "<b>c" not in drawing.fig.data[2].text[1] and "&lt;b&gt;" in drawing.fig.data[2].hovertext[1]


def test_what_cannot_be_linked_is_named():
    with pytest.raises(ValueError, match="'cos', which is not among"):
        links(NODES, [Slice("k", 0, 1, ("cos",))])
    with pytest.raises(ValueError, match="no slice"):
        links(NODES, [])
