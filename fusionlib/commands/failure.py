"""Other libraries' exceptions as one line of a report: compilers' messages can run over pages."""

from __future__ import annotations


def in_a_line(error: BaseException, most: int = 160) -> str:
    """The type of `error` and the first line of its message, at most `most` characters of it.

    A line that ends in "raised:" is skipped: the compiler wraps what a pass raises in such an introduction.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if not line.endswith("raised:")), "")
    return f"{type(error).__name__}: {line:.{most}}"
