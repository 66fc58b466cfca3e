"""A run with scripted times and blocks that are not compiled: what is compared, timed, predicted, and called wrong."""

import json
from dataclasses import replace

import pytest
import torch

from fusionlab.observe import evidence
from fusionlab.observe.bench.results import Results, read_results, write_results
from fusionlab.observe.bench.timer import CAPTURES
from fusionlab.observe.manifest import Machine, make_manifest
from fusionlab.observe.step import step_run
from fusionlab.observe.step.decode_sizes import FULL, KINDS, LINEAR, SMALL
from fusionlab.observe.step.site_codes import SiteCodes
from fusionlab.observe.step.step_run import LISTS, StepRun, StepSettings, differences
from fusionlab.observe.step.step_text import step_text
from fusionlab.observe.step.step_variants import STEP_VARIANTS
from tests.lab.observe.bench.fakes import FakeTimer
from tests.lab.observe.step.recorded import PARTS
from tests.lab.observe.step.small_model import decoder, quick, uncompiled, weights
from tests.lab.observe.step.test_block_traces import KERNELS

SETTINGS = StepSettings((2, 3), rounds=4, device="cpu", sizes=SMALL, layers=4)
H200 = Machine("NVIDIA H200", "gpu", "570.1", "2.11.0", "3.6.0", "12.8")


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch):
    monkeypatch.setattr(step_run, "compile_block", quick)
    monkeypatch.setattr(step_run, "make_weights", lambda *arguments: weights())
    monkeypatch.setattr(step_run, "site_codes", lambda *arguments: [])


def scripted(*microseconds):
    """A timer that takes as long for every capture of the variants, in their order."""
    return FakeTimer({place: us for place, us in enumerate(us for us in microseconds for _ in range(CAPTURES))})


def run(tmp_path, timer=None, settings=SETTINGS, saved=None):
    results, said = Results({}), []
    made = StepRun(settings, timer, results, tmp_path, said.append, save=lambda: saved.append(None) if saved else None)
    return made, results, said


def test_every_variant_is_compared_and_timed_at_every_size(tmp_path):
    made, results, said = run(tmp_path, scripted(40.0, 50.0, 30.0, 20.0))
    made.all()
    assert not results.skipped
    assert [(row.tokens, row.variant) for row in results.rows] == [(t, v) for t in (2, 3) for v in STEP_VARIANTS]
    row = results.rows[0]
    assert (row.case, row.shape, row.context, row.samples) == ("step/2/strided/step", "step", "step", 4 * CAPTURES)
    assert row.bytes == SMALL.step_bytes(4, 2) and row.gb_s == pytest.approx(row.bytes / row.median_us / 1e3)
    gains = {entry["variant"]: entry["share"] for entry in results.step["gains"] if entry["tokens"] == 2}
    assert gains == pytest.approx({"opaque": 0.0, "inductor": -0.25, "gated_norm": 0.25, "fused": 0.5}, abs=0.02)
    outputs = results.step["outputs"]
    assert len(outputs) == 2 * 4 * 2 and all(entry["relative"] == 0.0 for entry in outputs)
    assert [entry["kind"] for entry in results.step["with_roundings"]] == list(KINDS)
    assert (results.step["layers"], results.step["share_of_layers"]) == (4, 1.0)
    assert any(line.startswith("timed    3 tokens: opaque") for line in said)


def test_no_single_capture_decides(tmp_path):
    """Each is a variant's sample: one that is slow by where its memory lies does not move the median."""
    slow = {0: 400.0, CAPTURES: 30.0}
    times = {place: 40.0 if place < CAPTURES else 20.0 for place in range(2 * CAPTURES)} | slow
    made, results, _ = run(tmp_path, FakeTimer(times), replace(SETTINGS, tokens=(2,), variants=("opaque", "fused")))
    made.all()
    assert [row.samples for row in results.rows] == [4 * CAPTURES] * 2
    gains = {entry["variant"]: entry["share"] for entry in results.step["gains"]}
    assert gains["fused"] == pytest.approx(0.5, abs=0.02)


def test_without_a_timer_nothing_is_timed(tmp_path):
    made, results, _ = run(tmp_path)
    made.all()
    assert not results.rows and not results.step["gains"] and results.step["outputs"]


