"""The first page: it says about every notebook what the notebook says itself, and its routes lead to existing pages."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from fusionlab.checkout import repository_root
from fusionlab.notebooks import landing
from fusionlab.notebooks.landing import Lesson, lesson, minutes, time_label
from fusionlab.observe import evidence
from tests.lab.notebooks.support import Elements, build, executed, figure_cell

v4 = nbformat.v4
ROOT = repository_root(Path(__file__))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST_CELL = """# A page

About it.

**What you will be able to do**

- read a `graph`,
  node by node;
- say *why*.

**You need** [One](01_a.ipynb), and Python.

**Time**: about 45 minutes; the cells run in under a minute.
"""


def test_a_first_cell_is_read():
    assert lesson(FIRST_CELL) == Lesson(("read a graph, node by node", "say why"), "One, and Python.", (45, 45))
    assert lesson("# A page\n\nAbout it.") == Lesson()


@pytest.mark.parametrize(
    ("words", "span"),
    [
        ("ten minutes to read", (10, 10)),
        ("about half an hour", (30, 30)),
        ("half an hour", (30, 30)),
        ("three quarters of an hour; the cells take a minute", (45, 45)),
        ("about 45 minutes to read", (45, 45)),
        ("an hour or two if you write everything, fifteen minutes if you read", (60, 120)),
        ("20 to 30 minutes", (20, 30)),
        ("two sittings of about 40 minutes, with a break", (80, 80)),
        ("a quarter of an hour", (15, 15)),
        ("two sittings of a while", None),
        ("two hours", (120, 120)),
        ("a while", None),
        ("", None),
    ],
)
def test_a_time_in_words_is_read(words, span):
    assert minutes(words) == span


@pytest.mark.parametrize(
    ("span", "label"),
    [((10, 10), "10 min"), ((20, 30), "20–30 min"), ((60, 60), "1 h"), ((60, 120), "1–2 h"), ((115, 115), "2 h"),
     ((85, 85), "1.5 h"), ((355, 415), "6–7 h"), (None, "")],
)  # fmt: skip
def test_a_time_has_a_short_label(span, label):
    assert time_label(span) == label


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_says_what_it_teaches_what_it_needs_and_how_long_it_takes(path):
    found = lesson(nbformat.read(path, as_version=4).cells[0].source)
    assert len(found.outcomes) >= 3
    assert found.needs
    assert found.minutes is not None


def test_the_parts_hold_every_notebook_once_and_the_routes_exist():
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert [number for part in landing.PARTS.values() for number in part] == numbers
    assert all(set(route.numbers) <= set(numbers) for route in landing.ROUTES)


def test_the_figure_is_a_cell_of_its_notebook():
    name, cell = landing.FIGURE
    (source,) = [c.source for c in nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4).cells if c.id == cell]
    assert "show(timeline(" in source


def test_the_numbers_of_the_claim_are_those_of_the_reference(checkout):
    claim = evidence.reference("pr40710").values
    assert (claim["before_kernels_count"], claim["before_us"]) == (2, 9.0)
    assert (claim["after_kernels_count"], claim["after_us"]) == (1, 4.5)
    index = (build(checkout, executed(checkout, "01_a")) / "index.html").read_text()
    assert "As two GPU kernels that took nine microseconds; as one, four and a half (<a" in " ".join(index.split())
    assert 'href="https://github.com/vllm-project/vllm/pull/40710"' in index


def test_the_first_page_of_the_whole_site(tmp_path):
    from fusionlab.notebooks import site

    index = site.build_site(NOTEBOOKS, tmp_path / "site")
    html = index.read_text()
    assert re.findall(r'<span class="number" aria-hidden="true">(\d\d)</span>', html) == [p.name[:2] for p in NOTEBOOKS]
    for path in NOTEBOOKS:
        found = lesson(nbformat.read(path, as_version=4).cells[0].source)
        entry = re.search(
            rf'<h4>(?:(?!<h4>).)*href="{path.stem}\.html".*?</li>\n(?=<li class="entry|</ol>)', html, re.S
        )
        assert f'<small class="minutes">{time_label(found.minutes)}</small>' in entry[0]
        assert entry[0].count("<li>") == len(found.outcomes)
    routes = re.findall(r'<article class="route">(.*?)</article>', html, re.S)
    walked = [re.findall(r'<a href="(\d\d)_', route) for route in routes]
    assert walked == [list(route.numbers) for route in landing.ROUTES]
    assert 'href="teaching.html"' in routes[-1], "who teaches has the kit at hand, without the repository"
    assert 'href="progress.html"' in html and "fusionlib exercises status" in html
    kit = (index.parent / "teaching.html").read_text()
    assert "make wheelhouse" in kit and '<a href="#What-goes-wrong">' in kit and 'id="What-goes-wrong"' in kit
    files = {about["href"].partition("#")[0] for about in Elements(html).named("a")}
    local = {name for name in files if name and "://" not in name}
    assert all((index.parent / name).is_file() for name in local)


def test_the_figure_of_the_first_notebook_is_on_the_first_page_and_only_with_it(checkout):
    cell = figure_cell("What is seen")
    cell["id"] = landing.FIGURE[1]
    folder = build(checkout, executed(checkout, landing.FIGURE[0], cell), executed(checkout, "01_a"))
    html = (folder / "index.html").read_text()
    assert html.count("<strong>What is seen</strong>") == 1
    assert "assets/plotly.min.js" in html
    without = (build(checkout, executed(checkout, "01_a", cell)) / "index.html").read_text()
    assert "<figure" not in without and "plotly" not in without


def test_without_all_pages_no_route_is_offered(checkout):
    html = (build(checkout, executed(checkout, "07_a")) / "index.html").read_text()
    assert 'class="route"' not in html and "#routes" not in html


def test_provenance_is_there_and_folded(checkout):
    html = (build(checkout, executed(checkout, "01_a")) / "index.html").read_text()
    assert html.index("<details>") < html.index("a &lt;CPU&gt;") < html.index("</details>")
