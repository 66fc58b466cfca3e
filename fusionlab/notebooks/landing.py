"""The site's first page: what the site shows, the path through the pages, and routes for different readers.

What a page teaches is read from its first cell, which in every notebook has the same three headings: what the reader
will be able to do, what is needed, and the time. So the first page never promises anything that a page does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fusionlab.exercises import progress_page
from fusionlab.notebooks.catalogue import plain
from fusionlab.notebooks.figures import figure_html
from fusionlab.show.figure import PLOTLY_MIME

if TYPE_CHECKING:
    import pathlib

    from fusionlab.notebooks.site import Page

#: The figure on the first page: the notebook, and its cell. It shows the replayed trace of all three ways.
FIGURE = ("00_the_nine_microseconds", "replay-figure")

#: The parts of the walkthrough by name, each with the numbers of its notebooks.
PARTS = {
    "See it": ("00",),
    "Know what it computes": ("01", "02"),
    "Find it and replace it": ("03", "04"),
    "Make it fast, and measure": ("05", "06"),
    "Use it, and build your own": ("07", "08"),
}


@dataclass(frozen=True)
class Route:
    """A suggested route: for whom, a description, and the numbers of its notebooks in order."""

    title: str
    words: str
    numbers: tuple[str, ...]
    code: str = ""
    kit: bool = False  # whether the instructor's kit belongs to it


ROUTES = (
    Route(
        "I want to understand it",
        "All of them, in order. Each asks you to predict before it shows; the exercises check your own code.",
        ("00", "01", "02", "03", "04", "05", "06", "07", "08"),
    ),
    Route(
        "I want it in a model today",
        "One line in torch.compile. Then read how to prove that it fired, why a layer may be refused, and which option "
        "to add where its output is to be compared with eager's.",
        ("07", "03", "06"),
        'torch.compile(model, options={"post_grad_custom_pre_pass": fusionlib.FusionPass()})',
    ),
    Route(
        "I teach it",
        "Two hours on laptops with no GPU and no network take these four. The instructor's kit has the minutes, the "
        "half-day plan, and what goes wrong.",
        ("00", "01", "03", "07"),
        kit=True,
    ),
)


@dataclass(frozen=True)
class Lesson:
    """What a notebook's first cell says about it: plain text, empty if nothing is said.

    `minutes` is the time to work through it as (least, most), None if no time was found in the text.
    """

    outcomes: tuple[str, ...] = ()
    needs: str = ""
    minutes: tuple[int, int] | None = None


def lesson(markdown: str) -> Lesson:
    """Read a notebook's first cell."""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", markdown)]
    outcomes: tuple[str, ...] = ()
    needs = time = ""
    for head, block in zip(blocks, [*blocks[1:], ""], strict=True):
        if head.startswith("**What you will be able to do**"):
            items = re.split(r"^[-*] +", f"{head}\n{block}", flags=re.MULTILINE)[1:]
            outcomes = tuple(plain(item).rstrip(";.") for item in items)
        elif head.startswith("**You need**"):
            needs = plain(head.removeprefix("**You need**"))
        elif head.startswith("**Time**"):
            time = plain(head.removeprefix("**Time**")).lstrip(": ")
    return Lesson(outcomes, needs[:1].upper() + needs[1:], minutes(time))


_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "ten": 10, "fifteen": 15,
            "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50}  # fmt: skip


def minutes(words: str) -> tuple[int, int] | None:
    """Return the first time in `words` as (least, most) minutes: "half an hour", "an hour or two", "two sittings of
    about 40 minutes"."""
    text = words.lower()
    number = r"(\d+|" + "|".join(_NUMBERS) + r")\b"
    if sittings := re.match(rf"(?:about )?{number} sittings of (.*)", text, flags=re.DOTALL):
        times, each = int(_NUMBERS.get(sittings[1], sittings[1])), minutes(sittings[2])
        return each and (times * each[0], times * each[1])
    for pattern, fixed in (("three quarters of an hour", 45), ("half an hour", 30), ("quarter of an hour", 15)):
        if re.search(rf"^(about |a |an )*{pattern}", text):
            return fixed, fixed
    unit = "(?: (hours?|minutes?))?"
    found = re.search(rf"^(?:about )?{number}{unit}(?: (?:to|or) {number})?{unit}", text)
    said = found and (found[2] or found[4])
    if not said:
        return None
    least, most = (int(_NUMBERS.get(word, word)) for word in (found[1], found[3] or found[1]))
    factor = 60 if said.startswith("hour") else 1
    return factor * least, factor * most


def time_label(span: tuple[int, int] | None) -> str:
    """Return (least, most) minutes as a short label: `45 min`, `1–2 h`, `6–7 h`; empty for None."""
    if span is None:
        return ""
    if span[1] < 60:
        return f"{span[0]} min" if span[0] == span[1] else f"{span[0]}–{span[1]} min"
    least, most = (f"{count / 60:.1f}".removesuffix(".0") for count in (_half_hours(span[0]), _half_hours(span[1])))
    return f"{least} h" if least == most else f"{least}–{most} h"


def _half_hours(count: int) -> int:
    return 30 * max(1, round(count / 30))


def total_minutes(pages: Sequence[Page]) -> tuple[int, int] | None:
    """Return the total time of `pages`, None unless each of them states its own."""
    spans = [page.lesson.minutes for page in pages]
    if not spans or None in spans:
        return None
    return sum(least for least, _ in spans), sum(most for _, most in spans)


def front_figure(executed: Mapping[str, pathlib.Path]) -> str:
    """Return the HTML of the first page's figure from the executed notebooks by name; empty if it was not run."""
    name, cell_id = FIGURE
    cells = nbformat.read(executed[name], as_version=4).cells if name in executed else []
    outputs = [output for cell in cells if cell.get("id") == cell_id for output in cell.get("outputs", ())]
    return next((figure_html(output) for output in outputs if PLOTLY_MIME in output.get("data", {})), "")


def render_index(templates: pathlib.Path, pages: Sequence[Page], *, figure: str = "", kit: str = "") -> str:
    """Return the HTML of the first page; `figure` is the result of `front_figure`, `kit` the kit's address."""
    environment = Environment(loader=FileSystemLoader(templates), autoescape=True, undefined=StrictUndefined)
    environment.filters["time"] = time_label
    return environment.get_template("index.html.j2").render(
        pages=pages,
        parts=_parts(pages),
        routes=_routes(pages),
        total=total_minutes(pages),
        figure=figure,
        kit=kit,
        progress=progress_page.FILE,
    )


def _parts(pages: Sequence[Page]) -> list[tuple[str, list[Page]]]:
    """The parts with their existing pages; pages that belong to no part come last, without a name."""
    known = {number for numbers in PARTS.values() for number in numbers}
    parts = [(title, [page for page in pages if page.number in numbers]) for title, numbers in PARTS.items()]
    parts.append(("", [page for page in pages if page.number not in known]))
    return [(title, chosen) for title, chosen in parts if chosen]


def _routes(pages: Sequence[Page]) -> list[dict[str, Any]]:
    """The routes whose pages all exist."""
    known = {page.number: page for page in pages}
    routes = [route for route in ROUTES if set(route.numbers) <= set(known)]
    chosen = [[known[number] for number in route.numbers] for route in routes]
    return [{"route": r, "pages": c, "total": total_minutes(c)} for r, c in zip(routes, chosen, strict=True)]
