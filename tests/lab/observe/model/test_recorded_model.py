"""What data/README.md and the README say of a whole model is what was recorded."""

import re
from pathlib import Path

import pytest

from fusionlab.checkout import repository_root
from fusionlab.observe import evidence
from fusionlab.observe.bench.results import read_results
from fusionlab.observe.model.expert_sums import expert_sums
from fusionlab.observe.model.model_text import tuning_table
from fusionlab.observe.model.recorded_model import read_model
from fusionlab.observe.model.workload import DECODE, PREFILL, Workload

ROOT = repository_root(Path(__file__))
FILES = {
    12: "nvidia-h100-80gb-hbm3-model.json",
    20: "further/nvidia-h100-80gb-hbm3-model-3.json",
    8: "further/nvidia-h100-80gb-hbm3-model-1.json",
    "4 layers": "further/nvidia-h100-80gb-hbm3-model-2.json",
    "three compiles": "further/nvidia-h100-80gb-hbm3-model-4.json",
}
TAILS = {12: "", 20: ", 20 layers", 8: ", 8 layers", "three compiles": ", 4 layers, the fastest of three compiles"}
SITES = {4: 22, 8: 44, 12: 66, 20: 110}
FOUR = Workload(DECODE, 4)


def results_of(which):
    found = evidence.read_benchmark(ROOT / "data" / "benchmarks" / FILES[which])
    return read_results(found.document, FILES[which]), found.manifest, FILES[which]


@pytest.fixture(scope="module")
def runs():
    return {which: read_model(*results_of(which)) for which in FILES}


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "data" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def prose(readme):
    return " ".join(readme.split())


def row_of(text, workload, tail, cells):
    """Whether `text` has a table's row of a workload with these cells."""
    what = "decode" if workload.phase == DECODE else "prompt"
    line = rf"^\| {what}.* {workload.tokens}( sequence)?{tail} \| {re.escape(' | '.join(cells))} \|"
    return re.search(line, text, re.MULTILINE) is not None


@pytest.mark.parametrize("which", TAILS)
def test_milliseconds_and_shares_are_in_the_table_and_every_site_fused(runs, readme, which):
    recorded = runs[which]
    assert recorded.checks
    for check in recorded.checks:
        rows = [recorded.find(check.workload, name) for name in ("opaque", "gated_norm", "fused")]
        cells = ["-" if row is None else f"{row.median_us / 1000:.3f}" for row in rows]
        cells += ["-" if row is None else f"{row.saved * 100:.1f} %" for row in rows[1:]]
        cells.append(f"{check.saving.predicted_us / check.saving.step_us * 100:.1f} %")
        assert row_of(readme, check.workload, TAILS[which], cells)
        assert all(row.refused == 0 for row in rows if row is not None)
        assert sum(rows[2].fused.values()) == SITES[recorded.layers] == check.saving.sites


def test_distances_of_logits_are_in_the_table(runs, readme, prose):
    for name, against, words in (
        ("fused", "opaque", "all fused beside opaque"),
        ("gated_norm", "opaque", "gated norm fused beside opaque"),
        ("opaque_rounded", "opaque", "opaque with eager's roundings beside opaque"),
        ("opaque_other_order", "opaque", "opaque, its channels and so its sums in another order, beside opaque"),
        ("fused_rounded", "opaque_rounded", "all fused beside opaque, both with eager's roundings"),
        (
            "opaque_rounded_other_order",
            "opaque_rounded",
            "opaque, its sums in another order, beside opaque, both with eager's roundings",
        ),
    ):
        found = runs[12].compared(name, against).distance
        assert f"| {words} | {found.kl.mean:.3f} | {found.top1 * 100:.1f} % |" in readme
    pairs = ("fused_rounded", "opaque_rounded"), ("opaque_other_order", "opaque")
    near, noise = (runs["4 layers"].compared(*pair).distance for pair in pairs)
    words = f"these two were {near.kl.mean:.4f} and {noise.kl.mean:.4f}, and the likeliest word the same for "
    assert f"{words}{near.top1 * 100:.1f} and {noise.top1 * 100:.1f} %" in prose


def test_the_front_page_has_the_same_shares(runs):
    front = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    whole = runs[12]
    steps = [whole.find(Workload(DECODE, count), "fused").saved * 100 for count in (1, 4, 16)]
    shares = "{:.1f}, {:.1f} and {:.1f} % shorter for 1, 4 and 16 sequences".format(*steps)
    reading = whole.find(Workload(PREFILL, 8192), "fused").saved * 100
    assert f"{shares}; a prompt of 8192 tokens {reading:.1f} %" in front and "66 of 66 quantisations fuse" in front
    assert f"{whole.layers} of {whole.layers_of_all} layers" in front


