from __future__ import annotations

import struct

import nbformat
import plotly.graph_objects as go
import pytest

from fusionlab.notebooks import png as picture
from fusionlab.notebooks import site
from fusionlab.show import Drawing
from fusionlab.show.figure import bundles
from fusionlib.commands.errors import UsageError

v4 = nbformat.v4


@pytest.fixture
def page(checkout, has_browser):
    drawing = Drawing(go.Figure(go.Bar(x=["a"], y=[1])), "A bar.", "one bar", "It is one.")
    outputs = [v4.new_output("display_data", data, metadata=about) for data, about in bundles(drawing)]
    path = checkout.write("one", [v4.new_code_cell("show()", id="the-bar", outputs=outputs)])
    site.build_site([path], checkout.root / "site")
    return checkout.root / "site" / "one.html"


def test_a_figure_becomes_a_light_and_a_dark_picture_of_its_width(page, tmp_path):
    taken = picture.take_pictures(page, "the-bar", tmp_path / "figures" / "bar", width=800)
    assert [path.name for path in taken] == ["bar-light.png", "bar-dark.png"]
    light, dark = (path.read_bytes() for path in taken)
    assert light != dark
    for png in (light, dark):
        assert png.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", png[16:24])
        assert 1200 <= width <= 1600 and abs(height - 2 * 420) <= 2  # twice the CSS pixels; the page has margins


def test_what_is_not_there_is_named(page, tmp_path):
    with pytest.raises(UsageError, match="no figure in a cell with the id 'other'"):
        picture.take_pictures(page, "other", tmp_path / "x")
    with pytest.raises(UsageError, match=r"two\.html is not in the site"):
        picture.take_pictures(page.with_name("two.html"), "the-bar", tmp_path / "x")


def test_without_a_browser_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(picture.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="install Chromium"), picture.browser():
        pass
