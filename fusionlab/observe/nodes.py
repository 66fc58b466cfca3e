"""Which part of a trace ran which nodes of an FX graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from fusionlab.observe.structure import Nested, nest
from fusionlab.observe.trace import Trace


@dataclass(frozen=True, slots=True)
class Slice:
    """An interval of a trace that ran nodes of a graph: a kernel, or an operator on the CPU; times in microseconds."""

    name: str
    start_us: float
    duration_us: float
    nodes: tuple[str, ...]


def node_ops(graph: fx.Graph | fx.GraphModule) -> list[tuple[str, str]]:
    """The calls of an aten graph in order, as (node name, operator name), `aten::mul` for instance."""
    graph = graph.graph if isinstance(graph, fx.GraphModule) else graph
    calls = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return [(node.name, node.target._schema.name) for node in calls]


def match_nodes(tree: Sequence[Nested], nodes: Iterable[tuple[str, str]]) -> dict[int, str]:
    """Which node each operator of one step ran, including the operators it calls: index in `tree` -> node name.

    An eager step calls the operators of its graph in graph order, each possibly inside a composite one (`aten::to`
    calls `aten::_to_copy`) and possibly calling others. So the walk descends the tree until it meets the next node's
    operator; what follows the last one is ignored. If tree and graph disagree, so that nodes are left over, nothing is
    matched: no answer is better than a wrong one.
    """
    waiting = list(nodes)
    matched: dict[int, str] = {}
    met = 0
    for place, entry in enumerate(tree):
        if entry.parent in matched:
            matched[place] = matched[entry.parent]
        elif met < len(waiting) and entry.op.name == waiting[met][1]:
            matched[place] = waiting[met][0]
            met += 1
    return matched if met == len(waiting) else {}


def with_eager_nodes(trace: Trace, graph: fx.Graph | fx.GraphModule) -> Trace:
    """`trace`, of one eager step, with `Kernel.nodes` from the step's aten graph, by each launch's External id.

    A kernel that has nodes already keeps them, and one whose operator is unknown has none.
    """
    tree = nest(trace.ops)
    matched = match_nodes(tree, node_ops(graph))
    names: Mapping[int, str] = {
        tree[place].op.external_id: name for place, name in matched.items() if tree[place].op.external_id is not None
    }
    kernels = []
    for kernel in trace.kernels:
        name = names.get(kernel.launch.external_id) if kernel.launch and kernel.launch.external_id else None
        kernels.append(replace(kernel, nodes=(name,)) if name and not kernel.nodes else kernel)
    return replace(trace, kernels=tuple(kernels))


def slices(trace: Trace, graph: fx.Graph | fx.GraphModule) -> list[Slice]:
    """The slices of one eager step that ran nodes of its aten graph, in order of start; none if the two disagree."""
    if trace.kernels:
        kernels = with_eager_nodes(trace, graph).kernels
        return [Slice(k.name, k.start_us, k.duration_us, k.nodes) for k in kernels if k.nodes]
    tree = nest(trace.ops)
    matched = match_nodes(tree, node_ops(graph))
    first = [place for place in matched if tree[place].parent not in matched]
    ops = [(tree[place].op, matched[place]) for place in first]
    return [Slice(op.name, op.start_us, op.duration_us, (name,)) for op, name in ops]
