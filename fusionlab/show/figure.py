"""The one way in which a notebook shows a figure.

JupyterLab strips scripts and SVG from an untrusted notebook, and other readers do not support plotly at all. So a
figure is a bundle of three forms: plotly's JSON; a still picture for readers that cannot draw it (nbconvert, nbviewer,
GitHub); and a text description. Its caption and conclusion follow in a separate message, shared by all readers; they
are also in the figure's metadata, where the site reads them.
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
    """The message with the figure itself, drawn with the project's template."""
    import plotly.graph_objects as go

    from fusionlab.show.still import StillError, picture
    from fusionlab.show.theme import HEIGHT, template

    themed = go.Figure(drawing.fig).update_layout(template=template())
    if themed.layout.height is None:  # JupyterLab ignores the template's height
        themed.layout.height = HEIGHT
    # Through plotly's own encoder, because numpy arrays and scalars are not JSON.
    payload = json.loads(themed.to_json())
    payload["config"] = {"displayModeBar": False, "responsive": True}
    data = {PLOTLY_MIME: payload, "text/plain": drawing.alt}
    with suppress(StillError):  # a reader's figure may be of any kind; tests check the notebooks' figures
        data[SVG_MIME] = picture(themed, drawing.caption, drawing.alt)
    return data, {"fusionlib": drawing.words}


def caption_bundle(drawing: Drawing) -> Bundle:
    """The message with a figure's words below it, for every reader but the site."""
    caption, summary = drawing.caption, drawing.summary
    words = {"text/markdown": f"**{escape(caption)}** {escape(summary)}", "text/plain": f"{caption} {summary}"}
    return words, {"fusionlib": {"role": CAPTION_ROLE}}


def bundles(drawing: Drawing) -> Iterator[Bundle]:
    """The messages of one drawing in order: figure, words, and the table if there is one.

    The site puts the words in the figure's caption and leaves the second message out.
    """
    yield figure_bundle(drawing)
    yield caption_bundle(drawing)
    if drawing.table is not None:
        table = drawing.table
        yield {"text/html": table.html(), "text/plain": table.text()}, {"fusionlib": {"role": TABLE_ROLE}}


class Shown:
    """A displayed drawing that can be replaced in place."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex
        self._count = 0

    def update(self, drawing: Drawing) -> None:
        """Show `drawing`: below the cell the first time, in place of the previous one after that.

        The front end replaces message by message, so a drawing must have a table exactly if the first one had one.
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
                # JupyterLab keeps the plot it drew for a plotly output, whatever replaces it. An output of another type
                # removes the old plot: the new figure is shown first as a picture, then as itself.
                still = {kind: text for kind, text in data.items() if kind != PLOTLY_MIME}
                publish_display_data(data=still, metadata=metadata, transient=place, update=True)
            publish_display_data(data=data, metadata=metadata, transient=place, update=again)


def show(drawing: Drawing) -> None:
    """Show `drawing` in the running notebook: figure, words below it, then the table."""
    Shown().update(drawing)
