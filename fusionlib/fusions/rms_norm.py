"""The RMS norm before attention and MLP: of the hidden state, or of its sum with a residual, maybe times a mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import fx

from fusionlib.fusions import norm_product
from fusionlib.fusions.fusion import Fusion
from fusionlib.fusions.norm_product import Form, check_roundings, out_dtype, read_levels, weight_of
from fusionlib.fusions.producer_ops import read_producer
from fusionlib.fusions.recognise_gated_norm import has_gate
from fusionlib.fusions.token_factor import check_promotion, read_masked
from fusionlib.match.graph import (
    FLOATS,
    NARROW,
    dtype,
    input_of,
    is_add,
    is_narrowing,
    numel,
    operands,
    peel_exact,
    shape,
)
from fusionlib.match.reasons import NotMine, Reason, Stop
from fusionlib.match.result import Reading, Trail
from fusionlib.match.root import find_root, read_root
from fusionlib.match.sizes import equal
from fusionlib.match.tokens import need_as_many
from fusionlib.op import RMS_NORM
from fusionlib.spec import RMSNorm

_FORM = Form("not_rms_norm", "norm(x) * weight", gated=False)
_OTHER_NORMS = ("layer_norm", "mean_of_squares")  # a root of something else: LayerNorm, an L2 norm, a batch norm
_MOST_NODES = 64  # between the sum and the normed value there are a dozen


class RMSNormQuant(Fusion):
    """norm(x + residual) * weight [* one number per token] before FP8 group quantisation; also returns the sum."""

    name = "rms_norm"
    op = RMS_NORM
    reasons = (
        Reason(
            "not_rms_norm",
            "What is quantised is an RMS norm times more than a weight and, behind its rounding, one number per token.",
            "Write it as norm(x) * weight, and scale it elsewhere.",
        ),
        *norm_product.REASONS,
    )

    def read(self, value: fx.Node, trail: Trail) -> Reading:
        """The RMS norm whose value is `value`, or that is masked to it."""
        masked = read_masked(value)
        if masked is None:
            return replace(self._read_norm(value, value, trail, shared=False), per_token={"token_factor": None})
        reading = self._read_norm(masked.unmasked, value, trail, shared=masked.is_shared)
        check_promotion(masked, value)
        trail.add("token factor", masked.factor)
        unmasked = frozenset({masked.unmasked})
        return replace(reading, per_token={"token_factor": masked.factor}, recomputed=unmasked)

    def _read_norm(self, value: fx.Node, end: fx.Node, trail: Trail, *, shared: bool) -> Reading:
        """The RMS norm whose value is `value`; the call that computes it follows `end`.

        `shared` is whether others read the value too, who keep it and the sum that it is made of.
        """
        if (opaque := read_producer(value, RMSNorm, trail)) is not None:
            return opaque
        candidate = find_root(value)
        if candidate is None or norm_product.adds_to_a_norm(value):
            raise NotMine
        trail.add("normed", value)
        try:
            root = read_root(candidate, trail)
        except Stop as stop:
            if stop.reason.code in _OTHER_NORMS or has_gate(value, None):
                raise NotMine from None
            raise
        if has_gate(value, root):
            raise NotMine
        levels = read_levels(value, root, _FORM, trail)
        points = norm_product.rounding_points(levels, ("weight", "core"), {"core": "norm"}, _FORM)
        normed = peel_exact(root.value)
        source = _Sum(normed) if shared else _summed(normed, value, end)
        for role, node in (("x", source.x), ("residual", source.residual)):
            if node is not None:
                trail.add(role, node)
        need_as_many("mean_source", source.x, value, f"a value of shape {list(shape(value))}")
        check_roundings(value, source.x, points, {})
        weight, offset = weight_of(levels, trail)
        if any(level.bias is not None for level in levels):
            raise Stop("bias", value, "norm(x) * weight", "a bias added to it")
        rounding: frozenset[Any] = frozenset({"output"}) if dtype(source.x) is torch.float32 else frozenset(points)
        if source.rounded:
            rounding |= {"sum"}
        spec = RMSNorm(root.size, root.eps, offset, rounding, out_dtype(source.x, points))
        rows = {"x": source.x, "residual": source.residual}
        kept = {} if source.held is None or source.residual is None else {"sum": source.held}
        return Reading(rows, spec, {"weight": weight}, run=root.size, kept=kept)

    def spell(self, spec: RMSNorm) -> str:
        """The norm in one line."""
        weight = " of 1 + weight" if spec.weight_offset else ""
        return f"norm{weight} ({spec.norm_size} elements, eps {spec.eps:g}, {spec.rounding_words})"


class _Sum(NamedTuple):
    """What is normed: x, or x + residual, rounded or not; `held` is the sum as others read it, if they do."""

    x: fx.Node
    residual: fx.Node | None = None
    rounded: bool = False
    held: fx.Node | None = None


def _summed(normed: fx.Node, y: fx.Node, end: fx.Node) -> _Sum:
    """The sum that `normed` is, if the op can compute and return it; otherwise the op reads `normed` itself."""
    alone, rounded = _Sum(normed), dtype(normed) in NARROW
    added = peel_exact(input_of(normed)) if rounded and is_narrowing(normed) else normed
    terms = _terms(added, y)
    if terms is None:
        return alone
    x, residual = terms
    held: fx.Node | None = normed
    if rounded and not dtype(x) == dtype(residual) == dtype(normed):
        return alone
    if not rounded and dtype(residual) is not torch.float32:  # a sum in float32 that others read as rounded
        if dtype(x) != dtype(residual):
            return alone
        held = next((user for user in added.users if is_narrowing(user) and dtype(user) == dtype(residual)), None)
    return _Sum(x, residual, rounded, held) if _may_go(added, held, y, end) else alone


def _terms(added: fx.Node, y: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(x, residual) of an addition of two whole tensors; the residual is the wider one."""
    terms = [peel_exact(arg) for arg in operands(added) if isinstance(arg, fx.Node)] if is_add(added) else []
    if len(terms) < 2 or any(dtype(term) not in FLOATS or not equal(numel(term), numel(y)) for term in terms):
        return None
    x, residual = terms
    return (residual, x) if dtype(x) is torch.float32 else (x, residual)


def _may_go(added: fx.Node, held: fx.Node | None, y: fx.Node, end: fx.Node) -> bool:
    """Whether the addition, from which `y` is computed, can be part of the call that follows `end`.

    Only `held` may be read by others, and only behind `end`: another form of the sum, a cast or a view on the way to
    the norm, stands before the call and would have to be computed from its result.
    """
    inside = _between(added, y)
    forms = [node for node in (added, *inside) if node is not held and peel_exact(node) in (added, held)]
    if not inside or any(user not in inside and user is not held for form in forms for user in form.users):
        return False
    return held is None or all(user in inside or end < user for user in held.users)


def _between(first: fx.Node, last: fx.Node) -> set[fx.Node]:
    """The nodes that `last` is computed from after `first`, itself included; empty if there are too many to look at."""
    stack, found = [last], set()
    while stack:
        node = stack.pop()
        if node is not first and node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
        if len(found) > _MOST_NODES:
            return set()
    return found
