from __future__ import annotations

import plotly.graph_objects as go
import pytest

from fusionlib.show import Choice, Drawing, Entry, Span, explore

CONTROLS = {
    "head": Span(0, 7, value=2),
    "share": Span(0.0, 1.0, value=0.5, step=0.25),
    "variant": Choice({"one kernel": 1, "two kernels": 2}, value=2),
    "find_node": Entry(placeholder="a name"),
}


@pytest.fixture
def messages(monkeypatch) -> dict[str, list]:
    seen: dict[str, list] = {"published": [], "displayed": []}
    monkeypatch.setattr("IPython.display.publish_display_data", lambda **message: seen["published"].append(message))
    monkeypatch.setattr("IPython.display.display", lambda widget: seen["displayed"].append(widget))
    return seen


def draw(**values) -> Drawing:
    return Drawing(go.Figure(), caption="c", alt="a", summary=repr(sorted(values.items())))


def test_without_controls_there_is_the_static_figure_and_what_could_be_moved(messages):
    explore(draw, interactive=False, **CONTROLS)
    summary = messages["published"][0]["metadata"]["fusionlib"]["summary"]
    assert summary == repr([("find_node", ""), ("head", 2), ("share", 0.5), ("variant", 2)])
    words = messages["published"][-1]["data"]
    assert (
        messages["displayed"] == []
        and words["text/plain"] == "In JupyterLab this figure has live controls: head, share, variant, find node."
    )
    assert words["text/markdown"] == f"*{words['text/plain']}*"


def test_a_control_redraws_the_figure_in_its_place(messages):
    explore(draw, interactive=True, **CONTROLS)
    (box,) = messages["displayed"]
    head, share, variant, find, _output = box.children
    assert [w.description for w in (head, share, variant, find)] == ["head", "share", "variant", "find node"]
    assert (head.min, head.max, head.value, share.step, variant.label) == (0, 7, 2, 0.25, "two kernels")
    first = messages["published"][0]
    head.value = 5
    again = messages["published"][-2]
    assert again["update"] and again["transient"] == first["transient"]
    assert "('head', 5)" in again["metadata"]["fusionlib"]["summary"]
    variant.value = 1
    assert "('variant', 1)" in messages["published"][-2]["metadata"]["fusionlib"]["summary"]


@pytest.mark.parametrize(
    "make", [lambda: Span(0, 3, value=4), lambda: Span(0, 3, value=1, step=0), lambda: Choice([1, 2], value=3)]
)
def test_a_first_value_outside_of_its_control_is_refused(make):
    with pytest.raises(ValueError, match="value="):
        make()
