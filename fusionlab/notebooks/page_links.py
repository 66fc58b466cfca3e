"""Links between notebooks, turned into links between pages of the site.

A notebook links to another by its file, `[One row](01_one_row.ipynb#Rounding)`, which JupyterLab and GitHub follow. On
the site the same link leads to the page, and to the heading with the same anchor.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection
from urllib.parse import unquote

_ANCHOR_TAG = re.compile(r"<a\s[^>]*>", re.IGNORECASE)
_HREF = re.compile(r"""\shref\s*=\s*(["'])(.*?)\1""", re.IGNORECASE | re.DOTALL)
_NOTEBOOK = re.compile(r"(?:\./)?([^/?#:]+)\.ipynb(#.*)?", re.DOTALL)


def page_links(page: str, names: Collection[str]) -> str:
    """Return the HTML `page` with each link to a notebook turned into one to its page.

    `names` are the notebooks that have a page. A link to one that has none yet loses its address and says why.
    """

    def rewritten(tag: re.Match[str]) -> str:
        href = _HREF.search(tag[0])
        notebook = href and _NOTEBOOK.fullmatch(html.unescape(href[2]))
        if not href or not notebook:
            return tag[0]
        name, anchor = unquote(notebook[1]), notebook[2] or ""
        to = f'href="{html.escape(f"{notebook[1]}.html{anchor}")}"'
        if name not in names:
            to = f'class="absent" title="{html.escape(name)} is not part of this site: it has not run yet"'
        return f"{tag[0][: href.start()]} {to}{tag[0][href.end() :]}"

    return _ANCHOR_TAG.sub(rewritten, page)
