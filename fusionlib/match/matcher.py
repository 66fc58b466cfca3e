"""From a graph to specs: every anchor becomes a `Match` or a `Miss`, never an exception and never nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import fx

from fusionlib.match.graph import describe
from fusionlib.match.norm import read_norm
from fusionlib.match.opaque import is_opaque_quant, read_opaque_quant
from fusionlib.match.quant import is_fp8_cast, read_fp8_cast
from fusionlib.match.reasons import REASONS, Stop
from fusionlib.match.result import Match, Miss, Trail
from fusionlib.match.tokens import hidden_size
from fusionlib.match.unknown import is_unknown_quant, unknown_quant

log = logging.getLogger(__name__)


def anchors(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes at which quantisations end, in graph order: casts to FP8, known opaque ops, and unknown ones."""
    for node in graph.nodes:
        if is_fp8_cast(node) or is_opaque_quant(node) or is_unknown_quant(node):
            yield node


def match_anchor(anchor: fx.Node) -> Match | Miss:
    """What the quantisation that ends in `anchor` is, if it quantises a gated norm, or what stopped the reading."""
    trail = Trail()
    try:
        if not is_fp8_cast(anchor) and not is_opaque_quant(anchor):
            raise unknown_quant(anchor)
        quant = (read_opaque_quant if is_opaque_quant(anchor) else read_fp8_cast)(anchor, trail)
        trail.add("normed", quant.y)
        norm = read_norm(quant.y, trail)
        hidden = hidden_size(norm, quant)
        return Match(anchor, quant.y, hidden, norm, quant, tuple(trail))
    except Stop as stop:
        return Miss(anchor, stop.reason, stop.node, stop.expected, stop.found, tuple(trail))
    except Exception as error:  # a pass must not break a compile; the refusal and the log say that it happened
        log.exception("fusionlib failed to read %s", describe(anchor))
        found = f"{type(error).__name__}: {error}"
        return Miss(anchor, REASONS["internal_error"], anchor, "a site that can be read", found, tuple(trail))


def match_graph(graph: fx.Graph) -> list[Match | Miss]:
    """The matches and misses of all anchors of `graph`, in graph order; changes nothing."""
    return [match_anchor(anchor) for anchor in anchors(graph)]
