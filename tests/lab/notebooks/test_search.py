"""What the site's search can find: the words that a reader sees, each under the preceding anchor."""

from __future__ import annotations

import json

import nbformat

from fusionlab.notebooks.search import SCRIPT, VARIABLE, Passage, index_script, passages
from tests.lab.notebooks.support import HOSTILE, build, executed, figure_cell

v4 = nbformat.v4


def index(script: str) -> list[dict]:
    assert script.startswith(f"window.{VARIABLE} = ") and script.endswith(";\n")
    return json.loads(script.removeprefix(f"window.{VARIABLE} = ").removesuffix(";\n"))


def test_a_page_is_cut_at_headings_and_cells():
    html = (
        "<nav>menu</nav><main><h1 id='t'>Title</h1><section id='c1'><p>lead</p>"
        "<h2 id='s'>Sec<code>tion</code><a class='anchor-link' href='#s'>#</a></h2><p>A<br>b<em>c</em></p></section>"
        "<section id='c2'><pre>x<span>.</span>y</pre></section></main><footer>foot</footer>"
    )
    assert passages(html) == [
        Passage("t", "Title", "Title"),
        Passage("c1", "Title", "lead"),
        Passage("s", "Section", "Section A bc"),
        Passage("c2", "Section", "x.y"),
    ]


def test_what_is_not_seen_is_not_found_and_what_is_said_of_a_picture_is():
    html = (
        "<main><script>secret</script><style>p</style><button>Copy</button>"
        "<div role='img' aria-label='two bars'></div><img alt='a dot'></main>"
    )
    assert [passage.text for passage in passages(html)] == ["two bars a dot"]


def test_the_words_of_a_figure_are_there_once():
    html = (
        "<main><figure><div role='region' aria-label='Sizes'><div role='img' aria-label='two bars'></div></div>"
        "<noscript><img alt='two bars'></noscript><figcaption>Sizes</figcaption></figure></main>"
    )
    assert [passage.text for passage in passages(html)] == ["two bars Sizes"]


def test_an_output_that_leaves_elements_open_hides_nothing_behind_it():
    html = "<main><div><table><tr><td>a<td>b</table></div><p>after</main><footer>foot</footer>"
    assert [passage.text for passage in passages(html)] == ["a b after"]


def test_the_site_has_the_text_code_outputs_and_figures_of_its_pages(checkout):
    shown = v4.new_output("stream", text="printed <words>")
    cells = [figure_cell("A caption"), v4.new_code_cell("lonely_name = 1", id="code", outputs=[shown])]
    folder = build(checkout, executed(checkout, "01_a", *cells), executed(checkout, "02_b"))
    first, second, *kit = index((folder / "assets" / SCRIPT).read_text())
    assert [entry["page"] for entry in kit] == ["teaching.html"]
    assert (first["page"], first["title"], second["page"]) == ("01_a.html", "Title & 1 < 2", "02_b.html")
    texts = {anchor: text for anchor, _, text in first["passages"]}
    assert texts["cell-code"] == "lonely_name = 1 printed <words>"
    assert "A caption The second is twice the first." in texts["cell-figure"]
    assert "two bars" in texts["cell-figure"]
    assert "paper_bgcolor" not in json.dumps(first), "a figure's JSON is no text"


def test_hostile_text_is_a_string_in_the_index():
    page = f'<main><p>{HOSTILE.replace("<", "&lt;")} \u2028 \\ "</p></main>'
    assert index(index_script({"a.html": (HOSTILE, page)}))[0]["passages"][0][2].startswith(HOSTILE)
