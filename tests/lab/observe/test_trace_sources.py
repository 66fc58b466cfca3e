"""Which traces a notebook shows: recordings if there are any, otherwise the local CPU."""

import gzip
import json
from dataclasses import replace

import pytest

from fusionlab.observe import evidence
from fusionlab.observe.bench.cases import BASE
from fusionlab.observe.bench.results import Results, Row, write_results
from fusionlab.observe.manifest import Machine, file_entry, make_manifest, write_manifest
from fusionlab.observe.trace_sources import (
    TUNED_BY_INDUCTOR,
    benchmark_runs,
    benchmark_times,
    fastest_step,
    show_traces,
    without_common_end,
)
from tests.lab.observe.traces import kernel, launch, op
from tests.lab.show import traces as synthetic
from tests.lab.show.traces import trace_of

H200 = Machine("NVIDIA H200", "gpu", "570.1", "2.11.0", "3.6.0", "12.8")
GEMM = [launch(90, 130.0, 2.0), kernel(90, 140.0, 9.0, "gemm")]


def mark(number, start, duration):
    name = f"fusionlib step {number}"
    return {"ph": "X", "cat": "user_annotation", "name": name, "pid": 9, "tid": 9, "ts": start, "dur": duration}


def record(data, machine, entries):
    """A folder as written by `fusionlib record`, with synthetic traces."""
    folder = data / "traces" / machine.slug
    folder.mkdir(parents=True)
    files = []
    for variant, tokens, graph, events in entries:
        path = folder / f"{variant}-{tokens}{'-graph' if graph else ''}.json.gz"
        path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode(), mtime=0))
        files.append(file_entry(path, variant=variant, tokens=tokens, graph=graph, steps=1))
    write_manifest(folder, make_manifest("fusionlib record", 0, machine=machine, files=files))


TWO = [mark(0, 90.0, 60.0), *synthetic.TWO, *GEMM]
FUSED = [mark(0, 90.0, 60.0), launch(3, 100.0, 6.0), kernel(3, 105.5, 4.25, "fused"), *GEMM]


def test_recorded_traces_are_used_without_being_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("fusionlab.observe.trace_sources.gpu_runs_the_kernel", lambda: False)
    record(tmp_path, H200, [("two_kernel", 64, False, TWO), ("fused", 64, False, FUSED)])
    shown = show_traces(64, ["two_kernel", "fused"], data=tmp_path)
    assert (shown.kind, shown.device, shown.tokens, shown.on_gpu) == ("recorded GPU", "NVIDIA H200", 64, True)
    assert [k.name for k in shown.steps["one kernel"].kernels] == ["fused"]
    assert len(shown.steps["two kernels"].kernels) == 2 and shown.shared == ("gemm",)
    assert shown.files["one kernel"] == "data/traces/nvidia-h200/fused-64.json.gz"
    assert shown.words == "recorded earlier on NVIDIA H200, 64 tokens"


def test_the_nearest_size_and_the_kind_asked_for(tmp_path):
    sizes = [(64, False), (8192, False), (64, True)]
    record(tmp_path, H200, [(v, t, g, TWO) for t, g in sizes for v in ("two_kernel", "fused")])
    assert show_traces(5000, ["two_kernel", "fused"], device="recorded", data=tmp_path).tokens == 8192
    shown = show_traces(5000, ["two_kernel", "fused"], device="recorded", graph=True, data=tmp_path)
    assert shown.tokens == 64 and shown.files["one kernel"].endswith("fused-64-graph.json.gz")


def test_variants_of_two_gpus_are_not_mixed(tmp_path):
    record(tmp_path, H200, [("fused", 64, False, FUSED)])
    other = Machine("AMD Instinct MI355X", "gpu", "6.14", "2.13.0", "3.7.1", "7.0")
    record(tmp_path, other, [("two_kernel", 64, False, TWO)])
    with pytest.raises(ValueError, match="no trace of two_kernel, fused on one GPU"):
        show_traces(64, ["two_kernel", "fused"], device="recorded", data=tmp_path)


def test_without_a_gpu_and_without_recordings_the_cpu_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("fusionlab.observe.trace_sources.gpu_runs_the_kernel", lambda: False)
    shown = show_traces(4, ["eager"], data=tmp_path)
    assert (shown.kind, shown.device, shown.files) == ("live CPU", "CPU", {})
    trace = shown.traces["eager"]
    assert not trace.kernels and {"aten::rsqrt", "aten::amax"} <= {op.name for op in trace.ops}


def test_a_gpu_here_comes_before_any_recording(tmp_path, monkeypatch):
    """The recorder is replaced, since there is no GPU; the test checks what it is asked for and how that is used."""
    record(tmp_path, H200, [("two_kernel", 64, False, FUSED), ("fused", 64, False, TWO)])
    asked = []

    def fake(variant, tokens, **options):
        asked.append((variant, tokens, options["device"], options["graph"]))
        return trace_of(tmp_path / variant, TWO if variant == "two_kernel" else FUSED)

    monkeypatch.setattr("fusionlab.observe.trace_sources.gpu_runs_the_kernel", lambda: True)
    monkeypatch.setattr("fusionlab.observe.trace_sources.record_step", fake)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "A GPU")
    shown = show_traces(7, ["two_kernel", "fused"], graph=True, data=tmp_path)
    assert asked == [("two_kernel", 7, "cuda", True), ("fused", 7, "cuda", True)]
    assert (shown.kind, shown.words, shown.files) == ("live GPU", "recorded now on A GPU, 7 tokens", {})
    assert [k.name for k in shown.steps["one kernel"].kernels] == ["fused"] and shown.shared == ("gemm",)
    assert show_traces(64, ["two_kernel", "fused"], device="recorded", data=tmp_path).kind == "recorded GPU"


