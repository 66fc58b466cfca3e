"""Judging a fusion, ours or yours: its op, its spellings, what it must leave alone, and the mutants of its graphs.

findings = fusionlib.testing.judge(Case(SiluAndMulQuant(), {"silu * up": spelled}, tensors))
assert not any(finding.problem for finding in findings), report(findings)
"""

from fusionlib.testing.judgement import BROKEN, Case, Finding, broken_op, judge, report
from fusionlib.testing.mutants import Base, capture, mutate, verdict, verdicts
from fusionlib.testing.roundings import roundings_kept
from fusionlib.testing.run_edited import run_edited

__all__ = [
    "BROKEN",
    "Base",
    "Case",
    "Finding",
    "broken_op",
    "capture",
    "judge",
    "mutate",
    "report",
    "roundings_kept",
    "run_edited",
    "verdict",
    "verdicts",
]
