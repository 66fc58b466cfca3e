"""The site as a reader uses it, in a browser and from disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest

from fusionlab.notebooks.stylesheet import COLOURS, CONTRAST, contrast
from fusionlab.show import Drawing
from fusionlab.show.figure import bundles
from tests.lab.notebooks.support import build, executed, figure_cell

v4 = nbformat.v4
CODE = "def scale(x):\n    # the largest value, but not less\n    return max(x, 1e-10)  # of all\n\n\nscale(2)"
PARAGRAPH = "Words that fill a line of the page and say nothing. " * 40
FOLDED = "<details><summary>more</summary><table><tr><td>an aardvark</td></tr></table></details>"


def slider_cell():
    fig = go.Figure([go.Scatter(x=[0, 1], y=[0, 1], visible=True), go.Scatter(x=[0, 1], y=[2, 3], visible=False)])
    steps = [{"label": str(i), "method": "update", "args": [{"visible": [i == 0, i == 1]}]} for i in (0, 1)]
    fig.update_layout(sliders=[{"steps": steps}])
    drawn = bundles(Drawing(fig, "A slider", "two lines", "One at a time."))
    outputs = [v4.new_output("display_data", data, metadata=about) for data, about in drawn]
    return v4.new_code_cell("show()", id="slider", outputs=outputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A site of two pages with every kind of content."""
    from tests.lab.notebooks.conftest import Checkout

    checkout = Checkout(tmp_path_factory.mktemp("reading"))
    sections = "\n\n".join(f"## Section {name}\n\n{PARAGRAPH}" for name in "ABC")
    last = "## Short\n\nEnd.\n\n## Shorter\n\nA marmoset ends it."
    table = v4.new_output("display_data", {"text/html": FOLDED})
    cells = [
        v4.new_markdown_cell(sections, id="sections"),
        v4.new_code_cell(CODE, id="code", outputs=[v4.new_output("stream", text="1e-10\n")]),
        slider_cell(),
        figure_cell(),
        v4.new_markdown_cell("## Folded", id="folded-text"),
        v4.new_code_cell("table", id="folded", outputs=[table]),
        v4.new_markdown_cell(last, id="last"),
    ]
    words = v4.new_markdown_cell("## Rare\n\nHere lives a wombat, and a quantisation.\n\n" + PARAGRAPH, id="rare")
    more = [v4.new_markdown_cell(f"## More\n\n{PARAGRAPH}", id=f"more-{i}") for i in range(3)]
    return build(checkout, executed(checkout, "01_a", *cells), executed(checkout, "02_b", *more, words))


