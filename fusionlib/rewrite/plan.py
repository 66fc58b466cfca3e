"""What a rewrite will read, copy, reshape and return, worked out once before anything is changed.

Guards check the plan and the replacement carries it out; neither works anything out again.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import fx

from fusionlib.contract import MAX_STEP
from fusionlib.fusions.fusion import VALUE, Fusion
from fusionlib.kernels.row_layout import row_layout
from fusionlib.match.graph import aten, below, computed_by, describe, input_of, is_call, numel, shape, tensor_of, value
from fusionlib.match.reasons import Stop
from fusionlib.match.result import Match, Reading
from fusionlib.match.sizes import Shape, equal, same_shape
from fusionlib.reference import scale_storage
from fusionlib.rewrite.scale_layout import ScaleTarget, scale_target
from fusionlib.spec import GroupQuant

#: A size of a reshape: a number, a node that holds one, or dimension `dim` of a node.
Size = int | fx.Node | tuple[fx.Node, int]
Sizes = Sequence[Size] | None


@dataclass(frozen=True)
class Input:
    """A tensor the op reads: `node`, copied first if necessary, then reshaped to `sizes`; `fake` is what it gets."""

    node: fx.Node
    must_copy: bool
    sizes: Sizes
    fake: torch.Tensor


@dataclass(frozen=True)
class QuantPlan:
    """One quantisation of the site, with the layout its consumers want."""

    match: Match
    spec: GroupQuant
    target: ScaleTarget | None


@dataclass
class SitePlan:
    """All quantisations of one value, which one call replaces.

    Args:
        match: the first of the matches; the others read the same producer.
        quants: the quantisations, in graph order; the call computes the first one's.
        cone: the tensor nodes between the inputs and the codes and scales, these included.
        roots: for each of them, the node whose values it has, below reshapes, copies and exact casts.
        dependent: those computed from an input with an element for each of the value's.
        kept: the values besides codes and scales that the call can return, by name; `wanted` are those it must.
        returned: all that the call can return: codes, scales and the kept values.
        inputs: what the call reads, by name; None if the graph has no such tensor.
        outputs: the sizes that reshape the results to the shapes of what they replace.
    """

    match: Match
    quants: list[QuantPlan]
    cone: set[fx.Node] = field(default_factory=set)
    roots: dict[fx.Node, fx.Node] = field(default_factory=dict)
    dependent: set[fx.Node] = field(default_factory=set)
    kept: dict[str, fx.Node] = field(default_factory=dict)
    wanted: frozenset[str] = frozenset()
    returned: set[fx.Node | None] = field(default_factory=set)
    inputs: dict[str, Input | None] = field(default_factory=dict)
    outputs: dict[fx.Node, Sizes] = field(default_factory=dict)

    @property
    def fusion(self) -> Fusion:
        """The fusion that takes this site."""
        return self.match.fusion

    @property
    def reading(self) -> Reading:
        """What was read of the producer."""
        return self.match.reading

    @property
    def end(self) -> fx.Node:
        """The node after which the call can go: all it reads comes before this, nothing it replaces does."""
        return self.match.value

    def free_to_use(self, node: fx.Node) -> bool:
        """Whether a node of the cone may have users outside: it stays valid, or the call returns it."""
        root = self.roots[node]
        while is_call(root, aten.expand.default):
            root = self.roots.get(input_of(root), input_of(root))
        stays = root in self.reading.inputs or root in self.reading.recomputed
        return stays or root in self.returned or node not in self.dependent


def group_by_value(matches: list[Match]) -> list[list[Match]]:
    """Matches that quantise the same value form one site; in graph order."""
    by_value: dict[fx.Node, list[Match]] = {}
    for match in matches:
        by_value.setdefault(match.value, []).append(match)
    return list(by_value.values())


def plan_site(matches: list[Match]) -> SitePlan:
    """The plan of the site that `matches` are. Raises Stop if the results cannot have the shapes they must."""
    site = SitePlan(matches[0], [_plan_quant(match) for match in matches])
    site.kept = {VALUE: site.match.value, **site.reading.kept}
    reads = [q.match.quant for q in site.quants]
    results = (node for read in reads for node in (read.codes, read.scale, read.scale_bits))
    site.returned = {*site.kept.values(), *results}
    site.cone = _cone(site)
    _follow_values(site)
    site.wanted = wanted_values(site)
    site.inputs = {name: _row_input(node, site) for name, node in site.reading.rows.items()}
    site.inputs |= {name: _vector_input(node) for name, node in site.reading.vectors.items()}
    site.inputs |= {name: _token_input(node) for name, node in site.reading.per_token.items()}
    site.outputs = _outputs(site)
    return site


def _plan_quant(match: Match) -> QuantPlan:
    quant = match.quant
    target = None if quant.opaque or quant.scale is None else scale_target(match)
    return QuantPlan(match, quant.spec if target is None else quant.spec.with_layout(target.layout), target)


# The nodes that are removed.


def _cone(site: SitePlan) -> set[fx.Node]:
    """Every tensor node between the inputs of the site and its codes and scales, these included."""
    ends = [q.match.quant.codes for q in site.quants] + [q.match.quant.scale for q in site.quants]
    ends += site.kept.values()
    return computed_by(filter(None, ends), site.reading.inputs, _holds_tensors)


def _holds_tensors(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.Tensor, tuple, list, dict))  # a launch returns a dict


def _follow_values(site: SitePlan) -> None:
    """Fill `roots` and `dependent`, in one walk from the inputs to the codes."""
    rows = set(site.reading.given_rows)
    for node in sorted(site.cone):
        source = below(node)
        site.roots[node] = node if source is None else site.roots.get(source, source)
        if any(n in site.dependent or n in rows for n in node.all_input_nodes):
            site.dependent.add(node)


def outside_users(node: fx.Node, cone: set[fx.Node]) -> list[fx.Node]:
    """The users of a node outside the site."""
    return [user for user in node.users if user not in cone and not needs_nothing(user)]


def needs_nothing(user: fx.Node) -> bool:
    """Whether a node has no effect and no result that is read: an unused output, a check of a dtype.

    `torch.export` puts such checks after casts; what they check is known once the tensor is traced.
    """
    return not user.users and (user.target is operator.getitem or is_call(user, aten._assert_tensor_metadata.default))


def wanted_values(site: SitePlan) -> frozenset[str]:
    """The kept values that are read outside; also the value itself if it is quantised in a second way."""
    names = {node: name for name, node in site.kept.items()}
    wanted = set()
    for node, root in site.roots.items():
        users = outside_users(node, site.cone) if root in names else []
        if early := [user for user in users if user < site.end]:
            raise Stop("intermediate_used", node, f"users after %{site.end.name}", describe(early[0]))
        if users:
            wanted.add(names[root])
    if any(q.spec != site.quants[0].spec for q in site.quants):
        wanted.add(VALUE)
    return frozenset(wanted)


# What is read.


def _row_input(node: fx.Node | None, site: SitePlan) -> Input | None:
    """How to read a tensor of tokens.

    Matching looked through every copy. If the op cannot read the tensor at the bottom with its strides, it reads a copy
    that the graph makes anyway; a new copy is made only if there is none.
    """
    if node is None:
        return None
    hidden = site.match.hidden
    forms = (n for n in site.cone if n is not node and value(n) is not None and site.roots[n] is node)
    for form in (node, *sorted(n for n in forms if tensor_of(n).dtype == tensor_of(node).dtype)):
        sizes = _input_sizes(form, hidden)
        fake = _reshaped(tensor_of(form), sizes)
        if _is_dense(fake) and row_layout(fake) is not None:
            return Input(form, False, sizes, fake)
    sizes = _input_sizes(node, hidden)
    copy = tensor_of(node).clone(memory_format=torch.contiguous_format)
    return Input(node, True, sizes, _reshaped(copy, sizes))


def _is_dense(fake: torch.Tensor) -> bool:
    return any(equal(fake.stride(-1), step) for step in range(1, MAX_STEP + 1))


def _vector_input(node: fx.Node | None) -> Input | None:
    if node is None:
        return None
    return Input(node, False, None if len(shape(node)) == 1 else [-1], tensor_of(node).reshape(-1))


def _token_input(node: fx.Node | None) -> Input | None:
    """How to read one number per token: as [tokens] or [batch, sequence] in place, whatever the strides."""
    if node is None:
        return None
    sizes = None if len(shape(node)) in (1, 2) else [-1]
    return Input(node, False, sizes, _reshaped(tensor_of(node), sizes))


def _input_sizes(node: fx.Node, hidden: int) -> list[int] | None:
    """The sizes to reshape a tensor of tokens to, as a view if possible; None if it already is [tokens, ...]."""
    sizes = shape(node)
    for lead in range(1, len(sizes)):
        tail = [size for size in sizes[lead:] if isinstance(size, int)]
        if len(tail) == len(sizes) - lead and prod(tail) == hidden and len(tail) <= 3:
            return None if lead == 1 else [-1, *tail]
    for lead in range(1, len(sizes)):
        # [tokens * heads, head_dim]: no dimension ends where a token ends.
        if isinstance(sizes[-1], int) and hidden % sizes[-1] == 0 and lead == len(sizes) - 1:
            return [-1, hidden // sizes[-1], sizes[-1]]
    return [-1, hidden]


def _reshaped(val: torch.Tensor, sizes: list[int] | None) -> torch.Tensor:
    return val if sizes is None else val.reshape(sizes)


# What is returned.


def _outputs(site: SitePlan) -> dict[fx.Node, Sizes]:
    """The reshapes of all results. Raises Stop if one is impossible."""
    tokens, hidden = numel(site.match.value) // site.match.hidden, site.match.hidden
    wanted: dict[fx.Node, Shape] = {site.kept[name]: (tokens, hidden) for name in sorted(site.wanted)}
    for quant in site.quants:
        read = quant.match.quant
        wanted[read.codes] = (tokens, hidden)
        if read.scale is not None and not read.opaque:
            wanted[read.scale] = (tokens, hidden // read.spec.group_size)
            if read.scale_bits is not None:
                wanted[read.scale_bits] = wanted[read.scale]
        elif read.scale is not None and len(shape(read.value)) > 2:  # of [..., hidden] an op makes scales [..., groups]
            wanted[read.scale] = scale_storage(tokens, hidden // read.spec.group_size, quant.spec)[0]
    for node, flat in wanted.items():
        if not equal(numel(node), prod(flat)):
            expected = f"{prod(flat)} elements, as the fused op returns"
            raise Stop("replacement_differs", node, expected, describe(node))
    return {node: _output_sizes(node, site, flat) for node, flat in wanted.items()}


def _output_sizes(node: fx.Node, site: SitePlan, flat: Shape) -> Sizes:
    """The sizes that reshape a fused result of shape `flat` to that of `node`; None if it already has it."""
    wanted = shape(node)
    if same_shape(wanted, flat):
        return None
    found = {i: _size_node(size, node, site) for i, size in enumerate(wanted) if not isinstance(size, int)}
    missing = [i for i, size in found.items() if size is None]
    if len(missing) > 1:  # a view infers one size at most, so the graph computes all others somewhere
        listed = ", ".join(str(wanted[i]) for i in missing)
        raise Stop("symbolic_shape", node, "sizes that the graph computes before it", f"{listed}, computed nowhere")
    inferred = next(iter(missing or found), None)
    sizes: list[Size] = []
    for i, size in enumerate(wanted):
        given = size if isinstance(size, int) else found[i]
        sizes.append(-1 if i == inferred or given is None else given)
    return sizes


def _size_node(size: int | torch.SymInt, node: fx.Node, site: SitePlan) -> Size | None:
    """Where a dynamic size comes from: a dimension of an input, or a number that the graph computes anyway."""
    for source in site.reading.given_rows:
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
