"""Finds prose that Markdown interprets as something else: a line that becomes a list, a word that is lost as a tag.

Notebooks wrap their prose, so any word may end up at the start of a line, where a plus, a dash, a number or a hash has
a meaning. Nothing reports this; the page is just wrong. The checks are CommonMark's rules as far as they concern prose,
plus MathJax's dollars, and require the spelling that every renderer reads the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

#: HTML that pages use on purpose.
TAGS = frozenset({"br", "code", "details", "kbd", "pre", "sub", "summary", "sup"})

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_BLOCK = re.compile(
    r"^ {0,3}(?:(?P<item>[-+*]|\d{1,9}[.)])(?:\s|$)|(?P<heading>#{1,6})(?:\s|$)|(?P<quote>>)|(?P<table>\|))"
)
_UNDERLINE = re.compile(r"^ {0,3}(=+|-+)\s*$")
_NESTED = re.compile(r"^\s+(?P<item>[-+*]|\d{1,9}[.)])\s")
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\]\([^()\s]*\)")
_TAG = re.compile(r"</?([A-Za-z][\w.-]*)[^<>]*>")
_WITHIN_A_WORD = re.compile(r"[\w)\]]\*{1,2}[\w(\[]")
_DUNDER = re.compile(r"(?<!\w)__\w+__(?!\w)")
_ESCAPE = re.compile(r"\\[!-/:-@\[-`{-~]")
_ENDS_A_CLAUSE = (".", ":", ";", ",", "!", "?", ")", "|")


def swallowed(source: str) -> list[str]:
    """What Markdown would not show as written in `source`, one sentence each, in line order."""
    problems: list[tuple[int, str]] = []
    for number, lines in _blocks(source):
        if lines[0].lstrip().startswith("|"):
            problems += _table(number, lines)
        else:
            problems += _taken_for_blocks(number, lines)
        problems += _inline(number, "\n".join(lines))
    return [f"line {number}: {problem}" for number, problem in sorted(problems)]


def _blocks(source: str) -> Iterator[tuple[int, list[str]]]:
    """Runs of lines that are neither blank nor code, each with the number of its first line, from 1."""
    found: list[str] = []
    fence = ""
    after_blank = True  # indented text after a blank line is code, unless it continues a list
    in_list = False
    for number, line in enumerate(source.splitlines(), 1):
        opened = _FENCE.match(line)
        if fence:
            fence = "" if opened and opened[1].startswith(fence) else fence
        elif opened:
            fence = opened[1]
        elif line.strip() and (found or in_list or not after_blank or not line.startswith("    ")):
            found.append(line)
            block = _BLOCK.match(line)
            in_list = in_list or bool(block and block["item"])
            if len(found) == 1 and not line.startswith(" ") and not (block and block["item"]):
                in_list = False
            after_blank = False
            continue
        after_blank = not line.strip()
        if found:
            yield number - len(found), found
            found = []
    if found:
        yield len(source.splitlines()) - len(found) + 1, found


def _taken_for_blocks(first: int, lines: list[str]) -> Iterator[tuple[int, str]]:
    """Lines inside a paragraph that would start a new block."""
    opened = _BLOCK.match(lines[0])
    bullet = opened["item"] if opened else None
    in_list = bullet is not None or lines[0].startswith(" ")
    for number, (before, line) in enumerate(pairwise(lines), first + 1):
        block = _BLOCK.match(line)
        kind = block.lastgroup if block else None
        mark = block[kind] if block and kind else ""
        nested = _NESTED.match(line) if in_list else None
        if nested:
            if not before.rstrip().endswith(_ENDS_A_CLAUSE):
                yield number, f"begins with {nested['item']!r} in the middle of a sentence, which makes it an item"
        elif kind == "item":
            if not in_list or bullet is None or mark[-1] != bullet[-1]:
                yield (
                    number,
                    f"begins with {mark!r}, which makes it a list; wrap elsewhere, or leave a blank line above",
                )
        elif kind in ("heading", "quote") or (kind == "table" and not before.lstrip().startswith("|")):
            yield (
                number,
                f"begins with {mark!r} in the middle of a paragraph; wrap elsewhere, or leave a blank line above",
            )
        elif _UNDERLINE.match(line):
            yield number, "makes a heading of the line above; leave a blank line above a rule"


def _table(first: int, lines: list[str]) -> Iterator[tuple[int, str]]:
    """Rows of a table whose cell count differs from the header's: a bar inside code or text splits a cell."""
    cells = [len(re.findall(r"(?<!\\)\|", line.strip())) - 1 for line in lines]
    for number, (count, _) in enumerate(zip(cells, lines, strict=True), first):
        if count != cells[0]:
            yield number, f"has {count} cells, where the table's head has {cells[0]}"


def _inline(first: int, text: str) -> Iterator[tuple[int, str]]:
    """Problems inside lines: unclosed quotes, tags, stars inside words, dollars."""
    prose = _LINK.sub("]", _SPAN.sub(lambda span: "x" + "\n" * span[0].count("\n"), text))

    def at(place: int) -> int:
        return first + prose.count("\n", 0, place)

    if "`" in prose:
        yield at(prose.index("`")), "has a ` that nothing closes"
    for tag in _TAG.finditer(prose):
        if tag[1].lower() not in TAGS:
            yield at(tag.start()), f"has {tag[0]!r}, which is taken for HTML and vanishes; write it in `quotes`"
    for found in (*_WITHIN_A_WORD.finditer(prose), *_DUNDER.finditer(prose)):
        yield at(found.start()), f"has {found[0]!r}, whose marks may vanish as emphasis; write it in `quotes`"
    for found in _ESCAPE.finditer(prose):
        yield at(found.start()), f"has {found[0]!r}, whose backslash vanishes; write it in `quotes`"
    if prose.count("$") > 1:
        yield at(prose.index("$")), "has dollars, between which everything is taken for mathematics; use `quotes`"
