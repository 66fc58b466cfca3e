"""Every live control of every notebook, moved in the notebook's own kernel: it redraws, differently, without an error.

JupyterLab's own part, from the mouse to the kernel and back to the page, is `test_jupyterlab.py`'s.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

from fusionlib.notebooks.catalogue import repository_root

pytest.importorskip("ipywidgets", reason="the notebooks extra is not installed")

NOTEBOOKS = repository_root(Path(__file__)) / "notebooks"
WITH_CONTROLS = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if "explore(" in path.read_text(encoding="utf-8")]

#: Runs behind the notebook's cells: a control is moved as a person would, and what is drawn is taken down.
MOVE_ALL = """
import json as _json, sys as _sys
import ipywidgets as _w
from IPython import get_ipython as _ip
from fusionlib.show.figure import Shown as _Shown

_drawn, _errors = [], []
_Shown.update = lambda self, drawing: _drawn.append((drawing.caption, drawing.summary, drawing.fig.to_json()))
_ip().showtraceback = lambda *a, **k: _errors.append(repr(_sys.exc_info()[1]))


def _others(control):
    if isinstance(control, _w.Dropdown):
        return [value for _, value in control.options if value != control.value]
    if isinstance(control, _w.Text):
        return ["mul", "no such thing"]
    return [control.min, control.max]


_found = {}
for _control in list(_w.widgets.widget._instances.values()):
    if isinstance(_control, (_w.Dropdown, _w.Text, _w.IntSlider, _w.FloatSlider)):
        _first, _count = _control.value, len(_drawn)
        for _value in _others(_control):
            _control.value = _value
        _control.value = _first
        _pictures = _drawn[_count:]
        _found[f"{len(_found)} {_control.description}"] = [len(_pictures), len(set(_pictures))]
print(_json.dumps({"controls": _found, "errors": _errors}))
"""


def test_which_notebooks_have_controls():
    """All but the rewrite's, whose figure has a slider of its own that needs no kernel."""
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} - {path.stem for path in WITH_CONTROLS} == {"04_rewriting"}


@pytest.mark.parametrize("path", WITH_CONTROLS, ids=lambda path: path.stem)
def test_every_control_redraws(path, tmp_path):
    """In a folder that is not the notebook's own, as other tools run it: data are found through the package."""
    nbclient = pytest.importorskip("nbclient", reason="the notebooks extra is not installed")
    node = nbformat.read(path, as_version=4)
    node.cells.append(nbformat.v4.new_code_cell(MOVE_ALL, id="move-all"))
    nbclient.NotebookClient(node, timeout=180, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = json.loads("".join(out.text for out in node.cells[-1].outputs if out.output_type == "stream"))
    assert said["errors"] == []
    assert said["controls"]
    for name, (drawings, different) in said["controls"].items():
        assert drawings >= 2, f"{name}: moved, and nothing was drawn"
        assert different >= 2, f"{name}: whatever its value, the same was drawn"


def test_no_notebook_looks_for_files_beside_itself():
    """Each runs from any folder, whatever tool runs it: what it reads, it finds through the package."""
    for path in NOTEBOOKS.glob("*.ipynb"):
        code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        near = [line for line in "\n".join(code).splitlines() if re.search(r"""["']\.{1,2}/|getcwd|\.cwd\(""", line)]
        assert near == [], path.name
