"""The kernel's performance goals, and whether a run's numbers meet them: met, missed, or not measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from fusionlab.observe.bench.cases import BASE, SHAPES, Case
from fusionlab.observe.bench.correctness import CODE_BOUND
from fusionlab.observe.bench.measured_producers import PLAIN
from fusionlab.observe.bench.results import Results, Row


@dataclass(frozen=True)
class Verdict:
    """One goal at one number of tokens.

    Args:
        target: a description of what is compared; `goal` says in which direction.
        value: the measured ratio; None if a part of it was not measured.
        met: whether the goal is reached; None if not measured.
    """

    target: str
    tokens: int
    goal: str
    value: float | None
    met: bool | None


@dataclass(frozen=True)
class Target:
    """A ratio of two rows of one shape against a limit; `limit(tokens)` is None where there is no goal."""

    title: str
    above: tuple[str, str]  # variant and gate of the numerator
    below: tuple[str, str]
    limit: Callable[[int], float | None]
    at_least: bool = True

    def verdict(self, results: Results, tokens: int, shape: str = BASE) -> Verdict | None:
        """The verdict for `shape` at `tokens`, None where there is no goal."""
        limit = self.limit(tokens)
        if limit is None:
            return None
        title = self.title if shape == BASE else f"{shape}: {self.title}"
        goal = f"{'>=' if self.at_least else '<='} {limit:g}"
        one, other = (_find(results, tokens, *part, shape) for part in (self.above, self.below))
        if one is None or other is None:
            return Verdict(title, tokens, goal, None, None)
        value = one.median_us / other.median_us
        return Verdict(title, tokens, goal, value, value >= limit if self.at_least else value <= limit)


def _share_of_light(tokens: int) -> float | None:
    return 0.98 if tokens >= 8192 else 0.85 if tokens <= 256 else None


def _against_two_kernels(tokens: int) -> float | None:
    return 2.3 if tokens <= 64 else 2.1 if tokens == 8192 else None


TARGETS = (
    Target("share of the light", ("light", PLAIN), ("fused", PLAIN), _share_of_light),
    Target("two kernels / ours", ("two_kernel", PLAIN), ("fused", PLAIN), _against_two_kernels),
    Target("Inductor / ours", ("inductor", PLAIN), ("fused", PLAIN), lambda tokens: 1.3),
    Target("AITER / ours", ("aiter", PLAIN), ("fused", PLAIN), lambda tokens: 1.25),
    Target(
        "strided gate / contiguous",
        ("fused", "strided"),
        ("fused", PLAIN),
        lambda tokens: 1.05 if tokens <= 256 else 1.10,
        at_least=False,
    ),
)


#: For the other producers, at every size that is measured. Layouts are their shapes' first.
PRODUCER_TARGETS = (
    Target("share of the light", ("light", ""), ("fused", ""), _share_of_light),
    Target("two kernels / ours", ("two_kernel", ""), ("fused", ""), lambda tokens: 2.0 if tokens <= 64 else None),
    Target("Inductor / ours", ("inductor", ""), ("fused", ""), lambda tokens: 1.0),
)


def verdicts(results: Results) -> list[Verdict]:
    """Every goal at every number of tokens: of the base shape, and of each shape of the other producers.

    The gated norm's other shapes are measured without a goal.
    """
    found = _of_shape(results, BASE, TARGETS)
    for name, shape in SHAPES.items():
        if shape.producer.name != SHAPES[BASE].producer.name:
            found += _of_shape(results, name, PRODUCER_TARGETS)
    return found


def _of_shape(results: Results, shape: str, targets: Sequence[Target]) -> list[Verdict]:
    tokens = sorted({row.tokens for row in results.rows if row.shape == shape})
    found = [target.verdict(results, count, shape) for target in targets for count in tokens]
    return [
        verdict for verdict in (*found, *(_codes(results, count, shape) for count in tokens)) if verdict is not None
    ]


def _codes(results: Results, tokens: int, shape: str) -> Verdict:
    """The verdict on the codes that differ from eager's, by one step."""
    title, goal = "codes that differ from eager's", f"<= {CODE_BOUND:g}"
    title = title if shape == BASE else f"{shape}: {title}"
    row = _find(results, tokens, "fused", "", shape)
    if row is None or row.agreement is None:
        return Verdict(title, tokens, goal, None, None)
    share, codes = row.agreement["codes_differ"], row.agreement["compared"]
    # In a small call a single code exceeds the bound, so a value that may be within it passes.
    return Verdict(title, tokens, goal, share, share * codes <= max(1, math.floor(CODE_BOUND * codes)))


def _find(results: Results, tokens: int, variant: str, gate: str, shape: str) -> Row | None:
    """The row of a variant alone; without `gate` in the shape's first layout."""
    gate = gate or SHAPES[shape].producer.layouts[0]
    return results.find(Case(SHAPES[shape], tokens, gate).name, variant)


def as_json(found: list[Verdict]) -> list[dict]:
    """Verdicts as plain objects."""
    return [asdict(verdict) for verdict in found]
