"""Executed notebooks made for single tests, and the site built from them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import nbformat
import plotly.graph_objects as go

from fusionlab.notebooks import site
from fusionlab.show import Drawing, Table
from fusionlab.show.figure import bundles

v4 = nbformat.v4
HOSTILE = "</script><script>window.pwned = true</script><img src=x onerror='window.pwned = true'>"


def figure_cell(caption: str = "Sizes", name: str = "bytes"):
    fig = go.Figure([go.Bar(x=["a", "b"], y=[1, 2], name=name)])
    table = Table(f"rows of {name}", ("name", "bytes"), [(name, "1")])
    drawing = Drawing(fig, caption, "two bars", "The second is twice the first.", table)
    outputs = [v4.new_output("display_data", content, metadata=about) for content, about in bundles(drawing)]
    return v4.new_code_cell("show()", id="figure", outputs=outputs)


def executed(checkout, name: str, *cells, title: str = "# Title & 1 < 2\n\nAbout `it`.", **record) -> Path:
    path = checkout.write(name, [v4.new_markdown_cell(title, id="about"), *cells])
    node = nbformat.read(path, as_version=4)
    defaults = {"status": "executed", "seconds": 1.25, "provenance": {"torch": "2.13.0", "device": "a <CPU>"}}
    node.metadata["fusionlib"] = defaults | record
    nbformat.write(node, path)
    return path


def build(checkout, *paths: Path) -> Path:
    return site.build_site(paths, checkout.root / "build" / "site").parent


class Elements(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.all if name == tag]
