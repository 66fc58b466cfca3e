"""Playing a recording: the events lead to the graph that the pass left."""

import pytest
import torch
from torch import fx

from fusionlab.observe.capture import capture
from fusionlab.recorder import Recording, record, snapshot
from fusionlab.show.graph_states import _Player, play
from fusionlib.layers import AttentionOutput
from tests.graphs import give_the_name_of_exp_to_abs, small_graph

aten = torch.ops.aten


@pytest.fixture(scope="module")
def rewritten() -> Recording:
    x, gate = torch.randn(2, 6, 4, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        return capture(AttentionOutput(4, 128, 256).eval(), x, gate)[0].recording


def edges_of(nodes) -> set[tuple[str, str]]:
    return {(source, node.name) for node in nodes for source in node.inputs}


def test_the_first_state_is_before_and_the_last_is_after(rewritten):
    playback = play(rewritten)
    assert len(playback.states) == len(rewritten.events) + 1
    assert playback.before.live == {node.name for node in rewritten.before}
    assert playback.before.edges == edges_of(rewritten.before)
    assert playback.after.live == {node.name for node in rewritten.after}
    assert playback.after.edges == edges_of(rewritten.after)


def test_the_events_alone_lead_to_the_edges_of_after(rewritten):
    """Without the final correction, which exists for passes that set arguments without triggering hooks."""
    player = _Player(rewritten.before)
    for event in rewritten.events:
        list(player.apply(event))
    assert player.state((), "").edges == edges_of(rewritten.after)


def test_removed_added_and_kept_are_apart_and_everything(rewritten):
    playback = play(rewritten)
    parts = [playback.removed, playback.added, playback.kept]
    assert sorted(key for part in parts for key in part) == sorted(playback.nodes)
    targets = {playback.nodes[key].target for key in playback.added}
    assert "fusionlib.rms_norm_gated_group_quant.default" in targets
    assert all(playback.nodes[key].target != "aten.rsqrt.default" for key in playback.kept)


def test_every_step_is_told_and_touches_what_it_is_about(rewritten):
    playback = play(rewritten)
    total = len(rewritten.events)
    for number, (event, state) in enumerate(zip(rewritten.events, playback.states[1:], strict=True), start=1):
        assert state.sentence.startswith(f"Step {number} of {total}: ") and event.node.name in state.sentence
        assert (event.node.name if event.kind != "replaced" else event.user) in state.touched


def test_many_events_are_bundled(rewritten):
    playback = play(rewritten, most=5)
    assert 2 <= len(playback.states) <= 6
    assert playback.after.live == play(rewritten).after.live
    touched = set().union(*(state.touched for state in playback.states))
    assert touched == set().union(*(state.touched for state in play(rewritten).states))


@pytest.mark.parametrize("hooks", [True, False], ids=["hooks", "names"])
def test_a_name_that_stands_for_something_else_afterwards_is_two_nodes(hooks):
    playback = play(record(small_graph(), give_the_name_of_exp_to_abs, hooks=hooks))
    (old,), (new,) = playback.removed, playback.added
    assert {playback.nodes[old].target, playback.nodes[new].target} == {"aten.exp.default", "aten.abs.default"}
    assert (new, "add") in playback.after.edges and (old, "add") in playback.before.edges


def test_an_argument_set_past_the_hooks_is_right_at_the_end():
    def edit(graph: fx.Graph) -> None:
        x, neg, exp = list(graph.nodes)[:3]
        with graph.inserting_before(exp):
            new = graph.call_function(aten.abs.default, (x,))
        exp.args = (new,)
        graph.erase_node(neg)

    recording = record(small_graph(), edit)
    playback = play(recording)
    assert ("abs_default", "exp") in playback.after.edges and playback.removed == ["neg"]


def test_a_node_made_and_erased_on_the_way_is_in_no_end():
    def edit(graph: fx.Graph) -> None:
        first = next(iter(graph.nodes))
        with graph.inserting_after(first):
            new = graph.call_function(aten.abs.default, (first,))
        graph.erase_node(new)

    playback = play(record(small_graph(), edit))
    assert not playback.removed and not playback.added
    assert set(playback.nodes) - playback.before.live == {"abs_default"}


def test_nothing_done_is_one_state():
    nodes = snapshot(small_graph())
    playback = play(Recording(nodes, (), nodes, "names"))
    assert len(playback.states) == 1 and playback.before is playback.after


def test_new_nodes_are_listed_where_they_stand(rewritten):
    playback = play(rewritten)
    order = list(playback.nodes)
    fused = next(key for key in playback.added if "rms_norm" in key)
    assert order.index(playback.nodes[fused].inputs[0]) < order.index(fused) < order.index("output")


def test_what_a_figure_asks_for_again_and_again_is_computed_once(rewritten):
    """Graphs have thousands of nodes, and the figures ask for each."""
    playback = play(rewritten)
    for part in ("removed", "added", "kept", "edges"):
        assert getattr(playback, part) is getattr(playback, part)
