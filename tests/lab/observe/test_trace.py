"""Traces: hand-made ones with known answers, and PyTorch's own analysis for comparison."""

import json
from decimal import Decimal

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from fusionlab.exercises.measuring import trace_of_rows
from fusionlab.observe.trace import Limits, TraceError, read_trace, totals
from tests.lab.observe.traces import EVENTS, kernel, launch, op, write


@pytest.mark.parametrize("compress", [False, True])
def test_known_answers(tmp_path, compress):
    trace = read_trace(write(tmp_path / "t", EVENTS, compress))
    first, fused, copy = trace.kernels
    assert [k.name for k in trace.kernels] == ["first", "fused", "Memcpy HtoD"]
    assert (first.gap_us, first.queue_us, first.op) == (None, 2.0, "aten::mul")
    assert (fused.gap_us, fused.queue_us, fused.op) == (10.25, -1.75, "aten::add")  # started before the call returned
    assert (fused.launch.name, fused.launch.category) == ("cuLaunchKernel", "cuda_driver")
    assert (fused.grid, fused.block, fused.registers, fused.shared_bytes) == ((32, 1, 1), (256, 1, 1), 40, 1024)
    assert (fused.occupancy_percent, fused.stream, fused.device, fused.graph_node) == (75.0, 7, 0, None)
    assert (copy.category, copy.launch, copy.op, copy.queue_us, copy.gap_us) == ("gpu_memcpy", None, None, None, None)
    assert fused.end_us == 134.75
    assert [o.name for o in trace.ops] == ["aten::mul", "aten::add"]


def test_a_graph_launch_has_many_kernels(tmp_path):
    events = [launch(5, 10.0, 3.0, external=4, name="cudaGraphLaunch"), op(4, 9.0, 5.0, "replay")]
    events += [kernel(5, 20.0 + 2 * i, 1.5, name=f"k{i}", **{"graph id": 3, "graph node id": i + 1}) for i in range(4)]
    kernels = read_trace(write(tmp_path / "t", events)).kernels
    assert {k.launch.name for k in kernels} == {"cudaGraphLaunch"}
    assert [k.graph_node for k in kernels] == [1, 2, 3, 4]
    assert [k.queue_us for k in kernels] == [7.0, 9.0, 11.0, 13.0]
    assert [k.gap_us for k in kernels] == [None, 0.5, 0.5, 0.5]
    assert {k.op for k in kernels} == {"replay"}


def test_rocm_takes_the_geometry_from_the_launch(tmp_path):
    """Kineto puts HIP's calls under cuda_runtime, with grid and block there and a pointer as the stream."""
    shape = {"grid": [8, 1, 1], "block": [64, 1, 1], "shared memory": 512, "stream": "0x55d0"}
    events = [launch(1, 0.0, 2.0, name="hipExtModuleLaunchKernel", **shape), kernel(1, 5.0, 1.0)]
    (found,) = read_trace(write(tmp_path / "t", events)).kernels
    assert (found.grid, found.block, found.shared_bytes, found.stream) == ((8, 1, 1), (64, 1, 1), 512, 7)


def test_of_nested_calls_the_outer_is_the_launch(tmp_path):
    """A runtime call and the driver call inside it, under one correlation and in any order in the file."""
    inner = launch(1, 11.0, 1.0, cat="cuda_driver", name="cuLaunchKernel")
    trace = read_trace(write(tmp_path / "t", [inner, kernel(1, 20.0, 1.0), launch(1, 10.0, 4.0)]))
    assert [call.name for call in trace.launches] == ["cudaLaunchKernel", "cuLaunchKernel"]
    assert (trace.kernels[0].launch.name, trace.kernels[0].queue_us) == ("cudaLaunchKernel", 6.0)


def test_overlap_is_a_negative_gap(tmp_path):
    events = [kernel(1, 0.0, 10.0), kernel(2, 8.0, 1.0), kernel(3, 12.0, 1.0)]
    assert [k.gap_us for k in read_trace(write(tmp_path / "t", events)).kernels] == [None, -2.0, 2.0]


def test_the_external_id_of_the_kernel_itself_comes_first(tmp_path):
    events = [op(1, 0, 1, "of the launch"), op(2, 0, 1, "of the kernel"), launch(4, 0, 1, external=1)]
    (found,) = read_trace(write(tmp_path / "t", [*events, kernel(4, 3, 1, **{"External id": 2})])).kernels
    assert found.op == "of the kernel"


