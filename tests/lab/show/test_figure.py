from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest

from fusionlab.show import Drawing, Table, show
from fusionlab.show.figure import CAPTION_ROLE, PLOTLY_MIME, SVG_MIME, TABLE_ROLE, Shown, figure_bundle
from fusionlab.show.theme import HEIGHT, template

WORDS = {"caption": "Bytes per element", "alt": "two bars", "summary": "Fused reads half."}


def test_the_bundle_is_json_with_numpy_inside_and_words_beside():
    fig = go.Figure(go.Scatter(x=np.arange(3), y=np.float32([1, 2, 3])), layout={"title": {"text": "t"}})
    data, metadata = figure_bundle(Drawing(fig, **WORDS))
    assert set(data) == {PLOTLY_MIME, SVG_MIME, "text/plain"}
    assert data["text/plain"] == "two bars"  # what is drawn; caption and conclusion appear once, below
    assert metadata == {"fusionlib": WORDS}
    assert "<desc>two bars</desc>" in data[SVG_MIME] and 'stroke-width="2"' in data[SVG_MIME]
    assert json.loads(json.dumps(data)) == data
    assert data[PLOTLY_MIME]["layout"]["title"]["text"] == "t"
    restored = go.Figure(data[PLOTLY_MIME]["data"])
    assert restored.data[0].type == "scatter"
    assert data[PLOTLY_MIME]["layout"]["template"] == json.loads(template().to_plotly_json() and go.Figure(
        layout={"template": template()}).to_json())["layout"]["template"]  # fmt: skip


def test_every_figure_says_its_height():
    """JupyterLab uses 360 pixels if a figure sets no height, whatever its template says."""
    for layout, height in ({}, HEIGHT), ({"height": 700}, 700):
        data, _ = figure_bundle(Drawing(go.Figure(layout=layout), **WORDS))
        assert data[PLOTLY_MIME]["layout"]["height"] == height


def test_a_figure_of_which_there_is_no_picture_is_shown_without_one():
    data, _ = figure_bundle(Drawing(go.Figure(go.Heatmap(z=[[1, 2]])), **WORDS))
    assert set(data) == {PLOTLY_MIME, "text/plain"}


def test_the_figure_of_the_caller_is_left_alone():
    fig = go.Figure()
    before = fig.to_json()
    figure_bundle(Drawing(fig, **WORDS))
    assert fig.to_json() == before


@pytest.mark.parametrize("missing", list(WORDS))
def test_a_figure_without_words_is_refused(missing):
    with pytest.raises(ValueError, match=f"{missing} is ' '"):
        Drawing(go.Figure(), **WORDS | {missing: " "})


@pytest.fixture
def published(monkeypatch) -> list:
    messages: list[dict] = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda **message: messages.append(message))
    return messages


def test_a_drawing_is_published_with_its_words_and_its_table_below(published):
    show(Drawing(go.Figure(), **WORDS, table=Table("bytes", ("kernel", "B"), [("norm", "4"), ("quant", "3.03")])))
    figure, words, table = published
    assert set(figure["data"]) == {PLOTLY_MIME, SVG_MIME, "text/plain"}
    assert figure["metadata"] == {"fusionlib": WORDS}
    assert words["data"]["text/markdown"] == "**Bytes per element** Fused reads half."
    assert words["metadata"] == {"fusionlib": {"role": CAPTION_ROLE}}
    assert table["metadata"] == {"fusionlib": {"role": TABLE_ROLE}}
    assert "<td>norm</td><td>4</td>" in table["data"]["text/html"]
    assert table["data"]["text/plain"] == "bytes\nkernel  B\nnorm    4\nquant   3.03"
    assert not any(message["update"] for message in published)


def test_an_update_takes_the_same_places_and_makes_jupyterlab_draw_anew(published):
    shown = Shown()
    shown.update(Drawing(go.Figure(), **WORDS))
    shown.update(Drawing(go.Figure(go.Scatter(y=[3])), **WORDS | {"summary": "Other."}))
    figure, _, still, again, other = published
    assert [message["update"] for message in published] == [False, False, True, True, True]
    places = [message["transient"]["display_id"] for message in published]
    assert places[0] == places[2] == places[3] != places[1] == places[4]
    # JupyterLab does not redraw while the type stays plotly's, so another type comes in between.
    assert PLOTLY_MIME in figure["data"] and PLOTLY_MIME in again["data"]
    assert set(still["data"]) == {SVG_MIME, "text/plain"} and still["data"][SVG_MIME] == again["data"][SVG_MIME]
    assert again["data"][PLOTLY_MIME]["data"] != figure["data"][PLOTLY_MIME]["data"]
    assert "Other." in other["data"]["text/plain"]
    with pytest.raises(ValueError, match="needs a table exactly if"):
        shown.update(Drawing(go.Figure(), **WORDS, table=Table("t", ("a",), [])))


def test_words_from_a_stranger_hold_no_markup(published):
    evil = "<img src=x onerror=alert(1)>"
    show(Drawing(go.Figure(), **WORDS | {"summary": evil}, table=Table(evil, (evil,), [(evil,)])))
    assert "<img" not in published[1]["data"]["text/markdown"]
    assert "<img" not in published[2]["data"]["text/html"]


def test_a_row_must_fit_its_table():
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        Table("t", ("a", "b"), [("only",)])
