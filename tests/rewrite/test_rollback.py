"""A rewrite that is stopped, wherever, leaves the graph as it was: nodes, order, arguments, users and metadata."""

import pytest
import torch
from torch import fx

from fusionlib import GroupQuant, explain, op, reference
from fusionlib.rewrite import FusionPass, replace
from fusionlib.rewrite.journal import Journal
from tests.graphs import small_graph
from tests.rewrite.test_packing import PACKED, UNPACKED
from tests.spellings import NormSpelling, QuantSpelling, inputs, run_rewritten, site

aten = torch.ops.aten


def value(x, z, w):
    return NormSpelling()(x, z, w).flatten(1)


def packed(x, z, w):
    codes, scale = reference.group_quant(value(x, z, w), UNPACKED)
    return codes, reference.lay_out_scales(scale, PACKED)


def returns_the_value(x, z, w):
    y = value(x, z, w)
    return *QuantSpelling()(y), y


def quantised_twice(x, z, w):
    y = value(x, z, w)
    return *QuantSpelling()(y), *QuantSpelling(group=64)(y)


def quantised_alike(x, z, w):
    y = value(x, z, w)
    return *QuantSpelling()(y), *op.group_quant(y, GroupQuant.vllm())


def padded(x, z, w):
    codes, scale = reference.group_quant(value(x, z, w), GroupQuant())
    return codes, reference.lay_out_scales(scale, GroupQuant(scale_layout="column_major_padded"))


def opaque(quant):
    return lambda x, z, w: op.group_quant(value(x, z, w), quant)


PATHS = {
    "row-major": site(NormSpelling(), QuantSpelling()),
    "column-major": site(NormSpelling(), QuantSpelling(layout="column_major")),
    "packed": packed,
    "padded": padded,
    "opaque, column-major": opaque(GroupQuant(scale_layout="column_major")),
    "opaque, padded": opaque(GroupQuant(scale_layout="column_major_padded")),
    "opaque, packed": opaque(PACKED),
    "opaque, vector": opaque(GroupQuant(512, scale_layout="vector")),
    "value returned": returns_the_value,
    "quantised twice": quantised_twice,
    "quantised alike": quantised_alike,
}
each_path = pytest.mark.parametrize("name", PATHS)


def graph_of(fn) -> fx.Graph:
    """The graph of `fn` as the pass gets it."""
    graphs = []
    explain(fn, *inputs(), devices=(), watch=lambda module, _: graphs.append(module.graph))
    (graph,) = graphs
    return graph


def state(graph: fx.Graph) -> list:
    """All that a graph is: its very nodes in order, what they call, read and are read by, and their metadata."""
    nodes = [
        (node, node.name, node.op, node.target, node.args, dict(node.kwargs), list(node.users), dict(node.meta))
        for node in graph.nodes
    ]
    calls = {node.target for node in graph.nodes if node.op == "call_function"}
    found = [graph.find_nodes(op="call_function", target=target) for target in calls]
    return [nodes, list(reversed(graph.nodes)), len(graph.nodes), sorted(node for some in found for node in some)]


class Planted(Exception):
    """What the tests below raise inside of a rewrite."""


def failing(monkeypatch, fails_at: int, when: str) -> list[str]:
    """Let change number `fails_at` of a rewrite fail, before or after it is made; the changes that were made."""
    made: list[str] = []

    def wrapped(name):
        original = getattr(Journal, name)

        def change(self, *args):
            made.append(name)
            if len(made) - 1 == fails_at and when == "before":
                raise Planted
            result = original(self, *args)
            if len(made) - 1 == fails_at:
                raise Planted
            return result

        return change

    for name in ("insert", "replace", "erase"):
        monkeypatch.setattr(Journal, name, wrapped(name))
    return made