def test_a_bare_array_and_missing_numbers(tmp_path):
    """Chrome's array form; what Kineto could not know ("N/A", NaN, a wrong shape) is None."""
    path = tmp_path / "t.json"
    args = {"registers per thread": "N/A", "est. achieved occupancy %": float("nan"), "grid": [1, 2], "block": [1] * 3}
    path.write_text(json.dumps([kernel(0, 1.5, 2, **args)]))
    (found,) = read_trace(path).kernels
    assert (found.registers, found.occupancy_percent, found.grid, found.block) == (None, None, None, (1, 1, 1))


def test_nodes_are_named_from_provenance(tmp_path):
    trace = read_trace(write(tmp_path / "t", EVENTS)).with_nodes(
        {"fused:2": ["mul", "sum_1"], "fused:3": ["mul", "sum_2"], "aten::mul": ["mul_3"]}
    )
    assert [k.nodes for k in trace.kernels] == [("mul_3",), ("mul", "sum_1", "sum_2"), ()]


def test_against_an_independent_computation(tmp_path):
    """Random GPU events; every join and gap again by brute force over the raw JSON."""
    generator = torch.Generator().manual_seed(3)

    def draw(high):
        return int(torch.randint(high, (), generator=generator))

    events = [op(i + 1, i * 10.0, 8.0, f"op{i}") for i in range(20)]
    cats = ("cuda_runtime", "cuda_driver")
    events += [launch(i + 1, i * 10.0 + 1, 2.5, draw(20) + 1, cats[draw(2)]) for i in range(40)]
    events += [
        kernel(draw(45) + 1, draw(9000) / 8, 1 + draw(40) / 8, stream=draw(3), device=draw(2)) for _ in range(80)
    ]
    path = write(tmp_path / "t", [events[i] for i in torch.randperm(len(events), generator=generator).tolist()])
    raw = json.loads(path.read_text())["traceEvents"]
    found = read_trace(path).kernels
    assert len(found) == 80
    for k in found:
        (event,) = (
            e
            for e in raw
            if (e["cat"], e["ts"], e["dur"], e["tid"], e["pid"])
            == ("kernel", k.start_us, k.duration_us, k.stream, k.device)
        )
        calls = [e for e in raw if e["cat"] in cats and e["args"]["correlation"] == event["args"]["correlation"]]
        earlier = [e for e in raw if e["cat"] == "kernel" and e["pid"] == k.device and e["tid"] == k.stream]
        earlier = [e["ts"] + e["dur"] for e in earlier if (e["ts"], e["dur"]) < (k.start_us, k.duration_us)]
        assert k.gap_us == (k.start_us - max(earlier) if earlier else None)
        assert (k.launch is None) == (not calls)
        if calls:
            assert k.queue_us == k.start_us - (calls[0]["ts"] + calls[0]["dur"])
            ops = [e for e in raw if e["cat"] == "cpu_op"]
            assert [k.op] == [e["name"] for e in ops if e["args"]["External id"] == calls[0]["args"]["External id"]]


def test_against_pytorchs_own_analysis(tmp_path):
    """A trace recorded here: every op of `prof.events()` is found, with its time; sums equal `key_averages`."""
    with profile(activities=[ProfilerActivity.CPU]) as prof, record_function("a range"):
        a = torch.randn(64, 64)
        torch.softmax(a @ a, -1).exp().mul(2)
    path = tmp_path / "trace.json"
    prof.export_chrome_trace(str(path))
    trace = read_trace(path)
    assert trace.kernels == () and trace.launches == ()
    by_id = {o.external_id: o for o in trace.ops}
    recorded = [e for e in prof.events() if e.name.startswith("aten::")]
    assert len(recorded) >= 6
    base = by_id[recorded[0].id].start_us - recorded[0].time_range.start
    for event in recorded:
        assert by_id[event.id].name == event.name
        assert by_id[event.id].start_us - base == pytest.approx(event.time_range.start, abs=0.01)
        assert by_id[event.id].duration_us == pytest.approx(event.time_range.elapsed_us(), abs=0.01)
    sums = totals(trace.ops)
    averages = [average for average in prof.key_averages() if average.key.startswith("aten::")]
    for average in averages:
        if average.count == sums[average.key].count:  # PyTorch leaves out an op directly inside one with the same name
            assert sums[average.key].duration_us == pytest.approx(average.cpu_time_total, abs=0.05)
    assert sum(average.count == sums[average.key].count for average in averages) >= len(averages) - 1
    assert "a range" not in sums


