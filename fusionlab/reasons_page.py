"""The reason codes as a page: a table of what each means and how to fix it, and the smallest example of each.

`docs/reasons.md` is this page, as printed by `fusionlib reasons`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

from fusionlab.reason_examples import EXAMPLES, SHARED
from fusionlib.match.reasons import REASONS, Reason

_INTRODUCTION = """\
# Why a site is refused

A site is fused, refused or unclaimed. It is refused, with one of these codes, where a fusion recognises what is
quantised and cannot take it; a code keeps its meaning. It is unclaimed where no fusion starts from what is quantised:
that is no failure, and a code there says only that its quantisation could not be read either.

`fusionlib explain MODULE:CALLABLE` and `FusionPass.report()` name the code, the node that stopped the reading, its
source line, what was expected there and what was found. `fusionlib reasons` prints this page, and
`fusionlib reasons CODE` one reason with its example.
"""

_EXAMPLES = """\
## The smallest example of each

Every example changes one thing of this path, which fuses (`F` is `torch.nn.functional`):

{shared}

An example that is a function of `x`, `gate` and `weight` is refused by
`fusionlib.explain(example, *tensors(), devices="cpu")`. One without parameters makes its report itself. The tests run
all of them, from `fusionlab/reason_examples.py`.
"""


def reasons_page() -> str:
    """The whole page as markdown."""
    parts = [_INTRODUCTION, _table(), _EXAMPLES.format(shared=_source(SHARED))]
    parts += [f"### {code}\n\n{reason.sentence}\n\n{_source([EXAMPLES[code]])}\n" for code, reason in _listed().items()]
    return "\n".join(parts)


def reason_text(code: str) -> str:
    """One reason: what it means, how to fix it, and its example."""
    reason = REASONS[code]
    return f"{code}: {reason.sentence}\nfix: {reason.fix}\n\n{inspect.getsource(EXAMPLES[code])}"


def _listed() -> dict[str, Reason]:
    """The reasons with an example, by their codes: those of the library and its fusions, not of somebody else's."""
    return {code: REASONS[code] for code in EXAMPLES}


def _table() -> str:
    rows = [f"| [`{r.code}`](#{r.code}) | {r.sentence} | {r.fix} |" for r in _listed().values()]
    return "\n".join(["| code | what it means | the way out |", "|---|---|---|", *rows, ""])


def _source(functions: Iterable[Callable]) -> str:
    sources = "\n\n\n".join(inspect.getsource(function).rstrip() for function in functions)
    return f"```python\n{sources}\n```"
