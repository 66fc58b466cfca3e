"""What executed notebooks and their site must not contain when they are published."""

from __future__ import annotations

import json
import platform
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat

from fusionlab.notebooks.prose import swallowed
from fusionlab.notebooks.site import DISPLAY_PRIORITY
from fusionlab.show.figure import PLOTLY_MIME, SVG_MIME

WORDS = ("caption", "alt", "summary")


def audit(path: Path, *, root: Path) -> list[str]:
    """Return the problems of the executed notebook at `path`, one sentence each, naming the cell.

    Checks for prose that Markdown would not show as written, a figure without its words or its text form, an output
    that neither the page nor a plain reader can show, messages on stderr, and texts that identify this machine: its
    folders and its name. `root` is the checkout.
    """
    private = private_texts(root)
    problems = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            problems += [f"{path.stem}: cell {cell.id}: {problem}" for problem in swallowed(cell.source)]
        for output in cell.get("outputs", ()):
            problems += [f"{path.stem}: cell {cell.id}: {problem}" for problem in _problems(output, private)]
    return problems


def private_texts(root: Path) -> dict[str, str]:
    """Texts that reveal where a notebook ran, each with a description; short ones would match ordinary words."""
    texts = {
        str(root): "the checkout's folder",
        str(Path.home()): "the home folder",
        sys.prefix: "the environment's folder",
        tempfile.gettempdir() + "/": "the folder for temporary files",
        platform.node(): "the machine's name",
    }
    return {text: what for text, what in texts.items() if len(text) > 4}


def _problems(output: Mapping[str, Any], private: Mapping[str, str]) -> Iterator[str]:
    if output.get("output_type") == "stream" and output.get("name") == "stderr":
        yield f"it wrote to stderr: {output['text'].strip()[:200]!r}; mend the cause, or filter this one message"
    data = output.get("data")
    if data is not None:
        if not set(data) & set(DISPLAY_PRIORITY):
            yield f"nothing can show its output of {', '.join(data) or 'no type'}; give it a text/plain form"
        if PLOTLY_MIME in data:
            about = output.get("metadata", {}).get("fusionlib", {})
            missing = [word for word in WORDS if not about.get(word)]
            missing += [form for form in ("text/plain", SVG_MIME) if form not in data]
            if missing:
                yield f"a figure without {', '.join(missing)}; show it with fusionlab.show.show"
    text = json.dumps(output, ensure_ascii=False)
    for private_text, what in private.items():
        if re.search(rf"(?<!\w){re.escape(private_text)}", text):  # not inside match/a.py if home is /a
            yield f"its output holds {what}, {private_text}; print names relative to the checkout"


def broken_links(site: Path) -> list[str]:
    """Return the problems with the links of the pages in the folder `site`, one sentence each.

    Checks for missing link targets and files, anchors that do not exist on the other page, and duplicate ids, of which
    an anchor reaches only the first. Addresses on other hosts are not requested.
    """
    pages = {path.resolve(): _Page(path) for path in sorted(site.rglob("*.html"))}
    problems = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        problems += [f"{name}: {problem}" for problem in _link_problems(path, page, pages)]
    return problems


class _Page(HTMLParser):
    """The ids of a page, and the addresses that its elements link to or load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            elif name in ("href", "src"):
                self.addresses.append(value or "")


def _link_problems(path: Path, page: _Page, pages: dict[Path, _Page]) -> Iterator[str]:
    for name, count in page.ids.items():
        if count > 1:
            yield f"{count} elements have the id {name!r}; call one of them otherwise"
    for address in dict.fromkeys(page.addresses):
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.is_file():
            yield f"the link {address!r} leads to a file that is not there"
        elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
            yield f"the link {address!r} leads to an anchor that {target.name} does not have"
