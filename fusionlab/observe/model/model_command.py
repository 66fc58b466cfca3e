"""What `fusionlib bench --model` does: run a whole model and write the results."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusionlab.files import results_file
from fusionlab.observe.bench.results import Results, write_results
from fusionlab.observe.bench.text import skipped
from fusionlab.observe.bench.timer import CAPTURES
from fusionlab.observe.manifest import make_manifest
from fusionlab.observe.tuning import own_tuning
from fusionlib.commands.diagnosis import installed_version
from fusionlib.commands.errors import UsageError

_CHECK_TOKENS, _CHECK_PROMPTS, _CHECK_CONTEXT = (4,), (), 32


def run_model(namespace: argparse.Namespace, device: str, make_timer: Callable[[], Any] | None, command: str) -> int:
    """Measure or, without `make_timer`, check; returns 0, or 1 if a result is wrong.

    A CPU gets a small model of the same structure: there is nothing to measure.

    Raises:
        UsageError: if transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UsageError(
            "--model runs a model of transformers, which is not installed: pip install '.[models]', or transformers"
        )
    from fusionlab.observe.model.model_run import ModelRun
    from fusionlab.observe.step.step_run import temporary_traces

    settings = model_settings(namespace, device)
    manifest = make_manifest(command, settings.seed, libraries=_libraries())
    path = results_file(namespace.out, f"{manifest.machine.slug}-model")
    timer = make_timer() if make_timer is not None else None
    results = Results(conditions(settings, timer))

    def save() -> None:
        """Write what has been measured so far."""
        if path is not None:
            write_results(path, results, manifest)

    with own_tuning(keep_binaries=True), temporary_traces() as folder:
        ModelRun(settings, timer, results, Path(folder), say=_say, save=save).all()
    save()
    if timer is not None:
        from fusionlab.observe.model.model_text import model_text
        from fusionlab.observe.model.recorded_model import read_model

        print(model_text(read_model(results, manifest, "this run")))
    print(skipped(results) or "every variant fused what it must; how near its logits are to the opaque one's is above")
    wrong = sum(entry.wrong for entry in results.skipped)
    if timer is None:
        print(f"{wrong} wrong results; nothing was measured")
    if path is not None:
        print(f"results: {path}")
    return 1 if wrong else 0


def _say(line: str) -> None:
    """A run takes minutes for each workload: what it says must be seen at once, in a pipe too."""
    print(line, flush=True)


def model_settings(namespace: argparse.Namespace, device: str) -> Any:
    """The `ModelSettings` that the command line and the device make.

    Raises:
        UsageError: for a variant that a model does not have, or layers that are no whole turns.
    """
    from fusionlab.observe.model.model_run import MODEL_VARIANTS, ModelSettings
    from fusionlab.observe.model.whole_model import TURN, make_config
    from fusionlab.observe.model.workload import DECODE, PREFILL, Workload

    every = ModelSettings().workloads
    tokens, prompts = ([each.tokens for each in every if each.phase == phase] for phase in (DECODE, PREFILL))
    if namespace.check:
        tokens, prompts = list(_CHECK_TOKENS), list(_CHECK_PROMPTS)
    if namespace.tokens or namespace.prompts:
        tokens, prompts = namespace.tokens or [], namespace.prompts or []
    workloads = (*(Workload(DECODE, each) for each in tokens), *(Workload(PREFILL, each) for each in prompts))
    layers = namespace.layers
    most = make_config(small=device != "cuda").num_hidden_layers
    if layers is not None and (layers % TURN or layers > most):
        which = "the model" if device == "cuda" else "the small model that a CPU gets"
        raise UsageError(f"--layers {layers} must be a multiple of {TURN}, and {which} has {most} layers")
    context = namespace.context_length or (1024 if device == "cuda" else _CHECK_CONTEXT)
    variants = tuple(namespace.step_variants or MODEL_VARIANTS)
    if others := [name for name in variants if name not in MODEL_VARIANTS]:
        raise UsageError(f"--model has the variants {', '.join(MODEL_VARIANTS)}, and not {', '.join(others)}")
    return ModelSettings(
        workloads,
        variants,
        rounds=namespace.rounds,
        seed=namespace.seed,
        device=device,
        context=context,
        layers=layers,
        experts=namespace.experts,
        compilations=namespace.compilations or 1,
    )


def conditions(settings: Any, timer: Any) -> dict[str, Any]:
    """How the numbers were measured, for a reader of the file."""
    from fusionlab.observe.model.model_run import PREFILL_CAPTURES

    return {
        "timing": "replays of CUDA graphs of the whole model and its head on the last token; events around them",
        "captures": f"at most {CAPTURES} of a decode step and {PREFILL_CAPTURES} of a prompt, as memory allows; each "
        "time says how many",
        "l2_bytes": getattr(timer, "l2_bytes", None),
        "rounds": settings.rounds,
        "order": "shuffled in each round",
        "spread": "10th and 90th percentile of the samples",
        "decode": f"one token of each sequence, static cache, {settings.context} tokens of context; a replay sets the "
        "cache's lengths back, so that each writes the same place",
        "prefill": "one sequence, no cache",
        "model": "transformers' Qwen3NextForCausalLM, random weights, linear layers by quantize_linears, quantised by "
        "an opaque op; query, key and value, and gate and up, are layers of their own, each with a quantisation",
        "experts": "bf16, transformers' grouped_mm; one tensor, which quantize_linears leaves",
        "compiled": "one torch.compile of the model up to its head, static sizes"
        + f"; the fastest of {settings.compilations}" * (settings.compilations > 1),
        "accuracy": "random weights: most tokens' experts are close calls, and a model with its sums in another order "
        "chooses others",
    }


def _libraries() -> dict[str, str]:
    """Versions of what the model runs on, where installed."""
    names = ("transformers", "flash-linear-attention")
    return {name: version for name in names if (version := installed_version(name)) is not None}
