"""Which layout the consumers of a scale want, so that the fused op writes it and the copies can go.

A scale starts row-major. If only copies of it into one other layout leave the site, the op writes that layout
and the copies are replaced: column-major storage, written as `s.t().contiguous().t()` or as a copy into
`empty_strided`, with columns padded or not, or exponents packed into int32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fusionlib.match.graph import (
    aten,
    below,
    computed_by,
    dtype,
    input_of,
    is_call,
    listed,
    numel,
    peel_exact,
    shape,
    tensor_of,
)
from fusionlib.match.result import Match
from fusionlib.match.sizes import same_shape
from fusionlib.reference import scale_storage
from fusionlib.rewrite.packing import checked_power, packed_copy
from fusionlib.spec import ScaleLayout

_TRANSPOSES = (aten.permute.default, aten.t.default, aten.transpose.int)
_BY_COLUMN: tuple[ScaleLayout, ...] = ("column_major", "column_major_padded")


@dataclass(frozen=True)
class ScaleTarget:
    """A layout, and the nodes that hold the scale in it: [tokens, groups], or its transpose where `transposed`.

    `checks` assert of the scale what is true of every scale that the op writes.
    """

    layout: ScaleLayout
    nodes: tuple[tuple[fx.Node, bool], ...]
    checks: tuple[fx.Node, ...] = ()


def scale_target(match: Match) -> ScaleTarget | None:
    """The layout of the scale that the consumers of a native quantisation want; None for row-major."""
    root, bits = match.quant.scale, match.quant.scale_bits
    if root is None:
        return None
    inside = computed_by([match.quant.codes], (root, match.value))  # users of the scale that the fusion removes
    copies: list[tuple[fx.Node, bool]] = []
    layouts: set[ScaleLayout] = set()
    checks: list[fx.Node] = []
    stack = [root] if bits is None else [root, bits]
    while stack:
        node = stack.pop()
        for user in node.users:
            if user is root:  # of its bits
                continue
            if user in inside:
                stack += [user] if _follows(user, node) else []
            elif (laid_out := _column_copy(user, match)) is not None:
                layout, transposed = laid_out
                copies.append((user, transposed))
                layouts.add(layout)
            elif (packed := packed_copy(user, match)) is not None:
                copies.append((packed, False))
                layouts.add("packed_int32")
            elif (check := checked_power(user, match)) is not None:
                checks.append(check)
            elif _follows(user, node):
                stack.append(user)
            else:
                return None
    return ScaleTarget(layouts.pop(), tuple(copies), tuple(checks)) if len(layouts) == 1 else None


def _follows(user: fx.Node, node: fx.Node) -> bool:
    """Whether a user of the scale is the scale reshaped or transposed: what leaves the site comes further on."""
    return (is_call(user, *_TRANSPOSES) and len(shape(user)) == 2) or (
        user.op == "call_function" and below(user) is node
    )


def _column_copy(node: fx.Node, match: Match) -> tuple[ScaleLayout, bool] | None:
    """(layout, transposed) if `node` copies the scale column by column, either as it is or transposed."""
    if not is_call(node, aten.clone.default, aten.copy.default) or dtype(node) is not torch.float32:
        return None
    turned = _is_turned(input_of(node, 1 if node.target is aten.copy.default else 0), match.quant.scale)
    if turned is None:
        return None
    tokens, groups = numel(match.value) // match.hidden, match.hidden // match.quant.spec.group_size
    for layout in _BY_COLUMN:
        size, stride, _ = scale_storage(tokens, groups, match.quant.spec.with_layout(layout))
        if turned:
            size, stride = size[::-1], stride[::-1]
        if same_shape(shape(node), size) and same_shape(tensor_of(node).stride(), stride):
            return layout, turned
    return None


def _is_turned(node: fx.Node, scale: fx.Node | None) -> bool | None:
    """Whether `node` is the scale transposed (True), the scale (False), or something else (None)."""
    turned = False
    node = peel_exact(node)
    while node is not scale:
        if not is_call(node, *_TRANSPOSES) or len(shape(node)) != 2:
            return None
        turned = not turned if _swaps(node) else turned
        node = peel_exact(input_of(node))
    return turned


def _swaps(node: fx.Node) -> bool:
    if node.target is aten.permute.default:
        return [d % 2 for d in listed(node.args[1])] == [1, 0]
    first, second = (0, 1) if node.target is aten.t.default else listed(node.args[1:])
    return first % 2 != second % 2
