"""A run with scripted times: what is compared, timed, predicted, called wrong, and what its document says."""

import os
from dataclasses import replace

import pytest
import torch

from fusionlab.observe.bench.results import Results, read_results
from fusionlab.observe.bench.timer import CAPTURES
from fusionlab.observe.manifest import Machine, make_manifest
from fusionlab.observe.model import model_run
from fusionlab.observe.model.expert_sums import expert_sums
from fusionlab.observe.model.model_run import PREFILL_CAPTURES, CompiledModel, ModelRun, ModelSettings
from fusionlab.observe.model.model_text import model_text, tuning_table
from fusionlab.observe.model.recorded_model import read_model
from fusionlab.observe.model.workload import DECODE, PREFILL, Work, Workload, forward
from fusionlab.observe.step.step_variants import STEP_VARIANTS
from fusionlab.observe.trace import Kernel
from tests.lab.observe.bench.fakes import FakeTimer
from tests.lab.observe.model.small_qwen import CONTEXT, embedded, pair, small, uncompiled, until_the_pass

DECODES, PROMPT = Workload(DECODE, 2), Workload(PREFILL, 9)
SETTINGS = ModelSettings((DECODES, PROMPT), rounds=4, device="cpu", context=CONTEXT)
H100 = Machine("NVIDIA H100", "gpu", "580.1", "2.11.0", "3.6.0", "13.0")


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch):
    monkeypatch.setattr(model_run, "make_model", lambda *arguments: small())
    monkeypatch.setattr(model_run, "forward", embedded)
    monkeypatch.setattr(model_run, "compiled", uncompiled)
    monkeypatch.setattr(model_run.CompiledModel, "problem", lambda self, model: None)


def scripted(*microseconds):
    """A timer that takes as long for every capture of the variants: of the step's, then of the prompt's."""
    captures = [us for us in microseconds for _ in range(CAPTURES)] + [
        10 * us for us in microseconds for _ in range(PREFILL_CAPTURES)
    ]
    return FakeTimer(dict(enumerate(captures)))


def run(tmp_path, timer=None, settings=SETTINGS):
    results, said = Results({}), []
    ModelRun(settings, timer, results, tmp_path, said.append).all()
    return results, said


def test_every_variant_is_compared_and_timed_for_every_workload(tmp_path):
    results, said = run(tmp_path, scripted(40.0, 30.0, 20.0))
    found = results.model
    assert not results.skipped and not results.rows
    order = [(phase, tokens, name) for phase, tokens in (("decode", 2), ("prefill", 9)) for name in SETTINGS.variants]
    assert [(each["phase"], each["tokens"], each["variant"]) for each in found["times"]] == order
    assert [each["samples"] for each in found["times"]] == [4 * CAPTURES] * 3 + [4 * PREFILL_CAPTURES] * 3
    gains = [each["share"] for each in found["gains"]]
    assert gains == pytest.approx([0.0, 0.25, 0.5] * 2, abs=0.02)
    assert all(each["relative"] == 0.0 for each in found["outputs"]) and len(found["outputs"]) == 6
    assert (found["layers"], found["layers_of_all"], found["sizes"]["hidden_size"]) == (4, 4, 256)
    assert any(line.startswith("timed    decode of 2 sequences: opaque") for line in said)


