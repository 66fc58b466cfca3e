"""Traces of several ranks in one file: each GPU event is joined in its own process, or not at all."""

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionlab.observe.joins import Call, Joiner, Source, Work
from fusionlab.observe.structure import steps
from fusionlab.observe.trace import read_trace
from fusionlab.show.timeline import timeline
from fusionlab.show.timeline_rows import launches
from tests.lab.observe.traces import kernel, launch, op, write

RANKS = 3
END = {"ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": 9999.0}


def rank(number: int, device: int | None = None, count: int = 30, late: float = 20.0) -> list[dict]:
    """What rank `number` records of the common program: the same correlations and ids, each `late` µs later."""
    generator = torch.Generator().manual_seed(number)
    jitter = torch.rand(count, generator=generator).mul(6).tolist()
    pid, device = {"pid": 4000 + number, "tid": 1}, number if device is None else device
    start = [100.0 * i + round(late * number + jitter[i], 3) for i in range(count)]
    events = [op(i + 1, start[i], 20.0, f"op {i} of rank {number}") | pid for i in range(count)]
    events += [launch(i + 1, start[i] + 5, 4.0, i + 1) | pid for i in range(count)]
    work = {i: kernel(i + 1, start[i] + 12, 6.0, f"kernel {i} of rank {number}", device=device) for i in range(count)}
    for i in range(count):
        work[i]["args"]["External id"] = i + 1
    events += work.values()
    mark = {"ph": "X", "cat": "user_annotation", "name": f"ProfilerStep#{number}", "ts": start[0], "dur": 950.0}
    return [*events, mark | pid | {"args": {}}, copy.deepcopy(END)]


def by_time(events: list[dict]) -> list[dict]:
    return sorted(events, key=lambda event: event["ts"])


def sglang(ranks: list[list[dict]]) -> list[dict]:
    """SGLang's ProfileMerger puts a label before every process number, even of GPU events."""
    return by_time(
        [event | {"pid": f"[TP{number:02d}] {event['pid']}"} for number, part in enumerate(ranks) for event in part]
    )


def tracelens(ranks: list[list[dict]]) -> list[dict]:
    """AMD's TraceLens shifts process numbers and correlations, leaves External ids, and adds the rank."""
    merged = []
    for number, part in enumerate(ranks):
        for event in copy.deepcopy(part):
            event.setdefault("args", {})["rank"] = number
            if isinstance(event["pid"], int):
                event["pid"] += number * 100_000
            if "correlation" in event["args"]:
                event["args"]["correlation"] += number * 1000
            merged.append(event)
    return by_time(merged)


def thousands(ranks: list[list[dict]]) -> list[dict]:
    """ROCm's aorta gives rank N the process numbers 1000 N for its GPU and 1000 N + 500 for its CPU."""
    merged = []
    for number, part in enumerate(ranks):
        for event in part:
            host = event.get("cat") in ("cpu_op", "cuda_runtime", "user_annotation")
            merged.append(event | {"pid": 1000 * number + 500 * host})
    return merged


def one_behind_another(ranks: list[list[dict]]) -> list[dict]:
    return [event for part in ranks for event in part]


def without_marks(ranks: list[list[dict]]) -> list[dict]:
    return by_time([event for part in ranks for event in part if event["name"] != END["name"]])


def joins(trace) -> dict[str, tuple]:
    return {
        k.name: (k.op, k.queue_us, k.launch and (k.launch.correlation % 1000, k.launch.duration_us), k.gap_us)
        for k in trace.kernels
    }


@pytest.mark.parametrize("same_device", [False, True])
@pytest.mark.parametrize("merge", [sglang, tracelens, thousands, one_behind_another, without_marks])
def test_ranks_are_joined_as_each_alone(tmp_path, merge, same_device):
    """Sorted, without labels and with every GPU called 0, not all can be distinguished; then none is confused."""
    ranks = [rank(number, device=0 if same_device else None) for number in range(RANKS)]
    alone = {}
    for part in ranks:
        alone |= joins(read_trace(write(tmp_path / "one", part)))
    assert all(found[0] == name.replace("kernel", "op") and found[1] == 3.0 for name, found in alone.items())
    trace = read_trace(write(tmp_path / "merged", merge(ranks)))
    merged = joins(trace)
    assert len(merged) == len(alone) == RANKS * 30
    if merge is without_marks and same_device:
        assert all(found[:3] == alone[name][:3] or found[:3] == (None, None, None) for name, found in merged.items())
        (flaw,) = trace.flaws
        assert "more than one process in this file may have made it" in flaw.what
        assert flaw.count == sum(found[2] is None for found in merged.values()) > 0
    else:
        assert merged == alone and trace.flaws == ()
        assert len({k.process for k in trace.kernels}) == RANKS == len(trace.processes)


