from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest

from fusionlib.show import display_figure, figure_bundle
from fusionlib.show.figure import CAPTION_ROLE, PLOTLY_MIME
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
    data, metadata = figure_bundle(fig, **WORDS)
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
    figure_bundle(fig, **WORDS)
    assert fig.to_json() == before


@pytest.mark.parametrize("missing", list(WORDS))
def test_a_figure_without_words_is_refused(missing):
    with pytest.raises(ValueError, match=f"{missing} is ' '"):
        figure_bundle(go.Figure(), **WORDS | {missing: " "})


def test_display_publishes_the_figure_and_its_words_below(monkeypatch):
    published = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda **message: published.append(message))
    display_figure(go.Figure(), **WORDS)
    figure, words = published
    assert set(figure["data"]) == {PLOTLY_MIME, "text/plain"}
    assert figure["metadata"] == {"fusionlib": WORDS}
    assert words["data"]["text/markdown"] == "**Bytes per element** Fused reads half."
    assert words["metadata"] == {"fusionlib": {"role": CAPTION_ROLE}}


def test_words_from_a_stranger_hold_no_markup(monkeypatch):
    published = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda **message: published.append(message))
    display_figure(go.Figure(), **WORDS | {"summary": "<img src=x onerror=alert(1)>"})
    assert "<img" not in published[1]["data"]["text/markdown"]


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
