"""The headings of a rendered page: a unique anchor for each, and a table of contents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape, unescape

#: Marks the place of the table of contents in a page's template.
MARKER = "<!--contents-->"

_HEADING = re.compile(r"<h(?P<level>[2-4])(?P<attributes>[^>]*)>(?P<inner>.*?)</h(?P=level)>", re.DOTALL)
_ANCHOR = re.compile(r'<a class="anchor-link"[^>]*>.*?</a>', re.DOTALL)
_BREAK = re.compile(r"<br\b[^>]*>")
_TAG = re.compile(r"<[^>]+>")
_ID = re.compile(r'\sid="([^"]*)"')


@dataclass(frozen=True)
class Heading:
    """A heading below the page's title: its level (2 to 4), anchor and text."""

    level: int
    anchor: str
    text: str


def with_contents(html: str) -> str:
    """Return a page with its table of contents in place of the marker, and an anchor on every heading.

    Headings with the same text get distinct anchors (`Summary`, `Summary-2`); those that nbconvert could not parse and
    left without an anchor get one too. Only what follows the marker is processed: the page's own frame precedes it.
    """
    frame, found, body = html.partition(MARKER)
    if not found:
        return html
    headings: list[Heading] = []
    taken = Counter(re.findall(r'\sid="([^"]*)"', frame))

    def anchored(match: re.Match[str]) -> str:
        inner = _ANCHOR.sub("", match["inner"])
        text = " ".join(unescape(_TAG.sub("", _BREAK.sub(" ", inner))).split())
        known = _ID.search(match["attributes"])
        wanted = unescape(known[1]) if known else re.sub(r"\W+", "-", text).strip("-") or "section"
        taken[wanted] += 1
        anchor = wanted if taken[wanted] == 1 else f"{wanted}-{taken[wanted]}"
        headings.append(Heading(int(match["level"]), anchor, text))
        attributes = _ID.sub("", match["attributes"])
        link = f'<a class="anchor-link" href="#{escape(anchor)}" aria-label="Link to “{escape(text)}”">#</a>'
        return f'<h{match["level"]} id="{escape(anchor)}"{attributes}>{inner}{link}</h{match["level"]}>'

    body = _HEADING.sub(anchored, body)
    return frame + contents_html(headings) + body


def contents_html(headings: Sequence[Heading]) -> str:
    """Return the table of contents as nested lists of links, empty without headings."""
    if not headings:
        return ""
    items = "".join(
        f'<li class="level-{heading.level}"><a href="#{escape(heading.anchor)}">{escape(heading.text)}</a></li>\n'
        for heading in headings
    )
    return f'<ol class="toc">\n{items}</ol>'
