"""Anchors and tables of contents of the site's pages."""

from __future__ import annotations

import re

import nbformat

from fusionlab.notebooks.contents import MARKER, with_contents
from tests.lab.notebooks.support import Elements, build, executed

v4 = nbformat.v4


def heading(level: int, inner: str, anchor: str = "") -> str:
    own = f' id="{anchor}"' if anchor else ""
    return f'<h{level}{own}>{inner}<a class="anchor-link" href="#{anchor}">#</a></h{level}>'


def test_headings_of_the_same_words_have_anchors_of_their_own_and_the_contents_lead_to_each():
    html = f'<body id="main">{MARKER}' + heading(2, "Summary", "Summary") + heading(3, "Summary", "Summary") + "</body>"
    made = with_contents(html)
    elements = Elements(made)
    assert [about["id"] for name, about in elements.all if name in ("h2", "h3")] == ["Summary", "Summary-2"]
    links = [about["href"] for about in elements.named("a")]
    assert links == ["#Summary", "#Summary-2"] * 2, "the contents, then the headings' own"
    assert re.findall(r'<li class="level-(\d)">', made) == ["2", "3"]


def test_a_heading_never_takes_an_anchor_of_the_frame():
    made = with_contents(f'<div id="main"></div>{MARKER}' + heading(2, "main", "main"))
    assert '<h2 id="main-2">' in made


def test_a_heading_that_nbconvert_could_not_read_gets_an_anchor_and_its_words_are_whole():
    made = with_contents(MARKER + "<h2>A <code>b &lt; c</code><br>d</h2>")
    assert '<h2 id="A-b-c-d">A <code>b &lt; c</code><br>d<a ' in made
    assert '<a href="#A-b-c-d">A b &lt; c d</a>' in made
    assert 'aria-label="Link to “A b &lt; c d”"' in made


def test_a_page_without_headings_or_marker_stays_as_it_is():
    assert with_contents(f"<main>{MARKER}<p>x</p></main>") == "<main><p>x</p></main>"
    assert with_contents("<h2>x</h2>") == "<h2>x</h2>"


def test_on_the_site_every_section_is_in_the_contents_of_its_page_only(checkout):
    text = "# One\n\n## First & last\n\ntext\n\n### In `code`\n\ntext\n\n## First & last\n\ntext"
    folder = build(checkout, executed(checkout, "01_a", title=text), executed(checkout, "02_b"))
    first, second = ((folder / f"{name}.html").read_text() for name in ("01_a", "02_b"))
    toc = re.search(r'<ol class="toc">(.*?)</ol>', first, re.DOTALL)[1]
    assert re.findall(r">([^<]+)</a>", toc) == ["First &amp; last", "In code", "First &amp; last"]
    targets = [about["href"].removeprefix("#") for about in Elements(toc).named("a")]
    ids = [about["id"] for _, about in Elements(first).all if "id" in about]
    assert len(set(targets)) == 3 and set(targets) <= set(ids)
    assert len(ids) == len(set(ids))
    assert 'class="toc"' not in second and MARKER not in second
