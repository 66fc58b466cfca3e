"""Views become reshapes, chains become one, and the pattern has the same normal form as the searched graph."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from fusionlib.pattern import fold_consecutive_reshapes, trace_fn, view_to_reshape

aten = torch.ops.aten


def traced(fn, *args):
    return make_fx(fn)(*args)


def targets(graph) -> list[object]:
    return [node.target for node in graph.nodes if node.op == "call_function"]


def test_views_become_reshapes_and_values_stay():
    x = torch.randn(4, 6)
    module = traced(lambda x: x.view(2, 12) + 1, x)
    assert view_to_reshape(module.graph) == 1
    module.recompile()
    assert targets(module.graph) == [aten.reshape.default, aten.add.Tensor]
    assert torch.equal(module(x), x.view(2, 12) + 1)


def test_a_chain_becomes_its_last_reshape():
    x = torch.randn(4, 6)
    module = traced(lambda x: x.view(24).view(2, 12).view(3, 8).neg(), x)
    view_to_reshape(module.graph)
    assert fold_consecutive_reshapes(module.graph) == 2
    module.graph.lint()
    module.recompile()
    assert targets(module.graph) == [aten.reshape.default, aten.neg.default]
    assert torch.equal(module(x), x.view(3, 8).neg())


def test_a_reshape_that_somebody_else_reads_stays_for_them():
    x = torch.randn(4, 6)

    def fn(x):
        flat = x.view(24)
        return flat.view(2, 12).neg(), flat.exp()

    module = traced(fn, x)
    view_to_reshape(module.graph)
    assert fold_consecutive_reshapes(module.graph) == 1
    module.graph.lint()
    module.recompile()
    assert targets(module.graph).count(aten.reshape.default) == 2
    assert all(map(torch.equal, module(x), fn(x)))


def test_nothing_to_fold_changes_nothing():
    module = traced(lambda x: x.neg().view(24), torch.randn(4, 6))
    view_to_reshape(module.graph)
    assert fold_consecutive_reshapes(module.graph) == 0


def test_trace_fn_takes_what_any_supported_torch_passes_and_functionalises():
    def fn(x):
        out = torch.empty_like(x)
        out.copy_(x.view(24).view(4, 6) * 2)
        return out

    for extra in ({}, {"get_decomp_fn": dict}):
        graph = trace_fn(fn, [torch.randn(4, 6)], **extra).graph
        assert not any(getattr(t, "_schema", None) is not None and t._schema.is_mutable for t in targets(graph))
        assert targets(graph).count(aten.view.default) == 0
        assert targets(graph).count(aten.reshape.default) <= 1
