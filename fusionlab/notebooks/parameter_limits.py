"""The limits of a parameter's values, read from the comment after its default.

    tokens: int = 64  # rows of the input; at least 1
    step_ms: float = 10.0  # milliseconds of one step; 1 to 100
    hidden: int = 512  # elements of a row; a multiple of 128, at least 128

A value given on the command line is checked against these words before anything runs.
"""

from __future__ import annotations

import re

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_RANGE = re.compile(rf"(?:^|[;,] ?){_NUMBER} to {_NUMBER}\b")
_LEAST = re.compile(rf"\bat least {_NUMBER}")
_MULTIPLE = re.compile(rf"\ba multiple of {_NUMBER}")


def broken_limit(value: float, words: str) -> str | None:
    """Return the limit in the comment `words` that `value` violates, as worded there; None if it meets all."""
    for pattern, keeps in (
        (_RANGE, lambda low, high: low <= value <= high),
        (_LEAST, lambda low: low <= value),
        (_MULTIPLE, lambda step: value % step == 0),
    ):
        found = pattern.search(words)
        if found and not keeps(*map(float, found.groups())):
            return found[0].lstrip(";, ")
    return None
