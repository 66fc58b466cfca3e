"""Working copies: they are updated with their notebooks until they are edited, and no edit is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from fusionlab.notebooks import lab
from fusionlab.notebooks.lab import refresh_copies
from fusionlib.cli import main

v4 = nbformat.v4


@pytest.fixture
def copies(checkout) -> Path:
    folder = checkout.root / "lab"
    folder.mkdir()
    return folder


def refresh(checkout, copies: Path) -> list[str]:
    return [" ".join(line.split()) for line in refresh_copies(sorted((checkout.root / "notebooks").iterdir()), copies)]


def edit(path: Path, source: str) -> bytes:
    node = nbformat.read(path, as_version=4)
    node.cells[-1].source = source
    nbformat.write(node, path)
    return path.read_bytes()


def run_and_save(path: Path) -> bytes:
    """What JupyterLab writes after "run all": outputs and counts, a widget's state; the cells are unchanged."""
    node = nbformat.read(path, as_version=4)
    node.cells[-1].outputs = [v4.new_output("stream", text="1\n")]
    node.cells[-1].execution_count = 7
    node.metadata["widgets"] = {"state": {}}
    nbformat.write(node, path)
    return path.read_bytes()


def test_a_copy_is_made_once_and_a_run_of_it_is_kept(checkout, copies):
    original = checkout.add("one", "print(1)")
    before = original.read_bytes()
    assert refresh(checkout, copies) == ["new one.ipynb"]
    assert (copies / "one.ipynb").read_bytes() == before
    saved = run_and_save(copies / "one.ipynb")
    assert refresh(checkout, copies) == []
    assert (copies / "one.ipynb").read_bytes() == saved
    assert original.read_bytes() == before


def test_a_copy_that_was_only_run_follows_its_notebook(checkout, copies):
    checkout.add("one", "print(1)")
    refresh(checkout, copies)
    run_and_save(copies / "one.ipynb")
    changed = checkout.add("one", "print(2)").read_bytes()
    assert refresh(checkout, copies) == ["refreshed one.ipynb"]
    assert (copies / "one.ipynb").read_bytes() == changed


def test_an_edited_copy_is_never_written_to_and_the_new_notebook_lies_beside_it(checkout, copies):
    checkout.add("one", "print(1)")
    refresh(checkout, copies)
    mine = edit(copies / "one.ipynb", "print('mine')")
    assert refresh(checkout, copies) == ["yours one.ipynb: it has your changes"]
    for source in ("print(2)", "print(3)"):
        changed = checkout.add("one", source).read_bytes()
        (line,) = refresh(checkout, copies)
        name = line.split()[-1]
        assert line == f"yours one.ipynb: it has your changes; the notebook changed since, and is now {name}"
        assert (copies / name).read_bytes() == changed
        theirs = edit(copies / name, "print('this one, too')")
        assert refresh(checkout, copies) == [line]
        assert (copies / name).read_bytes() == theirs
        assert (copies / "one.ipynb").read_bytes() == mine
    assert len(list(copies.glob("one*.ipynb"))) == 3


def test_a_copy_deleted_is_made_again(checkout, copies):
    checkout.add("one", "print(1)")
    refresh(checkout, copies)
    edit(copies / "one.ipynb", "print('mine')")
    (copies / "one.ipynb").unlink()
    assert refresh(checkout, copies) == ["new one.ipynb"]


@pytest.mark.parametrize("lost", ["", "[]", "null", '{"one.ipynb": 5}'])
def test_without_a_record_of_origins_what_differs_is_somebodys(checkout, copies, lost):
    checkout.add("one", "print(1)")
    refresh(checkout, copies)
    mine = edit(copies / "one.ipynb", "print('mine')")
    (copies / lab.ORIGINS).write_text(lost)
    (line,) = refresh(checkout, copies)
    assert line.startswith("yours one.ipynb")
    assert (copies / "one.ipynb").read_bytes() == mine


def test_a_damaged_copy_is_kept(checkout, copies):
    checkout.add("one", "print(1)")
    refresh(checkout, copies)
    (copies / "one.ipynb").write_text("{ half a notebook, with an answer")
    checkout.add("one", "print(2)")
    assert refresh(checkout, copies)[0].startswith("yours one.ipynb")
    assert (copies / "one.ipynb").read_text() == "{ half a notebook, with an answer"


def test_the_command_opens_the_copy_with_this_interpreters_kernel(checkout, monkeypatch):
    """A `python3` in JUPYTER_PATH for another interpreter does not take precedence."""
    for name in ("00_a", "01_b"):
        checkout.add(name, "1")
    other = checkout.root / "other" / "kernels" / "python3"
    other.mkdir(parents=True)
    about = {"argv": ["/bin/false", "{connection_file}"], "display_name": "other", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(about))
    monkeypatch.chdir(checkout.root)
    monkeypatch.setenv("JUPYTER_PATH", str(checkout.root / "other"))
    started, real = [], subprocess.run

    def start(command, env, check):
        code = "from jupyter_client.kernelspec import get_kernel_spec as g; print(*g('python3').argv)"
        told = real([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        started.append((command, told.stdout.split()))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(lab.subprocess, "run", start)
    assert main(["notebooks", "lab", "1"]) == 0
    ((command, kernel),) = started
    assert command[-1] == str(checkout.root / "lab" / "01_b.ipynb")
    assert f"--ServerApp.root_dir={checkout.root / 'lab'}" in command
    assert kernel[:3] == [sys.executable, "-m", "ipykernel_launcher"]


def test_copies_can_lie_elsewhere_but_not_over_the_notebooks(checkout, tmp_path_factory, monkeypatch, capsys):
    original = checkout.add("one", "1").read_bytes()
    monkeypatch.chdir(checkout.root)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copies"
    assert main(["notebooks", "lab", "--no-open", "--folder", str(elsewhere)]) == 0
    assert (elsewhere / "one.ipynb").read_bytes() == original and not (checkout.root / "lab").exists()
    assert main(["notebooks", "lab", "--no-open", "--folder", "notebooks"]) == 2
    assert [path.name for path in (checkout.root / "notebooks").iterdir()] == ["one.ipynb"]
    (checkout.root / "lab").write_text("")
    assert main(["notebooks", "lab", "--no-open"]) == 2
    assert "name a folder that can be written with --folder DIR" in capsys.readouterr().err


def test_the_copies_are_outside_of_version_control():
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(["git", "check-ignore", "lab/01_one_row.ipynb"], cwd=root, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.stdout.strip() == "lab/01_one_row.ipynb"
