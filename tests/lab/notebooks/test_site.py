from __future__ import annotations

import base64
import json
import re

import nbformat
import plotly.graph_objects as go
import pytest

from fusionlab.notebooks import site
from fusionlab.notebooks.failures import SiteError
from fusionlab.notebooks.figures import script_json
from fusionlab.show import Drawing
from fusionlab.show.figure import bundles
from tests.lab.notebooks.support import HOSTILE, Elements, build, executed, figure_cell

v4 = nbformat.v4


def test_index_and_pages_say_what_ran_where(checkout):
    folder = build(checkout, executed(checkout, "01_a"), executed(checkout, "02_b", status="failed"))
    index = (folder / "index.html").read_text()
    assert '<a href="01_a.html">Title &amp; 1 &lt; 2</a>' in index
    assert "<p>About it.</p>" in index
    assert "<dd>1.2 s</dd>" in index
    assert "<dd>2.13.0</dd>" in index
    assert "a &lt;CPU&gt;" in index
    assert index.count("This notebook failed") == 1
    page = (folder / "01_a.html").read_text()
    assert "<title>Title &amp; 1 &lt; 2</title>" in page
    assert {"rel": "next", "href": "02_b.html"}.items() <= Elements(page).named("a")[-1].items()
    assert 'rel="prev"' not in page


def test_no_page_loads_anything_from_elsewhere(checkout):
    cells = [figure_cell(), v4.new_markdown_cell("$x^2$\n\n```mermaid\ngraph LR\n```\n\n[a source](https://a.example)")]
    folder = build(checkout, executed(checkout, "01_a", *cells))
    for page in folder.glob("*.html"):
        html = page.read_text()
        elements = Elements(html)
        loaded = [attrs.get("src") or attrs.get("href") for tag in ("script", "link", "img", "iframe")
                  for attrs in elements.named(tag)]  # fmt: skip
        assert all(re.match(r"assets/|data:", address) for address in loaded if address)
        assert not re.search(r"require\.js|mathjax|unpkg|cdnjs|jsdelivr", html, re.IGNORECASE)
        assert "default-src 'none'" in html
    scripts = [attrs["src"] for attrs in Elements((folder / "01_a.html").read_text()).named("script") if "src" in attrs]
    names = ["theme.js", "plotly.min.js", "figures.js", "page.js", "search.js"]
    assert scripts == [f"assets/{name}" for name in names]
    assert {path.name for path in (folder / "assets").iterdir()} == {*names, "site.css", "search-index.js"}


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<img src=//cdn.example/x.png>",
        '<link rel="stylesheet" href="http://cdn.example/x.css">',
    ],
)
def test_an_output_that_would_load_something_is_refused_and_the_old_site_stays(checkout, html):
    folder = build(checkout, executed(checkout, "01_a"))
    before = (folder / "01_a.html").read_bytes()
    output = v4.new_output("display_data", {"text/html": html})
    bad = executed(checkout, "01_a", v4.new_code_cell("x", outputs=[output]))
    with pytest.raises(SiteError, match=r"01_a\.html would load .*cdn\.example"):
        build(checkout, bad)
    assert (folder / "01_a.html").read_bytes() == before


def test_a_page_without_figures_loads_no_plotly(checkout):
    folder = build(checkout, executed(checkout, "01_a"))
    scripts = Elements((folder / "01_a.html").read_text()).named("script")
    assert [script["src"] for script in scripts] == ["assets/theme.js", "assets/page.js", "assets/search.js"]


def test_a_figure_carries_its_words_and_its_data(checkout):
    html = (build(checkout, executed(checkout, "01_a", figure_cell())) / "01_a.html").read_text()
    assert "<figcaption><strong>Sizes</strong> The second is twice the first.</figcaption>" in html
    assert html.count("The second is twice the first.") == 1, "the words for JupyterLab are not repeated on the page"
    assert 'aria-label="two bars"' in html
    still = re.search(r'<noscript><img[^>]*class="plot-still"[^>]* src="data:image/svg\+xml;base64,([^"]*)"', html)
    assert b"<desc>two bars</desc>" in base64.b64decode(still[1])  # for readers without scripts
    data = json.loads(re.search(r'class="plot-data" type="application/json">(.*?)</script>', html, re.DOTALL)[1])
    assert data["data"][0]["x"] == ["a", "b"]


def test_a_foreign_figure_is_described_by_its_text(checkout):
    data = {"application/vnd.plotly.v1+json": {"data": [], "layout": {}}, "text/plain": "a plain text"}
    cell = v4.new_code_cell("x", outputs=[v4.new_output("display_data", data)])
    html = (build(checkout, executed(checkout, "01_a", cell)) / "01_a.html").read_text()
    assert 'aria-label="a plain text"' in html
    assert '<noscript><p class="plot-noscript">This figure is drawn by a script. It shows: a plain text</p>' in html


def test_hostile_text_stays_text(checkout):
    cells = [figure_cell(HOSTILE, HOSTILE), v4.new_code_cell("x", outputs=[v4.new_output("stream", text=HOSTILE)])]
    path = executed(checkout, "01_a", *cells, provenance={"device": HOSTILE}, parameters={"p": HOSTILE})
    folder = build(checkout, path)
    for page in folder.glob("*.html"):
        elements = Elements(page.read_text())
        stills = elements.named("img")
        assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in stills)
        assert len(stills) <= 1
        assert all("src" in script or script.get("type") == "application/json" for script in elements.named("script"))


