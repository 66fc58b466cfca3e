"""What others raise, as a line of a report: compilers' messages run over pages."""

from __future__ import annotations


def in_a_line(error: BaseException, most: int = 160) -> str:
    """The type of `error` and the first line of its message, of which at most `most` characters.

    A line that ends in "raised:" only introduces the next, as the compiler's do that wrap what a pass raises.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if not line.endswith("raised:")), "")
    return f"{type(error).__name__}: {line:.{most}}"
