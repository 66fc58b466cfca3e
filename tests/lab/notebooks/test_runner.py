from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from fusionlab.notebooks import jupyter_kernel as kernel
from fusionlab.notebooks import runner
from fusionlab.notebooks.catalogue import describe, find_notebooks
from fusionlab.notebooks.output_folder import failed_since
from fusionlab.notebooks.parameters import parameters_of


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
    assert not list((checkout.root / "out").glob(".*")), "nothing half-done is left behind"
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


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "{",
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: json.dumps(json.loads(text) | {"cells": []}),
        lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != "cells"}),
        lambda text: json.dumps(json.loads(text) | {"cells": 5}),
        lambda text: json.dumps(json.loads(text) | {"metadata": []}),
    ],
)
def test_a_damaged_result_runs_again(checkout, damage):
    checkout.add("one", "print('whole')")
    (result,), _ = run(checkout)
    result.output.write_text(damage(result.output.read_text()))
    (again,), _ = run(checkout)
    assert (again.status, stdout_of(again.output)) == ("executed", "whole\n")


def test_a_failure_does_not_replace_the_last_good_result(checkout):
    checkout.add("one", "print('good')")
    (good,), _ = run(checkout)
    before = good.output.read_bytes()
    checkout.add("one", "print('up to here')", "raise ValueError('planted')")
    (failed,), report = run(checkout)
    assert failed.status == "failed" and "one: its last good result is kept" in report
    assert good.output.read_bytes() == before
    assert failed.output.name == "one.failed.ipynb" and stdout_of(failed.output) == "up to here\n"
    assert failed_since(good.output)
    checkout.add("one", "print('mended')")
    (mended,), _ = run(checkout)
    assert stdout_of(mended.output) == "mended\n"
    assert [path.name for path in mended.output.parent.iterdir()] == ["one.ipynb"]


def test_a_failure_with_the_key_of_the_good_result_runs_again_and_a_way_back_does_not(checkout):
    flag = checkout.root / "fail"
    checkout.add("one", f"import os\nassert not os.path.exists({str(flag)!r})")
    assert run(checkout)[0][0].status == "executed"
    flag.touch()
    assert [run(checkout, force=force)[0][0].status for force in (True, False)] == ["failed", "failed"]
    flag.unlink()
    assert run(checkout)[0][0].status == "executed"
    original = (checkout.root / "notebooks" / "one.ipynb").read_bytes()
    checkout.add("one", "1 / 0")
    assert run(checkout)[0][0].status == "failed"
    (checkout.root / "notebooks" / "one.ipynb").write_bytes(original)
    (back,), _ = run(checkout)
    assert back.status == "unchanged" and not failed_since(back.output)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"kernelspec": {"name": "somebodys-env", "display_name": "x", "language": "python"}},
        {"kernelspec": {"name": "gone", "display_name": "x"}, "language_info": {"name": "python"}},
    ],
)
def test_whatever_kernelspec_a_notebook_names_it_runs_in_this_interpreter(checkout, metadata, monkeypatch):
    """Even if JUPYTER_PATH has a `python3` for another interpreter."""
    other = checkout.root / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "other", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(checkout.root / "jupyter"))
    path = checkout.add("one", "import sys\nprint(sys.executable, tokens)", parameters="tokens = 8")
    node = nbformat.read(path, as_version=4)
    node.metadata = nbformat.from_dict(metadata)
    nbformat.write(node, path)
    (notebook,) = find_notebooks(checkout.root)
    assert list(parameters_of(notebook)) == ["tokens"]
    (result,), _ = run(checkout, parameters={"one": {"tokens": 9}})
    assert stdout_of(result.output) == f"{sys.executable} 9\n"
    executed = nbformat.read(result.output, as_version=4).metadata
    assert executed.kernelspec.name == "python3"
    assert executed.fusionlib.provenance["Python"] == executed.language_info.version


def test_a_kernel_that_does_not_start_fails_its_notebook_and_says_whom_to_ask(checkout, monkeypatch):
    checkout.add("one", "1")
    monkeypatch.setattr(kernel, "argv", lambda: [sys.executable, "-c", "raise SystemExit(3)"])
    (result,), report = run(checkout)
    assert result.status == "failed"
    assert "the kernel did not start" in report and "fusionlib doctor" in report
    monkeypatch.undo()
    assert run(checkout)[0][0].status == "executed"


ONE_RUN = """
import sys
from pathlib import Path
from fusionlab.notebooks import runner
from fusionlab.notebooks.catalogue import find_notebooks
root = Path(sys.argv[1])
results = runner.run(find_notebooks(root), root=root, output=root / "out", parameters={}, timeout=120, progress=False)
"""


def test_runs_beside_each_other_share_the_work(checkout):
    """Each notebook counts its executions in a file; it runs once, and every process has every result."""
    for name in ("a", "b"):
        count = f"import time\nopen({str(checkout.root / name)!r}, 'a').write('x')\ntime.sleep(1)"
        checkout.add(name, count)
    processes = [
        subprocess.Popen([sys.executable, "-c", ONE_RUN, checkout.root], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    for name in ("a", "b"):
        assert (checkout.root / name).read_text() == "x"
        statuses = [line.split()[0] for text in said for line in text.splitlines() if line.split()[1] == name]
        assert sorted(statuses) == ["executed", "unchanged"]
    assert "another run of it is under way" in "".join(said)
    assert sorted(path.name for path in (checkout.root / "out").iterdir()) == ["a.ipynb", "b.ipynb"]


def test_a_run_that_was_killed_holds_up_nobody(checkout):
    checkout.add("one", "import time\nprint('started', flush=True)\ntime.sleep(60)", text="# A")
    killed = subprocess.Popen([sys.executable, "-c", ONE_RUN, checkout.root], start_new_session=True)
    lock = checkout.root / "out" / ".one.lock"
    while not lock.exists() and killed.poll() is None:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    checkout.add("one", "print('done')")
    (result,), _ = run(checkout)
    assert (result.status, stdout_of(result.output)) == ("executed", "done\n")
    assert [path.name for path in result.output.parent.iterdir()] == ["one.ipynb"]
