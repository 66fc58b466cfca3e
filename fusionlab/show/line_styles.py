"""The look of each implementation, the same in all figures: colour, dash and symbol."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fusionlab.show.theme import PALETTE


@dataclass(frozen=True)
class Style:
    """Names of a colour in the palette, and of plotly's dash and marker symbol."""

    colour: str
    dash: str
    symbol: str


#: By the keys of the benchmark's variants; `naive_fused` is the survey's kernel, `light` what moves the same bytes.
IMPLEMENTATIONS = {
    "eager": Style("brown", "solid", "x"),
    "two_kernel": Style("vermillion", "solid", "circle"),
    "inductor": Style("purple", "longdash", "triangle-up"),
    "aiter": Style("green", "dashdot", "diamond"),
    "fla": Style("ochre", "dot", "triangle-down"),
    "naive_fused": Style("violet", "longdashdot", "cross"),
    "fused": Style("blue", "dash", "square"),
    "light": Style("grey", "dot", "circle"),
}
#: Words that identify the implementation in a label; the first match counts.
_WORDS = {
    "light": r"\blight\b|computes nothing|\bfloor\b",
    "aiter": r"\bAITER\b",
    "fla": r"\bFLA\b|flash-linear-attention",
    "naive_fused": r"\bnaive\b",
    "inductor": r"\bInductor\b",
    "eager": r"\beager\b",
    "two_kernel": r"\btwo (kernels|operations)\b|opaque quant",
    "fused": r"\bone (kernel|operation)\b|\bours\b|^fused$",
}


def implementation(label: str) -> str | None:
    """The key in `IMPLEMENTATIONS` for a figure's `label`; None if there is none."""
    return next((key for key, words in _WORDS.items() if re.search(words, label)), None)


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each label of one figure; an unknown implementation gets one that is unused in it."""
    known = {label: implementation(label) for label in labels}
    taken = set(known.values())
    free = [style for key, style in reversed(IMPLEMENTATIONS.items()) if key not in taken and key != "light"]
    spare = itertools.cycle(free or IMPLEMENTATIONS.values())
    return {label: IMPLEMENTATIONS[key] if key else next(spare) for label, key in known.items()}


def line_of(chosen: Style, width: float = 2.5) -> dict:
    """plotly's attributes for a line of that style."""
    return {"width": width, "color": PALETTE[chosen.colour], "dash": chosen.dash}


#: The variants of a step and of a model, in the order of a legend; `opaque` is what the others are compared with.
STEP_STYLES = {
    "opaque": IMPLEMENTATIONS["two_kernel"],
    "inductor": IMPLEMENTATIONS["inductor"],
    "gated_norm": Style("violet", "dot", "diamond"),
    "fused": IMPLEMENTATIONS["fused"],
}
STEP_NAMES = {
    "opaque": "quantisation opaque",
    "inductor": "Inductor, whole",
    "gated_norm": "gated norm alone",
    "fused": "all fused",
}
