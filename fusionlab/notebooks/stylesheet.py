"""The site's stylesheet: the files in assets/, the two colour schemes, and code that is legible in both.

A page follows the system's scheme until the reader chooses one: theme.js then sets `data-theme` on the root. The dark
colours apply on screens only, so that print is always light.
"""

from __future__ import annotations

import re
from pathlib import Path

from pygments.formatters import HtmlFormatter

SHEETS = ("site.css", "figures.css", "landing.css", "print.css")
CODE_STYLES = {"light": "default", "dark": "github-dark"}

#: The minimum contrast of text with its background: WCAG 2.2, criterion 1.4.3, level AA.
CONTRAST = 4.5

#: Every colour of the pages by its name in the stylesheet: for light and for dark pages.
COLOURS = {
    "text": ("#1c2024", "#e2e5e8"),
    "soft": ("#57606a", "#a3adb6"),
    "link": ("#0b5fad", "#7db7ee"),
    "failed": ("#b3261e", "#ff8a80"),
    "good": ("#1d7044", "#62c48d"),
    "warn": ("#7a5c00", "#d9b44a"),
    "page": ("#ffffff", "#14171a"),
    "surface": ("#f5f6f7", "#1c2024"),
    "rule": ("#d5dade", "#363d44"),
    "mark": ("#ffe9a3", "#5c4a12"),
}
#: The colours used for text.
INKS = ("text", "soft", "link", "failed", "good", "warn")


def stylesheet(assets: Path) -> str:
    """Return the site's whole stylesheet; `assets` is the folder with its parts."""
    by_system, by_choice = ":root:not([data-theme])", ':root[data-theme="dark"]'
    parts = [
        _scheme("light", ":root"),
        f"@media screen and (prefers-color-scheme: dark) {{\n{_scheme('dark', by_system)}\n}}",
        f"@media screen {{\n{_scheme('dark', by_choice)}\n}}",
        *((assets / sheet).read_text("utf-8") for sheet in SHEETS),
    ]
    return "\n".join(parts)


def _scheme(scheme: str, root: str) -> str:
    """Return the rules of one scheme for the pages whose root element the selector `root` names."""
    index = list(CODE_STYLES).index(scheme)
    colours = " ".join(f"--{name}: {pair[index]};" for name, pair in COLOURS.items())
    code = _code(CODE_STYLES[scheme], COLOURS["surface"][index], root)
    # With zero specificity, so that a later rule for :root replaces a colour in both schemes.
    return f":where({root}) {{ color-scheme: {scheme}; {colours} }}\n{code}"


def _code(style: str, ground: str, root: str) -> str:
    """The rules of a pygments style, each colour adjusted until it is legible on `ground`."""
    prefix = f"{root} .highlight"
    lines = HtmlFormatter(style=style, nobackground=True).get_style_defs(prefix).splitlines()
    rules = "\n".join(line for line in lines if line.startswith(prefix))  # the others are for numbered lines
    return re.sub(r"(?<![-\w])color: (#[0-9a-fA-F]{3,6})", lambda found: f"color: {legible(found[1], ground)}", rules)


def legible(colour: str, ground: str, at_least: float = CONTRAST) -> str:
    """Return `colour`, darkened or lightened just enough for a contrast of `at_least` with `ground`.

    Both are `#rgb` or `#rrggbb`. The colour moves towards black on a light ground and towards white on a dark one.
    """
    start, end = _channels(colour), _channels("#000" if contrast("#000", ground) > contrast("#fff", ground) else "#fff")
    for percent in range(101):
        mixed = (round(a + (b - a) * percent / 100) for a, b in zip(start, end, strict=True))
        moved = "#{:02x}{:02x}{:02x}".format(*mixed)
        if contrast(moved, ground) >= at_least:
            return moved
    raise ValueError(f"no colour has a contrast of {at_least} with {ground}; ask for less, or take another ground")


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours according to WCAG 2.2, between 1 and 21."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        for share in (channel / 255 for channel in _channels(colour))
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _channels(colour: str) -> tuple[int, int, int]:
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    red, green, blue = (int(digits[i : i + 2], 16) for i in (0, 2, 4))
    return red, green, blue
