"""The graph diff on an offline page, in a browser: buttons, slider, search, and labels that can be read."""

from __future__ import annotations

import itertools

import nbformat
import pytest
import torch

pytest.importorskip("graphlay", reason="the notebooks extra is not installed")

from fusionlib.layers import AttentionOutput
from fusionlib.notebooks.site import build_site
from fusionlib.observe.capture import capture
from fusionlib.show.figure import bundles
from fusionlib.show.graph_diff import graph_diff
from fusionlib.show.graph_states import Playback, play

v4 = nbformat.v4
LAPTOP = {"width": 760, "height": 1200}  # the narrowest window that a page is made for: about 700 pixels of figure


@pytest.fixture(scope="module")
def recording():
    x, gate = torch.randn(2, 6, 4, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        return capture(AttentionOutput(4, 128, 256).eval(), x, gate)[0].recording


@pytest.fixture
def page(browser, checkout, recording):
    outputs = [v4.new_output("display_data", data=d, metadata=m) for d, m in bundles(graph_diff(recording))]
    notebook = checkout.write("00_graph", [v4.new_markdown_cell("# A title\n\nA summary.", id="about")])
    executed = nbformat.read(notebook, as_version=4)
    executed.cells.append(v4.new_code_cell("draw()", id="draw", outputs=outputs))
    nbformat.write(executed, notebook)
    index = build_site([notebook], checkout.root / "site")
    opened, complaints = browser.new_page(viewport=LAPTOP), []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto((index.parent / "00_graph.html").as_uri())
    opened.wait_for_selector("figure.drawn")
    yield opened
    assert complaints == []
    opened.close()


def labels(page) -> list[str]:
    """The first lines of the boxes that are drawn."""
    texts = page.eval_on_selector_all(
        ".plot-area .textpoint text",
        "nodes => nodes.map(n => n.querySelector('tspan') ? n.querySelector('tspan').textContent : n.textContent)",
    )
    return [text.strip() for text in texts]


def title(page) -> str:
    return page.text_content(".plot-area .gtitle")


def press(page, number: int) -> None:
    page.locator("g.updatemenu-button").nth(number).click()
    page.wait_for_timeout(300)


def drag_to(page, step: int, steps: int) -> None:
    rail = page.locator("rect.slider-rail-touch-rect").first.bounding_box()
    page.mouse.click(rail["x"] + 10 + (rail["width"] - 20) * step / (steps - 1), rail["y"] + rail["height"] / 2)
    page.wait_for_timeout(300)


def test_the_buttons_switch(page, recording):
    playback: Playback = play(recording)
    drawn = len(labels(page))
    assert title(page) == f"Before and after in one: {len(playback.removed)} removed, {len(playback.added)} added."
    press(page, 0)
    assert title(page) == "Before the pass." and len(labels(page)) == drawn - len(playback.added)
    press(page, 2)
    assert len(labels(page)) == drawn - len(playback.removed)
    assert "rsqrt" not in labels(page) and "rms_norm_gated_" in labels(page)
    assert page.text_content(".slider-group .slider-label") == f"slider at step {len(recording.events)}"


def test_the_slider_plays(page, recording):
    steps = len(recording.events) + 1
    drag_to(page, 1, steps)
    assert title(page).startswith(f"Step 1 of {steps - 1}: made ") and "rms_norm_gated_" in labels(page)
    drag_to(page, 0, steps)
    assert "rms_norm_gated_" not in labels(page)


def test_the_search_finds_through_any_state(page):
    press(page, 0)
    page.fill(".plot-search input", "aten.rsqrt")
    assert page.text_content(".plot-search output") == "1 found"
    page.fill(".plot-search input", "")
    assert page.text_content(".plot-search output") == ""


def test_labels_are_large_enough_and_do_not_overlap(page):
    boxes = page.eval_on_selector_all(
        ".plot-area .textpoint text",
        "nodes => nodes.map(n => { const r = n.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; })",
    )
    assert len(boxes) > 20
    for (l1, t1, r1, b1), (l2, t2, r2, b2) in itertools.combinations(boxes, 2):
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1
    size = page.eval_on_selector(".plot-area .textpoint text", "node => getComputedStyle(node).fontSize")
    assert float(size.removesuffix("px")) >= 12
