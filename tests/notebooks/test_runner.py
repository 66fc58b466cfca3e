from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from fusionlib.notebooks import runner
from fusionlib.notebooks.catalogue import describe, find_notebooks


def run(checkout, *names: str, parameters=None, timeout: float = 120, force: bool = False):
    notebooks = [nb for nb in find_notebooks(checkout.root) if not names or nb.name in names]
    lines: list[str] = []
    results = runner.run(
        notebooks,
        root=checkout.root,
        output=checkout.root / "out",
        parameters=parameters or {},
        timeout=timeout,
        force=force,
        progress=False,
        report=lines.append,
    )
    return results, "\n".join(lines)


def stdout_of(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.text for c in cells for o in c.get("outputs", ()) if o.output_type == "stream")


def test_executes_with_typed_parameters_and_records_where_it_ran(checkout):
    checkout.add("one", "print(tokens * 2)", parameters="tokens = 8")
    (result,), report = run(checkout, parameters={"one": {"tokens": 21}})
    assert result.status == "executed"
    assert report.startswith("executed   one")
    assert stdout_of(result.output) == "42\n"
    metadata = nbformat.read(result.output, as_version=4).metadata
    assert metadata.fusionlib.parameters == {"tokens": 21}
    assert {"Python", "torch", "device", "date"} <= set(metadata.fusionlib.provenance)
    assert "widgets" not in metadata
    assert str(checkout.root) not in result.output.read_text()


def test_an_unchanged_notebook_is_skipped_and_every_change_or_force_runs_it(checkout):
    checkout.add("one", "print('first', tokens)", parameters="tokens = 8")
    assert run(checkout)[0][0].status == "executed"
    (again,), _ = run(checkout)
    assert again.status == "unchanged"
    assert stdout_of(again.output) == "first 8\n"
    assert run(checkout, parameters={"one": {"tokens": 9}})[0][0].status == "executed"
    checkout.add("one", "print('second', tokens)", parameters="tokens = 8")
    (changed,), _ = run(checkout)
    assert (changed.status, stdout_of(changed.output)) == ("executed", "second 8\n")
    assert run(checkout, force=True)[0][0].status == "executed"


def test_the_key_covers_sources_parameters_data_and_library_versions(checkout, monkeypatch):
    notebook = describe(checkout.add("one", "1"))

    def key(**parameters):
        return runner.run_key(notebook, root=checkout.root, parameters=parameters)

    keys = [key(), key(tokens=1), key(tokens=2)]
    (checkout.root / "data").mkdir()
    (checkout.root / "data" / "trace.json").write_text("{}")
    keys.append(key())
    (checkout.root / "data" / "trace.json").write_text("[]")
    keys.append(key())
    monkeypatch.setattr(runner, "library_versions", lambda names: dict.fromkeys(names, "0"))
    keys.append(key())
    source = checkout.root / "source.py"
    source.write_text("x = 1")
    monkeypatch.setattr(runner, "_sources", lambda: [source])
    keys.append(key())
    source.write_text("x = 2")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == keys[-1]


def test_a_failing_cell_is_shown_and_the_next_notebook_still_runs(checkout):
    checkout.add("a_bad", "x = 1", "y = x / 0\nprint(y)", "print('never')")
    checkout.add("b_good", "print('fine')")
    (bad, good), report = run(checkout)
    assert (bad.status, good.status) == ("failed", "executed")
    assert bad.failure.cell_id == "code-1"
    assert bad.failure.index == 2
    assert bad.failure.source == "y = x / 0\nprint(y)"
    assert "ZeroDivisionError: division by zero" in bad.failure.error
    assert "a_bad: cell 2 (id code-1) failed" in report
    assert "    | y = x / 0" in report
    assert "\x1b[" not in report
    assert "never" not in stdout_of(bad.output)
    assert not list((checkout.root / "out").glob(".*"))


def test_a_failed_notebook_is_not_taken_for_unchanged(checkout):
    checkout.add("one", "raise SystemError('no')")
    assert [run(checkout)[0][0].status for _ in range(2)] == ["failed", "failed"]


def test_the_time_of_the_whole_notebook_is_limited(checkout):
    checkout.add("slow", "print('before')", "import threading\nthreading.Event().wait()")
    (result,), report = run(checkout, timeout=3)
    assert result.status == "failed"
    assert result.failure.cell_id == "code-1"
    assert "took longer than 3 s; allow more with --timeout SECONDS" in report


def test_a_kernel_that_dies_fails_its_cell(checkout):
    checkout.add("dies", "import os\nos._exit(1)")
    (result,), report = run(checkout)
    assert result.status == "failed"
    assert result.failure.cell_id == "code-0"
    assert "the kernel died" in report


def test_a_result_replaces_the_previous_one_whole_or_not_at_all(checkout, monkeypatch):
    checkout.add("one", "print('first')")
    (result,), _ = run(checkout)
    before = result.output.read_bytes()

    def interrupted(*args, **kwargs):
        Path(args[1]).write_text("{ half a notebook")
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.papermill, "execute_notebook", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(checkout, force=True)
    assert result.output.read_bytes() == before
    assert [path.name for path in (checkout.root / "out").iterdir()] == ["one.ipynb"]


def test_a_damaged_result_runs_again(checkout):
    checkout.add("one", "1")
    (result,), _ = run(checkout)
    result.output.write_text("{")
    assert run(checkout)[0][0].status == "executed"
