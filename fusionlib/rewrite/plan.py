"""What a rewrite would read and write, decided before anything is changed: shapes of inputs, cone, users, layouts."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from math import prod

import torch
from torch import fx

from fusionlib.kernels.row_layout import row_layout
from fusionlib.match.graph import aten, below, is_call, numel, shape, value
from fusionlib.match.reasons import Stop
from fusionlib.match.result import Match
from fusionlib.match.sizes import equal, same_shape
from fusionlib.rewrite.scale_layout import ScaleTarget, scale_target
from fusionlib.spec import GroupQuant

#: A size of a reshape: a number, a node that is one, or dimension `dim` of a node.
Size = int | fx.Node | tuple[fx.Node, int]


@dataclass
class QuantPlan:
    """One quantisation of the site, with the layout its consumers want."""

    match: Match
    spec: GroupQuant
    target: ScaleTarget | None


@dataclass
class SitePlan:
    """All quantisations of one normed value: what one call replaces.

    `cone` are the tensor nodes between the inputs and the codes and scales, these included; `roots` says of each whose
    values it has, below reshapes, copies and exact casts; `dependent` are those that are computed from x or the gate,
    and `rebuilt` those that the fused call gives back: the normed value, codes and scales.
    """

    normed: fx.Node
    quants: list[QuantPlan]
    cone: set[fx.Node] = field(default_factory=set)
    roots: dict[fx.Node, fx.Node] = field(default_factory=dict)
    dependent: set[fx.Node] = field(default_factory=set)
    rebuilt: set[fx.Node] = field(default_factory=set)
    wants_normed: bool = False

    @property
    def first(self) -> Match:
        """The match that the call is made for; the others read the same norm."""
        return self.quants[0].match

    def inputs(self) -> list[fx.Node]:
        """x, gate and, where there are any, weight and bias."""
        norm = self.first.norm
        return [node for node in (norm.x, norm.gate, norm.weight, norm.bias) if node is not None]


def plan_sites(matches: list[Match]) -> list[SitePlan]:
    """Matches of one normed value are one site, in graph order."""
    by_normed: dict[fx.Node, SitePlan] = {}
    for match in matches:
        quant = match.quant
        target = None if quant.opaque or quant.scale is None else scale_target(match)
        spec = quant.spec if target is None else quant.spec.with_layout(target.layout)
        site = by_normed.setdefault(match.normed, SitePlan(match.normed, []))
        site.quants.append(QuantPlan(match, spec, target))
    for site in by_normed.values():
        site.rebuilt = {site.normed}.union(*((q.match.quant.codes, q.match.quant.scale) for q in site.quants))
        site.cone = _cone(site)
        _follow_values(site)
        site.wants_normed = _wants_normed(site)
    return list(by_normed.values())


def _follow_values(site: SitePlan) -> None:
    """Fill `roots` and `dependent`, in one walk from the inputs to the codes."""
    x_and_gate = site.inputs()[:2]
    for node in sorted(site.cone):
        source = below(node)
        site.roots[node] = node if source is None else site.roots.get(source, source)
        if any(n in site.dependent or n in x_and_gate for n in node.all_input_nodes):
            site.dependent.add(node)


def _cone(site: SitePlan) -> set[fx.Node]:
    """Every tensor node between the inputs of the site and its codes and scales, these included."""
    stop = set(site.inputs())
    ends = [q.match.quant.codes for q in site.quants] + [q.match.quant.scale for q in site.quants]
    stack, cone = [node for node in ends if node is not None], set()
    while stack:
        node = stack.pop()
        if node in cone or node in stop or node.op != "call_function":
            continue
        if value(node) is None and not is_tuple(node):
            continue
        cone.add(node)
        stack.extend(node.all_input_nodes)
    return cone


def is_tuple(node: fx.Node) -> bool:
    """Whether a node returns several values."""
    return isinstance(node.meta.get("val"), (tuple, list))


def outside_users(node: fx.Node, cone: set[fx.Node]) -> list[fx.Node]:
    """The users of a node that are no part of the site."""
    return [user for user in node.users if user not in cone and not needs_nothing(user)]


def needs_nothing(user: fx.Node) -> bool:
    """Whether a node has neither a result that is read nor an effect: an output taken and left, a check of a dtype.

    `torch.export` puts such checks behind casts; what they say of a tensor is known when it is traced.
    """
    return not user.users and (user.target is operator.getitem or is_call(user, aten._assert_tensor_metadata.default))


def _wants_normed(site: SitePlan) -> bool:
    if any(q.spec != site.quants[0].spec for q in site.quants):
        return True
    forms = (node for node in site.cone if site.roots[node] is site.normed)
    return any(outside_users(node, site.cone) for node in forms)


def free_to_use(node: fx.Node, site: SitePlan) -> bool:
    """Whether a node of the cone may have users outside: it stays valid, or is rebuilt from the fused result."""
    root = site.roots[node]
    while is_call(root, aten.expand.default):
        root = site.roots.get(root.args[0], root.args[0])
    return root in site.rebuilt or root in site.inputs() or node not in site.dependent


def input_sizes(node: fx.Node, hidden: int) -> list[int] | None:
    """The sizes to reshape x or gate to, a view where that can be; None where it is [tokens, ...] as it stands."""
    sizes = shape(node)
    for lead in range(1, len(sizes)):
        tail = sizes[lead:]
        if all(isinstance(size, int) for size in tail) and prod(tail) == hidden and len(tail) <= 3:
            return None if lead == 1 else [-1, *tail]
    for lead in range(1, len(sizes)):
        # [tokens * heads, head_dim]: no dimension ends where a token does.
        if isinstance(sizes[-1], int) and hidden % sizes[-1] == 0 and lead == len(sizes) - 1:
            return [-1, hidden // sizes[-1], sizes[-1]]
    return [-1, hidden]


def readable(node: fx.Node, site: SitePlan) -> tuple[fx.Node, bool]:
    """(what to read x or gate from, whether it must be copied first).

    Matching looked through every copy. Where the tensor at the bottom lies such that the op cannot read it, a copy that
    the graph makes anyway is read instead, and one is made only where there is none.
    """
    hidden = site.first.hidden
    tensors = (n for n in site.cone if n is not node and value(n) is not None)
    forms = [n for n in tensors if value(n).dtype == value(node).dtype and site.roots[n] is node]
    for form in (node, *sorted(forms)):
        if _lies_well(reshaped(value(form), input_sizes(form, hidden))):
            return form, False
    return node, True


def _lies_well(val: torch.Tensor) -> bool:
    return equal(val.stride(-1), 1) and row_layout(val) is not None


def reshaped(val: torch.Tensor, sizes: list[int] | None) -> torch.Tensor:
    """A fake tensor as `input_sizes` says."""
    return val if sizes is None else val.reshape(sizes)


def output_sizes(node: fx.Node, site: SitePlan, flat: tuple) -> list[Size] | None:
    """The sizes that bring a fused result of shape `flat` to that of `node`; None where it has it already."""
    wanted = shape(node)
    if same_shape(wanted, flat):
        return None
    found = {i: _size_node(size, node, site) for i, size in enumerate(wanted) if not isinstance(size, int)}
    missing = [i for i, size in found.items() if size is None]
    if len(missing) > 1:  # a view infers one size at most, so that the graph computes all others somewhere
        listed = ", ".join(str(wanted[i]) for i in missing)
        raise Stop("symbolic_shape", node, "sizes that the graph computes before it", f"{listed}, computed nowhere")
    inferred = next(iter(missing or found), None)
    sizes: list[Size] = [found.get(i, size) for i, size in enumerate(wanted)]
    if inferred is not None:
        sizes[inferred] = -1
    return sizes


def _size_node(size, node: fx.Node, site: SitePlan) -> Size | None:
    """Where a dynamic size comes from: a dimension of x or gate, or a number that the graph computes anyway."""
    for source in site.inputs()[:2]:
        for dim, candidate in enumerate(shape(source)):
            if equal(candidate, size):
                return source, dim
    for other in node.graph.nodes:
        if other is node:
            break
        val = other.meta.get("val")
        if isinstance(val, torch.SymInt) and equal(val, size) and not site.cone.intersection(other.all_input_nodes):
            return other
    return None


def tokens_of(site: SitePlan):
    """The number of tokens, maybe symbolic."""
    return numel(site.normed) // site.first.hidden
