"""A notebook runs from any folder and with any tool: it finds its data through the package."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"


def test_no_notebook_looks_for_files_beside_itself():
    for path in NOTEBOOKS.glob("*.ipynb"):
        code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        near = [line for line in "\n".join(code).splitlines() if re.search(r"""["']\.{1,2}/|getcwd|\.cwd\(""", line)]
        assert near == [], path.name


def test_the_one_with_most_data_runs_in_an_empty_folder(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="the notebooks extra is not installed")
    node = nbformat.read(NOTEBOOKS / "05_the_kernel.ipynb", as_version=4)
    nbclient.NotebookClient(node, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert list(tmp_path.iterdir()) == []
