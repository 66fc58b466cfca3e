"""A figure as a still picture: plain SVG drawn from the figure's own data, for readers that run no script.

It is a fallback, not a second plotly: it supports what this project's figures are made of (lines, markers and bars with
their texts, axes, a legend, straight lines and annotations) and raises an error for anything else.
"""

from fusionlab.show.still.picture import StillError, picture

__all__ = ["StillError", "picture"]