def test_the_fastest_of_several_compilations_is_measured(tmp_path, monkeypatch):
    """Each compile is tuned in caches of its own, and the step that is timed is the one that was fastest."""
    made, caches = [], []

    def compile_nothing(function, fusion):
        def run(*arguments):
            made.append(number)
            return function(*arguments)

        number = len(caches)
        caches.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        return run

    monkeypatch.setattr(model_run, "compiled", compile_nothing)
    # The captures of three compilations of each of three variants, one after the other, then what is measured.
    choice = [us for us in (30.0, 20.0, 25.0, 9.0, 8.0, 7.0, 5.0, 6.0, 7.0) for _ in range(CAPTURES)]
    timer = FakeTimer(dict(enumerate(choice)))
    results, _ = run(tmp_path, timer, replace(SETTINGS, workloads=(DECODES,), compilations=3))
    assert len(set(caches)) == 9 and not results.skipped
    medians = {each["variant"]: each["median_us"] for each in results.model["compilations"]}
    scale = 1.1  # the fake timer's noise
    assert medians["opaque"] == pytest.approx([20.0 * scale, 25.0 * scale, 30.0 * scale])
    assert medians["fused"] == pytest.approx([5.0 * scale, 6.0 * scale, 7.0 * scale])
    assert set(made[-3 * CAPTURES :]) == {1, 5, 6}  # the last calls are those that were captured to be timed
    assert [each["variant"] for each in results.model["sites"]] == ["gated_norm", "fused"]


@pytest.mark.parametrize("failing", ["compile", "capture"])
def test_a_variant_of_which_one_compilation_fails_is_left_out(tmp_path, monkeypatch, failing):
    """The second of the fused ones: at its first call, which compiles, or where it is captured to choose."""
    fused, calls = [], []

    def compile_nothing(function, fusion):
        def run(*arguments):
            if number == 2:
                calls.append(None)
            if number == 2 and len(calls) > (0 if failing == "compile" else 2):
                raise RuntimeError("no such launch")
            return function(*arguments)

        if fusion is not None and len(fusion.fusions) > 1:
            fused.append(run)
        number = len(fused) if fusion is not None and len(fusion.fusions) > 1 else 0
        return run

    monkeypatch.setattr(model_run, "compiled", compile_nothing)
    results, _ = run(tmp_path, FakeTimer(), replace(SETTINGS, workloads=(DECODES,), compilations=3))
    (entry,) = results.skipped
    assert (entry.variant, entry.wrong) == ("fused", False) and "no such launch" in entry.why
    assert {each["variant"] for each in results.model["times"]} == {"opaque", "gated_norm"}
    assert [each["variant"] for each in results.model["compilations"]] == ["opaque", "gated_norm"]


def test_one_compilation_is_not_timed_to_choose(tmp_path):
    results, _ = run(tmp_path, scripted(40.0, 30.0, 20.0))
    assert results.model["compilations"] == []


def test_all_tokens_of_the_longest_prompt_are_compared(tmp_path, monkeypatch):
    """A run in another order is put back, and the rounded runs, these alone, are compiled with eager's roundings."""
    roundings = []

    def compile_nothing(function, fusion):
        roundings.append(torch._inductor.config.emulate_precision_casts)
        return function

    monkeypatch.setattr(model_run, "compiled", compile_nothing)
    results, _ = run(tmp_path)
    found = results.model["accuracy"]
    assert [(each["variant"], each["against"]) for each in found] == [
        ("gated_norm", "opaque"),
        ("fused", "opaque"),
        ("opaque_rounded", "opaque"),
        ("fused_rounded", "opaque_rounded"),
        ("opaque_other_order", "opaque"),
        ("opaque_rounded_other_order", "opaque_rounded"),
    ]
    assert all(each["phase"] == "prefill" and each["tokens"] == 9 for each in found)
    # Words are only looked up, with no sum that an order could change.
    assert all(each["top1"] == 1.0 and each["kl"]["most"] == 0.0 for each in found) and not results.model["times"]
    assert roundings == [False] * 6 + [True] * 2 and not results.skipped


def test_an_error_that_roundings_do_not_hide_is_wrong(tmp_path, monkeypatch):
    """Of four layers, where a wrong norm is seen; one that only the rounded run would show must be found in it."""

    def with_errors(function, fusion):
        def run(*arguments):
            hidden = function(*arguments)
            return hidden + 0.2 * hidden.flip(-1) if fusion is not None else hidden

        return run if torch._inductor.config.emulate_precision_casts else function

    monkeypatch.setattr(model_run, "compiled", with_errors)
    results, _ = run(tmp_path)
    (entry,) = results.skipped
    assert (entry.case, entry.variant, entry.wrong) == (str(PROMPT), "fused_rounded", True)
    assert "0.05 is the most" in entry.why


