"""The instructor's kit, docs/teaching.md, as a page of the site: who opens the site from a disk has no repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from nbconvert.filters import markdown2html

from fusionlab.checkout import repository_root
from fusionlab.notebooks.contents import with_contents
from fusionlib.commands.errors import UsageError

if TYPE_CHECKING:
    from fusionlab.notebooks.site import Page

HREF = "teaching.html"
TITLE = "Teaching with fusionlib"


def find_kit() -> Path | None:
    """The document in the checkout, None where there is no checkout or it has none."""
    try:
        path = repository_root() / "docs" / "teaching.md"
    except UsageError:
        return None
    return path if path.is_file() else None


def render_kit(document: Path, templates: Path, pages: Sequence[Page]) -> str:
    """Return the HTML of the kit, with the site's pages beside it."""
    environment = Environment(loader=FileSystemLoader(templates), autoescape=True, undefined=StrictUndefined)
    body = markdown2html(document.read_text(encoding="utf-8"))
    html = environment.get_template("document.html.j2").render(title=TITLE, href=HREF, body=body, pages=pages)
    return with_contents(html)