@pytest.mark.gpu
def test_kernels_against_pytorchs_own_analysis(tmp_path):
    """On a GPU: every kernel of `prof.events()` with its time, and of each op the kernels that it launched."""
    a = torch.randn(512, 512, device="cuda")
    torch.softmax(a @ a, -1).exp().mul(2)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof:
        torch.softmax(a @ a, -1).exp().mul(2)
        torch.cuda.synchronize()
    path = tmp_path / "trace.json"
    prof.export_chrome_trace(str(path))
    found = read_trace(path).kernels
    theirs = [event for event in prof.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(found) >= 4 and sorted(k.name for k in found) == sorted(event.name for event in theirs)
    for name, total in totals(found).items():
        times = [event.time_range.elapsed_us() for event in theirs if event.name == name]
        assert (total.count, total.duration_us) == (len(times), pytest.approx(sum(times), abs=0.01 * len(times)))
    launched = {(k.name, event.name) for event in prof.events() for k in event.kernels}
    assert {(k.name, k.op) for k in found if k.category == "kernel"} <= launched


def test_large_times_are_exact(tmp_path):
    """PyTorch 2.3 writes microseconds since 1970 with nanosecond decimals; a float of that size has steps of 0.25."""
    base = 1_712_345_678_901_234
    text = json.dumps(
        {"traceEvents": [op(1, 0, 1, "op"), launch(1, 1, 2, external=1), kernel(1, 3, 4), kernel(2, 5, 6)]}
    )
    times = {
        '"ts": 0, "dur": 1': f'"ts": {base}.000, "dur": 10.001',
        '"ts": 1, "dur": 2': f'"ts": {base}.123, "dur": 2.001',
        '"ts": 3, "dur": 4': f'"ts": {base + 7}.126, "dur": 4.001',
        '"ts": 5, "dur": 6': f'"ts": {base + 11}.130, "dur": 6.001',
    }
    for old, new in times.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "t.json"
    path.write_text(text)
    trace = read_trace(path)
    first, second = trace.kernels
    assert (first.queue_us, first.gap_us, second.gap_us) == (5.002, None, 0.003)
    assert [Decimal(str(k.start_us)) + trace.base_ns // 1000 for k in trace.kernels] == [
        Decimal(f"{base + 7}.126"),
        Decimal(f"{base + 11}.130"),
    ]
    assert 0 <= trace.ops[0].start_us < 3.6e9 and trace.base_ns % 3_600_000_000_000 == 0
    assert read_trace(write(tmp_path / "small", EVENTS)).base_ns == 0


OLD = """[
  {
    "ph": "X", "cat": "Operator", "name": "aten::mul", "pid": 9, "tid": "9", "ts": 1614800519473200, "dur": 9,
    "args": {"Device": 9, "External id": 3981, "Trace name": "PyTorch Profiler"}
  },
  {
    "ph": "X", "cat": "Runtime", "name": "cudaLaunchKernel", "pid": 9, "tid": "9", "ts": 1614800519473203, "dur": 5,
    "args": {"cbid": 211, "correlation": 20001, "external id": 3981, "external ts": 1614800519473200}
  },
  {
    "ph": "X", "cat": "Kernel", "name": "mul", "pid": 0, "tid": "stream 7", "ts": 1614800519473210, "dur": 4,
    "args": {"device": 0, "context": 1, "stream": 7, "correlation": 20001, "external id": 3981, "grid": [1, 2, 3]}
  },
  {
    "ph": "X", "cat": "Memcpy", "name": "Memcpy HtoD", "pid": 0, "tid": "stream 7", "ts": 1614800519473220, "dur": 0,
    "args": {"device": 0, "stream": 7, "correlation": 20002, "bytes": 200, "memory bandwidth (GB/s)": inf}
  },
"""


def test_a_trace_of_pytorch_1_8(tmp_path):
    """Other categories, a lower-case id, a bandwidth that is not a number, and an unclosed list."""
    (tmp_path / "t.json").write_text(OLD)
    trace = read_trace(tmp_path / "t.json")
    mul, copy = trace.kernels
    assert (mul.category, mul.op, mul.launch.name, mul.launch.category) == (
        "kernel", "aten::mul", "cudaLaunchKernel", "cuda_runtime",
    )  # fmt: skip
    assert (mul.queue_us, mul.stream, mul.grid, mul.launch.external_id) == (2.0, 7, (1, 2, 3), 3981)
    assert (copy.category, copy.gap_us, copy.launch) == ("gpu_memcpy", 6.0, None)
    assert [str(flaw) for flaw in trace.flaws] == [
        "the file ends early, behind event 3 of traceEvents",
        "1 Memcpy event mended: no JSON as written; it is event 3 of traceEvents (Memcpy HtoD)",
    ]


def test_a_trace_of_pytorch_without_kineto(tmp_path):
    plain = {"ph": "X", "ts": 633, "dur": 54, "tid": 1, "args": {}}
    events = [plain | {"name": "aten::mul", "pid": "CPU functions"}, plain | {"name": "mul", "pid": "CUDA functions"}]
    (tmp_path / "t.json").write_text(json.dumps(events))
    trace = read_trace(tmp_path / "t.json")
    assert [o.name for o in trace.ops] == ["aten::mul"] and [k.name for k in trace.kernels] == ["mul"]


def test_other_profilers_are_named_and_not_taken_for_empty(tmp_path):
    """rocprof gives no category, and quotes its numbers."""
    event = {"ph": "X", "name": "hipLaunchKernel", "pid": 2, "tid": 7, "ts": "25", "dur": "3", "args": {}}
    with pytest.raises(TraceError, match=r"no category, so no PyTorch profiler wrote it; it is event 0 .*hipLaunch"):
        read_trace(write(tmp_path / "t", [event]))
    quoted = [kernel(1, 1.5, 2) | {"ts": "10.125", "dur": "3"}, event, event]
    trace = read_trace(write(tmp_path / "t", quoted))
    assert (trace.kernels[0].start_us, trace.kernels[0].duration_us) == (10.125, 3.0)
    assert [flaw.count for flaw in trace.flaws] == [2]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"ts": "now"}, "skipped: no time"),
        ({"ts": float("nan")}, "skipped: no time"),
        ({"ts": 1e300}, "skipped: no time"),
        ({"dur": None}, "skipped: no time"),
        ({"dur": True}, "skipped: no time"),
        ({"dur": -1}, "skipped: a negative duration"),
        ({"name": 3}, "skipped: no name"),
    ],
)
def test_a_gpu_event_without_a_time_or_name_is_skipped_and_named(tmp_path, change, what):
    trace = read_trace(write(tmp_path / "t", [kernel(1, 0, 1), kernel(2, 3, 1) | change, kernel(3, 5, 1)]))
    assert [k.start_us for k in trace.kernels] == [0, 5]
    (flaw,) = trace.flaws
    assert (flaw.what, flaw.count, flaw.category, flaw.lost) == (what, 1, "kernel", True)
    assert flaw.first.startswith("event 1 of traceEvents")
    with pytest.raises(TraceError, match=f"nothing can be read: 1 kernel event {what}"):
        read_trace(write(tmp_path / "t", [kernel(2, 3, 1) | change]))


