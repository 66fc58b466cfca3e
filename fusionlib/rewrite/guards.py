"""What a site must meet to be rewritten: device, inference, no writes in between, no other users, the contract."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from fusionlib.match.graph import describe, source_line, tensor_of, written_arguments
from fusionlib.match.reasons import Stop
from fusionlib.rewrite.plan import SitePlan, outside_users


@dataclass
class GraphFacts:
    """What guards need to know about a whole graph, found in one walk."""

    order: dict[fx.Node, int] = field(default_factory=dict)
    writes: dict[fx.Node, list[tuple[int, fx.Node]]] = field(default_factory=dict)  # storage: (position, writer)
    training: bool = False

    @classmethod
    def of(cls, graph: fx.Graph) -> GraphFacts:
        """Walk `graph` once."""
        facts = cls()
        for position, node in enumerate(graph.nodes):
            facts.order[node] = position
            if node.op == "placeholder" and str(node.target).startswith(("primals_", "tangents_")):
                facts.training = True
            for written in _written(node):
                facts.writes.setdefault(storage(written), []).append((position, node))
        return facts


def _written(node: fx.Node) -> list[fx.Node]:
    """The nodes whose storage a call writes to."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or not op._schema.is_mutable:
        return []
    arguments = dict(zip((a.name for a in op._schema.arguments), node.args, strict=False)) | node.kwargs
    return [arg for name in written_arguments(op) if isinstance(arg := arguments.get(name), fx.Node)]


def storage(node: fx.Node) -> fx.Node:
    """The node whose storage `node` is a view of, as far as schemas say."""
    while node.op == "call_function" and node.args:
        schema = getattr(node.target, "_schema", None)
        views = schema is not None and any(
            r.alias_info is not None and not r.alias_info.is_write for r in schema.returns
        )
        if not (views or getattr(node.target, "__name__", "") == "getitem") or not isinstance(node.args[0], fx.Node):
            break
        node = node.args[0]
    return node


def check(site: SitePlan, facts: GraphFacts, devices: tuple[str, ...]) -> None:
    """Raise Stop if the site must be left as it is.

    That includes sites where fusing would not pay: on a CPU, unless asked for, and wherever the op could only run the
    unfused reference (`_supported`). Where the kernel runs, no size was found at which two kernels or Inductor's one
    are faster (data/benchmarks).
    """
    first = site.reading.given_rows[0]
    device = tensor_of(first).device
    if device.type not in devices:
        raise Stop("device", first, f"a tensor on {' or '.join(devices)}", f"one on {device.type}")
    if facts.training:
        raise Stop("training", site.match.anchor, "a graph without a backward", "inputs that gradients are taken of")
    _no_write_between(site, facts)
    _no_other_users(site)
    _supported(site)


def _no_write_between(site: SitePlan, facts: GraphFacts) -> None:
    """The call reads its inputs where the producer ended; they must still hold what the graph read before."""
    end = facts.order[site.end]
    for node in site.reading.inputs if facts.writes else ():
        if not (writes := facts.writes.get(storage(node))):  # most often, and a weight may have many other users
            continue
        begin = min((facts.order[user] for user in node.users if user in site.cone), default=end)
        for position, writer in writes:
            if begin < position <= end:
                raise Stop("mutation", writer, f"%{node.name} unchanged until %{site.end.name}", describe(writer))


def _no_other_users(site: SitePlan) -> None:
    for node in sorted(site.cone):
        outside = outside_users(node, site.cone)
        if outside and not site.free_to_use(node):
            where = source_line(outside[0])
            found = f"{describe(node)} also used by %{outside[0].name}" + (f" at {where}" if where else "")
            raise Stop("intermediate_used", node, "no user outside of the computation", found)


def _supported(site: SitePlan) -> None:
    tensors = {name: None if given is None else given.fake for name, given in site.inputs.items()}
    for quant in site.quants:
        problem = site.fusion.problem(tensors, site.reading.spec, quant.spec)
        if problem is not None:
            raise Stop("unsupported", quant.match.anchor, "tensors that the fused op can run", problem)
