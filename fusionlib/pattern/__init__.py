"""The stock approach: a pattern traced from code, found by PyTorch's own matcher, replaced by the fused op.

This is the approach of vLLM PR #40710, complete and with our own op. It finds only code written like the pattern and
silently skips everything else: of the thirty-odd ways in docs/scoreboard.md to write the same computation it finds a
few. The walkthrough starts from it, and the semantic matcher is measured against it.
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
