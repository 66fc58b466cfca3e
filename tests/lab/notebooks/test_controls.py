"""Every live control of every notebook, moved in JupyterLab: the figure changes, and changes back.

What a figure shows is read from the plot itself, since the caption could change without the figure. Of most notebooks
only the cells that the figures need run here, since all of them run without JupyterLab anyway; one is run whole.
"""

from __future__ import annotations

import ast
import symtable
from pathlib import Path

import nbformat
import pytest

from fusionlab.checkout import repository_root
from tests.lab.notebooks.jupyterlab import PATIENCE, TimeoutError, open_notebook, run_all, wait_for_the_end

NOTEBOOKS = repository_root(Path(__file__)) / "notebooks"

#: The data of the plots in an output area, without what plotly adds.
PLOTS = """area => JSON.stringify([...area.querySelectorAll(".js-plotly-plot")].map(plot => plot.data),
    (key, value) => key === "uid" ? undefined : ArrayBuffer.isView(value) ? [...value] : value)"""
MOVED = f"([area, before]) => {{ const now = ({PLOTS})(area); return now !== '[]' && now !== before; }}"


def controls_of(path: Path) -> list[list[str]]:
    """The live controls of each figure in a notebook, in order: the arguments of its calls of `explore`."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and "explore(" in cell.source:
            calls = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
            explored = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "explore"]
            words = [[word.arg for word in call.keywords if word.arg != "interactive"] for call in explored]
            found += [[word.replace("_", " ") for word in call] for call in words]
    return found


CONTROLS = {path.stem: found for path in sorted(NOTEBOOKS.glob("*.ipynb")) if (found := controls_of(path))}


def test_which_notebooks_have_controls():
    """All but the rewrite's, whose figure has its own slider that needs no kernel."""
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} - set(CONTROLS) == {"04_rewriting"}


WHOLE = "06_the_trace"
FIGURES = "figures_of_{}"  # a copy with what the figures need, beside the notebook


class Control:
    """A live control, operated by keyboard."""

    def __init__(self, widget) -> None:
        self.name = widget.locator(".widget-label").inner_text()
        self._list, self._handle = widget.locator("select"), widget.locator(".noUi-handle")
        self._is_list = self._list.count() > 0
        widget.scroll_into_view_if_needed()

    @property
    def positions(self) -> int:
        """The number of positions, or a sufficient number."""
        return self._list.locator("option").count() if self._is_list else 2

    @property
    def position(self) -> float:
        if self._is_list:
            return self._list.evaluate("list => list.selectedIndex")
        return float(self._handle.get_attribute("aria-valuenow"))

    def move(self) -> None:
        """One step forwards, or back from the end."""
        now = self.position
        if self._is_list:
            self._list.select_option(index=now + 1 if now + 1 < self.positions else now - 1)
        else:
            self._handle.press(
                "ArrowRight" if now < float(self._handle.get_attribute("aria-valuemax")) else "ArrowLeft"
            )
        assert self.position != now

    def put_back(self, before: float) -> None:
        """Undo a `move` from `before`."""
        if self._is_list:
            self._list.select_option(index=before)
        else:
            self._handle.press("ArrowLeft" if self.position > before else "ArrowRight")
        assert self.position == before


def with_what_figures_need(path: Path) -> nbformat.NotebookNode:
    """A notebook's figures with controls and the code cells that their names come from, without all the others.

    A cell that only changes an object in place would be missing, and the figure would be another or an error.
    """
    notebook = nbformat.read(path, as_version=4)
    if path.stem == WHOLE:
        return notebook
    kept, wanted = [], set()
    for cell in reversed([cell for cell in notebook.cells if cell.cell_type == "code"]):
        top = symtable.symtable(cell.source, cell.id, "exec")
        bound = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
        if "explore(" in cell.source or bound & wanted:
            kept.insert(0, cell)
            wanted = (wanted - bound) | names_read(top)
    notebook.cells = kept
    return notebook


def names_read(table: symtable.SymbolTable) -> set[str]:
    """The names that a cell reads from the notebook, in its functions too."""
    own = table.get_type() == "module"
    found = {each.get_name() for each in table.get_symbols() if each.is_referenced() and (own or each.is_global())}
    return found.union(*map(names_read, table.get_children()))


def run_until_drawn(page, lab, name):
    """Run a notebook and return the output areas of its controls, which are drawn with a delay.

    On a busy machine JupyterLab can lose a kernel and ask for another again and again; a fresh page starts over, once.
    """
    areas = page.locator(".jp-CodeCell .jp-OutputArea:has(> .jp-OutputArea-child .widget-box)")
    for patience in (PATIENCE / 3, PATIENCE):
        open_notebook(page, lab, f"notebooks/{FIGURES.format(name)}.ipynb")
        run_all(page)
        wait_for_the_end(page)
        try:
            areas.nth(len(CONTROLS[name]) - 1).wait_for(state="attached", timeout=patience)
            break
        except TimeoutError:
            if patience == PATIENCE:
                raise
    return areas


@pytest.mark.parametrize("name", CONTROLS)
def test_the_figure_follows_every_control(lab, lab_folder, lab_page, name):
    folder = lab_folder / "notebooks"
    nbformat.write(with_what_figures_need(folder / f"{name}.ipynb"), folder / f"{FIGURES.format(name)}.ipynb")
    areas = run_until_drawn(lab_page, lab, name)
    found = []
    for area in areas.all():
        area.locator(".js-plotly-plot .main-svg").first.wait_for(state="attached")
        assert area.locator(".fusionlib-still").is_hidden()  # its words are for readers without controls
        controls = [Control(widget) for widget in area.locator(".widget-slider, .widget-dropdown").all()]
        found.append([control.name for control in controls])
        for control in controls:
            if control.positions > 1:  # a recording may have only one variant
                assert_the_figure_follows(lab_page, area, control)
    assert found == CONTROLS[name]
    assert lab_page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0


def assert_the_figure_follows(page, area, control: Control) -> None:
    """Its data change with the control, and are the original ones again when it is reset."""
    handle, first, place = area.element_handle(), area.evaluate(PLOTS), control.position
    control.move()
    page.wait_for_function(MOVED, arg=[handle, first])
    control.put_back(place)
    page.wait_for_function(f"([area, first]) => ({PLOTS})(area) === first", arg=[handle, first])
