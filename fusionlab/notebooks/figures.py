"""Plotly's notebook output as a <figure> that a page can draw without a network."""

from __future__ import annotations

import base64
import html
import itertools
import json
from collections.abc import Mapping
from typing import Any

from fusionlab.show.controls import room_of
from fusionlab.show.figure import PLOTLY_MIME, SVG_MIME

_numbers = itertools.count(1)

_FIGURE = """\
<figure class="plot" id="figure-{number}">
<div class="plot-frame" role="region" aria-label="{name}" tabindex="0">
<div class="plot-area" role="img" aria-label="{alt}" style="height:{height}px"></div>
</div>
<script type="application/json" class="plot-data">{data}</script>
<noscript>{still}</noscript>
<figcaption>{caption}</figcaption>
</figure>
"""


def figure_html(output: Mapping[str, Any]) -> str:
    """Return the HTML of one plotly output, described by its metadata `fusionlib: {caption, alt, summary}`.

    A figure without a description gets its text/plain form instead, so that every figure has one.
    """
    about = output.get("metadata", {}).get("fusionlib", {})
    fallback = output["data"].get("text/plain", "a figure without a description")
    figure = output["data"][PLOTLY_MIME]
    layout = figure.get("layout", {})
    caption, summary = about.get("caption", ""), about.get("summary", "")
    parts = [f"<strong>{html.escape(caption)}</strong>" if caption else "", html.escape(summary)]
    return _FIGURE.format(
        number=next(_numbers),
        name=html.escape(caption or "a figure", quote=True),
        alt=html.escape(about.get("alt", fallback)),
        height=_height(layout),
        still=_still(output["data"], about.get("alt", fallback)),
        data=script_json({"data": figure.get("data", []), "layout": layout}),
        caption=" ".join(filter(None, parts)),
    )


def _height(layout: Mapping[str, Any]) -> int:
    """The plot's height in pixels without the controls, which the page turns into its own elements."""
    themed = layout.get("template", {}).get("layout", {}).get("height")
    return int(layout.get("height") or themed or 420) - sum(room_of(layout))


def _still(data: Mapping[str, Any], alt: str) -> str:
    """The figure if no script runs: its picture, or else a description."""
    if SVG_MIME not in data:
        return f'<p class="plot-noscript">This figure is drawn by a script. It shows: {html.escape(alt)}</p>'
    picture = base64.b64encode(data[SVG_MIME].encode()).decode()
    return f'<img class="plot-still" alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{picture}">'


def script_json(value: Any) -> str:
    """Return JSON that is safe inside a <script> element, whatever text it contains.

    A parser ends a script at the first `</script`, and treats `<!--` specially, wherever they occur; escaping the
    three markup characters avoids both, and means the same to a JSON parser.
    """
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
