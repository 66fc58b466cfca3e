"""A figure of the site as PNG, for light and for dark pages: the README can show only images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fusionlib.commands.errors import UsageError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SCHEMES = ("light", "dark")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
GROUNDS = {"light": "#ffffff", "dark": "#0d1117"}  # GitHub's backgrounds for a README


def take_pictures(page: Path, cell: str, out: Path, *, width: int = 900) -> list[Path]:
    """Write `out`-light.png and `out`-dark.png: the first figure of the cell with the id `cell` on the rendered `page`.

    `width` is in CSS pixels; the pictures have twice as many, so that text is sharp on every screen.
    """
    if not page.is_file():
        raise UsageError(f"{page.name} is not in the site; run `fusionlib notebooks run {page.stem}` first")
    out.parent.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        return [
            _take(chromium, page, cell, out.with_name(f"{out.name}-{scheme}.png"), scheme, width) for scheme in SCHEMES
        ]


def _take(chromium: Browser, page: Path, cell: str, target: Path, scheme: str, width: int) -> Path:
    tab = chromium.new_page(
        viewport={"width": width, "height": 900}, color_scheme=scheme, device_scale_factor=2, reduced_motion="reduce"
    )
    tab.goto(page.resolve().as_uri())
    figure = tab.locator(f"[id='cell-{cell}'] figure.plot").first
    if not figure.count():
        raise UsageError(f"{page.stem} has no figure in a cell with the id {cell!r}")
    tab.locator("figure.plot:not(.drawn)").first.wait_for(state="detached")
    # Only the plot: controls need a script, and the README has its own text.
    tab.add_style_tag(content=f":root {{ --page: {GROUNDS[scheme]}; }} .plot-controls {{ display: none; }}")
    figure.locator(".plot-area").screenshot(path=str(target), animations="disabled")
    tab.close()
    return target


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium of this machine; UsageError if there is none, or no playwright to drive it."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UsageError("pictures need playwright; pip install 'fusionlib[test]'") from error
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        raise UsageError(f"no browser found on the PATH under any of the names {', '.join(BROWSERS)}; install Chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()