def test_a_rounded_run_that_lacks_a_site_is_not_compared(tmp_path, monkeypatch):
    def problem(self, model):
        rounded = torch._inductor.config.emulate_precision_casts
        return "lacks a site" if rounded and self.fusion is not None else None

    monkeypatch.setattr(model_run.CompiledModel, "problem", problem)
    results, _ = run(tmp_path)
    assert [(entry.variant, entry.wrong) for entry in results.skipped] == [("fused_rounded", True)]
    assert "fused_rounded" not in {each["variant"] for each in results.model["accuracy"]}


def test_another_result_is_wrong_and_not_timed(tmp_path, monkeypatch):
    def with_errors(function, fusion):
        return function if fusion is None else lambda *arguments: -function(*arguments)

    monkeypatch.setattr(model_run, "compiled", with_errors)
    results, _ = run(tmp_path, FakeTimer())
    assert {(entry.variant, entry.wrong) for entry in results.skipped} == {("gated_norm", True), ("fused", True)}
    assert {each["variant"] for each in results.model["times"]} == {"opaque"}


def test_a_variant_that_does_not_compile_is_skipped_by_name(tmp_path, monkeypatch):
    def fails(function, fusion):
        def run(*arguments):
            raise RuntimeError("no code for this")

        return function if fusion is None or len(fusion.fusions) > 1 else run

    monkeypatch.setattr(model_run, "compiled", fails)
    results, _ = run(tmp_path, FakeTimer())
    assert [(entry.case, entry.variant, entry.why, entry.wrong) for entry in results.skipped] == [
        (str(workload), "gated_norm", "RuntimeError: no code for this", False) for workload in (DECODES, PROMPT)
    ]
    assert len(results.model["times"]) == 4


def ran(name, start, duration):
    return Kernel(name, "kernel", start, duration, *[None] * 12)


def test_what_was_predicted_is_checked_and_explained(tmp_path, monkeypatch):
    """A norm of 2 us and, 1 us later, its quantisation of 3, which fuse to 3 us: 4 are predicted and 5 measured."""
    kernels = {
        "opaque": (ran("norm_1", 0, 2), ran("group_quant_kernel", 3, 3), ran("gemm", 7, 10)),
        "fused": (ran("rms_norm_group_quant_kernel", 0, 3), ran("gemm", 4, 10)),
    }
    results = Results({})
    settings = ModelSettings((DECODES,), ("opaque", "fused"), 4, device="cpu", context=CONTEXT)
    made = ModelRun(settings, FakeTimer(), results, tmp_path, lambda line: None)
    work = Work(small(), DECODES, CONTEXT, 0)
    made.gains(work, {"opaque": 50.0, "fused": 45.0}, kernels)
    (found,) = results.model["predictions"]
    assert (found["phase"], found["tokens"], found["sites"]) == ("decode", 2, 1)
    assert (found["predicted_us"], found["measured_us"], found["residual_us"]) == (4.0, 5.0, 1.0)
    parts = found["parts"]
    assert (parts["replaced_us"], parts["fused_us"], parts["other_gaps_us"], parts["unseen_us"]) == (2.0, 3.0, 0.0, 2.0)
    named = model_run._by_name((*kernels["opaque"], ran("norm_22", 20, 1.5)))
    assert named == {"norm": [2, 3.5], "group_quant_kernel": [1, 3.0], "gemm": [1, 10.0]}


def test_a_step_is_captured_as_often_as_memory_allows(tmp_path, monkeypatch):
    settings = ModelSettings((DECODES,), device="cuda", context=CONTEXT)
    made = ModelRun(settings, None, Results({}), tmp_path)
    work = Work(small(), DECODES, CONTEXT, 0)
    made.found["memory"] = [
        {"phase": phase, "tokens": 2, "variant": name, "peak_bytes": size}
        for phase, name, size in (("decode", "opaque", 100), ("decode", "fused", 90), ("prefill", "opaque", 1000))
    ]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    captures = []
    for free in (100, 1000, 100_000):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, free))
        captures.append(made._captures(work, made._peaks(work)))
    assert captures == [1, 3, CAPTURES]  # 0.7 of 1000 bytes are three times 100 and 90


