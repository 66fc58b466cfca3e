"""Cleaning: planted secrets are gone, what a reader needs is kept, and the bytes are reproducible."""

import gzip
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from fusionlab.observe.clean import SIZE_LIMIT, clean_trace
from fusionlab.observe.trace import TraceError, read_trace
from tests.lab.observe.traces import EVENTS, GEOMETRY, kernel, launch, op, write

SECRETS = (
    "alice",
    "bob.smith",
    "gpubox17",
    "corp.example",
    "/scratch",
    "cab.py",
    "mysecret",
    "10.1.2.3",
    "deadbeef",
    "carol",
)
TOP = {
    "host_name": "gpubox17.corp.example",
    "trace_id": "DEADBEEF",
    "traceName": "/home/alice/runs/mysecret.json",
    "distributedInfo": {"rank": 0, "pg_config": "mysecret"},
    "displayTimeUnit": "ms",
    "baseTimeNanoseconds": 1790857026000000000,
    "deviceProperties": [
        {"id": 0, "name": "NVIDIA H200", "numSms": 132, "uuid": "GPU-deadbeef", "totalGlobalMem": 150_000_000_000},
        {"id": 1, "name": "alice's card", "numSms": 1},
    ],
}
PLANTED = [
    {"ph": "M", "name": "process_name", "pid": 4242, "args": {"name": "python /home/alice/serve.py"}},
    {"ph": "X", "cat": "python_function", "name": "/home/alice/x.py(3): f", "pid": 1, "tid": 1, "ts": 1, "dur": 1},
    {"ph": "X", "cat": "user_annotation", "name": "mysecret", "pid": 1, "tid": 1, "ts": 1, "dur": 1},
    op(21, 91.0, 2.0, "/tmp/torchinductor_alice/ab/cab.py:12 call at /scratch/cab.py"),
    op(22, 92.0, 2.0, "load C:\\Users\\carol\\kernels.py"),
    op(23, 93.0, 2.0, "job on gpubox17 of ALICE at 10.1.2.3 0xdeadbeef00 bob.smith@corp.example"),
    launch(9, 94.0, 1.0, kernel="/scratch/mysecret", stream="0x7fdeadbeef", file="/home/bob.smith/a.py"),
    kernel(9, 99.0, 1.0, name="triton_red_fused_mul_0", kernel_file="/tmp/torchinductor_alice/ab.py"),
]


def text(path):
    return gzip.decompress(path.read_bytes()).decode("ascii")


@pytest.fixture
def dirty(tmp_path):
    return write(tmp_path / "dirty.json", EVENTS + PLANTED, **TOP)


def test_planted_secrets_are_gone(dirty, tmp_path):
    assert all(secret.lower() in dirty.read_text().lower() for secret in SECRETS)
    clean_trace(dirty, tmp_path / "c.json.gz")
    left = text(tmp_path / "c.json.gz").lower()
    assert [secret for secret in SECRETS if secret.lower() in left] == []
    assert "4242" not in left and "host_name" not in left
    trace = json.loads(text(tmp_path / "c.json.gz"))
    assert set(trace) == {"schemaVersion", "displayTimeUnit", "deviceProperties", "traceEvents"}
    assert trace["deviceProperties"][0] == {
        "id": 0,
        "name": "NVIDIA H200",
        "numSms": 132,
        "totalGlobalMem": 150_000_000_000,
    }
    assert "name" not in trace["deviceProperties"][1]
    assert {event["ph"] for event in trace["traceEvents"]} == {"X"}


def test_given_secrets_are_gone_too(tmp_path):
    path = write(tmp_path / "t", [kernel(1, 0, 1, name="k_Projektname_v2"), op(1, 0, 1, "projektname::op")])
    clean_trace(path, tmp_path / "c", secrets=["projektname"])
    assert "projektname" not in text(tmp_path / "c").lower()
    assert "k_<name>_v2" in text(tmp_path / "c")
    with pytest.raises(TraceError, match="a secret would remain"):
        clean_trace(path, tmp_path / "d", secrets=["projektname", "name"])
    assert not (tmp_path / "d").exists()


def test_what_the_reader_needs_is_kept(dirty, tmp_path):
    """Every kernel reads the same before and after, except for the time origin and scrubbed names."""
    clean_trace(dirty, tmp_path / "c")
    before, after = read_trace(dirty).kernels, read_trace(tmp_path / "c").kernels
    assert len(before) == len(after) == 4
    for old, new in zip(before, after, strict=True):
        assert new.start_us == pytest.approx(old.start_us - 90.0, abs=1e-3)
        assert (new.launch is None) == (old.launch is None)
        assert new.op == old.op
        assert new.gap_us == pytest.approx(old.gap_us, abs=2e-3)
        assert new.queue_us == pytest.approx(old.queue_us, abs=2e-3)
        volatile = {"start_us": 0.0, "gap_us": None, "queue_us": None, "launch": None}
        assert replace(new, **volatile) == replace(old, **volatile)


def test_cleaning_is_idempotent_and_reproducible(dirty, tmp_path):
    sizes = [clean_trace(dirty, tmp_path / "1"), clean_trace(dirty, tmp_path / "2")]
    sizes.append(clean_trace(tmp_path / "1", tmp_path / "3"))
    first, second, third = ((tmp_path / name).read_bytes() for name in "123")
    assert first == second == third
    assert sizes == [len(first)] * 3
    assert first[4:8] == b"\0\0\0\0" and not first[3] & 0x08  # no time, no file name


