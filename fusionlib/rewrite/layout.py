"""Which layout the consumers of a scale ask for, so that the fused op writes it and the copies can go.

A scale starts row-major. If all that leave the site are copies of it into one other layout, the op writes that layout
and the copies are replaced: column-major storage, spelled as `s.t().contiguous().t()` or as a copy into
`empty_strided`, or exponents packed into int32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fusionlib.match.graph import aten, dtype, equal, is_call, numel, peel_exact, shape, value
from fusionlib.match.result import Match
from fusionlib.rewrite.packing import packed_copy
from fusionlib.spec import ScaleLayout

_TRANSPOSES = (aten.permute.default, aten.t.default, aten.transpose.int)


@dataclass(frozen=True)
class ScaleTarget:
    """A layout, and the nodes that hold the scale in it: [tokens, groups], or its transpose where `transposed`."""

    layout: ScaleLayout
    nodes: tuple[tuple[fx.Node, bool], ...]


def scale_target(match: Match) -> ScaleTarget | None:
    """The layout of the scale that the consumers of a native quantisation want; None for row-major."""
    root = match.quant.scale
    inside = _quotient_side(match)
    copies: list[tuple[fx.Node, bool]] = []
    layouts: set[ScaleLayout] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        for user in node.users:
            if user in inside:
                stack += [user] if _follows(user, root) else []
            elif (transposed := _column_major_copy(user, match)) is not None:
                copies.append((user, transposed))
                layouts.add("column_major")
            elif (packed := packed_copy(user, match)) is not None:
                copies.append((packed, False))
                layouts.add("packed_int32")
            elif _follows(user, root):
                stack.append(user)
            else:
                return None
    return ScaleTarget(layouts.pop(), tuple(copies)) if len(layouts) == 1 else None


def _follows(user: fx.Node, root: fx.Node) -> bool:
    """Whether a user of the scale is it in another shape, or transposed: what leaves the site lies further on."""
    if is_call(user, *_TRANSPOSES) and len(shape(user)) == 2:
        return True
    return user.op == "call_function" and value(user) is not None and peel_exact(user) is root


def _quotient_side(match: Match) -> set[fx.Node]:
    """The nodes from the codes up to the scale: users of the scale that the fusion removes."""
    stack, seen = [match.quant.codes], set()
    while stack:
        node = stack.pop()
        if node in seen or node is match.quant.scale or node is match.normed or node.op != "call_function":
            continue
        seen.add(node)
        stack.extend(node.all_input_nodes)
    return seen


def _column_major_copy(node: fx.Node, match: Match) -> bool | None:
    """Whether `node` copies the scale into storage of strides (1, tokens): True for the transpose, False for the
    scale itself, None for neither."""
    if not is_call(node, aten.clone.default, aten.copy.default) or len(shape(node)) != 2:
        return None
    groups = match.hidden // match.quant.spec.group_size
    tokens = numel(match.normed) // match.hidden
    rows, columns = shape(node)
    strides = value(node).stride()
    if dtype(node) is not torch.float32:
        return None
    source = node.args[1] if node.target is aten.copy.default else node.args[0]
    turned = _is_turned(source, match.quant.scale)
    if turned is None:
        return None
    if turned and equal(rows, groups) and equal(columns, tokens) and equal(strides[0], tokens) and strides[1] == 1:
        return True
    if not turned and equal(rows, tokens) and equal(columns, groups) and strides[0] == 1 and equal(strides[1], tokens):
        return False
    return None


def _is_turned(node: fx.Node, scale: fx.Node) -> bool | None:
    """Whether `node` is the scale transposed (True), the scale (False), or something else (None)."""
    turned = False
    node = peel_exact(node)
    while node is not scale:
        if not is_call(node, *_TRANSPOSES) or len(shape(node)) != 2:
            return None
        turned = not turned if _swaps(node) else turned
        node = peel_exact(node.args[0])
    return turned


def _swaps(node: fx.Node) -> bool:
    if node.target is aten.permute.default:
        return [d % 2 for d in node.args[1]] == [1, 0]
    return node.target is aten.t.default or node.args[1] % 2 != node.args[2] % 2
