"""A recording says how one graph became another: its events, applied to the nodes before, give the nodes after."""

import dataclasses
import json

import pytest
import torch
from torch import fx

from fusionlab.recorder import NodeRecord, Recorder, Recording, record, snapshot
from fusionlab.spellings import make_inputs, written_norm
from fusionlib import GatedNorm, GroupQuant, op
from fusionlib.layers import AttentionOutput
from fusionlib.pattern import HeadShape, TracedPass
from fusionlib.rewrite import FusionPass
from fusionlib.testing.run_edited import run_edited
from tests.graphs import give_the_name_of_exp_to_abs, small_graph

aten = torch.ops.aten
HOOKS = pytest.mark.parametrize("hooks", [True, False], ids=["hooks", "names"])
PASSES = pytest.mark.parametrize(
    "make_pass",
    [
        lambda: FusionPass(("cpu",)),
        lambda: TracedPass([HeadShape(4, GatedNorm.vllm(128))], devices=("cpu",)),
    ],
    ids=["semantic", "traced"],
)


def path(x, gate, weight):
    return op.group_quant(written_norm(x, gate, weight).flatten(1), GroupQuant.vllm())


def recorded(make_pass, hooks: bool | None, fn=path, inputs=None) -> Recording:
    recorder = Recorder(make_pass(), hooks=hooks)
    run_edited(recorder, fn, *(inputs or make_inputs()))
    assert len(recorder.recordings) == 1
    return recorder.recordings[0]


def names(nodes) -> set[str]:
    return {node.name for node in nodes}


@HOOKS
@PASSES
def test_replaying_the_events_gives_the_graph_after(make_pass, hooks):
    recording = recorded(make_pass, hooks)
    assert recording.source == ("hooks" if hooks else "names")
    assert recording.replay() == names(recording.after) != names(recording.before)
    assert [event.order for event in recording.events] == list(range(len(recording.events)))


@HOOKS
@PASSES
def test_the_fused_call_is_made_and_the_quantisation_erased(make_pass, hooks):
    recording = recorded(make_pass, hooks)
    made = {event.node.target: event.node for event in recording.events if event.kind == "made"}
    erased = [event.node.target for event in recording.events if event.kind == "erased"]
    assert "fusionlib.rms_norm_gated_group_quant.default" in made
    assert "fusionlib.group_quant.default" in erased and "aten.rsqrt.default" in erased
    assert any(event.kind == "replaced" and event.user == "output" for event in recording.events)
    tensors = [node for node in recording.after if node.shape is not None]
    codes = next(node for node in tensors if node.dtype == "float8_e4m3fn")
    assert (codes.shape, codes.stride) == ((6, 512), (512, 1))


def test_nodes_carry_their_source_line():
    recording = recorded(lambda: FusionPass(("cpu",)), None)
    rsqrt = next(node for node in recording.before if node.target == "aten.rsqrt.default")
    assert "spellings.py:" in rsqrt.line
    assert (rsqrt.dtype, rsqrt.shape, rsqrt.inputs) == ("float32", (24, 1, 1), ("add_1",))


@HOOKS
def test_a_whole_model(hooks):
    model = AttentionOutput(4, 128, 256)
    x, gate = torch.randn(2, 6, 4, 128, dtype=torch.bfloat16)
    recording = recorded(lambda: FusionPass(("cpu",)), hooks, model, (x, gate))
    assert recording.replay() == names(recording.after)


@HOOKS
def test_a_recording_is_data(hooks):
    recording = recorded(lambda: FusionPass(("cpu",)), hooks)
    assert Recording.from_json(recording.to_json()) == recording
    assert json.loads(recording.to_json())["source"] == recording.source
    with pytest.raises(dataclasses.FrozenInstanceError):
        recording.events[0].order = 1


def swap_exp_for_abs(graph: fx.Graph) -> None:
    exp = next(node for node in graph.nodes if node.target is aten.exp.default)
    with graph.inserting_before(exp):
        new = graph.call_function(aten.abs.default, exp.args)
        dead = graph.call_function(aten.relu.default, (new,))
    exp.replace_all_uses_with(new)
    graph.erase_node(dead)
    graph.erase_node(exp)


