from __future__ import annotations

import platform
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest

from fusionlab.notebooks.audit import audit, private_texts
from fusionlab.show import Drawing
from fusionlab.show.figure import PLOTLY_MIME, bundles

v4 = nbformat.v4


def problems(checkout, *outputs) -> list[str]:
    path = checkout.write("one", [v4.new_code_cell("x", id="the-cell", outputs=list(outputs))])
    return audit(path, root=checkout.root)


def drawn() -> list:
    messages = bundles(Drawing(go.Figure(), "A caption.", "An alt text.", "A summary."))
    return [v4.new_output("display_data", data, metadata=about) for data, about in messages]


def test_figures_text_and_prints_are_fine(checkout):
    assert problems(checkout, *drawn(), v4.new_output("stream", name="stdout", text="36 fused, 0 refused")) == []


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda figure: figure.metadata.fusionlib.pop("alt"), "a figure without alt;"),
        (lambda figure: figure.metadata.clear(), "a figure without caption, alt, summary;"),
        (lambda figure: figure.data.pop("text/plain"), "a figure without text/plain;"),
        (lambda figure: figure.data.pop("image/svg+xml"), "a figure without image/svg+xml;"),
    ],
)
def test_a_figure_without_its_words_is_named(checkout, break_it, named):
    figure = drawn()[0]
    assert PLOTLY_MIME in figure.data
    break_it(figure)
    (problem,) = problems(checkout, figure)
    assert problem.startswith(f"one: cell the-cell: {named}")


def test_an_output_that_nobody_can_show_is_named(checkout):
    (problem,) = problems(checkout, v4.new_output("display_data", {"application/x-secret": "1"}))
    assert "nothing can show its output of application/x-secret" in problem


def test_messages_on_stderr_are_named(checkout):
    (problem,) = problems(checkout, v4.new_output("stream", name="stderr", text="UserWarning: old"))
    assert "wrote to stderr: 'UserWarning: old'" in problem


def test_a_path_of_this_machine_is_named(checkout):
    leaks = [f'File "{checkout.root}/fusionlib/op.py"', f"{Path.home()}/.cache/x"]
    found = problems(checkout, *[v4.new_output("stream", name="stdout", text=leak) for leak in leaks])
    assert any("the checkout's folder" in problem for problem in found)
    assert any("the home folder" in problem for problem in found)


def test_a_name_too_short_to_be_told_from_a_word_is_not_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "node", lambda: "a")
    assert "a" not in private_texts(tmp_path)


def test_a_folder_in_a_name_of_the_package_is_nobodys_home(checkout, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/someone"))
    assert problems(checkout, v4.new_output("stream", name="stdout", text="fusionlib/match/someone.py:12")) == []
    assert problems(checkout, v4.new_output("stream", name="stdout", text="in /someone/.cache"))
