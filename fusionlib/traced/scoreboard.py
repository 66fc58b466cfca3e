"""The scoreboard: which of the listed spellings a traced pattern finds, beside the semantic matcher, as a table.

Both columns are held by tests: `tests/traced/test_scoreboard.py` runs the traced way on every row, and
`tests/rewrite/test_listed_spellings.py` the semantic matcher, which finds them all.
"""

from __future__ import annotations

from fusionlib.traced.spellings import SPELLINGS

#: The rows on which the traced pattern, registered for vLLM's norm and quantisation, fires.
FOUND = frozenset(
    {
        "as the reference",
        "rows of heads, [tokens*heads, head_dim]",
        "a chain of reshapes",
        "symbolic token count",
        "strided gate",
        "fp16 activations",
        "opaque quantisation",
        "column-major scales",  # the pattern ends at the scale; the copy that turns it stays behind as a kernel
    }
)


def scoreboard() -> str:
    """The table as markdown, one row a spelling, with the counts below."""
    rows = [f"| {s.kind} | {s.name} | {'fuses' if s.name in FOUND else 'missed'} | fuses |" for s in SPELLINGS]
    head = ["| what differs | spelling | traced pattern | semantic matcher |", "|---|---|---|---|"]
    counts = f"The traced pattern finds {len(FOUND)} of {len(SPELLINGS)}, the semantic matcher {len(SPELLINGS)}."
    return "\n".join([*head, *rows, "", counts, ""])
