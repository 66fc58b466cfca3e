"""The recorded decode step, as a notebook reads it: what `fusionlib bench --step` wrote to data/.

A part that an older document lacks is computed from its run's traces where they are recorded, and is None elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusionlab.observe.bench.results import Results, read_results
from fusionlab.observe.evidence import RecordedBenchmark, benchmarks, data_folder
from fusionlab.observe.manifest import MANIFEST_NAME, Manifest, ManifestError, verify
from fusionlab.observe.step.block_traces import block_kernels, kernel_counts
from fusionlab.observe.step.decode_sizes import KINDS, ORDER, Sizes
from fusionlab.observe.step.saved_parts import SavedParts, saved_parts
from fusionlab.observe.step.step_variants import STEP_VARIANTS
from fusionlab.observe.trace import Trace, read_trace


@dataclass(frozen=True)
class BlockKernels:
    """How many kernels one block runs, how many of them only quantise, and how many only copy or fill memory."""

    kernels: int
    quantisations: int
    copies: int | None


@dataclass(frozen=True)
class StepRow:
    """The step under one variant at one number of tokens.

    Args:
        tokens: of the step, one of each sequence; variant: a key of `step_variants.STEP_VARIANTS`.
        median_us, p10_us, p90_us: time of the step.
        saved, saved_least, saved_most: shares of the opaque step's median, by this step's median, 90th and 10th
            percentile. Negative where it takes longer; None if the opaque step was not measured.
        blocks: kind of block -> its kernels; empty if it was not traced.
        peak_bytes: the most memory beyond weights and states; None if unknown.
    """

    tokens: int
    variant: str
    median_us: float
    p10_us: float
    p90_us: float
    saved: float | None
    saved_least: float | None
    saved_most: float | None
    blocks: dict[str, BlockKernels]
    peak_bytes: int | None

    @property
    def label(self) -> str:
        """The variant in words."""
        return STEP_VARIANTS[self.variant].label


@dataclass(frozen=True)
class SavingCheck:
    """What a step was predicted to save without its quantisation kernels, and what it saved with all sites fused.

    Args:
        tokens: of the step; sites: how many quantisation kernels went.
        step_us: the opaque step; predicted_us, measured_us: of it.
        parts: of what was measured; None without both traces.
    """

    tokens: int
    sites: int
    step_us: float
    predicted_us: float
    measured_us: float
    parts: SavedParts | None

    @property
    def residual_us(self) -> float:
        """Measured minus predicted."""
        return self.measured_us - self.predicted_us


@dataclass(frozen=True)
class RecordedStep:
    """One recorded run of the decode step.

    Args:
        manifest: card, versions, command, date and commit.
        conditions: how it was measured, and what a step leaves out.
        sizes: of the model; layers: how many of its layers were measured.
        recurrence: what computed the linear attention's recurrence.
        rows: by tokens, then in the order of `STEP_VARIANTS`.
        checks: predicted and measured savings, by tokens.
        traces: (variant, tokens) -> file of the traces of its blocks.
    """

    manifest: Manifest
    conditions: dict[str, Any]
    sizes: Sizes
    layers: int
    recurrence: str
    rows: tuple[StepRow, ...]
    checks: tuple[SavingCheck, ...]
    traces: dict[tuple[str, int], Path]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The numbers of tokens that were measured, in order."""
        return tuple(dict.fromkeys(row.tokens for row in self.rows))

    @property
    def layers_share(self) -> float:
        """The share of the model's layers that a measured step runs."""
        return self.layers / self.sizes.layers

    @property
    def provenance(self) -> str:
        """Card, versions, date, commit and command in one line."""
        return self.manifest.provenance

    def find(self, tokens: int, variant: str) -> StepRow | None:
        """The row of `variant` at `tokens` tokens, None if it was not timed."""
        return next((row for row in self.rows if (row.tokens, row.variant) == (tokens, variant)), None)

    def trace(self, variant: str, tokens: int) -> Trace:
        """The recorded trace of a linear and a full block; KeyError if none is recorded."""
        return read_trace(self.traces[variant, tokens])


def recorded_steps(root: Path | None = None) -> list[RecordedStep]:
    """Every recorded decode step, by device; `root` is a data folder, by default the checkout's.

    Raises:
        ManifestError: for a document in another format, or traces that do not match their manifest.
    """
    folder = root or data_folder()
    return [
        read_step(found, folder / "steps" / found.device) for found in benchmarks(folder) if found.document.get("step")
    ]


