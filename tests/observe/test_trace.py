"""Traces: hand-made ones with known answers, PyTorch's own analysis as the second opinion, and files meant to harm."""

import gzip
import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile, record_function

from fusionlib.observe.trace import Limits, TraceError, read_trace, totals
from fusionlib.observe.tracefile import read_values
from tests.observe.traces import EVENTS, GEOMETRY, kernel, launch, op, write


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
    """Kineto files HIP's calls under cuda_runtime, with grid and block there and a pointer for a stream."""
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
        if average.count == sums[average.key].count:  # PyTorch leaves out an op directly inside one of its own name
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with neither"),
        (b"PK\x03\x04", "starts with neither"),
        (b"{}", "no 'traceEvents'"),
        (b'{"traceEvents": 1}', "not a list"),
        (b'{"traceEvents": [], "traceEvents": []}', "given twice"),
        (b'{"traceEvents": [1]}', "event 0 of traceEvents is int"),
        (b'{"traceEvents": [{"a": 1}', "ends in the middle"),
        (b'{"traceEvents": [{"a": ', "ends in the middle or is no JSON"),
        (b'{"traceEvents": []} x', "text follows"),
        (b'{"traceEvents": [{}', "ends in the middle"),
        (b"{1: []}", "a key is int"),
        (b'{"traceEvents": [{"a": "\xff"}]}', "not UTF-8"),
        (b'{"traceEvents": [' + b"[" * 200_000, "no readable trace"),
        (b'{"traceEvents": [' + b"9" * 5000 + b"]}", "no readable trace"),
        (gzip.compress(b'{"traceEvents": []}', mtime=0)[:-6], "damaged or cut off"),
        (gzip.compress(b'{"traceEvents": []}', mtime=0)[:12] + b"\x99" * 20, "damaged or cut off"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:16]),  # one of them has 200,000 bytes
)
def test_malformed_files_are_named(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"ts": "now"}, {"ts": float("nan")}, {"dur": -1}, {"dur": None}, {"dur": True}, {"name": 3}, {"args": [1]}],
)
def test_a_gpu_event_without_a_time_or_name_is_an_error(tmp_path, change):
    with pytest.raises(TraceError, match="event 1 of traceEvents"):
        read_trace(write(tmp_path / "t", [kernel(1, 0, 1), kernel(2, 3, 1) | change]))


def test_no_file_a_folder_and_a_pipe(tmp_path):
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path / "absent")
    with pytest.raises(TraceError, match="not a regular file"):
        read_trace(tmp_path)
    with pytest.raises(TraceError, match="not a file name"):
        read_trace("a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(TraceError, match="not a regular file"):
            read_trace(tmp_path / "pipe")


def test_limits_hold_and_are_named(tmp_path):
    path = write(tmp_path / "t", EVENTS)
    for field, value in (("file_bytes", 100), ("text_bytes", 100), ("events", 3), ("value_chars", 50)):
        with pytest.raises(TraceError, match=f"Limits.{field}"):
            read_trace(path, Limits(**{field: value}))
    assert read_trace(path, Limits(events=len(EVENTS))).kernels
    with pytest.raises(ValueError, match="events=0"):
        Limits(events=0)


def test_a_gzip_bomb_is_stopped_early(tmp_path):
    path = tmp_path / "bomb.json.gz"
    with gzip.open(path, "wb") as file:
        file.write(b'{"traceEvents": [')
        for _ in range(64):
            file.write(b" " * (1 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(TraceError, match=r"Limits\.text_bytes"):
        read_trace(path, Limits(text_bytes=8 << 20))


def test_events_across_every_chunk_edge(tmp_path, monkeypatch):
    """The window is refilled at any place, inside numbers, escapes and multi-byte characters."""
    events = [kernel(i + 1, i + 0.125, 0.5, name=f'k{i} "é\\u2028" \u4e2d') for i in range(20)]
    path = tmp_path / "t"
    top = {"baseTimeNanoseconds": 1790857026000000000, "scale": -1.5e-3, "traceEvents": events, "last": True}
    path.write_text(json.dumps(top, ensure_ascii=False), encoding="utf-8")
    values = [(key, value) for key, value in top.items() if key != "traceEvents"]
    values[2:2] = [("traceEvents", event) for event in events]
    for chunk in (1, 2, 3, 7, 64, 1 << 20):
        monkeypatch.setattr("fusionlib.observe.tracefile._CHUNK", chunk)
        assert list(read_values(path)) == values


WHOLE = json.dumps({"traceEvents": EVENTS}).encode()
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def only_trace_errors(path):
    try:
        read_trace(path)
    except TraceError as error:
        assert str(path) in str(error)


@given(st.data())
def test_mutated_bytes_raise_nothing_else(tmp_path_factory, data):
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    content = bytes(content)
    if data.draw(st.booleans()):
        content = gzip.compress(content)[: data.draw(st.integers(1, 2000))]
    path = tmp_path_factory.mktemp("mutated") / "t"
    path.write_bytes(content)
    only_trace_errors(path)


@given(st.integers(1, len(EVENTS) - 1), st.sampled_from(["ts", "dur", "name", "cat", "ph", "pid", "tid", "args"]), JSON)
def test_mutated_fields_raise_nothing_else(tmp_path_factory, index, field, value):
    events = [dict(event) for event in EVENTS]
    events[index][field] = value
    only_trace_errors(write(tmp_path_factory.mktemp("mutated") / "t", events))


@given(st.integers(1, 7), st.sampled_from([*GEOMETRY, "correlation", "External id", "stream", "device"]), JSON)
def test_mutated_arguments_raise_nothing_else(tmp_path_factory, index, field, value):
    events = [dict(event) for event in EVENTS]
    events[index]["args"] = events[index]["args"] | {field: value}
    only_trace_errors(write(tmp_path_factory.mktemp("mutated") / "t", events))
