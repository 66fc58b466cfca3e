"""What has one look in all figures: each implementation its colour, dash and symbol, whatever it is compared with."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fusionlab.show.theme import PALETTE


@dataclass(frozen=True)
class Style:
    """Names of a colour in the palette, of a dash and of a marker symbol, as plotly knows them."""

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
#: The words by which a label says which implementation it is, the first that fits.
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
    """The key in `IMPLEMENTATIONS` of what a figure calls `label`; None for what is not among them."""
    return next((key for key, words in _WORDS.items() if re.search(words, label)), None)


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each of the labels of one figure; what is no known implementation takes one that none here has."""
    known = {label: implementation(label) for label in labels}
    taken = set(known.values())
    free = [style for key, style in reversed(IMPLEMENTATIONS.items()) if key not in taken and key != "light"]
    spare = itertools.cycle(free or IMPLEMENTATIONS.values())
    return {label: IMPLEMENTATIONS[key] if key else next(spare) for label, key in known.items()}


def line_of(chosen: Style, width: float = 2.5) -> dict:
    """plotly's words for a line of that style."""
    return {"width": width, "color": PALETTE[chosen.colour], "dash": chosen.dash}
