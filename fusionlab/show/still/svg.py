"""Pieces of SVG: numbers, colours, dashes, text with the few tags that plotly supports."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusionlab.show.theme import FONT, INK

#: Character widths relative to the font size, averaged over the fonts that pages use.
WIDE, BOLD = 0.58, 0.64
LINE = 1.25  # line height, relative to the font size
DASHES = {"dash": "9 5", "dot": "2 4", "dashdot": "9 4 2 4", "longdash": "15 6", "longdashdot": "15 5 2 5"}

_TAG = re.compile(r"(<br\s*/?>|</?b>|</?i>|<span style='font-size:\d+px'>|</span>)")
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML cannot hold


def number(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 0.05 else "0"


def escape(text: object) -> str:
    """Text for an element or an attribute, without characters that XML cannot represent."""
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(text)), quote=True)


def element(name: str, body: str = "", **attributes: Any) -> str:
    """An element; underscores in attribute names become hyphens, numbers are rounded, None omits an attribute."""
    said = ""
    for key, value in attributes.items():
        if value is not None:
            text = number(value) if isinstance(value, (int, float)) else escape(value)
            said += f' {key.rstrip("_").replace("_", "-")}="{text}"'
    return f"<{name}{said}>{body}</{name}>" if body else f"<{name}{said}/>"


def path(points: Iterable[tuple[float, float]]) -> str:
    """The `d` of a line through `points`."""
    return "M" + "L".join(f"{number(x)},{number(y)}" for x, y in points)


def stroke(colour: str, width: float = 1, dash: str | None = None) -> dict[str, Any]:
    """Attributes of a line."""
    return {"stroke": colour, "stroke_width": width, "stroke_dasharray": DASHES.get(dash or "")}


@dataclass(frozen=True)
class Run:
    """A piece of text in one typeface."""

    text: str
    size: float
    bold: bool = False
    italic: bool = False

    @property
    def width(self) -> float:
        """Its approximate width in pixels."""
        return len(self.text) * self.size * (BOLD if self.bold else WIDE)


@dataclass(frozen=True)
class Text:
    """Lines of runs, read from text with plotly's tags."""

    lines: Sequence[Sequence[Run]]
    size: float

    @property
    def width(self) -> float:
        """The approximate width of the widest line in pixels."""
        return max((sum(run.width for run in line) for line in self.lines), default=0.0)

    @property
    def height(self) -> float:
        """The total height of all lines in pixels."""
        return LINE * self.size * len(self.lines)

    def at(self, x: float, middle: float, anchor: str = "start", colour: str = INK) -> str:
        """The text, vertically centred at `middle`, with its start, middle or end at `x`."""
        top = middle - self.height / 2
        spans = "".join(self._spans(x, top))
        return element(
            "text", spans, text_anchor=None if anchor == "start" else anchor, fill=None if colour == INK else colour,
            font_size=self.size,
        )  # fmt: skip

    def _spans(self, x: float, top: float) -> Iterator[str]:
        for place, line in enumerate(self.lines):
            y = top + LINE * self.size * (place + 0.5) + 0.36 * self.size  # a baseline is below the middle
            for first, run in zip([True] + [False] * len(line), line, strict=False):
                yield element(
                    "tspan", escape(run.text), x=x if first else None, y=y if first else None,
                    font_weight="bold" if run.bold else None, font_style="italic" if run.italic else None,
                    font_size=run.size if run.size != self.size else None,
                )  # fmt: skip


def text(source: object, size: float) -> Text:
    """Read text with plotly's tags (`<br>`, `<b>`, `<i>`, a span with a size); any other markup is text."""
    lines: list[list[Run]] = [[]]
    face = plain = Run("", size)
    for place, piece in enumerate(_TAG.split(str(source))):
        if place % 2 == 0:  # between two tags, which text can begin like
            lines[-1] += [replace(face, text=html.unescape(piece))] if piece else []
        elif piece.startswith("<br"):
            lines.append([])
        elif piece in ("<b>", "</b>"):
            face = replace(face, bold=piece == "<b>")
        elif piece in ("<i>", "</i>"):
            face = replace(face, italic=piece == "<i>")
        elif piece.startswith("<span"):
            face = replace(face, size=float(re.findall(r"\d+", piece)[0]))
        else:
            face = replace(face, size=plain.size)
    return Text(lines, size)


def document(parts: Iterable[str], width: float, height: float, title: str, alt: str, ground: str) -> str:
    """The whole picture, with its own background so that it is legible on any page."""
    about = element("title", escape(title)) + element("desc", escape(alt))
    back = element("rect", width=width, height=height, fill=ground)
    return element(
        "svg", about + back + "".join(parts), xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {number(width)} "
        f"{number(height)}", width=width, height=height, role="img", font_family=FONT, fill=INK,
    )  # fmt: skip
