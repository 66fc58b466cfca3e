from __future__ import annotations

import plotly.graph_objects as go
import pytest

from fusionlab.show import Choice, Drawing, Entry, Span, explore
from fusionlab.show.controls import SLIDER, room
from fusionlab.show.figure import PLOTLY_MIME

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
CONTROLS = {
    "head": Span(0, 7, value=2),
    "share": Span(0.0, 1.0, value=0.5, step=0.25),
    "variant": Choice({"one kernel": 1, "two kernels": 2}, value=2),
    "find_node": Entry(placeholder="a name"),
}


@pytest.fixture
def published(monkeypatch) -> list[dict]:
    seen: list[dict] = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda **message: seen.append(message))
    return seen


@pytest.fixture
def widgets(monkeypatch) -> dict:
    """The created widgets, by label."""
    ipywidgets = pytest.importorskip("ipywidgets")
    made = {}
    for name in ("IntSlider", "FloatSlider", "Dropdown", "Text"):
        kind = getattr(ipywidgets, name)

        def make(*args, kind=kind, **kwargs):
            return made.setdefault(kwargs["description"], kind(*args, **kwargs))

        monkeypatch.setattr(ipywidgets, name, make)
    return made


def draw(head=0, share=0.0, variant=0, find_node="") -> Drawing:
    """All chosen values are in the figure's data, and none in the words."""
    fig = go.Figure(go.Scatter(x=[0, 1, 2], y=[head, share, variant], hovertext=[find_node]), {"height": 300})
    return Drawing(fig, caption="c", alt="a", summary="s")


def drawn(messages: list[dict]) -> dict:
    """The trace of the last published figure."""
    return next(m["data"][PLOTLY_MIME] for m in reversed(messages) if PLOTLY_MIME in m["data"])["data"][0]


def test_without_controls_there_is_the_figure_and_what_would_add_them(published):
    explore(draw, interactive=False, **CONTROLS)
    assert drawn(published)["y"] == [2, 0.5, 2] and drawn(published)["hovertext"] == [""]
    words = published[-1]["data"]
    assert words == {
        "text/markdown": "*Run in JupyterLab with `interactive = True`, this figure has live controls: head, share, "
        "variant, find node.*",
        "text/plain": "Run in JupyterLab with interactive = True, this figure has live controls: head, share, "
        "variant, find node.",
    }
    assert not any(WIDGET_MIME in message["data"] for message in published)


def test_a_control_redraws_the_figure_in_its_place(published, widgets):
    explore(draw, interactive=True, **CONTROLS)
    head, share, variant, find = (widgets[name] for name in ("head", "share", "variant", "find node"))
    assert (head.min, head.max, head.value, share.step, variant.label) == (0, 7, 2, 0.25, "two kernels")
    (first,) = [message for message in published if PLOTLY_MIME in message["data"]]
    assert drawn(published)["y"] == [2, 0.5, 2]
    head.value = 5
    assert drawn(published)["y"] == [5, 0.5, 2]
    assert all(message["update"] for message in published[published.index(first) + 2 :])
    assert {m["transient"]["display_id"] for m in published if PLOTLY_MIME in m["data"]} == {
        first["transient"]["display_id"]
    }
    share.value, variant.value, find.value = 0.75, 1, "mul"
    assert drawn(published)["y"] == [5, 0.75, 1] and drawn(published)["hovertext"] == ["mul"]


def test_the_controls_stand_above_and_words_stand_for_them_once(published, widgets):
    explore(draw, interactive=True, head=CONTROLS["head"])
    words, box, figure, _caption = published
    assert PLOTLY_MIME in figure["data"] and WIDGET_MIME in box["data"]
    assert words["data"]["text/plain"] == "This figure has live controls while its kernel runs: head."
    assert words["data"]["text/plain"] in words["data"]["text/html"]
    assert box["data"]["text/plain"] == ""  # rather than VBox(children=...


def test_a_slider_in_the_figure_makes_way_for_a_live_one_of_its_name(published, widgets):
    def with_slider(head):
        slider = {"name": "head", "steps": [{"label": "0", "method": "restyle", "args": [{}]}]}
        layout = {"height": 300 + SLIDER, "margin": {"b": 60 + SLIDER}, "meta": room(below=SLIDER), "sliders": [slider]}
        return Drawing(go.Figure(go.Scatter(y=[head]), layout), caption="c", alt="a", summary="s")

    explore(with_slider, interactive=True, head=CONTROLS["head"])
    layout = published[2]["data"][PLOTLY_MIME]["layout"]
    assert not layout.get("sliders") and (layout["height"], layout["margin"]["b"]) == (300, 60)
    explore(with_slider, interactive=False, head=CONTROLS["head"])
    layout = published[4]["data"][PLOTLY_MIME]["layout"]
    assert len(layout["sliders"]) == 1 and layout["height"] == 300 + SLIDER


@pytest.mark.parametrize(
    "make", [lambda: Span(0, 3, value=4), lambda: Span(0, 3, value=1, step=0), lambda: Choice([1, 2], value=3)]
)
def test_a_first_value_outside_of_its_control_is_refused(make):
    with pytest.raises(ValueError, match="value="):
        make()
