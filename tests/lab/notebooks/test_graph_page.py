"""The graph diff on an offline page, in a browser: buttons, slider and search by keyboard, legible labels."""

from __future__ import annotations

import itertools

import nbformat
import pytest
import torch

pytest.importorskip("graphlay", reason="the notebooks extra is not installed")

from fusionlab.notebooks.site import build_site
from fusionlab.observe.capture import capture
from fusionlab.show.figure import bundles
from fusionlab.show.graph_diff import graph_diff
from fusionlab.show.graph_states import Playback, play
from fusionlib.layers import AttentionOutput

v4 = nbformat.v4
LAPTOP = {"width": 760, "height": 1200}  # the narrowest supported window: about 700 pixels of figure

PHONE = {"width": 390, "height": 844}


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
    """The first lines of the drawn boxes."""
    texts = page.eval_on_selector_all(
        ".plot-area .textpoint text",
        "nodes => nodes.map(n => n.querySelector('tspan') ? n.querySelector('tspan').textContent : n.textContent)",
    )
    return [text.strip() for text in texts]


def said(page) -> str:
    return page.text_content(".plot-controls > output")


def press(page, name: str) -> None:
    """A button, reached and pressed by keyboard."""
    button = page.get_by_role("button", name=name, exact=True)
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)


def slide(page, key: str) -> None:
    page.get_by_role("slider").focus()
    page.keyboard.press(key)
    page.wait_for_timeout(300)


def step(page) -> str:
    return page.get_by_role("slider").get_attribute("aria-valuetext")


def test_the_buttons_switch(page, recording):
    playback: Playback = play(recording)
    drawn = len(labels(page))
    both = f"Before and after in one: {len(playback.removed)} removed, {len(playback.added)} added."
    assert said(page) == both and step(page) == "both"  # the slider says what is shown
    press(page, "before")
    assert said(page) == "Before the pass." and step(page) == "0"
    assert len(labels(page)) == drawn - len(playback.added)
    press(page, "after")
    assert len(labels(page)) == drawn - len(playback.removed)
    assert "rsqrt" not in labels(page) and "rms_norm_gated_" in labels(page)
    assert step(page) == str(len(recording.events))
    press(page, "both in one")
    assert said(page) == both and step(page) == "both" and len(labels(page)) == drawn


def test_the_slider_plays(page, recording):
    steps = len(recording.events)
    everything = len(labels(page))
    slide(page, "ArrowRight")
    assert step(page) == "0" and said(page) == "Before the pass." and "rms_norm_gated_" not in labels(page)
    slide(page, "ArrowRight")
    assert said(page).startswith(f"Step 1 of {steps}: made ") and "rms_norm_gated_" in labels(page)
    slide(page, "End")
    assert said(page).startswith(f"Step {steps} of {steps}: ") and "rsqrt" not in labels(page)
    slide(page, "Home")
    assert step(page) == "both" and len(labels(page)) == everything


def test_every_control_is_reached_by_the_tab_key_and_stays_in_sight(page):
    page.locator("body").click(position={"x": 1, "y": 1})
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('figure') && document.activeElement.tagName"))
    assert {"BUTTON", "INPUT", "DIV"} <= reached  # buttons, slider and search, and the frame that scrolls
    page.set_viewport_size({"width": 1366, "height": 700})
    page.locator(".plot-area").evaluate("area => scrollTo(0, area.getBoundingClientRect().bottom - innerHeight)")
    assert page.evaluate("scrollY") > 200
    assert page.get_by_role("slider").bounding_box()["y"] >= 0


def test_the_search_finds_through_any_state(page):
    press(page, "before")
    page.fill(".plot-search input", "aten.rsqrt")
    assert page.text_content(".plot-search output") == "1 found"
    page.fill(".plot-search input", "")
    assert page.text_content(".plot-search output") == ""


@pytest.mark.parametrize("window", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_labels_are_large_enough_and_do_not_overlap(page, window):
    page.set_viewport_size(window)
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # the plot scrolls, not the page
    boxes = page.eval_on_selector_all(
        ".plot-area .textpoint text",
        "nodes => nodes.map(n => { const r = n.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; })",
    )
    assert len(boxes) > 20
    for (l1, t1, r1, b1), (l2, t2, r2, b2) in itertools.combinations(boxes, 2):
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1
    size = page.eval_on_selector(".plot-area .textpoint text", "node => getComputedStyle(node).fontSize")
    assert float(size.removesuffix("px")) >= 12