def read_step(benchmark: RecordedBenchmark, folder: Path) -> RecordedStep:
    """The step in a document; `folder` may hold traces of the same run."""
    source = benchmark.path.name
    results = read_results(benchmark.document, source)
    traces = _traces(folder, benchmark.manifest)
    try:
        step = results.step
        layers = {kind: sum(ORDER[i % len(ORDER)] == kind for i in range(step["layers"])) for kind in KINDS}
        return RecordedStep(
            benchmark.manifest,
            results.conditions,
            Sizes(**step["sizes"]),
            step["layers"],
            step["recurrence"],
            tuple(_rows(results, traces)),
            tuple(_check(entry, layers, traces) for entry in step["predictions"]),
            traces,
        )
    except (KeyError, TypeError) as error:
        raise ManifestError(f"{source}: its step has another format ({error}); measure again") from error


def _traces(folder: Path, manifest: Manifest) -> dict[tuple[str, int], Path]:
    """The traces in `folder` if they are of the run of `manifest`."""
    if not (folder / MANIFEST_NAME).exists():
        return {}
    found = verify(folder)
    if (found.date, found.machine, found.command) != (manifest.date, manifest.machine, manifest.command):
        return {}
    return {(str(file.labels["variant"]), int(file.labels["tokens"])): folder / file.name for file in found.files}


def _rows(results: Results, traces: dict[tuple[str, int], Path]) -> list[StepRow]:
    opaque = {row.tokens: row.median_us for row in results.rows if row.variant == "opaque"}
    peaks = {(entry["tokens"], entry["variant"]): entry["peak_bytes"] for entry in results.step["memory"]}
    blocks = _blocks(results.step["blocks"], traces)
    order = list(STEP_VARIANTS)
    return [
        StepRow(
            row.tokens,
            row.variant,
            row.median_us,
            row.p10_us,
            row.p90_us,
            *(_saved(time, opaque.get(row.tokens)) for time in (row.median_us, row.p90_us, row.p10_us)),
            blocks.get((row.tokens, row.variant), {}),
            peaks.get((row.tokens, row.variant)),
        )
        for row in sorted(results.rows, key=lambda row: (row.tokens, order.index(row.variant)))
    ]


def _saved(us: float, opaque_us: float | None) -> float | None:
    return None if opaque_us is None else 1.0 - us / opaque_us


def _blocks(
    entries: list[dict[str, Any]], traces: dict[tuple[str, int], Path]
) -> dict[tuple[int, str], dict[str, BlockKernels]]:
    """(tokens, variant) -> kind -> kernels; copies from the traces where the document does not count them."""
    found: dict[tuple[int, str], dict[str, BlockKernels]] = {}
    for entry in entries:
        tokens, variant, kind = entry["tokens"], entry["variant"], entry["kind"]
        counts = block_counts(entry)
        if counts.copies is None and (variant, tokens) in traces:
            counts = BlockKernels(**kernel_counts(block_kernels(read_trace(traces[variant, tokens]))[kind]))
        found.setdefault((tokens, variant), {})[kind] = counts
    return found


def _check(entry: dict[str, Any], layers: dict[str, int], traces: dict[tuple[str, int], Path]) -> SavingCheck:
    check, tokens = saving_check(entry), entry["tokens"]
    if check.parts is None and {("opaque", tokens), ("fused", tokens)} <= traces.keys():
        opaque, fused = (block_kernels(read_trace(traces[name, tokens])) for name in ("opaque", "fused"))
        return replace(check, parts=saved_parts(opaque, fused, layers, check.measured_us))
    return check


def block_counts(entry: dict[str, Any]) -> BlockKernels:
    """The kernels in an entry of a document's `blocks`."""
    return BlockKernels(entry["kernels"], entry["quantisations"], entry.get("copies"))


def saving_check(entry: dict[str, Any]) -> SavingCheck:
    """The check in an entry of a document's `predictions`."""
    numbers = (entry[name] for name in ("tokens", "sites", "step_us", "predicted_us", "measured_us"))
    parts = entry.get("parts")
    return SavingCheck(*numbers, None if parts is None else SavedParts(**parts))