@given(
    st.lists(
        st.tuples(
            st.floats(-1e6, 1e13),
            st.floats(0, 1e6),
            st.text(max_size=30) | st.sampled_from(["/home/x/y", "torchinductor_q/z", "a//b", "<path>", "std::a<b/c>"]),
            st.sampled_from(["kernel", "cpu_op", "cuda_driver"]),
            st.integers(-3, 9) | st.text(max_size=3),
        ),
        max_size=6,
    )
)
def test_any_trace_cleans_idempotently(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("clean")
    events = [
        {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": pid, "ts": ts, "dur": dur}
        for ts, dur, name, cat, pid in rows
    ]
    clean_trace(write(folder / "t", events), folder / "1")
    clean_trace(folder / "1", folder / "2")
    assert (folder / "1").read_bytes() == (folder / "2").read_bytes()
    assert [len(read_trace(folder / name).kernels) for name in ("t", "1")] == [sum(r[3] == "kernel" for r in rows)] * 2


def test_a_recorded_trace_cleans(tmp_path):
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_stack=True) as prof:
        (torch.randn(8, 8) @ torch.randn(8, 8)).sum()
    prof.export_chrome_trace(str(tmp_path / "t.json"))
    raw = json.loads((tmp_path / "t.json").read_text())
    clean_trace(tmp_path / "t.json", tmp_path / "c")
    left = json.loads(text(tmp_path / "c"))
    assert len(left["traceEvents"]) == sum(event.get("cat") == "cpu_op" for event in raw["traceEvents"])
    assert min(event["ts"] for event in left["traceEvents"]) == 0.0
    assert str(tmp_path) not in text(tmp_path / "c") and str(raw["traceEvents"][0]["pid"]) not in {
        str(event["pid"]) for event in left["traceEvents"]
    }


def test_a_window_is_rebased(dirty, tmp_path):
    clean_trace(dirty, tmp_path / "c", window_us=(19.0, 42.0))
    kept = json.loads(text(tmp_path / "c"))["traceEvents"]
    assert [event["ts"] for event in kept] == [0.0, 15.0, 20.25, 21.0]


def test_too_large_says_so_and_writes_nothing(tmp_path):
    generator = torch.Generator().manual_seed(1)
    times = torch.rand(8000, generator=generator, dtype=torch.float64).mul(1e6).tolist()
    path = write(tmp_path / "t", [kernel(i, ts, ts / 7, **GEOMETRY) for i, ts in enumerate(times)])
    with pytest.raises(TraceError, match=rf"over the limit of {SIZE_LIMIT}; record fewer steps"):
        clean_trace(path, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert clean_trace(path, tmp_path / "c", size_limit=1 << 20) > SIZE_LIMIT


@pytest.mark.parametrize("change", [{"ts": "x"}, {"ts": -1.7e308}, {"name": None}, {"dur": float("inf")}, {"dur": -1}])
def test_an_event_that_cannot_be_kept_is_an_error(tmp_path, change):
    with pytest.raises(TraceError, match="no name, ts or dur"):
        clean_trace(write(tmp_path / "t", [kernel(1, 0, 1) | change]), tmp_path / "c")


def test_only_whole_traces_of_one_process_are_published(tmp_path):
    """Otherwise lost events would be missing silently, and merged ones would be joined at random."""
    path = write(tmp_path / "t", EVENTS)
    content = path.read_bytes()
    path.write_bytes(
        content.replace(b'"pid": 9, "args": {"name": "python"}', b'"pid": 9, "args": {"name": "py"th"on"}')
    )
    clean_trace(path, tmp_path / "c")  # of a category that is not kept
    for torn in (content[:-200], content.replace(b'"dur": 10.0', b'"dur": 0.-10')):
        path.write_bytes(torn)
        with pytest.raises(TraceError, match="only a whole trace is published"):
            clean_trace(path, tmp_path / "d")
    with pytest.raises(TraceError, match="launches of 2 processes"):
        clean_trace(write(tmp_path / "t", [*EVENTS, launch(4, 1, 1) | {"pid": 10}]), tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_old_words_and_large_times_are_cleaned_into_todays(tmp_path):
    old = kernel(1, 0, 2, **{"external id": 3}) | {"cat": "Kernel"}
    path = write(tmp_path / "t", [old, kernel(2, 1, 2)])
    text_before = path.read_text()
    path.write_text(
        text_before.replace('"ts": 0', '"ts": 1712345678901234.123').replace('"ts": 1,', '"ts": 1712345678901240.130,')
    )
    clean_trace(path, tmp_path / "c")
    first, second = json.loads(text(tmp_path / "c"))["traceEvents"]
    assert (first["cat"], first["args"]["External id"], first["ts"], second["ts"]) == ("kernel", 3, 0.0, 6.007)


def test_an_unwritable_target(tmp_path):
    with pytest.raises(TraceError, match="cannot be written"):
        clean_trace(write(tmp_path / "t", EVENTS), tmp_path / "absent" / "c")
