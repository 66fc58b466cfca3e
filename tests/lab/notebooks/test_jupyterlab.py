"""Notebooks in JupyterLab when they come from elsewhere, untrusted, and when they are reopened without a kernel.

`test_controls.py` tests their live controls.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest

from fusionlab.show import Drawing, Table
from fusionlab.show.figure import PLOTLY_MIME, bundles
from tests.lab.notebooks.jupyterlab import open_notebook, run_all, wait_for_the_end

v4 = nbformat.v4
HOSTILE = "<img src=x onerror='window.pwned = true'><script>window.pwned = true</script>"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
LIVE = """\
import plotly.graph_objects as go
from fusionlab.show import Drawing, Span, explore

def draw(height):
    return Drawing(go.Figure(go.Bar(x=["norm"], y=[height])), "A bar.", "one bar", f"It is {height} high.")

explore(draw, interactive=interactive, height=Span(1, 9, value=4))
"""


def write(lab_folder: Path, name: str, *cells) -> None:
    nbformat.write(v4.new_notebook(cells=list(cells), metadata={"kernelspec": KERNEL}), lab_folder / name)


def untrusted_cell():
    """Outputs in a file that this JupyterLab has not signed: a figure, its words, its table, a script."""
    fig = go.Figure(go.Bar(x=["norm", HOSTILE], y=[4, 3]))
    drawing = Drawing(
        fig, f"Bytes {HOSTILE}", "two bars", "Fused moves half.", Table("bytes", ("k", "B"), [("norm", "4")])
    )
    outputs = [v4.new_output("display_data", data, metadata=about) for data, about in bundles(drawing)]
    outputs.append(v4.new_output("display_data", {"text/html": HOSTILE + "<b id='kept'>kept</b>"}))
    return v4.new_code_cell("show(drawing)", id="figure", outputs=outputs, execution_count=1)


def test_untrusted_the_figure_and_its_words_are_there_and_no_script_runs(lab, lab_folder, lab_page):
    write(lab_folder, "untrusted.ipynb", untrusted_cell())
    lab_page.goto(f"{lab}lab/workspaces/untrusted/tree/untrusted.ipynb?token=t")
    lab_page.wait_for_selector(".js-plotly-plot .bars path", state="attached")
    for words in ("Fused moves half.", "kept"):  # JupyterLab draws output by output
        lab_page.locator(".jp-OutputArea-output", has_text=words).first.wait_for()
    lab_page.locator(".jp-RenderedHTMLCommon summary").click()
    assert lab_page.locator(".jp-RenderedHTMLCommon td").all_inner_texts() == ["norm", "4"]
    assert lab_page.evaluate("window.pwned") is None


def said(page) -> str:
    return "\n".join(page.locator(".jp-OutputArea").all_inner_texts())


def test_saved_and_opened_again_without_a_kernel_the_last_figure_and_its_words_are_there(lab, lab_folder, lab_page):
    write(lab_folder, "saved.ipynb", v4.new_code_cell(f"interactive = True\n{LIVE}", id="live"))
    open_notebook(lab_page, lab, "saved.ipynb")
    run_all(lab_page)
    wait_for_the_end(lab_page)
    lab_page.locator(".noUi-handle").press("ArrowRight")
    lab_page.locator(".jp-RenderedMarkdown", has_text="It is 5 high.").wait_for()
    assert "live controls" not in said(lab_page)  # they are there, so there is no note about them
    lab_page.wait_for_function("document.querySelector('.js-plotly-plot')?.data[0].y[0] === 5")
    lab_page.keyboard.press("Control+s")
    lab_page.wait_for_selector(".jp-mod-dirty", state="detached")
    lab_page.goto("about:blank")
    shut_down_kernels(lab)

    (outputs,) = (cell.outputs for cell in nbformat.read(lab_folder / "saved.ipynb", as_version=4).cells)
    (figure,) = (output.data[PLOTLY_MIME] for output in outputs if PLOTLY_MIME in output.data)
    assert figure["data"][0]["y"] == [5]
    lab_page.goto(f"{lab}lab/workspaces/again/tree/saved.ipynb?token=t")
    lab_page.locator(".jp-OutputArea-output", has_text="It is 5 high.").wait_for()
    # The error message comes late, after JupyterLab has asked its new kernel for the widgets.
    lab_page.locator(".jp-OutputArea-output", has_text="Error displaying widget").wait_for(state="attached")
    assert said(lab_page).split("\n\n") == [
        "This figure has live controls while its kernel runs: height.",
        "A bar. It is 5 high.",
    ]
    assert lab_page.locator(".jp-RenderedPlotly").is_visible()


def shut_down_kernels(address: str) -> None:
    with urllib.request.urlopen(f"{address}api/sessions?token=t") as answer:
        sessions = json.load(answer)
    for session in sessions:
        request = urllib.request.Request(f"{address}api/sessions/{session['id']}?token=t", method="DELETE")
        urllib.request.urlopen(request).close()


@pytest.mark.parametrize("interactive", [True, False])
def test_the_words_say_which_controls_there_are(lab, lab_folder, lab_page, interactive):
    name = f"interactive_{interactive}.ipynb"
    write(lab_folder, name, v4.new_code_cell(f"interactive = {interactive}\n{LIVE}", id="live"))
    open_notebook(lab_page, lab, name)
    run_all(lab_page)
    wait_for_the_end(lab_page)
    lab_page.locator(".jp-RenderedMarkdown", has_text="It is 4 high.").wait_for()
    assert lab_page.locator(".widget-slider").count() == interactive
    assert ("Run in JupyterLab with interactive = True, this figure has live" in said(lab_page)) is not interactive
