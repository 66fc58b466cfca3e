"""Links between the pages of the site: each leads to its target, or says why it cannot."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from fusionlab.checkout import repository_root
from fusionlab.notebooks import site
from fusionlab.notebooks.audit import broken_links
from fusionlab.notebooks.page_links import page_links

v4 = nbformat.v4
NOTEBOOKS = sorted((repository_root(Path(__file__)) / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize(
    ("written", "rendered"),
    [
        ('<a href="01_a.ipynb">x</a>', '<a href="01_a.html">x</a>'),
        ('<a class="c" href="./01_a.ipynb#Two-words">', '<a class="c" href="01_a.html#Two-words">'),
        ("<a href='01_a.ipynb?no'>", "<a href='01_a.ipynb?no'>"),
        ('<a href="a%20b.ipynb">', '<a href="a%20b.html">'),
        ('<a href="../data/01_a.ipynb">', '<a href="../data/01_a.ipynb">'),
        ('<a href="https://example.org/01_a.ipynb">', '<a href="https://example.org/01_a.ipynb">'),
        ("<code>&lt;a href=&quot;01_a.ipynb&quot;&gt;</code>", "<code>&lt;a href=&quot;01_a.ipynb&quot;&gt;</code>"),
        ('<abbr title="01_a.ipynb">', '<abbr title="01_a.ipynb">'),
    ],
)
def test_a_link_to_a_notebook_becomes_one_to_its_page(written, rendered):
    assert page_links(written, {"01_a", "a b"}) == rendered


def test_a_link_to_a_notebook_without_a_page_says_so_and_leads_nowhere():
    rendered = page_links('see <a href="02_b.ipynb">B</a>', {"01_a"})
    assert "href" not in rendered and ">B</a>" in rendered
    assert "02_b is not part of this site" in rendered


def build(checkout, **texts: str) -> Path:
    paths = [checkout.write(name, [v4.new_markdown_cell(text, id="t")]) for name, text in texts.items()]
    return site.build_site(paths, checkout.root / "site").parent


def test_links_in_the_text_and_in_outputs_lead_to_pages_and_headings(checkout):
    output = v4.new_output("display_data", {"text/html": '<a href="a.ipynb">A</a>'})
    first = checkout.write("a", [v4.new_markdown_cell("# A title\n\n[to b](b.ipynb#The-second-part)", id="t")])
    second = checkout.write(
        "b", [v4.new_markdown_cell("# B\n\n## The second part", id="t"), v4.new_code_cell("x", outputs=[output])]
    )
    folder = site.build_site([first, second], checkout.root / "site").parent
    assert broken_links(folder) == []
    assert 'href="b.html#The-second-part"' in (folder / "a.html").read_text()
    assert 'href="a.html">A</a>' in (folder / "b.html").read_text()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[x](b.ipynb#Nowhere)", "a.html: the link 'b.html#Nowhere' leads to an anchor that b.html does not have"),
        ("[x](#Nowhere)", "a.html: the link '#Nowhere' leads to an anchor that a.html does not have"),
        ("[x](../docs/x.md)", "a.html: the link '../docs/x.md' leads to a file that is not there"),
        ("![x](plot.png)", "a.html: the link 'plot.png' leads to a file that is not there"),
        ("# Same\n\n# Same", "a.html: 2 elements have the id 'Same'; call one of them otherwise"),
    ],
)
def test_what_leads_nowhere_is_named(checkout, text, problem):
    assert problem in broken_links(build(checkout, a=text, b="# B"))


def test_other_hosts_are_not_asked(checkout):
    assert broken_links(build(checkout, a="[x](https://example.org/nothing#here) [y](mailto:a@example.org)")) == []


def test_every_link_of_the_notebooks_is_followed_on_the_site(tmp_path):
    """All notebooks in one site, as stored: links are in the text, which no run changes."""
    folder = site.build_site(NOTEBOOKS, tmp_path / "site").parent
    assert broken_links(folder) == []
    for path in NOTEBOOKS:
        written = re.findall(r"\]\((\w+)\.ipynb[#)]", path.read_text(encoding="utf-8"))
        main = (folder / f"{path.stem}.html").read_text(encoding="utf-8").partition("<main>")[2].partition("</main>")[0]
        assert re.findall(r'href="(\w+)\.html["#]', main) == written != []
