"""What `fusionlib bench --step` does: run the decode step, write its results and, if asked for, its traces."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionlab.files import require_writable, results_file
from fusionlab.observe.bench.results import Results, write_results
from fusionlab.observe.bench.text import skipped
from fusionlab.observe.bench.timer import CAPTURES
from fusionlab.observe.manifest import Manifest, file_entry, make_manifest, write_manifest
from fusionlab.observe.step.decode_sizes import KINDS, ORDER, QWEN3_NEXT, SMALL
from fusionlab.observe.step.step_run import StepRun, StepSettings, temporary_traces, trace_name
from fusionlab.observe.step.step_text import codes, outputs, step_text
from fusionlab.observe.step.step_variants import STEP_VARIANTS
from fusionlab.observe.tuning import own_tuning
from fusionlib.commands.errors import UsageError

_TOKENS = (1, 4, 16, 64, 256)
_CHECK_TOKENS = (4,)
_RECORDED, _RECORDED_TOKENS = ("opaque", "fused"), 16


def run_step(namespace: argparse.Namespace, device: str, make_timer: Callable[[], Any] | None, command: str) -> int:
    """Measure or, without `make_timer`, check; returns 0, or 1 if a result is wrong.

    A CPU gets small blocks of the same structure: there is nothing to measure, and it multiplies in float32.
    """
    settings = step_settings(namespace, device)
    recorded_tokens = tokens_to_record(namespace, settings) if namespace.record is not None else 0
    manifest = make_manifest(command, settings.seed, libraries=_libraries())
    path = results_file(namespace.out, f"{manifest.machine.slug}-step")
    if namespace.record is not None:
        require_writable(namespace.record, "name a folder that can be written with --record FOLDER")
    timer = make_timer() if make_timer is not None else None
    results = Results(conditions(settings, timer))

    def save() -> None:
        """Write what has been measured so far."""
        if path is not None:
            write_results(path, results, manifest)

    with own_tuning(), temporary_traces() as folder:
        StepRun(settings, timer, results, Path(folder), save=save).all()
        if namespace.record is not None:
            _keep(Path(folder), namespace.record / manifest.machine.slug, recorded_tokens, device == "cuda", manifest)
    save()
    if timer is not None:
        print(step_text(results, manifest))
    else:
        print("\n\n".join(part for part in (outputs(results.step), codes(results.step), skipped(results)) if part))
        print(f"{sum(entry.wrong for entry in results.skipped)} wrong results; nothing was measured")
    if path is not None:
        print(f"results: {path}")
    return 1 if any(entry.wrong for entry in results.skipped) else 0


def step_settings(namespace: argparse.Namespace, device: str) -> StepSettings:
    """The settings that the command line and the device make."""
    sizes = QWEN3_NEXT if device == "cuda" else SMALL
    if namespace.context_length is not None:
        sizes = replace(sizes, context=namespace.context_length)
    layers = namespace.layers
    if layers is not None:
        layers = len(ORDER) * max(1, min(layers, sizes.layers) // len(ORDER))
    elif namespace.check:
        layers = len(ORDER)
    tokens = namespace.tokens or (_CHECK_TOKENS if namespace.check else _TOKENS)
    return StepSettings(
        tuple(tokens),
        tuple(namespace.step_variants or STEP_VARIANTS),
        namespace.rounds,
        namespace.seed,
        device,
        sizes,
        layers,
    )


def tokens_to_record(namespace: argparse.Namespace, settings: StepSettings) -> int:
    """The number of tokens whose traces are kept: the one asked for, the only one, or 16.

    Raises:
        UsageError: if the run does not have it.
    """
    given = namespace.record_tokens
    wanted = given or (settings.tokens[0] if len(settings.tokens) == 1 else _RECORDED_TOKENS)
    if wanted not in settings.tokens:
        measured = ", ".join(map(str, settings.tokens))
        raise UsageError(
            f"--record would keep the traces of {wanted} tokens; name one of {measured} by --record-tokens"
        )
    return wanted


def conditions(settings: StepSettings, timer: Any) -> dict[str, Any]:
    """How the numbers were measured, for a reader of the file."""
    return {
        "timing": "replays of CUDA graphs of the whole step, captured from compiled blocks; events around them",
        "captures": CAPTURES,
        "l2_bytes": getattr(timer, "l2_bytes", None),
        "rounds": settings.rounds,
        "order": "shuffled in each round",
        "spread": "10th and 90th percentile of the samples",
        "tokens": "each token is a sequence of its own; all variants read the same weights and states",
        "compiled": "one block of each kind for each number of tokens, its code used for all layers; static sizes",
        "mlp": f"dense, of {settings.sizes.intermediate}: a stand-in for ten routed experts of 512, as many bytes of "
        "weights for one token and fewer for more",
        "attention": "query, gate, key and value are one projection; rotary embedding included; one position for all",
        "gemm": "torch.nn.functional.scaled_mm with 1x128 and 128x128 scales; at other than multiples of 4 "
        "tokens what Inductor quantises is copied into rows of four; the library's ops leave room for these",
        "accuracy": "a fused site rounds where its graph does, which is where eager does from PyTorch 2.13 on; what "
        "Inductor compiles of a block rounds less often in every variant, so that whole blocks differ by as much as "
        "quantisation does",
        "not included": "embedding, final norm, language-model head, sampling, experts' routing",
    }


def _libraries() -> dict[str, str] | None:
    from fusionlab.observe.bench.variants import package_versions

    return package_versions(("fla",)) or None


def _keep(folder: Path, target: Path, tokens: int, graph: bool, manifest: Manifest) -> None:
    """Copy the traces of the opaque and the fused blocks at `tokens` tokens to `target`, with their manifest.

    What an earlier run recorded there goes: a folder holds the files of its manifest, and these are another run's.
    """
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob(trace_name("*", "*")):
        old.unlink()
    files = []
    for variant in _RECORDED:
        name = trace_name(variant, tokens)
        if not (folder / name).exists():
            continue
        shutil.copyfile(folder / name, target / name)
        labels = {"variant": variant, "tokens": tokens, "graph": graph, "blocks": " ".join(KINDS)}
        files.append(file_entry(target / name, **labels))
    write_manifest(target, replace(manifest, files=tuple(files)))
    print(f"traces: {target} ({len(files)})")
