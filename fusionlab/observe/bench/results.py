"""What a benchmark run writes, and its format: `data/benchmarks/<device>.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fusionlab.observe.manifest import Manifest, ManifestError, checked, write_json

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One variant in one case.

    Args:
        case: its name, `shape/tokens/gate/context`; the parts follow.
        variant: key of `variants.VARIANTS`, or `baseline`.
        median_us, p10_us, p90_us: microseconds per call, over `samples` samples.
        samples: each the mean of at least one cycle over `copies` sets of buffers.
        bytes: what one fused call must move, by the ledger; `gb_s` is this divided by the median, in 1e9 bytes per
            second, whatever the variant itself moves. None in a chain.
        launch: rows, warps and whatever else is known about the launch; for what Inductor compiles, the time of every
            compilation, `compilations_us`; None if another library decides.
        agreement: of the result with eager's, as `correctness.Agreement`; None if nothing is computed.
    """

    case: str
    shape: str
    tokens: int
    gate: str
    context: str
    variant: str
    median_us: float
    p10_us: float
    p90_us: float
    samples: int
    copies: int
    bytes: int
    gb_s: float | None
    launch: dict[str, Any] | None = None
    agreement: dict[str, float] | None = None


@dataclass(frozen=True)
class Skipped:
    """A variant that was not timed in a case, and why: absent, or wrong."""

    case: str
    variant: str
    why: str
    wrong: bool = False


@dataclass(frozen=True)
class SweepRow:
    """One launch configuration of one kernel (`fused` or `light`) in one case."""

    case: str
    unit: int
    units: int
    kernel: str
    launch: dict[str, Any]
    median_us: float
    p10_us: float
    p90_us: float
    heuristic: bool


@dataclass
class Results:
    """All results of one run."""

    conditions: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    sweep: list[SweepRow] = field(default_factory=list)
    dependent: list[dict[str, Any]] = field(default_factory=list)
    #: What a decode step found besides its times (`observe.step.step_run`); empty in other runs.
    step: dict[str, Any] = field(default_factory=dict)
    #: What the run of a whole model found (`observe.model.model_run`); empty in other runs.
    model: dict[str, Any] = field(default_factory=dict)

    def find(self, case: str, variant: str) -> Row | None:
        """The row of `variant` in the case named `case`, None if it was not timed."""
        return next((row for row in self.rows if (row.case, row.variant) == (case, variant)), None)

    def document(self, manifest: Manifest) -> dict[str, Any]:
        """The JSON object to write."""
        return {"schema": SCHEMA, "manifest": manifest.as_json(), **asdict(self)}


def percentiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile, linear between samples.

    Raises:
        ValueError: for no samples, or one that is not a positive time.
    """
    if not samples or not all(math.isfinite(sample) and sample > 0 for sample in samples):
        raise ValueError(f"samples must be positive times, at least one; got {list(samples)[:5]}")
    ordered = sorted(samples)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    return at(0.5), at(0.1), at(0.9)


def write_results(path: Path, results: Results, manifest: Manifest) -> None:
    """Write the document atomically; its folder must exist.

    Raises:
        ManifestError: if the manifest names this machine, or the file cannot be written.
    """
    document = results.document(manifest)
    checked(document["manifest"], str(path))
    write_json(path, document)


def read_results(document: dict[str, Any], source: str) -> Results:
    """The results in a document, checked.

    Raises:
        ManifestError: for the wrong format, or an invalid number.
    """
    names = {"schema", "manifest", *(f.name for f in fields(Results))}
    if set(document) | {"step", "model"} != names or document["schema"] != SCHEMA:
        raise ManifestError(f"{source}: must be an object of exactly {', '.join(sorted(names))}, schema {SCHEMA}")
    checked(document["manifest"], source)
    try:
        rows = [Row(**row) for row in document["rows"]]
        skipped = [Skipped(**entry) for entry in document["skipped"]]
        sweep = [SweepRow(**row) for row in document["sweep"]]
    except TypeError as error:
        raise ManifestError(f"{source}: a row has other fields than this version writes ({error})") from error
    for row in (*rows, *sweep):
        times = (row.p10_us, row.median_us, row.p90_us)
        finite = all(isinstance(t, int | float) and math.isfinite(t) and t > 0 for t in times)
        if not finite or not times[0] <= times[1] <= times[2]:
            raise ManifestError(
                f"{source}: {row.case} has p10, median, p90 = {times}; they must be positive and ordered"
            )
    rest = document["verdicts"], sweep, document["dependent"], document.get("step", {}), document.get("model", {})
    return Results(document["conditions"], rows, skipped, *rest)
