"""The stock way: a pattern traced from code, searched for by PyTorch's own matcher, replaced by the fused op.

This is how vLLM PR #40710 does it, complete and with our own op. It finds what is written as the pattern is written and
passes over everything else in silence: of the thirty-odd ways in docs/scoreboard.md to write the same computation it
finds a few. It is where the walkthrough starts and what the semantic matcher is measured against.
"""

from fusionlib.pattern.infer import HeadShape, Inferred, infer
from fusionlib.pattern.matchers import MatcherGroupQuant, MatcherRMSNormGated
from fusionlib.pattern.pattern import TracedPattern, fold_consecutive_reshapes, trace_fn, view_to_reshape
from fusionlib.pattern.traced_pass import TracedPass

__all__ = [
    "HeadShape",
    "Inferred",
    "MatcherGroupQuant",
    "MatcherRMSNormGated",
    "TracedPass",
    "TracedPattern",
    "fold_consecutive_reshapes",
    "infer",
    "trace_fn",
    "view_to_reshape",
]
