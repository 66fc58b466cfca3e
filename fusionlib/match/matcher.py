"""From a graph to sites: every anchor becomes a `Match`, a `Miss` or `Unclaimed`, never an exception or nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import fx

from fusionlib.match.graph import (
    FLOATS,
    clamp_bounds,
    describe,
    dtype,
    input_of,
    is_div,
    is_mul,
    is_narrowing,
    is_scalar,
    operands,
    peel_exact,
    value,
)
from fusionlib.match.opaque import is_opaque_quant, read_opaque_quant
from fusionlib.match.quant import is_fp8_cast, read_fp8_cast
from fusionlib.match.reasons import REASONS, NotMine, Stop
from fusionlib.match.result import Match, Miss, QuantRead, Reading, Trail, Unclaimed
from fusionlib.match.tokens import hidden_size
from fusionlib.match.unknown import is_unknown_quant, product_input, unknown_quant

log = logging.getLogger(__name__)


class Reads(Protocol):
    """What matching needs from a fusion."""

    @property
    def name(self) -> str:
        """Its name in reports."""

    def read(self, value: fx.Node, trail: Trail) -> Reading:
        """The producer whose value is `value`. Raises NotMine or Stop."""


Site = Match | Miss | Unclaimed


def anchors(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes at which quantisations end, in graph order: casts to FP8, known opaque ops, and unknown ones.

    Also products with an FP8 weight that take a value as it is, in 16 bits, and calls that cannot be looked at.
    """
    for node in graph.nodes:
        try:
            found = (
                is_fp8_cast(node) or is_opaque_quant(node) or is_unknown_quant(node) or product_input(node) is not None
            )
        except Exception:  # a pass must not break a compile; `match_anchor` fails on it too, and reports it
            log.exception("fusionlib cannot tell whether %s quantises", node)
            found = True
        if found:
            yield node


def match_graph(graph: fx.Graph, fusions: Sequence[Reads]) -> list[Site]:
    """What each anchor of `graph` is to `fusions`, in graph order; changes nothing."""
    return [match_anchor(anchor, fusions) for anchor in anchors(graph)]


def match_anchor(anchor: fx.Node, fusions: Sequence[Reads]) -> Site:
    """What the quantisation that ends in `anchor` is to `fusions`; the first that can take it gets it."""
    trail = Trail()
    try:
        if (taken := product_input(anchor)) is not None and not is_opaque_quant(anchor):
            return Unclaimed(anchor, _producer(taken), peel_exact(taken), inside=True)
        try:
            quant = _read_quant(anchor, trail)
        except Stop as stop:
            return _unread(anchor, stop, trail, fusions)
        return _claimed(anchor, quant, trail, fusions) or _unclaimed(anchor, quant.y, trail)
    except Exception as error:  # a pass must not break a compile; the refusal and the log report it
        log.exception("fusionlib failed to read %s", describe(anchor))
        found = f"{type(error).__name__}: {error}"
        return Miss(anchor, REASONS["internal_error"], anchor, "a site that can be read", found, tuple(trail))


def _read_quant(anchor: fx.Node, trail: Trail) -> QuantRead:
    if is_opaque_quant(anchor):
        return read_opaque_quant(anchor, trail)
    if is_fp8_cast(anchor):
        return read_fp8_cast(anchor, trail)
    raise unknown_quant(anchor)


def _claimed(anchor: fx.Node, quant: QuantRead, trail: Trail, fusions: Sequence[Reads]) -> Match | Miss | None:
    """The match of the first fusion that can take the site, else the refusal that got furthest, else None."""
    nearest: Miss | None = None
    for fusion in fusions:
        own = Trail(trail)
        try:
            reading = fusion.read(quant.y, own)
            return Match(anchor, fusion, quant.y, hidden_size(reading, quant), reading, quant, tuple(own))
        except NotMine:
            continue
        except Stop as stop:
            if nearest is None or len(own) > len(nearest.pairs):
                nearest = _miss(anchor, stop, own, fusion)
    return nearest


def _unread(anchor: fx.Node, stop: Stop, trail: Trail, fusions: Sequence[Reads]) -> Miss | Unclaimed:
    """A quantisation that cannot be read is refused if a fusion starts from its value, and unclaimed otherwise."""
    values = _quantised_values(anchor)
    for node in values:
        for fusion in fusions:
            try:
                fusion.read(node, Trail())
            except NotMine:
                continue
            except Stop:
                pass
            return _miss(anchor, stop, trail, fusion)
    return _unclaimed(anchor, values[0] if values else anchor, trail, stop.reason.code)


def _unclaimed(anchor: fx.Node, node: fx.Node, trail: Trail, why: str = "") -> Unclaimed:
    return Unclaimed(anchor, _producer(node), peel_exact(node), why, tuple(trail))


def _miss(anchor: fx.Node, stop: Stop, trail: Trail, fusion: Reads) -> Miss:
    return Miss(anchor, stop.reason, stop.node, stop.expected, stop.found, tuple(trail), fusion.name)


def _quantised_values(anchor: fx.Node) -> list[fx.Node]:
    """The nodes that may be what is quantised if the quantisation was not read, likeliest first."""
    if not is_fp8_cast(anchor):
        nodes = [node for node in anchor.all_input_nodes if value(node) is not None]
        return sorted(nodes, key=lambda node: dtype(node) not in FLOATS or is_scalar(node))  # scales and buffers last
    quotient = peel_exact(input_of(anchor))
    while True:  # the clamp, and roundings before the cast
        clamped = clamp_bounds(quotient)
        if clamped is not None:
            quotient = peel_exact(clamped[0])
        elif is_narrowing(quotient):
            quotient = peel_exact(input_of(quotient))
        else:
            break
    if is_mul(quotient) or is_div(quotient):
        return [*(arg for arg in operands(quotient) if isinstance(arg, fx.Node)), quotient]
    return [quotient]


def _producer(node: fx.Node) -> fx.Node:
    """The node that computed a value, below reshapes and casts."""
    node = peel_exact(node)
    while is_narrowing(node):
        node = peel_exact(input_of(node))
    return node