@pytest.fixture
def open_page(browser, folder) -> Iterator[Callable]:
    """Opens a page of the site; in the end there must be no network request and no error."""
    contexts, asked, errors = [], [], []

    def opened(name: str, width: int = 1280, **settings):
        context = browser.new_context(viewport={"width": width, "height": 800}, reduced_motion="reduce", **settings)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        context.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        page = context.new_page()
        page.goto((folder / name).as_uri())
        if name == "01_a.html":
            page.locator("figure.plot:not(.drawn)").first.wait_for(state="detached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def eventually(page, expression: str, value) -> None:
    """Poll until `expression` is `value`: the page's policy forbids playwright to wait inside the page."""
    for _ in range(50):
        found = page.evaluate(expression)
        if found == value:
            return
        page.wait_for_timeout(100)
    assert found == value


CURRENT = "[...document.querySelectorAll('.toc [aria-current]')].map(link => link.textContent)"
FIGURE = "document.querySelector('#cell-slider figure.plot')"


# ---- Contents


def test_the_contents_stay_and_follow_the_reading(open_page):
    page = open_page("01_a.html")
    eventually(page, CURRENT, [])
    for name in ("Section B", "Section C", "Section A"):
        page.locator("h2", has_text=name).evaluate("heading => scrollTo(0, heading.offsetTop + 20)")
        eventually(page, CURRENT, [name])
        assert page.locator(".toc [aria-current]").evaluate("link => link.getBoundingClientRect().top") > 0
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    eventually(page, CURRENT, ["Shorter"])


def test_a_link_of_the_contents_leads_to_its_section_below_the_bar(open_page):
    page = open_page("01_a.html")
    for name in ("Section C", "Short"):
        page.locator(".toc a", has_text=re.compile(f"^{name}$")).click()
        eventually(page, CURRENT, [name])
        top = page.locator("h2", has_text=re.compile(f"^{name}#")).evaluate("h => h.getBoundingClientRect().top")
        bar = page.locator(".bar").evaluate("bar => bar.getBoundingClientRect().bottom")
        assert bar <= top < 800


def test_on_a_phone_the_contents_open_and_close_by_keyboard_and_hide_nothing_meanwhile(open_page):
    page = open_page("01_a.html", width=390)
    assert not page.locator(".sidebar").is_visible()
    button = page.locator(".contents-button")
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator(".toc").is_visible() and button.get_attribute("aria-expanded") == "true"
    page.keyboard.press("Escape")
    assert not page.locator(".toc").is_visible() and button.get_attribute("aria-expanded") == "false"
    button.click()
    page.locator(".toc a", has_text="Section B").click()
    assert not page.locator(".toc").is_visible()
    eventually(page, CURRENT, ["Section B"])


@pytest.mark.parametrize("name", ["index.html", "01_a.html", "02_b.html"])
@pytest.mark.parametrize("width", [390, 1024, 1280, 1600])
def test_no_page_is_wider_than_its_window(open_page, name, width):
    page = open_page(name, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_pages_lead_on_and_back_and_the_first_tab_skips_to_the_text(open_page):
    page = open_page("01_a.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the text"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.contains(document.querySelector('main'))")
    page.click("[rel=next]")
    assert page.url.endswith("02_b.html")
    page.click("[rel=prev]")
    assert page.url.endswith("01_a.html")


# ---- Search


def test_a_word_of_one_page_is_found_from_the_other_and_the_link_leads_to_it(open_page):
    page = open_page("01_a.html")
    page.keyboard.press("/")
    page.keyboard.type("wombat")
    page.locator("dialog.search li").first.wait_for()
    assert page.locator("dialog.search li").count() == 1
    assert page.text_content("dialog.search output") == "1 place on 1 page"
    assert page.text_content("dialog.search li mark") == "wombat"
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"02_b\.html\?find=wombat#Rare$"))
    eventually(page, "CSS.highlights.get('found')?.size", 1)
    marked = "[...CSS.highlights.get('found')][0]"
    assert page.evaluate(f"{marked}.toString()") == "wombat"
    top = page.evaluate(f"{marked}.getBoundingClientRect().top")
    assert 0 < top < 800


@pytest.mark.parametrize("words", ["QUANTIZATION", "quantis wombat", "  wombat   quantisation "])
def test_words_in_any_order_spelling_and_case_are_found(open_page, words):
    page = open_page("index.html")
    page.click(".search-button")
    page.keyboard.type(words)
    page.locator("dialog.search li").first.wait_for()
    assert page.locator("dialog.search li a").get_attribute("href").partition("?")[0] == "02_b.html"


def test_what_nobody_wrote_is_said_to_be_nowhere_and_markup_in_a_query_is_text(open_page):
    page = open_page("index.html")
    page.keyboard.press("Control+k")
    for words in ("wombat aardvark", "<img src=x>", "(.*", "zzz"):
        page.fill("dialog.search input", words)
        eventually(
            page, "document.querySelector('.search output').textContent", f"Nothing on any page holds “{words}”."
        )
        assert page.locator("dialog.search li, dialog.search img").count() == 0
    page.keyboard.press("Escape")
    assert not page.locator("dialog.search").is_visible()


def test_a_word_in_a_folded_table_is_unfolded_and_arrows_walk_through_the_places(open_page):
    page = open_page("02_b.html")
    page.keyboard.press("/")
    page.keyboard.type("aardvark")
    page.locator("dialog.search li").first.wait_for()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.matches('dialog.search li a')")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.matches('dialog.search input')")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"01_a\.html\?find=aardvark#cell-folded$"))
    page.locator("td", has_text="aardvark").wait_for(state="visible")


# ---- Colours


def rgb(name: str, dark: bool) -> str:
    digits = COLOURS[name][dark].removeprefix("#")
    return "rgb({}, {}, {})".format(*(int(digits[i : i + 2], 16) for i in (0, 2, 4)))


GROUND = "getComputedStyle(document.body).backgroundColor"
COMMENT = "getComputedStyle(document.querySelector('.highlight .c1')).color"
TICK = "getComputedStyle(document.querySelector('#cell-figure .xtick text')).fill"


def choose(page, choice: str) -> None:
    page.locator(f".theme input[value={choice}]").check(force=True)


@pytest.mark.parametrize("system", ["light", "dark"])
def test_a_chosen_scheme_recolours_text_code_and_figures_and_is_remembered(open_page, system):
    page = open_page("01_a.html", color_scheme=system)
    seen = {}
    for choice, dark in (("dark", True), ("light", False), ("auto", system == "dark"), ("dark", True)):
        choose(page, choice)
        eventually(page, TICK, rgb("text", dark))
        assert page.evaluate(GROUND) == rgb("page", dark)
        seen[dark] = page.evaluate(COMMENT)
    if system == "light":
        assert seen[True] != seen[False]
    page.goto(page.url.replace("01_a", "02_b"))
    assert page.evaluate(GROUND) == rgb("page", True)
    assert page.locator(".theme input:checked").get_attribute("value") == "dark"


def test_left_alone_a_page_follows_the_system_while_it_is_open(open_page):
    page = open_page("01_a.html", color_scheme="light")
    page.emulate_media(color_scheme="dark")
    eventually(page, TICK, rgb("text", True))
    assert page.evaluate(GROUND) == rgb("page", True)


def test_a_new_scheme_keeps_what_the_reader_set_in_a_figure(open_page):
    page = open_page("01_a.html")
    move_slider(page)
    choose(page, "dark")
    eventually(page, f"{FIGURE}.querySelector('.plot-area').layout.font.color", rgb_or_hex(page, "text"))
    assert page.evaluate(SHOWN) == [False, True]
    assert page.input_value("#cell-slider input[type=range]") == "1"