def test_all_variants_start_from_the_same_states():
    model = decoder()
    before = [[tensor.clone() for tensor in state] for state in model.states]
    block = uncompiled(STEP_VARIANTS["opaque"], LINEAR)
    first, second = (step_run.block_result(model, block) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(
        torch.equal(a, b) for old, new in zip(before, model.states, strict=True) for a, b in zip(old, new, strict=True)
    )


def wrong(variant, kind):
    block = quick(variant, kind)
    if (variant.name, kind) != ("fused", FULL):
        return block
    return replace(block, run=lambda *a: tuple(1.2 * tensor for tensor in block.run(*a)))


def test_another_result_is_wrong_and_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(step_run, "compile_block", wrong)
    made, results, said = run(tmp_path, FakeTimer(), replace(SETTINGS, tokens=(2,)))
    made.all()
    assert [row.variant for row in results.rows] == ["opaque", "inductor", "gated_norm"]
    assert any("a full block's result is 0.2 from" in entry.why and entry.wrong for entry in results.skipped)
    assert any("with eager's roundings a full block" in entry.why for entry in results.skipped)
    assert any(line.startswith("WRONG    2 tokens fused") for line in said)


def test_another_number_of_sites_is_wrong_and_a_failing_compiler_is_not(tmp_path, monkeypatch):
    class Fusing:
        def __init__(self, block):
            self.kind, self.variant, self.run, self.fusion = block.kind, block.variant, block.run, None

        def problem(self):
            return "fused nothing" if self.variant.name == "gated_norm" else None

    def compile_block(variant, kind):
        block = Fusing(quick(variant, kind))
        if variant.name == "inductor":
            block.run = None
        return block

    monkeypatch.setattr(step_run, "compile_block", compile_block)
    made, results, _ = run(tmp_path, FakeTimer(), replace(SETTINGS, tokens=(2,)))
    made.all()
    assert [row.variant for row in results.rows] == ["opaque", "fused"]
    found = {entry.variant: (entry.wrong, entry.why) for entry in results.skipped}
    assert found["gated_norm"] == (True, "fused nothing")
    assert found["inductor"][0] is False and "NoneType" in found["inductor"][1]


def test_a_prediction_stands_beside_what_was_saved(tmp_path):
    made, results, _ = run(tmp_path, scripted(400.0, 390.0), replace(SETTINGS, variants=("opaque", "fused")))
    model = decoder()
    ready = {name: {kind: quick(STEP_VARIANTS[name], kind) for kind in KINDS} for name in ("opaque", "fused")}
    fused = {kind: (kernels[0], kernels[2]) for kind, kernels in KERNELS.items()}
    made.timed(model, ready, {"opaque": KERNELS, "fused": fused}, made.timer)
    (found,) = results.step["predictions"]
    assert (found["tokens"], found["sites"]) == (3, 4) and found["predicted_us"] == pytest.approx(14.0)
    assert found["residual_us"] == pytest.approx(found["measured_us"] - 14.0)
    parts = found["parts"]
    assert parts["quantised_us"] + parts["gaps_us"] == pytest.approx(14.0) and parts["fused"] == 0
    others = sum(parts[name] for name in ("replaced_us", "shared_us", "other_gaps_us", "unseen_us"))
    assert 14.0 + others == pytest.approx(found["measured_us"])


def test_codes_that_are_not_eagers_are_wrong(tmp_path, monkeypatch):
    from fusionlab.observe.bench.correctness import Agreement

    found = [SiteCodes("a site", "fused", "eager", True, Agreement(0.5, 1, 0.0, 0.0, 1 << 20))]
    monkeypatch.setattr(step_run, "site_codes", lambda *arguments: found)
    made, results, _ = run(tmp_path, settings=replace(SETTINGS, tokens=(2,)))
    made.all()
    assert [(entry.variant, entry.wrong) for entry in results.skipped] == [("fused", True)]
    assert results.step["codes"][0]["tokens"] == 2


def test_differences_are_relative_and_see_the_largest():
    a = torch.tensor([[3.0, 4.0]])
    found = differences((a, a + torch.tensor([[0.0, 0.5]])), (a, a))
    assert found == {"relative": pytest.approx(0.1), "most": 0.5, "largest": 4.0}


def test_what_is_written_is_read_and_shown(tmp_path):
    made, results, _ = run(tmp_path, scripted(40.0, 50.0, 30.0, 20.0), replace(SETTINGS, tokens=(2,)))
    made.all()
    results.step["blocks"] = [
        {"tokens": tokens, "variant": name, "kind": kind, "kernels": kernels, "quantisations": count, "copies": 3}
        for tokens, kernels in ((2, 26), (4, 9))  # rows of four are copied at 2
        for name, count in (("opaque", 4), ("fused", 0))
        for kind in KINDS
    ]
    results.step["memory"] = [{"tokens": 2, "variant": "opaque", "peak_bytes": 2_500_000}]
    results.step["codes"] = [
        {"tokens": 2, "site": "silu", "variant": "fused", "against": "eager", "fused": True, "codes_differ": 0.0,
         "steps": 0, "scales_differ": 0.0, "scale_error": 0.0, "compared": 9}
    ]  # fmt: skip
    results.step["predictions"] = [
        {"tokens": 2, "sites": 16, "step_us": 90.0, "predicted_us": 14.0, "measured_us": 12.5, "residual_us": -1.5,
         "parts": PARTS}
    ]  # fmt: skip
    manifest = make_manifest("fusionlib bench --step", 0, machine=H200)
    path = tmp_path / "nvidia-h200-step.json"
    write_results(path, results, manifest)
    read = read_results(evidence.read_benchmark(path).document, path.name)
    assert read.step == results.step and set(LISTS) < set(read.step) and read.rows == results.rows
    lines = [" ".join(line.split()) for line in step_text(read, manifest).splitlines()]
    assert "a decode step of 4 of 4 layers (100%), hidden 256, a dense MLP of 256, 16 tokens of context" in lines
    assert "tokens opaque inductor gated_norm fused" in lines
    times = lines[lines.index("tokens opaque inductor gated_norm fused") + 1]
    assert times.startswith(f"2 {read.rows[0].median_us:.1f} (") and times.endswith("+50.0%")
    assert "2 26 (4) + 26 (4) 26 (0) + 26 (0)" in lines and "2 2.5" in lines
    assert any(
        line.startswith("At 2 tokens a linear block has 26 kernels with “quantisation opaque”, at 4 tokens 9:")
        for line in lines
    )
    assert any("the 32 fused kernels take 10 µs less than the 38 kernels" in line for line in lines)
    assert "2 16 14.0 12.5 -1.5" in lines and "silu fused / eager yes 0.0e+00 0.0e+00 0" in lines
    assert "2 0.0e+00 + 0.0e+00 0.0e+00 + 0.0e+00 0.0e+00 + 0.0e+00" in lines
    assert json.loads(path.read_text())["step"]["recurrence"] == weights().recurrence
