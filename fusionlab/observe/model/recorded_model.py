"""A recorded run of a whole model, as a notebook reads it: what `fusionlib bench --model` wrote to data/."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionlab.observe.bench.results import Results, read_results
from fusionlab.observe.evidence import benchmarks, data_folder
from fusionlab.observe.manifest import Manifest, ManifestError
from fusionlab.observe.model.accuracy import Distance, Spread
from fusionlab.observe.model.workload import Workload
from fusionlab.observe.step.recorded_step import BlockKernels, SavingCheck, saving_check
from fusionlab.observe.step.step_variants import STEP_VARIANTS


@dataclass(frozen=True)
class ModelRow:
    """A workload under one variant.

    Args:
        workload: what was run; variant: a key of `step_variants.STEP_VARIANTS`.
        median_us, p10_us, p90_us: its time.
        saved: share of the opaque variant's median; None if that was not measured.
        kernels: of the whole step; None if it was not traced.
        peak_bytes: the most memory beyond weights and caches; None if unknown.
        fused: fusion -> sites; empty for a variant without a pass.
        refused: how many sites the pass refused.
        by_name: kernel -> how many of them the step runs, and their microseconds together; empty if not recorded.
    """

    workload: Workload
    variant: str
    median_us: float
    p10_us: float
    p90_us: float
    saved: float | None
    kernels: BlockKernels | None
    peak_bytes: int | None
    fused: dict[str, int]
    refused: int
    by_name: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The variant in words."""
        return STEP_VARIANTS[self.variant].label


@dataclass(frozen=True)
class ModelCheck:
    """What was predicted to be saved of a workload by the opaque trace, and what all fusions saved."""

    workload: Workload
    saving: SavingCheck


@dataclass(frozen=True)
class Comparison:
    """The logits of all tokens of a workload: `name` beside `against`, each a variant or a run of `model_run`."""

    workload: Workload
    name: str
    against: str
    distance: Distance


@dataclass(frozen=True)
class RecordedModel:
    """One recorded run.

    Args:
        manifest: card, versions, command, date and commit.
        conditions: how it was measured.
        sizes: of the model; layers, layers_of_all: how many were measured of how many.
        recurrence: what computed the linear attention's recurrence; linears: what became block-FP8.
        rows: by workload and variant, as measured.
        checks, comparisons: see these.
    """

    manifest: Manifest
    conditions: dict[str, Any]
    sizes: dict[str, int]
    layers: int
    layers_of_all: int
    recurrence: str
    linears: str
    rows: tuple[ModelRow, ...]
    checks: tuple[ModelCheck, ...]
    comparisons: tuple[Comparison, ...]

    def find(self, workload: Workload, variant: str) -> ModelRow | None:
        """The row of `variant`, None if it was not timed."""
        return next((row for row in self.rows if (row.workload, row.variant) == (workload, variant)), None)

    def compared(self, name: str, against: str) -> Comparison | None:
        """The comparison of two runs, None if there is none."""
        return next((each for each in self.comparisons if (each.name, each.against) == (name, against)), None)

    @property
    def provenance(self) -> str:
        """Card, versions, date, commit and command in one line."""
        return self.manifest.provenance


def recorded_models(root: Path | None = None) -> list[RecordedModel]:
    """Every recorded run of a model, by device; `root` is a data folder, by default the checkout's.

    Raises:
        ManifestError: for a document in another format.
    """
    return [
        read_model(read_results(found.document, found.path.name), found.manifest, found.path.name)
        for found in benchmarks(root or data_folder())
        if found.document.get("model")
    ]


def read_model(results: Results, manifest: Manifest, source: str) -> RecordedModel:
    """The run in `results`; `source` is what an error names."""
    found = results.model
    try:
        return RecordedModel(
            manifest,
            results.conditions,
            found["sizes"],
            found["layers"],
            found["layers_of_all"],
            found["recurrence"],
            found["linears"],
            tuple(_row(found, entry) for entry in found["times"]),
            tuple(ModelCheck(_workload(entry), saving_check(entry)) for entry in found["predictions"]),
            tuple(_comparison(entry) for entry in found["accuracy"]),
        )
    except (KeyError, TypeError) as error:
        raise ManifestError(f"{source}: its model has another format ({error!r}); measure again") from error


def _workload(entry: dict[str, Any]) -> Workload:
    return Workload(entry["phase"], entry["tokens"])


def _row(found: dict[str, Any], entry: dict[str, Any]) -> ModelRow:
    variant = entry["variant"]

    def of(what: str) -> dict[str, Any]:
        same = (each for each in found[what] if (_workload(each), each["variant"]) == (_workload(entry), variant))
        return next(same, {})

    kernels, sites = of("kernels"), of("sites")
    return ModelRow(
        _workload(entry),
        variant,
        entry["median_us"],
        entry["p10_us"],
        entry["p90_us"],
        of("gains").get("share"),
        BlockKernels(kernels["kernels"], kernels["quantisations"], kernels["copies"]) if kernels else None,
        of("memory").get("peak_bytes"),
        sites.get("fused", {}),
        sites.get("refused", 0),
        {name: (count, us) for name, (count, us) in kernels.get("by_name", {}).items()},
    )


def _comparison(entry: dict[str, Any]) -> Comparison:
    kl, difference = Spread(**entry["kl"]), Spread(**entry["difference"])
    found = Distance(entry["tokens"], kl, entry["top1"], difference, entry["logits"])
    return Comparison(_workload(entry), entry["variant"], entry["against"], found)