def rgb_or_hex(page, name: str) -> str:
    return page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index.html", "01_a.html"])
def test_all_text_can_be_read(open_page, name, scheme):
    """For every element with its own text: the computed contrast with its background."""
    page = open_page(name, color_scheme=scheme)
    page.keyboard.press("/")
    page.keyboard.type("wombat")
    page.locator("dialog.search li").first.wait_for()
    pairs = page.evaluate("""() => {
        const two = (number) => Number(number).toString(16).padStart(2, '0');
        const hex = (text) => '#' + text.match(/\\d+/g).slice(0, 3).map(two).join('');
        const clear = (text) => /, 0\\)$|transparent/.test(text);
        const ground = (element) => {
            for (; element; element = element.parentElement) {
                const colour = getComputedStyle(element).backgroundColor;
                if (!clear(colour)) return hex(colour);
            }
        };
        return [...document.querySelectorAll('body *')]
            .filter(e => !e.closest('svg, script') && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
            .map(e => [e.tagName + '.' + e.className, hex(getComputedStyle(e).color), ground(e)]);
    }""")
    assert len(pairs) > 20
    assert [pair for pair in pairs if contrast(*pair[1:]) < CONTRAST] == []


# ---- Code


def test_the_copy_button_copies_the_code_as_it_was_written(open_page):
    page = open_page("01_a.html")
    button = page.locator("#cell-code .copy")
    button.focus()
    page.keyboard.press("Enter")
    page.locator("#cell-code .copy", has_text="Copied").wait_for()
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<textarea id=paste></textarea>')")
    page.focus("#paste")
    page.keyboard.press("Control+v")
    assert page.input_value("#paste") == CODE


# ---- Figures

SHOWN = f"{FIGURE}.querySelector('.plot-area').data.map(trace => trace.visible)"
DATA = f"JSON.stringify({FIGURE}.querySelector('.plot-area').data.map(trace => [trace.x, trace.y, trace.visible]))"


def move_slider(page) -> None:
    page.locator("#cell-slider input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    eventually(page, SHOWN, [False, True])


def test_a_figure_fills_the_window_with_the_same_data_and_state_and_goes_back(open_page):
    page = open_page("01_a.html")
    move_slider(page)
    before = page.evaluate(DATA)
    area = page.locator("#cell-slider .plot-area")
    small = area.locator(".main-svg").first.bounding_box()
    page.locator("#cell-slider .enlarge").focus()
    page.keyboard.press("Enter")
    enlarged = page.locator("dialog.enlarged .plot-area")
    enlarged.wait_for()
    inside = DATA.replace(FIGURE, "document.querySelector('dialog.enlarged figure')")
    assert page.evaluate(inside) == before
    eventually(page, "document.querySelector('dialog.enlarged .main-svg').getBoundingClientRect().width > 1100", True)
    large = enlarged.locator(".main-svg").first.bounding_box()
    assert large["width"] > small["width"] and large["height"] > small["height"]
    assert large["height"] < 800, "the whole figure is in the window"
    page.keyboard.press("Escape")
    page.locator("dialog.enlarged").wait_for(state="detached")
    eventually(page, f"{FIGURE}.querySelector('.main-svg').getBoundingClientRect().width", small["width"])
    assert page.evaluate(f"{FIGURE}.querySelector('.main-svg').getBoundingClientRect().height") == small["height"]
    assert page.evaluate(DATA) == before
    assert page.evaluate("document.activeElement.matches('#cell-slider .enlarge')")


# ---- Paper

FOLDED_COUNT = "document.querySelectorAll('details:not([open])').length"


def test_paper_is_light_shows_what_is_folded_and_splits_no_figure(open_page):
    page = open_page("01_a.html", color_scheme="dark")
    folded = page.evaluate(FOLDED_COUNT)
    page.evaluate(f"""() => addEventListener('beforeprint', () => {{
        window.paper = {{
            tick: {TICK},
            folded: {FOLDED_COUNT},
            widths: [...document.querySelectorAll('.plot-area')].map(
                area => area.querySelector('.main-svg').getBoundingClientRect().width
                    * Number(area.style.getPropertyValue('--shrink'))),
        }};
    }})""")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    paper = page.evaluate("window.paper")
    assert paper["tick"] == rgb("text", False)
    assert paper["folded"] == 0
    assert min(paper["widths"]) > 600 and max(paper["widths"]) <= 680
    eventually(page, TICK, rgb("text", True))
    assert page.evaluate(FOLDED_COUNT) == folded > 0
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('figure.plot')).breakInside") == "avoid"
    for hidden in (".bar", ".sidebar", ".copy", ".enlarge", ".neighbours"):
        assert not page.locator(hidden).first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).color") == rgb("text", False)


def test_without_a_script_all_text_is_there_and_nothing_that_needs_one(open_page):
    page = open_page("02_b.html", width=390, java_script_enabled=False)
    assert page.locator(".toc").is_visible()
    assert page.locator("main").is_visible()
    assert not page.locator(".tools").is_visible()
    assert not page.locator(".contents-button").is_visible()
