"""A short decode step on this machine's GPU, read as a recorded one is, so that one figure serves both."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fusionlab.observe.bench.results import Results
from fusionlab.observe.evidence import RecordedBenchmark
from fusionlab.observe.manifest import make_manifest
from fusionlab.observe.step.command import conditions
from fusionlab.observe.step.decode_sizes import ORDER
from fusionlab.observe.step.recorded_step import RecordedStep, read_step
from fusionlab.observe.step.step_run import StepRun, StepSettings
from fusionlab.observe.tuning import own_tuning

if TYPE_CHECKING:
    from fusionlab.observe.bench.timer import Timer

_ROUNDS = 10


def settings_here(*tokens: int) -> StepSettings:
    """One turn of the model's order of blocks, opaque and with all fusions: a minute or two, most of it compilation."""
    return StepSettings(tokens, ("opaque", "fused"), _ROUNDS, layers=len(ORDER))


def step_here(settings: StepSettings, timer: Timer | None = None) -> RecordedStep:
    """Measure a step now. `timer` is by default the current GPU's.

    Codes are not compared here; `fusionlib bench --step` does that.
    """
    if timer is None:
        from fusionlab.observe.bench.timer import GraphTimer

        timer = GraphTimer()
    words = ["fusionlib bench --step --step-variants", *settings.variants, "--tokens", *map(str, settings.tokens)]
    words += ["--layers", str(settings.layers), "--rounds", str(settings.rounds)]
    manifest = make_manifest(" ".join(words), settings.seed)
    results = Results(conditions(settings, timer))
    with own_tuning(), tempfile.TemporaryDirectory() as folder:
        StepRun(settings, timer, results, Path(folder), say=lambda line: None).measure()
        slug = manifest.machine.slug
        path = Path(folder) / f"{slug}-step.json"
        return read_step(RecordedBenchmark(slug, path, manifest, results.document(manifest)), Path(folder))
