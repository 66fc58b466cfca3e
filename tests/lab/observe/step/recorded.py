"""A made-up recorded step: times and counts at 2 and 16 tokens, of 8 of 48 layers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from fusionlab.observe import evidence
from fusionlab.observe.bench.results import Results, Row, write_results
from fusionlab.observe.manifest import Machine, make_manifest
from fusionlab.observe.step.decode_sizes import KINDS, QWEN3_NEXT
from fusionlab.observe.step.recorded_step import RecordedStep, recorded_steps

H200 = Machine("NVIDIA H200", "gpu", "570.1", "2.11.0", "3.6.0", "12.8")
COMMAND = "fusionlib bench --step --layers 8"
#: tokens -> variant -> 10th percentile, median, 90th.
TIMES = {
    16: {"opaque": (1990, 2000, 2020), "inductor": (2070, 2080, 2100), "fused": (1890, 1900, 1940)},
    2: {
        "opaque": (995, 1000, 1010),
        "inductor": (1030, 1040, 1050),
        "gated_norm": (970, 980, 985),
        "fused": (895, 900, 910),
    },
}
PARTS = {
    "quantised_us": 50.0, "gaps_us": 20.0, "replaced_us": 90.0, "fused_us": 80.0, "shared_us": 12.0,
    "other_gaps_us": 3.0, "unseen_us": 5.0, "replaced": 38, "fused": 32,
}  # fmt: skip


def results() -> Results:
    rows = [
        Row("step", "step", tokens, "strided", "step", name, median, low, high, 10, 1, 1000, 1.0)
        for tokens, times in TIMES.items()
        for name, (low, median, high) in times.items()
    ]
    blocks = [
        {"tokens": tokens, "variant": "opaque", "kind": kind, "kernels": kernels, "quantisations": 4, "copies": copies}
        for tokens, kernels, copies in ((2, 43, 20), (16, 26, 3))
        for kind in KINDS
    ]
    step = {
        "sizes": asdict(QWEN3_NEXT),
        "layers": 8,
        "share_of_layers": 8 / 48,
        "recurrence": "a recurrence",
        "blocks": blocks,
        "memory": [{"tokens": 2, "variant": "fused", "peak_bytes": 2_200_000}],
        "gains": [],
        "outputs": [],
        "with_roundings": [],
        "codes": [],
        "predictions": [
            {"tokens": 2, "sites": 32, "before_us": 4.0, "after_us": 2.0, "step_us": 1000.0, "predicted_us": 70.0,
             "measured_us": 100.0, "residual_us": 30.0, "parts": PARTS},
            {"tokens": 16, "sites": 32, "before_us": 5.0, "after_us": 1.0, "step_us": 2000.0, "predicted_us": 120.0,
             "measured_us": 100.0, "residual_us": -20.0, "parts": None},
        ],
    }  # fmt: skip
    return Results({"timing": "replays"}, rows, step=step)


def write(root: Path, found: Results | None = None) -> RecordedStep:
    """Write it to a data folder and read it back."""
    (root / "benchmarks").mkdir(parents=True, exist_ok=True)
    path = root / "benchmarks" / "nvidia-h200-step.json"
    write_results(path, found or results(), make_manifest(COMMAND, 0, machine=H200))
    assert len(evidence.benchmarks(root)) == 1
    (recorded,) = recorded_steps(root)
    return recorded
