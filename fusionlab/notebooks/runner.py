"""Executing notebooks with papermill: resumable, with a time limit for each, every failure reported.

`output_folder` says what a run leaves behind, and where. It is written atomically, and a failure never replaces a good
result. Concurrent runs in one folder take turns notebook by notebook, so that the second reuses what the first has
done.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError

import fusionlab
import fusionlib
from fusionlab.files import locked
from fusionlab.notebooks.catalogue import Notebook
from fusionlab.notebooks.given import conceal_paths, identified, shown
from fusionlab.notebooks.jupyter_kernel import KERNELSPEC, OwnKernel
from fusionlab.notebooks.output_folder import Results
from fusionlab.notebooks.provenance import LIBRARIES, device_markers, library_versions, provenance

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_BUSY = "another run of it is under way"
_KERNEL_ARGUMENTS = [
    "--IPKernelApp.log_level=ERROR",  # its start-up messages would break the progress bar
    "--HistoryManager.enabled=False",  # all kernels share one database and would lock each other out
]


@dataclass(frozen=True)
class Failure:
    """The cell that stopped a notebook, and why."""

    notebook: str
    index: int
    cell_id: str
    source: str
    error: str

    def __str__(self) -> str:
        source = "\n".join(f"    | {line}" for line in self.source.splitlines())
        error = "\n".join(f"    {line}" for line in self.error.splitlines())
        return f"{self.notebook}: cell {self.index} (id {self.cell_id}) failed\n{source}\n{error}"


@dataclass(frozen=True)
class Result:
    """The outcome of one notebook: `status` is executed, unchanged or failed."""

    name: str
    output: Path
    status: str
    seconds: float
    failure: Failure | None = None


def run(
    notebooks: Sequence[Notebook],
    *,
    root: Path,
    output: Path,
    parameters: Mapping[str, Mapping[str, Any]],
    timeout: float,
    force: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> list[Result]:
    """Execute `notebooks` one after the other, continuing after a failure, and report each in one line.

    `parameters` maps a notebook's name to its typed parameters; `timeout` is in seconds for one whole notebook.
    """
    results = Results(output)
    output.mkdir(parents=True, exist_ok=True)
    done = []
    for notebook in notebooks:
        with locked(
            output / f".{notebook.name}.lock", lambda name=notebook.name: report(f"waiting    {name}: {_BUSY}")
        ):
            result = run_one(
                notebook,
                root=root,
                results=results,
                parameters=dict(parameters.get(notebook.name, {})),
                timeout=timeout,
                force=force,
                progress=progress,
            )
        done.append(result)
        report(f"{result.status:<9}  {result.name}  {result.seconds:.1f} s")
        if result.failure:
            report(str(result.failure))
            if results.published(result.name) != result.output:
                report(f"{result.name}: its last good result is kept")
    return done


def run_one(
    notebook: Notebook,
    *,
    root: Path,
    results: Results,
    parameters: dict[str, Any],
    timeout: float,
    force: bool,
    progress: bool,
) -> Result:
    """Execute one notebook, unless its last result is still valid."""
    good, failed = results.good(notebook.name), results.failed(notebook.name)
    key = run_key(notebook, root=root, parameters=parameters)
    previous = results.still_valid(notebook.name, key)
    if previous and not force:
        failed.unlink(missing_ok=True)
        return Result(notebook.name, good, "unchanged", previous["seconds"])

    started = time.monotonic()
    partial = good.with_name(f".{notebook.name}.partial.ipynb")
    try:
        failure = _execute(notebook, partial, parameters, timeout, progress)
        seconds = time.monotonic() - started
        status, target = ("failed", failed) if failure else ("executed", good)
        record = {"key": key, "status": status, "seconds": round(seconds, 2), "parameters": shown(parameters)}
        _finish(notebook, partial, target, record | {"provenance": provenance(root)}, parameters)
        if not failure:
            failed.unlink(missing_ok=True)
    finally:
        partial.unlink(missing_ok=True)
    return Result(notebook.name, target, status, seconds, failure)


def _execute(
    notebook: Notebook, partial: Path, parameters: dict[str, Any], timeout: float, progress: bool
) -> Failure | None:
    clock = _Clock(timeout)
    try:
        papermill.execute_notebook(
            str(notebook.path),
            str(partial),
            parameters=parameters,
            kernel_name=KERNELSPEC["name"],
            language=KERNELSPEC["language"],
            kernel_manager_class=OwnKernel,
            cwd=str(notebook.path.parent),
            progress_bar={"desc": notebook.name, "file": sys.stderr} if progress else False,
            timeout_func=clock.remaining,
            store_widget_state=False,
            extra_arguments=_KERNEL_ARGUMENTS,
        )
    except papermill.PapermillExecutionError as error:
        # Papermill counts the cells before it inserts its two error notes, so the index refers to the input plus the
        # cell of injected parameters; the id finds the cell in any version.
        cells = nbformat.read(partial, as_version=4).cells
        cell = next((c for c in cells if c.cell_type == "code" and c.execution_count == error.exec_count), None)
        trace = _ANSI.sub("", "\n".join(error.traceback)) or f"{error.ename}: {error.evalue}"
        return _failure(notebook, cell, error.source, trace)
    except CellTimeoutError:
        limit = f"timeout: the notebook took longer than {timeout:g} s; allow more with --timeout SECONDS"
        return _failure(notebook, clock.cell, "", limit)
    except DeadKernelError as error:
        return _failure(notebook, clock.cell, "", f"the kernel died: {error}; often the memory did not suffice")
    except RuntimeError as error:
        if clock.cell is not None:
            raise
        return _failure(notebook, None, "", f"the kernel did not start: {error}; ask `fusionlib doctor`")
    return None


class _Clock:
    """The time left for a notebook. nbclient asks before each cell and requires whole seconds, at least one."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self.cell: Any = None

    def remaining(self, cell: Any) -> int:
        self.cell = cell
        return max(1, math.ceil(self._deadline - time.monotonic()))