def test_halves_of_characters_can_be_shown(tmp_path):
    """JSON can contain them, but no page, terminal or file can."""
    half = "\\ud800"
    text = json.dumps(
        {"traceEvents": [kernel(1, 0, 1, name="k_HALF"), kernel(2, 3, 1, stream="s_HALF", name="HALF") | {"dur": -1}]}
    )
    (tmp_path / "t").write_text(text.replace("HALF", half))
    trace = read_trace(tmp_path / "t")
    assert [k.name for k in trace.kernels] == ["k_�"]
    said = "".join(map(str, trace.flaws))
    assert said.encode() and "read with � for halves of characters" in said


def test_arguments_that_are_no_object_cost_the_arguments(tmp_path):
    trace = read_trace(write(tmp_path / "t", [launch(1, 0, 1), kernel(1, 3, 1) | {"args": [1]}]))
    assert trace.kernels[0].launch is None and trace.kernels[0].start_us == 3
    assert "read without arguments" in str(trace.flaws[0])


def test_a_window_is_what_the_whole_trace_has_there(tmp_path):
    """Joins, gaps and all, without keeping the rest."""
    generator = torch.Generator().manual_seed(5)

    def draw(high):
        return int(torch.randint(high, (), generator=generator))

    start = 1_712_345_678_901_234 * 8  # in eighths of a microsecond
    events = [op(i + 1, (start + i * 80) / 8, 8.0, f"op{i}") for i in range(300)]
    events += [launch(i + 1, (start + i * 80 + 8) / 8, 2.5, i + 1) for i in range(300)]
    events += [kernel(i + 1, (start + i * 80 + 20 + draw(900)) / 8, draw(40) / 8, stream=draw(3)) for i in range(300)]
    path = write(tmp_path / "t", [events[i] for i in torch.randperm(len(events), generator=generator).tolist()])
    whole = read_trace(path)
    for first, last in ((0.0, 100.0), (700.0, 1000.0), (2990.0, 1e9)):
        part = read_trace(path, window_us=(first, last))
        same = whole.between(whole.begin_us + first, whole.begin_us + last)
        assert part == same and 0 < len(part.kernels) < 300
    assert read_trace(path, Limits(events=150), window_us=(0.0, 400.0)).kernels
    with pytest.raises(TraceError, match="more than 150 events to keep; read a part of it"):
        read_trace(path, Limits(events=150))
    assert read_trace(path, window_us=(1e9, 2e9)).kernels == ()


def test_rows_by_hand_must_be_right():
    with pytest.raises(TraceError, match="skipped: a negative duration"):
        trace_of_rows([("kernel", "k", 0.0, 1.0, {}), ("kernel", "l", 2.0, -1.0, {})])