def test_every_site_of_the_model_must_fuse(monkeypatch):
    """The graph of a decode step, up to code: a linear layer has three norms and a full one five; one lacks them."""
    monkeypatch.undo()
    model = pair()
    work = Work(model, DECODES, CONTEXT, 0)
    fusion = STEP_VARIANTS["fused"].make_pass()
    with torch.no_grad():
        expected = work.first(forward(model))
        assert torch.equal(work.first(until_the_pass(forward(model), fusion)), expected)
    assert fusion.report().fused_by == {"rms_norm": 8, "gated_norm": 1, "act_and_mul": 2, "sigmoid_gate": 1}
    assert CompiledModel(STEP_VARIANTS["fused"], forward(model), fusion).problem(model) is None
    other = CompiledModel(STEP_VARIANTS["gated_norm"], forward(model), fusion).problem(model)
    assert "where {'gated_norm': 1} was expected" in other
    assert CompiledModel(STEP_VARIANTS["opaque"], forward(model), None).problem(model) is None


def test_the_document_is_read_back_and_told(tmp_path):
    results, _ = run(tmp_path, scripted(40.0, 30.0, 20.0))
    results.model["sites"] = [
        {"phase": "decode", "tokens": 2, "variant": "fused", "fused": {"rms_norm": 14}, "refused": 0}
    ]
    results.model["kernels"] = [
        {
            **{"phase": "decode", "tokens": 2, "variant": "fused", "kernels": 80, "quantisations": 3, "copies": 1},
            "by_name": {
                "triton_per_fused__to_copy_index_mul_sum_view": [1, 3.5],
                "triton_per_fused__to_copy_add_index_mul_sigmoid_sum_view": [3, 19.5],
                "triton_per_fused__to_copy_mean_pow_view": [4, 8.0],
            },
        }
    ]
    results.model["memory"][2]["peak_bytes"] = 7_600_000
    manifest = make_manifest("fusionlib bench --model qwen3_next", 0, machine=H100)
    recorded = read_model(read_results(results.document(manifest), "x"), manifest, "x")
    row = recorded.find(DECODES, "fused")
    assert row.saved == pytest.approx(0.5, abs=0.02) and row.fused == {"rms_norm": 14} and row.kernels.kernels == 80
    assert recorded.compared("fused", "opaque").distance.top1 == 1.0 and recorded.compared("fused", "x") is None
    text = model_text(recorded)
    (line,) = [line for line in text.splitlines() if line.startswith("decode of 2 sequences") and "all fused" in line]
    assert line.split()[6:7] == [f"{row.median_us:.0f}"] and "14, 0 refused" in line and line.endswith("7.6")
    assert f"{row.saved:+.1%}" in line and "4 of 4 layers (100%)" in text and "NVIDIA H100" in text
    sums = {(each.variant, each.with_shared): (each.calls, each.us) for each in expert_sums(recorded)}
    assert sums == {("fused", False): (1, 3.5), ("fused", True): (3, 6.5)}
    (line,) = [line for line in tuning_table(recorded).splitlines() if line.startswith("decode of 2 sequences")]
    assert line.split()[4:] == ["3.50", "(1)", "6.50", "(3)"] and line in text
    table = {line.split("  ")[0].strip(): line.split() for line in text.splitlines() if " / " in line}
    assert table["all fused, rounded / opaque, rounded"][-4:] == ["0.0e+00", "0.0e+00", "100.0%", "0.00"]
    assert {
        "opaque, sums in another order / opaque",
        "opaque, rounded, sums in another order / opaque, rounded",
    } <= set(table)