def test_what_the_gated_norm_saves_of_a_layer_varies_between_runs(runs, prose):
    layers = []
    for which, of_linear_attention in ((12, 9), (20, 15), ("4 layers", 3), ("three compiles", 3)):
        opaque, gated = (runs[which].find(FOUR, name).median_us for name in ("opaque", "gated_norm"))
        layers.append((opaque - gated) / of_linear_attention)
    words = "saves {:.1f}, {:.1f}, {:.1f} and {:.1f} us in each of its layers".format(*layers)
    assert words in prose
    shares = [runs[12].find(FOUR, name).saved * 100 for name in ("gated_norm", "fused")]
    assert "is missed: {:.1f} and {:.1f} %.".format(*shares) in prose


def test_what_differs_from_the_prediction_is_in_the_prose(runs, prose):
    parts = {check.workload: check.saving.parts for check in runs[12].checks}
    shorter = {workload: each.replaced_us - each.fused_us for workload, each in parts.items()}
    assert f"are also {shorter[Workload(PREFILL, 8192)]:.0f} us shorter than" in prose
    longer = [-us for workload, us in shorter.items() if workload.phase == DECODE]
    assert f"in a decode step they are {min(longer):.0f} to {max(longer):.0f} us longer" in prose
    shared = [each.shared_us for each in parts.values()]
    assert f"Kernels of the same name took {min(shared):.0f} to {max(shared):.0f} us less" in prose


def test_what_is_not_explained_was_measured(runs, prose):
    prompt, many = Workload(PREFILL, 1024), Workload(DECODE, 16)
    (check,) = [each.saving for each in runs[20].checks if each.workload == prompt]
    slower = -runs[20].find(prompt, "fused").saved * 100
    more = (check.parts.fused_us - check.parts.replaced_us) / 1000
    assert f"a prompt of 1024 got {slower:.1f} % slower, by {more:.1f} ms in kernels that only the fused" in prose
    assert runs[20].find(many, "gated_norm").saved > runs[20].find(many, "fused").saved
    faster = {f"{runs[which].find(prompt, 'fused').saved * 100:.1f}" for which in (12, 8)}
    assert faster == {"1.2"} and "With 12 and with 8 layers the prompt is 1.2 % faster" in prose
    sums = [each.us for which in (12, 8) for each in expert_sums(runs[which]) if each.workload == prompt]
    assert f"have this sum at {min(sums):.0f} to {max(sums):.0f} us, all five" in prose


def test_memory_differs_by_a_rounding(runs, prose):
    pairs = [
        (row.peak_bytes, fused.peak_bytes)
        for recorded in runs.values()
        for row in recorded.rows
        if row.variant == "opaque" and (fused := recorded.find(row.workload, "fused")) is not None
    ]
    apart = max(abs(opaque - fused) for opaque, fused in pairs)
    sizes = [opaque / 1e6 for opaque, _ in pairs]
    assert f"differs by at most {apart / 1e6:.2f} MB of {min(sizes):.0f} to {max(sizes):.0f}" in prose


def test_the_sum_over_experts_is_the_recorded_one(runs, readme, prose):
    """Microseconds of one layer: plain in three compiles, and with the shared expert in it once the norm is fused."""
    sums = {(each.workload, each.variant, each.with_shared): each for each in expert_sums(runs[12])}
    assert len(sums) == 28
    for workload in {each[0] for each in sums}:
        step = [sums[workload, name, False] for name in ("opaque", "gated_norm", "fused")]
        step.append(sums[workload, "fused", True])
        assert [each.calls for each in step] == [12, 12, 1, 11]
        assert row_of(readme, workload, "", [f"{each.us:.2f}" for each in step])
    drawn, opaque = sums[FOUR, "fused", True], sums[FOUR, "opaque", False]
    saved = runs[12].find(FOUR, "opaque").median_us - runs[12].find(FOUR, "fused").median_us
    assert f"costs the fused step 11 times {drawn.us - opaque.us:.0f} us, beside the {saved:.0f} that it saves" in prose
    many = Workload(DECODE, 16)
    gated = sums[many, "gated_norm", False].us - sums[many, "opaque", False].us
    saved = runs[12].find(many, "opaque").median_us - runs[12].find(many, "gated_norm").median_us
    assert f"the gated norm's step 12 times {gated:.1f} us, beside its {saved:.0f}." in prose
    (few,) = [each.us for each in expert_sums(runs["three compiles"]) if each.with_shared]
    results, _, _ = results_of("three compiles")
    apart = [100 * (each["median_us"][-1] / each["median_us"][0] - 1) for each in results.model["compilations"]]
    words = f"has it at {few:.2f} us with the shared expert, where {drawn.us:.2f} were drawn here."
    assert f"{words} Those three compiles lie {min(apart):.1f} to {max(apart):.1f} % of the step apart" in prose
    assert expert_sums(runs[20]) == [] and tuning_table(runs[20]) == ""  # no names were recorded
