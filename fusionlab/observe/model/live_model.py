"""A few layers of the model on this machine's GPU, read as a recorded run is, so that one figure serves both."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fusionlab.observe.bench.results import Results
from fusionlab.observe.manifest import make_manifest
from fusionlab.observe.model.model_command import conditions
from fusionlab.observe.model.model_run import ModelRun, ModelSettings
from fusionlab.observe.model.recorded_model import RecordedModel, read_model
from fusionlab.observe.model.whole_model import TURN
from fusionlab.observe.model.workload import DECODE, Workload
from fusionlab.observe.tuning import own_tuning

if TYPE_CHECKING:
    from fusionlab.observe.bench.timer import Timer

_ROUNDS = 10


def settings_here(*sequences: int) -> ModelSettings:
    """One turn of layers, opaque and with all fusions: a minute or two, most of it compilation."""
    workloads = tuple(Workload(DECODE, count) for count in sequences)
    return ModelSettings(workloads, ("opaque", "fused"), _ROUNDS, layers=TURN)


def model_here(settings: ModelSettings, timer: Timer | None = None) -> RecordedModel:
    """Measure the model now. `timer` is by default the current GPU's."""
    if timer is None:
        from fusionlab.observe.bench.timer import GraphTimer

        timer = GraphTimer()
    words = ["fusionlib bench --model qwen3_next --step-variants", *settings.variants]
    words += ["--tokens", *(str(each.tokens) for each in settings.workloads)]
    words += ["--layers", str(settings.layers), "--rounds", str(settings.rounds)]
    manifest = make_manifest(" ".join(words), settings.seed)
    results = Results(conditions(settings, timer))
    with own_tuning(), tempfile.TemporaryDirectory() as folder:
        ModelRun(settings, timer, results, Path(folder), say=lambda line: None).all()
    return read_model(results, manifest, "this run")