def test_json_in_a_script_is_inert_and_unchanged():
    value = {"text": f"{HOSTILE} <!-- & \u2028 µ"}
    text = script_json(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


def test_progress_bars_settle_and_stderr_is_folded_away(checkout):
    bar = v4.new_output("stream", name="stderr", text="\r 0%\r 50%\r 100%\nnote \x1b[31mred\x1b[0m\n")
    html = (build(checkout, executed(checkout, "01_a", v4.new_code_cell("x", outputs=[bar]))) / "01_a.html").read_text()
    assert '<details class="output stderr"><summary>messages</summary><pre> 100%\nnote ' in html
    assert '<span class="ansi-red-fg">red</span>' in html
    assert "50%" not in html


@pytest.mark.parametrize(("text", "shown"), [("a\rb", "b"), ("a\r\nb", "a\nb"), ("a\rb\r", "b"), ("", "")])
def test_settled(text, shown):
    assert site.terminal_text(text) == shown


def test_code_is_coloured_in_both_schemes(checkout):
    folder = build(checkout, executed(checkout, "01_a", v4.new_code_cell("def f(): pass")))
    assert '<span class="k">def</span>' in (folder / "01_a.html").read_text()
    css = (folder / "assets" / "site.css").read_text()
    light, by_system, by_choice = css.split("@media screen", 2)
    assert all(".highlight .k {" in rules for rules in (light, by_system, by_choice))


def test_widgets_fall_back_to_their_text(checkout):
    data = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "the static form"}
    cell = v4.new_code_cell("x", outputs=[v4.new_output("display_data", data)])
    html = (build(checkout, executed(checkout, "01_a", cell)) / "01_a.html").read_text()
    assert "the static form" in html
    assert "widget-view" not in html


def test_a_stream_in_pieces_is_one_and_the_headless_parameter_is_no_news(checkout):
    pieces = [v4.new_output("stream", name="stdout", text=text) for text in ("one\n", "two\n")]
    injected = v4.new_code_cell("# Parameters\ninteractive = False", metadata={"tags": ["injected-parameters"]})
    given = v4.new_code_cell("# Parameters\ntokens = 3", metadata={"tags": ["injected-parameters"]})
    path = executed(checkout, "01_a", injected, given, v4.new_code_cell("x", outputs=pieces))
    html = (build(checkout, path) / "01_a.html").read_text()
    assert html.count('<pre class="output stdout">') == 1
    assert html.count("Parameters given to this run") == 1


def test_an_output_that_the_page_cannot_show_is_an_error_and_not_a_gap(checkout):
    output = v4.new_output("display_data", {"application/x-secret": "1"})
    with pytest.raises(SiteError, match="01_a: an output would be missing"):
        build(checkout, executed(checkout, "01_a", v4.new_code_cell("x", outputs=[output])))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 720])
def test_in_a_browser_the_figure_is_drawn_with_no_network_and_no_error(checkout, browser, scheme, width):
    page_file = executed(checkout, "01_a", figure_cell(HOSTILE, HOSTILE), v4.new_code_cell("x = " + "1 + " * 80 + "1"))
    index = build(checkout, page_file) / "index.html"
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route(re.compile("^(?!file:|data:)"), lambda route: route.abort())
    page.goto(index.as_uri())
    page.click("ol.index h4 a")
    page.wait_for_selector("figure.drawn .bars path", state="attached")
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert page.locator(".bars path").count() == 2
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    body = page.evaluate("getComputedStyle(document.body).color")
    assert page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill") == body
    page.close()


def test_in_a_browser_an_inline_script_in_an_output_does_not_run(checkout, browser):
    output = v4.new_output("display_data", {"text/html": "<b>kept</b><script>window.pwned = true</script>"})
    index = build(checkout, executed(checkout, "01_a", v4.new_code_cell("x", outputs=[output])))
    page = browser.new_page()
    page.goto((index / "01_a.html").as_uri())
    assert page.text_content(".output b") == "kept"
    assert page.evaluate("window.pwned") is None
    page.close()


def test_in_a_browser_a_search_selects_what_it_names_and_a_slider_changes_the_figure(checkout, browser):
    fig = go.Figure()
    for shift in (0, 10):
        names = ["norm", "quant", "out_proj"]
        fig.add_scatter(
            x=[0, 1, 2], y=[shift] * 3, mode="markers", ids=names, hovertext=["a view", "a cast", "a view"],
            meta={"search": True}, visible=shift == 0,
        )  # fmt: skip
    steps = [{"label": str(i), "method": "update", "args": [{"visible": [i == 0, i == 1]}]} for i in (0, 1)]
    fig.update_layout(sliders=[{"steps": steps}])
    outputs = [
        v4.new_output("display_data", content, metadata=about)
        for content, about in bundles(Drawing(fig, "A graph.", "three dots", "Three nodes."))
    ]
    index = build(checkout, executed(checkout, "01_a", v4.new_code_cell("x", outputs=outputs)))
    page = browser.new_page()
    page.goto((index / "01_a.html").as_uri())
    page.wait_for_selector("figure.drawn input[type=range]")
    page.fill(".plot-search input", "VIEW")
    assert page.text_content(".plot-search output") == "2 found"
    drawn = "document.querySelector('.plot-area')"
    assert page.evaluate(f"{drawn}.data.map(t => t.selectedpoints)") == [[0, 2], [0, 2]]
    page.fill(".plot-search input", "")
    assert page.evaluate(f"{drawn}.data.map(t => t.selectedpoints)") == [None, None]
    assert page.evaluate(f"{drawn}.data.map(t => t.visible)") == [True, False]
    page.get_by_role("slider").press("ArrowRight")
    for _ in range(50):  # the page's policy forbids evaluating a function to wait for
        visible = page.evaluate(f"{drawn}.data.map(t => t.visible)")
        if visible == [False, True]:
            break
        page.wait_for_timeout(100)
    assert visible == [False, True]
    page.close()
