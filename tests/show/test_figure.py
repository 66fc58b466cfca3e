from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest

from fusionlib.show import Drawing, Table, show
from fusionlib.show.figure import CAPTION_ROLE, PLOTLY_MIME, TABLE_ROLE, Shown, figure_bundle
from fusionlib.show.theme import PALETTE, TEXT, template

WORDS = {"caption": "Bytes per element", "alt": "two bars", "summary": "Fused reads half."}


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_the_bundle_is_json_with_numpy_inside_and_words_beside():
    fig = go.Figure(go.Scatter(x=np.arange(3), y=np.float32([1, 2, 3])), layout={"title": {"text": "t"}})
    data, metadata = figure_bundle(Drawing(fig, **WORDS))
    assert set(data) == {PLOTLY_MIME, "text/plain"}
    assert data["text/plain"] == "Bytes per element\nFused reads half."
    assert metadata == {"fusionlib": WORDS}
    assert json.loads(json.dumps(data)) == data
    assert data[PLOTLY_MIME]["layout"]["title"]["text"] == "t"
    restored = go.Figure(data[PLOTLY_MIME]["data"])
    assert restored.data[0].type == "scatter"
    assert data[PLOTLY_MIME]["layout"]["template"] == json.loads(template().to_plotly_json() and go.Figure(
        layout={"template": template()}).to_json())["layout"]["template"]  # fmt: skip


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
    assert set(figure["data"]) == {PLOTLY_MIME, "text/plain"}
    assert figure["metadata"] == {"fusionlib": WORDS}
    assert words["data"]["text/markdown"] == "**Bytes per element** Fused reads half."
    assert words["metadata"] == {"fusionlib": {"role": CAPTION_ROLE}}
    assert table["metadata"] == {"fusionlib": {"role": TABLE_ROLE}}
    assert "<td>norm</td><td>4</td>" in table["data"]["text/html"]
    assert table["data"]["text/plain"] == "bytes\nkernel  B\nnorm    4\nquant   3.03"
    assert not any(message["update"] for message in published)


def test_an_update_takes_the_same_places(published):
    shown = Shown()
    shown.update(Drawing(go.Figure(), **WORDS))
    shown.update(Drawing(go.Figure(), **WORDS | {"summary": "Other."}))
    places = [message["transient"]["display_id"] for message in published]
    assert places[:2] == places[2:] and places[0] != places[1]
    assert [message["update"] for message in published] == [False, False, True, True]
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


@pytest.mark.parametrize("page", ["#ffffff", "#14171a"])
@pytest.mark.parametrize("name", list(PALETTE))
def test_every_colour_stands_out_on_both_pages(name, page):
    assert contrast(PALETTE[name], page) >= 3


@pytest.mark.parametrize("page", ["#ffffff", "#14171a"])
def test_text_is_legible_on_both_pages(page):
    assert contrast(TEXT, page) >= 4


def test_the_contrast_of_this_test_is_the_one_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
