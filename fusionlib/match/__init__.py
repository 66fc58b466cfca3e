"""Reads specs from graphs: `match_graph(graph, fusions)` says what every anchor is to these fusions."""

from fusionlib import op as _op  # noqa: F401  (defines the op that is registered below)
from fusionlib.match.calls import Arguments, Written
from fusionlib.match.matcher import anchors, match_anchor, match_graph
from fusionlib.match.opaque import OpaqueCast, OpaqueQuant, register_own, register_quant_kernel, register_quant_op
from fusionlib.match.reasons import REASONS, NotMine, Reason, Stop
from fusionlib.match.result import Match, Miss, Pair, QuantRead, Reading, Unclaimed
from fusionlib.match.torchao import register_torchao

register_own()
register_torchao()

__all__ = [
    "REASONS",
    "Arguments",
    "Match",
    "Miss",
    "NotMine",
    "OpaqueCast",
    "OpaqueQuant",
    "Pair",
    "QuantRead",
    "Reading",
    "Reason",
    "Stop",
    "Unclaimed",
    "Written",
    "anchors",
    "match_anchor",
    "match_graph",
    "register_quant_kernel",
    "register_quant_op",
]