@each_path
def test_a_failure_at_any_change_is_taken_back(name, monkeypatch):
    graph = graph_of(PATHS[name])
    before, changes, fails_at = state(graph), [], 0
    while True:
        with monkeypatch.context() as patch:
            when = ("before", "after")[fails_at % 2]
            changes = failing(patch, fails_at // 2, when)
            sites = FusionPass(("cpu",)).rewrite(graph).sites
        if all(site.fused for site in sites):
            break
        assert {site.code for site in sites} == {"internal_error"} and "Planted" in sites[0].found
        assert state(graph) == before, f"change {fails_at // 2} ({changes[-1]}), {when} it was made"
        fails_at += 1
    assert fails_at == 2 * len(changes) and set(changes) == {"insert", "replace", "erase"}
    assert state(graph) != before
    graph.lint()


@each_path
@pytest.mark.parametrize("event", ["create", "replace", "erase"])
def test_a_failure_inside_of_a_change_is_taken_back(name, event):
    """FX tells listeners in the middle of what it does: a call is a user already, half of the users have changed."""
    graph = graph_of(PATHS[name])
    before, fails_at, heard = state(graph), 0, 0
    register, unregister = (
        getattr(graph.owning_module, f"_{verb}_{event}_node_hook") for verb in ("register", "unregister")
    )

    def listener(*_, **__):
        nonlocal heard
        heard += 1
        if heard - 1 == fails_at:
            raise Planted

    register(listener)
    while True:
        heard = 0
        sites = FusionPass(("cpu",)).rewrite(graph).sites
        if all(site.fused for site in sites):
            break
        assert {site.code for site in sites} == {"internal_error"}
        assert state(graph) == before, f"event {fails_at}"
        fails_at += 1
    unregister(listener)
    assert fails_at == heard > 0


def test_a_graph_that_is_broken_afterwards_is_taken_back(monkeypatch):
    graph = graph_of(quantised_twice)
    before = state(graph)
    monkeypatch.setattr(fx.Graph, "lint", lambda self: (_ for _ in ()).throw(Planted))
    sites = FusionPass(("cpu",)).rewrite(graph).sites
    assert [site.code for site in sites] == ["internal_error"] * 2
    assert state(graph) == before


def test_a_failure_at_one_site_leaves_the_others_fused(monkeypatch):
    def fn(x, z, w):
        return *PATHS["row-major"](x, z, w), *PATHS["row-major"](x * 2, z, w)

    original, calls = replace._new_values, []

    def last_fails(*args):
        calls.append(args)
        made = original(*args)
        if len(calls) == 1:
            raise Planted
        return made

    monkeypatch.setattr(replace, "_new_values", last_fails)
    tensors = inputs()
    got, report, _ = run_rewritten(fn, *tensors)
    assert [site.code for site in report] == ["", "internal_error"]  # the last site is rewritten first
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(got, fn(*tensors), strict=True))


def test_a_value_that_is_larger_than_the_norm_compiles():
    """One scale for three copies of a group: whatever is read, nothing is put in that does not fit."""

    def fn(x, z, w):
        groups = NormSpelling()(x, z, w).unsqueeze(1).float() * torch.ones(1, 3, 1, 1)
        scale = groups.abs().amax(-1, keepdim=True) / 448.0
        return (groups / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale

    tensors = inputs()
    got, report, graphs = run_rewritten(fn, *tensors)
    assert len(report.refused) == 1 and not report.fused
    assert not any("fusionlib" in str(node.target) for node in graphs[0].nodes)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(got, fn(*tensors), strict=True))


# The journal by itself.


def test_what_listeners_hear_of_an_undoing_leads_back():
    graph = small_graph()
    names = {node.name for node in graph.nodes}
    module, exp = graph.owning_module, next(node for node in graph.nodes if node.target is aten.exp.default)
    users = {user: exp for user in exp.users}
    module._register_create_node_hook(lambda node: names.add(node.name))
    module._register_erase_node_hook(lambda node: names.remove(node.name))
    module._register_replace_node_hook(lambda old, new, user: users.update({user: new}))
    before, journal = state(graph), Journal(graph)
    new = journal.insert(exp, aten.abs.default, exp.args, {})
    journal.replace(exp, new)
    journal.erase(exp)
    assert len(journal) == 3 and exp.name not in names
    journal.undo()
    assert state(graph) == before and names == {node.name for node in graph.nodes}
    assert set(users.values()) == {exp.name}
    graph.lint()


def test_undoing_goes_back_to_a_point():
    graph = small_graph()
    exp, journal = next(node for node in graph.nodes if node.target is aten.exp.default), Journal(graph)
    first = journal.insert(exp, aten.abs.default, exp.args, {})
    between, point = state(graph), len(journal)
    journal.replace(exp, first)
    journal.erase(exp)
    journal.undo(point)
    assert state(graph) == between
    module = graph.owning_module
    module.recompile()
    x = torch.randn(3)
    assert torch.equal(module(x), (x.neg().exp() + 1).sin())
