"""The one way in which a notebook shows a figure.

JupyterLab strips scripts and SVG from a notebook that it does not trust, and other readers know no plotly at all. So a
figure is one bundle of two forms: plotly's JSON, and a text that states the conclusion in words. What the figure shows
for those who cannot see it, its caption and its conclusion travel in the output's metadata, where the site reads them.
"""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PLOTLY_MIME = "application/vnd.plotly.v1+json"
CAPTION_ROLE = "caption"


def figure_bundle(
    fig: Figure, *, caption: str, alt: str, summary: str
) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Return (data, metadata) of the display message for `fig`, drawn with the project's template.

    `caption` names the figure, `alt` describes what is drawn, `summary` states the conclusion; none may be empty.
    """
    import plotly.graph_objects as go

    from fusionlib.show.theme import template

    words = {"caption": caption, "alt": alt, "summary": summary}
    for name, text in words.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} is {text!r}; every figure needs a caption, an alt text and a summary in words")
    themed = go.Figure(fig).update_layout(template=template())
    # Through plotly's own encoder, because numpy arrays and scalars are not JSON.
    payload = json.loads(themed.to_json())
    payload["config"] = {"displayModeBar": False, "responsive": True}
    return {PLOTLY_MIME: payload, "text/plain": f"{caption}\n{summary}"}, {"fusionlib": words}


def caption_bundle(*, caption: str, summary: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return (data, metadata) of the display message that says a figure's words below it."""
    words = {"text/markdown": f"**{escape(caption)}** {escape(summary)}", "text/plain": f"{caption} {summary}"}
    return words, {"fusionlib": {"role": CAPTION_ROLE}}


def display_figure(fig: Figure, *, caption: str, alt: str, summary: str) -> None:
    """Show `fig` in the running notebook, its caption and conclusion below; see `figure_bundle` for the words.

    JupyterLab draws the figure and hides the bundle's text, so the words follow as an output of their own, marked as a
    caption: the site, which sets them in the figure's own caption, leaves that output out.
    """
    from IPython.display import publish_display_data

    data, metadata = figure_bundle(fig, caption=caption, alt=alt, summary=summary)
    publish_display_data(data=data, metadata=metadata)
    data, metadata = caption_bundle(caption=caption, summary=summary)
    publish_display_data(data=data, metadata=metadata)
