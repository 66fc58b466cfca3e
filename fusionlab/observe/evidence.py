"""What is recorded in the checkout's data/: traces, benchmarks, and other people's numbers.

    data/traces/<device>/MANIFEST.json and *.json.gz     `fusionlib record`
    data/benchmarks/<device>.json, -chain, ...           `fusionlib bench`, with its manifest inside
    data/steps/<device>/MANIFEST.json and *.json.gz      `fusionlib bench --step --record`
    data/counters/<device>.json                          hardware counters, their command in the manifest
    data/reference/*.json                                not measured by this project

If nothing is recorded the lists are empty: nothing here invents a measurement.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionlab.checkout import repository_root
from fusionlab.observe.manifest import MANIFEST_NAME, Manifest, ManifestError, from_json, read_manifest, verify
from fusionlab.observe.references import Reference, read_reference
from fusionlab.observe.trace import Trace, read_trace

TRACE_LABELS = {"variant": str, "tokens": int, "graph": bool, "steps": int}


@dataclass(frozen=True)
class RecordedTrace:
    """One recorded trace and where it comes from.

    Args:
        device: slug of the device, for example `nvidia-h200`; also the folder's name.
        variant: `eager`, `two_kernel`, `inductor` or `fused`.
        tokens: rows of the input; 64 or less is a decode step, thousands are a prefill.
        graph: whether it was replayed from a CUDA graph.
        steps: number of marked steps in the trace.
        path: of the file.
        manifest: of its folder.
    """

    device: str
    variant: str
    tokens: int
    graph: bool
    steps: int
    path: Path
    manifest: Manifest

    def read(self) -> Trace:
        """The trace itself."""
        return read_trace(self.path)


@dataclass(frozen=True)
class RecordedBenchmark:
    """One run of `fusionlib bench`: its manifest, and the document as `bench.results` wrote it."""

    device: str
    path: Path
    manifest: Manifest
    document: dict[str, Any]


def data_folder(start: Path | None = None) -> Path:
    """The data/ of the checkout that contains `start` (default: the working directory), else of this package's own.

    Raises:
        UsageError: outside a checkout.
    """
    return repository_root(start) / "data"


def traces(root: Path | None = None, *, check: bool = True) -> list[RecordedTrace]:
    """Every recorded trace, by device, variant, tokens and graph; `root` is a data folder, by default the checkout's.

    `check` verifies every file's checksum first. Raises ManifestError if a folder does not match its manifest.
    """
    folder = (root or data_folder()) / "traces"
    found = []
    for path in sorted(folder.glob(f"*/{MANIFEST_NAME}")):
        found += folder_traces(path.parent, check=check)
    return sorted(found, key=lambda trace: (trace.device, trace.variant, trace.tokens, trace.graph))


def folder_traces(folder: Path, *, check: bool = True) -> list[RecordedTrace]:
    """The traces of one device's folder, as `fusionlib record` wrote it."""
    manifest = verify(folder) if check else read_manifest(folder)
    found = []
    for file in manifest.files:
        labels = {name: file.labels.get(name) for name in TRACE_LABELS}
        wrong = [name for name, kind in TRACE_LABELS.items() if type(labels[name]) is not kind]
        if wrong or set(file.labels) != set(TRACE_LABELS):
            raise ManifestError(f"{folder / file.name}: its labels must be {', '.join(TRACE_LABELS)}; record again")
        found.append(RecordedTrace(manifest.machine.slug, path=folder / file.name, manifest=manifest, **labels))
    return found


def benchmarks(root: Path | None = None) -> list[RecordedBenchmark]:
    """Every recorded run of `fusionlib bench`, by device. Raises ManifestError for a file in another format."""
    folder = (root or data_folder()) / "benchmarks"
    return [read_benchmark(path) for path in sorted(folder.glob("*.json"))]


def read_benchmark(path: Path) -> RecordedBenchmark:
    """Read one file written by `fusionlib bench --out`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: cannot be read as JSON ({error}); measure again") from error
    if not isinstance(document, dict) or "manifest" not in document:
        raise ManifestError(f"{path}: has no manifest inside; measure again with `fusionlib bench --out`")
    manifest = from_json(document["manifest"], str(path))
    return RecordedBenchmark(manifest.machine.slug, path, manifest, document)


def reference(name: str, root: Path | None = None) -> Reference:
    """Numbers that are not ours, for example `pr40710` or `h200_survey`.

    Raises:
        ReferenceFileError: if there is no such file, or it has the wrong format.
    """
    return read_reference((root or data_folder()) / "reference" / f"{name}.json")
