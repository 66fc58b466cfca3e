"""What a notebook shows in readers without plotly and widgets: nbconvert, as used by GitHub and nbviewer."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import nbformat
import plotly.graph_objects as go
import pytest

nbconvert = pytest.importorskip("nbconvert", reason="the notebooks extra is not installed")
nbclient = pytest.importorskip("nbclient", reason="the notebooks extra is not installed")

v4 = nbformat.v4
LIVE = """\
import plotly.graph_objects as go
from fusionlab.show import Drawing, Span, explore

def draw(height):
    fig = go.Figure(go.Bar(x=["norm"], y=[height], marker={"color": "#123456"}))
    return Drawing(fig, "A bar.", "one bar", f"It is {height} high.")

explore(draw, interactive=INTERACTIVE, height=Span(1, 9, value=4))
"""


class Reader(HTMLParser):
    """The words of a page, and the sources of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.images, self._skip = "", [], False

    def handle_starttag(self, tag, attrs):
        self._skip = tag in ("style", "script")
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_endtag(self, tag):
        self._skip = False

    def handle_data(self, data):
        self.words += "" if self._skip else data


@pytest.fixture(scope="module", params=[True, False], ids=["live", "static"])
def page(request) -> Reader:
    cell = v4.new_code_cell(LIVE.replace("INTERACTIVE", str(request.param)), id="figure")
    node = nbclient.NotebookClient(v4.new_notebook(cells=[cell]), timeout=120).execute()
    node.metadata.pop("widgets", None)  # JupyterLab keeps none
    node.cells[0].source = ""
    reader = Reader()
    reader.feed(nbconvert.HTMLExporter().from_notebook_node(node)[0])
    return reader


def test_the_figure_is_there_as_a_picture(page):
    (source,) = page.images
    kind, _, picture = source.partition(",")
    assert kind == "data:image/svg+xml;base64"
    root = ElementTree.fromstring(base64.b64decode(picture))
    assert [node.text for node in root.iter() if node.tag.endswith("desc")] == ["one bar"]
    bars = [node for node in root.iter() if node.get("fill") == "#123456"]
    assert len(bars) == 1 and float(bars[0].get("height")) > 100


def test_its_words_are_there_once_and_no_widget_s(page):
    assert page.words.count("A bar.") == page.words.count("It is 4 high.") == 1
    assert len(re.findall("live controls", page.words)) == 1
    assert "VBox" not in page.words and "displaying widget" not in page.words


def test_a_figure_without_a_picture_would_be_missed():
    """The check above detects that nbconvert shows nothing for plotly's own type alone."""
    data = {"application/vnd.plotly.v1+json": go.Figure().to_plotly_json(), "text/plain": "one bar"}
    cell = v4.new_code_cell("", outputs=[v4.new_output("display_data", data)])
    reader = Reader()
    reader.feed(nbconvert.HTMLExporter().from_notebook_node(v4.new_notebook(cells=[cell]))[0])
    assert reader.images == []
