"""A small graph and edits of it, for the tests of recordings and of what is drawn of them."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten


def small_graph() -> fx.Graph:
    """sin(exp(-x) + 1), of x [3]: nodes neg, exp, add, sin."""
    return make_fx(lambda x: (x.neg().exp() + 1).sin())(torch.randn(3)).graph


def give_the_name_of_exp_to_abs(graph: fx.Graph) -> None:
    """abs in place of exp, under exp's name: afterwards the name stands for something else."""
    node = next(node for node in graph.nodes if node.target is aten.exp.default)
    with graph.inserting_before(node):
        new = graph.call_function(aten.abs.default, node.args)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    new.name = "exp"
