"""Rendering executed notebooks to a site that works from disk, without a network.

nbconvert's own templates load require.js, MathJax and mermaid from other hosts and silently drop plotly's output. The
templates here build on nbconvert's bare block structure instead: stylesheet, script and plotly.js are files beside the
pages, and a policy in each page forbids anything else. Formulas are Unicode and HTML; no TeX is rendered.
"""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from plotly.offline import get_plotlyjs
from traitlets.config import Config

from fusionlab.exercises import progress_page
from fusionlab.files import replace_folder
from fusionlab.notebooks import kit, search
from fusionlab.notebooks.catalogue import describe
from fusionlab.notebooks.contents import with_contents
from fusionlab.notebooks.failures import SiteError
from fusionlab.notebooks.figures import figure_html
from fusionlab.notebooks.landing import Lesson, front_figure, lesson, render_index
from fusionlab.notebooks.output_folder import failed_since, notebook_name
from fusionlab.notebooks.page_links import page_links
from fusionlab.notebooks.parameters import HEADLESS
from fusionlab.notebooks.stylesheet import stylesheet
from fusionlab.show.figure import CAPTION_ROLE, PLOTLY_MIME

SCRIPTS = ("theme.js", "page.js", "search.js", "figures.js")

# The richest form that a page can show by itself comes first. Widgets and JavaScript are deliberately absent: widgets
# need a kernel or a CDN, and the page's policy blocks scripts; their text form is shown instead.
DISPLAY_PRIORITY = [
    PLOTLY_MIME,
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/html",
    "text/markdown",
    "text/plain",
]


@dataclass(frozen=True)
class Page:
    """What the index and a page's head say about one executed notebook.

    `status` is executed, failed, or kept: a good result although a later run failed.
    """

    name: str
    title: str
    summary: str
    status: str
    seconds: float | None
    parameters: dict[str, Any]
    provenance: dict[str, str]
    lesson: Lesson

    @property
    def number(self) -> str:
        """The digits that the notebook's name begins with, possibly none."""
        return "".join(itertools.takewhile(str.isdigit, self.name))

    @property
    def href(self) -> str:
        """The page's address relative to the index."""
        return f"{self.name}.html"


