"""The one way in which a notebook shows a figure.

JupyterLab strips scripts and SVG from a notebook that it does not trust, and other readers know no plotly at all. So a
figure is one bundle of two forms: plotly's JSON, and a text that states the conclusion in words. What the figure shows
for those who cannot see it, its caption and its conclusion travel in the output's metadata, where the site reads them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PLOTLY_MIME = "application/vnd.plotly.v1+json"


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


def display_figure(fig: Figure, *, caption: str, alt: str, summary: str) -> None:
    """Show `fig` in the running notebook; see `figure_bundle` for the words it takes."""
    from IPython.display import publish_display_data

    data, metadata = figure_bundle(fig, caption=caption, alt=alt, summary=summary)
    publish_display_data(data=data, metadata=metadata)
