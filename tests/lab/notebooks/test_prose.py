"""Prose that Markdown swallows: found where it is planted, and nowhere on our pages."""

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from fusionlab.notebooks.prose import swallowed

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    pytest.param(cell.source, id=f"{path.stem}-{cell.id}")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    for cell in nbformat.read(path, as_version=4).cells
    if cell.cell_type == "markdown"
]

#: source, what must still be read on the page, what is said about it
PLANTED = {
    "a sum that wraps": ("SiLU is `z / (1\n+ exp(−z))`. Next.", "z / (1 + exp(−z))", "begins with '+'"),
    "a dash that wraps": ("it is the first\n- and best - answer", "first - and", "begins with '-'"),
    "a number that wraps": ("The factor is\n1. No more than that.", "is 1. No", "begins with '1.'"),
    "a hash that wraps": ("the cell that is\n# 5 in order", "is # 5", "begins with '#'"),
    "a comparison that wraps": ("every value\n> 3 stays", "value > 3", "begins with '>'"),
    "a rule under a line": ("a paragraph\n---\nanother", "paragraph --- another", "makes a heading"),
    "a dash within an item": ("- the sum of\n  - x and y", "of - x", "begins with '-'"),
    "a type": ("a list <int> of them", "list <int> of", "'<int>'"),
    "a product": ("x*y and y*z make it", "x*y and y*z", "'x*y'"),
    "a dunder": ("call __init__ first", "__init__", "'__init__'"),
    "a backslash": (r"the path a\*b", r"a\*b", "whose backslash"),
    "a quote that stays open": ("the `name is open, and *this* too", None, "nothing closes"),
    "two prices": ("from $5 to $6", None, "mathematics"),
    "a bar in a cell": ("| a | b |\n|---|---|\n| `x | y` | z |", None, "has 3 cells"),
}
FINE = {
    "a list behind a blank line": "Three:\n\n- one, which\n  goes on\n- two:\n  - and part of it.\n",
    "a numbered list": "Do\n\n1. this\n2. that\n",
    "code": "Like\n\n    y = [ x\n    + z ]\n\nand `a*b`, `<int>`, ``a ` b``.\n\n```\n- x\n<int> $1 $2\n```\n",
    "a list, then code in it, then text": "- one\n\n      - code\n\nText *in* **bold** with [a_b](c__d__.ipynb).\n",
    "a table": "| a | b |\n|---|---|\n| x | `y` |\n",
    "a product with spaces, one dollar": "2 * 3 * 4 costs $5 (see x[i] * y[j]).",
    "a fold": "<details><summary>More</summary>\n\ntext\n\n</details>",
    "a quotation": "> said\n\nnot by us",
}


class Visible(HTMLParser):
    """The text of a page."""

    def __init__(self):
        super().__init__()
        self.text = ""

    def handle_data(self, data):
        self.text += data


def visible(source: str) -> str:
    page = Visible()
    page.feed(markdown2html_mistune(source))
    return re.sub(r"\s+", " ", page.text.replace("¶", ""))


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_swallowed_is_named(name):
    source, wanted, words = PLANTED[name]
    assert wanted is None or wanted not in visible(source), "this renderer shows it; plant another fault"
    problem, *_ = swallowed(source)
    assert words in problem and problem.startswith("line ")


def test_the_line_is_the_one_that_begins_it():
    assert swallowed("# Title\n\nfine\n\nSiLU is (1\n+ exp)")[0].startswith("line 6: begins with '+'")


@pytest.mark.parametrize("name", FINE)
def test_what_is_meant_is_let_through(name):
    assert swallowed(FINE[name]) == []


@pytest.mark.parametrize("source", PAGES)
def test_no_page_has_prose_that_markdown_swallows(source):
    assert swallowed(source) == []


#: "bytes an element", "72 µs a step": understood by few readers; the word is "per".
AMOUNT = re.compile(
    r"(?:[\d.}]|\b(?:bytes|more|µs|times|elements|instructions|loads|groups|rows|scale|group)) "
    r"an? (?:element|hour|second|thread|token|row|program|step|layer|warp|lane)\b(?! (?:needs|owns|holds|has|takes)\b)"
)
READ_BY_ALL = [*sorted((ROOT / "notebooks").glob("*.ipynb")), *sorted((ROOT / "fusionlab" / "exercises").rglob("*.py"))]


@pytest.mark.parametrize("path", READ_BY_ALL, ids=lambda path: path.stem)
def test_amounts_are_per_something(path):
    assert [found[0] for found in AMOUNT.finditer(path.read_text(encoding="utf-8"))] == []