def build_site(executed: Sequence[Path], site: Path) -> Path:
    """Render executed notebooks into the folder `site`, replacing its content, and return the path of its index.

    The folder is replaced only if every page could be rendered; its page of progress is written anew from what is noted
    on this machine. Only one process at a time may do this: see `files`.
    """
    pages = [read_page(path) for path in executed]
    fresh = site.with_name(f".{site.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "assets").mkdir(parents=True)
    _write_assets(fresh / "assets")
    for position, (path, page) in enumerate(zip(executed, pages, strict=True)):
        before = pages[position - 1] if position else None
        after = pages[position + 1] if position + 1 < len(pages) else None
        html = render_page(path, page, pages, before=before, after=after)
        _write_page(fresh / page.href, html)
    document = kit.find_kit()
    if document:
        _write_page(fresh / kit.HREF, kit.render_kit(document, _folder("templates"), pages))
    titles = {page.href: page.title for page in pages} | ({kit.HREF: kit.TITLE} if document else {})
    written = {href: (title, (fresh / href).read_text("utf-8")) for href, title in titles.items()}
    (fresh / "assets" / search.SCRIPT).write_text(search.index_script(written), encoding="utf-8")
    figure = front_figure({page.name: path for path, page in zip(executed, pages, strict=True)})
    address = kit.HREF if document else ""
    _write_page(fresh / "index.html", render_index(_folder("templates"), pages, figure=figure, kit=address))
    _write_page(fresh / progress_page.FILE, progress_page.render(fresh))
    replace_folder(fresh, site)
    return (site / "index.html").resolve()


def read_page(path: Path) -> Page:
    """Collect an executed notebook's title and metadata, and what its run recorded."""
    about = describe(path)
    node = nbformat.read(path, as_version=4)
    record = node.metadata.get("fusionlib", {})
    first = next((cell.source for cell in node.cells if cell.cell_type == "markdown"), "")
    return Page(
        name=notebook_name(path),
        title=about.title,
        summary=about.summary,
        status="kept" if failed_since(path) else record.get("status", "executed"),
        seconds=record.get("seconds"),
        parameters=dict(record.get("parameters", {})),
        provenance=dict(record.get("provenance", {})),
        lesson=lesson(first),
    )


def render_page(
    path: Path, page: Page, pages: Sequence[Page], *, before: Page | None = None, after: Page | None = None
) -> str:
    """Return the HTML of one executed notebook, with links to all `pages` of the site and to its neighbours."""
    exporter = HTMLExporter(
        config=Config(NbConvertBase={"display_data_priority": DISPLAY_PRIORITY}),
        template_name="page",
        extra_template_basedirs=[str(_folder("templates"))],
        filters={"figure_html": figure_html, "terminal_text": terminal_text},
        anchor_link_text="#",
    )
    node = nbformat.read(path, as_version=4)
    node.metadata.pop("widgets", None)
    node.cells = [cell for cell in node.cells if not _says_headless_only(cell)]
    for cell in node.cells:
        if "outputs" in cell:
            cell.outputs = _joined(output for output in cell.outputs if not _is_caption(output))
    context = {"page": page, "pages": pages, "before": before, "after": after, "has_figures": _has_figures(node)}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Your element with mimetype")  # nbconvert would drop the output
        try:
            html, _ = exporter.from_notebook_node(node, resources={"fusionlib": context})
        except UserWarning as warning:
            raise SiteError(f"{path.stem}: an output would be missing: {warning}; give it a text/plain form") from None
    return page_links(with_contents(html), {other.name for other in pages})


def _says_headless_only(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell of injected parameters holds only what every headless run gets, and nothing set by a reader."""
    lines = [line for line in cell.source.splitlines() if not line.startswith("#")]
    headless = [f"{name} = {text.capitalize()}" for name, text in HEADLESS.items()]
    return "injected-parameters" in cell.metadata.get("tags", []) and lines == headless


def _joined(outputs: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs, with the pieces of each stream joined."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        before = joined[-1] if joined else {}
        if output.output_type == "stream" and before.get("name") == output.name:
            before.text += output.text
        else:
            joined.append(output)
    return joined


def _is_caption(output: nbformat.NotebookNode) -> bool:
    """Whether an output repeats, for JupyterLab, the words that the page has in the figure's caption."""
    return output.get("metadata", {}).get("fusionlib", {}).get("role") == CAPTION_ROLE


def _has_figures(node: nbformat.NotebookNode) -> bool:
    outputs = (output for cell in node.cells for output in cell.get("outputs", ()))
    return any(PLOTLY_MIME in output.get("data", {}) for output in outputs)


def terminal_text(text: str) -> str:
    """Return a stream as a terminal finally shows it: of a line rewritten with carriage returns, the last version."""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def _write_page(target: Path, html: str) -> None:
    found = external_resources(html)
    if found:
        raise SiteError(
            f"{target.name} would load {', '.join(found)} from the network; "
            "embed the file in the notebook's output, or link to it with an ordinary <a href>"
        )
    target.write_text(html, encoding="utf-8")


def _write_assets(folder: Path) -> None:
    assets = _folder("assets")
    (folder / "site.css").write_text(stylesheet(assets), encoding="utf-8")
    for script in SCRIPTS:
        shutil.copyfile(assets / script, folder / script)
    (folder / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")


def _folder(name: str) -> Path:
    return Path(str(resources.files("fusionlab.notebooks") / name))


def external_resources(html: str) -> list[str]:
    """Return the addresses on other hosts that a browser would load when it opens the page."""
    parser = _ResourceParser()
    parser.feed(html)
    return parser.found


class _ResourceParser(HTMLParser):
    """Collects what elements load. An <a> does not count: it loads nothing until it is followed."""

    ATTRIBUTES = frozenset({"src", "srcset", "data", "poster", "background", "xlink:href"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            loads = name in self.ATTRIBUTES or (name == "href" and tag != "a")
            if loads and (value or "").strip().lower().startswith(("http:", "https:", "//")):
                self.found.append(f"<{tag} {name}={value}>")
