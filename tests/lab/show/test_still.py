"""A still picture shows the figure's content: points where the axes say, texts, and nothing executable."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.subplots import make_subplots

from fusionlab.show.controls import room, without_controls
from fusionlab.show.still import StillError, picture
from fusionlab.show.still.svg import text
from fusionlab.show.theme import GROUND, INK

SVG = "{http://www.w3.org/2000/svg}"


def drawn(fig: go.Figure) -> ElementTree.Element:
    return ElementTree.fromstring(picture(fig, "A title", "what is drawn"))


def points(root: ElementTree.Element, stroke: str) -> list[tuple[float, float]]:
    """The points of the lines in one colour."""
    paths = [node.get("d") for node in root.iter(f"{SVG}path") if node.get("stroke") == stroke]
    return [tuple(map(float, pair)) for d in paths for pair in re.findall(r"(-?[\d.]+),(-?[\d.]+)", d)]


def words(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """Every text with its place."""
    spans = [node for node in root.iter(f"{SVG}tspan") if node.get("x")]
    return {node.text: (float(node.get("x")), float(node.get("y"))) for node in spans}


def line(x, y, **layout) -> go.Figure:
    return go.Figure(go.Scatter(x=x, y=y, mode="lines", line={"color": "#123456"}), {"height": 300} | layout)


@pytest.mark.parametrize(
    ("x", "kind", "shares"),
    [
        ([0, 1, 4], "linear", (0, 0.25, 1)),
        (np.array([1, 10, 1000]), "log", (0, 1 / 3, 1)),
        ((2, 4, 6), "linear", (0, 0.5, 1)),
    ],
)
def test_points_stand_where_their_values_say(x, kind, shares):
    root = drawn(line(x, [0, 1, 0], xaxis={"type": kind}))
    (x0, y0), (x1, y1), (x2, y2) = points(root, "#123456")
    assert [(at - x0) / (x2 - x0) for at in (x0, x1, x2)] == pytest.approx(shares, abs=0.01)
    assert y1 < y0 == y2  # upwards


def test_a_tick_stands_under_the_value_that_it_names():
    root = drawn(line([0, 5, 10], [1, 2, 3], xaxis={"tickvals": [0, 5, 10], "ticktext": ["none", "half", "all"]}))
    places = words(root)
    for (x, _), name in zip(points(root, "#123456"), ("none", "half", "all"), strict=True):
        assert places[name][0] == pytest.approx(x, abs=0.2)


def test_a_reversed_axis_of_names_counts_downwards():
    fig = go.Figure(go.Bar(x=[1, 2], y=["first", "second"], orientation="h"), {"height": 300})
    assert words(drawn(fig))["first"][1] > words(drawn(fig))["second"][1]
    fig.update_yaxes(autorange="reversed")
    assert words(drawn(fig))["first"][1] < words(drawn(fig))["second"][1]


def boxes(root: ElementTree.Element, fill: str) -> list[tuple[float, ...]]:
    rects = [node for node in root.iter(f"{SVG}rect") if node.get("fill") == fill]
    return [tuple(float(node.get(name)) for name in ("x", "y", "width", "height")) for node in rects]


@pytest.mark.parametrize("flat", [True, False])
def test_stacked_bars_follow_on_each_other(flat):
    def bar(values, colour):
        places = ["a", "b"]
        sides = {"x": values, "y": places, "orientation": "h"} if flat else {"x": places, "y": values}
        return go.Bar(**sides, marker={"color": colour}, showlegend=False)

    root = drawn(go.Figure([bar([1, 2], "#111111"), bar([3, 1], "#222222")], {"barmode": "stack", "height": 300}))
    first, second = boxes(root, "#111111")[0], boxes(root, "#222222")[0]
    length = 2 if flat else 3
    assert second[length] == pytest.approx(3 * first[length], abs=0.3)
    if flat:
        assert second[0] == pytest.approx(first[0] + first[2], abs=0.2)
    else:
        assert second[1] + second[3] == pytest.approx(first[1], abs=0.2)


def test_what_is_hidden_is_not_drawn_and_lines_end_at_gaps():
    fig = line([0, 1, None, 2, 3], [0, 1, None, 1, 0])
    fig.add_scatter(x=[0], y=[9], mode="lines+markers", line={"color": "#654321"}, visible=False, name="hidden")
    root = drawn(fig)
    assert points(root, "#654321") == [] and "hidden" not in words(root)
    (path,) = [node.get("d") for node in root.iter(f"{SVG}path") if node.get("stroke") == "#123456"]
    assert path.count("M") == 2 and path.count("L") == 2


def test_panels_share_nothing_but_the_picture():
    fig = make_subplots(rows=2, cols=1, subplot_titles=("upper", "lower"))
    fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": "#111111"}, row=1, col=1)
    fig.add_scatter(x=[0, 1], y=[0, 100], mode="lines", line={"color": "#222222"}, row=2, col=1)
    root = drawn(fig.update_layout(height=500))
    upper, lower = points(root, "#111111"), points(root, "#222222")
    assert max(y for _, y in upper) < min(y for _, y in lower)
    assert words(root)["upper"][1] < min(y for _, y in upper) < words(root)["lower"][1] < min(y for _, y in lower)


def test_it_has_a_ground_and_says_what_it_is():
    root = drawn(line([0, 1], [0, 1]))
    assert root.find(f"{SVG}rect").get("fill") == GROUND and root.get("fill") == INK
    assert (root.find(f"{SVG}title").text, root.find(f"{SVG}desc").text) == ("A title", "what is drawn")
    assert (root.get("width"), root.get("height"), root.get("viewBox")) == ("760", "300", "0 0 760 300")


def test_controls_and_their_room_are_left_out():
    fig = line([0, 1], [0, 1], margin={"b": 160}, meta=room(below=100), sliders=[{"steps": [{"label": "a step"}]}])
    root = drawn(fig)
    assert root.get("height") == "200" and "a step" not in words(root)
    plain = without_controls(fig).layout
    assert (plain.height, plain.margin.b, plain.sliders, fig.layout.height) == (200, 60, (), 300)


EVIL = "<script>alert(1)</script>\x00\"'&"


def test_text_from_a_stranger_is_text():
    fig = go.Figure(go.Bar(x=[1, 2], y=[EVIL, "b"], orientation="h", text=[EVIL, ""], name=EVIL), {"height": 300})
    said = picture(fig, EVIL, EVIL)
    root = ElementTree.fromstring(said)  # well-formed, whatever it holds
    assert {node.tag.removeprefix(SVG) for node in root.iter()} <= {
        "svg", "title", "desc", "rect", "g", "path", "text", "tspan", "defs", "pattern", "circle",
    }  # fmt: skip
    assert "alert(1)" in said and "\x00" not in said


@pytest.mark.parametrize("source", ["<span", "<br", "<b", "</span", "a<span x>b", "<span style='font-size:px'>"])
def test_what_only_begins_like_a_tag_is_text(source):
    drawn = ElementTree.fromstring(f"<svg>{text(source, 12).at(0, 0)}</svg>")
    assert "".join(drawn.itertext()) == source


@given(st.text())
def test_any_text_makes_well_formed_svg(source):
    ElementTree.fromstring(f"<svg>{text(source, 12).at(0, 0)}</svg>")


def test_plotlys_tags_are_read():
    made = text("<b>bold</b> plain<br><span style='font-size:10px'>small &lt;x&gt;</span>", 14)
    assert [[run.text for run in row] for row in made.lines] == [["bold", " plain"], ["small <x>"]]
    assert made.lines[0][0].bold and not made.lines[0][1].bold and made.lines[1][0].size == 10


def test_what_it_cannot_show_is_named():
    with pytest.raises(StillError, match="no heatmap; it has scatter, bar"):
        picture(go.Figure(go.Heatmap(z=[[1]])), "t", "a")
