"""Reading specs off from graphs: `match_graph(graph)` gives a `Match` or a `Miss` for every anchor."""

from fusionlib import op as _op  # noqa: F401  (defines the op that is registered below)
from fusionlib.match.matcher import anchors, match_anchor, match_graph
from fusionlib.match.opaque import OpaqueCast, OpaqueQuant, register_own, register_quant_op
from fusionlib.match.reasons import REASONS, Reason, Stop
from fusionlib.match.result import Match, Miss, NormRead, Pair, QuantRead
from fusionlib.match.torchao import register_torchao

register_own()
register_torchao()

__all__ = [
    "REASONS",
    "Match",
    "Miss",
    "NormRead",
    "OpaqueCast",
    "OpaqueQuant",
    "Pair",
    "QuantRead",
    "Reason",
    "Stop",
    "anchors",
    "match_anchor",
    "match_graph",
    "register_quant_op",
]
