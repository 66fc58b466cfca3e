"""Files given to a notebook: which folder they are relative to, what changes a run, and what is published."""

from __future__ import annotations

import json

import nbformat
import pytest

from fusionlab.notebooks import runner, site
from fusionlab.notebooks.catalogue import find_notebooks
from fusionlab.notebooks.given import GivenFile, conceal_paths
from fusionlab.notebooks.parameters import parse_assignments, resolve_parameters
from fusionlib.commands.errors import UsageError


def resolve(checkout, *assignments: str):
    return resolve_parameters(find_notebooks(checkout.root), parse_assignments(assignments))


def run(checkout, *assignments: str):
    (result,) = runner.run(
        find_notebooks(checkout.root),
        root=checkout.root,
        output=checkout.root / "out",
        parameters=resolve(checkout, *assignments),
        timeout=120,
        progress=False,
        report=lambda line: None,
    )
    return result


@pytest.fixture
def mine(checkout, monkeypatch):
    """A file in the caller's current folder."""
    folder = checkout.root / "at home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    path = folder / 'mine "é".json'
    path.write_text("1")
    return path


def test_a_file_is_relative_to_the_callers_folder(checkout, mine, monkeypatch):
    checkout.add("one", parameters='trace_file: str = ""  # a file\nlabel: str = ""\n')
    found = resolve(checkout, f"trace_file={mine.name}", f"label={mine.name}")["one"]
    assert (found["trace_file"], found["label"]) == (str(mine), mine.name)
    assert resolve(checkout, f"trace_file={mine}")["one"]["trace_file"] == str(mine)
    assert resolve(checkout, "trace_file=")["one"]["trace_file"] == ""
    monkeypatch.setenv("HOME", str(mine.parent))
    assert resolve(checkout, f"trace_file=~/{mine.name}")["one"]["trace_file"] == str(mine)


@pytest.mark.parametrize("name", ["absent.json", ".", "a\0b"])
def test_a_file_that_is_not_there_is_an_error_before_anything_runs(checkout, mine, name):
    checkout.add("one", parameters='trace_file = ""')
    with pytest.raises(UsageError, match=r"-p trace_file=.* cannot be read: .*; give an existing file"):
        resolve(checkout, f"trace_file={name}")


def test_the_content_decides_whether_a_notebook_runs_again(checkout, mine):
    checkout.add("one", "print('read', open(trace_file).read())", parameters='trace_file = ""')
    given = f"trace_file={mine.name}"
    assert [run(checkout, given).status for _ in range(2)] == ["executed", "unchanged"]
    mine.write_text("2")
    changed = run(checkout, given)
    assert changed.status == "executed" and "read 2" in changed.output.read_text()
    other = mine.parent.parent / mine.name
    other.write_text("2")
    assert run(checkout, f"trace_file={other}").status == "unchanged"
    assert run(checkout).status == "failed"  # without a file it is another run


def test_neither_the_result_nor_the_page_says_where_the_file_is(checkout, mine):
    """However the notebook prints it, and also if it fails with the path in its error."""
    printing = (
        "import json, html; from IPython.display import HTML, JSON, display\n"
        "print(trace_file, repr(trace_file), json.dumps(trace_file), sep='\\n')\n"
        "display(HTML(html.escape(trace_file)), JSON({'path': [trace_file]}))"
    )
    checkout.add("one", printing, "raise ValueError(f'{trace_file}: damaged')", parameters='trace_file = ""')
    result = run(checkout, f"trace_file={mine.name}")
    assert result.status == "failed"
    node = nbformat.read(result.output, as_version=4)
    page = site.read_page(result.output)
    text = result.output.read_text() + site.render_page(result.output, page, [page])
    assert "at home" not in text and str(checkout.root) not in text and "mine" in text
    injected = next(cell for cell in node.cells if "injected-parameters" in cell.metadata.get("tags", []))
    scope: dict = {}
    exec(injected.source, scope)
    assert scope["trace_file"] == mine.name
    assert node.metadata.fusionlib.parameters == {"trace_file": mine.name}
    errors = [output for cell in node.cells for output in cell.get("outputs", ()) if output.output_type == "error"]
    assert errors[-1].evalue == f"{mine.name}: damaged"


def test_only_given_files_are_concealed():
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = '/a/b.json /a/c.json'", id="x")])
    before = json.dumps(node)
    conceal_paths(node, {"tokens": 3, "label": "/a/c.json"})
    assert json.dumps(node) == before
    conceal_paths(node, {"trace_file": GivenFile("/a/b.json"), "label": "/a/c.json"})
    assert node.cells[0].source == "x = 'b.json /a/c.json'"
