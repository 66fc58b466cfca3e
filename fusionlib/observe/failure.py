"""What others raise, as a line of a report: compilers' messages run over pages."""

from __future__ import annotations


def in_a_line(error: BaseException, most: int = 160) -> str:
    """The type of `error` and the first line of its message, of which at most `most` characters."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line:.{most}}"
