"""The text: every number in its place, and what was not measured reported once."""

from fusionlab.observe.bench.results import Results, Skipped, SweepRow
from fusionlab.observe.bench.targets import as_json, verdicts
from fusionlab.observe.bench.text import aligned, text
from fusionlab.observe.manifest import Machine, make_manifest
from tests.lab.observe.bench.fakes import row

H200 = Machine("NVIDIA H200", "gpu", "570.1", "2.11.0", "3.6.0", "12.8")
MANIFEST = make_manifest("fusionlib bench", 0, machine=H200)


def test_the_tables():
    results = Results({}, [row("eager", 20.0), row("two_kernel", 5.0), row("fused", 2.0), row("light", 1.5)])
    results.rows += [row("fused", 3.0, 8192), row("light", 2.97, 8192), row("fused", 9.0, context="chain", gb_s=None)]
    results.rows += [row("baseline", 7.0, context="chain", gb_s=None)]
    results.verdicts = as_json(verdicts(results))
    results.skipped = [Skipped("a", "aiter", "no module"), Skipped("b", "aiter", "no module")]
    results.skipped += [Skipped("a", "inductor", "2 FP8 steps", wrong=True)]
    results.sweep = [
        SweepRow("a", 128, 32, "fused", {"rows": 1, "num_warps": 1}, 2.0, 1.9, 2.1, False),
        SweepRow("a", 128, 32, "fused", {"rows": 2, "num_warps": 1}, 2.5, 2.4, 2.6, True),
    ]
    results.dependent = [{"tokens": 64, "plain_us": 3.4, "dependent_us": 3.1}]
    said = text(results, make_manifest("fusionlib bench", 0, machine=H200))
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[0].startswith("NVIDIA H200, driver 570.1, torch 2.11.0, triton 3.6.0, ")
    assert "32x128, gate contiguous, alone: us, median (p10-p90)" in lines
    assert "tokens eager two_kernel fused light light/fused two_kernel/fused fused GB/s" in lines
    fused = "2.00 (1.80-2.20) 1.50 (1.35-1.65) 0.75 2.50 0"
    assert f"64 20.00 (18.00-22.00) 5.00 (4.50-5.50) {fused}" in lines
    assert "8192 - - 3.00 (2.70-3.30) 2.97 (2.67-3.27) 0.99 - 0" in lines
    assert "64 9.00 (8.10-9.90) 7.00 (6.30-7.70)" in lines  # no ratio and no bandwidth in a chain
    assert "share of the light 64 >= 0.85 0.75 missed" in lines
    assert "share of the light 8192 >= 0.98 0.99 met" in lines
    assert "AITER / ours 64 >= 1.25 - not measured" in lines
    assert "aiter (2 cases): no module" in lines and "inductor (1 case): wrong: 2 FP8 steps" in lines
    assert "a fused 1 rows, 1 warps 2.00 2.50 0.80" in lines
    assert "64 3.40 3.10" in lines
    assert max(map(len, said.splitlines())) <= 160


def test_thresholds_are_read_from_shares_of_the_best():
    """At 32 units one row is best, at 8192 units eight are; the line that serves both comes first."""
    times = {(1, 32): 2.0, (1, 8192): 40.0, (4, 32): 2.5, (4, 8192): 25.0, (8, 32): 4.0, (8, 8192): 20.0}
    sweep = [
        SweepRow(f"s/{units}/contiguous/alone", 128, units, "fused", {"rows": rows, "num_warps": 1}, us, us, us, False)
        for (rows, units), us in times.items()
    ]
    lines = [" ".join(line.split()) for line in text(Results({}, sweep=sweep), MANIFEST).splitlines()]
    start = lines.index("sweep, units of 128: share of the best launch, by units of the call")
    assert lines[start + 1 : start + 5] == [
        "32 8192",
        "4 rows, 1 warps 0.80 0.80",
        "1 rows, 1 warps 1.00 0.50",
        "8 rows, 1 warps 0.50 1.00",
    ]


def test_nothing_measured_is_said_without_tables():
    said = text(Results({}), make_manifest("fusionlib bench", 0, machine=H200))
    assert len(said.splitlines()) == 1


def test_columns_are_as_wide_as_their_widest_cell():
    assert aligned([["a", "b"], ["long", "1"], ["x", "22"]]) == ["a      b", "long   1", "x     22"]


def test_each_producers_launches_are_compared_among_themselves():
    sweep = [
        SweepRow(f"{shape}/64/{layout}/alone", unit, 64, "fused", {"rows": 1, "num_warps": 4}, us, us, us, False)
        for shape, layout, unit, us in (
            ("32x128", "contiguous", 128, 1.0),
            ("silu_512", "strided", 128, 2.0),
            ("add_norm_2048", "contiguous", 2048, 3.0),
            ("norm_2048", "contiguous", 2048, 4.0),
            ("32x128", "strided", 128, 0.5),
        )
    ]
    said = text(Results({}, sweep=sweep), MANIFEST)
    titles = [line.split(":")[0] for line in said.splitlines() if line.startswith("sweep, ")]
    assert titles == [
        "sweep, units of 128",
        "sweep, act_and_mul, units of 128",
        "sweep, rms_norm of a sum, units of 2048",
        "sweep, rms_norm, units of 2048",
    ]
    assert said.count(" 1.00") >= 4


def test_only_a_gate_is_called_one():
    rows = [row("fused", 2.0, shape="norm_2048"), row("fused", 2.0, shape="mamba2")]
    said = text(Results({}, rows), MANIFEST)
    assert "norm_2048, inputs contiguous, alone" in said and "mamba2, gate contiguous, alone" in said
