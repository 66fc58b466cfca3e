"""A function whose graphs were edited: the edit, and nothing else, decides the result."""

import pytest
import torch
from torch import fx

from fusionlib.testing.run_edited import run_edited

aten = torch.ops.aten


def sine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.sin() * y


def cosine_for_sine(graph: fx.Graph) -> None:
    for node in graph.find_nodes(op="call_function", target=aten.sin.default):
        node.target = aten.cos.default


def nothing(graph: fx.Graph) -> None:
    pass


def test_the_edit_decides_what_comes_out():
    x, y = torch.randn(2, 5, 3)
    assert torch.equal(run_edited(nothing, sine, x, y), x.sin() * y)
    assert torch.equal(run_edited(cosine_for_sine, sine, x, y), x.cos() * y)
    assert torch.equal(run_edited(nothing, sine, x, y), x.sin() * y)  # traced anew: no earlier edit is kept


def test_every_graph_is_edited():
    def broken(x, y):
        z = sine(x, y)
        torch._dynamo.graph_break()
        return sine(z, y)

    x, y = torch.randn(2, 5, 3)
    assert torch.equal(run_edited(cosine_for_sine, broken, x, y), (x.cos() * y).cos() * y)


@pytest.mark.parametrize("dynamic", [(), (0, 1)], ids=["static", "dynamic"])
def test_the_first_dimension_is_a_symbol_only_where_it_is_asked_for(dynamic):
    """Also with a second size, which Dynamo would make symbolic if it remembered the first."""
    sizes = []

    def keep(graph: fx.Graph) -> None:
        (call,) = graph.find_nodes(op="call_function", target=aten.sin.default)
        sizes.append(tuple(call.meta["val"].shape))

    for tokens in (5, 7):
        x, y = torch.randn(2, tokens, 3)
        assert torch.equal(run_edited(keep, sine, x, y, dynamic=dynamic), x.sin() * y)
    assert [isinstance(size[0], torch.SymInt) for size in sizes] == [bool(dynamic)] * 2
    assert dynamic or sizes == [(5, 3), (7, 3)]


@pytest.mark.parametrize("grad", [False, True])
def test_values_are_saved_for_a_gradient_only_where_it_is_asked_for(grad):
    outputs = []
    x, y = torch.randn(2, 5, 3)
    got = run_edited(
        lambda graph: outputs.append(len(graph.output_node().args[0])), sine, x.requires_grad_(), y, grad=grad
    )
    assert got.requires_grad == grad
    assert outputs[0] > 1 if grad else outputs == [1]


def test_an_edit_that_fails_says_so():
    def fails(graph: fx.Graph) -> None:
        raise LookupError("no such node")

    with pytest.raises(Exception, match="no such node"):
        run_edited(fails, sine, *torch.randn(2, 5, 3))