def told(recording: Recording) -> list[tuple]:
    return [(event.kind, event.node.name, event.by, event.user) for event in recording.events]


def test_hooks_tell_the_true_order_and_what_came_and_went():
    recording = record(small_graph(), swap_exp_for_abs)
    assert recording.source == "hooks"
    assert told(recording) == [
        ("made", "abs_default", None, None),
        ("made", "relu_default", None, None),
        ("replaced", "exp", "abs_default", "add"),
        ("erased", "relu_default", None, None),
        ("erased", "exp", None, None),
    ]
    assert recording.events[1].node.inputs == ("abs_default",)


def test_names_tell_the_difference():
    recording = record(small_graph(), swap_exp_for_abs, hooks=False)
    assert told(recording) == [
        ("made", "abs_default", None, None),
        ("replaced", "exp", "abs_default", "add"),
        ("erased", "exp", None, None),
    ]


def test_a_graph_without_a_module_falls_back_to_names():
    graph = fx.Graph()
    graph.output(graph.call_function(torch.neg, (graph.placeholder("x"),)))

    def edit(graph: fx.Graph) -> None:
        neg = next(node for node in graph.nodes if node.target is torch.neg)
        with graph.inserting_after(neg):
            new = graph.call_function(torch.abs, neg.args)
        neg.replace_all_uses_with(new)
        graph.erase_node(neg)

    recording = record(graph, edit)
    assert recording.source == "names"
    assert recording.replay() == names(recording.after)
    with pytest.raises(ValueError, match="hooks=True"):
        record(graph, lambda graph: None, hooks=True)


@HOOKS
def test_a_renamed_node(hooks):
    def edit(graph: fx.Graph) -> None:
        swap_exp_for_abs(graph)
        next(node for node in graph.nodes if node.target is aten.neg.default)._rename("minus")
        next(node for node in graph.nodes if node.target is aten.abs.default)._rename("size")

    recording = record(small_graph(), edit, hooks=hooks)
    assert recording.replay() == names(recording.after) >= {"minus", "size"}
    if hooks:
        assert [(kind, by) for kind, _, by, _ in told(recording)][-2:] == [("renamed", "minus"), ("renamed", "size")]


@HOOKS
def test_a_name_that_stands_for_something_else_afterwards(hooks):
    recording = record(small_graph(), give_the_name_of_exp_to_abs, hooks=hooks)
    assert recording.replay() == names(recording.after)


def test_hooks_are_gone_afterwards_even_if_the_edit_fails():
    graph = small_graph()
    with pytest.raises(RuntimeError, match="no"):
        record(graph, lambda graph: (_ for _ in ()).throw(RuntimeError("no")))
    module = graph.owning_module
    assert not module._create_node_hooks and not module._erase_node_hooks and not module._replace_hooks


def test_nothing_done_is_no_event():
    for hooks in (True, False):
        recording = record(small_graph(), lambda graph: None, hooks=hooks)
        assert recording.events == () and recording.before == recording.after


def test_symbolic_sizes_are_text():
    recorder = Recorder(FusionPass(("cpu",)))
    run_edited(recorder, path, *make_inputs(), dynamic=(0, 1))
    sizes = [size for node in recorder.recordings[0].after for size in node.shape or ()]
    assert any(isinstance(size, str) for size in sizes)
    assert json.loads(recorder.recordings[0].to_json())


def test_a_recorder_runs_where_its_pass_does_and_is_never_cached():
    recorder = Recorder(FusionPass(("cpu",)))
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(path, options={"post_grad_custom_pre_pass": recorder})(*make_inputs())
        torch._dynamo.reset()
        torch.compile(path, options={"post_grad_custom_pre_pass": recorder})(*make_inputs())
    assert len(recorder.recordings) == 2
    assert recorder.inner.report().fused
    assert recorder.uuid() is None


def test_a_snapshot_describes_what_is_no_tensor():
    nodes = snapshot(small_graph())
    assert nodes[-1] == NodeRecord("output", "output", "output", ("sin",))
