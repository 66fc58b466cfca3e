"""`fusionlib record`: traces of the attention-output step, with the manifest that says where they come from.

Examples::

    fusionlib record                                  on a GPU: every variant, decode and prefill, to data/traces
    fusionlib record --variants fused --tokens 64     one of them
    fusionlib record --out build/traces               on a CPU, which requires --out: no kernels, operators only
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from fusionlab.files import replace_folder, require_writable
from fusionlib.commands.errors import UsageError
from fusionlib.commands.failure import in_a_line

MANIFEST_NAME = "MANIFEST.json"
VARIANTS = ("eager", "two_kernel", "inductor", "fused")
_GPU_TOKENS, _CPU_TOKENS = (64, 8192), (4, 64)
_ON_A_CPU = (
    "no GPU is visible: a CPU's trace has operators only, no kernel, no launch, no CUDA graph, and its times say "
    "nothing of a GPU"
)


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the `record` parser to `subparsers`."""
    parser = subparsers.add_parser(
        "record",
        help="record cleaned profiler traces of the attention-output step",
        description="Record traces of gated norm, quantisation and FP8 GEMM, cleaned and with their provenance.",
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--tokens", nargs="+", type=int, help="default: 64 8192; on a CPU 4 64")
    parser.add_argument("--steps", type=int, default=2, help="marked steps in a trace, 1 to 3; default: %(default)s")
    parser.add_argument(
        "--graphs", choices=("both", "with", "without"), default="both", help="CUDA graphs; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of inputs and weights; default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder for <device>/; default: data/traces of the checkout, on a GPU")
    parser.set_defaults(run=run)


def run(namespace: argparse.Namespace) -> int:
    """Record and write; returns 0, 1 if a trace is missing, 2 if recording or writing is impossible."""
    import torch

    from fusionlab.observe.evidence import data_folder
    from fusionlab.observe.record import RecordError, Recording
    from fusionlab.observe.tuning import own_tuning

    gpu = torch.cuda.is_available()
    out = namespace.out
    if not gpu:
        if out is None:
            raise UsageError(f"{_ON_A_CPU}. Give --out FOLDER to record that; nothing was written")
        if _is_inside(out, data_folder()):
            raise UsageError(f"--out {out} lies in data/, which holds what GPUs measured; {_ON_A_CPU}")
    graphs = {"both": (False, True), "with": (True,), "without": (False,)}[namespace.graphs]
    if not gpu and graphs == (True,):
        raise UsageError(f"--graphs with: {_ON_A_CPU}")
    recordings = [
        Recording(variant, tokens, graph, namespace.steps, seed=namespace.seed)
        for tokens in namespace.tokens or (_GPU_TOKENS if gpu else _CPU_TOKENS)
        for variant in namespace.variants
        for graph in (graphs if gpu else (False,))
    ]
    try:
        for recording in recordings:
            recording.resolved()
    except RecordError as error:
        raise UsageError(str(error)) from error
    out = out or data_folder() / "traces"
    require_writable(out, "name a folder that can be written with --out FOLDER")
    if not gpu:
        print(_ON_A_CPU)
    words = ["fusionlib", "record", "--variants", *namespace.variants, "--tokens"]
    words += [*map(str, dict.fromkeys(recording.tokens for recording in recordings)), "--steps", str(namespace.steps)]
    words += ["--graphs", namespace.graphs, "--seed", str(namespace.seed)]
    with own_tuning():
        return write_traces(recordings, out, " ".join(words))


def write_traces(recordings: list, out: Path, command: str) -> int:
    """Record each of `recordings` into `out`/<device>/, which is replaced as a whole once all that succeed are done.

    Returns 0, or 1 if one is missing; a variant that fails does not stop the others.
    """
    from fusionlab.observe.manifest import file_entry, make_manifest, this_machine, write_manifest
    from fusionlab.observe.record import record_step

    machine = this_machine()
    target = out / machine.slug
    if not _is_ours(target):
        raise UsageError(f"{target} exists and holds something other than recorded traces; give another --out")
    partial = out / f".{machine.slug}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files, missing = [], 0
    try:
        for recording in recordings:
            path = partial / recording.name
            try:
                trace = record_step(path=path, **vars(recording))
            except Exception as error:  # a compiler can fail with anything; the other variants go on
                missing += 1
                print(f"missing  {recording.name}: {in_a_line(error, 200)}", file=sys.stderr)
                continue
            files.append(file_entry(path, **recording.labels))
            print(
                f"recorded {recording.name}: {len(trace.kernels)} kernels, {len(trace.launches)} launches, "
                f"{len(trace.ops)} operators, {path.stat().st_size} bytes"
            )
        if not files:
            print(f"nothing was recorded; {target} is as it was", file=sys.stderr)
            return 1
        write_manifest(partial, make_manifest(command, recordings[0].seed, machine=machine, files=files))
        replace_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"traces: {target}")
    return 1 if missing else 0


def _is_ours(folder: Path) -> bool:
    """Whether `folder` may be replaced: it is absent, empty, or holds only a manifest and its traces."""
    if not folder.exists():
        return True
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    return all(name == MANIFEST_NAME or name.endswith(".json.gz") for name in names)


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