@pytest.mark.parametrize(("variants", "device"), [(["quick"], ""), ([], ""), (["eager"], "tpu")])
def test_what_is_unknown_is_named(variants, device):
    with pytest.raises(ValueError, match=r"variants are eager, .*; device is"):
        show_traces(4, variants, device=device)


def test_the_common_end_is_cut_and_nothing_else(tmp_path):
    one = trace_of(tmp_path / "1", FUSED)
    two = trace_of(tmp_path / "2", TWO)
    cut, names = without_common_end({"two": two, "one": one})
    assert names == ("gemm",)
    assert [k.name for k in cut["one"].kernels] == ["fused"]
    assert {call.correlation for call in cut["one"].launches} == {3}
    alone, none = without_common_end({"one": one})
    assert none == () and alone["one"] is one
    same, names = without_common_end({"a": one, "b": one})  # never cut to nothing
    assert [k.name for k in same["a"].kernels] == ["fused"] and names == ("gemm",)


def test_on_a_cpu_the_common_end_is_of_outer_operators(tmp_path):
    events = [op(1, 0, 5, "aten::norm"), op(2, 10, 9, "aten::mm"), op(3, 12, 2, "aten::norm")]
    other = [op(1, 0, 3, "aten::fused"), op(2, 10, 9, "aten::mm")]
    cut, names = without_common_end({"a": trace_of(tmp_path / "a", events), "b": trace_of(tmp_path / "b", other)})
    assert names == ("aten::mm",)
    assert [[op.name for op in trace.ops] for trace in cut.values()] == [["aten::norm"], ["aten::fused"]]


def test_the_fastest_step_by_its_own_events(tmp_path):
    events = [mark(0, 0.0, 50.0), mark(1, 50.0, 50.0), op(1, 1, 30, "slow"), op(2, 60, 20, "fast")]
    assert [o.name for o in fastest_step(trace_of(tmp_path / "t", events)).ops] == ["fast"]


def test_of_equally_fast_steps_the_one_with_the_shorter_launch(tmp_path):
    """The first step's launch was delayed by 400 µs; its kernel is nevertheless slightly faster."""
    replay = {"graph node id": 1}
    events = [mark(0, 0.0, 500.0), launch(1, 10.0, 400.0), kernel(1, 412.0, 1.75, "held up", **replay)]
    events += [mark(1, 500.0, 50.0), launch(2, 510.0, 10.0), kernel(2, 522.0, 1.8, "good", **replay)]
    assert [k.name for k in fastest_step(trace_of(tmp_path / "t", events)).kernels] == ["good"]


def test_a_part_keeps_its_joins(tmp_path):
    trace = trace_of(tmp_path / "t", synthetic.TWO)
    assert trace.begin_us == 99.0
    part = trace.between(107.0, 109.0)
    assert [k.name for k in part.kernels] == ["norm"] and [c.correlation for c in part.launches] == [2]
    assert part.ops == ()


def test_a_recorded_benchmark_gives_the_lines_of_a_figure(tmp_path):
    def row(variant, tokens, median, gate="contiguous"):
        shape, context = BASE, "alone"
        case = f"{shape}/{tokens}/{gate}/{context}"
        return Row(case, shape, tokens, gate, context, variant, median, median, median, 9, 2, 100, 1.0)

    rows = [row("light", 1, 1.0), row("fused", 1, 1.5), row("fused", 64, 2.0), row("fused", 64, 9.0, "strided")]
    path = tmp_path / "benchmarks" / "nvidia-h200.json"
    path.parent.mkdir()
    write_results(path, Results({}, rows), make_manifest("fusionlib bench", 0, machine=H200))
    (benchmark,) = evidence.benchmarks(tmp_path)
    assert benchmark_times(benchmark) == {"light": {1: 1.0}, "fused": {1: 1.5, 64: 2.0}}
    assert benchmark_times(benchmark, f"{BASE}/strided/alone") == {"fused": {64: 9.0}}

    # For what Inductor compiled, the faster run counts, at this run's sizes; not for ours and the light.
    write_results(
        path,
        Results({}, [*rows, row("inductor", 1, 5.6), row("inductor", 64, 2.9)]),
        make_manifest("x", 0, machine=H200),
    )
    (path.parent / "further").mkdir()
    before = [row("inductor", 1, 1.9), row("inductor", 64, 3.0), row("inductor", 8, 2.0), row("fused", 1, 1.1)]
    one, two = (path.parent / "further" / f"nvidia-h200-{number}.json" for number in (1, 2))
    write_results(one, Results({}, before), make_manifest("x", 0, machine=H200))
    write_results(two, Results({}, [row("inductor", 64, 2.8)]), make_manifest("x", 0, machine=H200))
    (benchmark,) = evidence.benchmarks(tmp_path)
    both = benchmark_times(benchmark)
    assert [run["inductor"] for run in benchmark_runs(benchmark)] == [
        {1: 5.6, 64: 2.9},
        {1: 1.9, 64: 3.0, 8: 2.0},
        {64: 2.8},
    ]
    assert both["inductor"] == {1: 1.9, 64: 2.8} and both["fused"] == {1: 1.5, 64: 2.0}

    # Another machine's run, or the same GPU's with other versions, does not count.
    other = replace(H200, triton="9.9.9")
    write_results(one, Results({}, before), make_manifest("x", 0, machine=other))
    assert benchmark_times(benchmark)["inductor"] == {1: 5.6, 64: 2.8}
    assert {"two_kernel", "inductor"} == TUNED_BY_INDUCTOR
