"""Notebooks in JupyterLab, as a person opens them: trusted and run, and untrusted, as they come from elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest

from fusionlib.notebooks.catalogue import repository_root
from fusionlib.show import Drawing, Table
from fusionlib.show.figure import bundles

TimeoutError = pytest.importorskip("playwright.sync_api", reason="the test extra is not installed").TimeoutError
v4 = nbformat.v4
ROOT = repository_root(Path(__file__))
HOSTILE = "<img src=x onerror='window.pwned = true'><script>window.pwned = true</script>"
PATIENCE = 120_000  # milliseconds; a kernel starts and imports torch on a machine that may be busy


def untrusted_notebook(path: Path) -> None:
    """Outputs as they lie in a file that this JupyterLab has not signed: a figure, its words, its table, a script."""
    fig = go.Figure(go.Bar(x=["norm", HOSTILE], y=[4, 3]))
    drawing = Drawing(
        fig, f"Bytes {HOSTILE}", "two bars", "Fused moves half.", Table("bytes", ("k", "B"), [("norm", "4")])
    )
    outputs = [v4.new_output("display_data", data, metadata=about) for data, about in bundles(drawing)]
    outputs.append(v4.new_output("display_data", {"text/html": HOSTILE + "<b id='kept'>kept</b>"}))
    cell = v4.new_code_cell("show(drawing)", id="figure", outputs=outputs, execution_count=1)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), path)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> str:
    """The address of a running JupyterLab with nobody's settings."""
    pytest.importorskip("jupyterlab", reason="the notebooks extra is not installed")
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("notebooks")
    shutil.copy(ROOT / "notebooks" / "01_one_row.ipynb", folder)
    untrusted_notebook(folder / "untrusted.ipynb")
    # Cells out of sight are not in the page unless it is told so, and the browser looks for them there.
    settings = home / "config" / "lab" / "user-settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
    command += ["--IdentityProvider.token=t", f"--ServerApp.root_dir={folder}", "--LabApp.check_for_updates_class="
                "jupyterlab.handlers.announcements.NeverCheckForUpdate"]  # fmt: skip
    log = (home / "log").open("w")
    server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield _address(home / "runtime", server, Path(log.name))
    finally:
        server.terminate()
        server.wait(30)


def _address(runtime: Path, server: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline and server.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            try:
                return json.loads(path.read_text())["url"]
            except ValueError:
                pass  # not written to its end yet
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    # A slow start may ask which kernel to take, and the one that is offered will do.
    page.add_locator_handler(page.locator(".jp-Dialog"), lambda dialog: dialog.locator(".jp-mod-accept").click())
    yield page
    page.close()


def run_all(page) -> None:
    """Run > Run All Cells, again until a cell has started: the menu answers before the notebook is ready for it."""
    started = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*1]\]")).first
    for _ in range(5):
        page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
        try:
            return started.wait_for(state="attached", timeout=PATIENCE / 10)
        except TimeoutError:
            page.keyboard.press("Escape")
    pytest.fail("Run All Cells started no cell")


def test_run_all_draws_the_figures_and_a_slider_redraws_one_in_its_place(lab, page):
    page.goto(f"{lab}lab/workspaces/trusted/tree/01_one_row.ipynb?token=t")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
    run_all(page)
    caption = page.locator(".jp-RenderedMarkdown", has_text="The cast to FP8, group 0.").first
    try:
        caption.wait_for(state="attached")
    except TimeoutError:
        pytest.fail(f"no such caption among {page.locator('.jp-OutputArea-output').all_inner_texts()}")
    slider = page.locator(".widget-slider .noUi-handle").first
    slider.wait_for(state="attached")
    slider.scroll_into_view_if_needed()
    page.wait_for_selector(".js-plotly-plot", state="attached")
    figures = page.locator(".js-plotly-plot").count()
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.locator(".jp-RenderedMarkdown", has_text="The cast to FP8, group 1.").first.wait_for(state="attached")
    assert page.locator(".jp-RenderedMarkdown", has_text="The cast to FP8, group 0.").count() == 0
    assert page.locator(".js-plotly-plot").count() >= figures
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count() == 0


def test_untrusted_the_figure_and_its_words_are_there_and_no_script_runs(lab, page):
    page.goto(f"{lab}lab/workspaces/untrusted/tree/untrusted.ipynb?token=t")
    page.wait_for_selector(".js-plotly-plot .bars path", state="attached")
    for words in ("Fused moves half.", "kept"):  # JupyterLab draws output by output
        page.locator(".jp-OutputArea-output", has_text=words).first.wait_for()
    page.locator(".jp-RenderedHTMLCommon summary").click()
    assert page.locator(".jp-RenderedHTMLCommon td").all_inner_texts() == ["norm", "4"]
    assert page.evaluate("window.pwned") is None
