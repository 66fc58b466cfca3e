"""Nodes of a graph found in a trace of the same step, and not in a trace of another."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

from fusionlab.observe.nodes import match_nodes, node_ops, slices, with_eager_nodes
from fusionlab.observe.structure import nest
from fusionlab.observe.trace import read_trace
from tests.lab.observe.traces import kernel, launch, op
from tests.lab.show.traces import trace_of


def computation(a):
    half = a.to(torch.bfloat16)  # aten::to calls aten::_to_copy, which is the node
    return (half.float() * 2.0).abs().reshape(-1)  # abs calls itself on a CPU; reshape is a view in the graph


def recorded(tmp_path, function, *args):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function(*args)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    return read_trace(tmp_path / "trace.json")


def test_an_eager_step_runs_its_nodes_in_order(tmp_path):
    a = torch.ones(4, 4)
    graph = make_fx(computation, tracing_mode="fake")(a)
    found = slices(recorded(tmp_path, computation, a), graph)
    assert [(s.name, *s.nodes) for s in found] == [(name, node) for node, name in node_ops(graph)]
    assert [s.name for s in found] == ["aten::_to_copy", "aten::_to_copy", "aten::mul", "aten::abs", "aten::view"]


def test_another_computation_matches_nothing(tmp_path):
    a = torch.ones(4, 4)
    graph = make_fx(lambda a: a.abs().rsqrt(), tracing_mode="fake")(a)
    assert slices(recorded(tmp_path, computation, a), graph) == []


def test_what_an_operator_calls_belongs_to_its_node(tmp_path):
    events = [op(1, 0, 9, "aten::mean"), op(2, 1, 4, "aten::sum"), op(3, 20, 5, "aten::sum"), op(4, 30, 1, "aten::mm")]
    tree = nest(trace_of(tmp_path / "t", events).ops)
    assert match_nodes(tree, [("mean", "aten::mean"), ("sum_1", "aten::sum")]) == {0: "mean", 1: "mean", 2: "sum_1"}
    assert match_nodes(tree, [("sum_1", "aten::sum"), ("mean", "aten::mean")]) == {}


def test_kernels_get_the_nodes_of_the_operator_that_launched_them(tmp_path):
    a = torch.ones(4)
    graph = make_fx(lambda a: (a * a).rsqrt(), tracing_mode="fake")(a)
    events = [op(1, 0, 9, "aten::mul"), op(2, 10, 9, "aten::rsqrt"), op(3, 12, 5, "aten::helper")]
    events += [launch(i, 10.0 * i, 2.0, external) for i, external in ((0, 1), (1, 3), (2, 7))]
    events += [kernel(i, 30.0 + i, 0.5, f"k{i}") for i in range(3)]
    for event in events[3:]:  # correlation 0 is none
        event["args"]["correlation"] += 1
    trace = with_eager_nodes(trace_of(tmp_path / "t", events), graph)
    assert [k.nodes for k in trace.kernels] == [("mul",), ("rsqrt",), ()]
    named = with_eager_nodes(trace.with_nodes({"k0": ["other"]}), graph)
    assert named.kernels[0].nodes == ("other",)
    assert [s.nodes for s in slices(trace_of(tmp_path / "t", events), graph)] == [("mul",), ("rsqrt",)]
