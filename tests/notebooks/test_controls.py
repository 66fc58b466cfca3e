"""Every live control of every notebook, moved in JupyterLab: the figure follows, and comes back.

What a figure shows is read off the plot itself, in the page: its caption could follow and the figure not.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from fusionlib.notebooks.catalogue import repository_root
from tests.notebooks.jupyterlab import open_notebook, run_all, wait_for_the_end

NOTEBOOKS = repository_root(Path(__file__)) / "notebooks"

#: The data of the plots in an output area; what plotly adds by itself is left out.
PLOTS = """area => JSON.stringify([...area.querySelectorAll(".js-plotly-plot")].map(plot => plot.data),
    (key, value) => key === "uid" ? undefined : ArrayBuffer.isView(value) ? [...value] : value)"""
MOVED = f"([area, before]) => {{ const now = ({PLOTS})(area); return now !== '[]' && now !== before; }}"


def controls_of(path: Path) -> list[str]:
    """The names of the live controls in a notebook, in order: the arguments of its calls of `explore`."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and "explore(" in cell.source:
            calls = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
            for call in calls:
                if isinstance(call.func, ast.Name) and call.func.id == "explore":
                    found += [word.arg.replace("_", " ") for word in call.keywords if word.arg != "interactive"]
    return found


CONTROLS = {path.stem: names for path in sorted(NOTEBOOKS.glob("*.ipynb")) if (names := controls_of(path))}


def test_which_notebooks_have_controls():
    """All but the rewrite's, whose figure has a slider of its own that needs no kernel."""
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} - set(CONTROLS) == {"04_rewriting"}


def test_no_notebook_looks_for_files_beside_itself():
    """Each runs from any folder, whatever tool runs it: what it reads, it finds through the package."""
    for path in NOTEBOOKS.glob("*.ipynb"):
        code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        near = [line for line in "\n".join(code).splitlines() if re.search(r"""["']\.{1,2}/|getcwd|\.cwd\(""", line)]
        assert near == [], path.name


def move(control) -> None:
    """One step on by the keyboard, or back from the end."""
    if control.locator("select").count():
        chosen = control.locator("select")
        place, count = chosen.evaluate("list => [list.selectedIndex, list.options.length]")
        chosen.select_option(index=place + 1 if place + 1 < count else place - 1)
    else:
        handle = control.locator(".noUi-handle")
        low, now, high = (float(handle.get_attribute(f"aria-value{end}")) for end in ("min", "now", "max"))
        assert low < high
        handle.press("ArrowRight" if now < high else "ArrowLeft")


def put_back(control, before: str) -> None:
    """What undoes `move`, where the control said `before`."""
    if control.locator("select").count():
        control.locator("select").select_option(index=int(before))
    else:
        handle = control.locator(".noUi-handle")
        further = float(handle.get_attribute("aria-valuenow")) > float(before)
        handle.press("ArrowLeft" if further else "ArrowRight")


def position(control) -> str:
    """Where a control stands."""
    if control.locator("select").count():
        return str(control.locator("select").evaluate("list => list.selectedIndex"))
    return control.locator(".noUi-handle").get_attribute("aria-valuenow")


@pytest.mark.parametrize("name", CONTROLS)
def test_the_figure_follows_every_control(lab, lab_page, name):
    open_notebook(lab_page, lab, f"notebooks/{name}.ipynb")
    run_all(lab_page)
    wait_for_the_end(lab_page)
    areas = lab_page.locator(".jp-CodeCell .jp-OutputArea:has(> .jp-OutputArea-child .widget-box)")
    moved = []
    for area in areas.all():
        area.locator(".js-plotly-plot .main-svg").first.wait_for(state="attached")
        assert area.locator(".fusionlib-still").is_hidden()  # its words are for where the controls are not
        for control in area.locator(".widget-slider, .widget-dropdown").all():
            moved.append(control.locator(".widget-label").inner_text())
            handle, first, place = area.element_handle(), area.evaluate(PLOTS), position(control)
            control.scroll_into_view_if_needed()
            move(control)
            lab_page.wait_for_function(MOVED, arg=[handle, first])
            assert json.loads(area.evaluate(PLOTS)) != json.loads(first), moved[-1]
            put_back(control, place)
            lab_page.wait_for_function(f"([area, first]) => ({PLOTS})(area) === first", arg=[handle, first])
    assert moved == CONTROLS[name]
    assert lab_page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