def _failure(notebook: Notebook, cell: Any, source: str, error: str) -> Failure:
    cell_id = cell.get("id", "?") if cell else "?"
    ids = [cell.get("id") for cell in nbformat.read(notebook.path, as_version=4).cells]
    index = ids.index(cell_id) if cell_id in ids else -1
    return Failure(notebook.name, index, cell_id, cell.source if cell else source, error)


def _finish(
    notebook: Notebook, partial: Path, target: Path, record: dict[str, Any], parameters: Mapping[str, Any]
) -> None:
    """Move the executed notebook to its place atomically, without widget state or absolute paths."""
    node = nbformat.read(partial, as_version=4)
    node.metadata.pop("widgets", None)
    node.metadata["kernelspec"] = KERNELSPEC  # the one it ran in, whatever it was saved with
    node.metadata.setdefault("papermill", {}).update(input_path=notebook.path.name, output_path=target.name)
    node.metadata["fusionlib"] = record
    conceal_paths(node, parameters)
    nbformat.write(node, partial)
    os.replace(partial, target)


def run_key(notebook: Notebook, *, root: Path, parameters: Mapping[str, Any]) -> str:
    """Return a hash of everything known to change a result.

    That is: the notebook, its parameters (for a file, its content), fusionlib's sources, the measured data, the
    libraries' versions and the kind of device.
    """
    facts = {
        "parameters": identified(parameters),
        "libraries": library_versions(LIBRARIES),
        "device": device_markers(),
        "python": sys.version_info[:3],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode())
    for path in [notebook.path, *_sources(), *_files(root / "data")]:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _sources() -> list[Path]:
    packages = (Path(package.__file__).parent for package in (fusionlib, fusionlab))
    return sorted(path for package in packages for path in package.rglob("*.py"))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