@pytest.mark.parametrize("merge", [sglang, tracelens, one_behind_another])
def test_what_a_file_says_of_ranks_is_enough(tmp_path, merge):
    """Ranks synchronous to the nanosecond, each on its GPU 0, so that time does not help."""
    ranks = []
    for number in range(RANKS):
        text = json.dumps(rank(0, device=0, late=0)).replace("of rank 0", f"of rank {number}")
        ranks.append(json.loads(text.replace('"pid": 4000', f'"pid": {4000 + number}')))
    trace = read_trace(write(tmp_path / "merged", merge(ranks)))
    assert all(found[:2] == (name.replace("kernel", "op"), 3.0) for name, found in joins(trace).items())
    assert trace.flaws == () and len(joins(trace)) == RANKS * 30


def test_processes_of_one_number_on_two_machines(tmp_path):
    """In containers, every rank may be process 17; the parts of the file distinguish them."""
    ranks = [rank(number, device=0) for number in range(2)]
    alone = joins(read_trace(write(tmp_path / "a", ranks[0]))) | joins(read_trace(write(tmp_path / "b", ranks[1])))
    for part in ranks:
        for event in part:
            event["pid"] = 17 if event.get("cat") in ("cpu_op", "cuda_runtime", "user_annotation") else event["pid"]
    trace = read_trace(write(tmp_path / "merged", ranks[0] + ranks[1]))
    assert joins(trace) == alone
    assert trace.processes == ["1:17", "2:17"]
    assert {k.process for k in trace.kernels} == {"1:17", "2:17"}
    assert {o.thread for o in trace.ops} == {"1:17/1", "2:17/1"}


def test_steps_and_figures_keep_ranks_apart(tmp_path):
    trace = read_trace(write(tmp_path / "t", sglang([rank(0), rank(1)])))
    for number, step in enumerate(sorted(steps(trace), key=lambda step: step.marks[0].name)):
        assert {k.name.rpartition(" ")[2] for k in step.kernels} == {str(number)}
        assert len(step.kernels) == len(step.ops) == len(step.launches) == 10
    assert len(launches(trace)) == 60
    figure = timeline({"both": trace.between(0, 400)}).fig
    rows = figure.layout.yaxis.ticktext
    assert [row for row in rows if "launches" in row] == ["launches<br>[TP00] 4000", "launches<br>[TP01] 4001"]
    assert [row for row in rows if "stream" in row] == [
        "GPU 0, stream 7<br>[TP00] 4000",
        "GPU 1, stream 7<br>[TP01] 4001",
    ]


def test_one_process_is_joined_whatever_its_events_say(tmp_path):
    """A merge of one, a GPU event that seems to end before its launch, and an id that differs."""
    events = [launch(1, 50, 2, 1), kernel(1, 10, 1, **{"External id": 2}), op(1, 0, 1, "a"), op(2, 0, 1, "b"), END]
    (found,) = read_trace(write(tmp_path / "t", events)).kernels
    assert (found.launch.correlation, found.queue_us, found.op, found.process) == (1, -42.0, "b", None)


def test_two_gpus_of_one_process_among_others(tmp_path):
    """A process may drive two devices; then neither of them belongs to another process."""
    first = rank(0) + [kernel(i + 1, 100.0 * i + 15, 1.0, f"more {i} of rank 0", device=5) for i in range(30)]
    trace = read_trace(write(tmp_path / "t", without_marks([first, rank(1)])))
    assert all(k.launch and k.launch.process == f"400{k.name[-1]}" for k in trace.kernels)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(0, 50)), max_size=12),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 60)), max_size=12),
    st.booleans(),
)
def test_any_joins_are_within_a_candidate_process(calls, works, labelled):
    """A launch always has the same correlation and, with labels, the same label."""
    made = [
        Call(Source(0, f"r{p}" if labelled else "", str(100 + p)), correlation, None, start, key)
        for key, (p, correlation, start) in enumerate(calls)
    ]
    done = [
        Work(Source(0, f"r{p}" if labelled else "", str(p)), 0, correlation, None, end) for p, correlation, end in works
    ]
    joiner = Joiner({call.source for call in made}, made, done)
    labels = {call.source.label for call in made}
    for work in done:
        call, ambiguous = joiner.launch(work)
        assert not (call and ambiguous)
        if call:
            assert call.correlation == work.correlation
            assert not labelled or work.source.label not in labels or call.source.label == work.source.label


def test_the_order_in_the_file_does_not_matter(tmp_path):
    ranks = [rank(number) for number in range(RANKS)]
    events = without_marks(ranks)
    generator = torch.Generator().manual_seed(1)
    shuffled = [events[i] for i in torch.randperm(len(events), generator=generator).tolist()]
    paths = [write(tmp_path / name, found) for name, found in (("a", events), ("b", shuffled))]
    assert json.loads(paths[0].read_text()) != json.loads(paths[1].read_text())
    assert joins(read_trace(paths[0])) == joins(read_trace(paths[1]))
