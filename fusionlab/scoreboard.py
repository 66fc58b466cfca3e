"""The scoreboard: which of the listed spellings a traced pattern finds, beside the semantic matcher, as tables.

Tests check all columns: `tests/lab/test_scoreboard.py` runs the traced pattern on every row of a gated norm, and
`tests/rewrite/test_listed_spellings.py` the semantic matcher on every row of every fusion; it finds them all.
"""

from __future__ import annotations

from fusionlab.norm_spellings import NORM_SPELLINGS
from fusionlab.product_spellings import GATE_SPELLINGS, PRODUCT_SPELLINGS
from fusionlab.spellings import SPELLINGS, Spelling

#: The spellings of every fusion's producer, by the fusion's name.
TABLES: dict[str, tuple[Spelling, ...]] = {
    "gated_norm": SPELLINGS,
    "rms_norm": NORM_SPELLINGS,
    "act_and_mul": PRODUCT_SPELLINGS,
    "sigmoid_gate": GATE_SPELLINGS,
}

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
        "column-major scales",  # the pattern ends at the scale; the copy that transposes it remains as a kernel
    }
)


#: Differences between a spelling run in eager on a CPU and the reference: how many of 1,048,576 codes (2048 tokens of
#: 512) differ, and how many of their 8192 scales differ in the last bit if the value stays float32 until quantisation.
RESPELLED = {
    "x * (1 / sqrt(v))": (1, 1027),
    "x / sqrt(v)": (1, 2418),
    "v ** -0.5": (0, 0),
    "sum(x * x) / n": (0, 0),
    "z * sigmoid(z)": (0, 1412),
    "z / (1 + exp(-z))": (0, 18),
    "z * (1 / (1 + exp(-z)))": (0, 1413),
    "1 / (1 + exp(-z)) as the sigmoid": (0, 110),
    "x * (weight * act(gate))": (0, 2630),
}


def respelled() -> str:
    """The counts of RESPELLED as a markdown table."""
    rows = [f"| `{name}` | {codes} | {scales:,} |" for name, (codes, scales) in RESPELLED.items()]
    head = "| spelling | codes that differ of 1,048,576 | scales that differ of 8,192, value in float32 |"
    return "\n".join([head, "|---|---|---|", *rows, ""])


def scoreboard() -> str:
    """The table as markdown, one row per spelling, with the counts below."""
    rows = [f"| {s.kind} | {s.name} | {'fuses' if s.name in FOUND else 'missed'} | fuses |" for s in SPELLINGS]
    head = ["| what differs | spelling | traced pattern | semantic matcher |", "|---|---|---|---|"]
    counts = f"The traced pattern finds {len(FOUND)} of {len(SPELLINGS)}, the semantic matcher {len(SPELLINGS)}."
    return "\n".join([*head, *rows, "", counts, ""])


def other_fusion(name: str) -> str:
    """The table of another fusion as markdown: what each row is read as, by the roundings of its spec."""
    rows = [f"| {s.kind} | {s.name} | {read_as(s)} |" for s in TABLES[name]]
    head = ["| what differs | spelling | fuses, rounding at |", "|---|---|---|"]
    return "\n".join([*head, *rows, "", f"All {len(rows)} fuse.", ""])


def read_as(spelling: Spelling) -> str:
    """The points at which a spelling rounds."""
    return (spelling.spec.rounding_text.replace(",", ", ") if spelling.spec is not None else "") or "no point"
