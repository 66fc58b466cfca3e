"""The one way in which a notebook shows a figure.

JupyterLab strips scripts and SVG from a notebook that it does not trust, and other readers know no plotly at all. So a
figure is one bundle of three forms: plotly's JSON; a still picture for those who cannot draw that (nbconvert, nbviewer,
GitHub); and, in text, what is drawn. Its caption and its conclusion stand below it in a message of their own, once for
all readers; they travel in the figure's metadata, too, where the site reads them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from html import escape
from typing import Any

from fusionlab.show.drawing import Drawing

PLOTLY_MIME = "application/vnd.plotly.v1+json"
SVG_MIME = "image/svg+xml"
CAPTION_ROLE = "caption"
TABLE_ROLE = "table"

#: (data, metadata) of one display message.
Bundle = tuple[dict[str, Any], dict[str, Any]]


def figure_bundle(drawing: Drawing) -> Bundle:
    """The message that carries the figure itself, drawn with the project's template."""
    import plotly.graph_objects as go

    from fusionlab.show.still import StillError, picture
    from fusionlab.show.theme import HEIGHT, template

    themed = go.Figure(drawing.fig).update_layout(template=template())
    if themed.layout.height is None:  # JupyterLab does not look for one in the template
        themed.layout.height = HEIGHT
    # Through plotly's own encoder, because numpy arrays and scalars are not JSON.
    payload = json.loads(themed.to_json())
    payload["config"] = {"displayModeBar": False, "responsive": True}
    data = {PLOTLY_MIME: payload, "text/plain": drawing.alt}
    with suppress(StillError):  # a reader's own figure may be of any kind; those of the notebooks are tested to have it
        data[SVG_MIME] = picture(themed, drawing.caption, drawing.alt)
    return data, {"fusionlib": drawing.words}


def caption_bundle(drawing: Drawing) -> Bundle:
    """The message that says a figure's words below it, for every reader but the site."""
    caption, summary = drawing.caption, drawing.summary
    words = {"text/markdown": f"**{escape(caption)}** {escape(summary)}", "text/plain": f"{caption} {summary}"}
    return words, {"fusionlib": {"role": CAPTION_ROLE}}


def bundles(drawing: Drawing) -> Iterator[Bundle]:
    """The messages of one drawing in order: figure, words, and the table if there is one.

    The site sets the words in the figure's own caption and leaves the second message out.
    """
    yield figure_bundle(drawing)
    yield caption_bundle(drawing)
    if drawing.table is not None:
        table = drawing.table
        yield {"text/html": table.html(), "text/plain": table.text()}, {"fusionlib": {"role": TABLE_ROLE}}


class Shown:
    """A drawing that is on show, and can be replaced in place."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex
        self._count = 0

    def update(self, drawing: Drawing) -> None:
        """Show `drawing`: below the cell the first time, in the place of the one before after that.

        The kernel's front end replaces message by message, so a drawing must have a table if the first one had one.
        """
        from IPython.display import publish_display_data

        messages = list(bundles(drawing))
        again = self._count > 0
        if again and len(messages) != self._count:
            raise ValueError("a drawing that replaces another needs a table exactly if the first one has a table")
        self._count = len(messages)
        for part, (data, metadata) in enumerate(messages):
            place = {"display_id": f"{self._name}-{part}"}
            if again and PLOTLY_MIME in data:
                # JupyterLab keeps what it drew of a plotly output, whatever is sent for it. Another type in its place
                # takes the old plot away: the new figure stands there as a picture first, and as itself a moment later.
                still = {kind: text for kind, text in data.items() if kind != PLOTLY_MIME}
                publish_display_data(data=still, metadata=metadata, transient=place, update=True)
            publish_display_data(data=data, metadata=metadata, transient=place, update=again)


def show(drawing: Drawing) -> None:
    """Show `drawing` in the running notebook: figure, words below it, table below these."""
    Shown().update(drawing)
