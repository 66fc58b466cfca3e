"""Nesting and steps: hand-made answers, and PyTorch's own tree and self times for comparison."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from fusionlab.observe.structure import nest, self_totals, steps
from fusionlab.observe.trace import Op, read_trace
from tests.lab.observe.traces import kernel, launch, op, write


def call(name, start, duration, thread="1/1"):
    return Op(name, start, duration, None, thread)


def mark(name, ts, dur):
    return {"ph": "X", "cat": "user_annotation", "name": name, "pid": 9, "tid": 9, "ts": ts, "dur": dur}


def test_known_tree():
    ops = [
        call("outer", 0.0, 100.0),
        call("first", 10.0, 20.0),
        call("inside", 10.0, 5.0),
        call("elsewhere", 12.0, 500.0, thread="1/2"),
        call("second", 40.0, 60.001),  # ends a nanosecond late, by rounding
        call("after", 101.0, 1.0),
    ]
    found = nest(ops)
    assert [n.parent for n in found] == [None, 0, 1, None, 0, None]
    assert [n.children for n in found] == [(1, 4), (2,), (), (), (), ()]
    assert [n.depth for n in found] == [0, 1, 2, 0, 1, 0]
    assert [n.self_us for n in found] == pytest.approx([19.999, 15.0, 5.0, 500.0, 60.001, 1.0])
    assert nest([]) == ()


def test_self_times_count_nothing_twice():
    ops = [call("a", 0.0, 10.0), call("a", 1.0, 8.0), call("b", 2.0, 4.0)]
    assert {name: (t.count, t.duration_us) for name, t in self_totals(ops).items()} == {"a": (2, 6.0), "b": (1, 4.0)}


def test_overlap_without_nesting_is_no_child():
    """Two crossing ranges, as in a hostile or broken file, count as siblings, without negative times."""
    found = nest([call("a", 0.0, 10.0), call("b", 5.0, 10.0), call("c", 6.0, 1.0)])
    assert [n.parent for n in found] == [None, None, 1]
    assert all(n.self_us >= 0 for n in found)


def test_against_pytorchs_own_tree(tmp_path):
    """Parents, children and self times of a real trace equal the profiler's `cpu_parent` and `self_cpu_time_total`."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("a range"):
        a = torch.randn(64, 64)
        torch.nn.functional.layer_norm(torch.softmax(a @ a, -1).exp().mul(2).bfloat16(), (64,)).float().sum()
    path = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(path))
    trace = read_trace(path)
    assert [m.name for m in trace.marks] == ["a range"]
    found = nest(trace.ops)
    ours = {n.op.external_id: n for n in found}
    compared, merged = 0, set()
    for event in profiler.events():
        if event.id not in ours or not event.name.startswith("aten::"):
            continue
        nested = ours[event.id]
        assert nested.op.name == event.name
        around = {found[i].op.name for i in (*nested.children, nested.parent) if i is not None}
        if event.name in around:
            merged.add(
                event.name
            )  # PyTorch merges an op with its only child if both have the same name, so names are compared
            continue
        outer = event.cpu_parent
        parent = None if nested.parent is None else found[nested.parent].op.name
        assert parent == (None if outer is None or outer.name == "a range" else outer.name)
        assert nested.self_us == pytest.approx(event.self_cpu_time_total, abs=0.02)
        compared += 1
    assert compared >= 12 and max(n.depth for n in found) >= 2
    averages = {a.key: a for a in profiler.key_averages() if a.key.startswith("aten::")}
    for name, total in self_totals(trace.ops).items():
        if name.startswith("aten::") and name not in merged:
            assert total.duration_us == pytest.approx(averages[name].self_cpu_time_total, abs=0.1)


def test_steps_take_what_they_launched(tmp_path):
    """A kernel that runs after its step ended still belongs to the step that launched it."""
    events = [
        mark("fusionlib step 0", 0.0, 50.0),
        mark("fusionlib step 1", 60.0, 50.0),
        op(1, 5.0, 10.0, "aten::mul"),
        op(2, 65.0, 10.0, "aten::add"),
        launch(1, 6.0, 2.0, external=1),
        launch(2, 66.0, 2.0, external=2),
        kernel(1, 70.0, 5.0, name="late"),
        kernel(2, 76.0, 5.0, name="second"),
        kernel(0, 40.0, 1.0, name="no launch"),
    ]
    trace = read_trace(write(tmp_path / "t", events))
    first, second = steps(trace)
    assert [k.name for k in first.kernels] == ["no launch", "late"] and [k.name for k in second.kernels] == ["second"]
    assert [o.name for o in first.ops] == ["aten::mul"] and [o.name for o in second.ops] == ["aten::add"]
    assert second.kernels[0].gap_us == 1.0  # of the whole trace
    assert (len(first.launches), first.marks[0].name) == (1, "fusionlib step 0")


def test_without_marks_there_is_one_step(tmp_path):
    trace = read_trace(write(tmp_path / "t", [kernel(1, 0.0, 1.0)]))
    assert steps(trace) == [trace]
