"""Readable forms of the names in a trace: short for a label, escaped for a figure, whole if there is room."""

from __future__ import annotations

import re
import textwrap
from html import escape

_FUNCTOR = re.compile(r"\b(\w*Functor\w*|\w+_kernel(?:_cuda|_impl)?|\w+Ops?)\b")
_HASH = re.compile(r"\s*\b[a-z0-9]{30,}\b")  # Inductor appends a graph's cache key to its name
_GENERIC = re.compile(r"^(?:TensorIterator\w*|OpMath\w*|\w*elementwise_kernel|reduce_kernel|gpu_kernel\w*)$")


def _without_brackets(name: str) -> tuple[str, str]:
    """`name` without its template and call arguments, and those arguments."""
    kept, dropped, depth = [], [], 0
    for character in name.replace("->", "→"):
        if character in "<({":
            depth += 1
        (dropped if depth else kept).append(character)
        if character in ">)}" and depth:
            depth -= 1
    return "".join(kept), "".join(dropped)


def cut(text: str, width: int) -> str:
    """At most `width` (>= 3) characters of `text`, with an ellipsis for what is left out in the middle."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def short_name(name: str, width: int = 32) -> str:
    """The name of a kernel or operator for a label: no return type, namespaces, templates or arguments.

    For PyTorch's generic kernels, the template argument that says what they compute is added. Not escaped.
    """
    plain = _HASH.sub("", name.strip("# ")).removeprefix("void ").strip()
    if re.fullmatch(r"\w+::\w+", plain):  # an operator
        return cut(plain.removeprefix("aten::"), width)
    head, arguments = _without_brackets(plain)
    head = head.strip().split("::")[-1].strip() or plain
    inner = [word for word in _FUNCTOR.findall(arguments) if not _GENERIC.match(word)]
    if _GENERIC.match(head) and inner:
        head = f"{inner[0]} ({head.removesuffix('_kernel')})"
    return cut(head, width)


def wrapped(name: str, width: int = 60, lines: int = 6) -> str:
    """`name` in lines for a hover box, escaped; if it is too long, a note says that the rest is missing."""
    parts = textwrap.wrap(name, width, break_on_hyphens=False) or ["(no name)"]
    if len(parts) > lines:
        parts = [*parts[:lines], f"… {len(name)} characters in all"]
    return "<br>".join(escape(part) for part in parts)


def us(value: float) -> str:
    """Microseconds with a useful number of digits."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"
