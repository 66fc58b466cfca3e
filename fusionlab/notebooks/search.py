"""The index of the site's search: the text of every page, split at its headings and cells.

Nine pages are a few hundred kilobytes of text. A browser searches that in milliseconds, so the index is the text
itself: it finds any part of a word, and can show the surrounding words. It is a script rather than JSON because a page
opened from disk may load scripts but not JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser

SCRIPT = "search-index.js"
VARIABLE = "FUSIONLIB_SEARCH"

# A <noscript> is for readers without scripts, and they have no search: it would say each figure's words again.
_SILENT = frozenset({"script", "style", "template", "button", "noscript"})
_HEADINGS = frozenset({"h1", "h2", "h3", "h4"})
_VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())  # noqa: SIM905
_INLINE = frozenset("a abbr b code em i kbd mark q s small span strong sub sup u var".split())  # noqa: SIM905


@dataclass(frozen=True)
class Passage:
    """A section of a page: the anchor where it begins, the heading above it, its text."""

    anchor: str
    heading: str
    text: str


def index_script(pages: Mapping[str, tuple[str, str]]) -> str:
    """Return the script that holds the index of `pages`: {address: (title, html)}."""
    index = [
        {"page": address, "title": title, "passages": [[p.anchor, p.heading, p.text] for p in passages(html)]}
        for address, (title, html) in pages.items()
    ]
    return f"window.{VARIABLE} = {json.dumps(index, ensure_ascii=False, separators=(',', ':'))};\n"


def passages(html: str) -> list[Passage]:
    """Split the text in a page's <main> into passages. Each heading and each cell, which have anchors, begins one."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    found = [Passage(piece.anchor, _joined(piece.heading), _joined(piece.text)) for piece in reader.pieces]
    return [passage for passage in found if passage.text]


def _joined(parts: Iterable[str]) -> str:
    return " ".join("".join(parts).split())


@dataclass
class _Piece:
    anchor: str
    heading: list[str]
    text: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    """Collects the text in <main> without scripts, buttons and anchor signs."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[_Piece] = []
        self._open: list[tuple[str, str]] = []  # the open elements inside <main>: (name, role)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = {name: value or "" for name, value in attrs}
        if tag == "main" and not self._open:
            self.pieces.append(_Piece("", []))
            self._open = [("main", "")]
            return
        if not self._open:
            return
        role = self._role(tag, about)
        if role == "heading":
            self.pieces.append(_Piece(about.get("id", ""), []))
        elif role == "section":
            self.pieces.append(_Piece(about["id"], self.pieces[-1].heading))
        if tag not in _VOID:
            self._open.append((tag, role))
        self._say("" if tag in _INLINE else " ")
        # The name of a region repeats a heading or a caption that is inside of it.
        if words := about.get("alt") or (about.get("role") != "region" and about.get("aria-label")):
            self._say(f" {words} ")

    def handle_endtag(self, tag: str) -> None:
        names = [name for name, _ in self._open]
        if tag in names:  # outputs may leave elements open, as HTML allows; inner ones end with it
            del self._open[len(names) - 1 - names[::-1].index(tag) :]
        self._say("" if tag in _INLINE else " ")

    def handle_data(self, data: str) -> None:
        if any(role == "heading" for _, role in self._open) and not self._silent():
            self.pieces[-1].heading.append(data)
        self._say(data)

    @staticmethod
    def _role(tag: str, about: Mapping[str, str]) -> str:
        if tag in _SILENT or about.get("class") == "anchor-link":
            return "silent"
        if tag in _HEADINGS:
            return "heading"
        return "section" if tag == "section" and about.get("id") else ""

    def _silent(self) -> bool:
        return any(role == "silent" for _, role in self._open)

    def _say(self, text: str) -> None:
        if self._open and not self._silent():
            self.pieces[-1].text.append(text)
